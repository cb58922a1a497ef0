//! The ledger in a PostgreSQL database, for gateways that run side by side.
//!
//! What a batch comes to is decided here, by the same [`run`](super::batch::run) as in every engine, on what was read
//! at one instant. One statement then writes all of it, unless anything that it was decided on has changed: then it
//! is read and decided again. No lock is held while a gateway thinks. Each gateway has a lane of the journal to
//! itself; its epoch fences out whoever wrote there before, and its position tells what became of a commit whose
//! answer was lost.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::future;
use tokio_postgres::{Client, Statement, types::ToSql};
use uuid::Uuid;

use super::{
    Engine, EngineError, Holding, Kept, Lease, Op, OpenReads, Reads, Shipment, Waiting,
    batch::{self, Changes, Needs, Replies},
    chain::{Heads, Lane, Position, StoredRecord, end_of, regression},
    encoding::stored,
    step::{Holds, Quote},
    stops::Stops,
};
use crate::{
    audit::Record,
    clock::UtcTime,
    domain::{Environment, Identity, Kid, Scope, SequenceNumber},
};
use home::{Home, Lookout};
use own::Own;
use read::{Seen, Statements};
use session::{KEEPS, Session, definite, fenced, has_moved, told};

mod condition;
mod home;
mod lease;
mod own;
mod read;
mod reader;
mod readings;
mod schema;
mod session;
mod write;

pub(super) use condition::condition;
pub use home::WriterAt;
pub use reader::Reader;
pub use session::Server;

/// What a gateway needs to know to write to a database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The server.
    pub server: Server,
    /// The gateway's own name among those that share the database: its lane.
    pub replica: String,
    /// How far the server's clock may be from this machine's.
    pub clock_offset_max: Duration,
}

/// The one writer of a lane.
pub struct Postgres {
    /// Of this engine alone; it runs while a call is under way.
    runtime: Own,
    inner: Inner,
}

struct Inner {
    settings: Settings,
    environment: Environment,
    /// Who holds the lane, so that a lane that was taken away is not taken back.
    owner: Uuid,
    /// Where this gateway left its lane.
    lane: Lane,
    /// Where the other lanes stood when they were last read.
    seen: Heads,
    /// Absent after an error that leaves its state in doubt.
    open: Option<Open>,
    lookout: Lookout,
    /// A batch that was sent: where the lane stands if it was applied, and its replies.
    undecided: Option<(Position, Replies)>,
}

/// A session with its statements.
struct Open {
    session: Session,
    home: Home,
    reads: Statements,
    apply: Statement,
    keeps: Statement,
}

impl Postgres {
    /// Makes the tables, or brings older ones to this version.
    ///
    /// # Errors
    /// Where the server cannot be used, or the database is newer or another environment's.
    pub fn migrate(server: &Server, environment: Environment) -> Result<(), EngineError> {
        Own::new()?.block_on(async {
            let mut session = Session::open(server).await?;
            schema::migrate(&mut session.client, environment).await
        })
    }

    /// Whether [`Postgres::open`] would use the database.
    ///
    /// # Errors
    /// Where the server cannot be used, or the database is of another environment or version.
    pub fn check(server: &Server, environment: Environment) -> Result<(), EngineError> {
        Own::new()?.block_on(async { schema::check(&Session::open(server).await?.client, environment).await })
    }

    /// Connects, and takes the lane over. Not to be called where tasks run: it waits.
    ///
    /// # Errors
    /// Where the server cannot be used, or the database is of another environment or version.
    pub fn open(settings: Settings, environment: Environment) -> Result<Self, EngineError> {
        Self::begin(settings, environment, false)
    }

    /// The same, but does not take the lane of a gateway that lives.
    ///
    /// # Errors
    /// As for [`Postgres::open`], and where one does.
    pub fn open_alone(settings: Settings, environment: Environment) -> Result<Self, EngineError> {
        Self::begin(settings, environment, true)
    }

