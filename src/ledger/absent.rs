//! A store that could not be reached at the start. A gateway serves its public keys without it, and signs once it can be
//! opened.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{
    Engine, EngineError, Holding, Kept, Lease, Op, OpenReads, Place, Reads, Shipment, Waiting,
    batch::{Growing, Replies},
    chain::Heads,
    step::{Holds, Quote},
    stops::Stops,
};
use crate::{
    audit::Record,
    clock::UtcTime,
    domain::{Environment, Identity, Kid, Scope, SequenceNumber},
};

/// The store of a place, opened at the first [`Engine::reopen`] that can.
pub struct Absent {
    place: Place,
    environment: Environment,
    /// Why it is not there.
    why: String,
    opened: Option<Box<dyn Engine>>,
}

impl Absent {
    /// The store of `place`, which could not be reached for the reason `why`.
    #[must_use]
    pub fn new(place: Place, environment: Environment, why: String) -> Self {
        Self { place, environment, why, opened: None }
    }

    fn engine(&mut self) -> Result<&mut Box<dyn Engine>, EngineError> {
        self.opened.as_mut().ok_or_else(|| EngineError::Away(self.why.clone()))
    }
}

impl Reads for Absent {
    fn quote(&mut self, identity: &Identity) -> Result<Option<Quote>, EngineError> {
        self.engine()?.quote(identity)
    }

    fn numbered(&mut self, scope: &Scope, sequence: SequenceNumber) -> Result<Option<Quote>, EngineError> {
        self.engine()?.numbered(scope, sequence)
    }

    fn records_after(&mut self, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError> {
        self.engine()?.records_after(id, count)
    }

    fn kids(&mut self) -> Result<BTreeMap<Kid, Kept>, EngineError> {
        self.engine()?.kids()
    }

    fn stops(&mut self) -> Result<Stops, EngineError> {
        self.engine()?.stops()
    }

    fn holds(&mut self) -> Result<Holds, EngineError> {
        self.engine()?.holds()
    }

    fn last_taken(&mut self, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
        self.engine()?.last_taken(scope)
    }
}

impl Engine for Absent {
    fn renew(&mut self, holding: &Holding) -> Result<Vec<Lease>, EngineError> {
        self.engine()?.renew(holding)
    }

    fn ship(&mut self, shipment: &Shipment) -> Result<(), EngineError> {
        self.engine()?.ship(shipment)
    }

    fn take_readings(&mut self) -> Result<Vec<Waiting>, EngineError> {
        self.engine()?.take_readings()
    }

    fn drop_readings(&mut self, places: &[i64]) -> Result<(), EngineError> {
        self.engine()?.drop_readings(places)
    }

    fn reads(&self) -> OpenReads {
        let place = self.place.clone();
        Box::new(move || place.reads())
    }

    fn reads_are_durable(&self) -> bool {
        self.place.reads_are_durable()
    }

    fn apply(&mut self, batch: &[Op]) -> Result<Replies, EngineError> {
        self.engine()?.apply(batch)
    }

    fn apply_growing(&mut self, batch: &mut dyn Growing) -> Result<Replies, EngineError> {
        self.engine()?.apply_growing(batch)
    }

    fn reopen(&mut self) -> Result<Option<Replies>, EngineError> {
        if let Some(engine) = &mut self.opened {
            return engine.reopen();
        }
        match self.place.open(self.environment) {
            Ok(engine) => {
                self.opened = Some(engine);
                Ok(None)
            }
            Err(error) => {
                self.why = error.to_string();
                Err(error)
            }
        }
    }

    fn heads(&self) -> Heads {
        self.opened.as_ref().map(|engine| engine.heads()).unwrap_or_default()
    }

    fn gone_back(&mut self, heads: &Heads) -> Result<Vec<String>, EngineError> {
        self.engine()?.gone_back(heads)
    }

    fn expired(&mut self, now: UtcTime, count: usize) -> Result<Vec<Identity>, EngineError> {
        self.engine()?.expired(now, count)
    }

    fn newest_records(&mut self) -> Result<Vec<Record>, EngineError> {
        self.engine()?.newest_records()
    }

    fn newest_record_at(&mut self) -> Result<Option<UtcTime>, EngineError> {
        self.engine()?.newest_record_at()
    }
}
