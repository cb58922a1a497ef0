//! `quotesign bench`: load on a gateway over mutual TLS, closed or open, with every answer checked; and beside it, in the same run,
//! what the module gives without a gateway, what a synchronisation costs, and where processor time went. It holds certificates, as any
//! caller does, and prints no payload.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    check::Checker,
    host::Usage,
    load::{Lane, Load, Outcome, Pace},
    own::{Own, Plan},
    raw::RawPace,
    report::{MadeBeforehand, Report, Run, Spread, StageTime},
};
use super::{Failure, Format, out::say, policy::bundle_in, sign::this_second};
use crate::{
    client::ClientFile,
    clock::UtcTime,
    config::Config,
    domain::Environment,
    policy::{Bundle, shipped},
};

mod check;
mod collector;
mod host;
mod lanes;
mod load;
mod own;
mod raw;
mod report;
mod stages;

pub(super) use raw::BenchRaw;

const PRODUCTION: &str = "production signs real quotes; run a benchmark against development or a sandbox";
/// How many appends are timed.
const SYNCHRONISATIONS: usize = 200;

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// How to reach the gateway: one client file for each caller.
    #[arg(long, value_name = "FILE", required_unless_present = "own", conflicts_with = "own")]
    client: Vec<PathBuf>,
    /// Make a development gateway for this run alone, in a temporary directory, and end it afterwards.
    #[arg(long)]
    own: bool,
    /// The config of a gateway on this machine, to measure its module, its disk and its stages beside the load.
    #[arg(long, value_name = "FILE", conflicts_with = "own")]
    config: Option<PathBuf>,
    /// The process of a gateway on this machine, to tell its processor time.
    #[arg(long, conflicts_with = "own")]
    pid: Option<u32>,
    /// How many callers, each with a certificate and a connection of its own; as many as client files where those are given.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256), conflicts_with = "client")]
    callers: u16,
    /// How many quotes each caller has under way.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    in_flight: Option<u16>,
    /// Who gives the numbers, as policy's `sequence.mode` has it. With `verify` a running gateway's caller has one quote under way, as
    /// numbers must come in order; a gateway of this run's own has a sequence for each.
    #[arg(long, value_enum, default_value_t = Numbers::Verify)]
    sequence: Numbers,
    /// Open: so many quotes are due in a second, whatever the answers take. Closed where it is not given.
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    rate: Option<f64>,
    /// Open, at this share of what a closed run reaches first; can be given again.
    #[arg(long, value_name = "SHARE", value_parser = positive, conflicts_with = "rate")]
    load: Vec<f64>,
    /// How long each load lasts, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=7200))]
    duration_s: u64,
    /// How many quotes each load has at most.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    quotes: u64,
    /// How long the gateway is loaded before anything counts, in seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    warm_up_s: u64,
    /// One answer in so many is verified as a whole; all of them are checked.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    verify_every: u64,
    /// The device of the run's own gateway: a SoftHSM token, or one that waits and answers with signatures made beforehand.
    #[arg(long, value_enum, default_value_t = Device::Softhsm, requires = "own")]
    device: Device,
    /// How long the waiting device takes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    wait_ms: u64,
    /// The waiting device's module, `libp11shim.so` of `cargo build --package quotesign-p11shim`; beside this program where not given.
    #[arg(long, value_name = "FILE")]
    shim: Option<PathBuf>,
    /// How many signatures the waiting device has beforehand. Quotes beyond them cost a signature of SoftHSM each.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=200_000))]
    made_beforehand: u64,
    /// Sessions of the own gateway's device.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024), requires = "own")]
    sessions: u16,
    /// Bits of the own gateway's key.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2048..=4096), requires = "own")]
    bits: u32,
    /// Have the own gateway send its journal, metrics and the traces of this share of calls to a collector that takes everything.
    #[arg(long, value_name = "RATIO", requires = "own")]
    trace_ratio: Option<f64>,
    /// The quote that all are made of, of the shipped contract.
    #[arg(long, value_name = "FILE")]
    quote: Option<PathBuf>,
    /// How long a call may take, in milliseconds.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    deadline_ms: u64,
    /// How to print; text is Markdown.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Numbers {
    Verify,
    Assign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    Softhsm,
    Waiting,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "give a number".to_owned())?;
    if number > 0.0 && number <= 1e6 { Ok(number) } else { Err("give a number above 0 and at most 1000000".to_owned()) }
}

