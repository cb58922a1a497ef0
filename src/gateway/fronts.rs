//! The four listeners: what each speaks, what it serves, and within which bounds.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use hyper::body::Incoming;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::{Layer as _, ServiceExt as _};

use super::{Gateway, StartError};
use crate::{
    config::{Config, GrpcListener},
    pipeline::Pipeline,
    proto::{
        DESCRIPTORS, admin_service_server::AdminServiceServer, key_directory_service_server::KeyDirectoryServiceServer,
        quote_signing_service_server::QuoteSigningServiceServer,
    },
    service::{
        admin::Admin,
        jwks::{self, Lines, Sets},
        keys::Keys,
        operations::{self, Operations},
        quotes::{Quotes, Windows},
    },
    transport::{
        accept::{self, Bounds, Counts, Protocol},
        edge::{EdgeLayer, Site},
        live::Live,
        serve::{self, KEEPALIVE, Terms},
        tls::{self, TlsError},
    },
};

/// How much larger a message may be than the quote in it.
const MESSAGE_OVERHEAD_BYTES: usize = 4096;
/// How large a question about health or the services may be: a name. They are read before anybody asks who the caller is.
const PROBE_BYTES_MAX: usize = 4096;
/// How long a connection to a listener of anyone's may be silent.
const PUBLIC_IDLE_MAX: Duration = Duration::from_secs(15);
/// How many requests such a connection may have under way.
const PUBLIC_STREAMS_MAX: u32 = 16;
/// How long after the longest call a connection is cut off that is to end.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// Where the gateway listens.
pub(super) struct Listeners {
    grpc: TcpListener,
    admin: TcpListener,
    jwks: TcpListener,
    operations: TcpListener,
}

/// The TLS settings of the fronts, which follow their files.
#[derive(Clone)]
pub(super) struct Lives {
    pub(super) grpc: Arc<Live>,
    pub(super) admin: Arc<Live>,
    pub(super) jwks: Arc<Live>,
}

/// What serves on the listeners. Key sets are served longer than the rest.
pub(super) struct Fronts {
    pub(super) calls: JoinSet<()>,
    pub(super) sets: JoinSet<()>,
}

