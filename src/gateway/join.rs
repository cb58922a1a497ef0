//! How a gateway takes its place at the ledger: what it must know before it signs, and what the ledger must know of it.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    audit::{Event, Facts, Record},
    clock::{Clock as _, SystemClock, UtcTime},
    control::{self, Control},
    domain::Kid,
    jwk::PublicKey,
    ledger::{Kept, LedgerError, stops::Stops},
    pipeline::Pipeline,
    policy::{Bundle, timeline::TimedKey},
    service::access,
};

/// How often a ledger that was not there is asked whether it is.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a gateway did not take its place.
#[derive(Debug)]
pub(super) enum NotJoined {
    /// The ledger cannot do its part at the moment.
    Away(String),
    /// What the ledger holds and what this gateway has do not go together; one line a problem.
    Unfit(Vec<String>),
}

impl NotJoined {
    pub(super) fn lines(self) -> Vec<String> {
        match self {
            Self::Away(why) => vec![why],
            Self::Unfit(lines) => lines,
        }
    }
}

impl From<LedgerError> for NotJoined {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Refused(refusal) => Self::Unfit(vec![refusal.to_string()]),
            LedgerError::Unavailable(why) => Self::Away(why),
            LedgerError::Full => Self::Away(error.to_string()),
        }
    }
}

/// Holds the bundle against the newest record of every gateway, learns what is stopped and how late it is, makes the kids known, and
/// journals the start. From then on the gateway signs.
pub(super) async fn join(pipeline: &Pipeline, control: &Control) -> Result<(), NotJoined> {
    let (ledger, policy) = (&pipeline.ledger, pipeline.policy.load_full());
    let mut records = ledger.newest_records().await?;
    let newest = records.iter().map(|record| record.at).max();
    // Who still runs an older bundle may have written last.
    records.sort_by_key(|record| Reverse(record.context.policy_serial));
    let follows =
        |Record { context, .. }: &Record| control::follows(&policy, context.policy_serial, &context.policy_digest);
    if let Some(problem) = records.iter().find_map(follows) {
        let newest = records.first().map_or(0, |record| record.context.policy_serial);
        // One that tries a bundle out takes nobody's key sets away.
        let newer = records.iter().filter(|record| record.context.policy_serial > policy.serial).count();
        if newer > 0 && newer.saturating_mul(2) >= records.len() {
            let why =
                format!("this gateway has the bundle {} where another had {newest}; reload its bundle", policy.serial);
            pipeline.published.is_behind(newest, why);
        }
        return Err(NotJoined::Unfit(vec![format!("{}/{problem}", control.dir.display())]));
    }
    if let Some(newest) = ledger.newest_record_at().await? {
        pipeline.clock.journal_reached(newest);
    }
    let context = access::own_trail(pipeline.environment, &policy);
    let started = Record::new(Event::Started, SystemClock.now(), context, Facts::default());
    control::know_stops(ledger, &pipeline.stopped, &started.context).await.map_err(NotJoined::Away)?;
    control::publish(ledger, &policy, &started.context).await?;
    let kids = ledger.kids().await?;
    // A clock that has fallen behind makes no key look younger than it is.
    let now = newest.map_or(SystemClock.now(), |newest| newest.max(SystemClock.now()));
    let mut misfits = vanished(&policy, &kids, &pipeline.stopped.known(), now);
    misfits.extend(taken_back(&policy, &kids, now));
    misfits.extend(control.checkpoint_key.as_ref().and_then(|key| has_signed_quotes(key, &kids)));
    if !misfits.is_empty() {
        return Err(NotJoined::Unfit(misfits));
    }
    // What was known to verifiers before a restart is known after it, from the first quote on.
    pipeline.published.learn(kids);
    ledger.record(started).await?;
    pipeline.joined.store(true, Ordering::Release);
    Ok(())
}

/// Kids that the bundle no longer has although quotes that they signed can still be presented, each in words.
fn vanished(policy: &Bundle, kids: &BTreeMap<Kid, Kept>, stops: &Stops, now: UtcTime) -> Vec<String> {
    let late = policy.validity.late_acceptance();
    let counts = |kept: &Kept| kept.last_expiry.is_some_and(|last| last.plus(late) > now);
    let gone = kids.iter().filter(|(kid, kept)| policy.key(kid).is_none() && !stops.is_revoked(kid) && counts(kept));
    let told = |(kid, _): (&Kid, &Kept)| {
        format!("policy.toml: the key `{kid}` has signed quotes that can still be presented and is gone; put it back")
    };
    gone.map(told).collect()
}

/// That a quote key of any bundle there ever was is the one for checkpoints, in words.
fn has_signed_quotes(key: &PublicKey, kids: &BTreeMap<Kid, Kept>) -> Option<String> {
    let is_same = |kept: &Kept| {
        PublicKey::from_jwk(kept.jwk.as_bytes()).is_ok_and(|quotes| quotes.same_key(key.modulus(), key.exponent()))
    };
    let (kid, _) = kids.iter().find(|(kid, kept)| *kid == key.kid() || is_same(kept))?;
    Some(format!("`audit.checkpoint.public_key` is, or was, the key `{kid}` of quotes; take a key of its own"))
}

/// Kids that the bundle would have begin again where they were further already, each in words.
fn taken_back(policy: &Bundle, kids: &BTreeMap<Kid, Kept>, now: UtcTime) -> Vec<String> {
    let told = |key: &Arc<TimedKey>| {
        let (was, is) = (kids.get(&key.kid)?.state?, key.state(now));
        (was > is).then(|| {
            format!(
                "policy.toml: the key `{}` was {was} and would be {is} again; put its times back, or make a new key",
                key.kid
            )
        })
    };
    policy.timeline.all().filter_map(told).collect()
}

/// Joins a ledger that was not there at the start.
pub(super) async fn until_joined(pipeline: Arc<Pipeline>, control: Arc<Control>, stop: CancellationToken) {
    let mut told = String::new();
    while pipeline.has_joined().is_err() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
        match join(&pipeline, &control).await {
            Ok(()) => tracing::info!("the ledger was reached, and this gateway signs"),
            Err(NotJoined::Away(why)) => tracing::debug!(why, "the ledger cannot be reached yet"),
            Err(unfit) => {
                let why = unfit.lines().join("; ");
                if why != told {
                    tracing::error!(why, "the ledger was reached, and this gateway must not sign");
                    told = why;
                }
            }
        }
    }
}
