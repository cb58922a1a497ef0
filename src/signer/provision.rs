//! What commands ask of a device and the gateway never does: to generate keys, and to tell which it holds.

use async_trait::async_trait;

use super::Attributes;
use crate::{domain::Kid, jwk::PublicKey};

/// Why a device did not make or show a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvisionError {
    /// What was asked for cannot be: the size, the label, a locator.
    #[error("{0}")]
    Invalid(String),
    /// Something on the device has the name already.
    #[error("`{0}` exists already; a kid is never used again")]
    Exists(String),
    /// The device has no such key.
    #[error("the device holds no key `{0}`")]
    Missing(String),
    /// The key did not do what it should.
    #[error("the key is unfit: {0}")]
    Unfit(String),
    /// The device refuses the PIN. Another try could lock it.
    #[error("{0}")]
    Pin(String),
    /// The device failed.
    #[error("{0}")]
    Device(String),
}

/// A key to generate.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its kid, which is its name on the device too.
    pub kid: Kid,
    /// The partner it is for; a device that takes tags is told.
    pub partner: String,
    /// The modulus' length in bits.
    pub bits: u32,
}

/// A key on a device that was tried out: its test signature verified.
#[derive(Debug)]
pub struct Provisioned {
    /// Its public half.
    pub public: PublicKey,
    /// Where policy finds it.
    pub locator: String,
    /// Whether it was there before, made by an earlier run of the same command.
    pub existed: bool,
}

/// A key that a device lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name on the device, if it has one.
    pub name: Option<String>,
    /// Where policy finds it.
    pub locator: String,
    /// The modulus' length in bits, where the device tells.
    pub bits: Option<u32>,
    /// The RFC 7638 thumbprint of its public half, where the device tells it.
    pub thumbprint: Option<String>,
    /// Nothing where it may sign under `attributes = "require"`; else why not.
    pub unfit: Option<String>,
}

/// What a device shows of itself and of some of its keys. A part that was not come to is told by the one before.
#[derive(Debug)]
pub struct Examination {
    /// What the device says it is, and how it can be asked for RS256.
    pub reached: Result<String, ProvisionError>,
    /// Whether it let the gateway in: what was said, or why not. One attempt is made.
    pub entered: Result<String, ProvisionError>,
    /// The keys, in the order in which they were asked for; empty where nobody came to them.
    pub keys: Vec<Result<Examined, ProvisionError>>,
}

/// What a device shows of a key.
#[derive(Debug)]
pub struct Examined {
    /// Modulus and public exponent, or why they are not told.
    pub public: Result<(Vec<u8>, Vec<u8>), String>,
    /// What it lacks that shows that it was made on the device, cannot leave it and may be used.
    pub lacks: Vec<String>,
    /// What is worth telling beside.
    pub remarks: Vec<String>,
    /// How its test signature was made, which verifies with its own public half; or why there is none.
    pub signs: Result<String, String>,
}

/// A device as commands see it.
#[async_trait]
pub trait Provision: Send + Sync {
    /// Generates a key that cannot leave the device, and tries it. A device that can tell its own earlier work
    /// answers a repeated request with the key it made then.
    ///
    /// # Errors
    /// What the device refused, or why the new key is unfit; a key that is unfit is destroyed.
    async fn generate(&self, key: &NewKey) -> Result<Provisioned, ProvisionError>;
    /// The RSA signing keys that the device shows.
    ///
    /// # Errors
    /// Where the device fails.
    async fn list(&self) -> Result<Vec<Listed>, ProvisionError>;
    /// The public half of the key at this locator, after the same trial as a new one's.
    ///
    /// # Errors
    /// Where there is no such key, or several, or it fails the trial.
    async fn try_out(&self, kid: &Kid, locator: &str, attributes: Attributes) -> Result<Provisioned, ProvisionError>;
    /// Looks at the device and at the keys at these locators, each of which signs once. Nothing is made or changed, and what
    /// the device refuses is not tried again.
    async fn examine(&self, locators: &[String]) -> Examination;
}
