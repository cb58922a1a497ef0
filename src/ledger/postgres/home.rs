//! Which server the ledger is at. Where another has taken over, what was acknowledged may be gone, and it may be another gateway
//! that knows of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio_postgres::Client;

use super::{read, session::definite};
use crate::ledger::EngineError;

/// The longest that a gateway which cannot reach its ledger waits before it tries again, and half as much again.
const AGAIN: Duration = Duration::from_secs(8);
/// Whatever is decided after this knows it.
const HALT_ALL: &str = "SELECT pg_advisory_xact_lock(7810769);
    UPDATE meta SET stops = stops + 1; INSERT INTO stop VALUES ('halted/all') ON CONFLICT DO NOTHING";

/// A server: no other has the same, and itself not after it was started anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Home {
    /// The cluster, the database in it, and its timeline. A standby that took over has another, and so has what was restored from a
    /// dump.
    history: String,
    since: String,
}

/// Where the writer of this process is, for whoever reads beside it; nowhere where nobody writes.
#[derive(Debug, Clone, Default)]
pub struct WriterAt(Arc<At>);

#[derive(Debug, Default)]
struct At {
    home: Mutex<Option<Home>>,
    /// Somebody has reached another server by the same address.
    is_doubted: AtomicBool,
}

/// What a writer makes of the servers that it finds.
#[derive(Debug)]
pub(super) struct Lookout {
    writer: WriterAt,
    /// Without a synchronous standby what was acknowledged may be gone on another server.
    may_lose: bool,
    /// How long nothing is written to one that has taken over: by then each gateway that lives has tried to reach it.
    settles: Duration,
    /// Where the others were kept from signing.
    halted: Option<String>,
}

impl Home {
    /// Of the server that `client` has reached.
    pub async fn of(client: &Client) -> Result<Self, EngineError> {
        let sql = "SELECT (SELECT system_identifier FROM pg_control_system()) || '/'
                     || (SELECT oid FROM pg_database WHERE datname = current_database()) || '/'
                     || left(pg_walfile_name(pg_current_wal_lsn()), 8),
                     extract(epoch FROM pg_postmaster_start_time())::text";
        let rows = read::rows(client, sql, &[]).await?;
        let row = rows.first().ok_or_else(|| EngineError::Unknown("the server said nothing of itself".to_owned()))?;
        Ok(Self { history: read::value(row, 0)?, since: read::value(row, 1)? })
    }
}

impl WriterAt {
    /// Whether what is read at `home` is of the server that is written to.
    ///
    /// # Errors
    /// Where it is another's: one that a failover has left behind, or that the writer, which is told, has not found yet.
    pub(super) fn is_at(&self, home: &Home) -> Result<(), EngineError> {
        if self.0.home.lock().as_ref().is_none_or(|own| own == home) {
            return Ok(());
        }
        self.0.is_doubted.store(true, Ordering::Release);
        Err(EngineError::Away("what reads has reached another server than what writes".to_owned()))
    }
}

impl Lookout {
    pub fn new(writer: WriterAt, high_availability: bool, timeout: Duration) -> Self {
        // Opened anew it takes up to three exchanges.
        let settles = AGAIN.saturating_add(timeout.saturating_mul(3));
        Self { writer, may_lose: !high_availability, settles, halted: None }
    }

    /// The writer is there.
    pub fn is(&mut self, home: &Home) {
        *self.writer.0.home.lock() = Some(home.clone());
        self.writer.0.is_doubted.store(false, Ordering::Release);
        self.halted = None;
    }

    /// Whether the writer is where others are.
    ///
    /// # Errors
    /// Where somebody has reached another server: it is to be reached anew.
    pub fn is_sure(&self) -> Result<(), EngineError> {
        if self.writer.0.is_doubted.swap(false, Ordering::AcqRel) {
            return Err(EngineError::Unknown("the ledger's address leads to another server now".to_owned()));
        }
        Ok(())
    }

    /// Whether `there`, which `client` has reached, may be written to.
    ///
    /// # Errors
    /// As long as another gateway may still have to say that something is gone.
    pub async fn is_settled(&self, client: &Client, there: &Home) -> Result<(), EngineError> {
        if !self.may_lose {
            return Ok(());
        }
        let sql = "INSERT INTO home SELECT $1,
                     CASE WHEN EXISTS (SELECT 1 FROM home) THEN clock_timestamp() ELSE '-infinity' END
                   ON CONFLICT DO NOTHING";
        read::rows(client, sql, &[&there.history]).await?;
        let sql =
            "SELECT found_at < clock_timestamp() - $2::bigint * interval '1 millisecond' FROM home WHERE history = $1";
        let settles = i64::try_from(self.settles.as_millis()).unwrap_or(i64::MAX);
        let rows = read::rows(client, sql, &[&there.history, &settles]).await?;
        if rows.first().is_some_and(|row| row.get(0)) {
            return Ok(());
        }
        let wait = self.settles.as_secs();
        Err(EngineError::Away(format!(
            "another server has taken over; for {wait} s each gateway can say whether anything is gone"
        )))
    }

    /// Keeps every gateway from signing, once for each server, and says why this one does not: what was acknowledged is not there, and
    /// the others may not know. Somebody has to decide, and to resume. With a synchronous standby that is so of what `is_own` alone: of
    /// others' lanes something may have been seen that nobody was told of.
    pub async fn has_lost(&mut self, client: &Client, there: &Home, is_own: bool, why: String) -> EngineError {
        if (self.may_lose || is_own) && self.halted.as_ref() != Some(&there.history) {
            match client.batch_execute(HALT_ALL).await.map_err(definite) {
                Ok(()) => {
                    self.halted = Some(there.history.clone());
                    tracing::error!(why, "signing is halted for all gateways of this ledger, until it is resumed");
                }
                Err(fault) => tracing::error!(why, %fault, "signing could not be halted for the other gateways"),
            }
        }
        EngineError::Unfit(why)
    }
}
