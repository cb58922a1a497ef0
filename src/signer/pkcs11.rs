//! PKCS#11 tokens. Each is a device behind fair turns; a vendor's module is loaded by a *host process* of its own
//! and never by the gateway, so that a module that crashes, hangs or must start anew is a process that is
//! replaced. A token is started, not opened: while it is away its keys are not serving, and it comes back by
//! itself. Which key signs which quote, and whether its signature verifies, is left to the caller.
//!
//! - `link`: the gateway's end of one host process
//! - `supervisor`: brings the token up, binds and probes its keys, replaces the host process
//! - `logins`: how often logging in may be tried
//! - `pin`: reads the PIN, and waits for another where it was refused
//! - `wire`: what both sides say to each other
//! - `fault`: what goes wrong, translated in one place
//! - `provision`: what commands ask of a token
//! - `raw`: the module without any of this, for benchmarks
//! - `host`: the process that loads the module: sessions on threads of their own, keys, key generation

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time,
};
use tokio_util::sync::CancellationToken;

use self::{fault::Fault, link::Link, logins::Logins};
use super::{
    Attributes, Device, Health, Order, Pinned, SignError, Signature, Signer, locator::Locator, standing::Standing,
    turns::Turns,
};
use crate::{jwk::PublicKey, jws::SigningInput};

mod fault;
pub mod host;
mod link;
mod logins;
mod outage;
mod pin;
mod provision;
pub mod raw;
mod supervisor;
mod wire;

pub use provision::{Provisioner, init_token};

/// Where a token's PIN comes from. It is read when the token is brought up, and not kept.
#[derive(Debug, Clone)]
pub enum Pin {
    /// A file; a line end is dropped.
    File(PathBuf),
    /// An environment variable of the gateway.
    Variable(String),
}

/// Which token, and how it is worked.
#[derive(Debug, Clone)]
pub struct TokenConfig {
    /// What policy and health call this signer.
    pub name: String,
    /// The executable that is started as the module's host: the gateway's own.
    pub host: PathBuf,
    /// The module's shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// The token's serial number, where several have the label.
    pub token_serial: Option<String>,
    /// The user's PIN.
    pub pin: Pin,
    /// Variables for the environment of the module's process.
    pub environment: BTreeMap<String, String>,
    /// Variables of the gateway's own environment that hold secrets, and are kept from the module's process.
    pub secret_variables: Vec<String>,
    /// How many sessions sign side by side; fewer if the token has not as many.
    pub sessions: usize,
    /// How many orders may wait for a session.
    pub queue_max: usize,
    /// How long a call into the module may take before its session counts as stuck.
    pub call_timeout: Duration,
    /// How often each key's health is found out by a test signature.
    pub probe_interval: Duration,
}

