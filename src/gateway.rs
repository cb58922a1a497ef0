//! Puts the gateway together and runs it: the one place that knows every part.

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::mpsc, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::Router};

use crate::{
    backlog::Backlog,
    clock::{Clock as _, ClockGuard, SystemClock, UtcTime},
    config::{CheckpointSection, Config, GrpcListener, OtlpSection},
    control::{self, Control},
    domain::Environment,
    ledger::{Absent, Engine, EngineError, Ledger, Place},
    outcomes::Outcomes,
    pipeline::{Pipeline, admit::Flows, attempts::Attempts, journal::Shares},
    proto::{
        DESCRIPTORS, admin_service_server::AdminServiceServer, key_directory_service_server::KeyDirectoryServiceServer,
        quote_signing_service_server::QuoteSigningServiceServer,
    },
    published::Published,
    service::{
        admin::Admin,
        health::{Components, Watch},
        jwks::{self, Lines, Sets},
        keys::Keys,
        operations::{self, Operations},
        quotes::Quotes,
    },
    signer::keyring::Keyring,
    stopped::Stopped,
    telemetry::{Metrics, Tracer, otlp::spans::Ended},
    transport::{
        accept::{self, Bounds, Identify},
        edge::EdgeLayer,
        peer::Peer,
        tls,
    },
    volume::Volumes,
};

mod beside;
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

/// How many connections may wait to be accepted by the kernel is its own affair; these are ours.
const MESSAGE_OVERHEAD_BYTES: usize = 4096;
/// How large a header list of a call may be.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// How often an idle connection is asked whether it lives, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// How long a connection to the public JWKS may be silent.
const PUBLIC_IDLE_MAX: Duration = Duration::from_secs(15);
/// How long answers that are made may take to leave when the gateway ends.
const FLUSH: Duration = Duration::from_millis(250);

/// A gateway whose parts are made and whose addresses are bound, before it serves.
pub struct Gateway {
    config: Config,
    pipeline: Arc<Pipeline>,
    control: Arc<Control>,
    metrics: Arc<Metrics>,
    components: Arc<Components>,
    calls: TaskTracker,
    tracer: Arc<Tracer>,
    /// Recorded calls, where there are any.
    recorded: Option<mpsc::Receiver<Ended>>,
    listeners: Listeners,
    started_at: UtcTime,
}

