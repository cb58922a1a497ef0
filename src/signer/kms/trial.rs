//! What a key must pass before anything of it is printed: the check that it passes at work too, and a test signature
//! that verifies here with its own public half.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{
    client::Client,
    fault::Fault,
    fitness::{self, Integers},
};
use crate::signer::locator::KeyArn;
use crate::{
    domain::Kid,
    jwk::PublicKey,
    jws::SigningInput,
    signer::{Attributes, provision::ProvisionError},
};

/// How long a new key may be unknown to parts of KMS.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(250);

/// Why a trial was not passed.
pub(super) enum Failed {
    /// By what KMS said.
    Fault(Fault),
    /// By what was asked for, or by the public half.
    Other(ProvisionError),
}

impl Failed {
    /// Whether KMS has no such key.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Fault(fault) if fault.code() == Some("NotFoundException"))
    }
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Failed> for ProvisionError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Fault(fault) => fault.into(),
            Failed::Other(error) => error,
        }
    }
}

/// Tries a key that may be new, so that it is missing is believed only after a while.
pub(super) async fn with_patience(
    client: &dyn Client,
    region: &str,
    kid: &Kid,
    locator: &str,
) -> Result<(KeyArn, PublicKey), Failed> {
    let until = Instant::now() + PATIENCE;
    loop {
        match once(client, region, kid, locator, Attributes::Require).await {
            Err(failed) if failed.is_missing() && Instant::now() < until => sleep(PAUSE).await,
            tried => return tried,
        }
    }
}

/// Tries a key.
pub(super) async fn once(
    client: &dyn Client,
    region: &str,
    kid: &Kid,
    locator: &str,
    attributes: Attributes,
) -> Result<(KeyArn, PublicKey), Failed> {
    let arn =
        KeyArn::parse(locator, region).map_err(|error| Failed::Other(ProvisionError::Invalid(error.to_string())))?;
    let ((modulus, exponent), remarks) = fitness::check(client, &arn, attributes).await?;
    for remark in remarks.0 {
        tracing::warn!(key = %arn, remark, "the key signs, with a remark");
    }
    let public = PublicKey::new(kid.clone(), &modulus, &exponent)
        .map_err(|error| Failed::Other(ProvisionError::Unfit(error.to_string())))?;
    verified(client, &arn, &public).await?;
    Ok((arn, public))
}

/// Whether a test signature of the key verifies with the public half that it shows.
///
/// # Errors
/// Why not.
pub(super) async fn signs(client: &dyn Client, arn: &KeyArn, public: &Result<Integers, Fault>) -> Result<(), String> {
    let (modulus, exponent) = public.as_ref().map_err(ToString::to_string)?;
    let kid = "examined".parse::<Kid>().map_err(|fault| fault.to_string())?;
    let public = PublicKey::new(kid, modulus, exponent).map_err(|fault| fault.to_string())?;
    verified(client, arn, &public).await.map_err(|fault| fault.to_string())
}

async fn verified(client: &dyn Client, arn: &KeyArn, public: &PublicKey) -> Result<(), Fault> {
    let input = SigningInput::fresh_probe();
    let signed = client.sign(arn, input.digest()).await?;
    if signed.key != arn.as_str() || !public.verifies(input.bytes(), &signed.signature) {
        return Err(Fault::unfit("its test signature does not verify with its own public half"));
    }
    Ok(())
}
