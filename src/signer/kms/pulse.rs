//! Whether AWS KMS answers at all, and takes the credentials: what is no matter of one key.

use parking_lot::Mutex;
use tokio::sync::watch;

use super::fault::{Fault, Kind};
use crate::signer::Health;

/// How many calls one after another must get no answer before KMS counts as away.
const SILENT_MAX: u32 = 3;

/// How one KMS fares.
pub(super) struct Pulse {
    signer: String,
    state: Mutex<State>,
    ready: watch::Sender<bool>,
}

struct State {
    silent: u32,
    why: Option<Fault>,
}

impl Pulse {
    /// A KMS that nobody can be asked for yet.
    pub(super) fn new(signer: &str) -> Self {
        let why = Fault::new(Kind::Credentials, "AWS credentials are being looked for");
        let state = Mutex::new(State { silent: 0, why: Some(why) });
        Self { signer: signer.to_owned(), state, ready: watch::Sender::new(false) }
    }

    pub(super) fn credentials_missing(&self, why: Fault) {
        self.set(&mut self.state.lock(), Some(why));
    }

    pub(super) fn credentials_found(&self) {
        self.set(&mut self.state.lock(), None);
        self.ready.send_replace(true);
    }

    /// Why nothing can be asked yet.
    pub(super) fn waits_for(&self) -> Option<Fault> {
        if *self.ready.borrow() { None } else { self.state.lock().why.clone() }
    }

    /// Returns when there are credentials.
    pub(super) async fn ready(&self) {
        // The sender lives as long as `self`, so this ends only when it is so.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// KMS answered, if only by refusing.
    pub(super) fn heard(&self) {
        let mut state = self.state.lock();
        state.silent = 0;
        self.set(&mut state, None);
    }

    /// KMS gave no answer, or refused the credentials.
    pub(super) fn silent(&self, why: &Fault) {
        let mut state = self.state.lock();
        state.silent = state.silent.saturating_add(1);
        if why.is_lasting() || state.silent >= SILENT_MAX {
            self.set(&mut state, Some(why.clone()));
        }
    }

    pub(super) fn health(&self) -> Health {
        self.state.lock().why.as_ref().map_or(Health::Serving, |why| Health::NotServing(why.to_string()))
    }

    fn set(&self, state: &mut State, why: Option<Fault>) {
        if state.why != why {
            match &why {
                None => tracing::info!(signer = %self.signer, "AWS KMS answers"),
                Some(why) => tracing::warn!(signer = %self.signer, %why, "AWS KMS cannot be used"),
            }
            state.why = why;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_credentials_are_told_at_once_and_silence_when_it_lasts() {
        let pulse = Pulse::new("kms-eu");
        assert!(matches!(pulse.health(), Health::NotServing(why) if why.contains("being looked for")));
        pulse.credentials_found();
        assert!(pulse.health() == Health::Serving && pulse.waits_for().is_none());
        for _ in 1..SILENT_MAX {
            pulse.silent(&Fault::no_answer("Sign"));
        }
        assert_eq!(pulse.health(), Health::Serving);
        pulse.silent(&Fault::no_answer("Sign"));
        assert!(matches!(pulse.health(), Health::NotServing(_)));
        pulse.heard();
        assert_eq!(pulse.health(), Health::Serving);
        pulse.silent(&Fault::new(Kind::Credentials, "refused"));
        assert_eq!(pulse.health(), Health::NotServing("refused".to_owned()));
    }
}
