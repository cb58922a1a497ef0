//! What a gateway does by itself beside its calls.

use std::{sync::Arc, time::Duration};

use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock as _, SystemClock},
    control::{self, Control, ReloadError},
    ledger::{LedgerError, Prune, SWEEP_MAX},
    pipeline::Pipeline,
    policy::Notice,
    service::access,
    telemetry::Metrics,
};

/// How often it looks at what others have stopped: their key sets must follow within a second.
const LOOK: Duration = Duration::from_millis(500);
/// How often the timelines are.
const LOOK_AHEAD: Duration = Duration::from_mins(1);
/// How many quotes are pruned in one batch.
const PRUNE_MAX: u32 = 256;
/// How many batches one round has of each kind.
const BATCHES_MAX: u32 = 1_000;

/// Voids what expired unsigned, so that every burnt number is explained, journals what was only counted and who has read the
/// journal beside it (also at the start), and forgets what expired more than `keep` ago.
pub(super) async fn sweep(pipeline: Arc<Pipeline>, every: Duration, keep: Duration, stop: CancellationToken) {
    loop {
        journal_readings(&pipeline).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let context = access::own_trail(pipeline.environment, &pipeline.policy.load());
        pipeline.journal_counted(&context);
        let Ok(now) = pipeline.clock.now() else { continue };
        match in_batches(SWEEP_MAX, &stop, || pipeline.ledger.sweep(context.clone(), now)).await {
            Ok(0) => {}
            Ok(voided) => tracing::info!(voided, "reservations that expired unsigned were voided"),
            Err(fault) => tracing::warn!(%fault, "expired reservations could not be voided"),
        }
        let prune = Prune { before: now.minus(keep), count_max: PRUNE_MAX, context, now };
        let some = || pipeline.ledger.prune(prune.clone());
        if let Err(fault) = in_batches(PRUNE_MAX as usize, &stop, some).await {
            tracing::warn!(%fault, "expired quotes could not be pruned");
        }
    }
}

/// Journals the notes of reads that commands have left, once this gateway is known to be one of the ledger's.
async fn journal_readings(pipeline: &Pipeline) {
    if pipeline.has_joined().is_err() {
        return;
    }
    let context = access::own_trail(pipeline.environment, &pipeline.policy.load());
    if let Err(fault) = pipeline.ledger.journal_readings(&context).await {
        tracing::warn!(%fault, "who has read the journal could not be journalled yet");
    }
}

/// A bounded number of batches of at most `size`, each of which lets calls in between, until one is not full; how many that were.
async fn in_batches<B: Future<Output = Result<usize, LedgerError>>>(
    size: usize,
    stop: &CancellationToken,
    batch: impl Fn() -> B,
) -> Result<usize, LedgerError> {
    let mut done = 0;
    for _ in 0..BATCHES_MAX {
        let some = batch().await?;
        done += some;
        if some < size || stop.is_cancelled() {
            break;
        }
    }
    Ok(done)
}

/// Looks at what is stopped, here and by others.
pub(super) async fn look_at_stops(pipeline: Arc<Pipeline>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let has_lost = control::look_at_stops(&pipeline.ledger, &pipeline.stopped).await;
        if has_lost && pipeline.has_joined().is_ok() && pipeline.ledger.health().is_ok() {
            let trail = access::own_trail(pipeline.environment, &pipeline.policy.load());
            if let Err(fault) = control::know_stops(&pipeline.ledger, &pipeline.stopped, &trail).await {
                tracing::error!(%fault, "the ledger has lost a revocation, and does not know it again yet");
            }
        }
    }
}

/// Looks how much room there is where the ledger is.
pub(super) async fn look_at_room(pipeline: Arc<Pipeline>, stop: CancellationToken) {
    while pipeline.room.is_watched() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let looks = pipeline.clone();
        let _looked = tokio::task::spawn_blocking(move || looks.room.look()).await;
    }
}

/// Makes durable what was stopped here while the ledger was away; beside the look at what others have stopped, which must not
/// wait for it.
pub(super) async fn make_durable(pipeline: Arc<Pipeline>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        control::make_durable(&pipeline.ledger, &pipeline.stopped).await;
    }
}

/// Reads the bundle again at SIGHUP.
pub(super) async fn reload_on_hangup(control: Arc<Control>, pipeline: Arc<Pipeline>, stop: CancellationToken) {
    let Ok(mut hangups) = tokio::signal::unix::signal(SignalKind::hangup()) else { return };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = hangups.recv() => {}
        }
        let context = access::own_trail(pipeline.environment, &pipeline.policy.load());
        if let Err(fault) = control.reload(context).await {
            tracing::error!(%fault, "SIGHUP: the policy bundle was not reloaded");
        }
    }
}

/// Reads the bundle again where `bundle.digest` announces another one than is in force. It is looked at rather than
/// watched for, since directories that are swapped by a link, as Kubernetes does it, tell no watcher of it.
pub(super) async fn reload_on_change(control: Arc<Control>, pipeline: Arc<Pipeline>, stop: CancellationToken) {
    // What was refused is not tried again until it changes, or its signature does.
    let mut refused = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let policy = pipeline.policy.load_full();
        let Some(announced) = control.announced().await else { continue };
        if announced.0 == policy.digest || refused.as_ref() == Some(&announced) {
            continue;
        }
        match control.reload(access::own_trail(pipeline.environment, &policy)).await {
            Ok(_) => refused = None,
            Err(fault) => {
                tracing::error!(%fault, "the policy bundle changed on disk and was not reloaded");
                // A ledger that could not journal it is asked again.
                refused = matches!(fault, ReloadError::Refused(_)).then_some(announced);
            }
        }
    }
}

/// Warns of what lies ahead on the timelines, once for each thing.
pub(super) async fn look_ahead(pipeline: Arc<Pipeline>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut told: Vec<Notice> = Vec::new();
    loop {
        let policy = pipeline.policy.load_full();
        let (now, standings) = (SystemClock.now(), pipeline.standings());
        let mut notices = policy.ahead(now, |kid| standings.of(kid).is_revoked);
        if pipeline.has_joined().is_ok() {
            notices.extend(policy.obstacles(now, |kid| standings.of(kid)));
        }
        let is_new =
            |notice: &&Notice| told.iter().all(|old| (&old.partner, &old.text) != (&notice.partner, &notice.text));
        for notice in notices.iter().filter(is_new) {
            tracing::warn!(partner = %notice.partner, at = %notice.at, "{}", notice.text);
        }
        metrics.timeline_warnings(policy.partners().map(|partner| {
            (partner.id.as_str(), notices.iter().filter(|notice| notice.partner == partner.id).count())
        }));
        told = notices;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_AHEAD) => {}
        }
    }
}
