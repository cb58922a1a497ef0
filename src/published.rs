//! What this replica knows of the keys beside its bundle: which of them verifiers can know, because every gateway that
//! counts serves them and the registered URL shows them. Written in the ledger once for each kid; read here, so that the path
//! of a quote waits for nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::{
    clock::UtcTime,
    domain::{KeyState, Kid, PartnerId},
    jwk::PublicKey,
    key_set::Shown,
    ledger::{Kept, LEASE, Lease, Noted, stops::Stops},
    policy::{
        Bundle, Partner,
        timeline::{Standing, TimedKey},
    },
    stopped::Stopped,
};

/// So long a gateway may take to follow a bundle that another has; then it has no vote either.
pub const GRACE: Duration = Duration::from_mins(1);

/// What is known.
#[derive(Debug, Default)]
pub struct Published {
    kids: ArcSwap<BTreeMap<Kid, Kept>>,
    replicas: Mutex<Vec<Lease>>,
    /// The bundle that this gateway's sets are out of date without, and how that is told.
    lags: Mutex<Option<(u64, String)>>,
    /// The serial of the newest bundle that this gateway has had in force.
    reached: AtomicU64,
    at_urls: Mutex<BTreeMap<PartnerId, Result<Shown, String>>>,
    /// What was revoked when the URLs were last looked at.
    revoked: Mutex<BTreeSet<Kid>>,
    exports: Mutex<BTreeMap<PartnerId, Option<String>>>,
}

/// Whose word counts, and what they agree on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Count {
    /// The kids that each of those serves whose word counts.
    pub shown_by_all: BTreeSet<Kid>,
    /// Why a gateway has no vote, by its name.
    pub no_vote: BTreeMap<String, String>,
    /// The serial of the newest bundle that one of those has that live; 0 where none lives.
    pub newest: u64,
    /// Whether at least half of those that live have it.
    pub is_newest_usual: bool,
}

/// Counts the votes. One that is stuck, or has not followed in time a bundle that at least half have, cannot hold a rotation
/// up. A bundle that fewer have takes nobody's vote: what it is to be verified by is not served by the others.
#[must_use]
pub fn count(leases: &[Lease]) -> Count {
    let is_alive = |lease: &&Lease| lease.age <= LEASE;
    let alive: Vec<&Lease> = leases.iter().filter(is_alive).collect();
    let newest = alive.iter().map(|lease| lease.holding.serial).max().unwrap_or_default();
    let at_newest: Vec<_> = alive.iter().filter(|lease| lease.holding.serial == newest).collect();
    let is_newest_usual = at_newest.len().saturating_mul(2) >= alive.len();
    // Since half of them have it, and not since the first tried it out.
    let mut ages: Vec<_> = at_newest.iter().map(|lease| lease.bundle_age).collect();
    ages.sort_unstable_by(|a, b| b.cmp(a));
    let usual_for = ages.get(alive.len().div_ceil(2).saturating_sub(1)).copied().unwrap_or_default();
    let mut count = Count { newest, is_newest_usual, ..Count::default() };
    let mut shown: Option<BTreeSet<Kid>> = None;
    for lease in leases {
        let Lease { replica, age, holding, .. } = lease;
        if !is_alive(&lease) {
            count.no_vote.insert(replica.clone(), format!("not seen for {} s", age.as_secs()));
        } else if holding.serial < newest && is_newest_usual && usual_for > GRACE {
            let why = format!("has the bundle {} where others have {newest}", holding.serial);
            count.no_vote.insert(replica.clone(), why);
        } else {
            shown = Some(shown.map_or_else(|| holding.shown.clone(), |all| &all & &holding.shown));
        }
    }
    count.shown_by_all = shown.unwrap_or_default();
    count
}

impl Count {
    /// What has become of the keys of `bundle` that is not among what the ledger remembers of them. Only whoever has the newest
    /// bundle tells: what is written never goes back, and an older bundle may end a key that the newest one lets sign on.
    /// `is_at_url` says whether a partner's registered URL shows the key, or policy names none.
    pub fn news<'a>(
        &self,
        bundle: &'a Bundle,
        kids: &BTreeMap<Kid, Kept>,
        is_at_url: impl Fn(&Partner, &PublicKey) -> bool,
        now: UtcTime,
    ) -> Vec<(&'a TimedKey, Noted)> {
        let mut news = Vec::new();
        if bundle.serial < self.newest {
            return news;
        }
        for key in bundle.timeline.all() {
            let Some(kept) = kids.get(&key.kid) else { continue };
            let is_at_url = || bundle.partner(&key.partner).is_some_and(|partner| is_at_url(partner, &key.public));
            if kept.served_since.is_none() && self.shown_by_all.contains(&key.kid) && is_at_url() {
                news.push((&**key, Noted::Served));
            }
            let state = key.state(now);
            if state > KeyState::Planned && kept.state < Some(state) {
                news.push((&**key, Noted::Turned(state)));
            }
        }
        news
    }
}

