//! The database's tables: made and brought to this version under a lock, and stamped with their environment.

use tokio_postgres::Client;

use super::session::definite;
use crate::{domain::Environment, ledger::EngineError};

/// What brings a database of version n to version n + 1.
const MIGRATIONS: [&str; 5] = [
    include_str!("v1.sql"),
    include_str!("v2.sql"),
    include_str!("v3.sql"),
    include_str!("v4.sql"),
    include_str!("v5.sql"),
];
/// Of the advisory lock that one migration holds.
const LOCK: i64 = 7_810_768;

/// Makes the tables where there are none, and brings older ones to this version.
pub(super) async fn migrate(client: &mut Client, environment: Environment) -> Result<(), EngineError> {
    let transaction = client.transaction().await.map_err(definite)?;
    transaction.query("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(definite)?;
    transaction.batch_execute("CREATE SCHEMA IF NOT EXISTS quotesign").await.map_err(definite)?;
    let version = match stamp(transaction.client()).await? {
        Some((version, stamped)) => {
            same_environment(&stamped, environment)?;
            version
        }
        None => 0,
    };
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    for migration in MIGRATIONS.get(done..).ok_or_else(newer)? {
        transaction.batch_execute(migration).await.map_err(definite)?;
    }
    let sql = "INSERT INTO meta (one, version, environment) VALUES (true, $1, $2)
               ON CONFLICT (one) DO UPDATE SET version = $1";
    transaction.query(sql, &[&current(), &environment.as_str()]).await.map_err(definite)?;
    transaction.commit().await.map_err(|error| EngineError::Unknown(error.to_string()))
}

/// Refuses a database of another version or environment.
pub(super) async fn check(client: &Client, environment: Environment) -> Result<(), EngineError> {
    match stamp(client).await? {
        None => Err(unfit("was never migrated: run `quotesign ledger migrate`")),
        Some((version, _)) if version < current() => Err(unfit("has an older schema: run `quotesign ledger migrate`")),
        Some((version, _)) if version > current() => Err(newer()),
        Some((_, stamped)) => same_environment(&stamped, environment),
    }
}

/// The version and environment it bears; absent where it has no tables of ours.
async fn stamp(client: &Client) -> Result<Option<(i32, String)>, EngineError> {
    let there = client.query("SELECT to_regclass('quotesign.meta') IS NOT NULL", &[]).await.map_err(definite)?;
    if !there.first().is_some_and(|row| row.get(0)) {
        return Ok(None);
    }
    let rows = client.query("SELECT version, environment FROM quotesign.meta", &[]).await.map_err(definite)?;
    let row = rows.first().ok_or_else(|| unfit("bears no version"))?;
    Ok(Some((row.get(0), row.get(1))))
}

pub(super) fn current() -> i32 {
    i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX)
}

fn same_environment(stamped: &str, wanted: Environment) -> Result<(), EngineError> {
    if stamped == wanted.as_str() {
        return Ok(());
    }
    let why = format!("belongs to the environment `{stamped}`, not to `{wanted}`: name that environment's own");
    Err(unfit(&why))
}

fn newer() -> EngineError {
    unfit("has a newer schema than this gateway knows")
}

fn unfit(why: &str) -> EngineError {
    EngineError::Unfit(format!("the ledger's database {why}"))
}
