//! The functions that sign, with the faults that only a signature can have.
//!
//! A caller asks twice, first without a buffer for the length; only the second call is one that the rules see. Where
//! a rule has signatures remembered, `C_SignInit` is put off until the real module is needed. And an error of
//! `C_Sign` ends the operation, so where a rule made one, the real module's operation is ended before the next.

use std::{ptr, slice};

use cryptoki_sys::{
    CK_BYTE_PTR, CK_MECHANISM, CK_MECHANISM_PTR, CK_OBJECT_HANDLE, CK_RSA_PKCS_PSS_PARAMS, CK_RV, CK_SESSION_HANDLE,
    CK_ULONG, CK_ULONG_PTR, CKM_RSA_PKCS_PSS, CKM_SHA1_RSA_PKCS_PSS, CKM_SHA224_RSA_PKCS_PSS, CKM_SHA256_RSA_PKCS_PSS,
    CKM_SHA384_RSA_PKCS_PSS, CKM_SHA512_RSA_PKCS_PSS, CKR_BUFFER_TOO_SMALL, CKR_OK, CKR_OPERATION_ACTIVE,
    CKR_OPERATION_NOT_INITIALIZED,
};

use crate::{
    control::{Standing, control, remembers_signatures},
    fault::{Inside, Verdict, befall, log},
    memory::{Mechanism, Operation, Stage, memory},
    real,
    rule::Action,
};

/// Room for what ends a leftover operation: the longest RSA signature that modules make.
const SCRATCH_BYTES: usize = 2048;

/// The mechanism that the caller names, unless it has a parameter that cannot be kept.
///
/// # Safety
///
/// The pointer is null or points to a mechanism.
unsafe fn keepable(mechanism: CK_MECHANISM_PTR) -> Option<Mechanism> {
    // SAFETY: the caller vouches for it.
    let mechanism = unsafe { mechanism.as_ref() }?;
    let kind = mechanism.mechanism;
    let length = usize::try_from(mechanism.ulParameterLen).ok()?;
    if mechanism.pParameter.is_null() || length == 0 {
        return Some(Mechanism { kind, pss: None });
    }
    let is_pss = matches!(
        kind,
        CKM_RSA_PKCS_PSS
            | CKM_SHA1_RSA_PKCS_PSS
            | CKM_SHA224_RSA_PKCS_PSS
            | CKM_SHA256_RSA_PKCS_PSS
            | CKM_SHA384_RSA_PKCS_PSS
            | CKM_SHA512_RSA_PKCS_PSS
    );
    (is_pss && length == size_of::<CK_RSA_PKCS_PSS_PARAMS>()).then(|| {
        // SAFETY: these mechanisms have this parameter, it has its length, and the read asks for no alignment.
        let pss = unsafe { mechanism.pParameter.cast::<CK_RSA_PKCS_PSS_PARAMS>().read_unaligned() };
        Mechanism { kind, pss: Some(pss) }
    })
}

/// The caller's message.
///
/// # Safety
///
/// The pointer is null or points to so many bytes, which stay as they are until the call returns.
unsafe fn message<'call>(data: CK_BYTE_PTR, length: CK_ULONG) -> &'call [u8] {
    match usize::try_from(length) {
        // SAFETY: the caller vouches for it.
        Ok(length) if !data.is_null() => unsafe { slice::from_raw_parts(data, length) },
        _ => &[],
    }
}

/// Begins the session's operation with the real module, if that was put off.
fn begin(session: CK_SESSION_HANDLE) -> Result<(), CK_RV> {
    let operation = memory().operation(session);
    match operation {
        Some(Operation { stage: Stage::Leftover, .. }) => Err(CKR_OPERATION_NOT_INITIALIZED),
        Some(Operation { stage: Stage::Deferred, mechanism: Some(Mechanism { kind, mut pss }), key }) => {
            let (parameter, length) = match &mut pss {
                Some(pss) => (ptr::from_mut(pss).cast(), size_of::<CK_RSA_PKCS_PSS_PARAMS>() as CK_ULONG),
                None => (ptr::null_mut(), 0),
            };
            let mut mechanism = CK_MECHANISM { mechanism: kind, pParameter: parameter, ulParameterLen: length };
            let code = real::call!(C_SignInit(session, &raw mut mechanism, key));
            let started = operation.map(|operation| Operation { stage: Stage::Started, ..operation });
            memory().set_operation(session, started.filter(|_| code == CKR_OK));
            if code == CKR_OK { Ok(()) } else { Err(code) }
        }
        _ => Ok(()),
    }
}

