//! What signs: a role that a device plays for one key. A signer sees bytes to sign and an order; policy, quotes
//! and the ledger are unknown to it.
//!
//! - `turns`: what a device can take, shared fairly
//! - `pkcs11`, `kms`: the devices
//! - `keyring`: which devices hold which kid, and which of them is asked

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::turns::Turns;
use crate::{jwk::PublicKey, jws::SigningInput};

pub mod locator;
pub mod turns;
pub mod provision;
pub mod standing;
pub mod keyring;
pub mod pkcs11;
#[cfg(feature = "kms")]
pub mod kms;

/// An RS256 signature as the device gave it; not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature(pub(crate) Vec<u8>);

impl Signature {
    /// The big-endian integer of RFC 8017, as long as the modulus.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// When a signature is wanted, and for whom.
#[derive(Debug, Clone)]
pub struct Order {
    /// When it is of no use any more.
    pub deadline: Instant,
    /// For whom: orders of different flows take turns at a device.
    pub flow: Flow,
    /// Cancelled when nobody waits for it any more. An order that has not reached its device by then is dropped.
    pub gone: CancellationToken,
}

impl Order {
    /// An order that nobody takes back.
    #[must_use]
    pub fn new(flow: Flow, deadline: Instant) -> Self {
        Self { deadline, flow, gone: CancellationToken::new() }
    }
}

/// Whose orders take turns with whose; a number that says nothing about who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow(pub u64);

impl Flow {
    /// The gateway's own: probes and checkpoints.
    pub const OWN: Self = Self(0);
}

/// Why a signer gave no signature, sorted by whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The order was taken back before it reached the device. No work was begun.
    #[error("nobody waits for this signature any more")]
    Gone,
    /// As many orders wait for the device as may. No work was begun.
    #[error("as many orders wait for the device as may")]
    Full,
    /// The deadline passed before the device answered; the device may still be at it.
    #[error("the device did not answer in time")]
    TimedOut,
    /// The device failed while it had the order, and may be back in a moment: worth another try.
    #[error("the device was lost before it answered: {0}")]
    Lost(String),
    /// The device is away or cannot sign with this key for the moment.
    #[error("the device cannot sign: {0}")]
    Unavailable(String),
    /// The key on the device is not the one that policy pins, or may not be used, or does not sign so much at once.
    /// Nothing but an operator heals it.
    #[error("the key on the device is unfit: {0}")]
    Unfit(String),
}

/// How a key fares, as its last verified signature says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Its last signature, of a probe or a quote, verified.
    Serving,
    /// It signed until a moment ago and its device is being brought back: orders wait for it, for a short while.
    Recovering(String),
    /// Why it cannot sign.
    NotServing(String),
}

impl Health {
    /// Whether orders may be given.
    #[must_use]
    pub fn takes_orders(&self) -> bool {
        matches!(self, Self::Serving | Self::Recovering(_))
    }
}

/// What is asked of a key before it signs: that it states it was generated on its device and cannot leave it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attributes {
    /// A key that does not state it is unfit.
    #[default]
    Require,
    /// It signs, and the log says so.
    Warn,
    /// Nobody looks.
    Off,
}

/// A key as policy pins it, for a device to bind.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// Its public half, and its kid.
    pub public: Arc<PublicKey>,
    /// Where the device finds it: an RFC 7512 URI, or a key ARN.
    pub locator: String,
    /// What it must state of itself.
    pub attributes: Attributes,
}

/// One device: what the gateway's config calls a signer.
#[async_trait]
pub trait Device: Send + Sync + 'static {
    /// Whether a key could lie there on a device of this kind.
    ///
    /// # Errors
    /// What is wrong with the locator.
    fn accepts(&self, locator: &str) -> Result<(), String>;
    /// A key of this device, as policy pins it. It is probed as long as the signer lives.
    ///
    /// # Errors
    /// Where the locator is not of this device's kind: what is wrong with it.
    fn key(&self, pinned: Pinned) -> Result<Arc<dyn Signer>, String>;
    /// How the device fares. A key has a health of its own.
    fn health(&self) -> Health;
    /// What it can take.
    fn turns(&self) -> &Arc<Turns>;
    /// Ends its work, within bounds.
    async fn close(&self);
}

/// One key on one device.
#[async_trait]
pub trait Signer: Send + Sync + 'static {
    /// Signs with RS256. The caller verifies, and tells of a signature that does not by [`Signer::distrust`].
    async fn sign(&self, input: &SigningInput, order: &Order) -> Result<Signature, SignError>;
    /// The key's public half, as policy pins it; the device's own was compared with it before it first signed.
    fn public_key(&self) -> &Arc<PublicKey>;
    /// How the key fares.
    fn health(&self) -> Health;
    /// What its device can take.
    fn turns(&self) -> &Arc<Turns>;
    /// Takes the key out of service until a test signature of it verifies.
    fn distrust(&self, why: &str);
}

/// `pause` give or take a tenth, so that replicas do not move in step.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let [.., random] = Uuid::now_v7().into_bytes();
    pause.mul_f64(0.9 + 0.2 * f64::from(random) / 255.0)
}
