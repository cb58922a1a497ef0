//! Where a ledger is, and what is done there: one choice of engine, made once.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use tokio_postgres::config::Host;
use uuid::Uuid;

use super::{
    Engine, EngineError, Quarantined, Reading, Reads,
    anchor::{self, Anchored},
    chain::{Heads, Position, StoredRecord},
    postgres::{self, Postgres, Settings},
    sqlite::{self, Sqlite},
    step::Holds,
};
use crate::domain::{Environment, Scope, SequenceNumber};

/// The place of a ledger.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where it is kept.
    pub store: Store,
    /// The file that tells whether it has gone back in time.
    pub anchor: Option<PathBuf>,
}

/// What a ledger is kept in.
#[derive(Debug, Clone)]
pub enum Store {
    /// One file, for a gateway that runs alone.
    Sqlite(PathBuf),
    /// A database, for gateways that run side by side.
    Postgres(Box<Settings>),
}

impl Place {
    /// Makes the ledger, or brings an older one to this version.
    ///
    /// # Errors
    /// Where it cannot be made or is not this environment's.
    pub fn migrate(&self, environment: Environment) -> Result<(), EngineError> {
        match &self.store {
            Store::Sqlite(file) => Sqlite::migrate(file, environment),
            Store::Postgres(settings) => Postgres::migrate(&settings.server, environment),
        }
    }

    /// Whether [`Place::open`] would take it; it may be in use.
    ///
    /// # Errors
    /// Where it would not.
    pub fn check(&self, environment: Environment) -> Result<(), EngineError> {
        self.elsewhere(environment)?;
        self.is_of(environment)
    }

    /// Whether it is of this environment and version, whatever may be wrong with it beside that.
    ///
    /// # Errors
    /// Where it is not, or cannot be read.
    pub fn is_of(&self, environment: Environment) -> Result<(), EngineError> {
        match &self.store {
            Store::Sqlite(file) => Sqlite::check(file, environment),
            Store::Postgres(settings) => Postgres::check(&settings.server, environment),
        }
    }

    /// Opens it for this process to write. Waits, so that it is not to be called where tasks run.
    ///
    /// # Errors
    /// Where it is absent, in use, damaged, or of another environment or version.
    pub fn open(&self, environment: Environment) -> Result<Box<dyn Engine>, EngineError> {
        self.anchored(environment, || {
            Ok(match &self.store {
                Store::Sqlite(file) => Box::new(Sqlite::open(file, environment)?),
                Store::Postgres(settings) => Box::new(Postgres::open(Settings::clone(settings), environment)?),
            })
        })
    }

    /// The same for a command: a gateway that is at it, under the name that the config gives, keeps it.
    ///
    /// # Errors
    /// As for [`Place::open`].
    pub fn open_alone(&self, environment: Environment) -> Result<Box<dyn Engine>, EngineError> {
        self.anchored(environment, || self.open_as_it_is(environment))
    }

    /// The same whatever its anchor says, for those who decide what is to become of it.
    ///
    /// # Errors
    /// Where it is absent, in use, damaged, or of another environment or version.
    pub fn open_as_it_is(&self, environment: Environment) -> Result<Box<dyn Engine>, EngineError> {
        Ok(match &self.store {
            Store::Sqlite(file) => Box::new(Sqlite::open(file, environment)?),
            Store::Postgres(settings) => Box::new(Postgres::open_alone(Settings::clone(settings), environment)?),
        })
    }

    fn anchored(
        &self,
        environment: Environment,
        open: impl FnOnce() -> Result<Box<dyn Engine>, EngineError>,
    ) -> Result<Box<dyn Engine>, EngineError> {
        self.elsewhere(environment)?;
        let engine = open()?;
        Ok(match &self.anchor {
            Some(anchor) => Box::new(Anchored::open(engine, anchor, environment)?),
            None => engine,
        })
    }

    /// In production an anchor must not come back together with the ledger's file.
    fn elsewhere(&self, environment: Environment) -> Result<(), EngineError> {
        match (&self.store, &self.anchor) {
            (Store::Sqlite(file), Some(anchor)) if environment == Environment::Production => {
                anchor::is_elsewhere(anchor, file).map_err(EngineError::Unfit)
            }
            _ => Ok(()),
        }
    }

    /// Leaves a note that somebody reads the ledger, which a gateway journals; it is durable when this returns. Waits, like
    /// [`Place::open`].
    ///
    /// # Errors
    /// Where it cannot be left: then nothing may be read.
    pub fn note(&self, reading: &Reading) -> Result<(), EngineError> {
        let line = reading.line()?;
        match &self.store {
            Store::Sqlite(file) => sqlite::note(file, &line),
            Store::Postgres(settings) => postgres::Reader::open(&settings.server)?.note(&line),
        }
    }

    /// Opens its journal to read, also while gateways write it. Waits, like [`Place::open`].
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn journal(&self) -> Result<Box<dyn Journal>, EngineError> {
        Ok(match &self.store {
            Store::Sqlite(file) => Box::new(sqlite::Reader::open(file)?),
            Store::Postgres(settings) => Box::new(postgres::Reader::open(&settings.server)?),
        })
    }
}

