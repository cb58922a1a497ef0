//! Which server the ledger is at. Where another has taken over, what was acknowledged may be gone, and it may be another gateway
//! that knows of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_postgres::Client;

use super::{read, session::definite};
use crate::ledger::EngineError;

/// How long nothing is written to a server that has taken over: by then each gateway that lives has tried to reach it twice.
const SETTLES: Duration = Duration::from_secs(20);
/// Whatever is decided after this knows it.
const HALT_ALL: &str = "SELECT pg_advisory_xact_lock(7810769);
    UPDATE meta SET stops = stops + 1; INSERT INTO stop VALUES ('halted/all') ON CONFLICT DO NOTHING";

/// A server: no other has the same, and itself not after it was started anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Home {
    /// The cluster, the database in it, and its timeline. A standby that took over has another, and so has what was restored from a
    /// dump.
    history: String,
    since: String,
}

/// Where the writer is.
#[derive(Debug, Default)]
pub(super) struct Place {
    at: Arc<Mutex<Home>>,
    /// Since when there is another, and which.
    found: Option<(Instant, Home)>,
    /// Whether the others were kept from signing since it was there.
    has_halted: bool,
}

impl Home {
    /// Of the server that `client` has reached.
    pub async fn of(client: &Client) -> Result<Self, EngineError> {
        let sql = "SELECT (SELECT system_identifier FROM pg_control_system()) || '/'
                     || (SELECT oid FROM pg_database WHERE datname = current_database()) || '/'
                     || left(pg_walfile_name(pg_current_wal_lsn()), 8), pg_postmaster_start_time()::text";
        let rows = read::rows(client, sql, &[]).await?;
        let row = rows.first().ok_or_else(|| EngineError::Unknown("the server said nothing of itself".to_owned()))?;
        Ok(Self { history: read::value(row, 0)?, since: read::value(row, 1)? })
    }
}

impl Place {
    /// Known to those who read beside the writer: they read there.
    pub fn shared(&self) -> Arc<Mutex<Home>> {
        Arc::clone(&self.at)
    }

    /// The writer is there.
    pub fn is(&mut self, home: &Home) {
        self.at.lock().clone_from(home);
        (self.found, self.has_halted) = (None, false);
    }

    /// Whether the writer may be `there`. With a synchronous standby nothing can be gone.
    ///
    /// # Errors
    /// As long as another gateway may still have to say that something is.
    pub fn is_settled(&mut self, there: &Home, high_availability: bool) -> Result<(), EngineError> {
        if high_availability || self.at.lock().history == there.history {
            return Ok(());
        }
        let since = match &self.found {
            Some((since, found)) if found.history == there.history => *since,
            _ => {
                tracing::warn!(wait_s = SETTLES.as_secs(), "another server has taken over the ledger");
                self.found = Some((Instant::now(), there.clone()));
                return Err(waits());
            }
        };
        if since.elapsed() >= SETTLES { Ok(()) } else { Err(waits()) }
    }

    /// Keeps every gateway from signing, once, and says why this one does not: what it was acknowledged is not there, and the
    /// others may not know. Somebody has to decide, and to resume.
    pub async fn has_lost(&mut self, client: &Client, why: String) -> EngineError {
        if !self.has_halted {
            match client.batch_execute(HALT_ALL).await.map_err(definite) {
                Ok(()) => {
                    self.has_halted = true;
                    tracing::error!(why, "signing is halted for all gateways of this ledger, until it is resumed");
                }
                Err(fault) => tracing::error!(why, %fault, "signing could not be halted for the other gateways"),
            }
        }
        EngineError::Unfit(why)
    }
}

fn waits() -> EngineError {
    let wait = SETTLES.as_secs();
    EngineError::Away(format!(
        "another server has taken over; for {wait} s each gateway can say whether anything is gone"
    ))
}
