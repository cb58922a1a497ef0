//! One token within reach: found by its label, never by its slot's number; its sessions, its login, and the
//! objects on it. Which key to use, and whether it may be, is left to `key`.

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::Arc,
};

use cryptoki::{
    context::Pkcs11,
    error::{Error, RvError},
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, ObjectHandle},
    session::{Session, UserType},
    slot::{Limit, Slot},
};
use parking_lot::Mutex;
use secrecy::SecretString;

use super::super::{
    fault::Fault,
    wire::{Login, Open, Reached, Said},
};
use crate::jws::SigningInput;

/// The DER that stands before a SHA-256 digest in a PKCS#1 v1.5 signature (RFC 8017 section 9.2).
const DIGEST_INFO_SHA256: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20];

/// A token that was found, within an initialised module.
pub(super) struct Device {
    pkcs11: Pkcs11,
    module: PathBuf,
    slot: Slot,
    facts: Facts,
    mechanisms: Vec<Rs256>,
    pin: SecretString,
    /// What ended logins for good.
    refusal: Mutex<Option<Fault>>,
    /// Where logins are told of.
    words: Arc<UnixDatagram>,
}

/// What the token says of itself, without the padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub label: String,
    pub manufacturer: String,
    pub model: String,
    pub serial: String,
    is_initialized: bool,
    sessions_max: Option<u64>,
    /// Why its PIN should not be tried.
    pin: Option<&'static str>,
}

impl Facts {
    /// What the token says it is.
    pub(super) fn name(&self) -> String {
        format!("{} {} {}", self.manufacturer, self.model, self.serial)
    }
}

/// What a session may do.
#[derive(Clone, Copy)]
pub(super) enum Access {
    Read,
    Write,
}

/// How RS256 is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rs256 {
    /// The token hashes: `CKM_SHA256_RSA_PKCS`.
    Whole,
    /// The token signs a `DigestInfo` that is made here: `CKM_RSA_PKCS`.
    DigestInfo,
}

impl Rs256 {
    /// The mechanism's name in PKCS#11.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Whole => "CKM_SHA256_RSA_PKCS",
            Self::DigestInfo => "CKM_RSA_PKCS",
        }
    }

    fn mechanism(self) -> MechanismType {
        match self {
            Self::Whole => MechanismType::SHA256_RSA_PKCS,
            Self::DigestInfo => MechanismType::RSA_PKCS,
        }
    }
}

impl Device {
    /// Finds the token. Its PIN comes with [`Device::with_pin`].
    pub(super) fn reach(pkcs11: Pkcs11, open: &Open, words: Arc<UnixDatagram>) -> Result<Self, Fault> {
        let module = PathBuf::from(&open.module);
        let (slot, facts) = find_token(&pkcs11, &module, &open.token_label, open.token_serial.as_deref())?;
        let mut mechanisms = Vec::new();
        for mechanism in [Rs256::Whole, Rs256::DigestInfo] {
            if offers(&pkcs11, slot, mechanism.mechanism())? {
                mechanisms.push(mechanism);
            }
        }
        if mechanisms.is_empty() {
            return Err(Fault::Device("the token offers neither CKM_SHA256_RSA_PKCS nor CKM_RSA_PKCS".to_owned()));
        }
        let (pin, refusal) = (SecretString::default(), Mutex::new(None));
        Ok(Self { pkcs11, module, slot, facts, mechanisms, pin, refusal, words })
    }

    /// What was found.
    pub(super) fn reached(&self) -> Reached {
        let mechanisms = self.mechanisms.iter().map(|how| how.name().to_owned()).collect();
        Reached { token: self.facts.name(), mechanisms, pin: self.facts.pin.map(str::to_owned) }
    }

    /// The same, with the PIN that its sessions log in with.
    pub(super) fn with_pin(self, pin: SecretString) -> Self {
        Self { pin, ..self }
    }

    /// A new session, logged in.
    pub(super) fn session(&self, access: Access) -> Result<Session, Fault> {
        let session = self.open_session(access)?;
        self.log_in(&session)?;
        Ok(session)
    }

    /// A new session, which may not be logged in.
    pub(super) fn open_session(&self, access: Access) -> Result<Session, Fault> {
        Ok(match access {
            // Some modules, CloudHSM's among them, have no sessions that only read.
            Access::Read => {
                self.pkcs11.open_ro_session(self.slot).or_else(|_| self.pkcs11.open_rw_session(self.slot))?
            }
            Access::Write => self.pkcs11.open_rw_session(self.slot)?,
        })
    }

