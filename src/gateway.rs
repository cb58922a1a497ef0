//! Puts the gateway together and runs it: the one place that knows every part.

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{signal::unix::SignalKind, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backlog::Backlog,
    clock::{Clock as _, ClockGuard, SystemClock, UtcTime},
    config::{CheckpointSection, Config, OtlpSection},
    control::{self, Control},
    domain::Environment,
    ledger::{Absent, Engine, EngineError, Ledger, Place},
    outcomes::Outcomes,
    pipeline::{Pipeline, admit::Flows, attempts::Attempts, journal::Shares},
    published::Published,
    service::health::{Components, Watch},
    signer::keyring::Keyring,
    stopped::Stopped,
    telemetry::{Metrics, Tracer},
    transport::tls,
    volume::Volumes,
};

mod beside;
mod certificates;
mod check;
mod devices;
mod exports;
mod fronts;
mod join;
mod lanes;
mod notary;
mod pruning;
mod publication;
mod reporting;
mod shipping;
mod upkeep;

use beside::Beside;
use fronts::{Fronts, Listeners, Lives};

pub use check::{bundle, check, fits};
pub use devices::{device, provisioner, token_config};

/// Why a gateway did not start. Nothing of it runs then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something that the operator gave it cannot be used; one line a problem.
    #[error("{}", .0.join("\n"))]
    Unfit(Vec<String>),
    /// The machine did not give it what it needs.
    #[error("{0}")]
    Machine(String),
}

impl StartError {
    fn unfit(text: impl std::fmt::Display) -> Self {
        Self::Unfit(vec![text.to_string()])
    }
}

/// How long connections without a call under way may take to end when the gateway does: there and back to a client far away, twice.
const FLUSH: Duration = Duration::from_secs(1);

/// A gateway whose parts are made and whose addresses are bound, before it serves.
pub struct Gateway {
    config: Config,
    pipeline: Arc<Pipeline>,
    control: Arc<Control>,
    metrics: Arc<Metrics>,
    components: Arc<Components>,
    calls: TaskTracker,
    tracer: Arc<Tracer>,
    listeners: Listeners,
    lives: Lives,
    started_at: UtcTime,
}

impl Gateway {
    /// Makes every part and binds every address. Devices may be down, and so may a ledger's server: the key sets are then
    /// served where it is known what was revoked, and nothing is signed until it is back.
    ///
    /// # Errors
    /// Where something given cannot be used. Nothing is left running.
    pub async fn prepare(config: Config) -> Result<Self, StartError> {
        let bundle = Arc::new(check(&config)?);
        // Not a reason to sign nothing: `config check` refuses it, and monitoring sees it from outside.
        if let Err(fault) = tls::is_fit_for_the_public(&config.jwks, SystemClock.now())
            && config.environment == Environment::Production
        {
            tracing::error!(%fault, "verifiers will not take the certificate of the key sets");
        }
        let lives = Lives::read(&config).map_err(StartError::unfit)?;
        let listeners = Listeners::bind(&config).await?;
        let place = config.ledger.place().map_err(StartError::unfit)?;
        let stopped = Arc::new(Stopped::open(place.anchor.as_deref()).map_err(StartError::unfit)?);
        if let Some(warning) = config.keeps_for_nothing() {
            tracing::warn!("{warning}");
        }
        let (environment, room) = (config.environment, config.ledger.room());
        let opened = tokio::task::spawn_blocking(move || {
            room.look();
            Ok::<_, StartError>((engine(place, environment)?, room))
        });
        let ((engine, is_there), room) = opened.await.map_err(StartError::unfit)??;
        let ledger = Ledger::start(engine, config.ledger.front());
        let checkpoints = config.audit.checkpoint.as_ref().map(CheckpointSection::binding).transpose();
        let checkpoints = checkpoints.map_err(StartError::unfit)?;
        let clock = Arc::new(ClockGuard::new(Arc::new(SystemClock), config.clock.bounds(), UtcTime::from_millis(0)));
        let keyring = Arc::new(Keyring::new(devices::all(&config)).with_own(checkpoints.iter().cloned().collect()));
        control::bind(&keyring, &bundle).map_err(StartError::unfit)?;
        let policy = Arc::new(ArcSwap::from(bundle.clone()));
        let published: Arc<Published> = Arc::default();
        let control = Arc::new(Control {
            dir: config.policy.clone(),
            key: config.policy_key().map_err(StartError::unfit)?.map(Arc::new),
            checkpoint_key: checkpoints.map(|binding| binding.public),
            environment: config.environment,
            domains: config.trust_domains(),
            policy: policy.clone(),
            keyring: keyring.clone(),
            stopped: stopped.clone(),
            published: published.clone(),
            keep: config.ledger.keep(),
            ledger: ledger.clone(),
            refused: parking_lot::Mutex::default(),
            reloads: control::Reloads::default(),
            turn: tokio::sync::Mutex::default(),
        });
        let pipeline = Arc::new(Pipeline {
            environment: config.environment,
            limits: config.limits.payload(),
            attempts: Attempts::default(),
            flows: Flows::default(),
            policy,
            ledger,
            stopped,
            published,
            keyring,
            joined: Arc::default(),
            clock,
            finishing: TaskTracker::new(),
            customers: config.reference_key().map_err(StartError::unfit)?,
            volumes: Volumes::default(),
            outcomes: Outcomes::default(),
            shares: Shares::default(),
            backlog: Backlog::default(),
            room,
            behind_max: config.otlp.as_ref().and_then(OtlpSection::refuse_after),
        });
        if is_there {
            join::join(&pipeline, &control).await.map_err(|refused| StartError::Unfit(refused.lines()))?;
        }
        let tracer = Arc::new(Tracer::new(config.otlp.as_ref().map_or(0.0, |otlp| otlp.trace_ratio)));
        Ok(Self {
            tracer,
            pipeline,
            control,
            metrics: Arc::default(),
            components: Arc::default(),
            calls: TaskTracker::new(),
            listeners,
            lives,
            started_at: SystemClock.now(),
            config,
        })
    }

