//! What audit shipping, checkpoints, traces and metrics cost a call: `cargo bench --bench telemetry`. Gateways that differ in nothing
//! else sign side by side, over mutual TLS with a SoftHSM token each; told are the CPU of the gateway's own process for each signed quote
//! and how many were signed in a second, beside those of the gateways with all of it off. The collector there looks at nothing that it
//! takes. `-- few` leaves out the gateway that makes checkpoints alone, which leaves the others a higher `RATE`. `-- loaded` has each sign
//! as much as it can, one after the other; so has `-- collectors`, with one that decodes all of it, and is slow, wrong, silent or absent;
//! `-- parts` tells what each part takes by itself, on one thread, for a quote with two records.

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
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
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
use harness::{Caller, Gateway, PARTNER, Quote, Site, done, toml};

/// The gateway's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CALLERS: usize = 64;

const KID: &str = "quote-signing-bench";

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
    measured: Measured,
}

#[derive(Default)]
struct Measured {
    /// The CPU of a quote in each round, in microseconds, and how many quotes a second.
    micros: Vec<f64>,
    rates: Vec<f64>,
    /// The CPU of threads by their names, in microseconds, and how many quotes, of all rounds.
    threads: BTreeMap<String, f64>,
    signed: u64,
}

fn site() -> Site {
    let site = Site::new();
    // A short key, so that the gateways have more of the processors, and their device less.
    let generate =
        ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER, "--bits", "2048", "--kid", KID];
    let printed: toml_edit::DocumentMut = done(site.run(&generate)).parse().unwrap();
    site.edit_policy(|policy| {
        let old = policy["keys"][0]["kid"].as_str().unwrap().to_owned();
        fs::remove_file(site.path(&format!("policy/keys/{old}.jwk.json"))).unwrap();
        for field in ["kid", "locator"] {
            policy["keys"][0][field] = printed["keys"][0][field].clone();
        }
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
    /// Nobody, and checkpoints are made.
    None,
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
            Self::Off | Self::None => None,
            Self::Absent => Some(1),
            Self::Drain(drain) => Some(drain.port),
            Self::Sink(sink) => Some(sink.ports["grpc"]),
        }
    }
}

async fn kind(name: &'static str, site: Site, collector: Collector, trace_ratio: &str) -> Kind {
    site.edit_config(|config| match collector.port() {
        Some(port) => {
            let rest = format!("timeout_ms = 1000, trace_ratio = {trace_ratio}");
            config["otlp"] = toml(&format!("{{ endpoint = 'http://127.0.0.1:{port}', {rest} }}"));
        }
        None if matches!(collector, Collector::Off) => {
            drop(config["audit"].as_table_mut().unwrap().remove("checkpoint"));
        }
        None => {}
    });
    let gateway = site.serve().await;
    let client = gateway.quotes("pricing").await;
    Kind { name, site, gateway, client, collector, measured: Measured::default() }
}

/// The CPU that each thread of a process has used, in nanoseconds (the kernel's `schedstat`), by its number and name.
fn used(pid: u32) -> BTreeMap<(u32, String), u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |thread: fs::DirEntry| {
        let read = |file| fs::read_to_string(thread.path().join(file)).ok();
        let key = (thread.file_name().to_str()?.parse().ok()?, read("comm")?.trim_end().to_owned());
        Some((key, read("schedstat")?.split_whitespace().next()?.parse().ok()?))
    };
    // A thread that ends takes what it has used with it: one of those that wait for files and tables does after ten idle seconds.
    threads.filter_map(|thread| of(thread.ok()?)).collect()
}

impl Kind {
    /// What was measured while it became warm.
    fn forget(&mut self) {
        self.measured = Measured::default();
        if let Collector::Drain(drain) = &self.collector {
            drain.bytes.store(0, Ordering::Relaxed);
        }
    }

    /// Takes down what a turn came to.
    fn note(&mut self, before: &BTreeMap<(u32, String), u64>, signed: u64, lasts: Duration) {
        let Measured { micros, rates, threads, signed: in_all } = &mut self.measured;
        let mut all = 0.0;
        for (thread, nanos) in used(self.gateway.pid()) {
            let took = (nanos - before.get(&thread).copied().unwrap_or(0)) as f64 / 1e3;
            *threads.entry(thread.1).or_default() += took;
            all += took;
        }
        micros.push(all / signed as f64);
        rates.push(signed as f64 / lasts.as_secs_f64());
        *in_all += signed;
    }

    /// Has quotes signed for so long, so many in a second at an even pace, and gives how many. A caller that was late does not wait.
    async fn sign(&self, lasts: Duration, rate: f64, late: f64) -> u64 {
        let (mut callers, begins) = (JoinSet::new(), Instant::now());
        for caller in 0..CALLERS {
            let client = self.client.clone();
            callers.spawn(async move {
                for turn in 0.. {
                    let due = Duration::from_secs_f64(((caller + turn * CALLERS) as f64 + late) / rate);
                    if due >= lasts || begins.elapsed() >= lasts {
                        return turn as u64;
                    }
                    tokio::time::sleep_until((begins + due).into()).await;
                    client.sign(&Quote::number(1).without("quote_sequence")).await.unwrap();
                }
                0
            });
        }
        callers.join_all().await.iter().sum()
    }
}

