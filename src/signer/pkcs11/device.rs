//! One token within reach: found by its label, never by its slot's number; its sessions, its login, the
//! objects on it and the mechanism it signs with. Which key to use, and whether it may be, is left to `key`.

use std::{marker::PhantomData, ops::Deref};

use cryptoki::{
    error::{Error, RvError},
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, ObjectHandle},
    session::{self, UserType},
    slot::{Limit, Slot, TokenInfo},
};
use parking_lot::Mutex;

use super::{
    TokenConfig,
    fault::Fault,
    module::{Lease, Module},
};
use crate::jws::SigningInput;

/// The DER that stands before a SHA-256 digest in a PKCS#1 v1.5 signature (RFC 8017 section 9.2).
const DIGEST_INFO_SHA256: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20];

/// A token that was found, within an initialised module.
pub(super) struct Device<'c> {
    config: &'c TokenConfig,
    lease: Lease,
    slot: Slot,
    info: TokenInfo,
    hashes: bool,
    refusal: Mutex<Option<Fault>>,
}

/// What a session may do.
#[derive(Clone, Copy)]
pub(super) enum Access {
    Read,
    Write,
}

/// A logged-in session; closed before its device can leave the module.
pub(super) struct Session<'d> {
    session: session::Session,
    device: PhantomData<&'d Device<'d>>,
}

impl Deref for Session<'_> {
    type Target = session::Session;
    fn deref(&self) -> &session::Session {
        &self.session
    }
}

impl<'c> Device<'c> {
    /// Enters the module and finds the token.
    pub(super) fn reach(config: &'c TokenConfig) -> Result<Self, Fault> {
        let lease = Module::load(&config.module)?.enter()?;
        let (slot, info) = find_token(&lease, config)?;
        let hashes = signs_with(&lease, slot, MechanismType::SHA256_RSA_PKCS)?;
        if !hashes && !signs_with(&lease, slot, MechanismType::RSA_PKCS)? {
            return Err(Fault::Device("the token offers neither CKM_SHA256_RSA_PKCS nor CKM_RSA_PKCS".to_owned()));
        }
        Ok(Self { config, lease, slot, info, hashes, refusal: Mutex::new(None) })
    }

    /// As a module without `CKM_SHA256_RSA_PKCS`.
    #[cfg(test)]
    pub(super) fn without_hashing(self) -> Self {
        Self { hashes: false, ..self }
    }

    /// A new session, logged in. Logins go one at a time, so that a PIN that went wrong is tried once,
    /// however many workers ask.
    pub(super) fn session(&self, access: Access) -> Result<Session<'_>, Fault> {
        let session = match access {
            Access::Read => self.lease.pkcs11().open_ro_session(self.slot)?,
            Access::Write => self.lease.pkcs11().open_rw_session(self.slot)?,
        };
        let mut refusal = self.refusal.lock();
        if let Some(fault) = &*refusal {
            return Err(fault.clone());
        }
        match session.login(UserType::User, Some(&self.config.pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                Ok(Session { session, device: PhantomData })
            }
            Err(error) => {
                let fault = Fault::from(error);
                if let Fault::Pin(_) = fault {
                    *refusal = Some(fault.clone());
                }
                Err(fault)
            }
        }
    }

    /// The refusal of the PIN, if it came to that.
    pub(super) fn refusal(&self) -> Option<Fault> {
        self.refusal.lock().clone()
    }

    /// How many sessions the workers may have: what is configured, less where the token has not as many beside
    /// the one that keeps the login.
    pub(super) fn sessions(&self) -> usize {
        let room = match self.info.max_session_count() {
            Limit::Max(most) => usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(1),
            Limit::Infinite | Limit::Unavailable => usize::MAX,
        };
        self.config.sessions.min(room).max(1)
    }

    /// What the token says of itself.
    pub(super) fn info(&self) -> &TokenInfo {
        &self.info
    }

    /// The objects that fit. No module's single empty answer is believed, since some give it out of turn.
    pub(super) fn find(session: &Session<'_>, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Fault> {
        let found = session.find_objects(template)?;
        if found.is_empty() { Ok(session.find_objects(template)?) } else { Ok(found) }
    }

    /// Whether the token still answers, as the one that was found.
    pub(super) fn is_present(&self) -> bool {
        self.lease.pkcs11().get_token_info(self.slot).is_ok_and(|now| {
            trimmed(now.label()) == trimmed(self.info.label()) && now.serial_number() == self.info.serial_number()
        })
    }

    /// Signs with RS256, hashing on the token where it can.
    pub(super) fn sign(
        &self,
        session: &Session<'_>,
        key: ObjectHandle,
        input: &SigningInput,
    ) -> Result<Vec<u8>, Fault> {
        if self.hashes {
            return Ok(session.sign(&Mechanism::Sha256RsaPkcs, key, input.bytes())?);
        }
        let digest_info = [DIGEST_INFO_SHA256.as_slice(), &input.digest().0].concat();
        Ok(session.sign(&Mechanism::RsaPkcs, key, &digest_info)?)
    }
}

/// Exactly one token has the label, and the serial number where one is configured. A slot whose token does
/// not answer is passed over: it may be another's.
fn find_token(lease: &Lease, config: &TokenConfig) -> Result<(Slot, TokenInfo), Fault> {
    let (mut fitting, mut silent) = (Vec::new(), String::new());
    for slot in lease.pkcs11().get_slots_with_token()? {
        match lease.pkcs11().get_token_info(slot) {
            Ok(info) if fits(&info, config) => fitting.push((slot, info)),
            Ok(_) => {}
            Err(error) => silent = format!("; one slot's token does not answer: {}", Fault::from(error)),
        }
    }
    let label = &config.token_label;
    let serial =
        config.token_serial.as_ref().map_or_else(String::new, |serial| format!(" with the serial number `{serial}`"));
    match (fitting.pop(), fitting.is_empty()) {
        (Some(found), true) => Ok(found),
        (Some(_), false) => Err(Fault::Device(format!("several tokens are labelled `{label}`; name a serial number"))),
        (None, _) => Err(Fault::Device(format!("no token is labelled `{label}`{serial}{silent}"))),
    }
}

fn signs_with(lease: &Lease, slot: Slot, mechanism: MechanismType) -> Result<bool, Fault> {
    match lease.pkcs11().get_mechanism_info(slot, mechanism) {
        Ok(info) => Ok(info.sign()),
        Err(Error::Pkcs11(RvError::MechanismInvalid, _)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn fits(info: &TokenInfo, config: &TokenConfig) -> bool {
    info.token_initialized()
        && trimmed(info.label()) == config.token_label
        && config.token_serial.as_deref().is_none_or(|serial| trimmed(info.serial_number()) == serial)
}

/// The text without its padding: blanks, as the standard wants, or NULs.
pub(super) fn trimmed(padded: &str) -> &str {
    padded.trim_end_matches(['\0', ' '])
}