/// A token at work, from [`Token::start`] until it is closed or dropped.
pub struct Token {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl Token {
    /// Starts to bring the token up. Never fails: a token that is away is waited for, and health says why.
    #[must_use]
    pub fn start(config: TokenConfig) -> Self {
        let (report, reports) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            turns: Turns::new(config.sessions.max(1), config.queue_max),
            state: ArcSwap::from_pointee(State::Down("the token is being brought up".to_owned())),
            keys: Mutex::default(),
            keys_made: AtomicU32::new(1),
            generations: AtomicU64::new(0),
            wake: Notify::new(),
            closing: CancellationToken::new(),
            logins: Arc::default(),
            given: pin::Given::default(),
            report,
            config,
        });
        let supervisor = tokio::spawn(supervisor::run(Arc::clone(&shared), reports));
        Self { shared, supervisor: Mutex::new(Some(supervisor)) }
    }

    /// How often its host process has been started.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generations.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Device for Token {
    fn accepts(&self, locator: &str) -> Result<(), String> {
        Locator::parse(locator).map(drop).map_err(|fault| format!("the locator: {fault}"))
    }

    fn key(&self, pinned: Pinned) -> Result<Arc<dyn Signer>, String> {
        self.accepts(&pinned.locator)?;
        let number = self.shared.keys_made.fetch_add(1, Ordering::Relaxed);
        let key = Arc::new(Key {
            number,
            locator: pinned.locator,
            attributes: pinned.attributes,
            standing: Standing::new(pinned.public, &self.shared.config.name),
            binding: Mutex::default(),
        });
        self.shared.keys.lock().push(Arc::downgrade(&key));
        self.shared.wake.notify_one();
        Ok(Arc::new(TokenKey { key, token: Arc::clone(&self.shared) }))
    }

    fn health(&self) -> Health {
        match &**self.shared.state.load() {
            State::Up { .. } => Health::Serving,
            State::Recovering(why) => Health::Recovering(why.clone()),
            State::Down(why) => Health::NotServing(why.clone()),
        }
    }

    fn turns(&self) -> &Arc<Turns> {
        &self.shared.turns
    }

    async fn close(&self) {
        self.shared.closing.cancel();
        let supervisor = self.supervisor.lock().take();
        if let Some(supervisor) = supervisor
            && supervisor.await.is_err()
        {
            tracing::error!(signer = %self.shared.config.name, "the token's supervisor panicked");
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

/// What a token's handle, keys and supervisor share.
struct Shared {
    config: TokenConfig,
    turns: Arc<Turns>,
    state: ArcSwap<State>,
    keys: Mutex<Vec<Weak<Key>>>,
    keys_made: AtomicU32,
    generations: AtomicU64,
    /// There is a new key, or one to be probed at once.
    wake: Notify,
    closing: CancellationToken,
    logins: Arc<Logins>,
    given: pin::Given,
    /// What breaks the present generation.
    report: mpsc::Sender<(u64, Fault)>,
}

/// Whether there is a host process to give jobs to.
enum State {
    Down(String),
    Recovering(String),
    Up { generation: u64, link: Arc<Link> },
}

/// A key of a token.
struct Key {
    /// By what jobs name it; never given again.
    number: u32,
    locator: String,
    attributes: Attributes,
    standing: Standing,
    binding: Mutex<Binding>,
}

/// What the supervisor keeps of a key.
#[derive(Default)]
struct Binding {
    /// The generation in which it was found, compared and tried; 0 where it is not.
    generation: u64,
    /// The last generation in which that was attempted.
    tried: u64,
    /// Why the last attempt failed.
    refusal: Option<Fault>,
    /// Bound, and not shown as serving yet.
    fresh: bool,
    /// When it is to be looked at again.
    probe_at: Option<Instant>,
    /// A probe is under way.
    probing: bool,
    /// What was warned of.
    warned: Option<String>,
}

impl Shared {
    fn link(&self) -> Result<(u64, Arc<Link>), SignError> {
        match &**self.state.load() {
            State::Up { generation, link } => Ok((*generation, Arc::clone(link))),
            State::Recovering(why) | State::Down(why) => Err(SignError::Unavailable(why.clone())),
        }
    }

    /// The keys that someone still holds. The others are forgotten.
    fn live_keys(&self) -> Vec<Arc<Key>> {
        let mut keys = self.keys.lock();
        keys.retain(|key| key.strong_count() > 0);
        keys.iter().filter_map(Weak::upgrade).collect()
    }

    /// Has `key` sign in its turn.
    async fn sign(&self, key: &Key, input: &SigningInput, order: &Order) -> Result<Signature, SignError> {
        self.link()?;
        let turn = self.turns.turn(order).await?;
        // The token may have been lost and found while this order waited.
        let (generation, link) = self.link()?;
        key.check_bound(generation)?;
        let given = link.give(key.number, input, order.deadline, turn).await;
        let answer = given.map_err(|fault| self.judge(key, generation, fault))?;
        match time::timeout_at(order.deadline.into(), answer).await {
            Ok(Ok(result)) => result.map(Signature).map_err(|fault| self.judge(key, generation, fault)),
            Ok(Err(_)) => Err(SignError::Lost("its process ended before it answered".to_owned())),
            Err(_) => Err(SignError::TimedOut),
        }
    }

    /// What a fault means for the key, and for the generation.
    fn judge(&self, key: &Key, generation: u64, fault: Fault) -> SignError {
        if self.link().is_ok_and(|(now, _)| now == generation) {
            let is_the_tokens = match &fault {
                Fault::Device(why) if key.standing.health().takes_orders() => {
                    key.standing.set(Health::Recovering(why.clone()));
                    true
                }
                // A key that did not sign before may itself be at fault; the supervisor sees the others.
                Fault::Device(_) | Fault::Missing(_) | Fault::Unfit(_) => {
                    key.was_refused(generation, &fault);
                    false
                }
                // No session logs in again in that process.
                Fault::Pin(_) | Fault::Login(_) => true,
                Fault::Stuck(_) | Fault::Late | Fault::Exists(_) | Fault::Invalid(_) => false,
            };
            if is_the_tokens {
                // The first report of a generation is enough.
                let _told = self.report.try_send((generation, fault.clone()));
            }
        }
        fault.into()
    }
}

impl Key {
    fn check_bound(&self, generation: u64) -> Result<(), SignError> {
        if self.binding.lock().generation == generation {
            return Ok(());
        }
        match self.standing.health() {
            Health::NotServing(why) | Health::Recovering(why) => Err(SignError::Unavailable(why)),
            Health::Serving => Err(SignError::Unavailable("the key is being found again".to_owned())),
        }
    }
}

struct TokenKey {
    key: Arc<Key>,
    token: Arc<Shared>,
}

#[async_trait]
impl Signer for TokenKey {
    async fn sign(&self, input: &SigningInput, order: &Order) -> Result<Signature, SignError> {
        if let Health::NotServing(why) = self.key.standing.health() {
            let is_unfit = matches!(self.key.binding.lock().refusal, Some(Fault::Unfit(_)));
            return Err(if is_unfit { SignError::Unfit(why) } else { SignError::Unavailable(why) });
        }
        self.token.sign(&self.key, input, order).await
    }

    fn public_key(&self) -> &Arc<PublicKey> {
        self.key.standing.public()
    }

    fn health(&self) -> Health {
        self.key.standing.health()
    }

    fn turns(&self) -> &Arc<Turns> {
        &self.token.turns
    }

    fn distrust(&self, why: &str) {
        {
            // Under the lock under which a probe says that the key serves, so that none from before comes between.
            let mut binding = self.key.binding.lock();
            (binding.probe_at, binding.fresh) = (None, false);
            self.key.standing.set(Health::NotServing(why.to_owned()));
        }
        self.token.wake.notify_one();
    }
}
