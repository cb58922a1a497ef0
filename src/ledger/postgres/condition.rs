//! A look at a ledger's database that changes nothing: see [`crate::ledger::Condition`].

use super::{
    Settings, in_time,
    own::Own,
    read, regressed, schema,
    session::{Session, definite},
};
use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    domain::Environment,
    ledger::{Condition, EngineError, ServerClock, chain::Heads, place::Journal as _},
};

/// Looks at the database of `settings`.
pub(in crate::ledger) fn condition(
    settings: &Settings,
    environment: Environment,
    anchored: &Heads,
) -> Result<Condition, EngineError> {
    let runtime = Own::new()?;
    let session = runtime.block_on(async {
        let session = Session::open(&settings.server).await?;
        schema::check(&session.client, environment).await?;
        Ok::<_, EngineError>(session)
    })?;
    let reader = super::Reader::of(runtime, session, settings.server.timeout);
    let lanes = reader.lanes()?;
    let heads: Heads = lanes.iter().map(|stretch| (stretch.lane.clone(), stretch.head)).collect();
    let (runtime, client) = reader.parts();
    runtime.block_on(in_time(settings.server.timeout, async {
        let sql = "SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
                     (SELECT coalesce(max(newest_at), 0) FROM lane)";
        let before = SystemClock.now();
        let rows = client.query(sql, &[]).await.map_err(definite)?;
        let after = SystemClock.now();
        let row = rows.first().ok_or_else(|| EngineError::Unknown("the server said nothing".to_owned()))?;
        let (version, now, newest): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        Ok(Condition {
            store: format!(
                "PostgreSQL {version}, schema {}, fsync, full_page_writes and synchronous_commit on",
                schema::current()
            ),
            damage: None,
            unseen: Some("a database's own pages are for its operators to check".to_owned()),
            shipped: read::shipped(client).await?,
            quarantined: read::quarantined(client).await?.len(),
            newest_at: (newest > 0).then(|| UtcTime::from_millis(newest)),
            kids: read::all_kids(client).await?,
            stops: read::all_stops(client).await?,
            server: Some(ServerClock {
                offset: read::offset(UtcTime::from_millis(now), before, after),
                most: settings.clock_offset_max,
            }),
            behind: regressed(client, anchored, &heads).await?,
            lanes,
        })
    }))
}
