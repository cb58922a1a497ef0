//! The rows of the journal in the SQLite ledger, and where its chain stands. Every value read is checked.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::rows::checked;
use crate::{
    audit::Record,
    clock::UtcTime,
    domain::Identity,
    ledger::{
        EngineError,
        batch::Changes,
        chain::{Lane, Position, StoredRecord},
        encoding::{index_of, stored},
        step::Cut,
    },
};

pub(super) fn is_recorded(db: &Connection, id: Uuid) -> Result<bool, EngineError> {
    Ok(db.prepare_cached("SELECT 1 FROM audit WHERE record_id = ?1")?.exists([id.as_bytes()])?)
}

pub(super) fn chain(db: &Connection) -> Result<Lane, EngineError> {
    let read = |row: &Row<'_>| {
        let position = Position { next_index: checked(row, 1, index_of)?, link: row.get(2)? };
        Ok(Lane { epoch: row.get(0)?, position })
    };
    Ok(db.prepare_cached("SELECT epoch, next_idx, link FROM chain WHERE one = 1")?.query_row((), read)?)
}

/// The link on the record before the one at `index`.
pub(super) fn link_before(db: &Connection, index: u64) -> Result<Option<[u8; 32]>, EngineError> {
    let mut select = db.prepare_cached("SELECT link FROM audit WHERE idx = ?1")?;
    Ok(select.query_row([stored(index)?.saturating_sub(1)], |row| row.get(0)).optional()?.flatten())
}

/// Where the journal begins.
pub(super) fn first(db: &Connection) -> Result<Position, EngineError> {
    let read = |row: &Row<'_>| Ok(Position { next_index: checked(row, 0, index_of)?, link: row.get(1)? });
    Ok(db.prepare_cached("SELECT first_idx, first_link FROM chain WHERE one = 1")?.query_row((), read)?)
}

/// Stores where the journal stands, and the greatest time of its records that were made while the clock was trusted.
pub(super) fn put_chain(db: &Connection, chain: Lane, newest: Option<UtcTime>) -> Result<(), EngineError> {
    let sql = "UPDATE chain SET epoch = ?1, next_idx = ?2, link = ?3, newest_at = max(newest_at, ?4) WHERE one = 1";
    let (next_index, newest) = (stored(chain.position.next_index)?, newest.map_or(0, UtcTime::millis));
    db.prepare_cached(sql)?.execute(params![chain.epoch, next_index, chain.position.link, newest])?;
    Ok(())
}

/// Appends a batch's records at `position`, the last one with their link.
pub(super) fn append(db: &Connection, position: Position, changes: &Changes<'_>) -> Result<(), EngineError> {
    let Changes { entries, position: after, .. } = changes;
    let mut insert = db.prepare_cached("INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    for (index, entry) in (position.next_index..).zip(entries) {
        let is_last = index.saturating_add(1) == after.next_index;
        insert.execute(params![
            stored(index)?,
            entry.record.at.millis(),
            entry.record.event.name(),
            entry.identity.map(Identity::as_str),
            entry.record.id.as_bytes(),
            entry.bytes,
            entry.leaf,
            is_last.then_some(after.link),
        ])?;
    }
    Ok(())
}

const STORED_RECORD: &str = "SELECT idx, record, leaf, link, record_id FROM audit";
/// Of what is read by ids, and of the newest: what the chain does not reach is none of the journal's. The signs keep SQLite from looking for it by the
/// index, through which it would read and sort all of the journal.
const IN_JOURNAL: &str =
    "+idx >= (SELECT first_idx FROM chain WHERE one = 1) AND +idx < (SELECT next_idx FROM chain WHERE one = 1)";

fn stored_record(row: &Row<'_>) -> rusqlite::Result<StoredRecord> {
    // What is no id is the nil one, which is no record's.
    let id = Uuid::from_slice(row.get_ref(4)?.as_bytes()?).unwrap_or_default();
    Ok(StoredRecord {
        index: checked(row, 0, index_of)?,
        bytes: row.get(1)?,
        leaf: row.get(2)?,
        link: row.get(3)?,
        id: Some(id),
    })
}

pub(super) fn record(db: &Connection, id: Uuid) -> Result<Option<StoredRecord>, EngineError> {
    let mut select = db.prepare_cached(&format!("{STORED_RECORD} WHERE record_id = ?1 AND {IN_JOURNAL}"))?;
    select.query_row([id.as_bytes()], stored_record).optional()?.map(StoredRecord::by_its_id).transpose()
}

pub(super) fn records(db: &Connection, from: u64, count: u32) -> Result<Vec<StoredRecord>, EngineError> {
    let mut records = Vec::new();
    scan(db, from, count, &mut |record| {
        records.push(record);
        true
    })?;
    Ok(records)
}

