//! The control plane: reads the policy bundle again and swaps it in. The path of a quote reads snapshots and
//! never waits for it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::{
    audit::{self, Event, Facts, Record, Status},
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{Caller, Environment, Kid, PolicyDigest, TrustDomains},
    jwk::PublicKey,
    ledger::{Kept, Ledger, LedgerError, Publish, Stop, StopAct},
    policy::{
        AttributesRule, Bundle, DIGEST_FILE, Problem,
        authority::{Action, Resource},
        files,
        timeline::TimedKey,
    },
    published::{Published, Standings},
    signer::{
        Attributes,
        keyring::{Binding, Keyring, KeyringError},
    },
    stopped::Stopped,
};

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The bundle is not good, or may not follow the one in force. Everything that is wrong, a line each.
    #[error("the bundle was refused: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// The act could not be journalled.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A bundle that came into force.
pub struct Reloaded {
    /// The bundle.
    pub bundle: Arc<Bundle>,
    /// The audit record of the act.
    pub record: Uuid,
}

/// Reads bundles and swaps them in.
pub struct Control {
    /// Where the bundle lies.
    pub dir: PathBuf,
    /// The key that must have signed it.
    pub key: Option<Arc<PublicKey>>,
    /// The key that signs checkpoints of the journal; it signs no quotes.
    pub checkpoint_key: Option<Arc<PublicKey>>,
    /// The gateway's environment.
    pub environment: Environment,
    /// Whom its listeners let in.
    pub domains: TrustDomains,
    /// The bundle in force, shared with the path of a quote.
    pub policy: Arc<ArcSwap<Bundle>>,
    /// Bound anew to each bundle's keys.
    pub keyring: Arc<Keyring>,
    /// What was revoked: a bundle may drop those keys.
    pub stopped: Arc<Stopped>,
    /// What keys have signed: a bundle may not drop those whose quotes count.
    pub published: Arc<Published>,
    /// How long the ledger keeps quotes beyond their expiry.
    pub keep: Duration,
    /// Where acts are journalled.
    pub ledger: Ledger,
    /// Why the newest reload was refused; nothing where it was not.
    pub refused: Mutex<Option<String>>,
    /// How many bundles came into force since the start, and how many were refused.
    pub reloads: Reloads,
    /// One reload at a time.
    pub turn: tokio::sync::Mutex<()>,
}

/// How reloads ended.
#[derive(Debug, Default)]
pub struct Reloads {
    loaded: AtomicU64,
    refused: AtomicU64,
}

impl Reloads {
    /// How many bundles came into force since the start, and how many were refused.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.loaded.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

impl Control {
    /// Reads the bundle, checks it, journals the act, and swaps it in. A bad bundle changes nothing but
    /// [`Control::last_error`].
    ///
    /// # Errors
    /// Where the bundle is refused, or the act cannot be journalled.
    pub async fn reload(&self, context: audit::Context) -> Result<Reloaded, ReloadError> {
        let _turn = self.turn.lock().await;
        let current = self.policy.load_full();
        let reloaded = match self.read(&current).await {
            Ok(bundle) => self.adopt(bundle, &current, context.clone()).await,
            Err(problems) => Err(ReloadError::Refused(problems)),
        };
        match reloaded {
            Err(ReloadError::Refused(problems)) => Err(self.refuse(problems, context).await?),
            // What another gateway has told the ledger of since.
            Err(ReloadError::Ledger(LedgerError::Refused(refusal))) => {
                Err(self.refuse(vec![refusal.to_string()], context).await?)
            }
            reloaded => reloaded,
        }
    }

    /// Tells loudly that a bundle was refused, and what of.
    async fn refuse(&self, problems: Vec<String>, context: audit::Context) -> Result<ReloadError, LedgerError> {
        let text = problems.join("; ");
        tracing::error!(problems = text, "the policy bundle was refused; the last good one goes on serving");
        *self.refused.lock() = Some(text.clone());
        self.reloads.refused.fetch_add(1, Ordering::Relaxed);
        let status = context.answered(Status::FailedPrecondition);
        let facts = Facts { detail: Some(text), status, ..Facts::default() };
        self.ledger.record(Record::new(Event::PolicyRefused, SystemClock.now(), context, facts)).await?;
        Ok(ReloadError::Refused(problems))
    }

    /// Why the newest reload was refused.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.refused.lock().clone()
    }

