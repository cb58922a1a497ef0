//! What the records of a journal say of numbers: what is signed is forgotten, so that only gaps take memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::{
    audit::{Event, Record},
    clock::UtcTime,
    domain::{PartnerId, QuoteId, Scope, SequenceNumber},
    signer::SignError,
};

/// Numbers without a released quote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Gap {
    pub scope: String,
    pub first: u64,
    pub last: u64,
    /// `caller`: skipped by whoever asks, or given up. `gateway`: taken, and burnt by us. `open`: taken, not signed yet.
    /// `operator`: a floor was raised over them. `unknown`: taken, and nothing that there is says by whom.
    pub by: &'static str,
    /// What the records say of it.
    pub why: String,
}

/// Records are taken in about the order in which they were made; of one lane in its very order.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// What was journalled then or later was not pruned; absent where nothing was.
    whole_since: Option<UtcTime>,
    scopes: BTreeMap<String, Line>,
    gaps: Vec<Gap>,
    /// Taken and not known to be signed. A commit may be read before its reservation, on another lane.
    open: BTreeMap<(String, SequenceNumber), Taken>,
    /// What each quote that is reserved waits with.
    waiting: HashMap<Asked, (String, SequenceNumber)>,
}

/// A quote, as its records name it.
type Asked = (Option<PartnerId>, Option<QuoteId>);

