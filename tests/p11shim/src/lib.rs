//! A PKCS#11 module that stands before a real one and injects the faults that a control file asks for.
//!
//! It loads the module named by `P11SHIM_MODULE` and hands out that module's function list, in which the functions
//! worth disturbing are its own. Each of these asks the rules of `P11SHIM_CONTROL` what befalls the call, and passes
//! it on otherwise. The grammar of the rules is in the README beside this crate.

#![deny(unsafe_op_in_unsafe_fn)]
#![allow(non_snake_case, reason = "PKCS#11 gives the names of the functions")]

use std::{ptr, sync::OnceLock};

use cryptoki_sys::{CK_FUNCTION_LIST, CK_FUNCTION_LIST_PTR_PTR, CK_RV, CKR_ARGUMENTS_BAD, CKR_GENERAL_ERROR, CKR_OK};

mod code;
mod control;
mod fault;
mod forward;
mod kept;
mod memory;
mod real;
mod rule;
mod session;
mod sign;

/// The real module's list, with our functions in the places of those that can be disturbed.
fn wrapped(real: &CK_FUNCTION_LIST) -> CK_FUNCTION_LIST {
    CK_FUNCTION_LIST {
        C_GetFunctionList: Some(C_GetFunctionList),
        C_Initialize: Some(forward::C_Initialize),
        C_Finalize: Some(session::C_Finalize),
        C_GetInfo: Some(forward::C_GetInfo),
        C_GetSlotList: Some(session::C_GetSlotList),
        C_GetSlotInfo: Some(forward::C_GetSlotInfo),
        C_GetTokenInfo: Some(session::C_GetTokenInfo),
        C_GetMechanismList: Some(forward::C_GetMechanismList),
        C_GetMechanismInfo: Some(forward::C_GetMechanismInfo),
        C_OpenSession: Some(session::C_OpenSession),
        C_CloseSession: Some(session::C_CloseSession),
        C_CloseAllSessions: Some(session::C_CloseAllSessions),
        C_GetSessionInfo: Some(forward::C_GetSessionInfo),
        C_Login: Some(forward::C_Login),
        C_Logout: Some(session::C_Logout),
        C_CreateObject: Some(forward::C_CreateObject),
        C_DestroyObject: Some(forward::C_DestroyObject),
        C_GetAttributeValue: Some(forward::C_GetAttributeValue),
        C_SetAttributeValue: Some(forward::C_SetAttributeValue),
        C_FindObjectsInit: Some(forward::C_FindObjectsInit),
        C_FindObjects: Some(session::C_FindObjects),
        C_FindObjectsFinal: Some(forward::C_FindObjectsFinal),
        C_SignInit: Some(sign::C_SignInit),
        C_Sign: Some(sign::C_Sign),
        C_SignUpdate: Some(sign::C_SignUpdate),
        C_SignFinal: Some(sign::C_SignFinal),
        C_GenerateKeyPair: Some(forward::C_GenerateKeyPair),
        C_GenerateRandom: Some(forward::C_GenerateRandom),
        ..*real
    }
}

/// The entry point of a module of version 2.40.
///
/// # Safety
///
/// `list` is null or points to a place for a pointer, as PKCS#11 asks of every caller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: CK_FUNCTION_LIST_PTR_PTR) -> CK_RV {
    static LIST: OnceLock<CK_FUNCTION_LIST> = OnceLock::new();

    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    let Some(real) = real::list() else { return CKR_GENERAL_ERROR };
    let ours = LIST.get_or_init(|| wrapped(real));
    // SAFETY: the caller vouches for the place. The list is static, and PKCS#11 has callers only read it.
    unsafe { list.write(ptr::from_ref(ours).cast_mut()) };
    CKR_OK
}
