//! The real module: loaded once, never unloaded, and called through one macro.

use std::{env, ptr, sync::OnceLock};

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_OK};
use libloading::Library;

/// Calls a function of the real module. A module without it answers what PKCS#11 has for that.
macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {
        match $crate::real::list().and_then(|list| list.$name) {
            // SAFETY: the pointer is from the real module's own list, and that module is never unloaded. The
            // arguments are those that our caller vouches for, or handles and buffers that we own.
            Some(function) => unsafe { function($($argument),*) },
            None => cryptoki_sys::CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}
pub(crate) use call;

/// The real module's function list, or nothing where it cannot be loaded.
pub fn list() -> Option<&'static CK_FUNCTION_LIST> {
    static REAL: OnceLock<Option<CK_FUNCTION_LIST>> = OnceLock::new();
    REAL.get_or_init(|| load().inspect_err(|reason| eprintln!("p11shim: {reason}")).ok()).as_ref()
}

fn load() -> Result<CK_FUNCTION_LIST, String> {
    type Entry = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;

    let path = env::var_os("P11SHIM_MODULE").ok_or("P11SHIM_MODULE is not set")?;
    // SAFETY: whoever sets the variable vouches for the module; its initialisers are what any caller would run.
    let library = unsafe { Library::new(&path) }.map_err(|error| format!("cannot load the real module: {error}"))?;
    let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
    let code = {
        // SAFETY: PKCS#11 gives the function of this name this type.
        let entry = unsafe { library.get::<Entry>(b"C_GetFunctionList\0") }
            .map_err(|error| format!("the real module is none: {error}"))?;
        // SAFETY: the argument is a place for a pointer.
        unsafe { entry(&raw mut list) }
    };
    // The pointers of the list must stay good for as long as the process lives.
    std::mem::forget(library);
    if code != CKR_OK || list.is_null() {
        return Err(format!("the real module gave no function list: {code:#x}"));
    }
    // SAFETY: the module said that it is there, and it is static in every module.
    Ok(unsafe { *list })
}
