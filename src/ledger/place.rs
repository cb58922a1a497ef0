//! Where a ledger is, and what is done there: one choice of engine, made once.

use std::{fmt, path::PathBuf};

use uuid::Uuid;

use super::{
    Engine, EngineError,
    chain::{Position, StoredRecord},
    postgres::{self, Postgres, Settings},
    sqlite::{self, Sqlite},
};
use crate::domain::Environment;

/// The place of a ledger.
#[derive(Debug, Clone)]
pub enum Place {
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
        match self {
            Self::Sqlite(file) => Sqlite::migrate(file, environment),
            Self::Postgres(settings) => Postgres::migrate(&settings.server, environment),
        }
    }

    /// Whether [`Place::open`] would take it; it may be in use.
    ///
    /// # Errors
    /// Where it would not.
    pub fn check(&self, environment: Environment) -> Result<(), EngineError> {
        match self {
            Self::Sqlite(file) => Sqlite::check(file, environment),
            Self::Postgres(settings) => Postgres::check(&settings.server, environment),
        }
    }

    /// Opens it for this process to write. Waits, so that it is not to be called where tasks run.
    ///
    /// # Errors
    /// Where it is absent, in use, damaged, or of another environment or version.
    pub fn open(&self, environment: Environment) -> Result<Box<dyn Engine>, EngineError> {
        Ok(match self {
            Self::Sqlite(file) => Box::new(Sqlite::open(file, environment)?),
            Self::Postgres(settings) => Box::new(Postgres::open(Settings::clone(settings), environment)?),
        })
    }

    /// Opens its journal to read, also while gateways write it. Waits, like [`Place::open`].
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn journal(&self) -> Result<Box<dyn Journal>, EngineError> {
        Ok(match self {
            Self::Sqlite(file) => Box::new(sqlite::Reader::open(file)?),
            Self::Postgres(settings) => Box::new(postgres::Reader::open(&settings.server)?),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => write!(f, "{}", file.display()),
            Self::Postgres(settings) => {
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
pub trait Journal {
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

    /// The newest `count` records of all lanes, oldest first.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn tail(&self, count: u32) -> Result<Vec<StoredRecord>, EngineError>;

    /// The record of this id.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn record(&self, id: &Uuid) -> Result<Option<StoredRecord>, EngineError>;
}
