//! PKCS#11 tokens: each is a device behind a bounded queue, with threads of its own that alone touch the
//! module. A token is started, not opened: while it is away its keys are not serving, and it comes back by
//! itself. Which key signs which quote, and whether its signature verifies, is left to the caller.
//!
//! - `module`: loading, initialising and finalising, shared by all tokens of a module
//! - `device`: one token within reach: sessions, login, mechanism
//! - `key`: one pinned key: finding and comparing it, and how it stands
//! - `worker`: one session's thread
//! - `supervisor`: the thread that brings the token up, probes its keys and recovers it
//! - `fault`: what goes wrong, translated in one place
//! - `keygen`: provisioning, for commands and never for the gateway

use std::{
    convert::Infallible,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use flume::{RecvTimeoutError, TrySendError};
use parking_lot::Mutex;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::{sync::oneshot, time};

use self::{key::Key, worker::Job};
use super::{Health, SignError, Signature, Signer, locator::Locator};
use crate::{jwk::PublicKey, jws::SigningInput};

mod device;
mod fault;
mod key;
pub mod keygen;
mod module;
mod supervisor;
mod worker;

#[cfg(test)]
mod tests;

/// Which token, and how it is worked.
#[derive(Debug, Clone)]
pub struct TokenConfig {
    /// What policy and health call this signer.
    pub name: String,
    /// The module's shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// The token's serial number, where several have the label.
    pub token_serial: Option<String>,
    /// The user's PIN.
    pub pin: SecretString,
    /// How many sessions sign side by side; fewer if the token has not as many.
    pub sessions: usize,
    /// How many jobs may wait for a session.
    pub queue_max: usize,
    /// How long a call into the module may take before its session counts as stuck.
    pub call_timeout: Duration,
    /// How often each key's health is found out by a test signature.
    pub probe_interval: Duration,
    /// What is made of a key that may have left its device.
    pub attributes: AttributePolicy,
}

/// What is made of a key whose attributes do not say that it was made on its device and cannot leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttributePolicy {
    /// It is unfit.
    Require,
    /// It signs, and the log says so once.
    Warn,
    /// Nobody looks.
    Off,
}

/// A token at work, from [`Token::start`] until it is closed or dropped.
pub struct Token {
    shared: Arc<Shared>,
    close: flume::Sender<()>,
    ended: flume::Receiver<Infallible>,
}

impl Token {
    /// Starts to bring the token up. Never fails: a token that is away is waited for, and health says why.
    #[must_use]
    pub fn start(config: TokenConfig) -> Self {
        let (close, closing) = flume::bounded(1);
        let shared = Arc::new(Shared::new(config, closing));
        let (ending, ended) = flume::bounded(0);
        let supervised = Arc::clone(&shared);
        let thread = thread::Builder::new().name("pkcs11-supervisor".to_owned()).spawn(move || {
            let _ending: flume::Sender<Infallible> = ending;
            if panic::catch_unwind(AssertUnwindSafe(|| supervisor::run(&supervised))).is_err() {
                supervised.down("its supervisor panicked; restart the gateway");
            }
        });
        if let Err(error) = thread {
            shared.down(&format!("cannot start its supervisor: {error}"));
        }
        Self { shared, close, ended }
    }

    /// A key of this token, as policy pins it. It is probed as long as the signer, or a clone of its `Arc`, lives.
    #[must_use]
    pub fn key(&self, public: Arc<PublicKey>, locator: Locator) -> Arc<dyn Signer> {
        let number = self.shared.keys_made.fetch_add(1, Ordering::Relaxed);
        let key = Arc::new(Key::new(number, public, locator));
        self.shared.keys.lock().push(Arc::downgrade(&key));
        Arc::new(TokenKey { key, token: Arc::clone(&self.shared) })
    }

    /// Whether the token is up. A key has a health of its own.
    #[must_use]
    pub fn health(&self) -> Health {
        match &**self.shared.state.load() {
            State::Up { .. } => Health::Serving,
            State::Down(why) => Health::NotServing(why.clone()),
        }
    }

    /// Ends the token's work: refuses what waits in the queue, and waits, within bounds, until its threads
    /// have left the module.
    pub async fn close(&self) {
        // Full if it was closed before, and disconnected if its supervisor has ended.
        let _ = self.close.try_send(());
        let grace = self.shared.config.call_timeout + supervisor::PAUSE_MAX;
        if time::timeout(grace, self.ended.recv_async()).await.is_err() {
            tracing::warn!(signer = %self.shared.config.name, "the token is left with a thread stuck inside its module");
        }
    }
}

/// What a token's handle, keys and threads share.
struct Shared {
    config: TokenConfig,
    state: ArcSwap<State>,
    keys: Mutex<Vec<Weak<Key>>>,
    keys_made: AtomicU64,
    closing: flume::Receiver<()>,
}

/// Whether there is a queue to put a job into.
enum State {
    Down(String),
    Up { generation: u64, jobs: flume::Sender<Job> },
}

impl Shared {
    fn new(config: TokenConfig, closing: flume::Receiver<()>) -> Self {
        Self {
            config,
            state: ArcSwap::from_pointee(State::Down("the token is being brought up".to_owned())),
            keys: Mutex::default(),
            keys_made: AtomicU64::new(0),
            closing,
        }
    }

    fn up(&self, generation: u64, jobs: flume::Sender<Job>) {
        self.state.store(Arc::new(State::Up { generation, jobs }));
    }

    /// Takes the token down; tells whether that, or why, is news.
    fn down(&self, why: &str) -> bool {
        let down = Arc::new(State::Down(why.to_owned()));
        !matches!(&*self.state.swap(down), State::Down(before) if before == why)
    }

    /// Whether the token was closed, or its handle dropped.
    fn is_closing(&self) -> bool {
        !self.closing.is_empty() || self.closing.is_disconnected()
    }

    /// Waits, unless the token is closing; false if it is.
    fn pause(&self, pause: Duration) -> bool {
        self.closing.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
    }

    /// The keys that someone still holds. The others are forgotten.
    fn live_keys(&self) -> Vec<Arc<Key>> {
        let mut keys = self.keys.lock();
        keys.retain(|key| key.strong_count() > 0);
        keys.iter().filter_map(Weak::upgrade).collect()
    }
}

struct TokenKey {
    key: Arc<Key>,
    token: Arc<Shared>,
}

impl TokenKey {
    fn enqueue(&self, job: Job) -> Result<(), SignError> {
        match &**self.token.state.load() {
            State::Down(why) => Err(SignError::Unavailable(why.clone())),
            State::Up { jobs, .. } => jobs.try_send(job).map_err(|refusal| match refusal {
                TrySendError::Full(_) => SignError::Full,
                TrySendError::Disconnected(_) => SignError::Unavailable("the token is being recovered".to_owned()),
            }),
        }
    }
}

#[async_trait]
impl Signer for TokenKey {
    async fn sign(&self, input: &SigningInput, deadline: Instant) -> Result<Signature, SignError> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Sign { key: Arc::clone(&self.key), input: input.clone(), deadline, reply })?;
        match time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(SignError::Unavailable("the token was lost before it answered".to_owned())),
            Err(_) => Err(SignError::TimedOut),
        }
    }

    fn public_key(&self) -> &Arc<PublicKey> {
        &self.key.public
    }

    fn health(&self) -> Health {
        match &**self.token.state.load() {
            State::Up { generation, .. } => self.key.health(*generation),
            State::Down(why) => Health::NotServing(why.clone()),
        }
    }
}