    fn begin(settings: Settings, environment: Environment, alone: bool) -> Result<Self, EngineError> {
        let runtime = Own::new()?;
        let lane = Lane { epoch: 0, position: Position::GENESIS };
        let owner = Uuid::now_v7();
        let lookout = Lookout::new(settings.server.writer.clone(), settings.server.high_availability);
        let (seen, open, undecided) = (Heads::new(), None, None);
        let mut inner = Inner { settings, environment, owner, lane, seen, open, lookout, undecided };
        runtime.block_on(async {
            let open = inner.connect().await?;
            inner.lookout.is_at(&open.home);
            inner.lookout.is_settled(&open.session.client, &open.home, None).await?;
            if alone {
                lease::is_free(&open.session.client, &inner.settings.replica).await?;
            }
            open.session.was_warned();
            inner.lane = open.take(&inner.settings.replica, &inner.owner).await?;
            open.is_kept(&inner.settings.server).await?;
            open.session.unwarned()?;
            inner.seen = open.reads.snapshot(&open.session.client, &Needs::default()).await?.heads;
            inner.open = Some(open);
            Ok::<_, EngineError>(())
        })?;
        Ok(Self { runtime, inner })
    }

    /// Reads on the writer's own connection.
    fn read<T>(&mut self, read: impl AsyncFnOnce(&Open) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let Self { runtime, inner } = self;
        runtime.block_on(async {
            let open = inner.open.as_ref().ok_or_else(closed)?;
            let outcome = in_time(inner.settings.server.timeout, read(open)).await;
            if matches!(outcome, Err(EngineError::Unknown(_))) {
                inner.open = None;
            }
            outcome
        })
    }
}

impl Inner {
    async fn connect(&self) -> Result<Open, EngineError> {
        let session = Box::pin(Session::open(&self.settings.server)).await?;
        in_time(self.settings.server.timeout, async {
            schema::check(&session.client, self.environment).await?;
            let reads = Statements::prepare(&session.client).await?;
            let apply = session.client.prepare(&write::sql()).await.map_err(definite)?;
            let keeps = session.client.prepare(&format!("SELECT {KEEPS}")).await.map_err(definite)?;
            let home = Home::of(&session.client).await?;
            let open = Open { session, home, reads, apply, keeps };
            let seen = Box::pin(open.reads.snapshot(&open.session.client, &Needs::default())).await?;
            self.bears(&seen)?;
            Ok(open)
        })
        .await
    }

    /// Applies `batch`, decided anew as often as others were first.
    async fn apply(&mut self, batch: &[Op]) -> Result<Replies, EngineError> {
        let needs = Needs::of(batch);
        let until = Instant::now() + self.settings.server.timeout;
        while Instant::now() < until {
            self.lookout.is_sure()?;
            let open = self.open.as_ref().ok_or_else(closed)?;
            let seen = open.reads.snapshot(&open.session.client, &needs).await?;
            self.bears(&seen)?;
            self.seen = seen.heads;
            let mut changes = batch::run(seen.snapshot, self.lane.position, batch)?;
            let replies = std::mem::take(&mut changes.replies);
            if changes.entries.is_empty() {
                // Every change has a record: there is nothing to write.
                return Ok(replies);
            }
            self.undecided = Some((changes.position, replies));
            fail::fail_point!("ledger::before-commit");
            if self.write(write::heed(batch), seen.stops, &changes).await? {
                fail::fail_point!("ledger::after-commit");
                let (position, replies) = self.undecided.take().ok_or_else(closed)?;
                self.lane.position = position;
                return Ok(replies);
            }
        }
        Err(EngineError::RolledBack("others were first for too long".to_owned()))
    }

