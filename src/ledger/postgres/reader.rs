//! Reads the journal on a connection of its own: changes nothing and waits for no writer.

use std::{collections::BTreeMap, time::Duration};

use tokio_postgres::Client;
use uuid::Uuid;

use super::{
    home::Home,
    in_time,
    own::Own,
    read, readings, regressed,
    session::{Server, Session},
};
use crate::{
    audit::Record,
    domain::{Identity, Kid, Scope, SequenceNumber},
    ledger::{
        EngineError, Kept, Quarantined, Reads,
        chain::{Heads, Position, StoredRecord},
        encoding::stored,
        place::{Journal, Stretch},
        step::{Holds, Quote},
        stops::Stops,
    },
};

/// So many times as long as an exchange may take, the answer to a question about the whole journal may.
const PATIENCE: u32 = 6;

/// A connection that only reads.
pub struct Reader {
    runtime: Own,
    session: Session,
    /// How long an exchange may take.
    timeout: Duration,
}

impl Reader {
    /// Connects.
    ///
    /// # Errors
    /// Where the server cannot be used, or is another than the one that this process writes to.
    pub fn open(server: &Server) -> Result<Self, EngineError> {
        let runtime = Own::new()?;
        let session = runtime.block_on(async {
            let session = Box::pin(Session::open(server)).await?;
            let home = in_time(server.timeout, Home::of(&session.client)).await?;
            server.writer.is_at(&home).map(|()| session)
        })?;
        Ok(Self::of(runtime, session, server.timeout))
    }

    /// On a session that is open.
    pub(super) fn of(runtime: Own, session: Session, timeout: Duration) -> Self {
        Self { runtime, session, timeout }
    }

    /// The answer to what is asked of the journal, which may be long. Of a server that is gone none ever comes.
    fn ask<T>(&self, answer: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
        self.runtime.block_on(in_time(self.timeout.saturating_mul(PATIENCE), answer))
    }

    /// What it reads by.
    pub(super) fn parts(&self) -> (&Own, &Client) {
        (&self.runtime, &self.session.client)
    }

    /// Leaves a note of a read, durably.
    pub(in crate::ledger) fn note(&self, line: &str) -> Result<(), EngineError> {
        self.session.was_warned();
        self.runtime.block_on(in_time(self.timeout, readings::note(&self.session.client, line)))?;
        self.session.unwarned()
    }
}

impl Reads for Reader {
    fn quote(&mut self, identity: &Identity) -> Result<Option<Quote>, EngineError> {
        self.runtime.block_on(in_time(self.timeout, read::quote_of(&self.session.client, identity)))
    }

    fn records_after(&mut self, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError> {
        self.runtime.block_on(in_time(self.timeout, read::records_after(&self.session.client, id, count)))
    }

    fn kids(&mut self) -> Result<BTreeMap<Kid, Kept>, EngineError> {
        self.runtime.block_on(in_time(self.timeout, read::all_kids(&self.session.client)))
    }

    fn stops(&mut self) -> Result<Stops, EngineError> {
        self.runtime.block_on(in_time(self.timeout, read::all_stops(&self.session.client)))
    }

    fn holds(&mut self) -> Result<Holds, EngineError> {
        self.runtime.block_on(in_time(self.timeout, read::all_holds(&self.session.client)))
    }

    fn numbered(&mut self, scope: &Scope, sequence: SequenceNumber) -> Result<Option<Quote>, EngineError> {
        let number = stored(sequence.get())?;
        self.runtime.block_on(in_time(self.timeout, read::numbered(&self.session.client, scope, number)))
    }

    fn last_taken(&mut self, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
        self.runtime.block_on(in_time(self.timeout, read::last_taken(&self.session.client, scope)))
    }
}

impl Journal for Reader {
    fn lanes(&self) -> Result<Vec<Stretch>, EngineError> {
        let sql = "SELECT lane, first_idx, first_link, next_idx, link FROM lane ORDER BY lane COLLATE \"C\"";
        let rows = self.ask(read::rows(&self.session.client, sql, &[]))?;
        let position = |row, index, link| {
            let next_index = read::checked(row, index, |index: i64| index.try_into().ok())?;
            Ok::<_, EngineError>(Position { next_index, link: read::digest(row, link)? })
        };
        rows.iter()
            .map(|row| {
                Ok(Stretch { lane: read::value(row, 0)?, first: position(row, 1, 2)?, head: position(row, 3, 4)? })
            })
            .collect()
    }

    fn records(&self, lane: &str, from: u64, count: u32) -> Result<Vec<StoredRecord>, EngineError> {
        let (from, count) = (stored(from)?, i64::from(count));
        let sql = "WHERE lane = $1 AND idx >= $2 ORDER BY idx LIMIT $3";
        self.ask(read::records(&self.session.client, sql, &[&lane, &from, &count]))
    }

    fn tail(&self, count: u32) -> Result<Vec<StoredRecord>, EngineError> {
        let mut records = self.ask(read::newest(&self.session.client, count))?;
        records.reverse();
        Ok(records)
    }

    fn scopes(&self) -> Result<Vec<(Scope, SequenceNumber)>, EngineError> {
        self.ask(read::scopes(&self.session.client))
    }

    fn links(&self, lane: &str, from: u64, count: u32) -> Result<Vec<Position>, EngineError> {
        self.ask(read::links(&self.session.client, lane, from, count))
    }

    fn checkpoints(&self, size: u64, count: u32) -> Result<Vec<(u64, String)>, EngineError> {
        self.ask(read::checkpoints(&self.session.client, size, count))
    }

    fn newest_checkpoint(&self) -> Result<Option<(u64, String)>, EngineError> {
        self.ask(read::newest_checkpoint(&self.session.client))
    }

    fn shipped(&self) -> Result<BTreeMap<String, u64>, EngineError> {
        self.ask(read::shipped(&self.session.client))
    }

    fn quarantined(&self) -> Result<Vec<Quarantined>, EngineError> {
        self.ask(read::quarantined(&self.session.client))
    }

    fn gone_back(&self, heads: &Heads) -> Result<Vec<String>, EngineError> {
        let now = self.lanes()?.into_iter().map(|stretch| (stretch.lane, stretch.head)).collect();
        self.ask(regressed(&self.session.client, heads, &now))
    }

    fn holds(&self) -> Result<Holds, EngineError> {
        self.ask(read::all_holds(&self.session.client))
    }

    fn record(&self, id: &Uuid) -> Result<Option<StoredRecord>, EngineError> {
        self.ask(read::record(&self.session.client, *id))
    }
}
