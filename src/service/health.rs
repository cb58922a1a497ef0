//! Health that tells the truth: each part's own, and what follows for those who call. Signing and the JWKS are
//! told apart, since the JWKS needs no device.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::access;
use crate::{
    audit::{Event, Facts, Record},
    clock::{Clock as _, SystemClock},
    control::Control,
    domain::{KeyState, Kid, PartnerId},
    pipeline::Pipeline,
    policy::{Bundle, timeline::TimedKey},
    signer::Health,
    telemetry::Metrics,
};

/// The gRPC service that signs; `/<partner>` after it names one partner's share of it.
pub const SIGNING: &str = "quotesign.v1.QuoteSigningService";
/// The gRPC service that tells keys.
pub const DIRECTORY: &str = "quotesign.v1.KeyDirectoryService";
const EVERY: Duration = Duration::from_millis(250);

/// How each part fares: nothing where it serves, else why not.
#[derive(Default)]
pub struct Components(RwLock<BTreeMap<String, Option<String>>>);

impl Components {
    /// All parts by name.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Option<String>> {
        self.0.read().clone()
    }

    /// Whether the part of this name is known to serve.
    #[must_use]
    pub fn serves(&self, name: &str) -> bool {
        matches!(self.0.read().get(name), Some(None))
    }
}

/// Watches every part and tells `grpc.health.v1`, `/readyz` and the metrics.
pub struct Watch {
    /// What is watched.
    pub pipeline: Arc<Pipeline>,
    /// What knows whether the bundle on disk is the one in force.
    pub control: Arc<Control>,
    /// Where it is told.
    pub components: Arc<Components>,
    /// Where it is told to gRPC clients.
    pub reporter: HealthReporter,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// Whether the journal is shipped.
    pub ships: bool,
}

impl Watch {
    /// Watches until `stop`; then tells everyone that this gateway serves no more.
    pub async fn run(self, stop: CancellationToken) {
        self.reporter.set_service_status(DIRECTORY, ServingStatus::Serving).await;
        let mut told: BTreeMap<String, Option<String>> = BTreeMap::new();
        while !stop.is_cancelled() {
            let now = self.look();
            for (name, fault) in &now {
                self.metrics.component(name, fault.is_none());
                if told.get(name) != Some(fault) {
                    self.tell(name, fault.as_deref()).await;
                }
            }
            for name in told.keys().filter(|name| !now.contains_key(*name)) {
                self.forget(name).await;
            }
            for (name, device) in self.pipeline.keyring.devices() {
                self.metrics.device(name, device.turns());
            }
            self.look_at_volumes();
            self.look_at_keys();
            self.metrics.records_dropped(self.pipeline.ledger.dropped_records());
            self.metrics.ledger(&self.pipeline.ledger.load());
            self.metrics.reloads(self.control.reloads.counts());
            self.metrics.room(&self.pipeline.room);
            self.metrics.backlog(&self.pipeline.backlog, SystemClock.now());
            *self.components.0.write() = now.clone();
            told = now;
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
        }
        let services = told.keys().filter_map(|name| service_of(name));
        for service in services.chain([DIRECTORY.to_owned(), String::new()]) {
            self.reporter.set_service_status(service, ServingStatus::NotServing).await;
        }
        self.components.0.write().insert("signing".to_owned(), Some("the gateway is shutting down".to_owned()));
    }

    /// Tells which keys may sign and which ones verifiers can know, what is stopped, and how the quotes of each key fare.
    fn look_at_keys(&self) {
        let (policy, standings) = (self.pipeline.policy.load(), self.pipeline.standings());
        self.metrics.policy(&policy.digest.to_string(), policy.serial);
        for key in policy.timeline.all() {
            self.metrics.served(key.kid.as_str(), standings.of(&key.kid).served_since.is_some());
        }
        let now = SystemClock.now();
        for partner in policy.partners() {
            let active = policy.timeline.current(&partner.id, now, |kid| standings.of(kid));
            let next = policy.timeline.next_change(&partner.id, now);
            self.metrics.partner(partner.id.as_str(), active.is_some(), next);
        }
        self.metrics.stops(&self.pipeline.stopped.known());
        for fate in self.pipeline.outcomes.look(now) {
            self.metrics.fate(&fate);
        }
    }

    /// Tells a key that signs more than usual, once in its hour.
    fn look_at_volumes(&self) {
        let (policy, now) = (self.pipeline.policy.load(), SystemClock.now());
        for standing in self.pipeline.volumes.look(now, policy.volume) {
            self.metrics.volume(&standing);
            let Some(why) = standing.unusual.filter(|_| standing.is_news) else { continue };
            tracing::warn!(kid = %standing.kid, why, "a key signs more than usual");
            let facts = Facts { kid: Some(standing.kid), detail: Some(why), ..Facts::default() };
            let context = access::own_trail(self.pipeline.environment, &policy);
            self.pipeline.ledger.journal(Record::new(Event::VolumeUnusual, now, context, facts));
        }
    }

    async fn tell(&self, name: &str, fault: Option<&str>) {
        let status = match fault {
            None => {
                tracing::info!(component = name, "serving");
                ServingStatus::Serving
            }
            Some(why) => {
                tracing::warn!(component = name, why, "not serving");
                ServingStatus::NotServing
            }
        };
        if let Some(service) = service_of(name) {
            self.reporter.set_service_status(service, status).await;
        }
        if name == "signing" {
            self.reporter.set_service_status("", status).await;
        }
    }

