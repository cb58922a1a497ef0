//! Tries records in quarantine again: whoever has mended the collector need do nothing else. A few at a time behind each round, so
//! that what is new waits for none of them.

use std::time::{Duration, Instant};

use super::{Lanes, Shipping};
use crate::{
    ledger::{EngineError, Shipment},
    telemetry::otlp::{exporter::Answer, records::LogRecords, shipper::Collector as _},
};

/// How long after a pass over them the next one begins; the first does at the start.
const AGAIN: Duration = Duration::from_mins(10);
/// So many are tried behind a round.
const AT_ONCE: usize = 8;
/// So many that are refused again end a pass. The next goes on behind them, so that they are in nobody's way.
const REFUSED_MAX: usize = 64;

/// How far the trials have come.
#[derive(Default)]
pub(super) struct Trials {
    /// The last that was tried.
    behind: Option<(String, u64)>,
    /// When the last pass ended.
    ended_at: Option<Instant>,
    /// How many are still to be tried in this pass; 0 where none is under way.
    left: usize,
    taken: usize,
    refused: usize,
    why: String,
}

impl Trials {
    /// Those that come next, all of one lane; none where it is not time.
    fn next(&mut self, lanes: &Lanes) -> Option<(String, Vec<u64>)> {
        let mine = || lanes.aside.iter().filter(|(lane, _)| lanes.next.contains_key(lane));
        if self.left == 0 {
            if self.ended_at.is_some_and(|at| at.elapsed() < AGAIN) {
                return None;
            }
            let Self { behind, .. } = std::mem::take(self);
            *self = Self { behind, left: mine().count(), ..Self::default() };
        }
        let is_behind = |at: &&(String, u64)| self.behind.as_ref().is_none_or(|behind| *at > behind);
        let (lane, from) = mine().find(is_behind).or_else(|| mine().next())?;
        let of_lane = mine().filter(|(of, index)| of == lane && index >= from).map(|(_, index)| *index);
        let indexes: Vec<_> = of_lane.take(AT_ONCE.min(self.left)).collect();
        self.left = self.left.saturating_sub(indexes.len());
        self.behind = indexes.last().map(|last| (lane.clone(), *last));
        Some((lane.clone(), indexes))
    }

    fn end(&mut self) {
        (self.left, self.ended_at) = (0, Some(Instant::now()));
        let Self { taken, refused, why, .. } = self;
        if *refused > 0 || !why.is_empty() {
            tracing::warn!(taken, refused, why, "the collector refuses records that are in quarantine once more");
        }
    }
}

impl Shipping {
    /// Where that is due, and only while the collector takes what is sent to it. A fault here is told, and left to the next pass.
    pub(super) async fn try_again(&self, trials: &mut Trials, lanes: &mut Lanes) {
        let Some((lane, indexes)) = trials.next(lanes) else { return };
        let records = match self.read(&lane, indexes).await {
            Ok(records) => records,
            Err(fault) => {
                trials.why = fault.to_string();
                return trials.end();
            }
        };
        let mut taken = Vec::new();
        let mut is_over = false;
        for (index, record) in &records {
            match self.to.take(record).await {
                Answer::Taken { rejected: 0, .. } => taken.push(*index),
                Answer::Taken { why, .. } | Answer::TooLarge(why) | Answer::Bad(why) => {
                    (trials.refused, trials.why) = (trials.refused + 1, why);
                }
                Answer::Denied(why) | Answer::Later { why, .. } => (is_over, trials.why) = (true, why),
            }
            is_over |= trials.refused >= REFUSED_MAX;
            if is_over {
                // The next pass goes on behind it.
                trials.behind = Some((lane.clone(), *index));
                break;
            }
        }
        trials.taken += taken.len();
        let is_noted = taken.is_empty() || self.release(lane, taken, lanes).await;
        if is_over || !is_noted || trials.left == 0 {
            trials.end();
        }
    }

    /// Each of the records at these places, read beside everything.
    async fn read(&self, lane: &str, indexes: Vec<u64>) -> Result<Vec<(u64, LogRecords)>, EngineError> {
        let (place, of) = (self.place.clone(), lane.to_owned());
        let read = move || {
            let (journal, mut records) = (place.journal()?, Vec::new());
            for index in indexes {
                let found = journal.records(&of, index, 1)?;
                let found = found.iter().filter(|stored| stored.index == index);
                records.extend(found.map(|stored| (index, LogRecords::one(&of, stored))));
            }
            Ok(records)
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|fault| EngineError::Away(fault.to_string())).flatten()
    }

    /// They are in quarantine no more. Where that cannot be taken down, they are sent once more by the next pass.
    async fn release(&self, lane: String, taken: Vec<u64>, lanes: &mut Lanes) -> bool {
        let next_index = lanes.next.get(&lane).copied().unwrap_or_default();
        let shipment = Shipment { lane: lane.clone(), next_index, quarantined: Vec::new(), taken: taken.clone() };
        let noted = self.pipeline.ledger.ship(shipment).await;
        match &noted {
            Ok(()) => {
                self.pipeline.backlog.shipped(taken.len() as u64);
                lanes.aside.retain(|(of, index)| *of != lane || !taken.contains(index));
                tracing::warn!(lane, indexes = ?taken, "the collector has taken records that were in quarantine");
            }
            Err(fault) => tracing::warn!(%fault, lane, "what was taken out of quarantine could not be taken down"),
        }
        noted.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(aside: &[(&str, u64)]) -> Lanes {
        Lanes {
            aside: aside.iter().map(|(lane, index)| ((*lane).to_owned(), *index)).collect(),
            next: [("a", 900), ("b", 900)].map(|(lane, next)| (lane.to_owned(), next)).into(),
            ..Lanes::default()
        }
    }

    #[test]
    fn every_record_has_its_turn_and_a_pass_ends() {
        let many: Vec<_> = (0..10).map(|index| ("a", index)).chain([("b", 3), ("theirs", 1)]).collect();
        let lanes = lanes(&many);
        let mut trials = Trials::default();
        let pass = |trials: &mut Trials| {
            let mut slices = Vec::new();
            while let Some(slice) = trials.next(&lanes) {
                slices.push(slice);
                if trials.left == 0 {
                    trials.end();
                }
            }
            slices
        };
        let of = |lane: &str, indexes: std::ops::Range<u64>| (lane.to_owned(), indexes.collect::<Vec<_>>());
        assert_eq!(pass(&mut trials), [of("a", 0..8), of("a", 8..10), of("b", 3..4)]);
        assert_eq!(pass(&mut trials), [], "the next one is not due");
        // One that ended in the middle is gone on with.
        trials = Trials { behind: Some(("a".to_owned(), 8)), ..Trials::default() };
        assert_eq!(pass(&mut trials), [of("a", 9..10), of("b", 3..4), of("a", 0..8), of("a", 8..9)]);
    }

    #[test]
    fn without_any_there_is_no_pass() {
        assert_eq!(Trials::default().next(&lanes(&[])), None);
        assert_eq!(Trials::default().next(&lanes(&[("theirs", 4)])), None);
    }
}
