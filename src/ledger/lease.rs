//! Which gateways of one ledger are there, and which keys each of them shows.

use std::{collections::BTreeSet, time::Duration};

use crate::domain::Kid;

/// A gateway that gave no sign of life for longer does not count.
pub const LEASE: Duration = Duration::from_secs(10);

/// What a gateway says of itself when it renews its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The serial of its bundle.
    pub serial: u64,
    /// The kids that its key sets show.
    pub shown: BTreeSet<Kid>,
}

/// A gateway as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name among those that share the ledger.
    pub replica: String,
    /// How long ago it was renewed, by the ledger's own clock.
    pub age: Duration,
    /// How long ago it took on its bundle, likewise.
    pub bundle_age: Duration,
    /// What it said.
    pub holding: Holding,
}

impl Lease {
    /// That of a gateway alone.
    #[must_use]
    pub fn own(holding: Holding) -> Self {
        Self { replica: String::new(), age: Duration::ZERO, bundle_age: Duration::ZERO, holding }
    }
}
