//! What has to be remembered between calls: the sessions that are open, the signing operation of each, and signatures.
//!
//! One lock guards it, and it is held for look-ups and updates alone, never across a call of the real module.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use crate::kept;
use cryptoki_sys::{
    CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RSA_PKCS_PSS_PARAMS, CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG,
};

/// How many signatures are kept for a slot. Those beyond are made anew each time.
const SIGNATURES_MAX: usize = 200_000;

/// A mechanism of signing whose parameter, if it has one, holds no pointers, so that it can be used later.
#[derive(Debug, Clone, Copy)]
pub struct Mechanism {
    /// Its type.
    pub kind: CK_MECHANISM_TYPE,
    /// Its parameter, where it is RSASSA-PSS.
    pub pss: Option<CK_RSA_PKCS_PSS_PARAMS>,
}

/// Whether the real module knows of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The caller began it, the real module was not told yet.
    Deferred,
    /// The real module is in it.
    Started,
    /// A rule ended it for the caller, and the real module is in it still.
    Leftover,
}

/// What `C_SignInit` said.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// The mechanism, if it is one that can be used later.
    pub mechanism: Option<Mechanism>,
    /// The key's handle.
    pub key: CK_OBJECT_HANDLE,
    /// How far it is.
    pub stage: Stage,
}

/// A message under a key and a mechanism. Two hashes of 64 bits stand for it, to keep long messages out of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64, pub u64);

impl Fingerprint {
    /// That of a message in an operation whose mechanism is known.
    pub fn of(operation: &Operation, message: &[u8]) -> Option<Self> {
        let mechanism = operation.mechanism?;
        let pss = mechanism.pss.map(|pss| (pss.hashAlg, pss.mgf, pss.sLen));
        let half = |side: u8| {
            let mut hasher = DefaultHasher::new();
            (side, mechanism.kind, pss, operation.key, message).hash(&mut hasher);
            hasher.finish()
        };
        Some(Self(half(0), half(1)))
    }
}

/// A session that is open.
#[derive(Debug)]
pub struct Session {
    /// Its slot.
    pub slot: CK_SLOT_ID,
    /// Its signing operation.
    pub operation: Option<Operation>,
}

#[derive(Debug, Default)]
struct Signatures {
    made: HashMap<Fingerprint, Vec<u8>>,
    /// For each key the last signature, and the last over another message than that.
    recent: HashMap<CK_OBJECT_HANDLE, Vec<(Fingerprint, Vec<u8>)>>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Memory {
    sessions: HashMap<CK_SESSION_HANDLE, Session>,
    opening: HashMap<CK_SLOT_ID, CK_ULONG>,
    signatures: HashMap<CK_SLOT_ID, Signatures>,
}

/// The memory of this process.
pub fn memory() -> MutexGuard<'static, Memory> {
    static MEMORY: OnceLock<Mutex<Memory>> = OnceLock::new();
    MEMORY.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// Takes a place for a session about to be opened, unless the slot has as many as it may.
    pub fn reserve(&mut self, slot: CK_SLOT_ID, bound: Option<CK_ULONG>) -> bool {
        let open = self.sessions.values().filter(|session| session.slot == slot).count() as CK_ULONG;
        let opening = self.opening.entry(slot).or_default();
        let full = bound.is_some_and(|bound| open + *opening >= bound);
        if !full {
            *opening += 1;
        }
        !full
    }

    /// Ends a reservation with the session that came of it, if one did.
    pub fn opened(&mut self, slot: CK_SLOT_ID, session: Option<CK_SESSION_HANDLE>) {
        if let Some(opening) = self.opening.get_mut(&slot) {
            *opening = opening.saturating_sub(1);
        }
        if let Some(session) = session {
            self.sessions.insert(session, Session { slot, operation: None });
        }
    }

    /// Forgets a session before it is closed, since its handle may be given to another at once.
    pub fn take(&mut self, session: CK_SESSION_HANDLE) -> Option<Session> {
        self.sessions.remove(&session)
    }

    /// Undoes [`Self::take`] where the session could not be closed.
    pub fn put_back(&mut self, handle: CK_SESSION_HANDLE, session: Session) {
        self.sessions.entry(handle).or_insert(session);
    }

    /// With the last session of a slot its login ends, and handles of keys mean nothing any more.
    pub fn closed(&mut self, slot: CK_SLOT_ID) {
        if !self.sessions.values().any(|session| session.slot == slot) {
            self.signatures.remove(&slot);
        }
    }

    /// All sessions of a slot are closed.
    pub fn closed_all(&mut self, slot: CK_SLOT_ID) {
        self.sessions.retain(|_, session| session.slot != slot);
        self.signatures.remove(&slot);
    }

    /// The slot of a session is logged out, so that no signature may be had without the real module.
    pub fn logged_out(&mut self, session: CK_SESSION_HANDLE) {
        if let Some(session) = self.sessions.get(&session) {
            self.signatures.remove(&session.slot);
        }
    }

    /// The real module is finalised.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether the session is one that was opened here.
    pub fn knows(&self, session: CK_SESSION_HANDLE) -> bool {
        self.sessions.contains_key(&session)
    }

    /// The signing operation of a session.
    pub fn operation(&self, session: CK_SESSION_HANDLE) -> Option<Operation> {
        self.sessions.get(&session)?.operation
    }

