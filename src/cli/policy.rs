//! `quotesign policy`: reads bundles with the loader that `serve` uses.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::{
    clock::{Clock as _, SystemClock},
    policy::Bundle,
};

use super::{Failure, out::say};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Check a bundle as a whole, and show which key each partner signs with now.
    Check(Dir),
    /// Print a bundle's digest.
    Digest(Dir),
}

#[derive(Debug, Args)]
pub(super) struct Dir {
    /// The bundle's directory.
    #[arg(default_value = "policy")]
    dir: PathBuf,
}

impl PolicyCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Digest(dir) => say!("{}", dir.load()?.digest),
            Self::Check(dir) => dir.load().map(|bundle| show(&bundle))?,
        }
        Ok(())
    }
}

impl Dir {
    fn load(&self) -> Result<Bundle, Failure> {
        Bundle::load(&self.dir).map_err(|problems| {
            let lines: Vec<_> = problems.iter().map(|problem| format!("{}/{problem}", self.dir.display())).collect();
            Failure::unfit(lines.join("\n"))
        })
    }
}

fn show(bundle: &Bundle) {
    let now = SystemClock.now();
    say!("good: {} serial {}, digest {}", bundle.environment, bundle.serial, bundle.digest);
    for partner in bundle.partners() {
        let current = bundle.timeline.current(&partner.id, now, |_| false).map(|key| &key.kid);
        for key in bundle.timeline.of(&partner.id) {
            let mark = if current == Some(&key.kid) { "signs now" } else { "" };
            say!(
                "{:<20} {:<28} {:<9?} signs {} to {}  {mark}",
                partner.id,
                key.kid,
                key.state(now),
                key.sign_from,
                key.sign_until
            );
        }
        if current.is_none() {
            say!("{:<20} no key may sign now", partner.id);
        }
    }
}