    /// Whether it was written; otherwise something moved, and nothing was.
    async fn write(&self, heed: i32, stops: i64, changes: &Changes<'_>) -> Result<bool, EngineError> {
        let open = self.open.as_ref().ok_or_else(closed)?;
        let arguments = write::arguments(&self.settings.replica, self.lane, heed, stops, changes)?;
        let arguments: Vec<&(dyn ToSql + Sync)> =
            arguments.iter().map(|argument| &**argument as &(dyn ToSql + Sync)).collect();
        // What the server said before is not about this commit.
        open.session.was_warned();
        // `query` alone ends after the commit: rows can arrive before it. The question behind it is sent with it.
        let applied = open.session.client.query(&open.apply, &arguments);
        let (applied, is_kept) = future::join(applied, open.is_kept(&self.settings.server)).await;
        match applied {
            Ok(_) => is_kept.and_then(|()| open.session.unwarned()).map(|()| true),
            Err(error) if has_moved(&error) => Ok(false),
            Err(error) => Err(definite(error)),
        }
    }

    /// Refuses a server that has come to be unfit: settings change under sessions that go on.
    fn bears(&self, seen: &Seen) -> Result<(), EngineError> {
        self.settings.server.keeps(&seen.keeps)?;
        let offset = seen.offset;
        if offset <= self.settings.clock_offset_max {
            return Ok(());
        }
        Err(EngineError::Unfit(format!(
            "this machine's clock and the ledger's server are {offset:?} apart: set both by the same source"
        )))
    }

    async fn reopen(&mut self) -> Result<Option<Replies>, EngineError> {
        self.open = None;
        let open = self.connect().await?;
        self.lookout.is_at(&open.home);
        open.session.was_warned();
        let (replica, owner) = (&self.settings.replica, &self.owner);
        let lane = match open.retake(replica, owner).await {
            // That it was taken is gone, and nobody else has it.
            Err(EngineError::Unfit(_)) if open.is_before(replica, self.lane.epoch).await? => {
                open.take(replica, owner).await?
            }
            lane => lane?,
        };
        // What was before it is everywhere once it is.
        open.is_kept(&self.settings.server).await?;
        open.session.unwarned()?;
        let applied = self.undecided.as_ref().is_some_and(|(after, _)| *after == lane.position);
        if !applied && self.lane.position != lane.position {
            let why = "the journal is not where this gateway left it";
            // What is there beside all that this gateway knows is no loss.
            if lane.position.next_index > self.lane.position.next_index {
                return Err(EngineError::Unfit(why.to_owned()));
            }
            return Err(self.lookout.has_lost(&open, replica, true, why).await);
        }
        // It may fail from here on as well: what became of the batch is not forgotten before all of it is done.
        fail::fail_point!("ledger::reopening", |_| Err(closed()));
        let gone = open.gone_back(&self.seen).await?;
        if !gone.is_empty() {
            let why = format!("the ledger has gone back in time: {}", gone.join("; "));
            return Err(self.lookout.has_lost(&open, replica, false, &why).await);
        }
        // What another gateway may miss is told by then.
        self.lookout.is_settled(&open.session.client, &open.home, Some(replica)).await?;
        (self.open, self.lane) = (Some(open), lane);
        Ok(self.undecided.take().filter(|_| applied).map(|(_, replies)| replies))
    }
}

impl Open {
    /// Takes the lane from whoever held it.
    async fn take(&self, replica: &str, owner: &Uuid) -> Result<Lane, EngineError> {
        let sql = "INSERT INTO lane (lane, owner, epoch, next_idx, link, newest_at, first_link)
                   VALUES ($1, $2, 1, 0, $3, 0, $3)
                   ON CONFLICT (lane) DO UPDATE SET owner = $2, epoch = lane.epoch + 1
                   RETURNING epoch, next_idx, link";
        let genesis = Position::GENESIS.link;
        self.taken(replica, sql, &[&replica, &owner.as_bytes().as_slice(), &genesis.as_slice()]).await
    }

    /// Takes the lane from an earlier session of this same gateway: from then on that one can write no more.
    async fn retake(&self, replica: &str, owner: &Uuid) -> Result<Lane, EngineError> {
        let sql = "UPDATE lane SET epoch = epoch + 1 WHERE lane = $1 AND owner = $2 RETURNING epoch, next_idx, link";
        self.taken(replica, sql, &[&replica, &owner.as_bytes().as_slice()]).await
    }

