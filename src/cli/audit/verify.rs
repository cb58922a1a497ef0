//! Recomputes the hash chain of a ledger or of an export.

use std::{fs::File, io::BufReader, path::PathBuf, time::Duration};

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
        for lane in &lanes {
            let bound = (!kept.is_empty()).then(|| bound(lane, checkpoint.as_ref()));
            for line in told(lane).into_iter().chain(bound.into_iter().flatten()) {
                say!("{line}");
            }
        }
        match (&checkpoint, kept.len()) {
            (Some(checkpoint), _) => {
                prove::tell(checkpoint);
                say!("nothing that it binds is missing or was changed");
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

/// A record is journalled within this time after it was made, whichever gateway's clock says so.
const LATE: Duration = Duration::from_mins(1);

/// Which of a lane's records are bound by what was kept, and whether one is not that should be.
fn bound(lane: &Lane, checkpoint: Option<&Checkpoint>) -> Vec<String> {
    let (first, next) = (lane.first.next_index, lane.summary.head.next_index);
    let alone = |from: u64| match next.checked_sub(1) {
        Some(last) if from <= last => {
            format!("by the chain alone, which can be written anew: records {from} to {last}")
        }
        _ => "by the chain alone: none".to_owned(),
    };
    let which = match lane.bound {
        None => format!("bound by what was kept: none, it does not know this lane; {}", alone(first)),
        Some(to) if to <= first => format!("bound by what was kept: where it begins; {}", alone(first)),
        Some(to) => format!("bound by what was kept: records {first} to {}; {}", to.saturating_sub(1), alone(to)),
    };
    let early = checkpoint.zip(lane.earliest).filter(|(checkpoint, (at, _))| *at < checkpoint.at.minus(LATE));
    let early = early.map(|(checkpoint, (at, index))| {
        format!(
            "record {index} says {at}, and the checkpoint of {} does not bind it: it was put there later, or came late",
            checkpoint.at
        )
    });
    [which].into_iter().chain(early).collect()
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::UtcTime,
        ledger::chain::{Heads, Position, Summary},
        notary::tree::Frontier,
    };

    fn lane(bound: Option<u64>, earliest: Option<(i64, u64)>) -> Lane {
        let (first, head) = (Position::GENESIS, Position { next_index: 5, link: [1; 32] });
        let summary = Summary { records: 5, links: 5, head };
        let earliest = earliest.map(|(at, index)| (UtcTime::from_millis(at), index));
        Lane { name: "gw-z".to_owned(), first, summary, pruned: Vec::new(), bound, earliest }
    }

    #[test]
    fn it_is_said_up_to_which_record_of_which_lane_a_checkpoint_binds() {
        let at = UtcTime::from_millis(600_000);
        let tree = Frontier::default();
        let checkpoint = Checkpoint { origin: String::new(), at, after: None, heads: Heads::default(), tree };
        let said = |lane: &Lane| bound(lane, Some(&checkpoint));
        let whole = said(&lane(Some(5), None));
        assert_eq!(whole, ["bound by what was kept: records 0 to 4; by the chain alone: none"]);
        let part = said(&lane(Some(3), Some((599_000, 3))));
        assert_eq!(part.len(), 1, "what came while it was made is no news: {part:?}");
        assert!(part[0].contains("records 0 to 2; ") && part[0].ends_with("records 3 to 4"), "{part:?}");
        let forged = said(&lane(None, Some((1_000, 2))));
        assert!(
            forged[0].contains("it does not know this lane") && forged[0].ends_with("records 0 to 4"),
            "{forged:?}"
        );
        assert!(forged[1].starts_with("record 2 says 1970-01-01T00:00:01Z, and the checkpoint"), "{forged:?}");
    }
}
