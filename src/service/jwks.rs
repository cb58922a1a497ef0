//! The public JWKS: one set per partner, public members only, from the bundle in memory. Needs no device, no
//! ledger and no client certificate.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{PartnerId, sha256},
    jwk, key_set,
    policy::{Bundle, Partner},
    published::{Published, Standings},
    stopped::Stopped,
};

mod lines;

pub use lines::Lines;

/// What the sets are made of.
#[derive(Clone)]
pub struct Sets {
    /// The bundle in force.
    pub policy: Arc<ArcSwap<Bundle>>,
    /// Which of its keys were revoked.
    pub stopped: Arc<Stopped>,
    /// What they have signed.
    pub published: Arc<Published>,
}

/// Why a partner's set is not shown to anybody.
#[derive(Debug, thiserror::Error)]
pub enum NoSet {
    /// A set that shows a revoked key would be worse than none.
    #[error("it is not known yet which keys were revoked")]
    NotTold,
    /// Others have a newer bundle, whose keys may sign by now. Whoever keeps an old set keeps it better than an older one.
    #[error("{0}")]
    Behind(String),
    /// Whatever built it.
    #[error("it has {}", .0.join(", "))]
    Private(Vec<String>),
}

/// The set of `partner` at `now`, as it is served and exported.
///
/// # Errors
/// Where it must not be shown.
pub fn set_of(
    policy: &Bundle,
    partner: &PartnerId,
    stopped: &Stopped,
    published: &Published,
    now: UtcTime,
) -> Result<String, NoSet> {
    if !stopped.is_told() {
        return Err(NoSet::NotTold);
    }
    if let Some(why) = published.lags() {
        return Err(NoSet::Behind(why));
    }
    set_with(policy, partner, &Standings::of_now(stopped, published), now)
}

/// The set of `partner` at `now`, by what is known of the keys.
///
/// # Errors
/// Where it must not be shown.
pub fn set_with(policy: &Bundle, partner: &PartnerId, standings: &Standings, now: UtcTime) -> Result<String, NoSet> {
    let shown = policy.timeline.published(partner, now, |kid| standings.of(kid));
    let set = jwk::jwks(shown.map(|key| &*key.public));
    let private = key_set::private_parts(set.as_bytes());
    if private.is_empty() { Ok(set) } else { Err(NoSet::Private(private)) }
}

/// How long a fetcher may keep the set; a key is published at least this long before it signs.
const CACHE_CONTROL: &str = "public, max-age=300";

/// The routes: nothing but the key sets. Each request leaves its line.
pub fn routes(sets: Sets, lines: Lines) -> Router {
    Router::new()
        .route("/partners/{partner}/.well-known/jwks.json", get(of_partner))
        .route("/.well-known/jwks.json", get(of_host))
        .with_state(sets)
        .layer(middleware::from_fn_with_state(lines, lines::answer))
}

async fn of_partner(
    State(sets): State<Sets>,
    partner: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    let Ok(Path(partner)) = partner else { return StatusCode::NOT_FOUND.into_response() };
    let policy = sets.policy.load();
    let found = partner.parse::<PartnerId>().ok().and_then(|id| policy.partner(&id));
    answer(&sets, &policy, found, &headers)
}

async fn of_host(State(sets): State<Sets>, uri: http::Uri, headers: HeaderMap) -> Response {
    let policy = sets.policy.load();
    let header = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 carries the host in the request target.
    let host = uri.host().or(header.map(|host| host.rsplit_once(':').map_or(host, |(host, _)| host)));
    answer(&sets, &policy, host.and_then(|host| policy.partner_of_host(host)), &headers)
}

fn answer(sets: &Sets, policy: &Bundle, partner: Option<&Partner>, headers: &HeaderMap) -> Response {
    let Some(partner) = partner else { return StatusCode::NOT_FOUND.into_response() };
    let mut response = of(sets, policy, partner, headers);
    response.extensions_mut().insert(lines::Of(partner.id.clone()));
    response
}

fn of(sets: &Sets, policy: &Bundle, partner: &Partner, headers: &HeaderMap) -> Response {
    let set = match set_of(policy, &partner.id, &sets.stopped, &sets.published, SystemClock.now()) {
        Ok(set) => set,
        Err(NoSet::NotTold | NoSet::Behind(_)) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Err(fault) => {
            tracing::error!(partner = %partner.id, %fault, "a key set was not served");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let etag = format!("\"{}\"", hex::encode(sha256(set.as_bytes())));
    let fresh = [(header::CACHE_CONTROL, CACHE_CONTROL.to_owned()), (header::ETAG, etag.clone())];
    let held = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if held.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag)) {
        return (StatusCode::NOT_MODIFIED, fresh).into_response();
    }
    (fresh, [(header::CONTENT_TYPE, "application/json")], set).into_response()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path as File, time::Duration};

    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        domain::Environment,
        ledger::{Holding, Lease, stops::Stops},
        policy::files,
    };

    /// It is asked whatever a balancer makes of its readiness.
    #[tokio::test]
    async fn a_gateway_with_an_old_bundle_serves_no_set_where_others_have_the_new_one() {
        let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/policy-development");
        let bundle = Bundle::check(&files::read(File::new(bundle)).unwrap()).unwrap();
        let partner = bundle.partners().next().unwrap().id.clone();
        let (stopped, published) = (Arc::new(Stopped::default()), Arc::new(Published::default()));
        stopped.learn(Stops::default()).unwrap();
        let policy = Arc::new(ArcSwap::from_pointee(bundle));
        let sets = Sets { policy, stopped, published: Arc::clone(&published) };
        let routes = routes(sets, Lines::new(Environment::Development, Arc::default()));
        let asked = async || {
            let request = Request::get(format!("/partners/{partner}/.well-known/jwks.json")).body(Body::empty());
            routes.clone().oneshot(request.unwrap()).await.unwrap().status().as_u16()
        };
        let lease = |replica: &str, serial| Lease {
            replica: replica.to_owned(),
            age: Duration::ZERO,
            bundle_age: Duration::from_mins(2),
            holding: Holding { serial, shown: BTreeSet::new() },
        };
        assert_eq!(asked().await, 200);
        let nobody = Request::get("/partners/%ff/.well-known/jwks.json").body(Body::empty()).unwrap();
        assert_eq!(routes.clone().oneshot(nobody).await.unwrap().status(), StatusCode::NOT_FOUND);
        published.meet("a", vec![lease("a", 1), lease("b", 2)]);
        assert_eq!(asked().await, 503);
        published.meet("a", vec![lease("a", 2), lease("b", 2)]);
        assert_eq!(asked().await, 200);
        published.meet("a", vec![lease("a", 2), lease("b", 3), lease("c", 2)]);
        assert_eq!(asked().await, 200, "one tries a bundle out");
    }
}