/// Each number that was taken names the one before it.
#[derive(Debug, Default)]
struct Line {
    /// Those taken that none names yet: of a whole line the newest.
    taken: BTreeSet<u64>,
    /// Those named that nothing is known to have taken.
    named: BTreeSet<u64>,
    highest: u64,
    /// What follows on this one was not pruned.
    whole_from: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Taken {
    /// With why it was refused to whoever asked for it last.
    Reserved(Option<Refused>),
    Signed,
    Voided(Option<Refused>, String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    reason: String,
    detail: String,
}

impl Refused {
    fn is_the_callers(&self) -> bool {
        self.reason == "DEADLINE_EXCEEDED" || self.detail == SignError::Gone.to_string()
    }
}

impl Book {
    pub fn new(whole_since: Option<UtcTime>) -> Self {
        Self { whole_since, ..Self::default() }
    }

    pub fn note(&mut self, record: &Record) {
        let (context, facts) = (&record.context, &record.facts);
        let asked = (context.partner.clone(), context.quote_id.clone());
        if record.event == Event::Refused {
            let waits = self.waiting.get(&asked).and_then(|at| self.open.get_mut(at));
            if let (Some(Taken::Reserved(refused)), Some(reason)) = (waits, &facts.reason) {
                *refused = Some(Refused { reason: reason.clone(), detail: facts.detail.clone().unwrap_or_default() });
            }
            return;
        }
        let (Some(scope), Some(sequence)) = (&facts.scope, facts.sequence) else { return };
        let at = (scope.clone(), sequence);
        match record.event {
            Event::Reserved => {
                self.follows(record, scope, sequence);
                self.skipped(scope, facts.previous_sequence, sequence.get(), "caller", || {
                    "skipped: the next one asked for was greater".to_owned()
                });
                match self.open.get(&at) {
                    Some(Taken::Signed) => drop(self.open.remove(&at)),
                    Some(_) => {}
                    None => {
                        self.waiting.insert(asked, at.clone());
                        self.open.insert(at, Taken::Reserved(None));
                    }
                }
            }
            Event::Committed => {
                self.waiting.remove(&asked);
                match self.open.remove(&at) {
                    Some(Taken::Reserved(_)) => {}
                    _ => drop(self.open.insert(at, Taken::Signed)),
                }
            }
            Event::Voided => {
                self.waiting.remove(&asked);
                let refused = match self.open.remove(&at) {
                    Some(Taken::Reserved(refused)) => refused,
                    _ => None,
                };
                let why = facts.reason.clone().unwrap_or_else(|| "voided".to_owned());
                self.open.insert(at, Taken::Voided(refused, why));
            }
            Event::Seeded => {
                self.follows(record, scope, sequence);
                let why = facts.detail.clone().unwrap_or_default();
                // The floor itself counts as taken.
                let above = sequence.get().saturating_add(1);
                self.skipped(scope, facts.previous_sequence, above, "operator", || {
                    format!("the floor was raised: {why}")
                });
            }
            _ => {}
        }
    }

    /// That `record` takes a number, and which one it names as the one before.
    fn follows(&mut self, record: &Record, scope: &str, sequence: SequenceNumber) {
        let line = self.scopes.entry(scope.to_owned()).or_default();
        let number = sequence.get();
        line.highest = line.highest.max(number);
        if self.whole_since.is_none_or(|since| record.at >= since) {
            line.whole_from = Some(line.whole_from.map_or(number, |from| from.min(number)));
        }
        if !line.named.remove(&number) {
            line.taken.insert(number);
        }
        if let Some(previous) = record.facts.previous_sequence {
            line.names(previous.get());
        }
    }

    /// The numbers between two; a scope that begins skips none.
    fn skipped(
        &mut self,
        scope: &str,
        previous: Option<SequenceNumber>,
        next: u64,
        by: &'static str,
        why: impl FnOnce() -> String,
    ) {
        let Some(previous) = previous else { return };
        let (first, last) = (previous.get() + 1, next.saturating_sub(1));
        if first <= last {
            self.gaps.push(Gap { scope: scope.to_owned(), first, last, by, why: why() });
        }
    }

    /// That the ledger says that these are the last numbers taken; they may have become more since.
    pub fn ends_with(&mut self, lasts: Vec<(Scope, SequenceNumber)>) {
        for (scope, last) in lasts {
            let line = self.scopes.entry(scope.as_str().to_owned()).or_default();
            if last.get() > line.highest {
                line.names(last.get());
            }
        }
    }

    /// Whether the ledger or any record knows this scope.
    pub fn knows(&self, scope: &str) -> bool {
        self.scopes.contains_key(scope) || self.open.keys().any(|(known, _)| known == scope)
    }

    pub fn gaps(self) -> Vec<Gap> {
        let is_whole = self.whole_since.is_none();
        let missing = self.scopes.into_iter().flat_map(|(scope, line)| {
            line.missing(is_whole).into_iter().map(move |(first, last)| Gap {
                scope: scope.clone(),
                first,
                last,
                by: "unknown",
                why: "taken, and no record tells of it: it was taken out of the journal".to_owned(),
            })
        });
        let taken = self.open.into_iter().filter_map(|((scope, sequence), taken)| {
            let (by, why) = match taken {
                // Its reservation was pruned with the journal's beginning.
                Taken::Signed => return None,
                Taken::Reserved(refused) => {
                    ("open", told("reserved, and neither signed nor voided yet", refused.as_ref()))
                }
                Taken::Voided(refused, why) => {
                    let is_the_callers = refused.as_ref().is_some_and(Refused::is_the_callers);
                    (if is_the_callers { "caller" } else { "gateway" }, told(&why, refused.as_ref()))
                }
            };
            Some(Gap { scope, first: sequence.get(), last: sequence.get(), by, why })
        });
        let mut gaps: Vec<Gap> = self.gaps.into_iter().chain(missing).chain(taken).collect();
        gaps.sort_by(|one, other| (&one.scope, one.first).cmp(&(&other.scope, other.first)));
        gaps
    }
}

/// What became of a number, and why whoever asked for it last was refused it.
fn told(what: &str, refused: Option<&Refused>) -> String {
    let refused = refused.map(|Refused { reason, detail }| format!("; refused before with {reason}: {detail}"));
    format!("{what}{}", refused.unwrap_or_default())
}

impl Line {
    fn names(&mut self, previous: u64) {
        // A scope that nobody seeded begins at 0, and nothing takes that.
        if !self.taken.remove(&previous) && previous > 0 {
            self.named.insert(previous);
        }
    }

    /// From behind the number that none names to the one that nothing has taken, unless that may have been pruned.
    fn missing(&self, is_whole: bool) -> Vec<(u64, u64)> {
        let from = if is_whole { Some(0) } else { self.whole_from };
        let Some(from) = from else { return Vec::new() };
        let named = self.named.range(from..);
        let first = |last: u64| self.taken.range(from..last).next_back().map_or(last, |before| before + 1);
        named.map(|last| (first(*last), *last)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Context, Facts},
        domain::{CorrelationId, Environment},
    };

    fn record(event: Event, at: i64, facts: Facts) -> Record {
        let context = Context::new(CorrelationId::made(), Environment::Sandbox, String::new(), 1);
        let (partner, quote_id) = (Some("acme-remit".parse().unwrap()), Some("q1".parse().unwrap()));
        Record::new(event, UtcTime::from_millis(at), Context { partner, quote_id, ..context }, facts)
    }

    fn number(number: u64) -> SequenceNumber {
        number.try_into().unwrap()
    }

    fn of(event: Event, at: i64, (sequence, previous): (u64, Option<u64>)) -> Record {
        let (scope, previous_sequence) = (Some("s".to_owned()), previous.map(number));
        record(event, at, Facts { scope, sequence: Some(number(sequence)), previous_sequence, ..Facts::default() })
    }

    /// What a journal of signed quotes with these numbers tells, made one after the other, where those of `gone` were taken out.
    fn told(whole_since: Option<i64>, numbers: &[u64], gone: &[u64]) -> Vec<(u64, u64, &'static str)> {
        let mut book = Book::new(whole_since.map(UtcTime::from_millis));
        let befores = [0].into_iter().chain(numbers.iter().copied());
        for (at, (before, now)) in (0..).zip(befores.zip(numbers)) {
            if !gone.contains(now) {
                book.note(&of(Event::Reserved, at, (*now, Some(before))));
                book.note(&of(Event::Committed, at, (*now, None)));
            }
        }
        let last = numbers.last().copied().unwrap().try_into().unwrap();
        let scope = Scope::new(Environment::Sandbox, &"acme-remit".parse().unwrap(), None);
        let line = book.scopes.remove("s").unwrap_or_default();
        book.scopes.insert(scope.as_str().to_owned(), line);
        book.ends_with(vec![(scope, last)]);
        book.gaps().into_iter().map(|gap| (gap.first, gap.last, gap.by)).collect()
    }

    #[test]
    fn what_was_taken_out_is_told() {
        assert_eq!(told(None, &[1, 2, 5, 6], &[]), [(3, 4, "caller")]);
        assert_eq!(told(None, &[1, 2, 3, 4, 5], &[2]), [(2, 2, "unknown")]);
        assert_eq!(told(None, &[1, 2, 3, 4, 5], &[2, 3]), [(2, 3, "unknown")]);
        assert_eq!(told(None, &[1, 2, 3, 4, 5], &[2, 4]), [(2, 2, "unknown"), (4, 4, "unknown")]);
        assert_eq!(told(None, &[1, 2, 3], &[1]), [(1, 1, "unknown")], "from the beginning");
        assert_eq!(told(None, &[1, 2, 3], &[2, 3]), [(2, 3, "unknown")], "from the end, by what the ledger says");
    }

    #[test]
    fn what_was_pruned_is_not_told() {
        assert_eq!(told(Some(0), &[1, 2, 3, 4], &[1, 2]), [], "of one lane: all that is left is whole");
        assert_eq!(told(Some(0), &[1, 2, 3, 4], &[1, 3]), [(3, 3, "unknown")]);
        assert_eq!(told(Some(9), &[1, 2, 3, 4], &[2]), [], "of several lanes: it may have been in another");
        assert_eq!(told(Some(2), &[1, 2, 3, 4, 5], &[2, 4]), [(4, 4, "unknown")]);
        assert_eq!(told(Some(9), &[1, 2], &[1, 2]), []);
    }

    #[test]
    fn a_number_that_was_burnt_says_why_it_was_not_signed() {
        let refused = |reason: &str, detail: &str| {
            let (reason, detail) = (Some(reason.to_owned()), Some(detail.to_owned()));
            record(Event::Refused, 0, Facts { detail, reason, ..Facts::default() })
        };
        let told = |refusals: &[Record]| {
            let mut book = Book::new(None);
            book.note(&refused("MALFORMED_JSON", "before it was reserved"));
            book.note(&of(Event::Reserved, 0, (1, Some(0))));
            for refusal in refusals {
                book.note(refusal);
            }
            let mut voided = of(Event::Voided, 0, (1, None));
            voided.facts.reason = Some("QUOTE_EXPIRED".to_owned());
            book.note(&voided);
            let gap = book.gaps().pop().unwrap();
            (gap.why, gap.by)
        };
        assert_eq!(told(&[]), ("QUOTE_EXPIRED".to_owned(), "gateway"));
        let revoked = refused("KEY_REVOKED", "the key was revoked");
        let (why, by) = told(&[refused("SIGNER_UNAVAILABLE", "away"), revoked]);
        assert_eq!((&*why, by), ("QUOTE_EXPIRED; refused before with KEY_REVOKED: the key was revoked", "gateway"));
        assert_eq!(told(&[refused("DEADLINE_EXCEEDED", "late")]).1, "caller");
        assert_eq!(told(&[refused("SIGNER_UNAVAILABLE", &SignError::Gone.to_string())]).1, "caller");
    }
}
