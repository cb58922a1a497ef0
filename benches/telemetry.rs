//! What audit shipping, checkpoints, traces and metrics cost a call: `cargo bench --bench telemetry`. One gateway after another,
//! in turns, over mutual TLS with a SoftHSM token, each asked for as many quotes; told are the CPU of the gateway's own process for each
//! signed quote and how many were signed in a second, beside those of a gateway with all of it off. The collector there looks at nothing
//! that it takes. `-- collectors` has one that decodes all of it, and is slow, wrong, silent or absent; `-- parts` what each part takes by
//! itself, on one thread, for a quote with two records.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that cannot go on fails"
)]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

#[path = "telemetry/drain.rs"]
mod drain;
#[path = "telemetry/parts.rs"]
mod parts;
#[path = "../tests/it/harness.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest of it")]
mod harness;

use drain::Drain;
use harness::{Caller, Gateway, Quote, Site, toml};

/// The gateway's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CALLERS: usize = 64;

/// How many quotes a gateway signs before it is another's turn.
const TURN: u64 = 400;

/// A collector that decodes what it gets.
struct Sink {
    process: Child,
    ports: BTreeMap<String, u16>,
}

impl Sink {
    fn new(site: &Site) -> Self {
        let here = env!("CARGO_MANIFEST_DIR");
        let mut process = Command::new(format!("{here}/.tools/py/bin/python"))
            .arg(format!("{here}/tests/external/otlp_sink.py"))
            .arg("--out")
            .arg(site.path("shipped.jsonl"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("`scripts/setup test` makes what the sink needs");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, ports: serde_json::from_str(&line).unwrap() }
    }

    fn fault(&self, fault: &Value) {
        let body = fault.to_string();
        let mut socket = TcpStream::connect(("127.0.0.1", self.ports["control"])).unwrap();
        let length = body.len();
        write!(
            socket,
            "POST /fault HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        socket.read_to_string(&mut String::new()).unwrap();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A gateway of one kind, and what was measured of it.
struct Kind {
    name: &'static str,
    site: Site,
    gateway: Gateway,
    client: Caller,
    collector: Collector,
    micros: Vec<f64>,
    rates: Vec<f64>,
}

fn site() -> Site {
    let site = Site::new();
    site.edit_policy(|policy| {
        // Callers do not race for numbers: every call is a signature.
        policy["partners"][0]["sequence"]["mode"] = toml("'assign'");
        for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            policy["quotas"][quota] = toml("{ per_second = 1000000, burst = 1000000 }");
        }
    });
    site.edit_config(|config| config["signers"][0]["queue_max"] = toml("1024"));
    site
}

/// Who takes what a gateway ships.
enum Collector {
    /// Nobody: all of it is off.
    Off,
    Absent,
    Drain(Drain),
    Sink(Sink),
}

impl Collector {
    fn sink(site: &Site, fault: &Value) -> Self {
        let sink = Sink::new(site);
        sink.fault(fault);
        Self::Sink(sink)
    }

    fn port(&self) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::Absent => Some(1),
            Self::Drain(drain) => Some(drain.port),
            Self::Sink(sink) => Some(sink.ports["grpc"]),
        }
    }
}

async fn kind(name: &'static str, site: Site, collector: Collector, trace_ratio: &str) -> Kind {
    site.edit_config(|config| match collector.port() {
        Some(port) => {
            let rest = format!("timeout_ms = 1000, metrics_interval_s = 1, trace_ratio = {trace_ratio}");
            config["otlp"] = toml(&format!("{{ endpoint = 'http://127.0.0.1:{port}', {rest} }}"));
        }
        None => drop(config["audit"].as_table_mut().unwrap().remove("checkpoint")),
    });
    let gateway = site.serve().await;
    let client = gateway.quotes("pricing").await;
    Kind { name, site, gateway, client, collector, micros: Vec::new(), rates: Vec::new() }
}

/// The CPU that each thread of a process has used, in nanoseconds (the kernel's `schedstat`).
fn used(pid: u32) -> BTreeMap<u32, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        Some((thread.file_name().to_str()?.parse().ok()?, stat.split_whitespace().next()?.parse().ok()?))
    };
    // A thread that ends had nothing to do for as long as a round takes.
    threads.filter_map(|thread| of(thread.ok()?)).collect()
}

