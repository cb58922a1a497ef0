//! `quotesign jwks watch`: looks at a key set as verifiers do, again and again, and tells monitoring what it finds.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use axum::{Router, http::header, routing::get};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Args;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use serde_json::Value;

use crate::{
    cli::{out::say, policy::bundle_in},
    client,
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{Kid, PartnerId, sha256},
    key_set::{self, Finding, Severity},
    policy::{Bundle, timeline::Standing},
};

use super::{Failure, block_on};

/// Ends when it is interrupted. The metrics are at `/metrics` of the address that it prints.
#[derive(Debug, Args)]
pub(in crate::cli) struct Watch {
    /// The https:// address.
    url: String,
    /// The kid that must be in it; with --policy the one that signs at that moment.
    #[arg(long)]
    active: Option<String>,
    /// The bundle that says which keys are expected: anything else is an unexpected change. Without it any change is.
    #[arg(long, value_name = "DIR", requires = "partner")]
    policy: Option<PathBuf>,
    /// The partner of the bundle whose set it is.
    #[arg(long)]
    partner: Option<String>,
    /// A kid that was revoked, which the bundle still has: not expected, and not the active one. It may be given again.
    #[arg(long, value_name = "KID")]
    revoked: Vec<String>,
    /// The CAs that the address is held against, PEM.
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    ca: PathBuf,
    /// How often to look, in seconds.
    #[arg(long, default_value_t = 30)]
    every: u64,
    /// Where the metrics are.
    #[arg(long, default_value = "127.0.0.1:9465")]
    listen: SocketAddr,
}

/// What monitoring is told.
struct Gauges {
    registry: Mutex<Registry>,
    up: Gauge,
    status: Gauge,
    valid: Gauge,
    private: Gauge,
    active: Gauge,
    keys: Gauge,
    certificate_ends: Gauge<f64, AtomicU64>,
    looked_at: Gauge<f64, AtomicU64>,
    fetches_failed: Counter,
    unexpected: Counter,
}

impl Default for Gauges {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("quotesign_jwks");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let up = gauge("up", "1 where the key set was fetched with status 200");
        let status = gauge("http_status", "The HTTP status of the last answer; 0 where there was none");
        let valid = gauge("valid", "1 where verifiers will take all of the key set that was fetched last");
        let private = gauge("private_members", "1 where private key material is published: rotate now");
        let active = gauge("active_kid_present", "1 where the kid that signs is in the key set that was fetched last");
        let keys = gauge("keys", "How many keys it has");
        let (certificate_ends, looked_at) = (Gauge::default(), Gauge::default());
        let (fetches_failed, unexpected) = (Counter::default(), Counter::default());
        let ends: &Gauge<f64, AtomicU64> = &certificate_ends;
        registry.register("certificate_expiry_timestamp_seconds", "When the certificate ends", ends.clone());
        let looked: &Gauge<f64, AtomicU64> = &looked_at;
        registry.register("last_look_timestamp_seconds", "When it was last looked at", looked.clone());
        registry.register("fetches_failed", "Looks that brought no status 200", fetches_failed.clone());
        registry.register("unexpected_changes", "Changes of keys that nobody planned", unexpected.clone());
        // Of a set that nobody has seen nothing is known to be wrong.
        valid.set(1);
        active.set(1);
        let registry = Mutex::new(registry);
        Self {
            registry,
            up,
            status,
            valid,
            private,
            active,
            keys,
            certificate_ends,
            looked_at,
            fetches_failed,
            unexpected,
        }
    }
}

/// The keys of a set: each kid with the digest of its modulus and exponent.
type Keys = BTreeMap<String, [u8; 32]>;

impl Watch {
    pub(super) fn run(self) -> Result<(), Failure> {
        let active = self.active.as_deref().map(str::parse::<Kid>).transpose();
        let active = active.map_err(|fault| Failure::unfit(format!("--active: {fault}")))?;
        let partner = self.partner.as_deref().map(str::parse::<PartnerId>).transpose();
        let partner = partner.map_err(|fault| Failure::unfit(format!("--partner: {fault}")))?;
        if let Some(dir) = &self.policy {
            bundle_in(dir)?;
        }
        if self.every == 0 {
            return Err(Failure::unfit("--every: give at least one second"));
        }
        let gauges = Arc::new(Gauges::default());
        block_on(async {
            let listener = tokio::net::TcpListener::bind(self.listen).await;
            let listener = listener.map_err(|fault| Failure::unfit(format!("--listen {}: {fault}", self.listen)))?;
            let address = listener.local_addr().map_err(Failure::failed)?;
            say!("metrics at http://{address}/metrics");
            let told = gauges.clone();
            let routes = Router::new().route("/metrics", get(async move || metrics(&told)));
            let look = self.keep_looking(&gauges, active, partner);
            tokio::select! {
                ended = axum::serve(listener, routes) => ended.map_err(Failure::failed),
                () = look => Ok(()),
                ended = tokio::signal::ctrl_c() => ended.map_err(Failure::failed),
            }
        })
    }

