//! The functions that have nothing of their own but the rules: what befalls them, and then the real module.

use cryptoki_sys::{
    CK_ATTRIBUTE_PTR, CK_BYTE_PTR, CK_INFO_PTR, CK_MECHANISM_INFO_PTR, CK_MECHANISM_PTR, CK_MECHANISM_TYPE,
    CK_MECHANISM_TYPE_PTR, CK_OBJECT_HANDLE, CK_OBJECT_HANDLE_PTR, CK_RV, CK_SESSION_HANDLE, CK_SESSION_INFO_PTR,
    CK_SLOT_ID, CK_SLOT_INFO_PTR, CK_ULONG, CK_ULONG_PTR, CK_USER_TYPE, CK_UTF8CHAR_PTR, CK_VOID_PTR,
};

use crate::{
    fault::{Inside, Verdict, befall},
    real,
};

macro_rules! forward {
    ($(fn $name:ident($($argument:ident: $type:ty),*) in $session:expr;)*) => {$(
        pub unsafe extern "C" fn $name($($argument: $type),*) -> CK_RV {
            let _inside = Inside::enter();
            match befall(stringify!($name), $session) {
                Verdict::Answer(code) => code,
                Verdict::Forward | Verdict::Reshape(_) => real::call!($name($($argument),*)),
            }
        }
    )*};
}

forward! {
    fn C_Initialize(arguments: CK_VOID_PTR) in None;
    fn C_GetInfo(info: CK_INFO_PTR) in None;
    fn C_GetSlotInfo(slot: CK_SLOT_ID, info: CK_SLOT_INFO_PTR) in None;
    fn C_GetMechanismList(slot: CK_SLOT_ID, list: CK_MECHANISM_TYPE_PTR, count: CK_ULONG_PTR) in None;
    fn C_GetMechanismInfo(slot: CK_SLOT_ID, kind: CK_MECHANISM_TYPE, info: CK_MECHANISM_INFO_PTR) in None;
    fn C_GetSessionInfo(session: CK_SESSION_HANDLE, info: CK_SESSION_INFO_PTR) in Some(session);
    fn C_Login(session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: CK_UTF8CHAR_PTR, length: CK_ULONG) in Some(session);
    fn C_CreateObject(
        session: CK_SESSION_HANDLE, template: CK_ATTRIBUTE_PTR, count: CK_ULONG, object: CK_OBJECT_HANDLE_PTR
    ) in Some(session);
    fn C_DestroyObject(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) in Some(session);
    fn C_GetAttributeValue(
        session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: CK_ATTRIBUTE_PTR, count: CK_ULONG
    ) in Some(session);
    fn C_SetAttributeValue(
        session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: CK_ATTRIBUTE_PTR, count: CK_ULONG
    ) in Some(session);
    fn C_FindObjectsInit(session: CK_SESSION_HANDLE, template: CK_ATTRIBUTE_PTR, count: CK_ULONG) in Some(session);
    fn C_FindObjectsFinal(session: CK_SESSION_HANDLE) in Some(session);
    fn C_GenerateKeyPair(
        session: CK_SESSION_HANDLE, mechanism: CK_MECHANISM_PTR,
        public_template: CK_ATTRIBUTE_PTR, public_count: CK_ULONG,
        private_template: CK_ATTRIBUTE_PTR, private_count: CK_ULONG,
        public_key: CK_OBJECT_HANDLE_PTR, private_key: CK_OBJECT_HANDLE_PTR
    ) in Some(session);
    fn C_GenerateRandom(session: CK_SESSION_HANDLE, bytes: CK_BYTE_PTR, length: CK_ULONG) in Some(session);
}
