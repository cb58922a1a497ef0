//! The operations front, for loopback or the pod's network: `/livez`, `/readyz?for=signing|jwks`, `/metrics`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;

use crate::{published::Published, stopped::Stopped, telemetry::Metrics};

use super::health::Components;

/// What the routes read.
#[derive(Clone)]
pub struct Operations {
    /// How each part fares.
    pub components: Arc<Components>,
    /// Whether it is known what was revoked.
    pub stopped: Arc<Stopped>,
    /// Whether others have a newer bundle.
    pub published: Arc<Published>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The routes.
pub fn routes(operations: Operations) -> Router {
    Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(operations)
}

#[derive(Deserialize)]
struct Purpose {
    #[serde(rename = "for")]
    purpose: String,
}

async fn readyz(State(operations): State<Operations>, purpose: Result<Query<Purpose>, QueryRejection>) -> Response {
    let ready = match purpose.as_ref().map(|query| query.purpose.as_str()) {
        // The JWKS is served from memory once it is known what was revoked. While others have a newer bundle, theirs are better.
        Ok("jwks") => operations.stopped.is_told() && operations.published.lags().is_none(),
        Ok("signing") => operations.components.serves("signing"),
        _ => return (StatusCode::BAD_REQUEST, "ask /readyz?for=signing or /readyz?for=jwks\n").into_response(),
    };
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let parts = operations.components.all().into_iter();
    let parts: BTreeMap<_, _> =
        parts.map(|(name, fault)| (name, fault.unwrap_or_else(|| "serving".to_owned()))).collect();
    let body = serde_json::json!(parts).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn metrics(State(operations): State<Operations>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], operations.metrics.text()).into_response()
}
