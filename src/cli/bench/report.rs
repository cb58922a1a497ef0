//! What a run came to: JSON for machines, tables in Markdown for people, and the targets.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    host::Usage,
    load::{Outcome, Pace},
    raw::RawPace,
};
use crate::cli::out::say;

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    /// `debug` or `release`; figures of the first say nothing of the second.
    pub(super) build: &'static str,
    pub(super) cores: usize,
    pub(super) environment: String,
    /// What signs, where the benchmark made it itself.
    pub(super) device: Option<String>,
    pub(super) trace_ratio: Option<f64>,
    pub(super) callers: usize,
    pub(super) lanes: usize,
    pub(super) raw: Option<RawPace>,
    pub(super) synchronisation_us: Option<Spread>,
    pub(super) runs: Vec<Run>,
    pub(super) verified: u64,
    pub(super) faults: BTreeMap<String, u64>,
    /// Signatures that a waiting device had, and quotes beyond them.
    pub(super) made_beforehand: Option<MadeBeforehand>,
    pub(super) targets: Vec<Target>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct MadeBeforehand {
    pub(super) kept: u64,
    pub(super) beyond: u64,
}

/// One load.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) kind: &'static str,
    pub(super) rate_wanted: Option<f64>,
    /// Of what the closed run before it reached.
    pub(super) share: Option<f64>,
    pub(super) duration_s: f64,
    pub(super) signed: u64,
    pub(super) rate_per_s: f64,
    /// From when a quote was due.
    pub(super) latency_us: Spread,
    /// From when it was sent.
    pub(super) service_us: Spread,
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) unsent: u64,
    pub(super) cpu_us: Option<Cpu>,
    /// Of the gateway's and its hosts' threads, for each quote.
    pub(super) threads_cpu_us: BTreeMap<String, f64>,
    /// Whether gateway, device and clients had the cores to nine tenths.
    pub(super) cpu_bound: Option<bool>,
    /// On the wall, by the gateway's own metrics.
    pub(super) stages: BTreeMap<String, StageTime>,
}

/// Processor time for each signed quote, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Cpu {
    pub(super) gateway: f64,
    pub(super) hosts: f64,
    pub(super) client: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct StageTime {
    pub(super) count: u64,
    pub(super) mean_us: f64,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Spread {
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) p99_9: u64,
    pub(super) max: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Target {
    pub(super) name: &'static str,
    pub(super) limit: f64,
    pub(super) is: f64,
    pub(super) met: bool,
}

impl Spread {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max: histogram.max() }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}

impl Run {
    /// Of this load; `used` where the gateway's process was known.
    pub(super) fn of(pace: Pace, share: Option<f64>, outcome: Outcome, used: Option<&Usage>) -> Self {
        let each = |span: std::time::Duration| span.as_secs_f64() * 1e6 / number(outcome.signed.max(1));
        let took = outcome.took.as_secs_f64();
        let busy = |used: &Usage| (used.gateway + used.hosts + used.client).as_secs_f64() / took / number(cores());
        Self {
            kind: if pace == Pace::Closed { "closed" } else { "open" },
            rate_wanted: if let Pace::Open(rate) = pace { Some(rate) } else { None },
            share,
            duration_s: took,
            signed: outcome.signed,
            rate_per_s: number(outcome.signed) / took,
            latency_us: Spread::of(&outcome.latency),
            service_us: Spread::of(&outcome.service),
            unsent: outcome.unsent,
            cpu_us: used.map(|used| Cpu {
                gateway: each(used.gateway),
                hosts: each(used.hosts),
                client: each(used.client),
            }),
            threads_cpu_us: used.map(|used| threads(used, each)).unwrap_or_default(),
            cpu_bound: used.map(|used| busy(used) >= 0.9),
            stages: BTreeMap::new(),
            refused: outcome.refused,
            errors: outcome.errors,
        }
    }

    fn name(&self) -> String {
        let share = self.share.map(|share| format!(", {:.0} %", share * 100.0)).unwrap_or_default();
        format!("{}{share}", self.kind)
    }
}

fn threads(used: &Usage, each: impl Fn(std::time::Duration) -> f64) -> BTreeMap<String, f64> {
    let each = used.threads.iter().map(|(name, used)| (name.clone(), each(*used)));
    each.filter(|(_, micros)| *micros > 0.0).collect()
}

