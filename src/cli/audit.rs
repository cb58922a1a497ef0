//! `quotesign audit`: reads the journal of a ledger, also while the gateway writes it.

use clap::{Args, Subcommand};
use serde_json::Value;
use uuid::Uuid;

use crate::ledger::{Journal, Stretch, chain};

use super::{ConfigPath, Failure, out::say};

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Print one record by its id.
    Show(Show),
    /// Print the newest records, a JSON line each.
    Tail(Tail),
    /// Recompute the whole hash chain and say up to where it holds.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    path: ConfigPath,
    /// The record's id, as an answer of the gateway gave it.
    id: Uuid,
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    path: ConfigPath,
    /// How many.
    #[arg(short = 'n', long, default_value_t = 10)]
    count: u32,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    path: ConfigPath,
}

/// How many rows are read at once.
const PAGE: u32 = 1000;

impl AuditCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Show(show) => {
                let reader = reader(&show.path)?;
                let stored = reader.record(&show.id).map_err(Failure::failed)?;
                let stored =
                    stored.ok_or_else(|| Failure::failed(format!("the journal holds no record {}", show.id)))?;
                let record: Value = serde_json::from_slice(&stored.bytes).map_err(Failure::failed)?;
                say!("{record:#}");
                Ok(())
            }
            Self::Tail(tail) => {
                for stored in reader(&tail.path)?.tail(tail.count).map_err(Failure::failed)? {
                    say!("{}", String::from_utf8_lossy(&stored.bytes));
                }
                Ok(())
            }
            Self::Verify(verify) => {
                for line in verified(&*reader(&verify.path)?)? {
                    say!("{line}");
                }
                Ok(())
            }
        }
    }
}

fn reader(path: &ConfigPath) -> Result<Box<dyn Journal>, Failure> {
    path.load()?.ledger.place().map_err(Failure::unfit)?.journal().map_err(Failure::failed)
}

/// Up to where the journal holds, in words.
pub(super) fn verified(journal: &dyn Journal) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    for stretch in journal.lanes().map_err(Failure::failed)? {
        lines.extend(verify_lane(journal, &stretch)?);
    }
    Ok(lines)
}

fn verify_lane(journal: &dyn Journal, stretch: &Stretch) -> Result<Vec<String>, Failure> {
    let Stretch { lane, first, head } = stretch;
    let named = |what: &dyn std::fmt::Display| {
        Failure::failed(if lane.is_empty() { what.to_string() } else { format!("lane {lane}: {what}") })
    };
    let mut from = first.next_index;
    let mut fault = None;
    let pages = std::iter::from_fn(|| {
        let page = journal.records(lane, from, PAGE).unwrap_or_else(|error| {
            fault = Some(error);
            Vec::new()
        });
        from = page.last()?.index + 1;
        Some(page)
    });
    let summary = chain::verify(*first, pages.flatten());
    if let Some(fault) = fault {
        return Err(named(&fault));
    }
    let summary = summary.map_err(|fault| named(&fault))?;
    let same_place = summary.head.next_index == head.next_index;
    if same_place && summary.head.link != head.link {
        return Err(named(&"the journal's last link is not the one its head holds"));
    }
    if summary.head.next_index < head.next_index {
        let ends = summary.head.next_index;
        return Err(named(&format!("the journal ends at {ends}, and its head says {}", head.next_index)));
    }
    let last = summary.head.next_index.saturating_sub(1);
    let name = (!lane.is_empty()).then(|| format!("lane {lane}"));
    let vouched = match summary.links {
        0 => "vouched for: the journal holds no record yet".to_owned(),
        links => format!("vouched for: records {} to {last} in {links} links", first.next_index),
    };
    Ok(name.into_iter().chain([vouched, format!("head {}", hex::encode(summary.head.link))]).collect())
}
