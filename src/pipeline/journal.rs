//! Journals refusals: a bounded number per caller and reason singly, the rest counted in one record, so that no
//! caller can fill the journal. What is our own fault is logged too, and raises an alarm where it must not happen.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;

use crate::{
    audit::{Context, Event, Facts, Record},
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{Caller, CorrelationId},
    proto::Reason,
};

use super::{
    Pipeline,
    refusal::{Refusal, name},
    verify::VerifyError,
};

const WINDOW: Duration = Duration::from_mins(1);
/// Written singly in a window, per caller and reason.
const SINGLY_MAX: u32 = 60;

/// How many refusals each caller has had journalled of late.
#[derive(Debug, Default)]
pub struct Shares(Mutex<HashMap<(Option<Caller>, Reason), Share>>);

#[derive(Debug, Clone, Copy)]
struct Share {
    since: UtcTime,
    written: u32,
    counted: u64,
}

/// What to write of one more refusal.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    /// It, and how many were only counted in the window before.
    Singly {
        /// Not written since the last record.
        counted_before: u64,
    },
    /// Nothing now: it is counted.
    Counted,
}

impl Shares {
    fn enter(&self, caller: Option<Caller>, reason: Reason, now: UtcTime) -> Entry {
        let mut shares = self.0.lock();
        let share = shares.entry((caller, reason)).or_insert(Share { since: now, written: 0, counted: 0 });
        let mut counted_before = 0;
        if now.since(share.since) >= WINDOW || now < share.since {
            counted_before = share.counted;
            *share = Share { since: now, written: 0, counted: 0 };
        }
        if share.written < SINGLY_MAX {
            share.written += 1;
            return Entry::Singly { counted_before };
        }
        share.counted += 1;
        Entry::Counted
    }

    /// Takes what was only counted, in windows that have ended or in all of them.
    fn take_counted(&self, now: UtcTime, which: Windows) -> Vec<(Option<Caller>, Reason, u64)> {
        let mut shares = self.0.lock();
        let is_due = |share: &Share| which == Windows::All || now.since(share.since) >= WINDOW;
        let due = shares.iter_mut().filter(|(_, share)| share.counted > 0 && is_due(share));
        due.map(|((caller, reason), share)| (caller.clone(), *reason, std::mem::take(&mut share.counted))).collect()
    }
}

/// Of which windows the counts are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// Those that have ended.
    Ended,
    /// All, since the gateway ends.
    All,
}

impl Pipeline {
    /// Journals how many refusals were only counted, where no later refusal tells it.
    pub fn journal_counted(&self, which: Windows) {
        let (now, policy) = (SystemClock.now(), self.policy.load());
        for (caller, reason, count) in self.refusals.take_counted(now, which) {
            let context =
                Context::new(CorrelationId::made(), self.environment, policy.digest.to_string(), policy.serial);
            self.ledger.journal(counted(Context { caller, ..context }, reason, count, now));
        }
    }

    /// Journals a refusal; the record joins the next batch and never holds the answer up. An attempt beyond its
    /// quota is counted by the metrics alone.
    pub fn journal_refusal(&self, context: Context, refusal: &Refusal) {
        match refusal {
            Refusal::Told(_) | Refusal::Exhausted(_) => return,
            Refusal::Verify(VerifyError::Mismatch(_)) | Refusal::Torn | Refusal::NoCanonicalForm(_) => {
                tracing::error!(correlation_id = %context.correlation_id, %refusal, "alarm: a quote could not be released");
            }
            _ if refusal.is_ours() => {
                tracing::warn!(correlation_id = %context.correlation_id, %refusal, "a quote was refused");
            }
            _ => {}
        }
        self.journal_denial(context, refusal.reason(), refusal.to_string());
    }

    /// Journals that an act was refused for `reason`.
    pub fn journal_denial(&self, context: Context, reason: Reason, detail: String) {
        let now = SystemClock.now();
        let declared = context.caller.clone().filter(|caller| self.policy.load().knows(caller));
        let Entry::Singly { counted_before } = self.refusals.enter(declared, reason, now) else { return };
        if counted_before > 0 {
            let own = Context::new(
                CorrelationId::made(),
                context.environment,
                context.policy_digest.clone(),
                context.policy_serial,
            );
            let own = Context { caller: context.caller.clone(), ..own };
            self.ledger.journal(counted(own, reason, counted_before, now));
        }
        let facts = Facts { reason: Some(name(reason).to_owned()), detail: Some(detail), ..Facts::default() };
        self.ledger.journal(Record::new(Event::Refused, now, context, facts));
    }
}

/// A record of refusals that were only counted. It is of no one call.
fn counted(context: Context, reason: Reason, count: u64, now: UtcTime) -> Record {
    let detail = Some("as many were refused for this reason beyond those written singly".to_owned());
    let facts = Facts { count: Some(count), reason: Some(name(reason).to_owned()), detail, ..Facts::default() };
    Record::new(Event::Refused, now, context, facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_told_in_the_next_window() {
        let shares = Shares::default();
        let at = |second: i64| UtcTime::from_millis(second * 1000);
        let singly = (0..1000).filter(|_| shares.enter(None, Reason::PolicyDenied, at(0)) != Entry::Counted).count();
        assert_eq!(singly, 60);
        let other = shares.enter(None, Reason::MalformedJson, at(0));
        assert_eq!(other, Entry::Singly { counted_before: 0 }, "another reason has a share of its own");
        assert_eq!(shares.enter(None, Reason::PolicyDenied, at(60)), Entry::Singly { counted_before: 940 });
        assert_eq!(shares.enter(None, Reason::PolicyDenied, at(61)), Entry::Singly { counted_before: 0 });
    }

    #[test]
    fn what_was_counted_is_told_once_though_nothing_follows() {
        let shares = Shares::default();
        let at = |second: i64| UtcTime::from_millis(second * 1000);
        for _ in 0..100 {
            shares.enter(None, Reason::PolicyDenied, at(0));
        }
        assert!(shares.take_counted(at(59), Windows::Ended).is_empty());
        assert_eq!(shares.take_counted(at(60), Windows::Ended), [(None, Reason::PolicyDenied, 40)]);
        assert!(shares.take_counted(at(60), Windows::All).is_empty());
        assert_eq!(shares.enter(None, Reason::PolicyDenied, at(60)), Entry::Singly { counted_before: 0 });
        for _ in 0..60 {
            shares.enter(None, Reason::PolicyDenied, at(61));
        }
        assert_eq!(shares.take_counted(at(61), Windows::All), [(None, Reason::PolicyDenied, 1)]);
    }
}
