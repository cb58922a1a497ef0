//! A module in this very process, for benchmarks alone: what a bare `C_Sign` loop gives and takes. The gateway never loads a
//! module in this way, and what is signed here is no more than the bytes that prove a key works.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::Mechanism,
    object::{Attribute, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
};
use rustix::time::{ClockId, clock_gettime};
use secrecy::SecretString;

use super::Pin;
use crate::jws::SigningInput;

/// A token whose key signs in a loop.
pub struct Raw {
    pkcs11: Pkcs11,
    slot: Slot,
    object: String,
    /// Keeps the login for as long as this lives.
    _login: Session,
}

/// A session of it, for one thread at a time.
pub struct RawSession {
    session: Session,
    key: ObjectHandle,
}

/// What a loop came to.
#[derive(Debug)]
pub struct Pace {
    /// How long each signature took, in no order.
    pub each: Vec<Duration>,
    /// How long the loop ran.
    pub took: Duration,
    /// The processor time of this whole process meanwhile.
    pub cpu: Duration,
}

impl Pace {
    /// Signatures a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 signatures")]
        let count = self.each.len() as f64;
        count / self.took.as_secs_f64()
    }
}

/// The processor time that this process has used.
#[must_use]
pub fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

impl Raw {
    /// Loads the module and logs in to the token of this label, for the key of that one.
    ///
    /// # Errors
    /// What the module says, or that there is no such token or key.
    pub fn open(module: &Path, token: &str, pin: &Pin, object: &str) -> Result<Self, String> {
        let said = |fault: Error| format!("{}: {fault}", module.display());
        let pkcs11 = Pkcs11::new(module).map_err(said)?;
        match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(fault) => return Err(said(fault)),
        }
        let is_it = |slot: &Slot| pkcs11.get_token_info(*slot).is_ok_and(|info| info.label().trim() == token);
        let slots = pkcs11.get_slots_with_initialized_token().map_err(said)?;
        let slot = slots.into_iter().find(is_it).ok_or_else(|| format!("there is no token `{token}`"))?;
        let login = pkcs11.open_ro_session(slot).map_err(said)?;
        let pin: SecretString = pin.read().map_err(|fault| fault.to_string())?;
        match login.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(fault) => return Err(said(fault)),
        }
        Ok(Self { pkcs11, slot, object: object.to_owned(), _login: login })
    }

    /// A session with the key.
    ///
    /// # Errors
    /// What the module says, or that there is no such key.
    pub fn session(&self) -> Result<RawSession, String> {
        let said = |fault: Error| fault.to_string();
        let session = self.pkcs11.open_ro_session(self.slot).map_err(said)?;
        let label = Attribute::Label(self.object.as_bytes().to_vec());
        let found = session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY), label]).map_err(said)?;
        let key = found.first().copied().ok_or_else(|| format!("there is no private key `{}`", self.object))?;
        Ok(RawSession { session, key })
    }

    /// Signs on so many threads, each with a session of its own, for so long.
    ///
    /// # Errors
    /// The first fault of any.
    pub fn run(&self, threads: usize, inputs: &[SigningInput], lasts: Duration) -> Result<Pace, String> {
        let sessions = (0..threads).map(|_| self.session()).collect::<Result<Vec<_>, _>>()?;
        let over = AtomicBool::new(false);
        let (began, cpu) = (Instant::now(), processor_time());
        let each = thread::scope(|scope| {
            let over = &over;
            let sign = |(at, session): (usize, RawSession)| {
                let mut each = Vec::new();
                for input in inputs.iter().cycle().skip(at) {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let from = Instant::now();
                    session.sign(input)?;
                    each.push(from.elapsed());
                }
                Ok(each)
            };
            let running: Vec<_> =
                sessions.into_iter().enumerate().map(|session| scope.spawn(move || sign(session))).collect();
            thread::sleep(lasts);
            over.store(true, Ordering::Relaxed);
            let ended = running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread died".into())));
            ended.collect::<Result<Vec<Vec<Duration>>, String>>()
        })?;
        let (took, cpu) = (began.elapsed(), processor_time().saturating_sub(cpu));
        Ok(Pace { each: each.concat(), took, cpu })
    }
}

impl RawSession {
    /// One `C_SignInit` and `C_Sign`.
    ///
    /// # Errors
    /// What the module says.
    pub fn sign(&self, input: &SigningInput) -> Result<Vec<u8>, String> {
        self.session.sign(&Mechanism::Sha256RsaPkcs, self.key, input.bytes()).map_err(|fault| fault.to_string())
    }
}
