//! What signs: a role that a device plays for one key. A signer sees bytes to sign and a deadline; policy,
//! quotes and the ledger are unknown to it.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;

use crate::{jwk::PublicKey, jws::SigningInput};

pub mod locator;
pub mod keyring;
pub mod pkcs11;

/// An RS256 signature as the device gave it; not yet verified.
#[derive(Clone)]
pub struct Signature(pub(crate) Vec<u8>);

/// Why a signer gave no signature, sorted by whose fault it is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignError {
    /// The device's queue is full. No work was begun.
    #[error("the device's queue is full")]
    Full,
    /// The deadline passed before the device answered; the device may still be at it.
    #[error("the device did not answer in time")]
    TimedOut,
    /// The device is away or cannot sign with this key for the moment.
    #[error("the device cannot sign: {0}")]
    Unavailable(String),
    /// The key on the device is not the one that policy pins, or may not be used. Nothing but an operator heals it.
    #[error("the key on the device is unfit: {0}")]
    Unfit(String),
}

/// How a key fares, as its last verified signature says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Its last signature, of a probe or a quote, verified.
    Serving,
    /// Why it cannot sign.
    NotServing(String),
}

/// One key on one device.
#[async_trait]
pub trait Signer: Send + Sync + 'static {
    /// Signs with RS256. The caller verifies.
    async fn sign(&self, input: &SigningInput, deadline: Instant) -> Result<Signature, SignError>;
    /// The key's public half, as policy pins it; the device's own was compared with it before it first signed.
    fn public_key(&self) -> &Arc<PublicKey>;
    /// How the key fares.
    fn health(&self) -> Health;
}
