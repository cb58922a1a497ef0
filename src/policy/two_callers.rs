//! Acts that need two operators: whoever asks second, for the very same act and in time, agrees to the first.

use std::time::Duration;

use crate::domain::{Caller, Environment};

use super::{
    authority::{Action, Authority, Resource},
    file::TwoCallersEntry,
};

/// Which acts need two operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TwoCallers {
    acts: Vec<Action>,
    /// How long the second one may take.
    pub within: Duration,
}

/// The acts that widen what is done. Those that narrow it must never wait for a second person.
const WIDENING: [Action; 5] =
    [Action::SeedSequence, Action::Resume, Action::ReinstateCaller, Action::ReleaseHold, Action::ActivateKey];
/// Longer and nobody remembers what was asked for.
const WITHIN_S_MAX: u32 = 86_400;

impl TwoCallers {
    /// Whether `act` needs two.
    #[must_use]
    pub fn need(&self, act: Action) -> bool {
        self.acts.contains(&act)
    }

    pub(super) fn read(entry: &TwoCallersEntry, environment: Environment) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let mut acts = Vec::new();
        for name in &entry.acts {
            match WIDENING.iter().find(|act| act.name() == name) {
                Some(act) => acts.push(*act),
                None => problems.push(format!(
                    "policy.toml: `two_callers.acts` names `{name}`; only what widens can wait for a second person: {}",
                    WIDENING.map(Action::name).join(", ")
                )),
            }
        }
        if environment == Environment::Production && !acts.contains(&Action::ActivateKey) {
            problems.push(
                "policy.toml: `two_callers.acts` must name `ActivateKey` in production: a key that verifiers may not know yet is not for one person to let sign"
                    .to_owned(),
            );
        }
        if !(1..=WITHIN_S_MAX).contains(&entry.within_s) {
            problems.push(format!(
                "policy.toml: `two_callers.within_s` = {} is no time to agree in; give 1 to {WITHIN_S_MAX}",
                entry.within_s
            ));
        }
        (Self { acts, within: Duration::from_secs(entry.within_s.into()) }, problems)
    }

    /// The acts that one of the callers alone may do: nobody could ever finish them. That a key cannot be activated harms
    /// nobody; it waits.
    pub(super) fn out_of_reach(&self, authority: &Authority, callers: &[&Caller]) -> Vec<String> {
        let may = |act: Action| {
            let gateway = |caller: &&&Caller| authority.decide(caller, act, Resource::Gateway, None).allowed;
            callers.iter().filter(gateway).count()
        };
        let counts = |act: &&Action| !act.is_of_partner() && **act != Action::ActivateKey;
        let alone = self.acts.iter().filter(counts).filter(|act| may(**act) == 1);
        let told = |act: &Action| {
            format!(
                "policy.toml: `two_callers.acts` names `{}`, which one caller alone may do; let a second one do it, or take it out",
                act.name()
            )
        };
        alone.map(told).collect()
    }
}
