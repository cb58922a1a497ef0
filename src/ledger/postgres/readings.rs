//! The notes of reads that wait in the database until a gateway has journalled them.

use tokio_postgres::Client;

use super::read;
use crate::ledger::{
    EngineError,
    reading::{WAITING_BYTES_MAX, Waiting},
};

/// So many are taken at once.
const TAKEN_MAX: i64 = 500;
/// So long nobody else is given what a gateway took. Who takes it later finds the records by their ids.
const TAKEN_FOR: &str = "10 seconds";

/// Leaves a note, durably.
pub(super) async fn note(client: &Client, line: &str) -> Result<(), EngineError> {
    let sql = "INSERT INTO reading (line)
               SELECT $1 WHERE octet_length($1) + (SELECT coalesce(sum(octet_length(line)), 0) FROM reading) < $2
               RETURNING place";
    let noted = read::rows(client, sql, &[&line, &i64::from(WAITING_BYTES_MAX)]).await?;
    if noted.is_empty() {
        return Err(EngineError::Unfit(
            "the table `reading` is full of notes that no gateway has journalled: start a gateway of this ledger, which \
             journals and removes them"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Takes some of those that wait.
pub(super) async fn take(client: &Client) -> Result<Vec<Waiting>, EngineError> {
    let sql = format!(
        "UPDATE reading SET taken_until = clock_timestamp() + interval '{TAKEN_FOR}'
         WHERE place IN (SELECT place FROM reading WHERE taken_until < clock_timestamp()
                         ORDER BY place LIMIT {TAKEN_MAX} FOR UPDATE SKIP LOCKED)
         RETURNING place, line"
    );
    let rows = read::rows(client, &sql, &[]).await?;
    rows.iter().map(|row| Ok((read::value(row, 0)?, read::value(row, 1)?))).collect()
}

/// Removes those that are records.
pub(super) async fn clear(client: &Client, places: &[i64]) -> Result<(), EngineError> {
    read::rows(client, "DELETE FROM reading WHERE place = ANY($1)", &[&places]).await.map(drop)
}