/// Gives the records to `take` as they are read, until it wants no more.
pub(super) fn scan(
    db: &Connection,
    from: u64,
    count: u32,
    take: &mut dyn FnMut(StoredRecord) -> bool,
) -> Result<(), EngineError> {
    let mut select = db.prepare_cached(&format!("{STORED_RECORD} WHERE idx >= ?1 ORDER BY idx LIMIT ?2"))?;
    for record in select.query_map(params![stored(from)?, count], stored_record)? {
        if !take(record?) {
            break;
        }
    }
    Ok(())
}

fn after_id() -> String {
    format!("{STORED_RECORD} WHERE record_id > ?1 AND {IN_JOURNAL} ORDER BY record_id LIMIT ?2")
}

pub(super) fn records_after(db: &Connection, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError> {
    let mut select = db.prepare_cached(&after_id())?;
    let found = select.query_map(params![id.as_bytes().as_slice(), count], stored_record)?;
    found.map(|stored| stored?.by_its_id()?.record()).collect()
}

pub(super) fn tail(db: &Connection, count: u32) -> Result<Vec<StoredRecord>, EngineError> {
    let mut select = db.prepare_cached(&format!("{STORED_RECORD} WHERE {IN_JOURNAL} ORDER BY idx DESC LIMIT ?1"))?;
    let found = select.query_map([count], stored_record)?;
    let mut records = found.map(|stored| stored?.by_its_id()).collect::<Result<Vec<_>, _>>()?;
    records.reverse();
    Ok(records)
}

pub(super) fn newest_record_at(db: &Connection) -> Result<Option<UtcTime>, EngineError> {
    let mut select = db.prepare_cached("SELECT newest_at FROM chain WHERE one = 1 AND newest_at > 0")?;
    Ok(select.query_row((), |row| row.get(0).map(UtcTime::from_millis)).optional()?)
}

/// Forgets what is before the cut, and takes down what the rest hangs on.
pub(super) fn put_cut(db: &Connection, Cut { from, to, .. }: &Cut) -> Result<(), EngineError> {
    db.prepare_cached("DELETE FROM audit WHERE idx < ?1")?.execute([stored(to.next_index)?])?;
    let sql = "UPDATE chain SET first_idx = ?1, first_link = ?2 WHERE one = 1 AND first_idx = ?3";
    db.prepare_cached(sql)?.execute(params![stored(to.next_index)?, to.link, stored(from.next_index)?])?;
    Ok(())
}

/// Checkpoints of more than `size` links, the smallest first.
pub(super) fn checkpoints(db: &Connection, size: u64, count: u32) -> Result<Vec<(u64, String)>, EngineError> {
    let mut select = db.prepare_cached("SELECT size, jws FROM checkpoint WHERE size > ?1 ORDER BY size LIMIT ?2")?;
    Ok(select.query_map(params![stored(size)?, count], checkpoint)?.collect::<Result<_, _>>()?)
}

pub(super) fn newest_checkpoint(db: &Connection) -> Result<Option<(u64, String)>, EngineError> {
    let mut select = db.prepare_cached("SELECT size, jws FROM checkpoint ORDER BY size DESC LIMIT 1")?;
    Ok(select.query_row((), checkpoint).optional()?)
}

fn checkpoint(row: &Row<'_>) -> rusqlite::Result<(u64, String)> {
    Ok((checked(row, 0, index_of)?, row.get(1)?))
}

/// Where batches end, from the one that holds the record `from` on.
pub(super) fn links(db: &Connection, from: u64, count: u32) -> Result<Vec<Position>, EngineError> {
    let sql = "SELECT idx + 1, link FROM audit WHERE idx >= ?1 AND link IS NOT NULL ORDER BY idx LIMIT ?2";
    let mut select = db.prepare_cached(sql)?;
    let read = |row: &Row<'_>| Ok(Position { next_index: checked(row, 0, index_of)?, link: row.get(1)? });
    Ok(select.query_map(params![stored(from)?, count], read)?.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Home, *};

    /// A page of a report costs as much as it has records, however long the journal is.
    #[test]
    fn records_are_read_on_by_their_ids_in_the_order_of_an_index() {
        let ledger = Home::new().open();
        let db = ledger.connection().unwrap();
        let mut select = db.prepare(&format!("EXPLAIN QUERY PLAN {}", after_id())).unwrap();
        let plan = select.query_map(params![[0_u8; 16], 1], |row| row.get::<_, String>(3)).unwrap();
        let plan = plan.collect::<Result<Vec<_>, _>>().unwrap().join("\n");
        assert!(plan.contains("USING INDEX audit_record (record_id>?)") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}
