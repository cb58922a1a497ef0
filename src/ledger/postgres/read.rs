//! What is read of the database: rows, each value checked; what does not fit makes the store unfit.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{TryFutureExt as _, future};
use tokio_postgres::{
    Client, Row, Statement,
    types::{FromSql, ToSql},
};
use uuid::Uuid;

use super::session::{KEEPS, definite};
use crate::{
    audit::Record,
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{Identity, InputDigest, Kid, PayloadDigest, Scope, SequenceNumber},
    jws::CompactJws,
    ledger::{
        EngineError, Kept, Proposal, Quarantined,
        batch::{Needs, Snapshot},
        chain::{Heads, Position, StoredRecord},
        encoding::{RESERVED, SIGNED, VOIDED, identity_of, index_of, key_state_of, scope_of, sequence_of, stored},
        step::{Holds, Quote, Stage},
        stops::Stops,
    },
};

const QUOTE: &str = "SELECT identity, scope, sequence, payload, kid, generation, input, expires_at, state, jws,
    record_id FROM quote";
const KID: &str = "SELECT kid, jwk, partner, purpose, published_since, last_expiry, served_since, activated_at, state
    FROM kid";
const RECORD: &str = "SELECT idx, record, leaf, link, record_id FROM audit";
const HEAD: &str = "SELECT stops, pruned, (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    ARRAY(SELECT what FROM stop), ARRAY(SELECT id FROM hold ORDER BY id), ARRAY(SELECT since FROM hold ORDER BY id),
    ARRAY(SELECT lane FROM lane ORDER BY lane), ARRAY(SELECT next_idx FROM lane ORDER BY lane),
    ARRAY(SELECT link FROM lane ORDER BY lane)";
const PRUNABLE: &str = "SELECT identity, expires_at FROM quote WHERE state <> 1 AND expires_at < $1
    ORDER BY expires_at LIMIT $2";

/// The statements of a batch, prepared once for each session.
pub(super) struct Statements {
    head: Statement,
    quotes: Statement,
    scopes: Statement,
    quotas: Statement,
    kids: Statement,
    records: Statement,
}

/// What a batch is decided on.
pub(super) struct Seen {
    pub snapshot: Snapshot,
    /// Of the table of stops.
    pub stops: i64,
    /// How far the server's clock is from this machine's, at least: an answer that takes long says little of it.
    pub offset: Duration,
    /// What the server says of [`KEEPS`].
    pub keeps: Vec<bool>,
    /// Where every lane stands.
    pub heads: Heads,
}

impl Statements {
    pub async fn prepare(client: &Client) -> Result<Self, EngineError> {
        let head = format!("{HEAD}, {KEEPS} FROM meta");
        let quotes = format!("{QUOTE} WHERE identity = ANY ($1)");
        let kids = format!("{KID} WHERE kid = ANY ($1)");
        let prepared = future::try_join_all([
            client.prepare(&head),
            client.prepare(&quotes),
            client.prepare("SELECT scope, last FROM scope WHERE scope = ANY ($1)"),
            client.prepare("SELECT key, tat_ns FROM quota WHERE key = ANY ($1)"),
            client.prepare(&kids),
            client.prepare("SELECT record_id FROM audit WHERE record_id = ANY ($1)"),
        ]);
        let prepared: Result<[Statement; 6], _> = prepared.await.map_err(definite)?.try_into();
        let Ok([head, quotes, scopes, quotas, kids, records]) = prepared else {
            return Err(EngineError::Unknown("a statement is missing".to_owned()));
        };
        Ok(Self { head, quotes, scopes, quotas, kids, records })
    }