/// What is loaded.
struct Place {
    clients: Vec<ClientFile>,
    config: Option<(PathBuf, Config)>,
    policy: Arc<Bundle>,
    own: Option<Own>,
    pid: Option<u32>,
}

impl Place {
    fn operations(&self) -> Option<SocketAddr> {
        self.config.as_ref().map(|(_, config)| config.operations.listen)
    }

    fn usage(&self) -> Option<Usage> {
        self.pid?;
        let mut usage = Usage::now(self.pid);
        let collector = self.own.as_ref().map_or(Duration::ZERO, Own::collector_time);
        usage.client = usage.client.saturating_sub(collector);
        Some(usage)
    }
}

impl Bench {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut place = if self.own { self.make()? } else { self.find()? };
        let in_production = place.clients.iter().any(|client| client.environment == Environment::Production);
        if in_production
            || place.config.as_ref().is_some_and(|(_, config)| config.environment == Environment::Production)
        {
            return Err(Failure::unfit(PRODUCTION));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
        // A gateway of this run's own goes with it, however it ends.
        let report = runtime.block_on(async {
            tokio::select! {
                report = self.measure(&mut place) => report,
                ended = told_to_end() => Err(ended),
            }
        })?;
        match self.format {
            Format::Text => report.tell(),
            Format::Json => say!("{}", serde_json::to_string_pretty(&report).map_err(Failure::failed)?),
        }
        let faults: u64 = report.faults.values().sum();
        if faults > 0 {
            return Err(Failure::failed(format!("{faults} answers are not what they must be")));
        }
        if report.runs.iter().all(|run| run.signed == 0) {
            return Err(Failure::failed("nothing was signed"));
        }
        Ok(())
    }

    fn in_flight(&self) -> Result<usize, Failure> {
        match self.in_flight {
            Some(count) if count > 1 && !self.own && self.sequence == Numbers::Verify => Err(Failure::unfit(
                "--in-flight: numbers that callers give must come in order; have the gateway give them, with --sequence assign",
            )),
            Some(count) => Ok(count.into()),
            None if !self.own && self.sequence == Numbers::Verify => Ok(1),
            None => Ok(8),
        }
    }

    /// The running gateway that the client files name.
    fn find(&self) -> Result<Place, Failure> {
        let clients = self.client.iter().map(|path| ClientFile::load(path).map_err(Failure::unfit));
        let clients = clients.collect::<Result<Vec<_>, _>>()?;
        let config = self.config.as_ref().map(|path| Ok((path.clone(), Config::load(path).map_err(Failure::unfit)?)));
        let config = config.transpose()?;
        let policy = match &config {
            Some((_, config)) => bundle_in(&config.policy)?,
            None => shipped::bundle().map_err(|problems| Failure::failed(format!("{problems:?}")))?,
        };
        Ok(Place { clients, config, policy: Arc::new(policy), own: None, pid: self.pid })
    }

    /// A gateway of this run's own, which does not run yet.
    fn make(&self) -> Result<Place, Failure> {
        let waits = (self.device == Device::Waiting)
            .then(|| self.shim().map(|shim| (Duration::from_millis(self.wait_ms), shim)));
        let plan = Plan {
            callers: self.callers.into(),
            in_flight: self.in_flight()?,
            assigns: self.sequence == Numbers::Assign,
            bits: self.bits,
            sessions: self.sessions.into(),
            waits: waits.transpose()?,
            trace_ratio: self.trace_ratio,
        };
        if plan.assigns && plan.waits.is_some() {
            return Err(Failure::unfit(
                "--sequence: a device that has signatures beforehand needs numbers that are known; use verify",
            ));
        }
        let own = Own::prepare(plan)?;
        own.device(true)?;
        let (clients, policy) = (own.clients()?, bundle_in(&own.path("policy"))?);
        let config = Some((own.path(super::dev::CONFIG), own.config()?));
        Ok(Place { clients, config, policy: Arc::new(policy), own: Some(own), pid: None })
    }