    /// Serves until SIGTERM or SIGINT, then drains: health turns, calls under way end, key sets are no longer served, the ledger
    /// closes.
    ///
    /// # Errors
    /// Where a front ends by itself.
    pub async fn run(mut self) -> Result<(), StartError> {
        let mut ends = Ends::new()?;
        let [stop_watch, stop_beside, stop_fronts, stop_sets] = [(); 4].map(|()| CancellationToken::new());
        let (reporter, health) = tonic_health::server::health_reporter();
        let watch = Watch {
            pipeline: self.pipeline.clone(),
            control: self.control.clone(),
            components: self.components.clone(),
            reporter,
            metrics: self.metrics.clone(),
            ships: self.config.otlp.is_some(),
        };
        let watch = tokio::spawn(watch.run(stop_watch.clone()));
        let beside = Beside::begin(&mut self, &stop_beside)?;
        let drain = self.config.drain;
        let addresses = self.addresses().map_err(|fault| StartError::Machine(fault.to_string()))?;
        let (pipeline, calls) = (self.pipeline.clone(), self.calls.clone());
        let Fronts { calls: mut fronts, mut sets } = self.fronts(health, &stop_fronts, &stop_sets)?;
        // No key set is served that does not follow what is revoked.
        let looks = tokio::spawn(upkeep::look_at_stops(pipeline.clone(), stop_sets.clone()));
        for (front, address) in addresses {
            tracing::info!(front, %address, "listening");
        }
        let ended = tokio::select! {
            () = ends.wait() => None,
            ended = fronts.join_next() => ended,
            ended = sets.join_next() => ended,
        };
        tracing::info!(grace_ms = drain.grace_ms, "draining");
        stop_watch.cancel();
        if ended.is_none() {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(drain.grace_ms)) => {}
                () = ends.wait() => {}
            }
        }
        stop_fronts.cancel();
        calls.close();
        if tokio::time::timeout(Duration::from_millis(drain.timeout_ms), all_answered(&calls, &mut fronts))
            .await
            .is_err()
        {
            tracing::warn!("calls under way were cut off at the drain's timeout");
        }
        pipeline.finishing.close();
        pipeline.finishing.wait().await;
        fronts.abort_all();
        // Until here what others revoke, stop or replace was followed as ever.
        stop_beside.cancel();
        let _ended = watch.await;
        beside.end(&pipeline).await;
        // Verifiers were served until here, and may have been sent here until now.
        stop_sets.cancel();
        let sets_end = async {
            while sets.join_next().await.is_some() {}
            looks.await
        };
        let _in_time = tokio::time::timeout(FLUSH, sets_end).await;
        sets.abort_all();
        pipeline.ledger.close().await;
        pipeline.keyring.close().await;
        tracing::info!("stopped");
        match ended {
            None => Ok(()),
            Some(_) => Err(StartError::Machine("a listener ended by itself; the log says why".to_owned())),
        }
    }

    /// The addresses it listens on: gRPC, admin, JWKS, operations.
    ///
    /// # Errors
    /// Where the machine does not tell.
    pub fn addresses(&self) -> io::Result<[(&'static str, std::net::SocketAddr); 4]> {
        self.listeners.addresses()
    }
}

/// Waits until each connection has ended, or none that is left had a call under way for a while: streams of health and reflection
/// never end by themselves. A client that is far away may still send a call while it does not know that the connection ends.
async fn all_answered(calls: &TaskTracker, fronts: &mut JoinSet<()>) {
    loop {
        calls.wait().await;
        let ended = async { while fronts.join_next().await.is_some() {} };
        if tokio::time::timeout(FLUSH, ended).await.is_ok() || calls.is_empty() {
            return;
        }
    }
}

/// SIGTERM or SIGINT.
struct Ends {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Ends {
    fn new() -> Result<Self, StartError> {
        let listen = |kind| tokio::signal::unix::signal(kind).map_err(|fault| StartError::Machine(fault.to_string()));
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// The ledger's engine, and whether it is open. A server that cannot be reached is waited for; nothing else is.
fn engine(place: Place, environment: Environment) -> Result<(Box<dyn Engine>, bool), StartError> {
    match place.open(environment) {
        Ok(engine) => Ok((engine, true)),
        Err(EngineError::Away(why)) => {
            tracing::error!(why, "the ledger cannot be reached; nothing is signed until it is");
            Ok((Box::new(Absent::new(place, environment, why)), false))
        }
        Err(error) => Err(StartError::unfit(error)),
    }
}