/// How many processors this process may use.
pub(super) fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// What part of a run's runs decides what, with the targets that the project has set itself.
pub(super) fn targets(report: &Report) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut target = |name, is: f64, limit: f64, at_most: bool| {
        targets.push(Target { name, limit, is, met: if at_most { is <= limit } else { is >= limit } });
    };
    let waits = report.device.as_deref().is_some_and(|device| device.starts_with("waiting"));
    let closed = report.runs.iter().find(|run| run.kind == "closed");
    if let (Some(raw), Some(run)) = (&report.raw, closed)
        && let Some(cpu) = run.cpu_us
    {
        let beyond = cpu.gateway + cpu.hosts - raw.cpu_us;
        let limit = if report.trace_ratio.is_some_and(|ratio| ratio > 0.01) { 120.0 } else { 100.0 };
        target("CPU of gateway and device beyond C_Sign, µs", beyond, limit, true);
        let ratio = run.rate_per_s / raw.rate_per_s;
        if waits {
            let bound = run.cpu_bound == Some(true) && beyond <= limit;
            target("share of what the waiting device gives", ratio, if bound { 0.0 } else { 0.95 }, false);
        } else {
            let due = 0.97 * raw.cpu_us / (cpu.gateway + cpu.hosts + cpu.client);
            target("rate, of the bare loop's; 0.97 c/(c + gateway + client)", ratio, due, false);
        }
    }
    let at = |share: std::ops::RangeInclusive<f64>| {
        report.runs.iter().find(|run| run.share.is_some_and(|of| share.contains(&of)))
    };
    if let (Some(run), Some(raw), Some(disk)) = (at(0.0..=0.2), &report.raw, report.synchronisation_us) {
        let added = number(run.latency_us.p50) - number(raw.alone_p50_us);
        target(
            "added p50 at low load, µs; 1 ms and two synchronisations",
            added,
            1000.0 + 2.0 * number(disk.p50),
            true,
        );
    }
    if let Some(run) = at(0.65..=0.75) {
        let (p50, p99) = (number(run.latency_us.p50), number(run.latency_us.p99));
        target("p99 at 70 % load, of its p50", p99 / p50.max(1.0), 3.0, true);
    }
    targets
}

impl Report {
    /// For people.
    pub(super) fn tell(&self) {
        let Self { version, build, cores, environment, callers, lanes, .. } = self;
        let device = self.device.as_ref().map(|device| format!("{device}; ")).unwrap_or_default();
        let traces = self.trace_ratio.map(|ratio| format!("traces of {:.0} %; ", ratio * 100.0)).unwrap_or_default();
        say!(
            "quotesign {version} ({build}), {environment}; {device}{traces}{callers} callers, {lanes} lanes; {cores} cores\n"
        );
        self.tell_machine();
        self.tell_runs();
        self.tell_costs();
        if !self.targets.is_empty() {
            say!("| target | is | limit | |\n|---|---|---|---|");
            for target in &self.targets {
                let met = if target.met { "met" } else { "missed" };
                say!("| {} | {:.3} | {:.3} | {met} |", target.name, target.is, target.limit);
            }
            say!("");
        }
        say!("{} answers verified as a whole; faults: {}", self.verified, self.faults.values().sum::<u64>());
        for (fault, count) in &self.faults {
            say!("  {count} x {fault}");
        }
    }

    fn tell_machine(&self) {
        if let Some(RawPace { sessions, rate_per_s, cpu_us, p50_us, p99_us, alone_p50_us }) = &self.raw {
            say!(
                "| bare C_Sign, sessions | signatures/s | CPU µs each | p50 µs | p99 µs | alone p50 µs |\n|---|---|---|---|---|---|"
            );
            say!("| {sessions} | {rate_per_s:.0} | {cpu_us:.1} | {p50_us} | {p99_us} | {alone_p50_us} |\n");
        }
        if let Some(Spread { p50, p99, .. }) = self.synchronisation_us {
            say!("An append that is made durable where the ledger is: p50 {p50} µs, p99 {p99} µs.\n");
        }
        if let Some(MadeBeforehand { kept, beyond }) = self.made_beforehand {
            say!("The device had {kept} signatures made beforehand; {beyond} quotes were beyond them.\n");
        }
    }

    fn tell_runs(&self) {
        say!("| load | wanted/s | signed | signed/s | p50 µs | p90 | p99 | p99.9 | max | refused | errors | unsent |");
        say!("|---|---|---|---|---|---|---|---|---|---|---|---|");
        for run in &self.runs {
            let Spread { p50, p90, p99, p99_9, max } = run.latency_us;
            let wanted = run.rate_wanted.map(|rate| format!("{rate:.0}")).unwrap_or_default();
            let counts = |counts: &BTreeMap<String, u64>| {
                let each: Vec<_> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
                if each.is_empty() { "0".to_owned() } else { each.join(", ") }
            };
            say!(
                "| {} | {wanted} | {} | {:.0} | {p50} | {p90} | {p99} | {p99_9} | {max} | {} | {} | {} |",
                run.name(),
                run.signed,
                run.rate_per_s,
                counts(&run.refused),
                counts(&run.errors),
                run.unsent
            );
        }
        say!("");
    }

    fn tell_costs(&self) {
        for run in &self.runs {
            if let Some(Cpu { gateway, hosts, client }) = run.cpu_us {
                say!(
                    "CPU µs for each quote ({}): gateway {gateway:.1}, its PKCS#11 processes {hosts:.1}, clients {client:.1}.\n",
                    run.name()
                );
            }
        }
        let Some(run) = self.runs.iter().find(|run| !run.stages.is_empty() || !run.threads_cpu_us.is_empty()) else {
            return;
        };
        if !run.threads_cpu_us.is_empty() {
            say!("| thread ({}) | CPU µs for each quote |\n|---|---|", run.name());
            for (thread, micros) in &run.threads_cpu_us {
                say!("| {thread} | {micros:.1} |");
            }
            say!("");
        }
        if !run.stages.is_empty() {
            say!("| stage ({}) | runs | mean µs on the wall, waiting and all |\n|---|---|---|", run.name());
            for (stage, StageTime { count, mean_us }) in &run.stages {
                say!("| {stage} | {count} | {mean_us:.1} |");
            }
            say!("");
        }
    }
}
