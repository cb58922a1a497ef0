//! One pinned key in AWS KMS: an order's way through turn and call, what an answer must be, and what its
//! outcome says of the key. When it is probed is left to `watch`.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Shared,
    breaker::Breaker,
    client::{RS256, Signed},
    fault::{Fault, Kind},
};
use crate::signer::locator::{ArnError, KeyArn};
use crate::{
    domain::InputDigest,
    jwk::PublicKey,
    jws::SigningInput,
    signer::{
        Health, Order, Pinned, SignError, Signature, Signer,
        standing::Standing,
        turns::{Turn, Turns},
    },
};

/// A key that policy pins.
pub(super) struct Key {
    pub(super) arn: KeyArn,
    pub(super) pinned: Pinned,
    /// Told when the breaker opens.
    pub(super) opened: Notify,
    standing: Standing,
    breaker: Mutex<Breaker>,
    shared: Arc<Shared>,
}

impl Key {
    pub(super) fn new(pinned: Pinned, shared: Arc<Shared>) -> Result<Self, ArnError> {
        let arn = KeyArn::parse(&pinned.locator, &shared.config.region)?;
        let standing = Standing::new(Arc::clone(&pinned.public), &shared.config.name);
        let breaker = Mutex::new(Breaker::open(Fault::new(Kind::Refused, "not probed yet")));
        Ok(Self { arn, pinned, opened: Notify::new(), standing, breaker, shared })
    }

    /// Reads its breaker.
    pub(super) fn breaker<T>(&self, read: impl FnOnce(&Breaker) -> T) -> T {
        read(&self.breaker.lock())
    }

    /// Changes its breaker, and tells how the key stands since.
    fn change(&self, change: impl FnOnce(&mut Breaker)) {
        let mut breaker = self.breaker.lock();
        let was_open = breaker.why_open().is_some();
        change(&mut breaker);
        let now = match breaker.why_open() {
            None => Health::Serving,
            Some(why) => Health::NotServing(why.to_string()),
        };
        let opened = !was_open && now != Health::Serving;
        self.standing.set(now);
        if opened {
            self.opened.notify_one();
        }
    }

    /// Takes down that a call for this key failed.
    pub(super) fn failed(&self, fault: &Fault) {
        if fault.is_of_device() {
            self.shared.pulse.silent(fault);
        } else {
            self.shared.pulse.heard();
        }
        self.change(|breaker| breaker.failed(fault, Instant::now()));
    }

    /// Takes the key out of service.
    pub(super) fn trip(&self, why: Fault) {
        self.change(|breaker| breaker.trip(why));
    }

    /// Takes down that a test signature verified, begun when the breaker had opened `opened` times.
    pub(super) fn verified(&self, opened: u64) {
        self.change(|breaker| breaker.verified(opened, Instant::now()));
    }

    /// Asks KMS. Once begun it is not torn by a caller that leaves, so that what it says of the key is not lost.
    pub(super) async fn call(
        self: &Arc<Self>,
        input: &SigningInput,
        order: &Order,
        turn: Turn,
    ) -> Result<Signature, SignError> {
        let (key, digest, deadline) = (Arc::clone(self), input.digest(), order.deadline);
        let call = self.shared.spawn(async move { key.ask(digest, deadline, turn).await });
        call.await.unwrap_or_else(|_| Err(SignError::Lost("the task of the call ended".to_owned())))
    }

    async fn ask(&self, digest: InputDigest, deadline: Instant, turn: Turn) -> Result<Signature, SignError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(answer) = timeout_at(deadline.into(), self.shared.client.sign(&self.arn, digest)).await else {
            // An order that leaves KMS less time than a request may take says nothing of it.
            if left >= self.shared.config.attempt_timeout {
                self.failed(&Fault::no_answer("Sign"));
            }
            return Err(SignError::TimedOut);
        };
        let signed = answer.inspect_err(|fault| self.failed(fault)).map_err(|fault| fault.to_order())?;
        self.shared.pulse.heard();
        let took = signed.took;
        let signature = self.accept(signed).map_err(|fault| {
            let told = fault.to_order();
            self.trip(fault);
            told
        })?;
        self.breaker.lock().signed(Instant::now());
        turn.answered(took);
        Ok(signature)
    }

    /// Takes an answer only if it is one to what was asked.
    fn accept(&self, signed: Signed) -> Result<Signature, Fault> {
        if signed.key != self.arn.as_str() {
            return Err(Fault::nonsense("another key has signed"));
        }
        if signed.algorithm != RS256 {
            return Err(Fault::nonsense("it was signed with another algorithm"));
        }
        let (is, want) = (signed.signature.len(), self.pinned.public.modulus().len());
        if is != want {
            return Err(Fault::nonsense(&format!("the signature has {is} bytes and must have {want}")));
        }
        Ok(Signature(signed.signature))
    }

    fn check_serving(&self) -> Result<(), SignError> {
        self.shared.check_open()?;
        if let Some(why) = self.shared.pulse.waits_for() {
            return Err(why.to_order_refused());
        }
        self.breaker(|breaker| breaker.why_open().map_or(Ok(()), |why| Err(why.to_order_refused())))
    }
}

/// What the outside holds of a key; dropping it ends its watch.
pub(super) struct KeySigner {
    key: Arc<Key>,
    _watch: DropGuard,
}

impl KeySigner {
    /// Holds the key; `gone` is cancelled when it is let go.
    pub(super) fn new(key: Arc<Key>, gone: CancellationToken) -> Self {
        Self { key, _watch: gone.drop_guard() }
    }
}

#[async_trait]
impl Signer for KeySigner {
    async fn sign(&self, input: &SigningInput, order: &Order) -> Result<Signature, SignError> {
        self.key.check_serving()?;
        let turn = self.turns().turn(order).await?;
        // It may have gone out of service meanwhile.
        self.key.check_serving()?;
        self.key.call(input, order, turn).await
    }

    fn public_key(&self) -> &Arc<PublicKey> {
        &self.key.pinned.public
    }

    fn health(&self) -> Health {
        let shared = &self.key.shared;
        if let Err(SignError::Unavailable(why)) = shared.check_open() {
            return Health::NotServing(why);
        }
        match shared.pulse.waits_for() {
            Some(why) => Health::NotServing(why.to_string()),
            None => self.key.standing.health(),
        }
    }

    fn turns(&self) -> &Arc<Turns> {
        &self.key.shared.turns
    }

    fn distrust(&self, why: &str) {
        self.key.trip(Fault::new(Kind::Failed, format!("a signature of it was not to be trusted: {why}")));
    }
}
