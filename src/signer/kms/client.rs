//! The few calls of AWS KMS that are used, so that what they are used for can be tested without it. The words of
//! the API are left as they are on the wire; what they mean is for `fitness`.

use std::time::Duration;

use async_trait::async_trait;

use super::fault::Fault;
use crate::domain::InputDigest;
use crate::signer::locator::KeyArn;

/// The one algorithm: RS256.
pub(super) const RS256: &str = "RSASSA_PKCS1_V1_5_SHA_256";

/// What `Sign` gives.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    /// The ARN of the key that signed.
    pub(super) key: String,
    pub(super) algorithm: String,
    pub(super) signature: Vec<u8>,
    /// How long the request took that was answered, without those before it that were not.
    pub(super) took: Duration,
}

/// What `DescribeKey` and `CreateKey` tell of a key.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) arn: String,
    pub(super) usage: String,
    pub(super) state: String,
    pub(super) spec: String,
    pub(super) origin: String,
    pub(super) multi_region: bool,
    /// Whether AWS made it for one of its services.
    pub(super) is_of_aws: bool,
}

/// What `GetPublicKey` gives.
#[derive(Debug, Clone)]
pub(super) struct PublicHalf {
    pub(super) der: Vec<u8>,
    pub(super) algorithms: Vec<String>,
}

/// A key to create.
#[derive(Debug, Clone)]
pub(super) struct Creation {
    pub(super) spec: String,
    pub(super) description: String,
    pub(super) tags: Vec<(String, String)>,
}

/// An alias and the id of the key that it stands for.
#[derive(Debug, Clone)]
pub(super) struct Alias {
    pub(super) name: String,
    pub(super) key_id: String,
}

/// One page of a list, and where the next begins.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) next: Option<String>,
}

/// AWS KMS in one region, as the process' credentials see it.
#[async_trait]
pub(super) trait Client: Send + Sync + 'static {
    /// Looks for credentials.
    async fn credentials(&self) -> Result<(), Fault>;
    /// Has a digest signed with [`RS256`].
    async fn sign(&self, key: &KeyArn, digest: InputDigest) -> Result<Signed, Fault>;
    /// A key by its ARN, its id or an alias.
    async fn describe(&self, key: &str) -> Result<Described, Fault>;
    async fn public_half(&self, key: &str) -> Result<PublicHalf, Fault>;
    /// Creates a key for signing; sent once, since a second one would make a second key.
    async fn create(&self, order: &Creation) -> Result<Described, Fault>;
    async fn give_alias(&self, alias: &str, key: &str) -> Result<(), Fault>;
    async fn keys(&self, from: Option<String>) -> Result<Page<String>, Fault>;
    async fn aliases(&self, from: Option<String>) -> Result<Page<Alias>, Fault>;
    /// The tags of a key; no key has more than fit in one page.
    async fn tags(&self, key: &str) -> Result<Vec<(String, String)>, Fault>;
}