impl Published {
    /// Takes over what the ledger remembers.
    pub fn learn(&self, kids: BTreeMap<Kid, Kept>) {
        self.kids.store(Arc::new(kids));
    }

    /// Takes over who there is; `own` is this gateway's name.
    pub fn meet(&self, own: &str, leases: Vec<Lease>) -> Count {
        let count = count(&leases);
        // A newer bundle that one gateway tries out takes nobody's key sets away.
        let why = count.no_vote.get(own).filter(|_| count.is_newest_usual);
        // Where it has followed while the ledger was asked, it is not behind.
        let why = why.filter(|_| self.reached.load(Ordering::Acquire) < count.newest);
        *self.lags.lock() = why.map(|why| (count.newest, format!("this gateway {why}; reload its bundle")));
        *self.replicas.lock() = leases;
        count
    }

    /// The ledger has seen the bundle of that serial, and this gateway's is older.
    pub fn is_behind(&self, serial: u64, why: String) {
        *self.lags.lock() = Some((serial, why));
    }

    /// This gateway has the bundle of that serial.
    pub fn has_reached(&self, serial: u64) {
        self.reached.fetch_max(serial, Ordering::AcqRel);
        self.lags.lock().take_if(|(newest, _)| *newest <= serial);
    }

    /// The gateways of this ledger that gave a sign of life of late.
    #[must_use]
    pub fn living(&self) -> BTreeSet<String> {
        let leases = self.replicas.lock();
        leases.iter().filter(|lease| lease.age <= LEASE).map(|lease| lease.replica.clone()).collect()
    }

    /// What the registered URL of `partner` was last seen to show.
    pub fn seen_at_url(&self, partner: PartnerId, shown: Result<Shown, String>) {
        self.at_urls.lock().insert(partner, shown);
    }

    /// Forgets what the URLs have shown where something was revoked since: what was seen before says nothing of it.
    pub fn is_revoked_now(&self, revoked: BTreeSet<Kid>) {
        let mut before = self.revoked.lock();
        if *before != revoked {
            self.at_urls.lock().clear();
            *before = revoked;
        }
    }

    /// Whether the registered URL of `partner` was last seen to show this very key.
    #[must_use]
    pub fn is_at_url(&self, partner: &PartnerId, key: &PublicKey) -> bool {
        matches!(self.at_urls.lock().get(partner), Some(Ok(shown)) if shown.has(key))
    }

    /// Whether the set of `partner` was exported as it now is, or why not yet.
    pub fn exported(&self, partner: PartnerId, fault: Option<String>) {
        self.exports.lock().insert(partner, fault);
    }

    /// Forgets the exports of partners that are no more.
    pub fn exporting(&self, partners: &BTreeSet<PartnerId>) {
        self.exports.lock().retain(|partner, _| partners.contains(partner));
    }

    /// How the exports of the partners fare.
    #[must_use]
    pub fn exports(&self) -> BTreeMap<PartnerId, Option<String>> {
        self.exports.lock().clone()
    }

    /// Why the revocation of `kid` is not complete: the registered URL of `partner` still shows it, or was not seen without it.
    #[must_use]
    pub fn is_still_shown(&self, partner: &PartnerId, kid: &Kid) -> Option<String> {
        match self.at_urls.lock().get(partner) {
            Some(Ok(shown)) if !shown.names(kid) => None,
            Some(Ok(_)) => Some(format!("`{kid}` is revoked and still shown at the registered URL; purge its caches")),
            Some(Err(fault)) => {
                Some(format!("whether `{kid}` is still shown at the registered URL is not known: {fault}"))
            }
            None => Some(format!("the registered URL was not looked at since `{kid}` was revoked")),
        }
    }

    /// What the ledger remembers of the kids.
    #[must_use]
    pub fn kids(&self) -> Arc<BTreeMap<Kid, Kept>> {
        self.kids.load_full()
    }

    /// The gateways of this ledger, as it last saw them.
    #[must_use]
    pub fn replicas(&self) -> Vec<Lease> {
        self.replicas.lock().clone()
    }

    /// Why this gateway's key sets are not to be relied on: others have a newer bundle. That stays so while the ledger is away: at
    /// least half of all serve without it as they did.
    #[must_use]
    pub fn lags(&self) -> Option<String> {
        self.lags.lock().as_ref().map(|(_, why)| why.clone())
    }
}

/// What is known of every key at one moment.
#[derive(Debug, Clone, Default)]
pub struct Standings {
    stops: Arc<Stops>,
    kids: Arc<BTreeMap<Kid, Kept>>,
}