    /// Logs in. Logins go one at a time, so that a PIN that went wrong is tried once, however many sessions there are.
    /// The gateway is told of each before the module is entered, and again when it is left.
    pub(super) fn log_in(&self, session: &Session) -> Result<(), Fault> {
        let mut refusal = self.refusal.lock();
        if let Some(fault) = &*refusal {
            return Err(fault.clone());
        }
        self.tell(Login::Begins)?;
        let ended = match session.login(UserType::User, Some(&self.pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(error) => Err(Fault::from(error)),
        };
        if let Err(fault @ (Fault::Pin(_) | Fault::Login(_))) = &ended {
            *refusal = Some(fault.clone());
        }
        drop(refusal);
        self.tell(match &ended {
            Ok(()) => Login::Succeeded,
            Err(Fault::Login(_)) => Login::Unclear,
            Err(_) => Login::Failed,
        })?;
        ended
    }

    fn tell(&self, login: Login) -> Result<(), Fault> {
        let told = self.words.send(&Said::Login(login.into()).datagram());
        told.map(drop).map_err(|error| Fault::Device(format!("the gateway cannot be told of a login: {error}")))
    }

    /// How many sessions the token has beside the one that keeps the login.
    pub(super) fn sessions_max(&self) -> u32 {
        let most = self.facts.sessions_max.map(|most| u32::try_from(most).unwrap_or(u32::MAX));
        most.map_or(u32::MAX, |most| most.saturating_sub(1))
    }

    /// What the token says of itself.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// How it can be asked for RS256, the best first. That it lists a mechanism does not mean that it works.
    pub(super) fn mechanisms(&self) -> &[Rs256] {
        &self.mechanisms
    }

    /// The objects that fit. No module's single empty answer is believed, since some give it out of turn.
    pub(super) fn find(session: &Session, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Fault> {
        let found = session.find_objects(template)?;
        if found.is_empty() { Ok(session.find_objects(template)?) } else { Ok(found) }
    }

    /// Whether the token still answers, as the one that was found.
    pub(super) fn is_present(&self) -> bool {
        let now = facts(&self.pkcs11, &self.module, self.slot);
        now.is_ok_and(|now| now.label == self.facts.label && now.serial == self.facts.serial)
    }

    /// Leaves the module. No session is left, and nobody is inside.
    pub(super) fn leave(&self) -> Result<(), Fault> {
        Ok(self.pkcs11.clone().finalize()?)
    }
}

/// Signs with RS256.
pub(super) fn sign(session: &Session, key: ObjectHandle, how: Rs256, input: &SigningInput) -> Result<Vec<u8>, Fault> {
    match how {
        Rs256::Whole => Ok(session.sign(&Mechanism::Sha256RsaPkcs, key, input.bytes())?),
        Rs256::DigestInfo => {
            let digest_info = [DIGEST_INFO_SHA256.as_slice(), &input.digest().0].concat();
            Ok(session.sign(&Mechanism::RsaPkcs, key, &digest_info)?)
        }
    }
}

/// Exactly one token has the label, and the serial number where one is configured. A slot whose token does
/// not answer is passed over: it may be another's.
fn find_token(pkcs11: &Pkcs11, module: &Path, label: &str, serial: Option<&str>) -> Result<(Slot, Facts), Fault> {
    let fits = |facts: &Facts| {
        facts.is_initialized && facts.label == label && serial.is_none_or(|serial| facts.serial == serial)
    };
    let (mut fitting, mut silent) = (Vec::new(), String::new());
    for slot in pkcs11.get_slots_with_token()? {
        match facts(pkcs11, module, slot) {
            Ok(facts) if fits(&facts) => fitting.push((slot, facts)),
            Ok(_) => {}
            Err(fault) => silent = format!("; one slot's token does not answer: {fault}"),
        }
    }
    let serial = serial.map_or_else(String::new, |serial| format!(" with the serial number `{serial}`"));
    match (fitting.pop(), fitting.is_empty()) {
        (Some(found), true) => Ok(found),
        (Some(_), false) => Err(Fault::Device(format!("several tokens are labelled `{label}`; name a serial number"))),
        (None, _) => Err(Fault::Device(format!("no token is labelled `{label}`{serial}{silent}"))),
    }
}

/// What the token in a slot says of itself. Where its clock cannot be read, it is asked in another way.
fn facts(pkcs11: &Pkcs11, module: &Path, slot: Slot) -> Result<Facts, Fault> {
    let own = |text: &str| trimmed(text).to_owned();
    match pkcs11.get_token_info(slot) {
        Ok(info) => Ok(Facts {
            label: own(info.label()),
            manufacturer: own(info.manufacturer_id()),
            model: own(info.model()),
            serial: own(info.serial_number()),
            is_initialized: info.token_initialized(),
            sessions_max: match info.max_session_count() {
                Limit::Max(most) => Some(most),
                Limit::Infinite | Limit::Unavailable => None,
            },
            pin: match () {
                () if info.user_pin_locked() => Some("the user PIN is locked (CKF_USER_PIN_LOCKED)"),
                () if info.user_pin_final_try() => Some("one more wrong PIN locks the token (CKF_USER_PIN_FINAL_TRY)"),
                () => None,
            },
        }),
        Err(Error::ParseInt(_)) => {
            let info = quotesign_p11_token_info::token_info(module, slot.id()).map_err(Fault::Device)?;
            Ok(Facts {
                label: own(&info.label),
                manufacturer: own(&info.manufacturer),
                model: own(&info.model),
                serial: own(&info.serial),
                is_initialized: info.is_initialized,
                sessions_max: Some(info.sessions_max).filter(|most| (1..u64::from(u32::MAX)).contains(most)),
                pin: None,
            })
        }
        Err(error) => Err(error.into()),
    }
}

fn offers(pkcs11: &Pkcs11, slot: Slot, mechanism: MechanismType) -> Result<bool, Fault> {
    match pkcs11.get_mechanism_info(slot, mechanism) {
        Ok(info) => Ok(info.sign()),
        Err(Error::Pkcs11(RvError::MechanismInvalid, _)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The text without its padding: blanks, as the standard wants, or NULs.
pub(super) fn trimmed(padded: &str) -> &str {
    padded.trim_end_matches(['\0', ' '])
}
