//! `quotesign ledger gaps`: every number that no released quote carries, and why. Read from the journal, so that it can
//! be told from what the callers say.

use std::{collections::VecDeque, time::Duration};

use clap::Args;
use serde_json::json;

use crate::{
    audit::Record,
    clock::UtcTime,
    domain::Scope,
    json::shown,
    ledger::{Journal, Stretch},
};

use super::super::{ConfigPath, Failure, noted::Noted, out::say};
use book::{Book, Gap};

mod book;

/// How many rows are read at once.
const PAGE: u32 = 1000;
/// How far the clocks of two gateways, and a record's time from when it was journalled, may be apart.
const SLACK: Duration = Duration::from_mins(1);
/// What is said of a journal that does not begin with its first record.
const PRUNED: &str = "the journal's oldest records were pruned: of numbers from before nothing is told";

/// Exit codes: 0 told, 1 records were taken out of the journal, 2 not understood, 3 it was pruned meanwhile: to be run once more.
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

impl Gaps {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let scope = self.scope.as_deref().map(scope_of).transpose()?;
        let told = scope.iter().map(|_| "scope".to_owned()).collect();
        let journal = Noted::open(&self.path.load()?, "ledger gaps", told)?.journal()?;
        // Before the lanes: what is taken later is in no lane as they stand then.
        let lasts = journal.scopes().map_err(Failure::failed)?;
        let lanes = journal.lanes().map_err(Failure::failed)?;
        let is_pruned = lanes.iter().any(|lane| lane.first.next_index > 0);
        let mut book = read(&*journal, &lanes)?;
        book.ends_with(lasts);
        if let Some(scope) = scope.as_ref().filter(|scope| !book.knows(scope.as_str())) {
            return Err(Failure::unfit(format!("--scope: neither the ledger nor any record has `{scope}`")));
        }
        let gaps = book.gaps().into_iter();
        let gaps: Vec<Gap> =
            gaps.filter(|gap| scope.as_ref().is_none_or(|scope| *scope.as_str() == gap.scope)).collect();
        if self.json {
            tell_programs(&gaps, is_pruned)?;
        } else {
            tell_people(&gaps, is_pruned);
        }
        if gaps.iter().any(|gap| gap.by == "unknown") {
            return Err(Failure::failed(
                "records were taken out of the journal: `quotesign audit verify`, with a checkpoint or head that was kept, may say where",
            ));
        }
        Ok(())
    }
}

/// A scope, however it is spaced.
fn scope_of(text: &str) -> Result<Scope, Failure> {
    let (environment, partner, corridor) = Scope::parts(text).ok_or_else(|| {
        Failure::unfit(format!("--scope: `{text}` is none: write it as `[\"production\",\"acme-remit\",\"GB-IN\"]`"))
    })?;
    Ok(Scope::new(environment, &partner, corridor.as_ref()))
}

fn tell_programs(gaps: &[Gap], is_pruned: bool) -> Result<(), Failure> {
    for gap in gaps {
        say!("{}", serde_json::to_string(gap).map_err(Failure::failed)?);
    }
    if is_pruned {
        say!("{}", json!({ "pruned": PRUNED }));
    }
    Ok(())
}

fn tell_people(gaps: &[Gap], is_pruned: bool) {
    for gap in gaps {
        let numbers =
            if gap.first == gap.last { gap.first.to_string() } else { format!("{} to {}", gap.first, gap.last) };
        say!("{}", shown(&format!("{} {numbers}: {} ({})", gap.scope, gap.why, gap.by)));
    }
    let count: u64 = gaps.iter().map(|gap| gap.last - gap.first + 1).sum();
    say!("{count} numbers without a released quote, in {} places", gaps.len());
    if is_pruned {
        say!("{PRUNED}");
    }
}

/// A lane, read on to where it stood at first: what others wrote since may follow on what is not read.
struct Reading<'a> {
    lane: &'a Stretch,
    next: u64,
    page: VecDeque<Record>,
}

impl Reading<'_> {
    fn fill(&mut self, journal: &dyn Journal) -> Result<(), Failure> {
        let left = self.lane.head.next_index.saturating_sub(self.next);
        if !self.page.is_empty() || left == 0 {
            return Ok(());
        }
        let count = PAGE.min(left.try_into().unwrap_or(PAGE));
        let page = journal.records(&self.lane.lane, self.next, count).map_err(Failure::failed)?;
        if page.first().is_none_or(|first| first.index > self.next) && self.is_pruned(journal)? {
            let text = "the journal was pruned past where it was read; run it once more, behind a `quotesign ledger hold` if need be";
            return Err(Failure { code: 3, text: text.to_owned() });
        }
        self.next = page.last().map_or(self.lane.head.next_index, |last| last.index.saturating_add(1));
        for stored in page.iter().filter(|stored| stored.index < self.lane.head.next_index) {
            let fault = |fault| Failure::failed(format!("record {}: {fault}", stored.index));
            self.page.push_back(serde_json::from_slice(&stored.bytes).map_err(fault)?);
        }
        Ok(())
    }

    /// Whether the lane begins behind where it is to be read on by now.
    fn is_pruned(&self, journal: &dyn Journal) -> Result<bool, Failure> {
        let lanes = journal.lanes().map_err(Failure::failed)?;
        Ok(lanes.iter().any(|now| now.lane == self.lane.lane && now.first.next_index > self.next))
    }
}

