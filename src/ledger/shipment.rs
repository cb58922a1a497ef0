//! How far the journal was shipped. It is no memory of what was decided, and nothing of the chain depends on it: it may be set
//! back, and what was shipped is shipped again.

/// A lane that was shipped further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shipment {
    /// Which.
    pub lane: String,
    /// The index of the next record to ship.
    pub next_index: u64,
    /// Those before it that the collector would not take.
    pub quarantined: Vec<Quarantined>,
    /// Those in quarantine that it has taken after all.
    pub taken: Vec<u64>,
}

/// A record that no collector would take. It stays in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Its lane.
    pub lane: String,
    /// Its index.
    pub index: u64,
    /// What the collector said.
    pub why: String,
}
