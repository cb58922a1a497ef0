//! What gateways write beside the batches: their leases, by the database's own clock, and how far the journal was shipped.

use std::time::Duration;

use tokio_postgres::Client;

use super::read;
use crate::{
    domain::Kid,
    ledger::{EngineError, Holding, LEASE, Lease, Shipment, encoding::stored},
};

/// A gateway that has been away for so long is no longer told of.
const GONE: &str = "1 hour";

/// Renews the lease of `replica`, and says which there are.
pub(super) async fn renew(client: &Client, replica: &str, holding: &Holding) -> Result<Vec<Lease>, EngineError> {
    let shown: Vec<&str> = holding.shown.iter().map(Kid::as_str).collect();
    let serial = stored(holding.serial)?;
    let sql = "INSERT INTO replica AS r (replica, seen_at, serial, serial_since, shown)
               VALUES ($1, clock_timestamp(), $2, clock_timestamp(), $3)
               ON CONFLICT (replica) DO UPDATE SET
                 seen_at = clock_timestamp(), serial = $2, shown = $3,
                 serial_since = CASE WHEN r.serial = $2 THEN r.serial_since ELSE clock_timestamp() END";
    read::rows(client, sql, &[&replica, &serial, &shown]).await?;
    let sql = format!(
        "SELECT replica, serial, shown, (extract(epoch FROM clock_timestamp() - seen_at) * 1000)::bigint,
                (extract(epoch FROM clock_timestamp() - serial_since) * 1000)::bigint
         FROM replica WHERE seen_at > clock_timestamp() - interval '{GONE}' ORDER BY replica"
    );
    let rows = read::rows(client, &sql, &[]).await?;
    let lease = |row| {
        let age = |column| {
            Ok::<_, EngineError>(Duration::from_millis(u64::try_from(read::value::<i64>(row, column)?).unwrap_or(0)))
        };
        let shown: Vec<String> = read::value(row, 2)?;
        let holding = Holding {
            serial: read::checked(row, 1, |serial: i64| serial.try_into().ok())?,
            // A kid that a later version would write and this one does not know is none that it could wait for.
            shown: shown.into_iter().filter_map(|kid| kid.try_into().ok()).collect(),
        };
        Ok(Lease { replica: read::value(row, 0)?, age: age(3)?, bundle_age: age(4)?, holding })
    };
    rows.iter().map(lease).collect()
}

/// Refuses the lane of a gateway that lives: whoever else takes it has that gateway sign nothing until it is started again.
pub(super) async fn is_free(client: &Client, replica: &str) -> Result<(), EngineError> {
    let sql = "SELECT (extract(epoch FROM clock_timestamp() - seen_at) * 1000)::bigint FROM replica WHERE replica = $1";
    let rows = read::rows(client, sql, &[&replica]).await?;
    let age = rows.first().map(|row| read::value::<i64>(row, 0)).transpose()?;
    let age = age.map(|age| Duration::from_millis(age.try_into().unwrap_or(0)));
    let Some(left) = age.and_then(|age| LEASE.checked_sub(age)) else { return Ok(()) };
    Err(EngineError::Unfit(format!(
        "the gateway `{replica}` is at the ledger, or was a moment ago: act through it, or end it and try again in {} s",
        left.as_secs().saturating_add(1)
    )))
}

/// Takes down how far a lane was shipped.
pub(super) async fn ship(client: &Client, shipment: &Shipment) -> Result<(), EngineError> {
    let Shipment { lane, next_index, quarantined, taken } = shipment;
    let indexes = quarantined.iter().map(|record| stored(record.index)).collect::<Result<Vec<_>, _>>()?;
    let why: Vec<&str> = quarantined.iter().map(|record| record.why.as_str()).collect();
    let taken = taken.iter().map(|index| stored(*index)).collect::<Result<Vec<_>, _>>()?;
    let sql = "WITH kept AS (
                 INSERT INTO quarantine SELECT $1, g.idx, g.why FROM unnest($3::bigint[], $4::text[]) AS g(idx, why)
                 ON CONFLICT DO NOTHING),
               gone AS (DELETE FROM quarantine WHERE lane = $1 AND idx = ANY ($5::bigint[]))
               INSERT INTO shipment AS s VALUES ($1, $2)
               ON CONFLICT (lane) DO UPDATE SET next_idx = greatest(s.next_idx, $2)";
    read::rows(client, sql, &[lane, &stored(*next_index)?, &indexes, &why, &taken]).await.map(drop)
}