    async fn keep_looking(&self, gauges: &Gauges, active: Option<Kid>, partner: Option<PartnerId>) {
        let mut seen: Option<Keys> = None;
        let mut told: BTreeSet<String> = BTreeSet::new();
        let mut bundle: Option<Bundle> = None;
        loop {
            let now = SystemClock.now();
            // A bundle that is being changed keeps what was expected before for this look.
            bundle = self.policy.as_deref().and_then(|dir| Bundle::load(dir).ok()).or(bundle);
            // A replacement of a key that was lost signs before its time, once it is activated: verifiers need it from now on.
            let is_replacement = |kid: &Kid| {
                bundle.as_ref().and_then(|bundle| bundle.key(kid)).is_some_and(|key| key.emergency.is_some())
            };
            let standing = |kid: &Kid| Standing {
                is_activated: is_replacement(kid),
                ..Standing::planned(self.revoked.iter().any(|revoked| revoked == kid.as_str()))
            };
            let planned = bundle.as_ref().zip(partner.as_ref());
            let current = planned.and_then(|(bundle, partner)| bundle.timeline.current(partner, now, standing));
            let active = active.clone().or_else(|| current.map(|key| key.kid.clone()));
            let expected = planned.map(|(bundle, partner)| expected(bundle, partner, now, standing));
            gauges.looked_at.set(seconds(now));
            let mut findings = Vec::new();
            match client::look(&self.url, &self.ca).await {
                Err(fault) => {
                    gauges.down(0);
                    findings.push(format!("FAILED    fetch: {fault}"));
                }
                Ok((fetched, body)) => {
                    let found = key_set::inspect(&body, Some(&fetched), active.as_ref(), now);
                    gauges.take(&found, &fetched, active.is_some());
                    let keys = keys_of(&body);
                    if fetched.status == 200 {
                        gauges.keys.set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
                        let known = expected.as_ref().or(seen.as_ref());
                        if known.is_some_and(|known| is_unexpected(known, &keys, expected.is_some()))
                            && seen.as_ref() != Some(&keys)
                        {
                            gauges.unexpected.inc();
                            findings.push("FAILED    keys: they have changed as nobody planned".to_owned());
                        }
                        seen = Some(keys);
                    }
                    let bad = found.iter().filter(|finding| finding.severity > Severity::Passed);
                    findings.extend(
                        bad.map(|Finding { check, severity, detail }| format!("{severity:<9} {check}: {detail}")),
                    );
                }
            }
            let news: BTreeSet<String> = findings.into_iter().collect();
            for line in news.difference(&told) {
                say!("{now} {line}");
            }
            told = news;
            tokio::time::sleep(Duration::from_secs(self.every)).await;
        }
    }
}

impl Gauges {
    /// No set was fetched: that says nothing of what is in it, and nobody is to halt signing for a network's fault.
    fn down(&self, status: u16) {
        self.up.set(0);
        self.status.set(status.into());
        self.fetches_failed.inc();
    }

    fn take(&self, findings: &[Finding], fetched: &key_set::Fetched, knows_active: bool) {
        let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Passed);
        let passed =
            |check: &str| findings.iter().any(|found| found.check == check && found.severity == Severity::Passed);
        if fetched.status == 200 {
            self.up.set(1);
            self.status.set(200);
            self.valid.set(i64::from(worst < Severity::Failed));
            // Where nobody has said which it is, nothing is missing.
            self.active.set(i64::from(!knows_active || passed("the active kid")));
        } else {
            self.down(fetched.status);
        }
        self.private.set(i64::from(worst == Severity::Critical));
        if let Some(ends) = fetched.certificate_ends {
            self.certificate_ends.set(seconds(ends));
        }
    }
}

fn metrics(gauges: &Gauges) -> impl axum::response::IntoResponse + use<> {
    let mut text = String::new();
    if let Err(fault) = encode(&mut text, &gauges.registry.lock()) {
        text = format!("# {fault}\n");
    }
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

/// What the bundle would have it show.
fn expected(bundle: &Bundle, partner: &PartnerId, now: UtcTime, standing: impl Fn(&Kid) -> Standing) -> Keys {
    let published = bundle.timeline.published(partner, now, standing);
    published.map(|key| (key.kid.to_string(), print_of(key.public.modulus(), key.public.exponent()))).collect()
}

/// Where a bundle says what is expected, a key less is no change that endangers anybody: it may have ended, or was revoked.
fn is_unexpected(known: &Keys, keys: &Keys, is_planned: bool) -> bool {
    if is_planned { keys.iter().any(|(kid, print)| known.get(kid) != Some(print)) } else { known != keys }
}

fn keys_of(body: &[u8]) -> Keys {
    let set: Value = serde_json::from_slice(body).unwrap_or_default();
    let keys = set.get("keys").and_then(Value::as_array).into_iter().flatten();
    // One that cannot be read is some other key.
    let member = |key: &Value, name: &str| {
        let text = key.get(name).and_then(Value::as_str)?;
        Some(URL_SAFE_NO_PAD.decode(text).unwrap_or_else(|_| text.as_bytes().to_vec()))
    };
    let key =
        |key: &Value| Some((key.get("kid")?.as_str()?.to_owned(), print_of(&member(key, "n")?, &member(key, "e")?)));
    keys.filter_map(key).collect()
}

fn print_of(modulus: &[u8], exponent: &[u8]) -> [u8; 32] {
    sha256(&[modulus, &[0], exponent].concat())
}

fn seconds(at: UtcTime) -> f64 {
    // Exact for every time that a calendar has.
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of any year have fewer than 53 bits")]
    let millis = at.millis() as f64;
    millis / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_cannot_be_fetched_is_down_and_its_active_kid_is_not_missing() {
        let gauges = Gauges::default();
        let told = || [&gauges.up, &gauges.valid, &gauges.active].map(Gauge::get);
        gauges.down(0);
        assert_eq!(told(), [0, 1, 1]);
        let fetched = key_set::Fetched { status: 200, ..key_set::Fetched::default() };
        gauges.take(&key_set::inspect(b"{\"keys\":[]}", Some(&fetched), None, SystemClock.now()), &fetched, true);
        assert_eq!(told(), [1, 0, 0]);
        gauges.down(503);
        assert_eq!(told(), [0, 0, 0], "what was last seen stands");
    }
}