/// Has each sign for so long: all of them at once, so that whatever else the machine does is done to all alike, or one after the other
/// where each is to reach what it can. What a quote cost each is told once what they shipped has gone.
async fn round(kinds: &mut [Kind], number: usize, lasts: Duration, rate: Option<f64>) {
    // Each round another is first, and every other one goes backwards.
    let mut order: Vec<usize> = (0..kinds.len()).map(|place| (place + number / 2) % kinds.len()).collect();
    if number % 2 == 1 {
        order.reverse();
    }
    let side_by_side = if rate.is_some() { kinds.len() } else { 1 };
    for group in order.chunks(side_by_side) {
        let before: Vec<_> = group.iter().map(|at| used(kinds[*at].gateway.pid())).collect();
        let load = group.iter().enumerate().map(|(place, at)| {
            kinds[*at].sign(lasts, rate.unwrap_or(f64::INFINITY), place as f64 / group.len() as f64)
        });
        let signed = join_all(load).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for ((at, before), signed) in group.iter().zip(before).zip(signed) {
            kinds[*at].note(&before, signed, lasts);
        }
    }
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: &[f64]) -> f64 {
    let values = sorted(values.iter().copied());
    f64::midpoint(values[values.len() / 2], values[(values.len() - 1) / 2])
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
    let (rounds, lasts) = (number("ROUNDS", 12), Duration::from_secs(number("SECONDS", 10)));
    let mut kinds = vec![kind("off", site(), Collector::Off, "0.0").await];
    let mut rate = None;
    if which == "collectors" {
        kinds.extend(bad_collectors().await);
    } else {
        rate = (which != "loaded").then(|| number("RATE", 200) as f64);
        if which != "few" {
            kinds.push(kind("checkpoints", site(), Collector::None, "0.0").await);
        }
        for (name, ratio) in [("traces of 1 %", "0.01"), ("traces of all", "1.0")] {
            kinds.push(kind(name, site(), Collector::Drain(Drain::new().await), ratio).await);
        }
        // Whoever was made first, or last, can have it better.
        kinds.push(kind("off again", site(), Collector::Off, "0.0").await);
    }
    round(&mut kinds, 0, Duration::from_secs(3), rate).await;
    kinds.iter_mut().for_each(Kind::forget);
    for number in 0..rounds {
        round(&mut kinds, usize::try_from(number).unwrap(), lasts, rate).await;
    }
    tell(&kinds, rounds, lasts);
    drop(kinds.iter().map(|kind| kind.site.path("")).collect::<Vec<_>>());
}

/// What each kind takes more is what it took more than those that have all of it off, in the same round: the mean of the middle half of
/// the rounds, with the quartiles beside it, and how far that mean is off as a rule, by taking rounds at random of those there are.
fn tell(kinds: &[Kind], rounds: u64, lasts: Duration) {
    let off: Vec<_> = kinds.iter().filter(|kind| matches!(kind.collector, Collector::Off)).collect();
    let mean = |of: &dyn Fn(&Kind) -> f64| off.iter().map(|kind| of(kind)).sum::<f64>() / off.len() as f64;
    println!("{rounds} rounds of {} s, {CALLERS} callers for each gateway; medians", lasts.as_secs());
    println!(
        "{:<16} {:>14} {:>28} {:>12} {:>10} {:>16}",
        "", "CPU us/quote", "more (middle half)", "quotes/s", "of off", "shipped B/quote"
    );
    for kind in kinds {
        let more: Vec<f64> = kind
            .measured
            .micros
            .iter()
            .enumerate()
            .map(|(round, micros)| micros - mean(&|off| off.measured.micros[round]))
            .collect();
        let (low, middle, high) = middle_half(&more);
        let (micros, own) = (median(&kind.measured.micros), median(&kind.measured.rates));
        let shipped = match &kind.collector {
            Collector::Drain(drain) => drain.bytes.load(Ordering::Relaxed) / kind.measured.signed,
            _ => 0,
        };
        let more = format!("{middle:.1} ± {:.1} ({low:.1} to {high:.1})", off_by(&more));
        let share = own / mean(&|off| median(&off.measured.rates));
        println!("{:<16} {micros:>14.1} {more:>28} {own:>12.0} {share:>10.3} {shipped:>16}", kind.name);
    }
    let threads: BTreeSet<_> = kinds.iter().flat_map(|kind| kind.measured.threads.keys()).collect();
    for thread in threads {
        let own =
            |kind: &Kind| kind.measured.threads.get(thread).copied().unwrap_or_default() / kind.measured.signed as f64;
        let each: Vec<_> = kinds.iter().map(|kind| format!("{:>8.1}", own(kind))).collect();
        println!("{thread:<16} {}", each.join(" "));
    }
}

/// The first quartile, the mean of what lies between, and the third.
fn middle_half(values: &[f64]) -> (f64, f64, f64) {
    let values = sorted(values.iter().copied());
    let low = values.len() / 4;
    let high = values.len() - 1 - low;
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
