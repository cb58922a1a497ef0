//! Ships a stretch of the journal: in order, at least once, whatever the collector answers. What it will not take at once goes in
//! halves. One record that it will never take is set aside, but only by a collector that is well at that very time: one that
//! takes nothing at all is down, whatever it says.

use std::time::Duration;

use super::{exporter::Answer, records::LogRecords};

/// Who takes records.
pub trait Collector {
    /// Sends these, once.
    fn take(&self, records: &LogRecords) -> impl Future<Output = Answer> + Send;

    /// Waits a little before something is tried again.
    fn pause(&self, pause: Duration) -> impl Future<Output = ()> + Send;
}

/// What became of a stretch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shipped {
    /// The index of the next record to ship.
    pub next_index: u64,
    /// The records before it that were set aside, with what the collector said.
    pub aside: Vec<(u64, String)>,
    /// What it answered where not all of the stretch was settled.
    pub stuck: Option<Answer>,
}

/// So often a record is refused, while one that was taken before is taken again in between, before it is set aside.
const TRIALS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);
/// Where nothing was ever taken: so many records one after another, of which it takes none, are no bad records.
const SUSPECTS_MAX: usize = 16;

/// Sends `records`, which follow each other. Ends where the collector takes no more. `witness` is one that it took before, to see
/// whether it is well.
pub async fn ship(collector: &impl Collector, witness: Option<LogRecords>, records: &LogRecords) -> Shipped {
    let mut shipped =
        Shipped { next_index: records.first().map_or(0, |first| first.index), aside: Vec::new(), stuck: None };
    let mut witness = witness;
    let mut suspects: Vec<(LogRecords, String)> = Vec::new();
    let mut parts = vec![records.clone()];
    while let Some(records) = parts.pop() {
        let [first, rest @ ..] = records.marks() else { continue };
        let answer = collector.take(&records).await;
        let why = match &answer {
            Answer::Taken { rejected: 0, .. } => {
                let last = records.last();
                if let Some(answer) = shipped.try_suspects(collector, &last, &mut suspects).await {
                    shipped.stuck = Some(answer);
                    return shipped;
                }
                witness = Some(last);
                shipped.settle(&records);
                continue;
            }
            Answer::Taken { why, .. } | Answer::TooLarge(why) | Answer::Bad(why) => why.clone(),
            Answer::Denied(_) | Answer::Later { .. } => {
                shipped.stuck = Some(answer);
                return shipped;
            }
        };
        if !rest.is_empty() {
            let (before, after) = records.halves();
            parts.extend([after, before]);
            continue;
        }
        let verdict = match &witness {
            // Whatever it took beside this one, a single answer can be an accident.
            Some(witness) => try_alone(collector, witness, &records).await,
            // The first that is taken after it will tell.
            None if suspects.len() < SUSPECTS_MAX => {
                suspects.push((records, why));
                continue;
            }
            None => Verdict::Stuck(answer),
        };
        match verdict {
            Verdict::Taken => shipped.settle(&records),
            Verdict::NeverTaken => {
                shipped.aside.push((first.index, why));
                shipped.settle(&records);
            }
            Verdict::Stuck(answer) => {
                shipped.stuck = Some(answer);
                return shipped;
            }
        }
    }
    // Nothing has come after them by which to know.
    shipped.stuck = suspects.pop().map(|(_, why)| Answer::Bad(why));
    shipped
}

/// What is known of one record.
enum Verdict {
    Taken,
    NeverTaken,
    Stuck(Answer),
}

/// Whether a record that was refused is refused again and again by a collector that takes the witness in between.
async fn try_alone(collector: &impl Collector, witness: &LogRecords, record: &LogRecords) -> Verdict {
    for trial in 1..=TRIALS {
        collector.pause(PAUSE.saturating_mul(trial)).await;
        match collector.take(witness).await {
            Answer::Taken { rejected: 0, .. } => {}
            answer => return Verdict::Stuck(answer),
        }
        match collector.take(record).await {
            Answer::Taken { rejected: 0, .. } => return Verdict::Taken,
            Answer::Taken { .. } | Answer::TooLarge(_) | Answer::Bad(_) => {}
            answer @ (Answer::Denied(_) | Answer::Later { .. }) => return Verdict::Stuck(answer),
        }
    }
    Verdict::NeverTaken
}

