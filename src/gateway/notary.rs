//! Makes checkpoints: looks at everything that has come into the journal since the newest one, of all gateways, and signs where
//! it stands. What does not hold is never signed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::UtcTime,
    config::CheckpointSection,
    domain::Kid,
    jwk::PublicKey,
    jws::CompactJws,
    ledger::{CheckpointAct, Journal, Place},
    notary::{
        checkpoint::Checkpoint,
        survey::{self, Growth},
        tree::Hash,
    },
    pipeline::Pipeline,
    service::access,
    signer::{Flow, Order, jittered},
    telemetry::Metrics,
};

/// How long a device may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What makes checkpoints.
pub(super) struct Notary {
    pub pipeline: Arc<Pipeline>,
    pub metrics: Arc<Metrics>,
    /// Where the journal is read, on a connection of its own.
    pub place: Place,
    /// What checkpoints call the ledger.
    pub origin: String,
    /// The key's.
    pub kid: Kid,
    /// The keys whose checkpoints it goes on from.
    pub keys: Arc<Vec<PublicKey>>,
    /// The longest time between two checkpoints.
    pub interval: Duration,
    /// Since when something waits to be bound, and why it still does.
    waiting: Mutex<Option<UtcTime>>,
    /// The newest checkpoint that was seen in the ledger: how many links, and its digest.
    seen: Mutex<Option<(u64, Hash)>>,
}

/// Why there is no new checkpoint.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// The journal is not what it was, or cannot be read.
    #[error(transparent)]
    Journal(#[from] survey::Fault),
    /// Something that passes.
    #[error("{0}")]
    Passing(String),
}

fn passing(fault: impl std::fmt::Display) -> Fault {
    Fault::Passing(fault.to_string())
}

/// The newest checkpoint, and what has come since.
struct Stretch {
    newest: Option<Checkpoint>,
    /// Absent where the newest is not old enough for anybody to look.
    growth: Option<Growth>,
}

impl Notary {
    pub(super) fn new(
        pipeline: Arc<Pipeline>,
        metrics: Arc<Metrics>,
        place: Place,
        section: &CheckpointSection,
    ) -> Result<Self, String> {
        let (origin, kid) = (section.origin(pipeline.environment), section.key()?.kid().clone());
        let (keys, interval) = (Arc::new(section.keys()?), section.interval());
        let (waiting, seen) = (Mutex::default(), Mutex::default());
        Ok(Self { pipeline, metrics, place, origin, kid, keys, interval, waiting, seen })
    }