/// Reads the lanes side by side, in the order of their records' times, so that what belongs together is held for a moment alone.
fn read(journal: &dyn Journal, lanes: &[Stretch]) -> Result<Book, Failure> {
    let readings = lanes.iter().map(|lane| Reading { lane, next: lane.first.next_index, page: VecDeque::new() });
    let mut readings: Vec<Reading<'_>> = readings.collect();
    for reading in &mut readings {
        reading.fill(journal)?;
    }
    let mut book = Book::new(whole_since(&readings));
    loop {
        let oldest = readings.iter_mut().filter(|reading| !reading.page.is_empty());
        let Some(oldest) = oldest.min_by_key(|reading| reading.page.front().map(|record| record.at)) else {
            return Ok(book);
        };
        if let Some(record) = oldest.page.pop_front() {
            book.note(&record);
        }
        oldest.fill(journal)?;
    }
}

/// Since when nothing was pruned; absent where nothing was at all. Of one lane alone what is there follows on what was pruned.
fn whole_since(readings: &[Reading<'_>]) -> Option<UtcTime> {
    let pruned = readings.iter().filter(|reading| reading.lane.first.next_index > 0);
    let begin = pruned.filter_map(|reading| Some(reading.page.front()?.at)).max()?;
    Some(if readings.len() == 1 { UtcTime::from_millis(0) } else { begin.plus(SLACK) })
}

#[cfg(test)]
mod tests {
    use crate::{
        audit::{Context, Event, Facts},
        domain::{CorrelationId, Environment},
        ledger::{Done, Engine as _, Op, Place, PruneJournal, Store, chain::Position, sqlite::Sqlite},
    };

    use super::*;

    #[test]
    fn a_journal_that_is_pruned_past_where_it_is_read_is_not_told_as_one_with_records_missing() {
        let home = tempfile::tempdir().unwrap();
        let (file, here) = (home.path().join("ledger.sqlite"), Environment::Sandbox);
        Sqlite::migrate(&file, here).unwrap();
        let mut engine = Sqlite::open(&file, here).unwrap();
        let context = || Context::new(CorrelationId::made(), here, "ab".repeat(32), 1);
        let at = |millis: i64| UtcTime::from_millis(1_765_000_000_000 + millis);
        for second in 0..4 {
            let record = Record::new(Event::Seeded, at(1000 * second), context(), Facts::default());
            engine.apply(&[Op::Record(record)]).unwrap();
        }
        let journal = Place { store: Store::Sqlite(file), anchor: None }.journal().unwrap();
        let lanes = journal.lanes().unwrap();
        let [lane] = &lanes[..] else { panic!("one lane") };
        let mut reading = Reading { lane, next: 1, page: VecDeque::new() };
        let second = journal.records("", 1, 1).unwrap().pop().unwrap();
        let prune = PruneJournal {
            lane: String::new(),
            from: lane.first,
            to: Position { next_index: 2, link: second.link.unwrap() },
            newest: at(1000),
            before: at(2000),
            again: Vec::new(),
            context: context(),
            now: at(5000),
        };
        let done = engine.apply(&[Op::PruneJournal(prune)]).unwrap().pop().unwrap().unwrap();
        assert!(matches!(done, Done::PrunedJournal(2)), "{done:?}");
        let Err(refused) = reading.fill(&*journal) else { panic!("it was read") };
        assert!(refused.text.contains("run it once more"), "{}", refused.text);
        assert_eq!(refused.code, 3);
        reading.next = 2;
        reading.fill(&*journal).unwrap();
        assert_eq!(reading.page.len(), 2, "what is there can be read, up to where it stood");
        // What somebody took out is for the book to find.
        let gone = "DELETE FROM audit WHERE idx = 2";
        rusqlite::Connection::open(home.path().join("ledger.sqlite")).unwrap().execute(gone, ()).unwrap();
        let mut reading = Reading { lane, next: 2, page: VecDeque::new() };
        reading.fill(&*journal).unwrap();
        assert_eq!(reading.page.len(), 1);
    }
}
