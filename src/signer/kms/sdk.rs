//! AWS KMS through its SDK: what is asked, with which timeouts, how often, and as whom. Where requests go is said by
//! the gateway's config alone, and never by an environment variable or a profile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider, error::CredentialsError};
use aws_sdk_kms::{
    config::{
        BehaviorVersion, ConfigBag, Intercept, Region, RuntimeComponents, StalledStreamProtectionConfig,
        interceptors::BeforeTransmitInterceptorContextRef,
        retry::{RetryConfig, RetryPartition},
        timeout::TimeoutConfig,
    },
    error::BoxError,
    primitives::Blob,
    types::{KeyManagerType, KeyMetadata, KeySpec, KeyUsageType, MessageType, OriginType, SigningAlgorithmSpec, Tag},
};
use parking_lot::Mutex;
use tokio::time;

use super::{
    KmsConfig,
    client::{Alias, Client, Creation, Described, Page, PublicHalf, RS256, Signed},
    fault::{Fault, Kind, no_credentials, translate},
    share::Share,
};
use crate::{
    domain::InputDigest,
    signer::{locator::KeyArn, turns::Pace as _},
};

/// How often a request is sent at most. Each retry costs quota and time, and the breaker takes over from there.
const ATTEMPTS_MAX: u32 = 3;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(200);
/// How long looking for credentials may take: some of those who are asked have long timeouts of their own.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);
const PAGE_MAX: i32 = 100;

/// The SDK's client, made when it is first needed, and anew when credentials are looked for: the SDK reads a profile
/// only once.
pub(super) struct Sdk {
    config: KmsConfig,
    share: Arc<Share>,
    made: ArcSwapOption<aws_sdk_kms::Client>,
}

impl Sdk {
    pub(super) fn new(config: KmsConfig, share: Arc<Share>) -> Self {
        Self { config, share, made: ArcSwapOption::empty() }
    }

    async fn client(&self) -> Arc<aws_sdk_kms::Client> {
        if let Some(made) = self.made.load_full() {
            return made;
        }
        let (client, _) = make(&self.config).await;
        let client = Arc::new(client);
        self.made.store(Some(Arc::clone(&client)));
        client
    }
}

async fn make(config: &KmsConfig) -> (aws_sdk_kms::Client, Option<SharedCredentialsProvider>) {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(config.connect_timeout)
        .operation_attempt_timeout(config.attempt_timeout)
        .operation_timeout(config.call_timeout)
        .build();
    // Never adaptive: after one throttled request it holds back every call of the process for many seconds.
    let retries = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS_MAX)
        .with_initial_backoff(BACKOFF_MIN)
        .with_max_backoff(BACKOFF_MAX);
    let found = aws_config::defaults(BehaviorVersion::latest()).region(Region::new(config.region.clone())).load().await;
    let mut own = aws_sdk_kms::config::Builder::from(&found);
    own.set_endpoint_url(config.endpoint.clone());
    let own = own
        .timeout_config(timeouts)
        .retry_config(retries)
        // Of its own, or one signer's throttling would use up the retries of all.
        .retry_partition(RetryPartition::custom(format!("quotesign-{}", config.name)).build())
        // Answers are small, and the timeouts bound them.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .build();
    (aws_sdk_kms::Client::from_conf(own), found.credentials_provider())
}

/// The requests of one call: counts those that the SDK sends beyond the first, and knows when the last began.
#[derive(Debug, Clone)]
struct Requests {
    share: Arc<Share>,
    is_retry: Arc<AtomicBool>,
    began: Arc<Mutex<Option<Instant>>>,
}

impl Intercept for Requests {
    fn name(&self) -> &'static str {
        "quotesign requests"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.is_retry.swap(true, Ordering::Relaxed) {
            self.share.take(Instant::now());
        }
        *self.began.lock() = Some(Instant::now());
        Ok(())
    }
}