    /// Makes a checkpoint whenever half the interval has passed since the newest and there is something to bind, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut told = String::new();
        loop {
            let next_look = async {
                tokio::time::sleep(jittered(self.interval / 4)).await;
                self.look(self.interval / 2).await
            };
            let looked = tokio::select! {
                // What it leaves undone, and what it did that it does not know of, the last look finds.
                () = stop.cancelled() => return,
                looked = next_look => looked,
            };
            let why = match looked {
                Ok(()) => String::new(),
                Err(fault) => {
                    let why = fault.to_string();
                    match fault {
                        _ if why == told => {}
                        Fault::Journal(fault) if fault.is_tampering() => {
                            tracing::error!(why, "THE JOURNAL WAS TAMPERED WITH; no checkpoint is signed of it");
                        }
                        _ => tracing::warn!(why, "the journal was not bound together"),
                    }
                    why
                }
            };
            told = why;
        }
    }

    /// Binds what is left when the gateway ends.
    pub(super) async fn last(&self) {
        let looked = tokio::time::timeout(PATIENCE, self.look(Duration::ZERO)).await;
        match looked.map_err(passing).flatten() {
            Ok(()) => {}
            Err(fault) => {
                tracing::warn!(%fault, "what came last into the journal is for another gateway to bind together");
            }
        }
    }

    /// Makes a checkpoint where the newest is older than `age` and there is something new.
    async fn look(&self, age: Duration) -> Result<(), Fault> {
        if self.pipeline.has_joined().is_err() {
            return Ok(());
        }
        let now = self.pipeline.clock.now().map_err(passing)?;
        let made = self.try_make(now, age).await;
        let mut waiting = self.waiting.lock();
        match &made {
            Ok(()) => *waiting = None,
            Err(_) => *waiting = waiting.or(Some(now)),
        }
        self.metrics.unbound(waiting.map(|since| now.since(since)).unwrap_or_default());
        match &made {
            Ok(()) => self.metrics.journal_holds(true),
            Err(Fault::Journal(fault)) if fault.is_tampering() => self.metrics.journal_holds(false),
            Err(_) => {}
        }
        made
    }

    async fn try_make(&self, now: UtcTime, age: Duration) -> Result<(), Fault> {
        let (place, keys, seen) = (self.place.clone(), Arc::clone(&self.keys), *self.seen.lock());
        let survey = move || {
            fail::fail_point!("notary::survey");
            stretch(&place, &keys, seen, now.minus(age))
        };
        let Stretch { newest, growth } = tokio::task::spawn_blocking(survey).await.map_err(passing)??;
        *self.seen.lock() = newest.as_ref().map(|newest| (newest.tree.size(), newest.digest()));
        let Some(growth) = growth else { return Ok(()) };
        if !growth.is_news {
            return Ok(());
        }
        let mut tree = newest.as_ref().map(|newest| newest.tree.clone()).unwrap_or_default();
        tree.extend(growth.leaves);
        let after = newest.as_ref().map(Checkpoint::digest);
        if let Some(newest) = newest.as_ref().filter(|newest| newest.origin != self.origin) {
            let theirs = &newest.origin;
            return Err(passing(format!(
                "the ledger's checkpoints call it `{theirs}`: set `audit.checkpoint.origin` to that"
            )));
        }
        let before = newest.map_or(0, |newest| newest.tree.size());
        self.make(Checkpoint { origin: self.origin.clone(), at: now, after, heads: growth.heads, tree }, before).await
    }

    /// Has a checkpoint signed, verifies the signature, and stores it.
    async fn make(&self, checkpoint: Checkpoint, before: u64) -> Result<(), Fault> {
        let (pipeline, deadline) = (&self.pipeline, Instant::now() + PATIENCE);
        if pipeline.stopped.known().is_revoked(&self.kid) {
            return Err(passing("the key of checkpoints is revoked: name another in `audit.checkpoint`"));
        }
        let key = pipeline.keyring.get(&self.kid).ok_or_else(|| passing("the key of checkpoints is not bound"))?;
        if !checkpoint.is_readable() {
            return Err(passing("the checkpoint would not be read as it is meant"));
        }
        let input = checkpoint.input(key.public_key());
        let (first, _place) = key.place(Flow::OWN, deadline).map_err(|_| passing("the device has no place for it"))?;
        let given = key.sign(&input, &Order::new(Flow::OWN, deadline), first).await.map_err(passing)?;
        if !key.public_key().verifies(input.bytes(), given.signature.bytes()) {
            key.distrust(given.replica, "it signed a checkpoint wrongly");
            return Err(passing("the device signed it wrongly"));
        }
        let jws: CompactJws = input.into_jws(given.signature.bytes());
        let context = access::own_trail(pipeline.environment, &pipeline.policy.load());
        let (size, now) = (checkpoint.tree.size(), checkpoint.at);
        let act = CheckpointAct { before, size, jws: jws.as_str().to_owned(), context, now };
        // Where another gateway was first, the next look tells what that one has left.
        let made = pipeline.ledger.checkpoint(act).await.map_err(passing)?;
        made.map(|_| ()).ok_or_else(|| passing("another gateway has bound it meanwhile; the next look tells"))
    }
}

/// The newest checkpoint, where it is one of `keys`' and what the ledger says that it is.
fn newest(journal: &dyn Journal, keys: &[PublicKey]) -> Result<Option<Checkpoint>, survey::Fault> {
    let Some((size, jws)) = journal.newest_checkpoint()? else { return Ok(None) };
    let newest = Checkpoint::open(&jws, keys)?;
    if newest.tree.size() == size {
        Ok(Some(newest))
    } else {
        Err(survey::Fault::GoneBack { had: size, has: newest.tree.size() })
    }
}

/// The newest checkpoint, and what has come since where it was made before `due`. It is one of `keys`' and not behind what was
/// `seen`: whoever can write the ledger has neither.
fn stretch(
    place: &Place,
    keys: &[PublicKey],
    seen: Option<(u64, Hash)>,
    due: UtcTime,
) -> Result<Stretch, survey::Fault> {
    let journal = place.journal()?;
    let newest = newest(&*journal, keys)?;
    if let Some((had, digest)) = seen {
        let has = newest.as_ref().map_or(0, |newest| newest.tree.size());
        if has < had || has == had && newest.as_ref().map(Checkpoint::digest) != Some(digest) {
            return Err(survey::Fault::GoneBack { had, has });
        }
    }
    if newest.as_ref().is_some_and(|newest| newest.at > due) {
        return Ok(Stretch { newest, growth: None });
    }
    let (heads, size) = newest.as_ref().map(|newest| (newest.heads.clone(), newest.tree.size())).unwrap_or_default();
    match survey::growth(&*journal, &heads, size) {
        Ok(growth) => Ok(Stretch { newest, growth: Some(growth) }),
        // Another gateway has bound more meanwhile, and what that covers may have been pruned: the next look begins there.
        Err(fault)
            if fault.is_tampering() && self::newest(&*journal, keys)?.is_some_and(|now| now.tree.size() > size) =>
        {
            Ok(Stretch { newest, growth: None })
        }
        Err(fault) => Err(fault),
    }
}
