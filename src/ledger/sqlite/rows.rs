//! The rows of the SQLite ledger and the values they hold, each way. Every value read is checked; what does not
//! fit makes the store unfit. Transactions are for the caller.

use std::{collections::BTreeMap, time::Duration};

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row, Statement, params, types::Type};
use uuid::Uuid;

use super::{journal, known::Known};
use crate::{
    clock::UtcTime,
    domain::{Identity, InputDigest, Kid, PayloadDigest, Scope, SequenceNumber},
    jws::CompactJws,
    ledger::{
        EngineError, Kept, Proposal, Stop,
        batch::{Changes, Needs, Snapshot, Version},
        encoding::{
            RESERVED, SIGNED, VOIDED, identity_of, key_of, key_state, key_state_of, scope_of, sequence_of, stored,
        },
        step::{Holds, Quotas, Quote, Stage},
        stops::Stops,
    },
};

/// Loads what bears on every batch.
pub(super) fn standing(db: &Connection) -> Result<Snapshot, EngineError> {
    Ok(Snapshot { stops: stops(db)?, pruned: pruned(db)?, holds: holds(db)?, ..Snapshot::default() })
}

/// Loads what a batch needs besides what is [`standing`]; what is among the quotes that are known is taken from there.
pub(super) fn load(
    db: &Connection,
    mut snapshot: Snapshot,
    needs: &Needs<'_>,
    known: &mut Known,
) -> Result<Snapshot, EngineError> {
    let mut select = db.prepare_cached(QUOTE)?;
    for identity in &needs.quotes {
        let quote = match known.take(identity) {
            Some(quote) => Some(quote),
            None => quote_of(&mut select, identity)?,
        };
        snapshot.quotes.extend(quote.map(|quote| ((*identity).clone(), quote)));
    }
    for scope in &needs.scopes {
        snapshot.lasts.extend(last_taken(db, scope)?.map(|last| ((*scope).clone(), last)));
    }
    for kid in &needs.kids {
        snapshot.kids.extend(kept(db, kid)?.map(|kept| ((*kid).clone(), kept)));
    }
    for id in &needs.records {
        snapshot.records.extend(journal::is_recorded(db, *id)?.then_some(*id));
    }
    snapshot.quotas = quotas(db, needs.quotas.iter().copied())?;
    for act in &needs.acts {
        snapshot.proposals.extend(proposal(db, act)?.map(|proposal| (act.clone(), proposal)));
    }
    if needs.checkpoint {
        snapshot.checkpoint = journal::newest_checkpoint(db)?.map_or(0, |(size, _)| size);
    }
    for (lane, cut) in &needs.cuts {
        let begins = journal::first(db)?;
        let is_whole = lane.is_empty() && cut.next_index < journal::chain(db)?.position.next_index;
        if is_whole && journal::link_before(db, cut.next_index)? == Some(cut.link) {
            snapshot.beginnings.insert((*lane).to_owned(), (begins, *cut));
        }
    }
    if let Some((before, count)) = needs.prunable {
        snapshot.prunable = prunable(db, before, count)?;
    }
    Ok(snapshot)
}

/// Writes what a batch changed but its records.
pub(super) fn put(db: &Connection, changes: &Changes<'_>) -> Result<(), EngineError> {
    let Changes { after, quotes, scopes, quotas, kids, stops, pruned, holds, proposals, checkpoints, cuts, .. } =
        changes;
    let mut put = PutQuote::prepare(db)?;
    for (identity, (before, index)) in quotes {
        after.quotes.get(identity).map_or(Ok(()), |quote| put.quote(identity, quote, *before, *index))?;
    }
    for scope in scopes.keys() {
        after.lasts.get(scope).map_or(Ok(()), |last| put_last_taken(db, scope, *last))?;
    }
    for kid in kids.keys() {
        after.kids.get(kid).map_or(Ok(()), |kept| put_kept(db, kid, kept))?;
    }
    for (stop, stands) in stops {
        put_stop(db, stop, *stands)?;
    }
    for (id, since) in holds {
        put_hold(db, id, *since)?;
    }
    for (act, waits) in proposals {
        put_proposal(db, act, waits.as_ref())?;
    }
    for (before, size, jws) in checkpoints {
        let sql = "INSERT INTO checkpoint VALUES (?1, ?2, ?3)";
        db.prepare_cached(sql)?.execute(params![stored(*size)?, stored(*before)?, jws])?;
    }
    for cut in cuts {
        journal::put_cut(db, cut)?;
    }
    for identity in pruned {
        forget(db, identity)?;
    }
    if let Some(before) = after.pruned.filter(|_| !pruned.is_empty()) {
        db.prepare_cached("UPDATE meta SET pruned = max(pruned, ?1)")?.execute([before.millis()])?;
    }
    put_quotas(db, quotas.keys().filter_map(|quota| Some((quota, after.quotas.get(quota)?))))
}