    /// Reads what a batch needs, all as of one instant and in one round trip.
    pub async fn snapshot(&self, client: &Client, needs: &Needs<'_>) -> Result<Seen, EngineError> {
        let quotes: Vec<&str> = needs.quotes.iter().map(|identity| identity.as_str()).collect();
        let scopes: Vec<&str> = needs.scopes.iter().map(|scope| scope.as_str()).collect();
        let quotas: Vec<&str> = needs.quotas.iter().copied().collect();
        let kids: Vec<&str> = needs.kids.iter().map(|kid| kid.as_str()).collect();
        let records: Vec<&[u8]> = needs.records.iter().map(|id| id.as_bytes().as_slice()).collect();
        let asked = future::try_join5(
            some(client, &self.quotes, &quotes),
            some(client, &self.scopes, &scopes),
            some(client, &self.quotas, &quotas),
            some(client, &self.kids, &kids),
            some(client, &self.records, &records),
        );
        let before = SystemClock.now();
        let head = async {
            let head = client.query(&self.head, &[]).await;
            head.map(|head| (head, SystemClock.now()))
        };
        // Sent in this order: each is begun before the answer to any is awaited.
        let ((), (head, after), (quotes, scopes, quotas, kids, records), ()) = future::try_join4(
            client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
            head,
            asked,
            client.batch_execute("COMMIT"),
        )
        .map_err(definite)
        .await?;
        let head = head.first().ok_or_else(|| unfit("meta"))?;
        let prunable = match needs.prunable {
            Some((before, count)) => rows(client, PRUNABLE, &[&before.millis(), &i64::from(count)]).await?,
            None => Vec::new(),
        };
        let acts: Vec<&str> = needs.acts.iter().map(String::as_str).collect();
        let proposals = match acts.as_slice() {
            [] => Vec::new(),
            _ => rows(client, "SELECT act, caller, until FROM proposal WHERE act = ANY ($1)", &[&acts]).await?,
        };
        let checkpoint =
            if needs.checkpoint { newest_checkpoint(client).await?.map_or(0, |(size, _)| size) } else { 0 };
        let pruned: i64 = value(head, 1)?;
        let snapshot = Snapshot {
            quotes: quotes.iter().map(quote).collect::<Result<_, _>>()?,
            lasts: scopes.iter().map(last).collect::<Result<_, _>>()?,
            quotas: quotas
                .iter()
                .map(|row| Ok((value(row, 0)?, value(row, 1)?)))
                .collect::<Result<_, EngineError>>()?,
            kids: kids.iter().map(kept).collect::<Result<_, _>>()?,
            records: records.iter().map(record_id).collect::<Result<_, _>>()?,
            stops: stops(head, 3)?,
            pruned: (pruned > 0).then(|| UtcTime::from_millis(pruned)),
            prunable: prunable.iter().map(expired_quote).collect::<Result<_, _>>()?,
            holds: holds(head)?,
            checkpoint,
            beginnings: beginnings(client, needs).await?,
            proposals: proposals.iter().map(proposal).collect::<Result<_, _>>()?,
        };
        Ok(Seen {
            snapshot,
            heads: heads(head)?,
            stops: value(head, 0)?,
            offset: offset(UtcTime::from_millis(value(head, 2)?), before, after),
            keeps: value(head, 9)?,
        })
    }
}

/// How far a clock is from this machine's, at least, that showed `there` between `before` and `after`.
pub(super) fn offset(there: UtcTime, before: UtcTime, after: UtcTime) -> Duration {
    let (there, before, after) = (there.millis(), before.millis(), after.millis());
    let ahead = there.saturating_sub(after).max(before.saturating_sub(there));
    Duration::from_millis(u64::try_from(ahead).unwrap_or_default())
}

/// Where lanes begin that are to be cut, and hold the link of the cut and something after it.
async fn beginnings(client: &Client, needs: &Needs<'_>) -> Result<BTreeMap<String, (Position, Position)>, EngineError> {
    let mut found = BTreeMap::new();
    for (lane, cut) in &needs.cuts {
        let sql =
            "SELECT l.first_idx, l.first_link FROM lane l JOIN audit a ON a.lane = l.lane AND a.idx = $2::bigint - 1
                   WHERE l.lane = $1 AND a.link = $3 AND $2::bigint < l.next_idx";
        let rows = rows(client, sql, &[lane, &stored(cut.next_index)?, &cut.link.as_slice()]).await?;
        if let Some(row) = rows.first() {
            let first = Position { next_index: checked(row, 0, index_of)?, link: digest(row, 1)? };
            found.insert((*lane).to_owned(), (first, *cut));
        }
    }
    Ok(found)
}

/// Where every lane begins.
pub(super) async fn firsts(client: &Client) -> Result<Heads, EngineError> {
    let found = rows(client, "SELECT lane, first_idx, first_link FROM lane", &[]).await?;
    let first = |row| Ok((value(row, 0)?, Position { next_index: checked(row, 1, index_of)?, link: digest(row, 2)? }));
    found.iter().map(first).collect()
}