    fn shim(&self) -> Result<PathBuf, Failure> {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("libp11shim.so"));
        let shim = self.shim.clone().or_else(beside).and_then(|path| path.canonicalize().ok());
        shim.ok_or_else(|| {
            Failure::unfit("--shim: build the waiting device, with `cargo build --release --package quotesign-p11shim`")
        })
    }

    /// What the module gives without a gateway, where it is at hand.
    async fn bare_loop(&self, place: &Place) -> Result<Option<RawPace>, Failure> {
        let lasts = (Duration::from_secs(self.duration_s) / 10).clamp(Duration::from_secs(1), Duration::from_secs(5));
        match place.config.as_ref().filter(|(_, config)| !config.signers.is_empty()) {
            Some((path, config)) => raw::of(path, config, &place.policy, lasts).await.map(Some),
            None => Ok(None),
        }
    }

    async fn measure(&self, place: &mut Place) -> Result<Report, Failure> {
        let raw = self.bare_loop(place).await?;
        let issued = (self.device == Device::Waiting).then(this_second);
        let kept = match issued {
            Some(issued) => Some(self.make_beforehand(place, issued).await?),
            None => None,
        };
        serve(place).await?;
        let (mut lanes, checker) = self.connect(place, issued).await?;
        let count = lanes.len();
        if self.warm_up_s > 0 {
            let load = Load { lasts: Duration::from_secs(self.warm_up_s), ..self.load(Pace::Closed) };
            (lanes, _) = load::carry(lanes, load, &checker, &ProgressBar::hidden()).await.map_err(Failure::failed)?;
        }
        let first = self.rate.map_or(Pace::Closed, Pace::Open);
        let (mut lanes, run) = self.run_load(lanes, first, None, place, &checker).await?;
        let (capacity, mut runs) = (run.rate_per_s, vec![run]);
        for share in &self.load {
            let pace = Pace::Open((share * capacity).max(f64::MIN_POSITIVE));
            let (back, run) = self.run_load(lanes, pace, Some(*share), place, &checker).await?;
            lanes = back;
            runs.push(run);
        }
        let mut report = self.report(place, raw, runs, &checker, count)?;
        report.made_beforehand =
            kept.map(|kept| MadeBeforehand { kept: kept.values().sum(), beyond: beyond(&kept, &lanes) });
        report.targets = report::targets(&report);
        Ok(report)
    }

    fn load(&self, pace: Pace) -> Load {
        let deadline = Duration::from_millis(self.deadline_ms);
        Load { pace, lasts: Duration::from_secs(self.duration_s), quotes_max: self.quotes, deadline }
    }

    async fn run_load(
        &self,
        lanes: Vec<Lane>,
        pace: Pace,
        share: Option<f64>,
        place: &Place,
        checker: &Arc<Checker>,
    ) -> Result<(Vec<Lane>, Run), Failure> {
        let progress = bar(pace, self.duration_s, self.quotes);
        let stages = look(place).await?;
        let before = place.usage();
        let (lanes, outcome): (_, Outcome) =
            load::carry(lanes, self.load(pace), checker, &progress).await.map_err(Failure::failed)?;
        let used = place.usage().zip(before).map(|(after, before)| after.since(&before));
        progress.finish_and_clear();
        let mut run = Run::of(pace, share, outcome, used.as_ref());
        if let (Some(before), Some(after)) = (stages, look(place).await?) {
            let means = stages::between(&before, &after).into_iter();
            run.stages = means.map(|(stage, (count, mean_us))| (stage, StageTime { count, mean_us })).collect();
        }
        Ok((lanes, run))
    }

    /// Has the very quotes signed that the run will ask for, then takes the ledger away: the device has kept the signatures. Gives how
    /// many each lane has.
    async fn make_beforehand(&self, place: &mut Place, issued: UtcTime) -> Result<BTreeMap<usize, u64>, Failure> {
        if let Some(own) = &place.own {
            own.device(false)?;
        }
        serve(place).await?;
        let (lanes, checker) = self.connect(place, Some(issued)).await?;
        let load = Load { lasts: Duration::from_mins(5), quotes_max: self.made_beforehand, ..self.load(Pace::Closed) };
        let progress = bar(Pace::Closed, 0, self.made_beforehand);
        let (lanes, _) = load::carry(lanes, load, &checker, &progress).await.map_err(Failure::failed)?;
        progress.finish_and_clear();
        if let Some((fault, _)) = checker.faults().first_key_value() {
            return Err(Failure::failed(format!("while signatures were made beforehand: {fault}")));
        }
        let kept = lanes.iter().map(|lane| (lane.scope, lane.made)).collect();
        if let Some(own) = &mut place.own {
            own.stop();
            own.forget()?;
            own.device(true)?;
        }
        Ok(kept)
    }

    fn report(
        &self,
        place: &Place,
        raw: Option<RawPace>,
        runs: Vec<Run>,
        checker: &Checker,
        lanes: usize,
    ) -> Result<Report, Failure> {
        let ledger = place.config.as_ref().and_then(|(_, config)| config.ledger.sqlite.as_deref()?.parent());
        let device = self.own.then(|| match self.device {
            Device::Softhsm => format!("SoftHSM, RSA-{}, {} sessions", self.bits, self.sessions),
            Device::Waiting => format!("waiting {} ms, RSA-{}, {} sessions", self.wait_ms, self.bits, self.sessions),
        });
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            cores: usize::try_from(report::cores()).unwrap_or(1),
            environment: place.clients.first().map(|client| client.environment.to_string()).unwrap_or_default(),
            device,
            trace_ratio: self.trace_ratio,
            callers: place.clients.len(),
            lanes,
            raw,
            synchronisation_us: ledger.map(synchronisation).transpose()?,
            runs,
            verified: checker.verified(),
            faults: checker.faults(),
            made_beforehand: None,
            targets: Vec::new(),
        })
    }
}