pub(super) fn holds(db: &Connection) -> Result<Holds, EngineError> {
    let mut select = db.prepare_cached("SELECT id, since FROM hold")?;
    let rows = select.query_map((), |row| Ok((row.get(0)?, UtcTime::from_millis(row.get(1)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn put_hold(db: &Connection, id: &str, since: Option<UtcTime>) -> Result<(), EngineError> {
    match since {
        Some(since) => db
            .prepare_cached("INSERT INTO hold VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET since = ?2")?
            .execute(params![id, since.millis()])?,
        None => db.prepare_cached("DELETE FROM hold WHERE id = ?1")?.execute([id])?,
    };
    Ok(())
}

fn proposal(db: &Connection, act: &str) -> Result<Option<Proposal>, EngineError> {
    let mut select = db.prepare_cached("SELECT caller, until FROM proposal WHERE act = ?1")?;
    let read = |row: &Row<'_>| {
        let caller = checked(row, 0, |text: String| text.parse().ok())?;
        Ok(Proposal { caller, until: UtcTime::from_millis(row.get(1)?) })
    };
    Ok(select.query_row([act], read).optional()?)
}

fn put_proposal(db: &Connection, act: &str, waits: Option<&Proposal>) -> Result<(), EngineError> {
    db.prepare_cached("DELETE FROM proposal WHERE act = ?1")?.execute([act])?;
    if let Some(Proposal { caller, until }) = waits {
        // No act waits for longer than a day: what is two days older has ended.
        let ended = until.minus(Duration::from_hours(48)).millis();
        db.prepare_cached("DELETE FROM proposal WHERE until < ?1")?.execute([ended])?;
        let sql = "INSERT INTO proposal VALUES (?1, ?2, ?3)";
        db.prepare_cached(sql)?.execute(params![act, caller.to_string(), until.millis()])?;
    }
    Ok(())
}

fn prunable(db: &Connection, before: UtcTime, count: u32) -> Result<Vec<(Identity, UtcTime)>, EngineError> {
    let sql =
        "SELECT identity, expires_at FROM quote WHERE state <> 1 AND expires_at < ?1 ORDER BY expires_at LIMIT ?2";
    let mut select = db.prepare_cached(sql)?;
    let rows = select.query_map(params![before.millis(), count], |row| {
        Ok((checked(row, 0, |text: String| identity_of(&text))?, UtcTime::from_millis(row.get(1)?)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn forget(db: &Connection, identity: &Identity) -> Result<(), EngineError> {
    let forgotten = params![key_of(identity.as_str()), identity.as_str()];
    let release = "DELETE FROM release WHERE idx = (SELECT release_idx FROM quote WHERE key = ?1 AND identity = ?2)";
    db.prepare_cached(release)?.execute(forgotten)?;
    let quote = "DELETE FROM quote WHERE key = ?1 AND identity = ?2 AND state <> 1";
    one_quote(db.prepare_cached(quote)?.execute(forgotten)?)
}

pub(super) fn stops(db: &Connection) -> Result<Stops, EngineError> {
    let mut select = db.prepare_cached("SELECT what FROM stop")?;
    let rows = select.query_map((), |row| checked(row, 0, |text: String| text.parse().ok()))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn put_stop(db: &Connection, stop: &Stop, stands: bool) -> Result<(), EngineError> {
    let sql = if stands { "INSERT OR IGNORE INTO stop VALUES (?1)" } else { "DELETE FROM stop WHERE what = ?1" };
    db.prepare_cached(sql)?.execute([stop.to_string()])?;
    Ok(())
}

fn pruned(db: &Connection) -> Result<Option<UtcTime>, EngineError> {
    let mut select = db.prepare_cached("SELECT pruned FROM meta WHERE one = 1 AND pruned > 0")?;
    Ok(select.query_row((), |row| row.get(0).map(UtcTime::from_millis)).optional()?)
}

fn kept(db: &Connection, kid: &Kid) -> Result<Option<Kept>, EngineError> {
    let mut select = db.prepare_cached(&format!("{STORED_KID} WHERE kid = ?1"))?;
    Ok(select.query_row([kid.as_str()], stored_kid).optional()?.map(|(_, kept)| kept))
}

pub(super) fn kids(db: &Connection) -> Result<BTreeMap<Kid, Kept>, EngineError> {
    let mut select = db.prepare_cached(STORED_KID)?;
    Ok(select.query_map((), stored_kid)?.collect::<Result<_, _>>()?)
}

const STORED_KID: &str =
    "SELECT kid, jwk, partner, purpose, published_since, last_expiry, served_since, activated_at, state
    FROM kid";

fn stored_kid(row: &Row<'_>) -> rusqlite::Result<(Kid, Kept)> {
    let time = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(UtcTime::from_millis));
    let kept = Kept {
        jwk: row.get(1)?,
        partner: checked(row, 2, |text: String| text.try_into().ok())?,
        purpose: row.get(3)?,
        published_since: UtcTime::from_millis(row.get(4)?),
        last_expiry: time(5)?,
        served_since: time(6)?,
        activated_at: time(7)?,
        state: checked(row, 8, key_state_of)?,
    };
    Ok((checked(row, 0, |text: String| text.try_into().ok())?, kept))
}

fn put_kept(db: &Connection, kid: &Kid, kept: &Kept) -> Result<(), EngineError> {
    let sql = "INSERT INTO kid VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (kid) DO UPDATE SET
               last_expiry = ?6, served_since = ?7, activated_at = ?8, state = ?9";
    db.prepare_cached(sql)?.execute(params![
        kid.as_str(),
        kept.jwk,
        kept.partner.as_str(),
        kept.purpose,
        kept.published_since.millis(),
        kept.last_expiry.map(UtcTime::millis),
        kept.served_since.map(UtcTime::millis),
        kept.activated_at.map(UtcTime::millis),
        key_state(kept.state),
    ])?;
    Ok(())
}

pub(super) fn quote(db: &Connection, identity: &Identity) -> Result<Option<Quote>, EngineError> {
    let mut select = db.prepare_cached(QUOTE)?;
    quote_of(&mut select, identity)
}

fn quote_of(select: &mut Statement<'_>, identity: &Identity) -> Result<Option<Quote>, EngineError> {
    Ok(select.query_row(params![key_of(identity.as_str()), identity.as_str()], stored_quote).optional()?)
}

pub(super) fn numbered(db: &Connection, scope: &Scope, sequence: SequenceNumber) -> Result<Option<Quote>, EngineError> {
    let mut select = db.prepare_cached(NUMBERED)?;
    Ok(select.query_row(params![scope.as_str(), stored(sequence.get())?], stored_quote).optional()?)
}

macro_rules! stored_quote {
    ($where:literal) => {
        concat!(
            "SELECT scope, sequence, payload, kid, generation, input, expires_at, state, jws, record_id
             FROM quote LEFT JOIN release ON release.idx = quote.release_idx WHERE ",
            $where
        )
    };
}
const QUOTE: &str = stored_quote!("key = ?1 AND identity = ?2");
const NUMBERED: &str = stored_quote!("scope = ?1 AND sequence = ?2");

fn stored_quote(row: &Row<'_>) -> rusqlite::Result<Quote> {
    Ok(Quote {
        scope: checked(row, 0, |text: String| scope_of(&text))?,
        sequence: checked(row, 1, sequence_of)?,
        payload: PayloadDigest(row.get(2)?),
        kid: checked(row, 3, |text: String| text.try_into().ok())?,
        generation: row.get(4)?,
        input: InputDigest(row.get(5)?),
        expires_at: UtcTime::from_millis(row.get(6)?),
        stage: match row.get(7)? {
            RESERVED => Stage::Reserved,
            SIGNED => Stage::Signed { jws: CompactJws::from_text(row.get(8)?), record: Uuid::from_bytes(row.get(9)?) },
            VOIDED => Stage::Voided,
            _ => return Err(misfit(7)),
        },
    })
}

pub(super) const NEW_QUOTE: &str = "INSERT INTO quote VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
pub(super) const NEXT_QUOTE: &str =
    "UPDATE quote SET kid = ?2, generation = ?3, input = ?4, state = ?5, release_idx = ?6, record_id = ?7
    WHERE key = ?1 AND identity = ?8 AND state = ?9 AND generation = ?10";

const NEW_RELEASE: &str = "INSERT INTO release VALUES (?1, ?2)";

/// What stores quotes.
struct PutQuote<'db> {
    new: CachedStatement<'db>,
    next: CachedStatement<'db>,
    release: CachedStatement<'db>,
}

impl<'db> PutQuote<'db> {
    fn prepare(db: &'db Connection) -> Result<Self, EngineError> {
        let prepare = |sql| db.prepare_cached(sql);
        Ok(Self { new: prepare(NEW_QUOTE)?, next: prepare(NEXT_QUOTE)?, release: prepare(NEW_RELEASE)? })
    }

    /// Stores `quote`, which is new or stands already as of a version; one that is signed with its JWS, at the index of the record
    /// of its commit. What the identity is bound to never changes.
    fn quote(
        &mut self,
        identity: &Identity,
        quote: &Quote,
        before: Option<Version>,
        index: Option<u64>,
    ) -> Result<(), EngineError> {
        let (state, release, record) = match &quote.stage {
            Stage::Reserved => (RESERVED, None, None),
            Stage::Voided => (VOIDED, None, None),
            Stage::Signed { jws, record } => {
                let index = stored(index.unwrap_or(u64::MAX))?;
                self.release.execute(params![index, jws.as_str()])?;
                (SIGNED, Some(index), Some(record.as_bytes()))
            }
        };
        let (key, identity) = (key_of(identity.as_str()), identity.as_str());
        let Some((state_before, generation_before)) = before else {
            self.new.execute(params![
                key,
                identity,
                quote.scope.as_str(),
                stored(quote.sequence.get())?,
                quote.payload.0,
                quote.kid.as_str(),
                quote.generation,
                quote.input.0,
                quote.expires_at.millis(),
                state,
                release,
                record,
            ])?;
            return Ok(());
        };
        one_quote(self.next.execute(params![
            key,
            quote.kid.as_str(),
            quote.generation,
            quote.input.0,
            state,
            release,
            record,
            identity,
            state_before,
            generation_before,
        ])?)
    }
}

/// Whether what was to be changed was there, as it was known.
fn one_quote(rows: usize) -> Result<(), EngineError> {
    let other = || EngineError::Unfit("a quote that the ledger held is gone, or is not what it was".to_owned());
    if rows == 1 { Ok(()) } else { Err(other()) }
}

pub(super) fn last_taken(db: &Connection, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
    let mut select = db.prepare_cached("SELECT last FROM scope WHERE scope = ?1")?;
    Ok(select.query_row([scope.as_str()], |row| checked(row, 0, sequence_of)).optional()?)
}

pub(super) fn scopes(db: &Connection) -> Result<Vec<(Scope, SequenceNumber)>, EngineError> {
    let mut select = db.prepare_cached("SELECT scope, last FROM scope ORDER BY scope")?;
    let rows = select
        .query_map((), |row| Ok((checked(row, 0, |text: String| scope_of(&text))?, checked(row, 1, sequence_of)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn put_last_taken(db: &Connection, scope: &Scope, last: SequenceNumber) -> Result<(), EngineError> {
    let sql = "INSERT INTO scope VALUES (?1, ?2) ON CONFLICT (scope) DO UPDATE SET last = ?2";
    db.prepare_cached(sql)?.execute(params![scope.as_str(), stored(last.get())?])?;
    Ok(())
}

fn quotas<'a>(db: &Connection, keys: impl Iterator<Item = &'a str>) -> Result<Quotas, EngineError> {
    let mut select = db.prepare_cached("SELECT tat_ns FROM quota WHERE key = ?1")?;
    let mut quotas = Quotas::new();
    for key in keys {
        if let Some(tat_ns) = select.query_row([key], |row| row.get(0)).optional()? {
            quotas.insert(key.to_owned(), tat_ns);
        }
    }
    Ok(quotas)
}

fn put_quotas<'a>(db: &Connection, quotas: impl Iterator<Item = (&'a String, &'a i64)>) -> Result<(), EngineError> {
    let sql = "INSERT INTO quota VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET tat_ns = ?2";
    let mut upsert = db.prepare_cached(sql)?;
    for (key, tat_ns) in quotas {
        upsert.execute(params![key, tat_ns])?;
    }
    Ok(())
}

pub(super) fn expired(db: &Connection, now: UtcTime, count: usize) -> Result<Vec<Identity>, EngineError> {
    let sql = "SELECT identity FROM quote WHERE state = 1 AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2";
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let mut select = db.prepare_cached(sql)?;
    let rows =
        select.query_map(params![now.millis(), count], |row| checked(row, 0, |text: String| identity_of(&text)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl From<rusqlite::Error> for EngineError {
    /// Only for errors that come before COMMIT: whatever went wrong, the transaction will not be applied.
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::{Error, ErrorCode};
        match &error {
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::QueryReturnedNoRows => Self::Unfit(format!("the ledger holds a value that it cannot: {error}")),
            Error::SqliteFailure(failure, _)
                if matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) =>
            {
                Self::Unfit(format!("the ledger's file is damaged: {error}; restore it from a backup"))
            }
            _ => Self::RolledBack(error.to_string()),
        }
    }
}

/// Reads a column as what `of` makes of it.
pub(super) fn checked<S: rusqlite::types::FromSql, T>(
    row: &Row<'_>,
    column: usize,
    of: impl FnOnce(S) -> Option<T>,
) -> rusqlite::Result<T> {
    of(row.get(column)?).ok_or_else(|| misfit(column))
}

fn misfit(column: usize) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Null, "it is not well formed".into())
}
