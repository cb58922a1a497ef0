//! Recomputes the hash chain of a ledger or of an export.

use std::{fs::File, io::BufReader, path::PathBuf};

use clap::Args;

use crate::{
    cli::{ConfigPath, Failure, out::say},
    ledger::Journal,
    review::exported::{self, Kept, Lane},
};

use super::reader;

/// Exit codes: 0 it holds, 1 it does not, 2 not understood.
#[derive(Debug, Args)]
pub(in crate::cli) struct Verify {
    #[command(flatten)]
    path: ConfigPath,
    /// What `quotesign audit export` wrote; the ledger of --config where it is not given. Nothing but this file is read.
    file: Option<PathBuf>,
    /// A head that was kept elsewhere, as this command prints it. Only who has one can tell a journal that was cut, rolled back
    /// or written anew.
    #[arg(long = "head", value_name = "LANE=INDEX:LINK")]
    kept: Vec<Kept>,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
        let lanes = match &self.file {
            None => exported::verify_ledger(&*reader(&self.path)?, &self.kept).map_err(Failure::failed)?,
            Some(path) => {
                let named = |fault: &dyn std::fmt::Display| format!("{}: {fault}", path.display());
                let file = File::open(path).map_err(|fault| Failure::unfit(named(&fault)))?;
                exported::verify(BufReader::new(file), &self.kept).map_err(|fault| Failure::failed(named(&fault)))?
            }
        };
        for line in lanes.iter().flat_map(told) {
            say!("{line}");
        }
        let said = match self.kept.len() {
            0 => NO_HEAD.to_owned(),
            heads => format!("kept heads that are in it: {heads}"),
        };
        say!("{said}");
        Ok(())
    }
}

const NO_HEAD: &str =
    "no head was given: a journal that was cut, rolled back or written anew as a whole looks the same";

/// Up to where the journal holds, in words.
pub(in crate::cli) fn verified(journal: &dyn Journal) -> Result<Vec<String>, Failure> {
    let lanes = exported::verify_ledger(journal, &[]).map_err(Failure::failed)?;
    Ok(lanes.iter().flat_map(told).collect())
}

fn told(Lane { name, first, summary }: &Lane) -> Vec<String> {
    let last = summary.head.next_index.saturating_sub(1);
    let lane = (!name.is_empty()).then(|| format!("lane {name}"));
    let vouched = match summary.links {
        0 => "vouched for: the journal holds no record yet".to_owned(),
        links => format!("vouched for: records {} to {last} in {links} links", first.next_index),
    };
    let head = Kept { lane: name.clone(), head: summary.head };
    lane.into_iter().chain([vouched, format!("head {head}")]).collect()
}
