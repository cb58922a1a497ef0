//! Whether the store that is read beside the writer is still the one that it writes to: an address can lead to another server than
//! before, while a connection to that one lives on.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// How often the writer has lost its store or opened it anew: it counts, and whoever reads beside it follows.
#[derive(Debug, Clone, Default)]
pub(super) struct Openings(Arc<AtomicU64>);

/// A count of [`Openings`]. While it is the same the writer is where it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opening(u64);

impl Openings {
    /// The count now.
    pub fn now(&self) -> Opening {
        Opening(self.0.load(Ordering::SeqCst))
    }

    /// From now on nothing counts that was read on connections of before.
    pub fn next(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