impl Shipped {
    /// Everything up to the end of `records` was taken or is set aside.
    fn settle(&mut self, records: &LogRecords) {
        self.next_index = records.marks().last().map_or(self.next_index, |last| last.index.saturating_add(1));
    }

    /// Tries those again that came before anything was taken: at the very beginning of a lane, where alone one may come late.
    async fn try_suspects(
        &mut self,
        collector: &impl Collector,
        witness: &LogRecords,
        suspects: &mut Vec<(LogRecords, String)>,
    ) -> Option<Answer> {
        for (records, why) in suspects.drain(..) {
            match try_alone(collector, witness, &records).await {
                Verdict::Taken => {}
                Verdict::NeverTaken => self.aside.extend(records.first().map(|record| (record.index, why))),
                Verdict::Stuck(answer) => return Some(answer),
            }
            self.settle(&records);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        sync::Mutex,
    };

    use proptest::prelude::*;

    use super::{super::records::LogWriter, *};
    use crate::ledger::chain::StoredRecord;

    fn records(range: std::ops::Range<u64>) -> LogRecords {
        let mut writer = LogWriter::default();
        for index in range {
            let stored = StoredRecord { index, bytes: b"{}".to_vec(), leaf: [0; 32], link: None, id: None };
            assert!(writer.add("", &stored, usize::MAX));
        }
        writer.into_records()
    }

    /// A collector with a will of its own.
    #[derive(Debug, Default)]
    struct Willed {
        /// What it will never take.
        poison: BTreeSet<u64>,
        /// Whether it refuses all of a request that holds any of that, or takes the others.
        refuses_all: bool,
        /// The most it takes at once.
        most: usize,
        /// What it does with the next requests, the last first.
        moods: Mutex<Vec<Mood>>,
        taken: Mutex<Vec<u64>>,
    }

    #[derive(Debug, Clone, Copy)]
    enum Mood {
        Well,
        Busy,
        /// Takes it and does not say so.
        Silent,
        /// Takes nothing, and says that it is bad.
        Mad,
        Locked,
    }

    impl Collector for Willed {
        async fn pause(&self, _: Duration) {}

        async fn take(&self, records: &LogRecords) -> Answer {
            let mood = self.moods.lock().unwrap().pop().unwrap_or(Mood::Well);
            let text = || "x".to_owned();
            let (bad, good): (Vec<u64>, Vec<u64>) =
                records.marks().iter().map(|record| record.index).partition(|index| self.poison.contains(index));
            let mut taken = self.taken.lock().unwrap();
            match mood {
                Mood::Busy => return Answer::Later { after: None, why: text() },
                Mood::Mad => return Answer::Bad(text()),
                Mood::Locked => return Answer::Denied(text()),
                Mood::Well | Mood::Silent if records.marks().len() > self.most => return Answer::TooLarge(text()),
                Mood::Well | Mood::Silent if !bad.is_empty() && self.refuses_all => return Answer::Bad(text()),
                Mood::Silent => {
                    taken.extend(good);
                    return Answer::Later { after: None, why: text() };
                }
                Mood::Well => {}
            }
            taken.extend(good);
            Answer::Taken { rejected: bad.len() as u64, why: text() }
        }
    }

    prop_compose! {
        /// What a collector does next, with a few accidents among it, each of some requests: fewer than a record has trials.
        fn moods()(
            sane in prop::collection::vec(prop::sample::select(vec![Mood::Well, Mood::Well, Mood::Well, Mood::Busy, Mood::Silent, Mood::Locked]), 0..60),
            accidents in prop::collection::vec((any::<prop::sample::Index>(), 1_usize..20), 0..=TRIALS as usize),
        ) -> Vec<Mood> {
            let mut moods = sane;
            for (at, requests) in accidents {
                let at = at.index(moods.len() + 1);
                moods.splice(at..at, std::iter::repeat_n(Mood::Mad, requests));
            }
            moods
        }
    }

    prop_compose! {
        fn collectors()(
            poison in prop::collection::btree_set(0_u64..60, 0..5),
            refuses_all in any::<bool>(),
            most in 1_usize..80,
            moods in moods(),
        ) -> Willed {
            Willed { poison, refuses_all, most, moods: Mutex::new(moods), taken: Mutex::default() }
        }
    }

    #[tokio::test]
    async fn a_good_record_beside_a_bad_one_outlives_an_accident() {
        for accidents in 1..=TRIALS as usize {
            // Both are sent together, then the good one alone: what took others has a fault just then, and others later.
            let mut moods = vec![Mood::Well];
            moods.extend([Mood::Mad, Mood::Well].repeat(accidents));
            moods.reverse();
            let collector = Willed { poison: [2].into(), most: 100, moods: Mutex::new(moods), ..Willed::default() };
            let shipped = ship(&collector, Some(records(0..1)), &records(1..3)).await;
            let aside: Vec<u64> = shipped.aside.iter().map(|(index, _)| *index).collect();
            assert_eq!((shipped.next_index, aside, shipped.stuck), (3, vec![2], None), "{accidents}");
        }
    }

    proptest! {
        /// Everything arrives, in order, but what it will never take; that is set aside, and nothing else.
        #[test]
        fn all_arrives_in_order_and_only_what_is_never_taken_is_set_aside(collector in collectors()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (mut next, mut aside) = (0, BTreeMap::new());
            // What comes later tells what was bad from what was not taken: 60 good ones follow.
            for _ in 0..200 {
                let known = (0..next).rev().find(|index| !aside.contains_key(index)).map(|index| records(index..index + 1));
                let shipped = runtime.block_on(ship(&collector, known, &records(next..120)));
                prop_assert!(shipped.next_index >= next, "it never goes back");
                prop_assert!(shipped.stuck.is_some() || shipped.next_index == 120);
                next = shipped.next_index;
                aside.extend(shipped.aside);
                if next == 120 {
                    break;
                }
            }
            prop_assert_eq!(next, 120);
            prop_assert_eq!(aside.keys().copied().collect::<BTreeSet<_>>(), collector.poison.clone());
            let taken = collector.taken.lock().unwrap();
            let mut first = BTreeSet::new();
            let arrived: Vec<u64> = taken.iter().copied().filter(|index| first.insert(*index)).collect();
            let expected: Vec<u64> = (0..120).filter(|index| !collector.poison.contains(index)).collect();
            let mut in_order = arrived.clone();
            in_order.sort_unstable();
            prop_assert_eq!(&in_order, &expected, "nothing is missing");
            // Of the very first of a lane alone one may come late.
            let late = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count();
            prop_assert!(late <= SUSPECTS_MAX && arrived[2 * SUSPECTS_MAX..].is_sorted(), "{:?}", arrived);
        }

        /// One that takes nothing at all is down, whatever it says and for however long.
        #[test]
        fn a_collector_that_calls_everything_bad_has_nothing_set_aside(count in 1_u64..100, rounds in 1_usize..20) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let collector = Willed { most: 1000, moods: Mutex::new(vec![Mood::Mad; 10_000]), ..Willed::default() };
            for _ in 0..rounds {
                let shipped = runtime.block_on(ship(&collector, None, &records(0..count)));
                prop_assert_eq!((shipped.next_index, shipped.aside.len()), (0, 0));
                prop_assert!(shipped.stuck.is_some());
            }
            prop_assert!(collector.moods.lock().unwrap().len() > 10_000 - rounds * 40, "it is not asked for every single record");
        }
    }
}
