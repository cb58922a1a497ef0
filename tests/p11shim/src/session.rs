//! The functions that open and close sessions, which are counted, and those that can find nothing.

use cryptoki_sys::{
    CK_BBOOL, CK_FLAGS, CK_NOTIFY, CK_OBJECT_HANDLE_PTR, CK_RV, CK_SESSION_HANDLE, CK_SESSION_HANDLE_PTR, CK_SLOT_ID,
    CK_SLOT_ID_PTR, CK_TOKEN_INFO_PTR, CK_ULONG, CK_ULONG_PTR, CK_VOID_PTR, CKF_USER_PIN_FINAL_TRY, CKR_ARGUMENTS_BAD,
    CKR_OK, CKR_SESSION_CLOSED, CKR_SESSION_COUNT, CKR_SESSION_HANDLE_INVALID,
};

use crate::{
    control::{Standing, control, is_final_try, max_sessions},
    fault::{Inside, Verdict, befall, log, note},
    memory::memory,
    real,
};

/// Logs a session out, for its caller or behind its back.
pub fn log_out(session: CK_SESSION_HANDLE) -> CK_RV {
    let code = real::call!(C_Logout(session));
    if code == CKR_OK {
        memory().logged_out(session);
    }
    code
}

/// Closes a session, for its caller or behind its back.
pub fn close(session: CK_SESSION_HANDLE) -> CK_RV {
    let taken = memory().take(session);
    let code = real::call!(C_CloseSession(session));
    if let Some(taken) = taken {
        let mut memory = memory();
        if matches!(code, CKR_OK | CKR_SESSION_HANDLE_INVALID | CKR_SESSION_CLOSED) {
            memory.closed(taken.slot);
        } else {
            memory.put_back(session, taken);
        }
    }
    code
}

/// Answers that there is nothing.
fn nothing(function: &str, standing: &Standing, count: CK_ULONG_PTR) -> CK_RV {
    if count.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    log(function, standing);
    // SAFETY: it is not null, and the caller vouches that it points to a place for a count.
    unsafe { count.write(0) };
    CKR_OK
}

pub unsafe extern "C" fn C_Finalize(reserved: CK_VOID_PTR) -> CK_RV {
    if let Verdict::Answer(code) = befall("C_Finalize", None) {
        return code;
    }
    note(if Inside::is_any() { "C_Finalize while a call is inside" } else { "C_Finalize with nobody inside" });
    let code = real::call!(C_Finalize(reserved));
    if code == CKR_OK {
        memory().clear();
    }
    code
}

pub unsafe extern "C" fn C_GetSlotList(present: CK_BBOOL, list: CK_SLOT_ID_PTR, count: CK_ULONG_PTR) -> CK_RV {
    match befall("C_GetSlotList", None) {
        Verdict::Answer(code) => code,
        Verdict::Reshape(standing) => nothing("C_GetSlotList", &standing, count),
        Verdict::Forward => real::call!(C_GetSlotList(present, list, count)),
    }
}

pub unsafe extern "C" fn C_FindObjects(
    session: CK_SESSION_HANDLE,
    objects: CK_OBJECT_HANDLE_PTR,
    room: CK_ULONG,
    count: CK_ULONG_PTR,
) -> CK_RV {
    match befall("C_FindObjects", Some(session)) {
        Verdict::Answer(code) => code,
        Verdict::Reshape(standing) => nothing("C_FindObjects", &standing, count),
        Verdict::Forward => real::call!(C_FindObjects(session, objects, room, count)),
    }
}

pub unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: CK_TOKEN_INFO_PTR) -> CK_RV {
    if let Verdict::Answer(code) = befall("C_GetTokenInfo", None) {
        return code;
    }
    let code = real::call!(C_GetTokenInfo(slot, info));
    if code == CKR_OK
        && let Some(bound) = max_sessions(&control().rules())
    {
        // SAFETY: the real module has just filled what the caller's pointer points to.
        let info = unsafe { &mut *info };
        info.ulMaxSessionCount = bound;
        info.ulMaxRwSessionCount = bound;
    }
    if code == CKR_OK && is_final_try(&control().rules()) {
        // SAFETY: as above.
        unsafe { (*info).flags |= CKF_USER_PIN_FINAL_TRY };
    }
    code
}

pub unsafe extern "C" fn C_OpenSession(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: CK_VOID_PTR,
    notify: CK_NOTIFY,
    session: CK_SESSION_HANDLE_PTR,
) -> CK_RV {
    if let Verdict::Answer(code) = befall("C_OpenSession", None) {
        return code;
    }
    let bound = max_sessions(&control().rules());
    if !memory().reserve(slot, bound) {
        note(&format!("C_OpenSession max-sessions {}", bound.unwrap_or_default()));
        return CKR_SESSION_COUNT;
    }
    let code = real::call!(C_OpenSession(slot, flags, application, notify, session));
    // SAFETY: the real module has just written the handle to where the caller's pointer points.
    let handle = (code == CKR_OK).then(|| unsafe { *session });
    memory().opened(slot, handle);
    code
}

pub unsafe extern "C" fn C_CloseSession(session: CK_SESSION_HANDLE) -> CK_RV {
    match befall("C_CloseSession", Some(session)) {
        Verdict::Answer(code) => code,
        Verdict::Forward | Verdict::Reshape(_) => close(session),
    }
}

pub unsafe extern "C" fn C_CloseAllSessions(slot: CK_SLOT_ID) -> CK_RV {
    if let Verdict::Answer(code) = befall("C_CloseAllSessions", None) {
        return code;
    }
    let code = real::call!(C_CloseAllSessions(slot));
    if code == CKR_OK {
        memory().closed_all(slot);
    }
    code
}

pub unsafe extern "C" fn C_Logout(session: CK_SESSION_HANDLE) -> CK_RV {
    match befall("C_Logout", Some(session)) {
        Verdict::Answer(code) => code,
        Verdict::Forward | Verdict::Reshape(_) => log_out(session),
    }
}
