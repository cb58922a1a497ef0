//! Asks a PKCS#11 module for a token's label and serial number where the `cryptoki` crate cannot: opencryptoki says
//! that its tokens have a clock and then gives no time, and `cryptoki` refuses the whole answer for it. It is
//! called for such modules alone.

use std::path::Path;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CK_TOKEN_INFO, CKF_TOKEN_INITIALIZED, CKR_OK};
use libloading::{Library, Symbol};

/// What of a token's information the gateway needs. Texts are padded, as the module gives them.
#[derive(Debug, Clone)]
pub struct TokenInfo {
    /// `CK_TOKEN_INFO.label`.
    pub label: String,
    /// `CK_TOKEN_INFO.manufacturerID`.
    pub manufacturer: String,
    /// `CK_TOKEN_INFO.model`.
    pub model: String,
    /// `CK_TOKEN_INFO.serialNumber`.
    pub serial: String,
    /// `CKF_TOKEN_INITIALIZED`.
    pub is_initialized: bool,
    /// `CK_TOKEN_INFO.ulMaxSessionCount`; 0 means without bound, and all ones that the token does not tell.
    pub sessions_max: u64,
}

type GetFunctionList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;

/// Asks the module at `path`, which this process has loaded and initialised, for the token in `slot`.
///
/// # Errors
/// What the module answered, as text.
pub fn token_info(path: &Path, slot: u64) -> Result<TokenInfo, String> {
    // SAFETY: the library is loaded already, so that no initialiser of it runs now; it stays loaded by its first user.
    let library = unsafe { Library::new(path) }.map_err(|fault| fault.to_string())?;
    // SAFETY: a PKCS#11 module exports this function with this signature (PKCS#11 2.40, section 5.2).
    let get: Symbol<'_, GetFunctionList> =
        unsafe { library.get(b"C_GetFunctionList\0") }.map_err(|fault| fault.to_string())?;
    let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
    // SAFETY: `list` outlives the call, and the function writes one pointer to it.
    let code = unsafe { get(&raw mut list) };
    if code != CKR_OK || list.is_null() {
        return Err(format!("C_GetFunctionList: {code:#x}"));
    }
    // SAFETY: the module gave a pointer to its own list, which lives as long as it is loaded.
    let function = unsafe { (*list).C_GetTokenInfo }.ok_or("the module has no C_GetTokenInfo")?;
    let mut info = CK_TOKEN_INFO::default();
    // SAFETY: `info` outlives the call and has the layout that the function fills in.
    let code = unsafe { function(slot, &raw mut info) };
    if code != CKR_OK {
        return Err(format!("C_GetTokenInfo: {code:#x}"));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(TokenInfo {
        label: text(&info.label),
        manufacturer: text(&info.manufacturerID),
        model: text(&info.model),
        serial: text(&info.serialNumber),
        is_initialized: info.flags & CKF_TOKEN_INITIALIZED != 0,
        sessions_max: info.ulMaxSessionCount,
    })
}