impl Kind {
    /// Has `count` quotes signed by callers that each wait for their answer, and gives how long that took.
    async fn sign(&self, count: u64) -> Duration {
        let (mut callers, begun) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
        let began = Instant::now();
        for _ in 0..CALLERS {
            let (client, begun) = (self.client.clone(), Arc::clone(&begun));
            callers.spawn(async move {
                while begun.fetch_add(1, Ordering::Relaxed) < count {
                    client.sign(&Quote::number(1).without("quote_sequence")).await.unwrap();
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        began.elapsed()
    }
}

/// Has `count` quotes signed by each, a few at a time and by one after the other, so that all of them have the same share of whatever
/// else the machine does; what each of them cost is told once what they shipped has gone.
async fn round(kinds: &mut [Kind], number: usize, count: u64) {
    let before: Vec<_> = kinds.iter().map(|kind| used(kind.gateway.pid())).collect();
    let mut took = vec![Duration::ZERO; kinds.len()];
    for turn in 0..usize::try_from(count / TURN).unwrap() {
        for place in 0..kinds.len() {
            // There and back, each time with another first.
            let at = (place + number + turn / 2) % kinds.len();
            let at = if turn % 2 == 0 { at } else { kinds.len() - 1 - at };
            took[at] += kinds[at].sign(TURN).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for ((kind, before), took) in kinds.iter_mut().zip(before).zip(took) {
        let after = used(kind.gateway.pid());
        let nanos: u64 = after.iter().map(|(thread, nanos)| nanos - before.get(thread).copied().unwrap_or(0)).sum();
        kind.micros.push(nanos as f64 / 1e3 / count as f64);
        kind.rates.push(count as f64 / took.as_secs_f64());
    }
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: &[f64]) -> f64 {
    sorted(values.iter().copied())[values.len() / 2]
}

async fn bad_collectors() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for (name, fault) in [
        ("well", json!({})),
        ("slow", json!({ "slow_ms": 500, "signals": ["logs", "traces", "metrics"] })),
        ("silent", json!({ "hang": true, "signals": ["logs", "traces", "metrics"] })),
        ("unavailable", json!({ "status": "UNAVAILABLE", "signals": ["logs", "traces", "metrics"] })),
        ("exhausted", json!({ "status": "RESOURCE_EXHAUSTED", "retry_info_ms": 100 })),
        ("bad", json!({ "status": "INVALID_ARGUMENT" })),
        ("partial", json!({ "reject": 1 })),
    ] {
        let site = site();
        let sink = Collector::sink(&site, &fault);
        kinds.push(kind(name, site, sink, "0.01").await);
    }
    kinds.push(kind("absent", site(), Collector::Absent, "0.01").await);
    kinds
}

#[tokio::main]
async fn main() {
    let which = env::args().nth(1).unwrap_or_default();
    if which == "parts" {
        return tokio::task::spawn_blocking(parts::tell).await.unwrap();
    }
    let number = |name: &str, default: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rounds, count) = (number("ROUNDS", 12), number("QUOTES", 2_000));
    let mut kinds = vec![kind("off", site(), Collector::Off, "0.0").await];
    if which == "collectors" {
        kinds.extend(bad_collectors().await);
    } else {
        for (name, ratio) in [("traces of none", "0.0"), ("traces of 1 %", "0.01"), ("traces of all", "1.0")] {
            kinds.push(kind(name, site(), Collector::Drain(Drain::new().await), ratio).await);
        }
    }
    for kind in &kinds {
        kind.sign(200).await;
    }
    for number in 0..rounds {
        round(&mut kinds, usize::try_from(number).unwrap(), count).await;
    }
    tell(&kinds, rounds, count);
    drop(kinds.iter().map(|kind| kind.site.path("")).collect::<Vec<_>>());
}

/// What each kind takes more is what it took more than the first in the same round: the mean of the middle half of the rounds, with the
/// quartiles beside it, and how far that mean is off as a rule, by taking rounds at random of those there are.
fn tell(kinds: &[Kind], rounds: u64, count: u64) {
    let (off, rate) = (&kinds[0].micros, median(&kinds[0].rates));
    println!("{rounds} rounds of {count} quotes each, {CALLERS} callers; medians");
    println!(
        "{:<16} {:>14} {:>28} {:>12} {:>10} {:>16}",
        "", "CPU us/quote", "more", "quotes/s", "of off", "shipped B/quote"
    );
    for kind in kinds {
        let more: Vec<f64> = kind.micros.iter().zip(off).map(|(micros, off)| micros - off).collect();
        let (low, middle, high) = middle_half(&more);
        let (micros, own) = (median(&kind.micros), median(&kind.rates));
        let shipped = match &kind.collector {
            Collector::Drain(drain) => drain.bytes.load(Ordering::Relaxed) / (rounds * count + 200),
            _ => 0,
        };
        let more = format!("{middle:.1} ± {:.1} ({low:.1} to {high:.1})", off_by(&more));
        println!("{:<16} {micros:>14.1} {more:>28} {own:>12.0} {:>10.3} {shipped:>16}", kind.name, own / rate);
    }
}

/// The first quartile, the mean of what lies between, and the third.
fn middle_half(values: &[f64]) -> (f64, f64, f64) {
    let values = sorted(values.iter().copied());
    let [low, high] = [1, 3].map(|quarter| values.len() * quarter / 4);
    (values[low], values[low..=high].iter().sum::<f64>() / (high - low + 1) as f64, values[high])
}

/// The standard error of the mean of the middle half, by the bootstrap.
fn off_by(values: &[f64]) -> f64 {
    // As good as chance for this, and the same in every run (Knuth's constants of a linear congruence).
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values[(state >> 33) as usize % values.len()]
    };
    let means: Vec<f64> =
        (0..1000).map(|_| middle_half(&values.iter().map(|_| draw()).collect::<Vec<_>>()).1).collect();
    let mean = means.iter().sum::<f64>() / means.len() as f64;
    (means.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / means.len() as f64).sqrt()
}