#[async_trait]
impl Client for Sdk {
    async fn credentials(&self) -> Result<(), Fault> {
        let (client, provider) = make(&self.config).await;
        let Some(provider) = provider else {
            return Err(Fault::new(Kind::Credentials, "the AWS SDK was built without credentials"));
        };
        let found = time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await;
        let found = found.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(CREDENTIALS_TIMEOUT)));
        found.map_err(|error| no_credentials(&error))?;
        self.made.store(Some(Arc::new(client)));
        Ok(())
    }

    async fn sign(&self, key: &KeyArn, digest: InputDigest) -> Result<Signed, Fault> {
        let requests = Requests { share: Arc::clone(&self.share), is_retry: Arc::default(), began: Arc::default() };
        let call = self
            .client()
            .await
            .sign()
            .key_id(key.as_str())
            .message(Blob::new(digest.0))
            .message_type(MessageType::Digest)
            .signing_algorithm(SigningAlgorithmSpec::from(RS256))
            .customize()
            .interceptor(requests.clone());
        let answer = call.send().await.map_err(|error| translate("Sign", &error))?;
        Ok(Signed {
            key: answer.key_id().unwrap_or_default().to_owned(),
            algorithm: answer.signing_algorithm().map_or_else(String::new, |spec| spec.as_str().to_owned()),
            signature: answer.signature.map(Blob::into_inner).unwrap_or_default(),
            took: requests.began.lock().map(|began| began.elapsed()).unwrap_or_default(),
        })
    }

    async fn describe(&self, key: &str) -> Result<Described, Fault> {
        let answer = self.client().await.describe_key().key_id(key).send().await;
        described(answer.map_err(|error| translate("DescribeKey", &error))?.key_metadata)
    }

    async fn public_half(&self, key: &str) -> Result<PublicHalf, Fault> {
        let answer = self.client().await.get_public_key().key_id(key).send().await;
        let answer = answer.map_err(|error| translate("GetPublicKey", &error))?;
        Ok(PublicHalf {
            algorithms: answer.signing_algorithms().iter().map(|spec| spec.as_str().to_owned()).collect(),
            der: answer.public_key.map(Blob::into_inner).unwrap_or_default(),
        })
    }

    async fn create(&self, order: &Creation) -> Result<Described, Fault> {
        let tag = |(name, value): &(String, String)| Tag::builder().tag_key(name).tag_value(value).build();
        let tags: Result<Vec<_>, _> = order.tags.iter().map(tag).collect();
        let tags = tags.map_err(|error| Fault::unfit(error.to_string()))?;
        let call = self
            .client()
            .await
            .create_key()
            .key_spec(KeySpec::from(order.spec.as_str()))
            .key_usage(KeyUsageType::SignVerify)
            .origin(OriginType::AwsKms)
            .description(&order.description)
            .set_tags(Some(tags))
            .customize()
            .config_override(aws_sdk_kms::config::Builder::new().retry_config(RetryConfig::disabled()));
        described(call.send().await.map_err(|error| translate("CreateKey", &error))?.key_metadata)
    }

    async fn give_alias(&self, alias: &str, key: &str) -> Result<(), Fault> {
        let answer = self.client().await.create_alias().alias_name(alias).target_key_id(key).send().await;
        answer.map(|_| ()).map_err(|error| translate("CreateAlias", &error))
    }

    async fn keys(&self, from: Option<String>) -> Result<Page<String>, Fault> {
        let answer = self.client().await.list_keys().limit(PAGE_MAX).set_marker(from).send().await;
        let answer = answer.map_err(|error| translate("ListKeys", &error))?;
        let items = answer.keys().iter().filter_map(|key| key.key_arn().map(str::to_owned)).collect();
        Ok(Page { items, next: answer.next_marker.filter(|_| answer.truncated) })
    }

    async fn aliases(&self, from: Option<String>) -> Result<Page<Alias>, Fault> {
        let answer = self.client().await.list_aliases().limit(PAGE_MAX).set_marker(from).send().await;
        let answer = answer.map_err(|error| translate("ListAliases", &error))?;
        let alias = |entry: &aws_sdk_kms::types::AliasListEntry| {
            Some(Alias { name: entry.alias_name()?.to_owned(), key_id: entry.target_key_id()?.to_owned() })
        };
        let items = answer.aliases().iter().filter_map(alias).collect();
        Ok(Page { items, next: answer.next_marker.filter(|_| answer.truncated) })
    }

    async fn tags(&self, key: &str) -> Result<Vec<(String, String)>, Fault> {
        let answer = self.client().await.list_resource_tags().key_id(key).send().await;
        let answer = answer.map_err(|error| translate("ListResourceTags", &error))?;
        Ok(answer.tags().iter().map(|tag| (tag.tag_key().to_owned(), tag.tag_value().to_owned())).collect())
    }
}

fn described(key: Option<KeyMetadata>) -> Result<Described, Fault> {
    let key = key.ok_or_else(|| Fault::nonsense("no key"))?;
    let word = |word: Option<&str>| word.unwrap_or("not told").to_owned();
    Ok(Described {
        arn: word(key.arn()),
        usage: word(key.key_usage().map(KeyUsageType::as_str)),
        state: word(key.key_state().map(aws_sdk_kms::types::KeyState::as_str)),
        spec: word(key.key_spec().map(KeySpec::as_str)),
        origin: word(key.origin().map(OriginType::as_str)),
        multi_region: key.multi_region().unwrap_or_default(),
        is_of_aws: key.key_manager() == Some(&KeyManagerType::Aws),
    })
}
