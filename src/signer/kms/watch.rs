//! The task that looks after one key: asks KMS what the key is, has it prove itself by test signatures that are
//! verified here, and tries until it is back when it is out of service.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    PAUSE_MIN, Shared,
    breaker::Breaker,
    fault::{Fault, Kind},
    fitness::{self, Remarks},
    key::Key,
};
use crate::{
    jws::SigningInput,
    signer::{Flow, Order, jittered},
};

/// How long a test signature may wait for its turn.
const TURN_MAX: Duration = Duration::from_secs(2);

/// Looks after a key until it is gone.
pub(super) async fn watch(key: Arc<Key>, gone: CancellationToken, shared: Arc<Shared>) {
    let watching = async {
        shared.pulse.ready().await;
        let mut watch = Watch::new(Arc::clone(&shared));
        loop {
            let pause = watch.round(&key).await;
            tokio::select! {
                () = sleep(pause) => {}
                () = key.opened.notified() => sleep(watch.backoff()).await,
            }
        }
    };
    // A call that has begun has a task of its own, and is not torn.
    tokio::select! {
        () = gone.cancelled() => {}
        () = watching => {}
    }
}

struct Watch {
    shared: Arc<Shared>,
    check_at: Instant,
    remarks: Option<Remarks>,
    pause: Duration,
    serves_since: Option<Instant>,
}

impl Watch {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, check_at: Instant::now(), remarks: None, pause: PAUSE_MIN, serves_since: None }
    }

    /// Does what is due, and says when to come again.
    async fn round(&mut self, key: &Arc<Key>) -> Duration {
        let troubled = key.breaker(Breaker::is_troubled);
        let fits = if troubled || self.check_at <= Instant::now() { self.check(key).await } else { true };
        if fits && (troubled || self.probe_at(key) <= Instant::now()) {
            probe(key, &self.shared).await;
        }
        if key.breaker(Breaker::is_troubled) {
            if key.breaker(|breaker| breaker.why_open().is_some()) {
                self.serves_since = None;
            }
            let pause = self.backoff();
            self.pause = (self.pause * 2).min(self.pause_max());
            return pause;
        }
        // A key that is lost again soon after it came back is tried less often.
        if self.serves_since.get_or_insert_with(Instant::now).elapsed() >= self.shared.config.probe_interval {
            self.pause = PAUSE_MIN;
        }
        self.check_at.min(self.probe_at(key)).saturating_duration_since(Instant::now()).max(PAUSE_MIN / 10)
    }

    fn backoff(&self) -> Duration {
        jittered(self.pause)
    }

    fn pause_max(&self) -> Duration {
        self.shared.config.probe_interval.max(PAUSE_MIN)
    }

    /// A key that signed a moment ago need not prove that it can.
    fn probe_at(&self, key: &Key) -> Instant {
        let interval = self.shared.config.probe_interval;
        key.breaker(Breaker::signed_at).map_or_else(Instant::now, |signed| signed + interval)
    }

    /// Asks what the key is; tells whether it may be used.
    async fn check(&mut self, key: &Key) -> bool {
        let config = &self.shared.config;
        let checked = fitness::check(&*self.shared.client, &key.arn, key.pinned.attributes).await;
        let checked = checked.and_then(|(public, remarks)| {
            fitness::is_pinned(&key.pinned.public, &public)?;
            Ok(remarks)
        });
        match checked {
            Ok(remarks) => {
                self.check_at = Instant::now() + jittered(config.check_interval);
                self.shared.pulse.heard();
                if self.remarks.as_ref() != Some(&remarks) {
                    let kid = key.pinned.public.kid();
                    for remark in &remarks.0 {
                        tracing::warn!(%kid, signer = %config.name, remark, "the key signs, with a remark");
                    }
                    self.remarks = Some(remarks);
                }
                true
            }
            // Whoever signs need not be out of service since a question about it went unanswered.
            Err(fault) if !fault.is_lasting() && key.breaker(|breaker| breaker.why_open().is_none()) => {
                let (kid, signer) = (key.pinned.public.kid(), &config.name);
                tracing::warn!(%kid, signer, why = %fault, "the key could not be checked");
                self.check_at = Instant::now() + jittered(config.probe_interval);
                true
            }
            Err(fault) => {
                key.failed(&fault);
                if fault.kind == Kind::Credentials {
                    self.shared.renew_credentials().await;
                }
                false
            }
        }
    }
}

/// Has the key sign something of no use, and verifies it.
async fn probe(key: &Arc<Key>, shared: &Shared) {
    let opened = key.breaker(Breaker::opened);
    let input = SigningInput::fresh_probe();
    let order = Order::new(Flow::OWN, Instant::now() + TURN_MAX + shared.config.call_timeout);
    // A test signature that finds no room says nothing, and takes none from whoever was given a place; and what a call says of the
    // key, the call has taken down.
    let Ok(_place) = shared.turns.place(order.flow, order.deadline) else { return };
    let Ok(turn) = shared.turns.turn(&order).await else { return };
    if let Ok(signature) = key.call(&input, &order, turn).await {
        if key.pinned.public.verifies(input.bytes(), signature.bytes()) {
            key.verified(opened);
        } else {
            key.trip(Fault::unfit("its test signature does not verify with the key that policy pins"));
        }
    }
}