    /// Whether the lane is not there, or was not taken as often as this gateway, which had it in its turn `epoch`, knows: whoever else
    /// takes it makes it more.
    async fn is_before(&self, replica: &str, epoch: i64) -> Result<bool, EngineError> {
        let rows = read::rows(&self.session.client, "SELECT epoch FROM lane WHERE lane = $1", &[&replica]).await?;
        rows.first().map_or(Ok(true), |row| Ok(read::value::<i64>(row, 0)? < epoch))
    }

    /// Whether what was just committed is where it must be. A wait for the standby ends without a warning where the server is told
    /// meanwhile that it has none.
    async fn is_kept(&self, server: &Server) -> Result<(), EngineError> {
        if server.high_availability {
            // Whatever becomes of the question, the commit stands.
            let unknown = |error| EngineError::Unknown(told(&error));
            let rows = self.session.client.query(&self.keeps, &[]).await.map_err(unknown)?;
            let keeps: Vec<bool> = rows.first().map(|row| row.get(0)).unwrap_or_default();
            server.keeps(&keeps).map_err(|fault| EngineError::Unknown(fault.to_string()))?;
        }
        Ok(())
    }

    async fn taken(&self, replica: &str, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Lane, EngineError> {
        let client = &self.session.client;
        let rows = read::rows(client, sql, parameters).await?;
        let row = rows.first().ok_or_else(|| EngineError::Unfit(fenced()))?;
        let position = Position {
            next_index: read::checked(row, 1, |index: i64| index.try_into().ok())?,
            link: read::digest(row, 2)?,
        };
        let tail = read::records(client, "WHERE lane = $1 ORDER BY idx DESC LIMIT 1", &[&replica]).await?;
        if end_of(tail.first()) != position {
            return Err(EngineError::Unfit("the journal does not end where the ledger's lane says".to_owned()));
        }
        Ok(Lane { epoch: read::value(row, 0)?, position })
    }
}

impl Open {
    /// Those of `heads` that the database does not hold any more.
    async fn gone_back(&self, heads: &Heads) -> Result<Vec<String>, EngineError> {
        let client = &self.session.client;
        let now = self.reads.snapshot(client, &Needs::default()).await?.heads;
        regressed(client, heads, &now).await
    }
}

/// Those of the places where lanes once `stood` that the database does not hold any more, where they stand at `now`.
async fn regressed(client: &Client, stood: &Heads, now: &Heads) -> Result<Vec<String>, EngineError> {
    let firsts = read::firsts(client).await?;
    let mut found = Vec::new();
    for (lane, was) in stood {
        let is = now.get(lane).copied().unwrap_or(Position::GENESIS);
        let link = read::link_before(client, lane, was.next_index).await?;
        let first = firsts.get(lane).copied().unwrap_or(Position::GENESIS);
        found.extend(regression(lane, *was, is, first, link));
    }
    Ok(found)
}

impl Reads for Postgres {
    fn quote(&mut self, identity: &Identity) -> Result<Option<Quote>, EngineError> {
        self.read(async |open| read::quote_of(&open.session.client, identity).await)
    }

    fn records_after(&mut self, id: Uuid, count: u32) -> Result<Vec<Record>, EngineError> {
        self.read(async |open| read::records_after(&open.session.client, id, count).await)
    }

    fn kids(&mut self) -> Result<BTreeMap<Kid, Kept>, EngineError> {
        self.read(async |open| read::all_kids(&open.session.client).await)
    }

    fn stops(&mut self) -> Result<Stops, EngineError> {
        self.read(async |open| read::all_stops(&open.session.client).await)
    }

    fn holds(&mut self) -> Result<Holds, EngineError> {
        self.read(async |open| read::all_holds(&open.session.client).await)
    }

    fn numbered(&mut self, scope: &Scope, sequence: SequenceNumber) -> Result<Option<Quote>, EngineError> {
        let number = stored(sequence.get())?;
        self.read(async |open| read::numbered(&open.session.client, scope, number).await)
    }

