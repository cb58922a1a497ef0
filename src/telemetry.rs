//! What the gateway says of itself: log lines and metrics. No value of a quote ever gets here but the named few.

use std::{io::IsTerminal as _, sync::atomic::AtomicU64, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tonic::Code;
use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    config::{LogFormat, LogSection},
    outcomes::Fate,
    signer::turns::Turns,
    volume::Standing,
};

/// Starts logging to standard error.
///
/// # Errors
/// Where the filter cannot be read.
pub fn start_logging(log: &LogSection) -> Result<(), String> {
    let filter = filter(log)?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Text => lines.with_target(false).try_init(),
    };
    started.map_err(|fault| fault.to_string())
}

/// The filter of a config.
///
/// # Errors
/// Where it cannot be read.
pub fn filter(log: &LogSection) -> Result<EnvFilter, String> {
    let remedy = "write it as `info` or `quotesign=debug,info`";
    EnvFilter::try_new(&log.filter).map_err(|fault| format!("`log.filter` = `{}`: {fault}; {remedy}", log.filter))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: String,
    status: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ComponentLabels {
    component: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    kid: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    kid: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartnerLabels {
    partner: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OrderLabels {
    signer: String,
    at: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SignerLabels {
    signer: String,
}

/// Counts of what happened, for `/metrics`.
pub struct Metrics {
    registry: Mutex<Registry>,
    calls: Family<CallLabels, Counter>,
    seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
    serving: Family<ComponentLabels, Gauge>,
    orders: Family<OrderLabels, Gauge>,
    service: Family<SignerLabels, Gauge<f64, AtomicU64>>,
    records_dropped: Gauge,
    ahead: Family<PartnerLabels, Gauge>,
    volume: Family<KeyLabels, Gauge>,
    unusual: Family<KeyLabels, Gauge>,
    served: Family<KeyLabels, Gauge>,
    outcomes: Family<OutcomeLabels, Gauge>,
    spike: Family<KeyLabels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("quotesign");
        let calls = Family::default();
        registry.register("calls", "Finished gRPC calls", calls.clone());
        let seconds: Family<_, _, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_5, 2.0, 15)));
        registry.register("call_duration_seconds", "How long gRPC calls took", seconds.clone());
        let serving = Family::default();
        registry.register("component_serving", "1 where the part can do its work", serving.clone());
        let orders = Family::default();
        registry.register(
            "signer_orders",
            "Quotes that hold a place at a device, wait for their turn, or are with it; and its slots",
            orders.clone(),
        );
        let service = Family::default();
        registry.register(
            "signer_service_seconds",
            "How long a device takes for a signature, of late",
            service.clone(),
        );
        let records_dropped = Gauge::default();
        registry.register(
            "audit_refusals_not_journalled",
            "Refusals beyond the journal's share for them",
            records_dropped.clone(),
        );
        let ahead = Family::default();
        registry.register(
            "timeline_warnings",
            "What will go wrong on a partner's key timeline unless somebody acts; `quotesign policy check` tells it",
            ahead.clone(),
        );
        let volume = Family::default();
        registry.register(
            "key_signatures_this_hour",
            "What this gateway has signed with a key in this hour",
            volume.clone(),
        );
        let unusual = Family::default();
        registry.register("key_volume_unusual", "1 where a key signs more than policy says is usual", unusual.clone());
        let served = Family::default();
        registry.register(
            "key_served",
            "1 where every gateway that counts, and the registered URL, was seen to serve a key",
            served.clone(),
        );
        let outcomes = Family::default();
        registry.register("quote_outcomes", "What callers reported of the operator's answers", outcomes.clone());
        let spike = Family::default();
        registry.register(
            "quote_verification_failing",
            "1 where the operator refuses the signatures of a key more than now and then",
            spike.clone(),
        );
        let registry = Mutex::new(registry);
        Self {
            registry,
            calls,
            seconds,
            serving,
            orders,
            service,
            records_dropped,
            ahead,
            volume,
            unusual,
            served,
            outcomes,
            spike,
        }
    }
}

impl Metrics {
    /// A call has ended.
    pub fn call(&self, method: &str, status: Code, reason: &str, took: Duration) {
        // A method that is not there is some caller's own text and must not become a label. An unidentified caller
        // is not told whether its method is there.
        let told = !matches!(status, Code::Unimplemented | Code::Unauthenticated);
        let method = if told { method } else { "unknown" };
        let labels = CallLabels { method: method.to_owned(), status: format!("{status:?}"), reason: reason.to_owned() };
        self.calls.get_or_create(&labels).inc();
        self.seconds.get_or_create(&MethodLabels { method: method.to_owned() }).observe(took.as_secs_f64());
    }

    /// How a part fares.
    pub fn component(&self, name: &str, serving: bool) {
        self.serving.get_or_create(&ComponentLabels { component: name.to_owned() }).set(i64::from(serving));
    }

    /// A part is no more.
    pub fn forget(&self, name: &str) {
        self.serving.remove(&ComponentLabels { component: name.to_owned() });
    }

    /// How a device is used.
    pub fn device(&self, signer: &str, turns: &Turns) {
        let usage = turns.usage();
        for (at, count) in
            [("slots", usage.slots), ("device", usage.busy), ("waiting", usage.waiting), ("places", usage.places)]
        {
            let labels = OrderLabels { signer: signer.to_owned(), at };
            self.orders.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        if let Some(service) = turns.service() {
            self.service.get_or_create(&SignerLabels { signer: signer.to_owned() }).set(service.as_secs_f64());
        }
    }

    /// How many refusals the journal had no place for.
    pub fn records_dropped(&self, count: u64) {
        self.records_dropped.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How much a key has signed in this hour, and whether that is unusual.
    pub fn volume(&self, standing: &Standing) {
        let labels = KeyLabels { kid: standing.kid.to_string() };
        self.volume.get_or_create(&labels).set(i64::try_from(standing.count).unwrap_or(i64::MAX));
        self.unusual.get_or_create(&labels).set(i64::from(standing.unusual.is_some()));
    }

    /// Whether verifiers can know a key.
    pub fn served(&self, kid: &str, served: bool) {
        self.served.get_or_create(&KeyLabels { kid: kid.to_owned() }).set(i64::from(served));
    }

    /// How the quotes of a key fare at the operator's.
    pub fn fate(&self, fate: &Fate) {
        let kid = fate.kid.to_string();
        for (outcome, count) in &fate.counts {
            let labels = OutcomeLabels { kid: kid.clone(), outcome: outcome.as_str() };
            self.outcomes.get_or_create(&labels).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        self.spike.get_or_create(&KeyLabels { kid }).set(i64::from(fate.is_spike));
    }

    /// How much is to be warned of on a partner's timeline.
    pub fn timeline_warnings(&self, partner: &str, count: usize) {
        let labels = PartnerLabels { partner: partner.to_owned() };
        self.ahead.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// All of it, as OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry.lock()) {
            Ok(()) => text,
            Err(fault) => format!("# {fault}\n"),
        }
    }
}
