//! Which server the ledger is at. Where another has taken over, what was acknowledged may be gone, and it may be another gateway
//! that knows of it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use tokio_postgres::Client;

use super::{Open, read};
use crate::ledger::EngineError;

/// So long nothing is written to a server that has taken over, unless each gateway that lived has looked before: longer than an
/// address is kept that has changed.
const SETTLES: &str = "1 minute";

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
    pub fn new(writer: WriterAt, high_availability: bool) -> Self {
        Self { writer, may_lose: !high_availability }
    }

    /// The writer has reached this one. Who reads beside it reads there, also while it must not be written to.
    pub fn is_at(&self, home: &Home) {
        *self.writer.0.home.lock() = Some(home.clone());
        self.writer.0.is_doubted.store(false, Ordering::Release);
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

    /// Whether `there`, which `client` has reached, may be written to. `looked` is who finds nothing gone there; one that has just
    /// started knows of nothing.
    ///
    /// # Errors
    /// As long as another gateway may still have to say that something is gone.
    pub async fn is_settled(&self, client: &Client, there: &Home, looked: Option<&str>) -> Result<(), EngineError> {
        if !self.may_lose {
            return Ok(());
        }
        let sql = "INSERT INTO home SELECT $1,
                     CASE WHEN EXISTS (SELECT 1 FROM home) THEN clock_timestamp() ELSE '-infinity' END
                   ON CONFLICT DO NOTHING";
        read::rows(client, sql, &[&there.history]).await?;
        if let Some(replica) = looked {
            let sql = "INSERT INTO looked VALUES ($1, $2, false) ON CONFLICT DO NOTHING";
            read::rows(client, sql, &[&there.history, &replica]).await?;
        }
        // Those that lived have renewed their leases as late as anybody did at the server of before.
        let sql = format!(
            "SELECT h.found_at < clock_timestamp() - interval '{SETTLES}' OR NOT EXISTS (
                      SELECT 1 FROM replica r WHERE NOT EXISTS (
                        SELECT 1 FROM looked l WHERE l.history = h.history AND l.replica = r.replica)
                      AND r.seen_at > (SELECT max(b.seen_at) FROM replica b WHERE b.seen_at < h.found_at) - interval '10 s')
             FROM home h WHERE h.history = $1"
        );
        let rows = read::rows(client, &sql, &[&there.history]).await?;
        if rows.first().is_some_and(|row| row.get(0)) {
            return Ok(());
        }
        Err(EngineError::Away(format!(
            "another server has taken over; each gateway has {SETTLES} to say whether anything is gone"
        )))
    }

    /// Keeps every gateway from signing, once for each that says so of a server, and says why `replica` does not: what was
    /// acknowledged is not there, and the others may not know. Somebody has to decide, and to resume. With a synchronous standby that
    /// is so of what `is_own` alone: of others' lanes something may have been seen that nobody was told of.
    pub async fn has_lost(&self, open: &Open, replica: &str, is_own: bool, why: &str) -> EngineError {
        if self.may_lose || is_own {
            match halt_all(&open.session.client, &open.home, replica).await {
                Ok(true) => {
                    tracing::error!(why, "signing is halted for all gateways of this ledger, until it is resumed");
                }
                Ok(false) => {}
                Err(fault) => tracing::error!(why, %fault, "signing could not be halted for the other gateways"),
            }
        }
        EngineError::Unfit(why.to_owned())
    }
}

/// Whatever is decided after this knows it; whether it was done, and not before.
async fn halt_all(client: &Client, there: &Home, replica: &str) -> Result<bool, EngineError> {
    let sql = "WITH told AS (
                 INSERT INTO looked VALUES ($1, $2, true)
                 ON CONFLICT (history, replica) DO UPDATE SET has_lost = true WHERE NOT looked.has_lost RETURNING 1),
               locked AS (SELECT pg_advisory_xact_lock(7810769) FROM told),
               raised AS (UPDATE meta SET stops = stops + 1 WHERE EXISTS (SELECT 1 FROM locked)),
               halted AS (INSERT INTO stop SELECT 'halted/all' FROM locked ON CONFLICT DO NOTHING)
               SELECT EXISTS (SELECT 1 FROM told)";
    let rows = read::rows(client, sql, &[&there.history, &replica]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}
