//! What a soak tells: memory by the second with its slope, latencies by minute, troubles with their times; as JSON, and as Markdown.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{load::Seen, proof::Proof};

/// By process, when and how many KiB.
type Samples = BTreeMap<String, Vec<(f64, f64)>>;

/// Reads the resident memory of processes every second.
pub struct Memory {
    over: Arc<AtomicBool>,
    samples: Arc<Mutex<Samples>>,
    reading: JoinHandle<()>,
}

impl Memory {
    pub fn of(processes: Vec<(String, u32)>) -> Self {
        let (over, samples) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Samples::new())));
        let reading = thread::spawn({
            let (over, samples) = (over.clone(), samples.clone());
            move || {
                let began = Instant::now();
                while !over.load(Ordering::Relaxed) {
                    for (name, process) in &processes {
                        if let Some(kib) = resident(*process) {
                            let mut samples = samples.lock().unwrap();
                            samples.entry(name.clone()).or_default().push((began.elapsed().as_secs_f64(), kib));
                        }
                    }
                    thread::sleep(Duration::from_secs(1));
                }
            }
        });
        Self { over, samples, reading }
    }

    /// What was read until now.
    pub fn end(self, warm_up_s: f64) -> BTreeMap<String, Growth> {
        self.over.store(true, Ordering::Relaxed);
        self.reading.join().unwrap();
        let samples = self.samples.lock().unwrap();
        samples.iter().map(|(name, samples)| (name.clone(), Growth::of(samples, warm_up_s))).collect()
    }
}

fn resident(process: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok())
}

/// How the memory of a process went, after the warm-up.
#[derive(Debug, Serialize)]
pub struct Growth {
    pub samples: usize,
    pub start_kib: f64,
    pub end_kib: f64,
    pub max_kib: f64,
    /// By least squares.
    pub kib_per_min: f64,
    /// The same of the second half alone: what has not come to rest by then grows on.
    pub kib_per_min_later: f64,
    /// Every tenth sample: the second, and KiB.
    pub course: Vec<(f64, f64)>,
}

impl Growth {
    fn of(samples: &[(f64, f64)], warm_up_s: f64) -> Self {
        let counted: Vec<_> = samples.iter().copied().filter(|(at, _)| *at >= warm_up_s).collect();
        let value = |sample: Option<&(f64, f64)>| sample.map_or(0.0, |(_, kib)| *kib);
        Self {
            samples: counted.len(),
            start_kib: value(counted.first()),
            end_kib: value(counted.last()),
            max_kib: samples.iter().map(|(_, kib)| *kib).fold(0.0, f64::max),
            kib_per_min: slope(&counted) * 60.0,
            kib_per_min_later: slope(&counted[counted.len() / 2..]) * 60.0,
            course: samples.iter().step_by(10).copied().collect(),
        }
    }
}

/// By least squares, for each unit of the first coordinate.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = f64::from(u32::try_from(points.len()).unwrap()).max(1.0);
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let along: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let across: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if across > 0.0 { along / across } else { 0.0 }
}

#[test]
fn a_slope_is_that_of_the_line() {
    let points: Vec<_> = (0..10).map(f64::from).map(|x| (x, 3.0 * x + 1.0)).collect();
    assert!((slope(&points) - 3.0).abs() < 1e-9 && slope(&points[..1]).abs() < 1e-9);
    let growth = Growth::of(&points, 5.0);
    assert_eq!((growth.samples, growth.start_kib, growth.end_kib, growth.max_kib), (5, 16.0, 28.0, 28.0));
    assert!((growth.kib_per_min - 180.0).abs() < 1e-6);
}

/// A step that was taken, when, and what it showed.
#[derive(Debug, Serialize)]
pub struct Step {
    pub at_s: f64,
    pub what: String,
    pub showed: String,
}