/// Comes back when this process is told to end.
async fn told_to_end() -> Failure {
    let listen = |kind| signal(kind).map_err(Failure::failed);
    match (listen(SignalKind::terminate()), listen(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            Failure::failed("it was told to end")
        }
        (Err(failure), _) | (_, Err(failure)) => failure,
    }
}

/// Starts the gateway, where it is this run's own.
async fn serve(place: &mut Place) -> Result<(), Failure> {
    if let Some(own) = &mut place.own {
        own.serve().await?;
        place.pid = own.pid();
        // Where another process took an address, others were chosen.
        place.clients = own.clients()?;
        place.config = Some((own.path(super::dev::CONFIG), own.config()?));
    }
    Ok(())
}

async fn look(place: &Place) -> Result<Option<stages::Stages>, Failure> {
    match place.operations() {
        Some(address) => stages::look(address).await.map(Some).map_err(Failure::failed),
        None => Ok(None),
    }
}

/// How many quotes of all lanes were beyond those made beforehand.
fn beyond(kept: &BTreeMap<usize, u64>, lanes: &[Lane]) -> u64 {
    lanes.iter().map(|lane| lane.made.saturating_sub(kept.get(&lane.scope).copied().unwrap_or_default())).sum()
}

fn synchronisation(folder: &Path) -> Result<Spread, Failure> {
    let mut times = load::histogram().map_err(Failure::failed)?;
    let took = host::synchronisations(folder, SYNCHRONISATIONS).map_err(Failure::failed)?;
    for took in took {
        times.saturating_record(load::micros(took));
    }
    Ok(Spread::of(&times))
}

/// On stderr, and only where that is a terminal.
fn bar(pace: Pace, duration_s: u64, quotes_max: u64) -> ProgressBar {
    let length = match pace {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bar need not be exact")]
        Pace::Open(rate) => Some((rate.ceil() as u64).saturating_mul(duration_s).min(quotes_max)),
        Pace::Closed => (duration_s == 0).then_some(quotes_max),
    };
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {human_pos} quotes, {per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