/// Ends what a rule left over in the real module. There is no call for it in 2.40 but to sign something.
fn end_leftover(session: CK_SESSION_HANDLE) {
    let mut scratch = [0; SCRATCH_BYTES];
    let mut room = SCRATCH_BYTES as CK_ULONG;
    let mut nothing = [0];
    let code = real::call!(C_Sign(session, nothing.as_mut_ptr(), 1, scratch.as_mut_ptr(), &raw mut room));
    if code != CKR_OK {
        // After C_SignUpdate only C_SignFinal ends it. Where this fails too, the real module tells the caller.
        room = SCRATCH_BYTES as CK_ULONG;
        real::call!(C_SignFinal(session, scratch.as_mut_ptr(), &raw mut room));
    }
    memory().set_operation(session, None);
}

pub unsafe extern "C" fn C_SignInit(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    if let Verdict::Answer(code) = befall("C_SignInit", Some(session)) {
        return code;
    }
    let current = memory().operation(session);
    match current.map(|operation| operation.stage) {
        Some(Stage::Deferred) => return CKR_OPERATION_ACTIVE,
        Some(Stage::Leftover) => end_leftover(session),
        Some(Stage::Started) | None => {}
    }
    let deferrable = current.is_none_or(|operation| operation.stage == Stage::Leftover)
        && remembers_signatures(&control().rules())
        && memory().knows(session);
    // SAFETY: the pointer is the caller's.
    let mut operation = Operation { mechanism: unsafe { keepable(mechanism) }, key, stage: Stage::Deferred };
    if deferrable && operation.mechanism.is_some() {
        memory().set_operation(session, Some(operation));
        return CKR_OK;
    }
    let code = real::call!(C_SignInit(session, mechanism, key));
    if code == CKR_OK {
        operation.stage = Stage::Started;
        memory().set_operation(session, Some(operation));
    }
    code
}

pub unsafe extern "C" fn C_Sign(
    session: CK_SESSION_HANDLE,
    data: CK_BYTE_PTR,
    length: CK_ULONG,
    signature: CK_BYTE_PTR,
    room: CK_ULONG_PTR,
) -> CK_RV {
    let _inside = Inside::enter();
    let call = Call { session, data, length, signature, room };
    if signature.is_null() || room.is_null() {
        return call.length();
    }
    match befall("C_Sign", Some(session)) {
        Verdict::Answer(code) => abandoned(session, code),
        Verdict::Forward => call.really(false),
        Verdict::Reshape(Standing { rule, .. }) if rule.action == Action::Cache => call.remembered(),
        Verdict::Reshape(standing) => call.reshaped(&standing),
    }
}

/// An error that a rule made ends the operation, as it would on a device.
fn abandoned(session: CK_SESSION_HANDLE, code: CK_RV) -> CK_RV {
    if code != CKR_BUFFER_TOO_SMALL {
        memory().abandon(session);
    }
    code
}

/// One call of `C_Sign`. Its pointers are the caller's, who vouches for them until the call returns.
#[derive(Clone, Copy)]
struct Call {
    session: CK_SESSION_HANDLE,
    data: CK_BYTE_PTR,
    length: CK_ULONG,
    signature: CK_BYTE_PTR,
    room: CK_ULONG_PTR,
}

impl Call {
    fn message(&self) -> &[u8] {
        // SAFETY: see the type.
        unsafe { message(self.data, self.length) }
    }

    /// The signature that the real module has just made.
    fn made(&mut self) -> (&mut [u8], &mut CK_ULONG) {
        // SAFETY: see the type; the real module has set the length and filled so many bytes.
        unsafe {
            let room = &mut *self.room;
            (slice::from_raw_parts_mut(self.signature, usize::try_from(*room).unwrap_or(0)), room)
        }
    }

    /// The signature that is remembered, if the real module was not told of the operation yet.
    fn recall(&self) -> Option<Vec<u8>> {
        let memory = memory();
        let deferred = memory.operation(self.session)?.stage == Stage::Deferred;
        if deferred { memory.signature(self.session, self.message()) } else { None }
    }

    /// Answers how long the signature will be.
    fn length(self) -> CK_RV {
        if !self.room.is_null()
            && let Some(signature) = self.recall()
        {
            // SAFETY: see the type, and it is not null.
            unsafe { self.room.write(signature.len() as CK_ULONG) };
            return CKR_OK;
        }
        match begin(self.session) {
            Ok(()) => real::call!(C_Sign(self.session, self.data, self.length, self.signature, self.room)),
            Err(code) => code,
        }
    }

    /// Has the real module sign.
    fn really(mut self, keep: bool) -> CK_RV {
        if let Err(code) = begin(self.session) {
            return code;
        }
        let operation = memory().operation(self.session);
        let code = real::call!(C_Sign(self.session, self.data, self.length, self.signature, self.room));
        if code == CKR_BUFFER_TOO_SMALL {
            return code;
        }
        if let Some(operation) = operation.filter(|_| code == CKR_OK) {
            let signature = self.made().0.to_vec();
            memory().signed(self.session, &operation, self.message(), &signature, keep);
        }
        memory().set_operation(self.session, None);
        code
    }

