//! Tries records in quarantine again: whoever has mended the collector need do nothing else.

use std::time::{Duration, Instant};

use super::{Lanes, Shipping};
use crate::{
    ledger::{EngineError, Shipment},
    telemetry::otlp::{exporter::Answer, records::Shippable, shipper::Collector as _},
};

/// How often: at the start, and then.
const AGAIN: Duration = Duration::from_mins(10);
/// So many of a lane are read at once.
const AT_ONCE: usize = 512;
/// So many that are refused again end it, until the next time.
const REFUSED_MAX: usize = 16;

/// What the collector did with a lane's.
#[derive(Default)]
struct Tried {
    taken: Vec<u64>,
    refused: usize,
}

impl Shipping {
    /// Where that is due, and only while the collector takes what is sent to it. A fault here is told, and left to the next time.
    pub(super) async fn try_again(&self, lanes: &mut Lanes) {
        if lanes.aside.is_empty() || lanes.tried_at.is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        lanes.tried_at = Some(Instant::now());
        let mine: Vec<_> = lanes.next.iter().map(|(lane, next)| (lane.clone(), *next)).collect();
        for (lane, next_index) in mine {
            let indexes: Vec<_> = lanes.aside.iter().filter(|(of, _)| *of == lane).map(|(_, index)| *index).collect();
            let Some(records) = self.read(&lane, indexes).await else { return };
            let is_full = records.len() >= AT_ONCE;
            let Tried { taken, refused } = self.try_all(&records).await;
            if !taken.is_empty() {
                self.release(Shipment { lane, next_index, quarantined: Vec::new(), taken }).await;
            }
            if refused >= REFUSED_MAX {
                return;
            }
            if is_full && refused == 0 {
                // The others are tried behind the next page.
                lanes.tried_at = None;
            }
        }
    }

    /// The records at these places, as many as are tried at once, read beside everything.
    async fn read(&self, lane: &str, indexes: Vec<u64>) -> Option<Vec<Shippable>> {
        if indexes.is_empty() {
            return Some(Vec::new());
        }
        let (place, of) = (self.place.clone(), lane.to_owned());
        let read = move || {
            let (journal, mut records) = (place.journal()?, Vec::new());
            for index in indexes.into_iter().take(AT_ONCE) {
                let found = journal.records(&of, index, 1)?;
                records.extend(found.iter().filter(|stored| stored.index == index).map(|at| Shippable::new(&of, at)));
            }
            Ok::<_, EngineError>(records)
        };
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.map_err(|fault| EngineError::Away(fault.to_string())).flatten();
        read.inspect_err(|fault| tracing::warn!(%fault, lane, "the records in quarantine cannot be read")).ok()
    }

    async fn try_all(&self, records: &[Shippable]) -> Tried {
        let mut tried = Tried::default();
        for record in records {
            match self.to.take(std::slice::from_ref(record)).await {
                Answer::Taken { rejected: 0, .. } => tried.taken.push(record.index),
                Answer::Taken { .. } | Answer::TooLarge(_) | Answer::Bad(_) => tried.refused += 1,
                Answer::Denied(_) | Answer::Later { .. } => tried.refused = REFUSED_MAX,
            }
            if tried.refused >= REFUSED_MAX {
                break;
            }
        }
        tried
    }

    /// They are in quarantine no more; where that cannot be taken down, they are sent once more the next time.
    async fn release(&self, shipment: Shipment) {
        let (lane, taken) = (shipment.lane.clone(), shipment.taken.clone());
        match self.pipeline.ledger.ship(shipment).await {
            Ok(()) => {
                self.pipeline.backlog.shipped(taken.len() as u64);
                tracing::warn!(lane, indexes = ?taken, "the collector has taken records that were in quarantine");
            }
            Err(fault) => tracing::warn!(%fault, lane, "what was taken out of quarantine could not be taken down"),
        }
    }
}
