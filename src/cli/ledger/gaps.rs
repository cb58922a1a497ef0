//! `quotesign ledger gaps`: every number that no released quote carries, and why. Read from the journal, so that it can
//! be told from what the callers say.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use crate::{
    audit::{Event, Record},
    domain::SequenceNumber,
    ledger::{Journal, Stretch},
};

use super::super::{ConfigPath, Failure, noted::Noted, out::say};

/// How many rows are read at once.
const PAGE: u32 = 1000;

#[derive(Debug, Args)]
pub(in crate::cli) struct Gaps {
    #[command(flatten)]
    path: ConfigPath,
    /// One scope alone, as `["production","acme-remit","GB-IN"]`.
    #[arg(long)]
    scope: Option<String>,
    /// Print a JSON line each.
    #[arg(long)]
    json: bool,
}

/// Numbers without a released quote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Gap {
    scope: String,
    first: u64,
    last: u64,
    /// `caller`: skipped by whoever asks. `gateway`: taken, and burnt by us. `open`: taken, not signed yet. `operator`: a
    /// floor was raised over them.
    by: &'static str,
    /// What the records say of it.
    why: String,
}

impl Gaps {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let told = self.scope.iter().map(|_| "scope".to_owned()).collect();
        let journal = Noted::open(&self.path.load()?, "ledger gaps", told)?.journal()?;
        let mut book = Book::default();
        let lanes = journal.lanes().map_err(Failure::failed)?;
        for lane in &lanes {
            book.read(&*journal, lane)?;
        }
        let gaps = book.gaps().into_iter().filter(|gap| self.scope.as_ref().is_none_or(|scope| *scope == gap.scope));
        let gaps: Vec<Gap> = gaps.collect();
        for gap in &gaps {
            if self.json {
                say!("{}", serde_json::to_string(gap).map_err(Failure::failed)?);
            } else {
                let numbers = if gap.first == gap.last {
                    gap.first.to_string()
                } else {
                    format!("{} to {}", gap.first, gap.last)
                };
                say!("{} {numbers}: {} ({})", gap.scope, gap.why, gap.by);
            }
        }
        if !self.json {
            let count: u64 = gaps.iter().map(|gap| gap.last - gap.first + 1).sum();
            say!("{count} numbers without a released quote, in {} places", gaps.len());
            let is_pruned = lanes.iter().any(|lane| lane.first.next_index > 0);
            if is_pruned {
                say!("the journal's oldest records were pruned: of numbers from before nothing is told");
            }
        }
        Ok(())
    }
}

/// What the records say of numbers: what is signed is forgotten, so that only gaps take memory.
#[derive(Debug, Default)]
struct Book {
    gaps: Vec<Gap>,
    /// Taken and not known to be signed. A commit may be read before its reservation, on another lane.
    open: BTreeMap<(String, SequenceNumber), Taken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Taken {
    Reserved,
    Signed,
    Voided(String),
}

impl Book {
    fn read(&mut self, journal: &dyn Journal, lane: &Stretch) -> Result<(), Failure> {
        let mut from = lane.first.next_index;
        loop {
            let page = journal.records(&lane.lane, from, PAGE).map_err(Failure::failed)?;
            let Some(last) = page.last() else { return Ok(()) };
            from = last.index + 1;
            for stored in &page {
                let fault = |fault| Failure::failed(format!("record {}: {fault}", stored.index));
                self.note(&serde_json::from_slice(&stored.bytes).map_err(fault)?);
            }
        }
    }

    fn note(&mut self, record: &Record) {
        let facts = &record.facts;
        let (Some(scope), Some(sequence)) = (&facts.scope, facts.sequence) else { return };
        let at = (scope.clone(), sequence);
        match record.event {
            Event::Reserved => {
                self.skipped(scope, facts.previous_sequence, sequence.get(), "caller", || {
                    "skipped: the next one asked for was greater".to_owned()
                });
                match self.open.get(&at) {
                    Some(Taken::Signed) => {
                        self.open.remove(&at);
                    }
                    Some(_) => {}
                    None => {
                        self.open.insert(at, Taken::Reserved);
                    }
                }
            }
            Event::Committed => match self.open.remove(&at) {
                Some(Taken::Reserved) => {}
                _ => {
                    self.open.insert(at, Taken::Signed);
                }
            },
            Event::Voided => {
                let why = facts.reason.clone().unwrap_or_else(|| "voided".to_owned());
                self.open.insert(at, Taken::Voided(why));
            }
            Event::Seeded => {
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

    fn gaps(self) -> Vec<Gap> {
        let taken = self.open.into_iter().filter_map(|((scope, sequence), taken)| {
            let (by, why) = match taken {
                // Its reservation was pruned with the journal's beginning.
                Taken::Signed => return None,
                Taken::Reserved => ("open", "reserved, and neither signed nor voided yet".to_owned()),
                Taken::Voided(why) => ("gateway", why),
            };
            Some(Gap { scope, first: sequence.get(), last: sequence.get(), by, why })
        });
        let mut gaps: Vec<Gap> = self.gaps.into_iter().chain(taken).collect();
        gaps.sort_by(|one, other| (&one.scope, one.first).cmp(&(&other.scope, other.first)));
        gaps
    }
}
