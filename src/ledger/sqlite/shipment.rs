//! How far the journal was shipped, and what no collector would take.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, params};

use super::rows::checked;
use crate::ledger::{
    EngineError, Quarantined, Shipment,
    encoding::{index_of, stored},
};

pub(super) fn shipped(db: &Connection) -> Result<BTreeMap<String, u64>, EngineError> {
    let mut select = db.prepare_cached("SELECT lane, max(next_idx, 0) FROM shipment")?;
    let rows = select.query_map((), |row| Ok((row.get(0)?, checked(row, 1, index_of)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn quarantined(db: &Connection) -> Result<Vec<Quarantined>, EngineError> {
    let mut select = db.prepare_cached("SELECT lane, idx, why FROM quarantine ORDER BY lane, idx")?;
    let read =
        |row: &Row<'_>| Ok(Quarantined { lane: row.get(0)?, index: checked(row, 1, index_of)?, why: row.get(2)? });
    Ok(select.query_map((), read)?.collect::<Result<_, _>>()?)
}

/// Takes down how far a lane was shipped.
pub(super) fn put(db: &Connection, shipment: &Shipment) -> Result<(), EngineError> {
    let Shipment { lane, next_index, quarantined, taken } = shipment;
    for Quarantined { index, why, .. } in quarantined {
        let sql = "INSERT OR IGNORE INTO quarantine VALUES (?1, ?2, ?3)";
        db.prepare_cached(sql)?.execute(params![lane, stored(*index)?, why])?;
    }
    for index in taken {
        let sql = "DELETE FROM quarantine WHERE lane = ?1 AND idx = ?2";
        db.prepare_cached(sql)?.execute(params![lane, stored(*index)?])?;
    }
    let sql = "INSERT INTO shipment VALUES (?1, ?2) ON CONFLICT (lane) DO UPDATE SET next_idx = max(next_idx, ?2)";
    db.prepare_cached(sql)?.execute(params![lane, stored(*next_index)?])?;
    Ok(())
}