    /// Sets or ends the signing operation of a session.
    pub fn set_operation(&mut self, session: CK_SESSION_HANDLE, operation: Option<Operation>) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.operation = operation;
        }
    }

    /// A rule ended the session's operation for the caller; the real module may be in it still.
    pub fn abandon(&mut self, session: CK_SESSION_HANDLE) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.operation = session
                .operation
                .filter(|operation| operation.stage != Stage::Deferred)
                .map(|operation| Operation { stage: Stage::Leftover, ..operation });
        }
    }

    /// The signature made earlier, if it is remembered.
    pub fn signature(&self, session: CK_SESSION_HANDLE, message: &[u8]) -> Option<Vec<u8>> {
        let session = self.sessions.get(&session)?;
        let operation = session.operation.as_ref()?;
        let fingerprint = Fingerprint::of(operation, message)?;
        let made = self.signatures.get(&session.slot).and_then(|signatures| signatures.made.get(&fingerprint).cloned());
        made.or_else(|| kept::find(Fingerprint::of(&Operation { key: 0, ..*operation }, message)?))
    }

    /// The last signature by this key over a message other than this one.
    pub fn stale(&self, session: CK_SESSION_HANDLE, operation: &Operation, message: &[u8]) -> Option<Vec<u8>> {
        let fingerprint = Fingerprint::of(operation, message)?;
        let recent = self.signatures.get(&self.sessions.get(&session)?.slot)?.recent.get(&operation.key)?;
        recent.iter().find(|(other, _)| *other != fingerprint).map(|(_, signature)| signature.clone())
    }

    /// Notes a signature of the real module as the last one, and keeps it for good if a rule asks for that.
    pub fn signed(
        &mut self,
        session: CK_SESSION_HANDLE,
        operation: &Operation,
        message: &[u8],
        signature: &[u8],
        keep: bool,
    ) {
        let Some(slot) = self.sessions.get(&session).map(|session| session.slot) else { return };
        let Some(fingerprint) = Fingerprint::of(operation, message) else { return };
        let signatures = self.signatures.entry(slot).or_default();
        let recent = signatures.recent.entry(operation.key).or_default();
        recent.retain(|(other, _)| *other != fingerprint);
        recent.insert(0, (fingerprint, signature.to_vec()));
        recent.truncate(2);
        if keep && signatures.made.len() < SIGNATURES_MAX {
            signatures.made.insert(fingerprint, signature.to_vec());
        }
        if keep && let Some(anywhere) = Fingerprint::of(&Operation { key: 0, ..*operation }, message) {
            kept::add(anywhere, signature);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATION: Operation =
        Operation { mechanism: Some(Mechanism { kind: 0x40, pss: None }), key: 7, stage: Stage::Started };

    fn with_session() -> Memory {
        let mut memory = Memory::default();
        assert!(memory.reserve(0, None));
        memory.opened(0, Some(1));
        memory.set_operation(1, Some(OPERATION));
        memory
    }

    #[test]
    fn a_slot_has_no_more_sessions_than_it_may() {
        let mut memory = with_session();
        assert!(memory.reserve(0, Some(2)));
        assert!(!memory.reserve(0, Some(2)), "one is open and one is being opened");
        assert!(memory.reserve(1, Some(2)), "another slot has its own bound");
        memory.opened(0, None);
        assert!(memory.reserve(0, Some(2)));
        memory.opened(0, Some(2));
        assert!(!memory.reserve(0, Some(2)));
        memory.take(1).unwrap();
        assert!(memory.reserve(0, Some(2)));
    }

    #[test]
    fn a_stale_signature_is_of_another_message_whatever_is_asked_again() {
        let mut memory = with_session();
        assert_eq!(memory.stale(1, &OPERATION, b"a"), None);
        memory.signed(1, &OPERATION, b"a", b"over a", false);
        assert_eq!(memory.stale(1, &OPERATION, b"a"), None);
        assert_eq!(memory.stale(1, &OPERATION, b"b"), Some(b"over a".to_vec()));
        memory.signed(1, &OPERATION, b"b", b"over b", false);
        memory.signed(1, &OPERATION, b"b", b"over b", false);
        assert_eq!(memory.stale(1, &OPERATION, b"b"), Some(b"over a".to_vec()));
        assert_eq!(memory.stale(1, &OPERATION, b"c"), Some(b"over b".to_vec()));
        assert_eq!(memory.stale(1, &Operation { key: 8, ..OPERATION }, b"c"), None);
    }

    #[test]
    fn a_signature_is_kept_until_its_slot_is_logged_out_or_without_sessions() {
        let mut memory = with_session();
        memory.signed(1, &OPERATION, b"a", b"over a", false);
        assert_eq!(memory.signature(1, b"a"), None);
        memory.signed(1, &OPERATION, b"a", b"over a", true);
        assert_eq!(memory.signature(1, b"a"), Some(b"over a".to_vec()));
        assert_eq!(memory.signature(1, b"b"), None);
        memory.logged_out(1);
        assert_eq!(memory.signature(1, b"a"), None);

        memory.signed(1, &OPERATION, b"a", b"over a", true);
        let session = memory.take(1).unwrap();
        memory.closed(0);
        memory.put_back(1, session);
        assert_eq!(memory.signature(1, b"a"), None);
    }

    #[test]
    fn an_abandoned_operation_is_left_over_only_if_the_real_module_knows_it() {
        let mut memory = with_session();
        memory.abandon(1);
        assert_eq!(memory.operation(1).unwrap().stage, Stage::Leftover);
        memory.set_operation(1, Some(Operation { stage: Stage::Deferred, ..OPERATION }));
        memory.abandon(1);
        assert!(memory.operation(1).is_none());
    }
}