    /// The digest that `bundle.digest` announces, where the files beside it have that very digest, with the signature that lies
    /// there: whoever changes them writes it last, so that nothing is read that is half written.
    pub async fn announced(&self) -> Option<(PolicyDigest, Option<String>)> {
        let dir = self.dir.clone();
        let read = move || {
            let text = std::fs::read_to_string(dir.join(DIGEST_FILE)).ok()?;
            let digest = files::digest(&files::read(&dir).ok()?);
            let seal = files::read_seal(&dir).ok()?;
            (text.trim_end() == digest.to_string()).then_some((digest, seal))
        };
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    async fn read(&self, current: &Bundle) -> Result<Bundle, Vec<String>> {
        let (dir, key) = (self.dir.clone(), self.key.clone());
        let loaded = tokio::task::spawn_blocking(move || Bundle::load_signed(&dir, key.as_deref())).await;
        let bundle = loaded
            .map_err(|_| vec!["the check of the bundle ended without an answer".to_owned()])?
            .map_err(|problems| problems.iter().map(Problem::to_string).collect::<Vec<_>>())?;
        let mut problems =
            fits(&bundle, self.environment, &self.domains, |signer, locator| self.keyring.accepts(signer, locator));
        problems.extend(is_kept(&bundle, self.keep));
        problems.extend(self.checkpoint_key.as_ref().and_then(|key| is_apart(&bundle, key)));
        problems.extend(follows(&bundle, current.serial, &current.digest.to_string()));
        let standings = Standings::of_now(&self.stopped, &self.published);
        problems.extend(keeps_keys(&bundle, current, &standings, SystemClock.now()));
        problems.extend(knows_keys(&bundle, &self.published.kids()));
        if problems.is_empty() { Ok(bundle) } else { Err(problems) }
    }

    async fn adopt(
        &self,
        bundle: Bundle,
        current: &Bundle,
        mut context: audit::Context,
    ) -> Result<Reloaded, ReloadError> {
        context.policy_digest = bundle.digest.to_string();
        context.policy_serial = bundle.serial;
        let detail = format!("before: {} serial {}", current.digest, current.serial);
        let facts = Facts { detail: Some(detail), status: context.answered(Status::Ok), ..Facts::default() };
        let record = Record::new(Event::PolicyLoaded, SystemClock.now(), context, facts);
        let id = record.id;
        publish(&self.ledger, &bundle, &record.context).await?;
        self.ledger.record(record).await?;
        let bundle = Arc::new(bundle);
        bind(&self.keyring, &bundle).map_err(|fault| ReloadError::Refused(vec![fault.to_string()]))?;
        self.policy.store(bundle.clone());
        self.published.has_reached(bundle.serial);
        *self.refused.lock() = None;
        self.reloads.loaded.fetch_add(1, Ordering::Relaxed);
        tracing::info!(digest = %bundle.digest, serial = bundle.serial, "a policy bundle came into force");
        Ok(Reloaded { bundle, record: id })
    }
}

/// Has the ledger remember the kids of `bundle`. What it knows already costs no write.
///
/// # Errors
/// Where a kid was another key before, or that cannot be made durable.
pub async fn publish(ledger: &Ledger, bundle: &Bundle, context: &audit::Context) -> Result<(), LedgerError> {
    for key in bundle.timeline.all() {
        let (kid, context, now) = (key.kid.clone(), context.clone(), SystemClock.now());
        ledger.publish(Publish { kid, kept: kept(key), context, now }).await?;
    }
    Ok(())
}

/// What the ledger remembers of a key for ever.
fn kept(key: &TimedKey) -> Kept {
    Kept::new(key.public.to_jwk().to_string(), key.partner.clone(), PURPOSE, key.publish_at)
}

/// Has `stopped` know what the ledger says now, and says whether the ledger lacks anything that is known. A ledger that cannot be
/// read leaves what is known.
pub async fn look_at_stops(ledger: &Ledger, stopped: &Stopped) -> bool {
    match ledger.stops().await {
        Ok(stops) => {
            let has_lost = !stopped.lost_by(&stops).is_empty();
            // Where the writer does not trust the store, or cannot reach it, nothing ends by what is read there.
            let before = if ledger.health().is_ok() { Arc::default() } else { Arc::clone(&stopped.known()) };
            if let Err(fault) = stopped.learn(stops.iter().chain(before.iter()).cloned().collect()) {
                tracing::error!(%fault, "a revocation is in the ledger, and not in the file beside it");
            }
            has_lost
        }
        Err(fault) => {
            tracing::debug!(%fault, "what is stopped could not be read");
            false
        }
    }
}

/// Has the ledger know what was stopped here while it was away, unless it was taken elsewhere meanwhile, and has ended since.
pub async fn make_durable(ledger: &Ledger, stopped: &Stopped) {
    fail::fail_point!("control::make-durable", |_| ());
    for act in stopped.take_waiting() {
        let stop = &act.stop;
        let done = match has_ended_since(ledger, &act).await {
            Ok(true) => Ok(None),
            Ok(false) => ledger.stop(act.clone()).await.map(Some),
            Err(fault) => Err(fault),
        };
        match done {
            Ok(Some(record)) => {
                tracing::warn!(%stop, %record, "what was stopped here while the ledger was away is durable");
                stopped.is_durable(&act);
            }
            Ok(None) => {
                tracing::warn!(%stop, "what was stopped here while the ledger was away has ended since, and is not stopped again");
                stopped.is_durable(&act);
            }
            Err(fault) => {
                tracing::warn!(%stop, %fault, "what was stopped here is not yet durable");
                stopped.waits(&act);
            }
        }
    }
}

/// Whether somebody has ended what `act` stops after that was asked for. Nothing ends a revocation.
async fn has_ended_since(ledger: &Ledger, act: &StopAct) -> Result<bool, LedgerError> {
    if act.stop.act_that_ends_it().is_none() {
        return Ok(false);
    }
    let (stop, mut after) = (act.stop.to_string(), audit::id_before(act.now));
    let ends = |record: &Record| {
        let ended = matches!(record.event, Event::Resumed | Event::Reinstated) && record.at >= act.now;
        ended && record.facts.stop.as_ref() == Some(&stop)
    };
    loop {
        let page = ledger.records_after(after, PAGE).await?;
        if page.iter().any(ends) {
            return Ok(true);
        }
        let Some(last) = page.last() else { return Ok(false) };
        after = last.id;
    }
}

/// As many records are read at once.
const PAGE: u32 = 2_000;

/// Has `stopped` know what the ledger says, and the ledger what it has lost.
///
/// # Errors
/// Where the ledger cannot be read or written, or the mirror cannot be written.
pub async fn know_stops(ledger: &Ledger, stopped: &Stopped, context: &audit::Context) -> Result<(), String> {
    let text = |fault: &dyn std::fmt::Display| fault.to_string();
    let lost = stopped.lost_by(&ledger.stops().await.map_err(|fault| text(&fault))?);
    // What was on its way there is there by now.
    let stops = ledger.stops().await.map_err(|fault| text(&fault))?;
    for kid in lost.into_iter().filter(|kid| !stops.is_revoked(kid)) {
        tracing::error!(%kid, "the ledger had lost a revocation, and learns it again from the file beside its anchor");
        let reason = "the ledger had lost it; known from the file beside its anchor".to_owned();
        let (stop, context, now) = (Stop::Revoked(kid), context.clone(), SystemClock.now());
        ledger.stop(StopAct { stop, stands: true, reason, context, now }).await.map_err(|fault| text(&fault))?;
    }
    stopped.learn(stops).map_err(|fault| text(&fault))
}

/// What a bundle's keys sign.
const PURPOSE: &str = "quote";

/// Whom of the bundle's callers the listeners let in: where it is nobody who can call, or revoke a key, the gateway is of no use and
/// cannot be stopped.
fn nobody_comes_in(bundle: &Bundle, domains: &TrustDomains) -> Vec<String> {
    let comes_in = |caller: &&Caller, domain: &Option<String>| {
        caller.trust_domain().is_none_or(|of| domain.as_deref() == Some(of))
    };
    let may_revoke =
        |caller: &&Caller| bundle.authority.decide(caller, Action::RevokeKey, Resource::Gateway, None).allowed;
    let mut problems = Vec::new();
    if !bundle.callers().any(|caller| comes_in(&caller, &domains.grpc)) {
        problems.push("policy.toml: no caller is of the trust domain in `grpc.trust_domain`, so nobody can call; mend one of them".to_owned());
    }
    let mut may_revoke = bundle.callers().filter(may_revoke).peekable();
    // That nobody may is told of the bundle itself.
    if may_revoke.peek().is_some() && !may_revoke.any(|caller| comes_in(&caller, &domains.admin)) {
        let why = "policy.toml: no caller that may revoke keys is of the trust domain in `admin.trust_domain`, so nobody could; mend one of them";
        problems.push(why.to_owned());
    }
    problems
}

/// What must hold between a bundle and this gateway.
#[must_use]
pub fn fits(
    bundle: &Bundle,
    environment: Environment,
    domains: &TrustDomains,
    accepts: impl Fn(&str, &str) -> Option<Result<(), String>>,
) -> Vec<String> {
    let mut problems = Vec::new();
    if bundle.environment == environment {
        problems.extend(nobody_comes_in(bundle, domains));
    } else {
        let theirs = bundle.environment;
        problems.push(format!(
            "policy.toml: `environment` = `{theirs}`, and this gateway is for {environment}; use its own bundle"
        ));
    }
    for key in bundle.timeline.all() {
        for (signer, place) in &key.places {
            let kid = &key.kid;
            match accepts(signer, place) {
                None => problems.push(format!(
                    "policy.toml: key `{kid}`: no signer of the gateway's config is named `{signer}`; add it or mend the name"
                )),
                Some(Err(why)) => {
                    problems.push(format!("policy.toml: key `{kid}`: `locator` does not fit the signer `{signer}`: {why}"));
                }
                Some(Ok(())) => {}
            }
        }
    }
    problems
}

/// What must hold between a bundle and how long the ledger keeps quotes beyond their expiry, but in development: a quote that was
/// forgotten would be signed with another payload while the first can be presented.
#[must_use]
pub fn is_kept(bundle: &Bundle, keep: Duration) -> Option<String> {
    let wanted = bundle.validity.presentable();
    (bundle.environment != Environment::Development && keep < wanted).then(|| {
        format!(
            "policy.toml: `validity.late_acceptance_s` and `clock_skew_s`: a quote can be presented for {} s after its expiry, and the ledger \
             keeps it for {} s; make `ledger.keep_days` greater",
            wanted.as_secs(),
            keep.as_secs()
        )
    })
}

/// What must hold between a bundle and the keys that the gateway has sign other things: one key serves one purpose.
#[must_use]
pub fn is_apart(bundle: &Bundle, key: &PublicKey) -> Option<String> {
    let same = bundle
        .timeline
        .all()
        .find(|quotes| quotes.public.same_key(key.modulus(), key.exponent()) || quotes.kid == *key.kid())?;
    Some(format!(
        "policy.toml: the key `{}` is the one that signs checkpoints, or has its kid; take another for quotes",
        same.kid
    ))
}

/// What must hold between a bundle and the one before it, here or in the ledger's memory: the serial rises with
/// every change.
#[must_use]
pub fn follows(bundle: &Bundle, serial: u64, digest: &str) -> Option<String> {
    let new = bundle.serial;
    match () {
        () if new < serial => {
            Some(format!("policy.toml: `serial` = {new} is below {serial}, which was in force; a serial never falls"))
        }
        () if new == serial && bundle.digest.to_string() != digest => {
            Some(format!("policy.toml: the bundle has changed and `serial` is still {serial}; raise it"))
        }
        () => None,
    }
}

/// What a bundle may not do to the keys of the one before it: a kid keeps its key and partner for ever, stays until
/// its time is over (unless it was revoked), and what has begun for it is not moved.
#[must_use]
pub fn keeps_keys(bundle: &Bundle, current: &Bundle, standings: &Standings, now: UtcTime) -> Vec<String> {
    let mut problems = Vec::new();
    for old in current.timeline.all() {
        let (kid, standing) = (&old.kid, standings.of(&old.kid));
        let Some(new) = bundle.key(kid) else {
            if current.timeline.is_shown(old, now, standing) {
                problems.push(format!("policy.toml: the key `{kid}` is gone before its `retire_at`; put it back"));
            }
            continue;
        };
        if !new.public.same_key(old.public.modulus(), old.public.exponent()) || new.partner != old.partner {
            problems.push(format!(
                "policy.toml: the kid `{kid}` belongs to another key or partner; give the new key a kid of its own"
            ));
        }
        let begun = [
            ("publish_at", old.publish_at, new.publish_at),
            ("sign_from", old.sign_from, new.sign_from),
            ("sign_until", old.sign_until, new.sign_until),
            ("retire_at", old.retire_at, new.retire_at),
        ];
        for (field, was, is) in begun.into_iter().filter(|(_, was, is)| *was <= now && was != is) {
            problems
                .push(format!("policy.toml: key `{kid}`: `{field}` has passed and cannot be moved from {was} to {is}"));
        }
    }
    problems
}

/// What a bundle may not do to the keys of any bundle ever: the ledger remembers each kid's.
fn knows_keys(bundle: &Bundle, remembered: &BTreeMap<Kid, Kept>) -> Vec<String> {
    let was_another =
        |key: &&Arc<TimedKey>| remembered.get(&key.kid).is_some_and(|before| !before.is_same_key(&kept(key)));
    let told = |key: &Arc<TimedKey>| {
        format!(
            "policy.toml: the kid `{}` was another key or partner's before; give the new key a kid of its own",
            key.kid
        )
    };
    bundle.timeline.all().filter(was_another).map(told).collect()
}

/// Binds the keyring to the keys of a bundle. The loader has checked every locator.
///
/// # Errors
/// Where a key names a signer that the config does not have; [`fits`] says it better and earlier.
pub fn bind(keyring: &Keyring, bundle: &Bundle) -> Result<(), KeyringError> {
    keyring.bind(bundle.timeline.all().map(|key| Binding {
        public: key.public.clone(),
        places: key.places.clone(),
        attributes: attributes_of(key),
    }))
}

/// What policy asks a key to state of itself, as signers know it.
#[must_use]
pub fn attributes_of(key: &TimedKey) -> Attributes {
    match key.attributes {
        AttributesRule::Require => Attributes::Require,
        AttributesRule::Warn => Attributes::Warn,
        AttributesRule::Off => Attributes::Off,
    }
}