impl Listeners {
    pub(super) async fn bind(config: &Config) -> Result<Self, StartError> {
        let bind = async |field: &str, address: SocketAddr| {
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

    pub(super) fn addresses(&self) -> io::Result<[(&'static str, SocketAddr); 4]> {
        Ok([
            ("grpc", self.grpc.local_addr()?),
            ("admin", self.admin.local_addr()?),
            ("jwks", self.jwks.local_addr()?),
            ("operations", self.operations.local_addr()?),
        ])
    }
}

impl Lives {
    pub(super) fn read(config: &Config) -> Result<Self, TlsError> {
        Ok(Self {
            grpc: Live::new(tls::mutual(&config.grpc)?),
            admin: Live::new(tls::mutual(&config.admin)?),
            jwks: Live::new(tls::public(&config.jwks)?),
        })
    }
}

impl Gateway {
    /// Begins to serve on all four: key sets until `stop_sets`, the rest until `stop`.
    pub(super) fn fronts<H>(
        self,
        health: tonic_health::pb::health_server::HealthServer<H>,
        stop: &CancellationToken,
        stop_sets: &CancellationToken,
    ) -> Result<Fronts, StartError>
    where
        H: tonic_health::pb::health_server::Health,
    {
        let limits = &self.config.limits;
        let message_bytes = limits.payload_bytes_max + MESSAGE_OVERHEAD_BYTES;
        let (pipeline, metrics) = (self.pipeline.clone(), self.metrics.clone());
        let quotes = Quotes { pipeline, metrics, windows: Windows::new(limits.stream_window) };
        let quotes = QuoteSigningServiceServer::new(quotes).max_decoding_message_size(message_bytes);
        let keys = Keys { pipeline: self.pipeline.clone() };
        let keys = KeyDirectoryServiceServer::new(keys).max_decoding_message_size(message_bytes);
        let admin = AdminServiceServer::new(Admin {
            pipeline: self.pipeline.clone(),
            control: self.control.clone(),
            components: self.components.clone(),
            started_at: self.started_at,
        })
        .max_decoding_message_size(message_bytes);
        let health = health.max_decoding_message_size(PROBE_BYTES_MAX);
        let grpc = Routes::new(health.clone()).add_service(quotes).add_service(keys);
        let admin = Routes::new(health).add_service(admin);
        let bounds = Bounds {
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            handshake_timeout: Duration::from_millis(limits.handshake_timeout_ms),
            idle_max: KEEPALIVE.0 + KEEPALIVE.1 + KEEPALIVE.1,
        };
        let public_bounds = Bounds { idle_max: PUBLIC_IDLE_MAX, ..bounds };
        let last_calls = limits.deadline_max() + LAST_CALLS;
        let terms = Terms { http2_only: true, streams_max: limits.streams_max, age_max: limits.age_max(), last_calls };
        let public_terms = Terms { http2_only: false, streams_max: PUBLIC_STREAMS_MAX, ..terms };

        let (mut calls, mut served) = (JoinSet::new(), JoinSet::new());
        let Listeners { grpc: grpc_listener, admin: admin_listener, jwks: jwks_listener, operations } = self.listeners;
        let edge = EdgeLayer(Arc::new(Site {
            environment: self.config.environment,
            deadline_max: limits.deadline_max(),
            metrics: self.metrics.clone(),
            calls: self.calls.clone(),
            tracer: self.tracer.clone(),
            pipeline: self.pipeline.clone(),
        }));
        let counts = |front| Counts { front, metrics: self.metrics.clone() };
        for (front, routes, listener, section, live) in [
            ("grpc", grpc, grpc_listener, &self.config.grpc, &self.lives.grpc),
            ("admin", admin, admin_listener, &self.config.admin, &self.lives.admin),
        ] {
            let routes = edge.layer(with_reflection(routes, section)?.prepare());
            let routes = routes.map_request(|request: Request<Incoming>| request.map(Body::new));
            let protocol = Protocol::Mutual(live.clone(), section.trust_domain.clone());
            let connections = accept::accept(listener, protocol, bounds, counts(front), stop.clone());
            calls.spawn(serve::serve(connections, routes, terms, stop.clone()));
        }
        let Pipeline { policy, stopped, published, .. } = &*self.pipeline;
        let sets = Sets { policy: policy.clone(), stopped: stopped.clone(), published: published.clone() };
        let sets = jwks::routes(sets, Lines::new(self.config.environment, self.metrics.clone()));
        let protocol = Protocol::Public(self.lives.jwks.clone());
        let connections = accept::accept(jwks_listener, protocol, public_bounds, counts("jwks"), stop_sets.clone());
        served.spawn(serve::serve(connections, sets, public_terms, stop_sets.clone()));
        let counts = counts("operations");
        let watched = operations::routes(Operations {
            components: self.components,
            stopped: self.pipeline.stopped.clone(),
            published: self.pipeline.published.clone(),
            metrics: self.metrics,
        });
        let connections = accept::accept(operations, Protocol::Plain, public_bounds, counts, stop.clone());
        calls.spawn(serve::serve(connections, watched, public_terms, stop.clone()));
        Ok(Fronts { calls, sets: served })
    }
}

fn with_reflection(routes: Routes, section: &GrpcListener) -> Result<Routes, StartError> {
    if !section.reflection {
        return Ok(routes);
    }
    let build = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (v1, v1alpha) = (build().build_v1(), build().build_v1alpha());
    let fault = |fault: tonic_reflection::server::Error| StartError::Machine(fault.to_string());
    let v1 = v1.map_err(fault)?.max_decoding_message_size(PROBE_BYTES_MAX);
    let v1alpha = v1alpha.map_err(fault)?.max_decoding_message_size(PROBE_BYTES_MAX);
    Ok(routes.add_service(v1).add_service(v1alpha))
}
