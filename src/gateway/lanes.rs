//! Whose a lane of the journal is to ship and to prune: its gateway's; and where that is gone, the first's of those that live.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{ledger::Stretch, published::Published};

/// How long a gateway must have been away before its lane is another's: longer than one takes to be seen.
const GONE: Duration = Duration::from_secs(5);

/// What one gateway knows of it.
pub(super) struct OwnLanes {
    /// Its own.
    pub replica: String,
    published: Arc<Published>,
    /// Since when lanes are seen whose gateways do not live.
    gone: Mutex<BTreeMap<String, Instant>>,
}

impl OwnLanes {
    pub(super) fn new(replica: String, published: Arc<Published>) -> Self {
        Self { replica, published, gone: Mutex::default() }
    }

    /// Those of `lanes`, which are all there are, that are this gateway's now.
    pub(super) fn among(&self, lanes: &[Stretch]) -> BTreeSet<String> {
        self.among_at(lanes, &self.published.living(), Instant::now())
    }

    fn among_at(&self, lanes: &[Stretch], living: &BTreeSet<String>, now: Instant) -> BTreeSet<String> {
        let is_first = living.first() == Some(&self.replica);
        let mut gone = self.gone.lock();
        gone.retain(|lane, _| !living.contains(lane));
        let names = lanes.iter().map(|stretch| &stretch.lane);
        let mine = names.filter(|lane| {
            if **lane == self.replica {
                return true;
            }
            if living.contains(*lane) {
                return false;
            }
            let since = *gone.entry((*lane).clone()).or_insert(now);
            is_first && now.saturating_duration_since(since) >= GONE
        });
        mine.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::chain::Position;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_lane_is_anothers_once_its_gateway_is_long_gone_and_never_before() {
        let of = |replica: &str| OwnLanes::new(replica.to_owned(), Arc::default());
        let stretch = |lane: &str| Stretch { lane: lane.to_owned(), first: Position::GENESIS, head: Position::GENESIS };
        let lanes = ["a", "b", "c"].map(stretch);
        let (first, second, began) = (of("a"), of("b"), Instant::now());
        let at = |own: &OwnLanes, living: &[&str], after| own.among_at(&lanes, &names(living), began + after);
        // Nobody has seen `c` yet, or it is gone: that is told apart by time alone.
        assert_eq!(at(&first, &["a", "b"], Duration::ZERO), names(&["a"]));
        assert_eq!(at(&first, &["a", "b"], GONE.saturating_sub(Duration::from_millis(1))), names(&["a"]));
        assert_eq!(at(&first, &["a", "b"], GONE), names(&["a", "c"]));
        assert_eq!(at(&second, &["a", "b"], Duration::ZERO), names(&["b"]));
        assert_eq!(at(&second, &["a", "b"], GONE), names(&["b"]), "it is for the first alone");
        // It is back, and its time begins again when it goes once more.
        assert_eq!(at(&first, &["a", "b", "c"], GONE * 2), names(&["a"]));
        assert_eq!(at(&first, &["a", "b"], GONE * 2), names(&["a"]));
        assert_eq!(at(&first, &["a", "b"], GONE * 3), names(&["a", "c"]));
        // One that nobody sees alive cares for its own lane all the same.
        assert_eq!(at(&second, &[], GONE * 4), names(&["b"]));
    }
}
