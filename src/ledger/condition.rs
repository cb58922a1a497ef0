//! What can be told of a ledger without reading a record of it: whether it is whole, where its journal stands, and what it
//! keeps of keys and stops. Looking changes nothing.

use std::{collections::BTreeMap, time::Duration};

use super::{
    EngineError, Kept, Place, Store,
    anchor::{self, Anchor},
    chain::{Heads, Position},
    place::Stretch,
    postgres, sqlite,
    stops::Stops,
};
use crate::{
    clock::UtcTime,
    domain::{Environment, Kid},
};

/// How a ledger was found.
#[derive(Debug, Clone)]
pub struct Condition {
    /// What it is kept in and of which version, in words.
    pub store: String,
    /// That its pages, or the end of its journal, are not as they should be.
    pub damage: Option<String>,
    /// Why not all of its pages were looked at, where they were not.
    pub unseen: Option<String>,
    /// Where its lanes begin and stand.
    pub lanes: Vec<Stretch>,
    /// Up to which index each lane was shipped.
    pub shipped: BTreeMap<String, u64>,
    /// How many records no collector would take.
    pub quarantined: usize,
    /// The newest time of a record that was made while the clock was trusted.
    pub newest_at: Option<UtcTime>,
    /// What it remembers of the kids.
    pub kids: BTreeMap<Kid, Kept>,
    /// What is stopped.
    pub stops: Stops,
    /// How its server's clock stands against this machine's, and how far it may be; nothing where there is no server.
    pub server: Option<ServerClock>,
    /// Those of the anchor's heads that it does not hold any more, in words.
    pub behind: Vec<String>,
}

/// The clock of a ledger's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerClock {
    /// How far it is from this machine's.
    pub offset: Duration,
    /// How far it may be.
    pub most: Duration,
}

/// How the anchor of a ledger was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnchorState {
    /// The config names none.
    None,
    /// There is none yet.
    Missing,
    /// Where the lanes stood.
    Heads(Heads),
    /// Why it cannot be used.
    Unfit(String),
}

impl Place {
    /// The anchor, as it is.
    #[must_use]
    pub fn anchor_state(&self, environment: Environment) -> AnchorState {
        let Some(path) = &self.anchor else { return AnchorState::None };
        if let (Store::Sqlite(file), Environment::Production) = (&self.store, environment)
            && let Err(why) = anchor::is_elsewhere(path, file)
        {
            return AnchorState::Unfit(why);
        }
        match Anchor::heads_at(path, environment) {
            Ok(None) => AnchorState::Missing,
            Ok(Some(heads)) => AnchorState::Heads(heads),
            Err(why) => AnchorState::Unfit(why.to_string()),
        }
    }

    /// Looks at the ledger, and holds it against what the anchor says. Waits, like [`Place::open`]; it may be in use.
    ///
    /// # Errors
    /// Where it cannot be opened, or is of another environment or version.
    pub fn condition(&self, environment: Environment, anchor: &AnchorState) -> Result<Condition, EngineError> {
        let none = Heads::new();
        let heads = if let AnchorState::Heads(heads) = anchor { heads } else { &none };
        match &self.store {
            Store::Sqlite(file) => sqlite::condition(file, environment, heads),
            Store::Postgres(settings) => postgres::condition(settings, environment, heads),
        }
    }
}

impl Condition {
    /// Whether nothing was written to it yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|stretch| stretch.head == Position::GENESIS)
    }

    /// How many records wait to be shipped.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        let waits = |Stretch { lane, first, head }: &Stretch| {
            let from = self.shipped.get(lane).copied().unwrap_or_default().max(first.next_index);
            head.next_index.saturating_sub(from)
        };
        self.lanes.iter().map(waits).sum()
    }
}
