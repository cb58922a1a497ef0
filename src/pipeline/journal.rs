//! Journals refusals and what is given again: a bounded number per caller and reason singly, the rest counted in one record, so that no
//! caller can fill the journal. What is our own fault is logged too, and raises an alarm where it must not happen.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    audit::{Context, Event, Facts, Record, Status},
    clock::{Clock as _, SystemClock, UtcTime},
    domain::Caller,
    proto::Reason,
};

use super::{
    Pipeline,
    refusal::{Refusal, answer, name},
    verify::VerifyError,
};

const WINDOW: Duration = Duration::from_mins(1);
/// Written singly in a window, per caller and reason.
const SINGLY_MAX: u32 = 60;

/// How much each caller has had journalled of late.
#[derive(Debug, Default)]
pub struct Shares(Mutex<HashMap<(Option<Caller>, Told), Share>>);

/// What a caller was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Told {
    /// Why it was refused, and with which status.
    Refused(Reason, Status),
    /// What it had been given before.
    Replayed,
}

#[derive(Debug)]
struct Share {
    since: UtcTime,
    written: u32,
    /// By the method that was called.
    counted: BTreeMap<Option<String>, u64>,
}

/// How often a caller of a method was told the same, beyond what was written singly.
type Counted = (Option<Caller>, Told, Option<String>, u64);

impl Shares {
    /// Whether one more is written singly; else it is counted.
    fn enter(&self, caller: Option<Caller>, told: Told, method: Option<&String>, now: UtcTime) -> bool {
        let mut shares = self.0.lock();
        let fresh = || Share { since: now, written: 0, counted: BTreeMap::new() };
        let share = shares.entry((caller, told)).or_insert_with(fresh);
        if now.since(share.since) >= WINDOW || now < share.since {
            (share.since, share.written) = (now, 0);
        }
        let is_single = share.written < SINGLY_MAX;
        if is_single {
            share.written += 1;
        } else {
            *share.counted.entry(method.cloned()).or_default() += 1;
        }
        is_single
    }

    /// Takes what was counted since this was last asked.
    fn take_counted(&self) -> Vec<Counted> {
        let mut shares = self.0.lock();
        let counted = shares.iter_mut().flat_map(|((caller, told), share)| {
            let counted = std::mem::take(&mut share.counted).into_iter();
            counted.map(|(method, count)| (caller.clone(), *told, method, count))
        });
        counted.collect()
    }
}

impl Pipeline {
    /// Journals what was only counted since this was last done: a record for each caller, method, reason and answer.
    pub fn journal_counted(&self, context: &Context) {
        let now = SystemClock.now();
        for (caller, told, method, count) in self.shares.take_counted() {
            let (event, reason, status, what) = match told {
                Told::Refused(reason, status) => {
                    (Event::Refused, Some(name(reason).to_owned()), status, "refused for this reason")
                }
                Told::Replayed => (Event::Replayed, None, Status::Ok, "given again"),
            };
            let detail = Some(format!("as many were {what} beyond those written singly"));
            let facts = Facts { count: Some(count), reason, status: Some(status), detail, ..Facts::default() };
            self.ledger.journal(Record::new(event, now, Context { caller, method, ..context.clone() }, facts));
        }
    }

    /// Whether that a quote is given again is written singly; else it is counted.
    pub(super) fn is_replay_written(&self, context: &Context) -> bool {
        self.shares.enter(self.declared(context), Told::Replayed, context.method.as_ref(), SystemClock.now())
    }

    /// Its caller, where policy declares it: all others share.
    fn declared(&self, context: &Context) -> Option<Caller> {
        context.caller.clone().filter(|caller| self.policy.load().knows(caller))
    }

    /// Journals a refusal; the record joins the next batch and never holds the answer up.
    pub fn journal_refusal(&self, context: Context, refusal: &Refusal) {
        match refusal {
            Refusal::Told(_) => return,
            Refusal::Verify(VerifyError::Mismatch(_)) | Refusal::Torn | Refusal::NoCanonicalForm(_) => {
                tracing::error!(correlation_id = %context.correlation_id, %refusal, "alarm: a quote could not be released");
            }
            _ if refusal.is_ours() => {
                tracing::warn!(correlation_id = %context.correlation_id, %refusal, "a quote was refused");
            }
            _ => {}
        }
        let reason = refusal.reason();
        self.journal_denial(context, reason, answer(reason), refusal.to_string());
    }

    /// Journals that an act was refused for `reason`, and that its caller was answered `status`.
    pub fn journal_denial(&self, context: Context, reason: Reason, status: Status, detail: String) {
        let now = SystemClock.now();
        let told = Told::Refused(reason, status);
        if self.shares.enter(self.declared(&context), told, context.method.as_ref(), now) {
            let (reason, status) = (Some(name(reason).to_owned()), Some(status));
            let facts = Facts { reason, status, detail: Some(detail), ..Facts::default() };
            self.ledger.journal(Record::new(Event::Refused, now, context, facts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_told_once_though_nothing_follows() {
        let shares = Shares::default();
        let at = |second: i64| UtcTime::from_millis(second * 1000);
        let denied = Told::Refused(Reason::PolicyDenied, Status::PermissionDenied);
        let malformed = Told::Refused(Reason::MalformedJson, Status::InvalidArgument);
        let method = |name: &str| Some(name.to_owned());
        let enter = |told, name: &str, second| shares.enter(None, told, method(name).as_ref(), at(second));
        let singly = (0..1000).filter(|_| enter(denied, "SignQuote", 0)).count();
        assert_eq!(singly, 60);
        for other in [malformed, Told::Replayed] {
            assert!(enter(other, "SignQuote", 0), "what else it is told has a share of its own");
        }
        assert!(!enter(denied, "GetJwks", 59), "and another method has not");
        let mut counted = shares.take_counted();
        counted.sort_by_key(|(.., count)| *count);
        assert_eq!(counted, [(None, denied, method("GetJwks"), 1), (None, denied, method("SignQuote"), 940)]);
        assert!(shares.take_counted().is_empty());
        assert!(!enter(denied, "SignQuote", 59), "what was told gives no new share");
        // A new window, with what was counted in the one before.
        let singly = (0..61).filter(|_| enter(denied, "SignQuote", 60)).count();
        assert_eq!(singly, 60);
        assert_eq!(shares.take_counted(), [(None, denied, method("SignQuote"), 2)]);
    }
}