struct Listeners {
    grpc: TcpListener,
    admin: TcpListener,
    jwks: TcpListener,
    operations: TcpListener,
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
            policy: policy.clone(),
            keyring: keyring.clone(),
            stopped: stopped.clone(),
            published: published.clone(),
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
            refusals: Shares::default(),
            backlog: Backlog::default(),
            room,
            behind_max: config.otlp.as_ref().and_then(OtlpSection::refuse_after),
        });
        if is_there {
            join::join(&pipeline, &control).await.map_err(|refused| StartError::Unfit(refused.lines()))?;
        }
        let (tracer, recorded) = Tracer::new(config.otlp.as_ref().map_or(0.0, |otlp| otlp.trace_ratio));
        Ok(Self {
            tracer: Arc::new(tracer),
            recorded,
            pipeline,
            control,
            metrics: Arc::default(),
            components: Arc::default(),
            calls: TaskTracker::new(),
            listeners,
            started_at: SystemClock.now(),
            config,
        })
    }

    /// Serves until SIGTERM or SIGINT, then drains: health turns, calls under way end, the ledger closes.
    ///
    /// # Errors
    /// Where a front ends by itself.
    pub async fn run(mut self) -> Result<(), StartError> {
        let mut ends = Ends::new()?;
        let (stop_watch, stop_fronts) = (CancellationToken::new(), CancellationToken::new());
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
        let beside = Beside::begin(&mut self, &stop_watch)?;
        let drain = self.config.drain;
        let addresses = self.addresses().map_err(|fault| StartError::Machine(fault.to_string()))?;
        let (pipeline, calls) = (self.pipeline.clone(), self.calls.clone());
        let mut fronts = self.fronts(health, &stop_fronts)?;
        for (front, address) in addresses {
            tracing::info!(front, %address, "listening");
        }
        let ended = tokio::select! {
            () = ends.wait() => None,
            ended = fronts.join_next() => ended,
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
        // Streams of health and reflection never end by themselves; answers that are made get a moment to leave.
        let answered = async {
            calls.wait().await;
            let _streams_may_go_on = tokio::time::timeout(FLUSH, all_ended(&mut fronts)).await;
        };
        if tokio::time::timeout(Duration::from_millis(drain.timeout_ms), answered).await.is_err() {
            tracing::warn!("calls under way were cut off at the drain's timeout");
        }
        fronts.abort_all();
        pipeline.finishing.close();
        pipeline.finishing.wait().await;
        let _ended = watch.await;
        beside.end(&pipeline).await;
        pipeline.ledger.close().await;
        pipeline.keyring.close().await;
        tracing::info!("stopped");
        match ended {
            None => Ok(()),
            Some(_) => Err(StartError::Machine("a listener ended by itself; the log says why".to_owned())),
        }
    }

    fn fronts<H>(
        self,
        health: tonic_health::pb::health_server::HealthServer<H>,
        stop: &CancellationToken,
    ) -> Result<JoinSet<()>, StartError>
    where
        H: tonic_health::pb::health_server::Health,
    {
        let mut fronts = JoinSet::new();
        let limits = &self.config.limits;
        let message_bytes = limits.payload_bytes_max + MESSAGE_OVERHEAD_BYTES;
        let quotes =
            QuoteSigningServiceServer::new(Quotes { pipeline: self.pipeline.clone(), metrics: self.metrics.clone() })
                .max_decoding_message_size(message_bytes);
        let keys = KeyDirectoryServiceServer::new(Keys { pipeline: self.pipeline.clone() })
            .max_decoding_message_size(message_bytes);
        let admin = AdminServiceServer::new(Admin {
            pipeline: self.pipeline.clone(),
            control: self.control.clone(),
            components: self.components.clone(),
            started_at: self.started_at,
        })
        .max_decoding_message_size(message_bytes);
        let grpc = self.server().add_service(health.clone()).add_service(quotes).add_service(keys);
        let admin = self.server().add_service(health).add_service(admin);
        let bounds = Bounds {
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            handshake_timeout: Duration::from_millis(limits.handshake_timeout_ms),
            idle_max: KEEPALIVE.0 + KEEPALIVE.1 + KEEPALIVE.1,
        };
        let public_bounds = Bounds { idle_max: PUBLIC_IDLE_MAX, ..bounds };
        for (router, listener, section) in
            [(grpc, self.listeners.grpc, &self.config.grpc), (admin, self.listeners.admin, &self.config.admin)]
        {
            let router = with_reflection(router, section)?;
            let connections = accept::accept(
                listener,
                tls::mutual(section).map_err(StartError::unfit)?,
                identify(section),
                bounds,
                stop.clone(),
            );
            let stop = stop.clone();
            fronts.spawn(async move {
                if let Err(fault) = router.serve_with_incoming_shutdown(connections, stop.cancelled_owned()).await {
                    tracing::error!(%fault, "a gRPC front ended");
                }
            });
        }
        let Pipeline { policy, stopped, published, .. } = &*self.pipeline;
        let sets = Sets { policy: policy.clone(), stopped: stopped.clone(), published: published.clone() };
        let public = tls::public(&self.config.jwks).map_err(StartError::unfit)?;
        for (front, file) in [
            ("grpc", &self.config.grpc.certificate),
            ("admin", &self.config.admin.certificate),
            ("jwks", &self.config.jwks.certificate),
        ] {
            // What is served now; it was read a moment ago.
            self.metrics.certificate(front, tls::ends(file).map_err(StartError::unfit)?);
        }
        let connections = accept::accept(self.listeners.jwks, public, Arc::new(|_| None), public_bounds, stop.clone());
        let lines = Lines::new(self.config.environment, self.metrics.clone());
        fronts.spawn(fronts::serve_https(connections, jwks::routes(sets, lines), stop.clone()));
        let operations = operations::routes(Operations {
            components: self.components,
            stopped: self.pipeline.stopped.clone(),
            published: self.pipeline.published.clone(),
            metrics: self.metrics,
        });
        let (listener, stop) = (self.listeners.operations, stop.clone());
        fronts.spawn(async move {
            if let Err(fault) = axum::serve(listener, operations).with_graceful_shutdown(stop.cancelled_owned()).await {
                tracing::error!(%fault, "the operations front ended");
            }
        });
        Ok(fronts)
    }

    fn server(&self) -> Server<tower::layer::util::Stack<EdgeLayer, tower::layer::util::Identity>> {
        let limits = &self.config.limits;
        Server::builder()
            .max_concurrent_streams(limits.streams_max)
            .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .layer(EdgeLayer {
                environment: self.config.environment,
                deadline_max: limits.deadline_max(),
                metrics: self.metrics.clone(),
                calls: self.calls.clone(),
                tracer: self.tracer.clone(),
            })
    }

    /// The addresses it listens on: gRPC, admin, JWKS, operations.
    ///
    /// # Errors
    /// Where the machine does not tell.
    pub fn addresses(&self) -> io::Result<[(&'static str, std::net::SocketAddr); 4]> {
        let listeners = &self.listeners;
        Ok([
            ("grpc", listeners.grpc.local_addr()?),
            ("admin", listeners.admin.local_addr()?),
            ("jwks", listeners.jwks.local_addr()?),
            ("operations", listeners.operations.local_addr()?),
        ])
    }
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        let bind = async |field: &str, address: std::net::SocketAddr| {
            TcpListener::bind(address).await.map_err(|fault| {
                StartError::unfit(format!("`{field}` = `{address}` cannot be bound: {fault}; free it or give another"))
            })
        };
        Ok(Self {
            grpc: bind("grpc.listen", config.grpc.listen).await?,
            admin: bind("admin.listen", config.admin.listen).await?,
            jwks: bind("jwks.listen", config.jwks.listen).await?,
            operations: bind("operations.listen", config.operations.listen).await?,
        })
    }
}

async fn all_ended(fronts: &mut JoinSet<()>) {
    while fronts.join_next().await.is_some() {}
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

fn identify(section: &GrpcListener) -> Identify {
    let trust_domain = section.trust_domain.clone();
    Arc::new(move |connection| {
        let leaf = connection.peer_certificates()?.first()?;
        Some(Peer::of(leaf, trust_domain.as_deref()))
    })
}

fn with_reflection<L: Clone>(router: Router<L>, section: &GrpcListener) -> Result<Router<L>, StartError> {
    if !section.reflection {
        return Ok(router);
    }
    let build = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (v1, v1alpha) = (build().build_v1(), build().build_v1alpha());
    let fault = |fault: tonic_reflection::server::Error| StartError::Machine(fault.to_string());
    Ok(router.add_service(v1.map_err(fault)?).add_service(v1alpha.map_err(fault)?))
}
