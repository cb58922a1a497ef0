//! Journals refusals: a bounded number per caller and reason singly, the rest counted in one record, so that no
//! caller can fill the journal. What is our own fault is logged too, and raises an alarm where it must not happen.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;

use crate::{
    audit::{Context, Event, Facts, Record},
    clock::{Clock as _, SystemClock, UtcTime},
    domain::Caller,
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
}

impl Pipeline {
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
        let reason = Some(name(reason).to_owned());
        if counted_before > 0 {
            let detail = Some(format!("{counted_before} more in the window before, not written singly"));
            let facts = Facts { count: Some(counted_before), reason: reason.clone(), detail, ..Facts::default() };
            self.ledger.journal(Record::new(Event::Refused, now, context.clone(), facts));
        }
        let facts = Facts { reason, detail: Some(detail), ..Facts::default() };
        self.ledger.journal(Record::new(Event::Refused, now, context, facts));
    }
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
}