    fn last_taken(&mut self, scope: &Scope) -> Result<Option<SequenceNumber>, EngineError> {
        self.read(async |open| read::last_taken(&open.session.client, scope).await)
    }
}

impl Engine for Postgres {
    fn renew(&mut self, holding: &Holding) -> Result<Vec<Lease>, EngineError> {
        let replica = self.inner.settings.replica.clone();
        let sure = self.inner.lookout.is_sure();
        let (leases, seen) = self.read(async |open| {
            sure?;
            let leases = lease::renew(&open.session.client, &replica, holding).await?;
            // A gateway that has little to write knows what the others have, too.
            Ok((leases, open.reads.snapshot(&open.session.client, &Needs::default()).await?))
        })?;
        if self.inner.bears(&seen).is_ok() {
            self.inner.seen = seen.heads;
        }
        Ok(leases)
    }

    fn ship(&mut self, shipment: &Shipment) -> Result<(), EngineError> {
        self.read(async |open| lease::ship(&open.session.client, shipment).await)
    }

    fn take_readings(&mut self) -> Result<Vec<Waiting>, EngineError> {
        self.read(async |open| readings::take(&open.session.client).await)
    }

    fn drop_readings(&mut self, places: &[i64]) -> Result<(), EngineError> {
        self.read(async |open| readings::clear(&open.session.client, places).await)
    }

    fn reads(&self) -> OpenReads {
        let server = self.inner.settings.server.clone();
        Box::new(move || Ok(Box::new(Reader::open(&server)?)))
    }

    fn reads_are_durable(&self) -> bool {
        self.inner.settings.server.shows_durable()
    }

    fn heads(&self) -> Heads {
        let mut heads = self.inner.seen.clone();
        heads.insert(self.inner.settings.replica.clone(), self.inner.lane.position);
        heads
    }

    fn gone_back(&mut self, heads: &Heads) -> Result<Vec<String>, EngineError> {
        self.read(async |open| open.gone_back(heads).await)
    }

    fn apply(&mut self, batch: &[Op]) -> Result<Replies, EngineError> {
        let Self { runtime, inner } = self;
        runtime.block_on(async {
            // Twice the time of one exchange: the last attempt may begin at the end of the first.
            let timeout = inner.settings.server.timeout.saturating_mul(2);
            let outcome = in_time(timeout, Box::pin(inner.apply(batch))).await;
            match outcome {
                Err(EngineError::Unknown(_) | EngineError::Unfit(_) | EngineError::Away(_)) => inner.open = None,
                _ => inner.undecided = None,
            }
            outcome
        })
    }

    fn reopen(&mut self) -> Result<Option<Replies>, EngineError> {
        let Self { runtime, inner } = self;
        runtime.block_on(async {
            let timeout = inner.settings.server.timeout.saturating_mul(3);
            in_time(timeout, Box::pin(inner.reopen())).await
        })
    }

    fn expired(&mut self, now: UtcTime, count: usize) -> Result<Vec<Identity>, EngineError> {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.read(async |open| read::expired(&open.session.client, now, count).await)
    }

    fn newest_records(&mut self) -> Result<Vec<Record>, EngineError> {
        let sql = "WHERE (lane, idx) IN (SELECT lane, next_idx - 1 FROM lane)";
        let newest = self.read(async |open| read::records(&open.session.client, sql, &[]).await)?;
        newest.iter().map(StoredRecord::record).collect()
    }

    fn newest_record_at(&mut self) -> Result<Option<UtcTime>, EngineError> {
        self.read(async |open| {
            let rows = read::rows(&open.session.client, "SELECT coalesce(max(newest_at), 0) FROM lane", &[]).await?;
            let newest: i64 = rows.first().map_or(Ok(0), |row| read::value(row, 0))?;
            Ok((newest > 0).then(|| UtcTime::from_millis(newest)))
        })
    }
}

/// What is not answered in time has an unknown outcome.
async fn in_time<T>(timeout: Duration, answer: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    let late = |_| Err(EngineError::Unknown(format!("the ledger's server gave no answer in {timeout:?}")));
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(late)
}

fn closed() -> EngineError {
    EngineError::Unknown("the connection to the ledger's server is closed".to_owned())
}