impl Place {
    pub(super) fn reads_are_durable(&self) -> bool {
        match &self.store {
            Store::Sqlite(_) => true,
            Store::Postgres(settings) => settings.server.shows_durable(),
        }
    }

    /// Opens it to read, also while gateways write it. Waits, like [`Place::open`].
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn reads(&self) -> Result<Box<dyn Reads>, EngineError> {
        Ok(match &self.store {
            Store::Sqlite(file) => Box::new(sqlite::Reader::open(file)?),
            Store::Postgres(settings) => Box::new(postgres::Reader::open(&settings.server)?),
        })
    }
}

impl Place {
    /// Where it is, so that no two ledgers are in one place: of a database with its server.
    #[must_use]
    pub fn where_it_is(&self) -> String {
        let Store::Postgres(settings) = &self.store else { return self.to_string() };
        let address = &settings.server.address;
        let hosts = address.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let hosts: Vec<_> = hosts.collect();
        let ports: Vec<_> = address.get_ports().iter().map(ToString::to_string).collect();
        format!(
            "{self} at {}, port {}",
            hosts.join(","),
            if ports.is_empty() { "5432".to_owned() } else { ports.join(",") }
        )
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.store {
            Store::Sqlite(file) => write!(f, "{}", file.display()),
            Store::Postgres(settings) => {
                write!(f, "the database `{}`", settings.server.address.get_dbname().unwrap_or_default())
            }
        }
    }
}

/// A lane of a journal: who writes it, where it begins and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The lane's name; a ledger for one gateway has one lane without a name.
    pub lane: String,
    /// Before its first record: [`Position::GENESIS`], or where pruning left it.
    pub first: Position,
    /// After its last record: what a verifier's head must equal, or the newest records are missing.
    pub head: Position,
}

/// A journal to read.
pub trait Journal: Send {
    /// Its lanes, in order of their names.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn lanes(&self) -> Result<Vec<Stretch>, EngineError>;

    /// At most `count` records of `lane`, from the index `from` on.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn records(&self, lane: &str, from: u64, count: u32) -> Result<Vec<StoredRecord>, EngineError>;

    /// Gives those records to `take` one by one, until it wants no more: many that are held at once are cold when they are read.
    /// `take` asks nothing of the journal, which is held meanwhile.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn scan(
        &self,
        lane: &str,
        from: u64,
        count: u32,
        take: &mut dyn FnMut(StoredRecord) -> bool,
    ) -> Result<(), EngineError> {
        let _all = self.records(lane, from, count)?.into_iter().all(take);
        Ok(())
    }

    /// The newest `count` records of all lanes, oldest first.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn tail(&self, count: u32) -> Result<Vec<StoredRecord>, EngineError>;

    /// Every scope with the last number taken in it, in order.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn scopes(&self) -> Result<Vec<(Scope, SequenceNumber)>, EngineError>;

    /// Where batches of `lane` end, at most `count` of them, from the one that holds the record `from` on.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn links(&self, lane: &str, from: u64, count: u32) -> Result<Vec<Position>, EngineError>;

    /// At most `count` signed checkpoints of more than `size` links, each with how many it has, the smallest first.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn checkpoints(&self, size: u64, count: u32) -> Result<Vec<(u64, String)>, EngineError>;

    /// The newest signed checkpoint, with how many links it has.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn newest_checkpoint(&self) -> Result<Option<(u64, String)>, EngineError>;

    /// Up to which index every lane was shipped; a lane that never was is not among them.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn shipped(&self) -> Result<BTreeMap<String, u64>, EngineError>;

    /// The records that no collector would take.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn quarantined(&self) -> Result<Vec<Quarantined>, EngineError>;

    /// Those of `heads` that the store does not hold any more, each in words: it has gone back in time.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn gone_back(&self, heads: &Heads) -> Result<Vec<String>, EngineError>;

    /// What keeps the ledger from pruning.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn holds(&self) -> Result<Holds, EngineError>;

    /// The record of this id.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn record(&self, id: &Uuid) -> Result<Option<StoredRecord>, EngineError>;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ledger::postgres::Server;

    #[test]
    fn databases_of_one_name_on_two_servers_are_in_two_places() {
        let place = |address: &str| {
            let server = Server {
                address: address.parse().unwrap(),
                password_file: None,
                tls: None,
                high_availability: false,
                timeout: Duration::from_secs(1),
                writer: postgres::WriterAt::default(),
            };
            let (replica, clock_offset_max) = ("gw-1".to_owned(), Duration::from_secs(1));
            let store = Store::Postgres(Box::new(Settings { server, replica, clock_offset_max }));
            Place { store, anchor: None }.where_it_is()
        };
        let own = place("postgresql://quotes@db-1.example/quotes");
        assert_eq!(own, "the database `quotes` at db-1.example, port 5432");
        assert_eq!(own, place("postgresql://others@db-1.example:5432/quotes"));
        assert_ne!(own, place("postgresql://quotes@db-2.example/quotes"));
        assert_ne!(own, place("postgresql://quotes@db-1.example:5433/quotes"));
    }
}
