//! Carries out what the rules have in store for a call, before the call itself.

use std::{
    env,
    ffi::c_int,
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    process, ptr,
    sync::OnceLock,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use cryptoki_sys::{CK_RV, CK_SESSION_HANDLE};

use crate::{
    control::{self, Standing, control},
    rule::Action,
    session,
};

/// How often a hanging call looks whether its rule still stands.
const HANG_POLL: Duration = Duration::from_millis(20);

unsafe extern "C" {
    /// Ends the process at once. What runs at a usual exit could crash under threads that are inside the real module.
    safe fn _exit(status: c_int) -> !;
}

/// What is left to do for a call.
pub enum Verdict {
    /// The real module decides.
    Forward,
    /// The call is answered so.
    Answer(CK_RV),
    /// The real module's result is to be made into another.
    Reshape(Standing),
}

/// Lets the rules act on a call. It may take as long as they say, and holds no lock meanwhile.
pub fn befall(function: &str, session: Option<CK_SESSION_HANDLE>) -> Verdict {
    let rules = control().rules();
    if rules.is_empty() {
        return Verdict::Forward;
    }
    let plan = control::plan(&rules, function, session.is_some());
    for standing in &plan.before {
        log(function, standing);
        match (standing.rule.action, session) {
            (Action::Delay(time), _) => thread::sleep(time),
            (Action::Hang, _) => {
                while control().still_stands(standing) {
                    thread::sleep(HANG_POLL);
                }
            }
            (Action::Logout, Some(session)) => {
                session::log_out(session);
            }
            (Action::Close, Some(session)) => {
                session::close(session);
            }
            _ => {}
        }
    }
    let Some(standing) = plan.last else { return Verdict::Forward };
    match standing.rule.action {
        Action::Corrupt | Action::Zero | Action::Truncate(_) | Action::Stale | Action::Empty | Action::Cache => {
            return Verdict::Reshape(standing);
        }
        _ => log(function, &standing),
    }
    match standing.rule.action {
        Action::Answer(code) => Verdict::Answer(code),
        Action::HangForever => loop {
            thread::sleep(Duration::from_hours(1));
        },
        Action::Abort => process::abort(),
        Action::Segv => {
            // SAFETY: there is none. The first page is never mapped, and the fault is what the rule asks for.
            unsafe { ptr::without_provenance_mut::<u8>(8).write_volatile(0) };
            Verdict::Forward
        }
        Action::Exit(status) => _exit(status),
        _ => Verdict::Forward,
    }
}

static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// A call is inside this module for as long as this lives.
pub struct Inside(());

impl Inside {
    pub fn enter() -> Self {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        Self(())
    }

    /// Whether any call is inside that must be out before the module is left.
    pub fn is_any() -> bool {
        INSIDE.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Notes that a rule acted on a call of this function.
pub fn log(function: &str, standing: &Standing) {
    note(&format!("{function} {}", standing.rule.spelling));
}

/// Notes a line of the control file that is no rule.
pub fn complain(line: &str, reason: &str) {
    eprintln!("p11shim: `{line}`: {reason}");
    note(&format!("refused `{line}`: {reason}"));
}

/// Appends a line to the log, if there is one, whole beside those of other threads and processes.
pub fn note(line: &str) {
    static LOG: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(path) = LOG.get_or_init(|| env::var_os("P11SHIM_LOG").map(PathBuf::from)) else { return };
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("p11shim: cannot write the log: {error}");
    }
}
