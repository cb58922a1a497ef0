//! Journals refusals: a bounded number per caller and reason singly, the rest counted in one record, so that no
//! caller can fill the journal. What is our own fault is logged too, and raises an alarm where it must not happen.

use std::{collections::HashMap, time::Duration};

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

/// How many refusals each caller has had journalled of late.
#[derive(Debug, Default)]
pub struct Shares(Mutex<HashMap<Told, Share>>);

/// Whom, why, and what was answered.
type Told = (Option<Caller>, Reason, Status);

#[derive(Debug, Clone, Copy)]
struct Share {
    since: UtcTime,
    written: u32,
    counted: u64,
}

impl Shares {
    /// Whether one more refusal is written singly; else it is counted.
    fn enter(&self, told: Told, now: UtcTime) -> bool {
        let mut shares = self.0.lock();
        let share = shares.entry(told).or_insert(Share { since: now, written: 0, counted: 0 });
        if now.since(share.since) >= WINDOW || now < share.since {
            (share.since, share.written) = (now, 0);
        }
        let is_single = share.written < SINGLY_MAX;
        if is_single {
            share.written += 1;
        } else {
            share.counted += 1;
        }
        is_single
    }

    /// Takes what was counted since this was last asked.
    fn take_counted(&self) -> Vec<(Told, u64)> {
        let mut shares = self.0.lock();
        let counted = shares.iter_mut().filter(|(_, share)| share.counted > 0);
        counted.map(|(told, share)| (told.clone(), std::mem::take(&mut share.counted))).collect()
    }
}

impl Pipeline {
    /// Journals how many refusals were only counted since this was last done: a record for each caller, reason and
    /// answer.
    pub fn journal_counted(&self, context: &Context) {
        let now = SystemClock.now();
        for ((caller, reason, status), count) in self.refusals.take_counted() {
            let detail = Some("as many were refused for this reason beyond those written singly".to_owned());
            let reason = Some(name(reason).to_owned());
            let facts = Facts { count: Some(count), reason, status: Some(status), detail, ..Facts::default() };
            self.ledger.journal(Record::new(Event::Refused, now, Context { caller, ..context.clone() }, facts));
        }
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
        let declared = context.caller.clone().filter(|caller| self.policy.load().knows(caller));
        if self.refusals.enter((declared, reason, status), now) {
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
        let denied = (None, Reason::PolicyDenied, Status::PermissionDenied);
        let malformed = (None, Reason::MalformedJson, Status::InvalidArgument);
        let singly = (0..1000).filter(|_| shares.enter(denied.clone(), at(0))).count();
        assert_eq!(singly, 60);
        assert!(shares.enter(malformed, at(0)), "another reason has a share of its own");
        assert!(!shares.enter(denied.clone(), at(59)));
        assert_eq!(shares.take_counted(), [(denied.clone(), 941)]);
        assert!(shares.take_counted().is_empty());
        assert!(!shares.enter(denied.clone(), at(59)), "what was told gives no new share");
        // A new window, with what was counted in the one before.
        let singly = (0..61).filter(|_| shares.enter(denied.clone(), at(60))).count();
        assert_eq!(singly, 60);
        assert_eq!(shares.take_counted(), [(denied, 2)]);
    }
}