    /// A part that is no more, as a key that a reload has taken out.
    async fn forget(&self, name: &str) {
        self.metrics.forget(name);
        if let Some(service) = service_of(name) {
            self.reporter.clone().clear_service_status(&service).await;
        }
    }

    /// Every part as it now is.
    fn look(&self) -> BTreeMap<String, Option<String>> {
        let mut parts = BTreeMap::new();
        let ledger = self.pipeline.ledger.health().err();
        let ledger = ledger.or_else(|| self.pipeline.has_joined().err().map(|error| error.to_string()));
        let clock = self.pipeline.clock.now().err().map(|fault| fault.to_string());
        let common = ledger
            .clone()
            .or_else(|| clock.clone())
            .or_else(|| self.pipeline.room.suffices().err())
            .or_else(|| self.pipeline.is_shipped_in_time(SystemClock.now()).err().map(|fault| fault.to_string()));
        parts.insert("ledger".to_owned(), ledger);
        parts.insert("clock".to_owned(), clock);
        // A bundle that was refused stops nothing: the last good one goes on serving.
        parts.insert("policy".to_owned(), self.control.last_error());
        // Nor does a bundle that others have and this gateway has not; its key sets are out of date.
        parts.insert("publication".to_owned(), self.pipeline.published.lags());
        // Nor does a disk that begins to be full.
        if self.pipeline.room.is_watched() {
            parts.insert("disk".to_owned(), self.pipeline.room.warning());
        }
        // Nor does a collector that does not take the journal, but where the config says so: `common` has that.
        if self.ships {
            parts.insert("shipping".to_owned(), self.pipeline.backlog.fault());
        }
        let policy = self.pipeline.policy.load();
        for (name, health) in
            self.pipeline.keyring.health().into_iter().filter(|(name, _)| !self.has_ended(&policy, name))
        {
            parts.insert(name, fault_of(health));
        }
        for (partner, fault) in self.pipeline.published.exports() {
            parts.insert(format!("export/{partner}"), fault);
        }
        for (kid, fault) in self.revocations(&policy) {
            parts.insert(format!("revocation/{kid}"), fault);
        }
        let mut any = false;
        for partner in policy.partners() {
            let fault = common.clone().or_else(|| self.partner_fault(&partner.id));
            any |= fault.is_none();
            parts.insert(format!("signing/{}", partner.id), fault);
        }
        let none = || common.or_else(|| Some("no partner's current key can sign".to_owned()));
        parts.insert("signing".to_owned(), if any { None } else { none() });
        parts
    }

    /// Whether a part is a key that signs no more, by its end or by a revocation: whoever disables it in its device causes no fault.
    fn has_ended(&self, policy: &Bundle, name: &str) -> bool {
        let kid = name.strip_prefix("key/").and_then(|rest| rest.split('/').next()?.parse::<Kid>().ok());
        let Some(key) = kid.and_then(|kid| policy.key(&kid)) else { return false };
        key.state(SystemClock.now()) > KeyState::Active || self.pipeline.stopped.known().is_revoked(&key.kid)
    }

    fn why_no_key(&self, policy: &Bundle, partner: &PartnerId) -> String {
        let (now, standings) = (SystemClock.now(), self.pipeline.standings());
        let waits = |key: &Arc<TimedKey>| {
            let why = policy.timeline.waits_for(key, now, standings.of(&key.kid))?;
            Some(format!("`{}` may not sign yet: {why}", key.kid))
        };
        policy.timeline.of(partner).rev().find_map(waits).unwrap_or_else(|| "no key may sign now".to_owned())
    }

    /// Revoked keys that a registered URL would show: whether it does.
    fn revocations(&self, policy: &Bundle) -> Vec<(Kid, Option<String>)> {
        let (stopped, now) = (self.pipeline.stopped.known(), SystemClock.now());
        let revoked = policy.timeline.all().filter(|key| stopped.is_revoked(&key.kid) && key.is_published(now));
        let at_url =
            |key: &&Arc<TimedKey>| policy.partner(&key.partner).is_some_and(|partner| partner.jwks_url.is_some());
        let published = &self.pipeline.published;
        let told = |key: &Arc<TimedKey>| (key.kid.clone(), published.is_still_shown(&key.partner, &key.kid));
        revoked.filter(at_url).map(told).collect()
    }

    fn partner_fault(&self, partner: &PartnerId) -> Option<String> {
        let policy = self.pipeline.policy.load();
        let (stopped, standings) = (self.pipeline.stopped.known(), self.pipeline.standings());
        if let Some(stop) = stopped.halt(partner, None) {
            return Some(format!("signing is stopped ({stop})"));
        }
        match policy.timeline.current(partner, SystemClock.now(), |kid| standings.of(kid)) {
            None => Some(self.why_no_key(&policy, partner)),
            Some(key) => match self.pipeline.keyring.key_health(&key.kid) {
                Some(health) => fault_of(health),
                None => Some(format!("no signer is bound to `{}`", key.kid)),
            },
        }
    }
}

fn fault_of(health: Health) -> Option<String> {
    match health {
        Health::Serving | Health::Recovering(_) => None,
        Health::NotServing(why) => Some(why),
    }
}

/// The name of a part in grpc.health, where it has one.
fn service_of(part: &str) -> Option<String> {
    match part.split_once('/') {
        None if part == "signing" => Some(SIGNING.to_owned()),
        Some(("signing", partner)) => Some(format!("{SIGNING}/{partner}")),
        Some(("signer" | "key", _)) => Some(part.to_owned()),
        _ => None,
    }
}