/// The rows of these keys; nothing is asked where there are none.
async fn some<K>(client: &Client, statement: &Statement, keys: &Vec<K>) -> Result<Vec<Row>, tokio_postgres::Error>
where
    Vec<K>: ToSql + Sync,
{
    if keys.is_empty() { Ok(Vec::new()) } else { client.query(statement, &[keys]).await }
}

/// Rows of a query outside a batch.
pub(super) async fn rows(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, EngineError> {
    client.query(sql, parameters).await.map_err(definite)
}

pub(super) async fn quote_of(client: &Client, identity: &Identity) -> Result<Option<Quote>, EngineError> {
    let sql = format!("{QUOTE} WHERE identity = $1");
    let rows = rows(client, &sql, &[&identity.as_str()]).await?;
    rows.first().map(|row| quote(row).map(|(_, quote)| quote)).transpose()
}

pub(super) async fn numbered(client: &Client, scope: &Scope, number: i64) -> Result<Option<Quote>, EngineError> {
    let sql = format!("{QUOTE} WHERE scope = $1 AND sequence = $2");
    let rows = rows(client, &sql, &[&scope.as_str(), &number]).await?;
    rows.first().map(|row| quote(row).map(|(_, quote)| quote)).transpose()
}

pub(super) async fn last_taken(client: &Client, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
    let rows = rows(client, "SELECT scope, last FROM scope WHERE scope = $1", &[&scope.as_str()]).await?;
    rows.first().map(|row| last(row).map(|(_, last)| last)).transpose()
}

/// The link on the record before the one at `index`.
pub(super) async fn link_before(client: &Client, lane: &str, index: u64) -> Result<Option<[u8; 32]>, EngineError> {
    let index = stored(index)?.saturating_sub(1);
    let found = records(client, "WHERE lane = $1 AND idx = $2", &[&lane, &index]).await?;
    Ok(found.first().and_then(|record| record.link))
}

pub(super) async fn scopes(client: &Client) -> Result<Vec<(Scope, SequenceNumber)>, EngineError> {
    rows(client, "SELECT scope, last FROM scope ORDER BY scope", &[]).await?.iter().map(last).collect()
}

pub(super) async fn all_stops(client: &Client) -> Result<Stops, EngineError> {
    let rows = rows(client, &format!("{HEAD} FROM meta"), &[]).await?;
    rows.first().ok_or_else(|| unfit("meta")).and_then(|row| stops(row, 3))
}

pub(super) async fn all_holds(client: &Client) -> Result<Holds, EngineError> {
    let rows = rows(client, &format!("{HEAD} FROM meta"), &[]).await?;
    rows.first().ok_or_else(|| unfit("meta")).and_then(holds)
}

pub(super) async fn all_kids(client: &Client) -> Result<BTreeMap<Kid, Kept>, EngineError> {
    rows(client, KID, &[]).await?.iter().map(kept).collect()
}

pub(super) async fn expired(client: &Client, now: UtcTime, count: i64) -> Result<Vec<Identity>, EngineError> {
    let sql = "SELECT identity FROM quote WHERE state = 1 AND expires_at <= $1 ORDER BY expires_at LIMIT $2";
    let rows = rows(client, sql, &[&now.millis(), &count]).await?;
    rows.iter().map(|row| checked(row, 0, |text: String| identity_of(&text))).collect()
}

/// Records of `sql` after the columns' names, such as a condition and an order.
pub(super) async fn records(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<StoredRecord>, EngineError> {
    rows(client, &format!("{RECORD} {sql}"), parameters).await?.iter().map(stored_record).collect()
}

pub(super) async fn records_after(client: &Client, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError> {
    let (id, count) = (id.as_bytes().as_slice(), i64::from(count));
    let found = by_id(client, "AND record_id > $1 ORDER BY record_id LIMIT $2", &[&id, &count]).await?;
    found.iter().map(StoredRecord::record).collect()
}

/// The newest records, the newest first.
pub(super) async fn newest(client: &Client, count: u32) -> Result<Vec<StoredRecord>, EngineError> {
    by_id(client, "ORDER BY record_id DESC LIMIT $1", &[&i64::from(count)]).await
}

pub(super) async fn record(client: &Client, id: Uuid) -> Result<Option<StoredRecord>, EngineError> {
    let id = id.as_bytes().as_slice();
    Ok(by_id(client, "AND record_id = $1", &[&id]).await?.into_iter().next())
}

/// Records that are read by their ids. What no chain reaches is none of the journal's.
async fn by_id(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<StoredRecord>, EngineError> {
    let in_lane = "WHERE EXISTS (SELECT 1 FROM lane l
                                 WHERE l.lane = audit.lane AND audit.idx >= l.first_idx AND audit.idx < l.next_idx)";
    let found = records(client, &format!("{in_lane} {sql}"), parameters).await?;
    found.into_iter().map(StoredRecord::by_its_id).collect()
}

/// Checkpoints of more than `size` links, the smallest first.
pub(super) async fn checkpoints(client: &Client, size: u64, count: u32) -> Result<Vec<(u64, String)>, EngineError> {
    let sql = "SELECT size, jws FROM checkpoint WHERE size > $1 ORDER BY size LIMIT $2";
    rows(client, sql, &[&stored(size)?, &i64::from(count)]).await?.iter().map(checkpoint).collect()
}

pub(super) async fn newest_checkpoint(client: &Client) -> Result<Option<(u64, String)>, EngineError> {
    let found = rows(client, "SELECT size, jws FROM checkpoint ORDER BY size DESC LIMIT 1", &[]).await?;
    found.first().map(checkpoint).transpose()
}

fn checkpoint(row: &Row) -> Result<(u64, String), EngineError> {
    Ok((checked(row, 0, index_of)?, value(row, 1)?))
}

/// Where batches of `lane` end, from the record `from` on.
pub(super) async fn links(client: &Client, lane: &str, from: u64, count: u32) -> Result<Vec<Position>, EngineError> {
    let sql =
        "SELECT idx + 1, link FROM audit WHERE lane = $1 AND idx >= $2 AND link IS NOT NULL ORDER BY idx LIMIT $3";
    let found = rows(client, sql, &[&lane, &stored(from)?, &i64::from(count)]).await?;
    found.iter().map(|row| Ok(Position { next_index: checked(row, 0, index_of)?, link: digest(row, 1)? })).collect()
}

/// Up to where every lane was shipped.
pub(super) async fn shipped(client: &Client) -> Result<BTreeMap<String, u64>, EngineError> {
    let found = rows(client, "SELECT lane, greatest(next_idx, 0) FROM shipment", &[]).await?;
    found.iter().map(|row| Ok((value(row, 0)?, checked(row, 1, index_of)?))).collect()
}

pub(super) async fn quarantined(client: &Client) -> Result<Vec<Quarantined>, EngineError> {
    let found = rows(client, "SELECT lane, idx, why FROM quarantine ORDER BY lane, idx", &[]).await?;
    let read = |row| Ok(Quarantined { lane: value(row, 0)?, index: checked(row, 1, index_of)?, why: value(row, 2)? });
    found.iter().map(read).collect()
}

fn stored_record(row: &Row) -> Result<StoredRecord, EngineError> {
    Ok(StoredRecord {
        index: checked(row, 0, index_of)?,
        bytes: value(row, 1)?,
        leaf: digest(row, 2)?,
        link: value::<Option<&[u8]>>(row, 3)?.map(|link| link.try_into().map_err(|_| unfit("link"))).transpose()?,
        id: Some(id(row, 4)?),
    })
}

fn quote(row: &Row) -> Result<(Identity, Quote), EngineError> {
    let stage = match value::<i16>(row, 8)? {
        RESERVED => Stage::Reserved,
        SIGNED => Stage::Signed { jws: CompactJws::from_text(value(row, 9)?), record: id(row, 10)? },
        VOIDED => Stage::Voided,
        _ => return Err(unfit("state")),
    };
    let quote = Quote {
        scope: checked(row, 1, |text: String| scope_of(&text))?,
        sequence: checked(row, 2, sequence_of)?,
        payload: PayloadDigest(digest(row, 3)?),
        kid: checked(row, 4, |text: String| text.try_into().ok())?,
        generation: checked(row, 5, |generation: i32| generation.try_into().ok())?,
        input: InputDigest(digest(row, 6)?),
        expires_at: UtcTime::from_millis(value(row, 7)?),
        stage,
    };
    Ok((checked(row, 0, |text: String| identity_of(&text))?, quote))
}

fn last(row: &Row) -> Result<(Scope, SequenceNumber), EngineError> {
    Ok((checked(row, 0, |text: String| scope_of(&text))?, checked(row, 1, sequence_of)?))
}

fn kept(row: &Row) -> Result<(Kid, Kept), EngineError> {
    let time = |column| Ok::<_, EngineError>(value::<Option<i64>>(row, column)?.map(UtcTime::from_millis));
    let kept = Kept {
        jwk: value(row, 1)?,
        partner: checked(row, 2, |text: String| text.try_into().ok())?,
        purpose: value(row, 3)?,
        published_since: UtcTime::from_millis(value(row, 4)?),
        last_expiry: time(5)?,
        served_since: time(6)?,
        activated_at: time(7)?,
        state: checked(row, 8, key_state_of)?,
    };
    Ok((checked(row, 0, |text: String| text.try_into().ok())?, kept))
}

fn proposal(row: &Row) -> Result<(String, Proposal), EngineError> {
    let caller = checked(row, 1, |text: String| text.parse().ok())?;
    Ok((value(row, 0)?, Proposal { caller, until: UtcTime::from_millis(value(row, 2)?) }))
}

fn stops(row: &Row, column: usize) -> Result<Stops, EngineError> {
    let texts: Vec<&str> = value(row, column)?;
    texts.into_iter().map(|text| text.parse().map_err(|_| unfit("stop"))).collect()
}

fn holds(head: &Row) -> Result<Holds, EngineError> {
    let (ids, since): (Vec<String>, Vec<i64>) = (value(head, 4)?, value(head, 5)?);
    Ok(ids.into_iter().zip(since.into_iter().map(UtcTime::from_millis)).collect())
}

fn heads(head: &Row) -> Result<Heads, EngineError> {
    let (lanes, indexes, links): (Vec<String>, Vec<i64>, Vec<&[u8]>) =
        (value(head, 6)?, value(head, 7)?, value(head, 8)?);
    let positions = indexes.into_iter().zip(links).map(|(index, link)| {
        let next_index = index_of(index).ok_or_else(|| unfit("next_idx"))?;
        Ok::<_, EngineError>(Position { next_index, link: link.try_into().map_err(|_| unfit("link"))? })
    });
    lanes.into_iter().zip(positions).map(|(lane, position)| Ok((lane, position?))).collect()
}

fn expired_quote(row: &Row) -> Result<(Identity, UtcTime), EngineError> {
    Ok((checked(row, 0, |text: String| identity_of(&text))?, UtcTime::from_millis(value(row, 1)?)))
}

fn record_id(row: &Row) -> Result<Uuid, EngineError> {
    id(row, 0)
}

fn id(row: &Row, column: usize) -> Result<Uuid, EngineError> {
    Uuid::from_slice(value(row, column)?).map_err(|_| unfit("id"))
}

/// A digest or link.
pub(super) fn digest(row: &Row, column: usize) -> Result<[u8; 32], EngineError> {
    value::<&[u8]>(row, column)?.try_into().map_err(|_| unfit("digest"))
}

/// The value of a column, or that it is none of this type.
pub(super) fn value<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, EngineError> {
    row.try_get(column).map_err(|error| EngineError::Unfit(format!("the ledger holds a value that it cannot: {error}")))
}

/// Reads a column as what `of` makes of it.
pub(super) fn checked<'a, S: FromSql<'a>, T>(
    row: &'a Row,
    column: usize,
    of: impl FnOnce(S) -> Option<T>,
) -> Result<T, EngineError> {
    let name = row.columns().get(column).map_or("column", |column| column.name());
    of(value(row, column)?).ok_or_else(|| unfit(name))
}

fn unfit(what: &str) -> EngineError {
    EngineError::Unfit(format!("the ledger holds a value that it cannot: a `{what}` that is not well formed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_takes_long_is_no_clock_that_is_off() {
        let far = |there, before, after| {
            let [there, before, after] = [there, before, after].map(UtcTime::from_millis);
            offset(there, before, after).as_millis()
        };
        assert_eq!(far(1_500, 1_000, 9_000), 0);
        assert_eq!((far(9_500, 1_000, 9_000), far(400, 1_000, 9_000)), (500, 600));
    }
}