#[derive(Debug, Serialize)]
pub struct Latency {
    pub minute: Option<usize>,
    pub answers: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

impl Latency {
    fn of(minute: Option<usize>, histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { minute, answers: histogram.len(), p50_us: at(0.5), p99_us: at(0.99), max_us: histogram.max() }
    }
}

#[derive(Debug, Serialize)]
pub struct Trouble {
    pub second: u64,
    pub reason: String,
    pub count: u64,
}

/// The whole.
#[derive(Debug, Serialize)]
pub struct Soak {
    pub build: &'static str,
    pub seconds: u64,
    pub gateways: usize,
    pub capacity_per_s: f64,
    pub rate_per_s: f64,
    pub answered_per_s: f64,
    pub overall: Latency,
    pub minutes: Vec<Latency>,
    pub memory: BTreeMap<String, Growth>,
    pub steps: Vec<Step>,
    /// Of a server's certificate and of the CA of clients, within ten seconds, without a restart.
    pub certificates_reload: bool,
    pub troubles: Vec<Trouble>,
    /// When each key was first seen to sign, in seconds.
    pub kids: BTreeMap<String, f64>,
    pub replays: u64,
    pub faults: Vec<String>,
    pub proof: Proof,
}

impl Soak {
    /// What was seen, filled in.
    pub fn times(seen: &Seen) -> (Latency, Vec<Latency>, Vec<Trouble>) {
        let mut all = Histogram::new_with_bounds(1, 600_000_000, 3).unwrap();
        for minute in &seen.minutes {
            all.add(minute).unwrap();
        }
        let minutes = seen.minutes.iter().enumerate().map(|(at, minute)| Latency::of(Some(at), minute));
        let troubles = seen.trouble.iter().map(|((second, reason), count)| Trouble {
            second: *second,
            reason: reason.clone(),
            count: *count,
        });
        (Latency::of(None, &all), minutes.collect(), troubles.collect())
    }

    /// In Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let out = &mut text;
        let Self { build, seconds, gateways, capacity_per_s, rate_per_s, answered_per_s, overall, proof, .. } = self;
        writeln!(
            out,
            "{seconds} s at {rate_per_s:.0}/s, of {capacity_per_s:.0}/s that {gateways} gateways ({build}) reached; {answered_per_s:.0}/s answered.\n"
        )
        .unwrap();
        writeln!(out, "| | |\n|---|---|").unwrap();
        for (name, count) in [
            ("answers", proof.answers),
            ("lost from the ledger", proof.lost_from_ledger),
            ("lost from the journal", proof.lost_from_journal),
            ("records", proof.records),
            ("lost from the collector", proof.lost_from_collector),
            ("came to the collector more than once", proof.came_again),
            ("at the collector, never journalled", proof.never_journalled),
            ("numbers with two payloads", proof.duplicates),
            ("gaps", proof.gaps),
            ("asked for again and the same to the byte", self.replays),
            ("faults that clients saw", self.faults.len() as u64),
        ] {
            writeln!(out, "| {name} | {count} |").unwrap();
        }
        writeln!(out, "| `audit verify` passes | {} |", proof.journal_verifies).unwrap();
        writeln!(out, "| new certificates are served within 10 s | {} |\n", self.certificates_reload).unwrap();
        writeln!(
            out,
            "| memory | start KiB | end KiB | most KiB | KiB a minute | in the second half |\n|---|---|---|---|---|---|"
        )
        .unwrap();
        for (name, growth) in &self.memory {
            let Growth { start_kib, end_kib, max_kib, kib_per_min, kib_per_min_later, .. } = growth;
            writeln!(
                out,
                "| {name} | {start_kib:.0} | {end_kib:.0} | {max_kib:.0} | {kib_per_min:.1} | {kib_per_min_later:.1} |"
            )
            .unwrap();
        }
        writeln!(out, "\n| minute | answers | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|").unwrap();
        let millis = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1000.0;
        for Latency { minute, answers, p50_us, p99_us, max_us } in self.minutes.iter().chain([overall]) {
            let minute = minute.map_or_else(|| "all".to_owned(), |minute| minute.to_string());
            let [p50, p99, max] = [*p50_us, *p99_us, *max_us].map(millis);
            writeln!(out, "| {minute} | {answers} | {p50:.1} | {p99:.1} | {max:.0} |").unwrap();
        }
        writeln!(out, "\n| at s | what was done | what it showed |\n|---|---|---|").unwrap();
        for Step { at_s, what, showed } in &self.steps {
            writeln!(out, "| {at_s:.0} | {what} | {showed} |").unwrap();
        }
        writeln!(out, "\n| from s | to s | calls answered so | count |\n|---|---|---|---|").unwrap();
        for (reason, from, to, count) in spells(&self.troubles) {
            writeln!(out, "| {from} | {to} | {reason} | {count} |").unwrap();
        }
        text
    }
}

/// Troubles of one reason that follow each other within a few seconds, as one.
fn spells(troubles: &[Trouble]) -> Vec<(String, u64, u64, u64)> {
    let mut spells: Vec<(String, u64, u64, u64)> = Vec::new();
    for Trouble { second, reason, count } in troubles {
        match spells.iter_mut().find(|(name, _, to, _)| name == reason && to.abs_diff(*second) <= 5) {
            Some((_, _, to, all)) => (*to, *all) = (*second, *all + count),
            None => spells.push((reason.clone(), *second, *second, *count)),
        }
    }
    spells
}
