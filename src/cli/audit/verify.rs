//! Recomputes the hash chain of a ledger or of an export.

use std::{fs::File, io::BufReader, path::PathBuf};

use clap::Args;

use crate::{
    cli::{ConfigPath, Failure, noted::Noted, out::say},
    ledger::Journal,
    notary::checkpoint::Checkpoint,
    review::exported::{self, Kept, Lane},
};

use super::prove;

/// Exit codes: 0 it holds, 1 it does not, 2 not understood.
#[derive(Debug, Args)]
pub(in crate::cli) struct Verify {
    #[command(flatten)]
    path: ConfigPath,
    /// What `quotesign audit export` wrote; the ledger of --config where it is not given. Nothing but what is named is read.
    file: Option<PathBuf>,
    /// A head that was kept elsewhere, as this command prints it. Only who has one, or a checkpoint, can tell a journal that was
    /// cut, rolled back or written anew.
    #[arg(long = "head", value_name = "LANE=INDEX:LINK")]
    kept: Vec<Kept>,
    /// A signed checkpoint that was kept elsewhere, the newest the better: it has the heads of all lanes.
    #[arg(long, value_name = "FILE", requires = "files")]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    keys: prove::Keys,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
        let checkpoint = self.checkpoint()?;
        let heads = checkpoint.iter().flat_map(|checkpoint| &checkpoint.heads);
        let heads = heads.map(|(lane, head)| Kept { lane: lane.clone(), head: *head });
        let kept: Vec<Kept> = self.kept.iter().cloned().chain(heads).collect();
        let lanes = match &self.file {
            None => {
                let ledger = Noted::open(&self.path.load()?, "audit verify", Vec::new())?;
                exported::verify_ledger(&*ledger.journal()?, &kept).map_err(Failure::failed)?
            }
            Some(path) => {
                let named = |fault: &dyn std::fmt::Display| format!("{}: {fault}", path.display());
                let file = File::open(path).map_err(|fault| Failure::unfit(named(&fault)))?;
                exported::verify(BufReader::new(file), &kept).map_err(|fault| Failure::failed(named(&fault)))?
            }
        };
        for line in lanes.iter().flat_map(told) {
            say!("{line}");
        }
        match (&checkpoint, kept.len()) {
            (Some(checkpoint), _) => {
                prove::tell(checkpoint);
                say!(
                    "nothing that it binds is missing or was changed; what came after it is vouched for by the chain alone"
                );
            }
            (None, 0) => say!("{NO_HEAD}"),
            (None, heads) => say!("kept heads that are in it: {heads}"),
        }
        Ok(())
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, Failure> {
        let Some(file) = &self.checkpoint else { return Ok(None) };
        let opened = Checkpoint::open(&prove::text(file)?, &self.keys.load()?);
        opened.map(Some).map_err(|fault| Failure::failed(format!("{}: {fault}", file.display())))
    }
}

const NO_HEAD: &str =
    "no head was given: a journal that was cut, rolled back or written anew as a whole looks the same";

/// Up to where the journal holds, in words.
pub(in crate::cli) fn verified(journal: &dyn Journal) -> Result<Vec<String>, Failure> {
    let lanes = exported::verify_ledger(journal, &[]).map_err(Failure::failed)?;
    Ok(lanes.iter().flat_map(told).collect())
}

fn told(Lane { name, first, summary, .. }: &Lane) -> Vec<String> {
    let last = summary.head.next_index.saturating_sub(1);
    let lane = (!name.is_empty()).then(|| format!("lane {name}"));
    let vouched = match summary.links {
        0 => "vouched for: the journal holds no record yet".to_owned(),
        links => format!("vouched for: records {} to {last} in {links} links", first.next_index),
    };
    let head = Kept { lane: name.clone(), head: summary.head };
    let before = first.next_index.checked_sub(1).map(|last| format!("records 0 to {last} are not in it"));
    lane.into_iter().chain(before).chain([vouched, format!("head {head}")]).collect()
}