    /// Answers from memory, or has the real module sign for this time and all others.
    fn remembered(self) -> CK_RV {
        let Some(signature) = self.recall() else { return self.really(true) };
        let length = signature.len() as CK_ULONG;
        // SAFETY: see the type; what is copied is no longer than the caller has room for.
        unsafe {
            let room = self.room.replace(length);
            if room < length {
                return CKR_BUFFER_TOO_SMALL;
            }
            ptr::copy_nonoverlapping(signature.as_ptr(), self.signature, signature.len());
        }
        memory().set_operation(self.session, None);
        CKR_OK
    }

    /// Has the real module sign, and makes another signature of it.
    fn reshaped(mut self, standing: &Standing) -> CK_RV {
        let stale = {
            let memory = memory();
            memory.operation(self.session).and_then(|operation| memory.stale(self.session, &operation, self.message()))
        };
        let code = self.really(false);
        if code == CKR_OK {
            let (signature, length) = self.made();
            if reshape(standing.rule.action, signature, length, stale.as_deref()) {
                log("C_Sign", standing);
            }
        }
        code
    }
}

/// Makes a faulty signature of a good one, and says whether it could.
fn reshape(action: Action, signature: &mut [u8], length: &mut CK_ULONG, stale: Option<&[u8]>) -> bool {
    let middle = signature.len() / 2;
    match (action, stale) {
        (Action::Corrupt, _) => signature.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1),
        (Action::Zero, _) => signature.fill(0),
        (Action::Truncate(by), _) => *length = length.saturating_sub(by),
        (Action::Stale, Some(stale)) if stale.len() == signature.len() => signature.copy_from_slice(stale),
        _ => return false,
    }
    true
}

pub unsafe extern "C" fn C_SignUpdate(session: CK_SESSION_HANDLE, part: CK_BYTE_PTR, length: CK_ULONG) -> CK_RV {
    if let Verdict::Answer(code) = befall("C_SignUpdate", Some(session)) {
        return abandoned(session, code);
    }
    match begin(session) {
        Ok(()) => real::call!(C_SignUpdate(session, part, length)),
        Err(code) => code,
    }
}

pub unsafe extern "C" fn C_SignFinal(session: CK_SESSION_HANDLE, signature: CK_BYTE_PTR, room: CK_ULONG_PTR) -> CK_RV {
    if !signature.is_null()
        && let Verdict::Answer(code) = befall("C_SignFinal", Some(session))
    {
        return abandoned(session, code);
    }
    if let Err(code) = begin(session) {
        return code;
    }
    let code = real::call!(C_SignFinal(session, signature, room));
    if code != CKR_BUFFER_TOO_SMALL && !signature.is_null() {
        memory().set_operation(session, None);
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reshaped(action: Action, stale: Option<&[u8]>) -> (Vec<u8>, CK_ULONG, bool) {
        let mut signature = vec![1, 2, 3, 4];
        let mut length = 4;
        let done = reshape(action, &mut signature, &mut length, stale);
        (signature, length, done)
    }

    #[test]
    fn a_signature_is_made_faulty_as_the_action_says() {
        assert_eq!(reshaped(Action::Corrupt, None), (vec![1, 2, 2, 4], 4, true));
        assert_eq!(reshaped(Action::Zero, None), (vec![0; 4], 4, true));
        assert_eq!(reshaped(Action::Truncate(3), None), (vec![1, 2, 3, 4], 1, true));
        assert_eq!(reshaped(Action::Truncate(9), None), (vec![1, 2, 3, 4], 0, true));
        assert_eq!(reshaped(Action::Stale, Some(&[9; 4])), (vec![9; 4], 4, true));
        assert_eq!(reshaped(Action::Stale, None), (vec![1, 2, 3, 4], 4, false));
        assert_eq!(reshaped(Action::Stale, Some(&[9; 5])), (vec![1, 2, 3, 4], 4, false));
    }

    #[test]
    fn a_parameter_that_may_hold_pointers_is_not_kept() {
        let mut parameter = CK_RSA_PKCS_PSS_PARAMS { hashAlg: 0x250, mgf: 2, sLen: 32 };
        let mut mechanism = CK_MECHANISM {
            mechanism: CKM_SHA256_RSA_PKCS_PSS,
            pParameter: (&raw mut parameter).cast(),
            ulParameterLen: size_of_val(&parameter) as CK_ULONG,
        };
        // SAFETY: the pointer is to a mechanism with its parameter.
        let kept = unsafe { keepable(&raw mut mechanism) }.unwrap();
        assert_eq!(kept.pss.unwrap().sLen, 32);
        mechanism.mechanism = cryptoki_sys::CKM_SHA_1;
        // SAFETY: the same.
        assert!(unsafe { keepable(&raw mut mechanism) }.is_none());
        // SAFETY: null is allowed.
        assert!(unsafe { keepable(ptr::null_mut()) }.is_none());
    }
}
