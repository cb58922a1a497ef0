//! `quotesign policy`: reads, tries and compares bundles, with the loader that `serve` uses.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    config::LimitsSection,
    domain::PartnerId,
    json::Limits,
    policy::{Bundle, Partner, Problem},
};

use super::{Failure, Format, out::say};

mod calendar;
mod check;
mod diff;
mod digest;
mod explain;
mod prove;
mod replay;
mod sign;
mod test;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Check a bundle as a whole with its cases, and tell what lies ahead on its timeline.
    Check(check::Check),
    /// Run a bundle's cases.
    Test(test::Test),
    /// Say what would happen to a quote, why, and what else would have to be true.
    Explain(explain::Explain),
    /// Say what a change changes.
    Diff(diff::Diff),
    /// Say which signed quotes a bundle would have decided otherwise.
    Replay(replay::Replay),
    /// Show which key signs when.
    Calendar(calendar::Calendar),
    /// Print a bundle's digest.
    Digest(digest::Digest),
    /// Sign a bundle with a device key of its own.
    Sign(sign::Sign),
    /// Verify a bundle's signature.
    Verify(sign::Verify),
}

#[derive(Debug, Args)]
struct Dir {
    /// The bundle's directory.
    #[arg(default_value = "policy")]
    dir: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// An instant that a command asks about.
#[derive(Debug, Args)]
struct At {
    /// Ask about this time, as `2026-12-01T00:00:00Z`; now where it is not given.
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
}

impl PolicyCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Check(command) => command.run(),
            Self::Test(command) => command.run(),
            Self::Explain(command) => command.run(),
            Self::Diff(command) => command.run(),
            Self::Replay(command) => command.run(),
            Self::Calendar(command) => command.run(),
            Self::Digest(command) => command.run(),
            Self::Sign(command) => command.run(),
            Self::Verify(command) => command.run(),
        }
    }
}

impl Dir {
    fn load(&self) -> Result<Bundle, Failure> {
        Bundle::load(&self.dir).map_err(|problems| self.unfit(&problems))
    }

    /// Everything that is wrong with the bundle.
    fn unfit(&self, problems: &[Problem]) -> Failure {
        if self.format == Format::Json {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            say!("{:#}", json!({ "good": false, "problems": problems }));
        }
        unfit(&self.dir, problems)
    }
}

impl At {
    fn time(&self) -> Result<UtcTime, Failure> {
        match &self.at {
            Some(text) => UtcTime::parse(text).map_err(|fault| Failure::unfit(format!("--at: {fault}"))),
            None => Ok(SystemClock.now()),
        }
    }
}

/// The bundle in `dir`.
pub(super) fn bundle_in(dir: &Path) -> Result<Bundle, Failure> {
    Bundle::load(dir).map_err(|problems| unfit(dir, &problems))
}

/// The partner that `--partner` names.
pub(super) fn partner_in<'b>(bundle: &'b Bundle, id: &str) -> Result<&'b Partner, Failure> {
    let id: PartnerId = id.parse().map_err(|fault| Failure::unfit(format!("--partner: {fault}")))?;
    bundle.partner(&id).ok_or_else(|| Failure::unfit(format!("--partner: the bundle has no `{id}`")))
}

fn unfit(dir: &Path, problems: &[Problem]) -> Failure {
    let lines: Vec<_> = problems.iter().map(|problem| format!("{}/{problem}", dir.display())).collect();
    Failure::unfit(lines.join("\n"))
}

/// The bounds on payloads of a gateway whose config names none.
fn limits() -> Limits {
    LimitsSection::default().payload()
}
