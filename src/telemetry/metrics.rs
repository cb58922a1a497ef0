//! The metrics, of which `docs/metrics.md` is the table.

use std::{
    fmt::Debug,
    hash::Hash,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry},
};
use tonic::Code;

use crate::{
    backlog::Backlog,
    call::Course,
    clock::{Clock as _, SystemClock, UtcTime},
    ledger::{
        Load,
        stops::{Stop, Stops},
    },
    outcomes::Fate,
    room::Room,
    signer::turns::Turns,
    volume::Standing,
};

/// Defines the labels of a metric.
macro_rules! labels {
    ($($labels:ident { $($label:ident: $kind:ty),+ })+) => {
        $(
            #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
            struct $labels {
                $($label: $kind),+
            }
        )+
    };
}

labels! {
    CallLabels { method: String, status: String, reason: String }
    MethodLabels { method: String }
    StageLabels { stage: &'static str }
    ComponentLabels { component: String }
    KeyLabels { kid: String }
    OutcomeLabels { kid: String, outcome: &'static str }
    PartnerLabels { partner: String }
    VerificationLabels { partner: String, valid: &'static str }
    OrderLabels { signer: String, at: &'static str }
    SignerLabels { signer: String }
    FrontLabels { front: &'static str }
    RefusedLabels { front: &'static str, why: &'static str }
    RequestLabels { status: u32 }
    DigestLabels { digest: String }
    StopLabels { kind: &'static str }
    ResultLabels { result: &'static str }
    VolumeLabels { volume: &'static str }
}

/// A time in seconds since 1970, as Prometheus has it.
type Instant = Gauge<f64, AtomicU64>;

/// Counts of what happened, for `/metrics`.
pub struct Metrics {
    registry: Mutex<Registry>,
    calls: Family<CallLabels, Counter>,
    seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
    stages: Family<StageLabels, Histogram, fn() -> Histogram>,
    spans_dropped: Counter,
    connections_refused: Family<RefusedLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    verifications: Family<VerificationLabels, Counter>,
    serving: Family<ComponentLabels, Gauge>,
    orders: Family<OrderLabels, Gauge>,
    service: Family<SignerLabels, Gauge<f64, AtomicU64>>,
    records_dropped: Counter,
    unbound: Gauge<f64, AtomicU64>,
    holds: OnceLock<Gauge>,
    lag: Gauge<f64, AtomicU64>,
    waiting: Gauge,
    aside: Gauge,
    gone: Counter,
    shipped: Counter,
    failures: Counter,
    batches: Counter,
    operations: Counter,
    batch_seconds: Counter<f64, AtomicU64>,
    ledger_waiting: Gauge,
    ledger_lag: Gauge<f64, AtomicU64>,
    disk_free: Family<VolumeLabels, Gauge>,
    reloads: Family<ResultLabels, Counter>,
    clock: Instant,
    policy: Family<DigestLabels, Gauge>,
    ahead: Family<PartnerLabels, Gauge>,
    active: Family<PartnerLabels, Gauge>,
    next_change: Family<PartnerLabels, Instant>,
    signatures: Family<KeyLabels, Counter>,
    volume: Family<KeyLabels, Gauge>,
    unusual: Family<KeyLabels, Gauge>,
    served: Family<KeyLabels, Gauge>,
    outcomes: Family<OutcomeLabels, Gauge>,
    spike: Family<KeyLabels, Gauge>,
    stops: Family<StopLabels, Gauge>,
    certificates: Family<FrontLabels, Instant>,
    certificates_refused: Family<FrontLabels, Gauge>,
    streams: Gauge,
    panics: Counter,
    log_lines_lost: Counter,
}

/// A stream that is open, for as long as it is held.
#[must_use]
pub struct OpenStream(Gauge);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn family<L, M>(registry: &mut Registry, name: &str, help: &str) -> Family<L, M>
where
    L: EncodeLabelSet + Debug + Clone + Hash + Eq + Send + Sync + 'static,
    M: Default + 'static,
    Family<L, M>: Metric,
{
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

/// A histogram of times.
fn timings<L>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    buckets: fn() -> Histogram,
) -> Family<L, Histogram, fn() -> Histogram>
where
    L: EncodeLabelSet + Debug + Clone + Hash + Eq + Send + Sync + 'static,
{
    let family = Family::new_with_constructor(buckets);
    registry.register(name, help, family.clone());
    family
}

/// A metric without labels.
fn single<M: Clone + Default + Metric>(registry: &mut Registry, name: &str, help: &str) -> M {
    let single = M::default();
    registry.register(name, help, single.clone());
    single
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Registry::with_prefix("quotesign");
        let of = &mut all;
        Self {
            seconds: timings(of, "call_duration_seconds", "How long gRPC calls took", || {
                Histogram::new(exponential_buckets(0.000_5, 2.0, 15))
            }),
            stages: timings(of, "stage_duration_seconds", "How long the stages of calls took", || {
                Histogram::new(exponential_buckets(0.000_01, 4.0, 10))
            }),
            spans_dropped: single(of, "traces_dropped", "Recorded calls that no collector took"),
            records_dropped: single(
                of,
                "audit_refusals_not_journalled",
                "Refusals beyond the journal's share for them",
            ),
            unbound: single(
                of,
                "journal_unbound_seconds",
                "How long the journal has waited for a checkpoint that cannot be made",
            ),
            holds: OnceLock::new(),
            lag: single(of, "audit_lag_seconds", "How long the oldest record of the journal has waited to be shipped"),
            waiting: single(of, "audit_lag_records", "How many records of the journal wait to be shipped"),
            aside: single(of, "audit_quarantined_records", "Records of the journal that no collector will take"),
            gone: single(
                of,
                "audit_gone_records",
                "Records that were gone from the journal when they were to be shipped",
            ),
            shipped: single(of, "audit_records_shipped", "Records of the journal that a collector took"),
            failures: single(
                of,
                "audit_shipping_failures",
                "How often a collector did not take what it was sent of the journal",
            ),
            batches: single(of, "ledger_batches", "Transactions of the ledger"),
            operations: single(of, "ledger_operations", "What was in them: reservations, commits, records"),
            batch_seconds: single(of, "ledger_batch_seconds", "How long they took"),
            ledger_waiting: single(of, "ledger_waiting", "How many operations wait for the ledger"),
            ledger_lag: single(of, "ledger_lag_seconds", "How long the first of them has waited"),
            disk_free: family(of, "ledger_disk_free_bytes", "How much is free where the ledger and its anchor are"),
            clock: single(of, "clock_timestamp_seconds", "What this machine's clock says"),
            reloads: family(of, "policy_reloads", "How many bundles came into force, and how many were refused"),
            calls: family(of, "calls", "Finished gRPC calls"),
            connections_refused: family(
                of,
                "connections_refused",
                "Connections that came to nothing: nobody was let in",
            ),
            requests: family(of, "jwks_requests", "Requests to the public key sets that were answered"),
            verifications: family(of, "verifications", "What VerifyQuote found of quotes"),
            serving: family(of, "component_serving", "1 where the part can do its work"),
            orders: family(
                of,
                "signer_orders",
                "Quotes that hold a place at a device, wait for their turn, or are with it; and its slots",
            ),
            service: family(of, "signer_service_seconds", "How long a device takes for a signature, of late"),
            policy: family(of, "policy_serial", "The serial of the policy bundle in force"),
            ahead: family(
                of,
                "timeline_warnings",
                "What will go wrong on a partner's key timeline unless somebody acts; `quotesign policy check` tells it",
            ),
            active: family(of, "partner_active_key", "1 where a key of the partner may sign now"),
            next_change: family(
                of,
                "timeline_next_change_timestamp_seconds",
                "When a key of the partner comes to another state next",
            ),
            signatures: family(of, "key_signatures", "Quotes that this gateway has had signed with a key and released"),
            volume: family(of, "key_signatures_this_hour", "What this gateway has signed with a key in this hour"),
            unusual: family(of, "key_volume_unusual", "1 where a key signs more than policy says is usual"),
            served: family(
                of,
                "key_served",
                "1 where every gateway that counts, and the registered URL, was seen to serve a key",
            ),
            outcomes: family(of, "quote_outcomes", "What callers reported of the operator's answers"),
            spike: family(
                of,
                "quote_verification_failing",
                "1 where the operator refuses the signatures of a key more than now and then",
            ),
            stops: family(of, "stops", "What is stopped: revoked keys, halts, suspended callers"),
            certificates: family(
                of,
                "certificate_expiry_timestamp_seconds",
                "When the certificate that a front serves ends",
            ),
            certificates_refused: family(
                of,
                "certificate_files_refused",
                "1 where the TLS files of a front have changed and cannot be used",
            ),
            streams: single(of, "streams", "How many streams of quotes are open"),
            panics: single(of, "panics", "Faults of the gateway that ended a task; each cost one call at most"),
            log_lines_lost: single(of, "log_lines_lost", "Lines of the log that nobody took in time"),
            registry: Mutex::new(all),
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

    /// When the stages of a call ran.
    pub fn stages(&self, course: &Course) {
        for (stage, _, took) in course.stages() {
            self.stages.get_or_create(&StageLabels { stage: stage.name() }).observe(took.as_secs_f64());
        }
    }

    /// How many recorded calls were dropped.
    pub fn traces_dropped(&self, count: u64) {
        self.spans_dropped.inner().store(count, Ordering::Relaxed);
    }

    /// A connection came to nothing, before anybody was let in.
    pub fn connection_refused(&self, front: &'static str, why: &'static str) {
        self.connections_refused.get_or_create(&RefusedLabels { front, why }).inc();
    }

    /// A request to the key sets was answered.
    pub fn jwks_request(&self, status: u16) {
        self.requests.get_or_create(&RequestLabels { status: status.into() }).inc();
    }

    /// What was found of a quote.
    pub fn verification(&self, partner: &str, is_valid: bool) {
        let labels = VerificationLabels { partner: partner.to_owned(), valid: if is_valid { "true" } else { "false" } };
        self.verifications.get_or_create(&labels).inc();
    }

    /// Which bundle is in force. What was told of the partners and keys of another one is forgotten: it may not have them.
    pub fn policy(&self, digest: &str, serial: u64) {
        let labels = DigestLabels { digest: digest.to_owned() };
        if self.policy.get(&labels).is_none() {
            self.policy.clear();
            self.active.clear();
            self.next_change.clear();
            self.served.clear();
        }
        self.policy.get_or_create(&labels).set(i64::try_from(serial).unwrap_or(i64::MAX));
    }

    /// Whether a key of the partner may sign, and when its timeline changes next.
    pub fn partner(&self, partner: &str, has_active_key: bool, next_change: Option<UtcTime>) {
        let labels = PartnerLabels { partner: partner.to_owned() };
        self.active.get_or_create(&labels).set(i64::from(has_active_key));
        match next_change {
            Some(at) => drop(self.next_change.get_or_create(&labels).set(seconds(at))),
            None => drop(self.next_change.remove(&labels)),
        }
    }

    /// What is stopped.
    pub fn stops(&self, stops: &Stops) {
        let count = |is: fn(&Stop) -> bool| stops.iter().filter(|stop| is(stop)).count();
        for (kind, count) in [
            ("revoked", count(|stop| matches!(stop, Stop::Revoked(_)))),
            ("halted", count(|stop| matches!(stop, Stop::Halted(_)))),
            ("suspended", count(|stop| matches!(stop, Stop::Suspended(_)))),
        ] {
            self.stops.get_or_create(&StopLabels { kind }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// When a front's certificate ends.
    pub fn certificate(&self, front: &'static str, ends: UtcTime) {
        self.certificates.get_or_create(&FrontLabels { front }).set(seconds(ends));
    }

    /// Whether its files have changed and cannot be used.
    pub fn certificate_refused(&self, front: &'static str, is_refused: bool) {
        self.certificates_refused.get_or_create(&FrontLabels { front }).set(i64::from(is_refused));
    }

    /// Another stream is open.
    pub fn stream(&self) -> OpenStream {
        self.streams.inc();
        OpenStream(self.streams.clone())
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
        self.records_dropped.inner().store(count, Ordering::Relaxed);
    }

    /// How long the journal has waited for a checkpoint.
    pub fn unbound(&self, waits: Duration) {
        self.unbound.set(waits.as_secs_f64());
    }

    /// Whether the journal is what it was made of. Until somebody has looked, nothing is told.
    pub fn journal_holds(&self, holds: bool) {
        let help = "1 where all of the journal was, at the last look, what was written there";
        let gauge = self.holds.get_or_init(|| single(&mut self.registry.lock(), "journal_holds", help));
        gauge.set(i64::from(holds));
    }

    /// How far the shipping of the journal is behind.
    pub fn backlog(&self, backlog: &Backlog, now: UtcTime) {
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let (shipped, aside, failures) = backlog.counts();
        self.lag.set(backlog.waits(now).as_secs_f64());
        self.waiting.set(gauge(backlog.records()));
        self.aside.set(gauge(aside));
        self.gone.inner().store(backlog.gone(), Ordering::Relaxed);
        self.shipped.inner().store(shipped, Ordering::Relaxed);
        self.failures.inner().store(failures, Ordering::Relaxed);
    }

    /// How the ledger's writer fares.
    pub fn ledger(&self, load: &Load) {
        self.batches.inner().store(load.batches, Ordering::Relaxed);
        self.operations.inner().store(load.ops, Ordering::Relaxed);
        self.batch_seconds.inner().store(load.took.as_secs_f64().to_bits(), Ordering::Relaxed);
        self.ledger_waiting.set(i64::try_from(load.waiting).unwrap_or(i64::MAX));
        self.ledger_lag.set(load.waits.as_secs_f64());
    }

    /// How much room there is where the ledger is.
    pub fn room(&self, room: &Room) {
        for (volume, free) in room.free() {
            self.disk_free.get_or_create(&VolumeLabels { volume }).set(i64::try_from(free).unwrap_or(i64::MAX));
        }
    }

    /// How reloads of the bundle ended.
    pub fn reloads(&self, (loaded, refused): (u64, u64)) {
        for (result, count) in [("loaded", loaded), ("refused", refused)] {
            self.reloads.get_or_create(&ResultLabels { result }).inner().store(count, Ordering::Relaxed);
        }
    }

    /// How much a key has signed in this hour, and whether that is unusual.
    pub fn volume(&self, standing: &Standing) {
        let labels = KeyLabels { kid: standing.kid.to_string() };
        self.signatures.get_or_create(&labels).inner().store(standing.total, Ordering::Relaxed);
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

    /// How much is to be warned of on each partner's timeline; of others nothing any more.
    pub fn timeline_warnings<'p>(&self, partners: impl Iterator<Item = (&'p str, usize)>) {
        self.ahead.clear();
        for (partner, count) in partners {
            let labels = PartnerLabels { partner: partner.to_owned() };
            self.ahead.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// All of it, as OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        self.clock.set(seconds(SystemClock.now()));
        self.panics.inner().store(super::panics(), Ordering::Relaxed);
        self.log_lines_lost.inner().store(super::lost_lines(), Ordering::Relaxed);
        let mut text = String::new();
        match encode(&mut text, &self.registry.lock()) {
            Ok(()) => text,
            Err(fault) => format!("# {fault}\n"),
        }
    }
}

fn seconds(at: UtcTime) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are below 2^52")]
    let millis = at.millis() as f64;
    millis / 1000.0
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// All metrics with a sample each.
    fn touched() -> Metrics {
        let metrics = Metrics::default();
        let text = String::new;
        // Without `..`, so that none is forgotten.
        let Metrics {
            registry: _,
            calls,
            seconds,
            stages,
            spans_dropped: _,
            connections_refused,
            requests,
            verifications,
            serving,
            orders,
            service,
            records_dropped,
            unbound: _,
            holds: _,
            lag: _,
            waiting: _,
            aside: _,
            gone: _,
            shipped: _,
            failures: _,
            batches: _,
            operations: _,
            batch_seconds: _,
            ledger_waiting: _,
            ledger_lag: _,
            disk_free,
            reloads: _,
            clock: _,
            policy,
            ahead,
            active,
            next_change,
            signatures,
            volume,
            unusual,
            served,
            outcomes,
            spike,
            stops,
            certificates,
            certificates_refused,
            streams: _,
            panics: _,
            log_lines_lost: _,
        } = &metrics;
        calls.get_or_create(&CallLabels { method: text(), status: text(), reason: text() }).inc();
        seconds.get_or_create(&MethodLabels { method: text() }).observe(1.0);
        stages.get_or_create(&StageLabels { stage: "sign" }).observe(1.0);
        connections_refused.get_or_create(&RefusedLabels { front: "grpc", why: "timeout" }).inc();
        requests.get_or_create(&RequestLabels { status: 200 }).inc();
        verifications.get_or_create(&VerificationLabels { partner: text(), valid: "true" }).inc();
        serving.get_or_create(&ComponentLabels { component: text() }).set(1);
        orders.get_or_create(&OrderLabels { signer: text(), at: "device" }).set(1);
        service.get_or_create(&SignerLabels { signer: text() }).set(1.0);
        records_dropped.inc();
        disk_free.get_or_create(&VolumeLabels { volume: "ledger" }).set(1);
        policy.get_or_create(&DigestLabels { digest: text() }).set(1);
        let partner = PartnerLabels { partner: text() };
        for gauge in [ahead, active] {
            gauge.get_or_create(&partner).set(1);
        }
        next_change.get_or_create(&partner).set(1.0);
        let key = KeyLabels { kid: text() };
        signatures.get_or_create(&key).inc();
        for gauge in [volume, unusual, served, spike] {
            gauge.get_or_create(&key).set(1);
        }
        outcomes.get_or_create(&OutcomeLabels { kid: text(), outcome: "accepted" }).set(1);
        stops.get_or_create(&StopLabels { kind: "revoked" }).set(1);
        certificates.get_or_create(&FrontLabels { front: "jwks" }).set(1.0);
        certificates_refused.get_or_create(&FrontLabels { front: "jwks" }).set(1);
        metrics.reloads((1, 1));
        assert!(!metrics.text().contains("journal_holds"), "nobody has looked");
        metrics.journal_holds(true);
        metrics
    }

    /// Name, with `_total` for a counter; kind, and labels.
    type Rows = BTreeMap<String, (String, BTreeSet<String>)>;

    fn of_code() -> Rows {
        let text = touched().text();
        let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let row = |(name, kind): (&str, &str)| {
            let samples = text.lines().filter(|line| !line.starts_with('#') && line.starts_with(name));
            let labels = samples.filter_map(|line| line.split_once('{')?.1.split_once('}')).flat_map(|(labels, _)| {
                labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
            });
            let labels = labels.filter(|label| label != "le").collect();
            (format!("{name}{}", if kind == "counter" { "_total" } else { "" }), (kind.to_owned(), labels))
        };
        kinds.map(row).collect()
    }

    fn of_page() -> Rows {
        let page = include_str!("../../docs/metrics.md");
        let table = page.split_once("| name |").unwrap().1.split_once("\n\n").unwrap().0;
        let named = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let row = |row: &str| {
            let cells: Vec<_> = row.split('|').collect();
            (named(cells[1]).remove(0), (cells[2].trim().to_owned(), named(cells[3]).into_iter().collect()))
        };
        table.lines().skip(2).map(row).collect()
    }

    #[test]
    fn the_page_of_the_metrics_has_each_with_its_kind_and_labels() {
        assert_eq!(of_page(), of_code());
    }

    #[test]
    fn one_bundle_is_in_force_and_a_method_that_is_not_there_is_no_label() {
        let metrics = Metrics::default();
        metrics.policy("aa", 1);
        metrics.policy("bb", 2);
        metrics.call("any/text", Code::Unimplemented, "", Duration::ZERO);
        let text = metrics.text();
        assert!(text.contains("quotesign_policy_serial{digest=\"bb\"} 2") && !text.contains("aa"), "{text}");
        assert!(text.contains("method=\"unknown\"") && !text.contains("any/text"), "{text}");
        metrics.partner("acme-remit", true, Some(UtcTime::from_millis(1_500)));
        let next = "quotesign_timeline_next_change_timestamp_seconds{partner=\"acme-remit\"} 1.5";
        assert!(metrics.text().contains(next), "{}", metrics.text());
        metrics.partner("acme-remit", false, None);
        assert!(!metrics.text().contains("next_change_timestamp_seconds{"));
        // A partner that is no more has no key, and nobody is to be alarmed for it.
        metrics.served("quote-a", true);
        metrics.timeline_warnings([("acme-remit", 2)].into_iter());
        metrics.policy("cc", 3);
        metrics.timeline_warnings([("borealis-pay", 0)].into_iter());
        let text = metrics.text();
        assert!(!text.contains("acme-remit") && !text.contains("quote-a") && text.contains("borealis-pay"), "{text}");
    }
}
