//! What the same module gives without a gateway, measured in a process of its own, since modules find their files by variables of
//! their process: `quotesign bench-raw`, which `quotesign bench` starts.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::load::{histogram, micros};
use crate::{
    cli::{Failure, out::say},
    clock::{Clock as _, SystemClock},
    config::{Config, SignerEntry},
    domain::Environment,
    jws::SigningInput,
    policy::Bundle,
    signer::{
        locator::Locator,
        pkcs11::raw::{Pace, Raw},
    },
};

/// A waiting device has a signature of each of these ready.
const INPUTS: usize = 64;
/// Everything is signed once before it counts.
const FIRST: Duration = Duration::from_millis(500);

/// What `bench` asks of the process that loads the module.
#[derive(Debug, Args)]
pub(in crate::cli) struct BenchRaw {
    /// The gateway's config.
    #[arg(long)]
    config: PathBuf,
    /// The signer of it.
    #[arg(long)]
    signer: String,
    /// The key's label.
    #[arg(long)]
    object: String,
    /// How long each loop runs.
    #[arg(long, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    millis: u64,
}

/// What the loops came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RawPace {
    pub(super) sessions: usize,
    pub(super) rate_per_s: f64,
    /// Processor time for a signature.
    pub(super) cpu_us: f64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    /// How long one takes where it is alone.
    pub(super) alone_p50_us: u64,
}

impl BenchRaw {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let config = Config::load(&self.config).map_err(Failure::unfit)?;
        if config.environment == Environment::Production {
            return Err(Failure::unfit(super::PRODUCTION));
        }
        let signer = config.signers.iter().find(|signer| signer.name == self.signer);
        let signer = signer.ok_or_else(|| Failure::unfit(format!("--signer: there is no `{}`", self.signer)))?;
        let pace = measure(signer, &self.object, Duration::from_millis(self.millis)).map_err(Failure::failed)?;
        say!("{}", serde_json::to_string(&pace).map_err(Failure::failed)?);
        Ok(())
    }
}

fn measure(signer: &SignerEntry, object: &str, lasts: Duration) -> Result<RawPace, String> {
    let raw = Raw::open(&signer.module, &signer.token, &signer.pin(), object)?;
    let inputs: Vec<_> = (0..INPUTS).map(|_| SigningInput::fresh_probe()).collect();
    raw.run(1, &inputs, FIRST)?;
    raw.run(signer.sessions, &inputs, FIRST)?;
    let (alone, together) = (raw.run(1, &inputs, lasts / 4)?, raw.run(signer.sessions, &inputs, lasts)?);
    let (times, alone_times) = (times_of(&together)?, times_of(&alone)?);
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 signatures")]
    let count = together.each.len() as f64;
    Ok(RawPace {
        sessions: signer.sessions,
        rate_per_s: together.rate(),
        cpu_us: together.cpu.as_secs_f64() * 1e6 / count,
        p50_us: times.value_at_quantile(0.5),
        p99_us: times.value_at_quantile(0.99),
        alone_p50_us: alone_times.value_at_quantile(0.5),
    })
}

fn times_of(pace: &Pace) -> Result<Histogram<u64>, String> {
    let mut times = histogram()?;
    for took in &pace.each {
        times.saturating_record(micros(*took));
    }
    Ok(times)
}

/// Has another process measure the module of the key that signs now.
pub(super) async fn of(path: &Path, config: &Config, policy: &Bundle, lasts: Duration) -> Result<RawPace, Failure> {
    let now = SystemClock.now();
    let signing = policy.timeline.all().filter(|key| key.sign_from <= now && now < key.sign_until);
    let places = signing.flat_map(|key| &key.places);
    let found = places.filter_map(|(name, locator)| {
        let signer = config.signers.iter().find(|signer| signer.name == *name)?;
        Some((signer, Locator::parse(locator).ok()?.object()?.to_owned()))
    });
    let (signer, object) = found.last().ok_or_else(|| {
        Failure::unfit("no key that signs now has a label on a PKCS#11 token of the config; leave --config out")
    })?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("bench-raw").arg("--config").arg(path).args(["--signer", &signer.name, "--object", &object]);
    command.args(["--millis", &lasts.as_millis().to_string()]).envs(&signer.environment);
    let output = command.kill_on_drop(true).output().await.map_err(Failure::failed)?;
    if !output.status.success() {
        return Err(Failure::failed(format!("the bare loop: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    serde_json::from_slice(&output.stdout).map_err(Failure::failed)
}