impl Standings {
    /// As this replica knows it now.
    #[must_use]
    pub fn of_now(stopped: &Stopped, published: &Published) -> Self {
        Self { stops: Arc::clone(&stopped.known()), kids: published.kids() }
    }

    /// As a ledger tells it, to a command that keeps nothing of it.
    #[must_use]
    pub fn of_ledger(stops: Stops, kids: BTreeMap<Kid, Kept>) -> Self {
        Self { stops: Arc::new(stops), kids: Arc::new(kids) }
    }

    /// Of one key.
    #[must_use]
    pub fn of(&self, kid: &Kid) -> Standing {
        let kept = self.kids.get(kid);
        Standing {
            is_revoked: self.stops.is_revoked(kid),
            served_since: kept.and_then(|kept| kept.served_since),
            is_activated: kept.is_some_and(|kept| kept.activated_at.is_some()),
            furthest: kept.and_then(|kept| kept.state),
            last_expiry: kept.and_then(|kept| kept.last_expiry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Holding;

    fn lease(replica: &str, age_s: u64, serial: u64, bundle_age_s: u64, shown: &[&str]) -> Lease {
        Lease {
            replica: replica.to_owned(),
            age: Duration::from_secs(age_s),
            bundle_age: Duration::from_secs(bundle_age_s),
            holding: Holding { serial, shown: shown.iter().map(|kid| kid.parse().unwrap()).collect() },
        }
    }

    fn agreed(leases: &[Lease]) -> (Vec<String>, Vec<String>) {
        let Count { shown_by_all, no_vote, .. } = count(leases);
        (shown_by_all.iter().map(ToString::to_string).collect(), no_vote.into_keys().collect())
    }

    #[test]
    fn a_key_is_served_when_all_that_count_serve_it() {
        let both = ["quote-a", "quote-b"];
        let behind_by = |replica| lease(replica, 0, 2, 900, &["quote-a"]);
        let (a, b) = (lease("a", 0, 2, 5, &both), lease("b", 1, 2, 3, &both));
        assert_eq!(agreed(&[]).0, Vec::<String>::new());
        assert_eq!(agreed(&[a.clone(), b.clone()]).0, both);
        // One that has not followed yet is waited for ...
        let behind = lease("c", 0, 1, 900, &both[..1]);
        assert_eq!(agreed(&[a.clone(), b.clone(), behind.clone()]), (vec!["quote-a".to_owned()], vec![]));
        // ... but not for ever; nor is one that is silent.
        let [long_since, b_too] = ["a", "b"].map(|replica| lease(replica, 0, 2, 61, &both));
        assert_eq!(
            agreed(&[long_since.clone(), b_too, behind]),
            (both.map(str::to_owned).to_vec(), vec!["c".to_owned()])
        );
        let silent = lease("c", 11, 2, 900, &[]);
        assert_eq!(agreed(&[a, b, silent]), (both.map(str::to_owned).to_vec(), vec!["c".to_owned()]));
        // While fewer than half have the newest bundle, nothing of it is verified by what the others serve.
        let tried_out = [lease("a", 0, 3, 900, &both), behind_by("b"), behind_by("c")];
        assert_eq!(agreed(&tried_out), (vec!["quote-a".to_owned()], vec![]));
        // Nor is it that of the one that tried it out alone for long: the others have their time from when half have it.
        let half = [lease("a", 0, 3, 900, &both), lease("b", 0, 3, 5, &both), behind_by("c"), behind_by("d")];
        assert_eq!(agreed(&half).1, Vec::<String>::new());
        let half = [lease("a", 0, 3, 900, &both), lease("b", 0, 3, 61, &both), behind_by("c"), behind_by("d")];
        assert_eq!(agreed(&half).1, ["c", "d"]);
        // A silent one that had a newer bundle does not take the vote from those that are there.
        let newer = lease("c", 11, 3, 900, &[]);
        assert_eq!(agreed(&[long_since, newer]).0, both);
    }

    #[test]
    fn who_is_behind_stays_so_until_it_has_the_bundle_or_no_more_than_it_has_is_there() {
        let published = Published::default();
        let leases = |serial| vec![lease("a", 0, 3, 61, &[]), lease("b", 0, serial, 900, &[])];
        published.meet("b", leases(2));
        assert!(published.lags().is_some_and(|why| why.contains("has the bundle 2 where others have 3")));
        // Nobody tells anything any more; bundles come.
        for (serial, lags) in [(2, true), (3, false)] {
            published.has_reached(serial);
            assert_eq!(published.lags().is_some(), lags, "{serial}");
        }
        published.is_behind(4, "another had 4".to_owned());
        assert!(published.lags().is_some());
        published.meet("b", leases(3));
        assert!(published.lags().is_none());
    }
}
