//! AWS KMS: a device in one region of one account, asked over the network. It is started, not opened: while it is
//! away its keys are not serving, and it comes back by itself. Which key signs which quote, and whether its
//! signature verifies, is left to the caller.
//!
//! - `client`, `sdk`: the few calls that are used, and the SDK behind them
//! - `fault`: what goes wrong, translated in one place
//! - `share`: this replica's share of the account's quota
//! - `pulse`: whether KMS answers at all, and takes the credentials
//! - `fitness`, `spki`: what a key must be before it signs
//! - `breaker`, `key`, `watch`: one pinned key, when it is out of service, and how it comes back
//! - `provision`, `trial`: generating and listing keys, for commands and never for the gateway

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{runtime::Handle, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    client::Client,
    key::{Key, KeySigner},
    pulse::Pulse,
    sdk::Sdk,
    share::Share,
};
use super::{Device, Health, Pinned, SignError, Signer, jittered, locator::KeyArn, provision::Provision, turns::Turns};
use crate::domain::Environment;

mod breaker;
mod client;
mod fault;
mod fitness;
mod key;
mod provision;
mod pulse;
mod sdk;
mod share;
mod spki;
mod trial;
mod watch;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

/// The first pause before something that failed is tried again.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause between two attempts to find credentials.
const CREDENTIALS_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How far apart two looks for new credentials are, however many keys ask.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);

/// Which KMS, and how it is asked.
#[derive(Debug, Clone)]
pub struct KmsConfig {
    /// What policy and health call this signer.
    pub name: String,
    /// The region of its keys.
    pub region: String,
    /// Where it is asked instead of at the region's own address: a VPC endpoint, a FIPS endpoint, an emulator.
    pub endpoint: Option<String>,
    /// How many signatures may be under way at once.
    pub concurrency: usize,
    /// How many requests for a signature this replica sends in any second.
    pub requests_per_second: u32,
    /// How many orders may wait.
    pub queue_max: usize,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long one request may take, of which a call sends up to three.
    pub attempt_timeout: Duration,
    /// How long a call may take with its retries.
    pub call_timeout: Duration,
    /// How often KMS is asked whether a key is still what it should be.
    pub check_interval: Duration,
    /// How often a key that nobody uses proves itself by a test signature.
    pub probe_interval: Duration,
    /// What the tag `quotesign:environment` of new keys says; without it they have none.
    pub environment: Option<Environment>,
}

/// AWS KMS at work, from [`Kms::start`] until it is closed or dropped.
pub struct Kms {
    shared: Arc<Shared>,
}

impl Kms {
    /// Starts to look for credentials. Never fails: a KMS that is away is waited for, and health says why. Must be
    /// called within a tokio runtime.
    #[must_use]
    pub fn start(config: KmsConfig) -> Self {
        let share = Arc::new(Share::new(config.requests_per_second));
        let client = Sdk::new(config.clone(), Arc::clone(&share));
        Self::start_with(config, share, Arc::new(client))
    }

    fn start_with(config: KmsConfig, share: Arc<Share>, client: Arc<dyn Client>) -> Self {
        let shared = Arc::new(Shared {
            turns: Turns::paced(config.concurrency, config.queue_max, share),
            pulse: Pulse::new(&config.name),
            config,
            client,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            renewed: Mutex::new(None),
        });
        let looking = Arc::clone(&shared);
        shared.spawn(async move { looking.find_credentials().await });
        Self { shared }
    }

    /// The same KMS as commands see it.
    #[must_use]
    pub fn provisioner(config: KmsConfig) -> impl Provision {
        let share = Arc::new(Share::new(config.requests_per_second));
        let client = Arc::new(Sdk::new(config.clone(), share));
        provision::Provisioner::new(config, client)
    }
}

#[async_trait]
impl Device for Kms {
    fn accepts(&self, locator: &str) -> Result<(), String> {
        KeyArn::parse(locator, &self.shared.config.region).map(drop).map_err(|fault| fault.to_string())
    }

    fn key(&self, pinned: Pinned) -> Result<Arc<dyn Signer>, String> {
        let key = Key::new(pinned, Arc::clone(&self.shared)).map_err(|error| error.to_string())?;
        let (key, gone) = (Arc::new(key), self.shared.closing.child_token());
        self.shared.spawn(watch::watch(Arc::clone(&key), gone.clone(), Arc::clone(&self.shared)));
        Ok(Arc::new(KeySigner::new(key, gone)))
    }

    fn health(&self) -> Health {
        if self.shared.closing.is_cancelled() {
            return Health::NotServing(CLOSED.to_owned());
        }
        self.shared.pulse.health()
    }

    fn turns(&self) -> &Arc<Turns> {
        &self.shared.turns
    }

    async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        let grace = self.shared.config.call_timeout + Duration::from_secs(1);
        if time::timeout(grace, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!(signer = %self.shared.config.name, "a call to AWS KMS is left behind");
        }
    }
}

impl Drop for Kms {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

const CLOSED: &str = "the signer is closed";

/// What a KMS, its keys and its tasks share.
struct Shared {
    config: KmsConfig,
    client: Arc<dyn Client>,
    turns: Arc<Turns>,
    pulse: Pulse,
    runtime: Handle,
    tasks: TaskTracker,
    closing: CancellationToken,
    /// When credentials were last looked for anew.
    renewed: Mutex<Option<Instant>>,
}

impl Shared {
    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        self.tasks.spawn_on(task, &self.runtime)
    }

    /// Tries until somebody gives credentials. From then on the SDK renews them by itself.
    async fn find_credentials(&self) {
        let mut pause = PAUSE_MIN;
        loop {
            let found = tokio::select! {
                found = self.client.credentials() => found,
                () = self.closing.cancelled() => return,
            };
            match found {
                Ok(()) => return self.pulse.credentials_found(),
                Err(fault) => self.pulse.credentials_missing(fault),
            }
            tokio::select! {
                () = time::sleep(jittered(pause)) => {}
                () = self.closing.cancelled() => return,
            }
            pause = (pause * 2).min(CREDENTIALS_PAUSE_MAX);
        }
    }

    /// Looks for credentials anew, since those that were found are refused: a profile may have new ones by now.
    async fn renew_credentials(&self) {
        {
            let mut renewed = self.renewed.lock();
            if renewed.is_some_and(|at| at.elapsed() < RENEWAL_PAUSE) {
                return;
            }
            *renewed = Some(Instant::now());
        }
        if let Err(fault) = self.client.credentials().await {
            self.pulse.silent(&fault);
        }
    }

    fn check_open(&self) -> Result<(), SignError> {
        if self.closing.is_cancelled() { Err(SignError::Unavailable(CLOSED.to_owned())) } else { Ok(()) }
    }
}
