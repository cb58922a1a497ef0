//! `quotesign policy replay`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::{
    cli::{
        ConfigPath,
        noted::{Noted, filter},
        out::say,
    },
    clock::UtcTime,
    ledger::{Place, Store},
    review::replay::{Replay as Replayed, replay},
};

use super::{Dir, Failure, Format, limits};

/// Exit codes: 0 nothing would be decided otherwise, 1 something would, 2 the bundle or the ledger cannot be used.
#[derive(Debug, Args)]
pub(in crate::cli) struct Replay {
    #[command(flatten)]
    dir: Dir,
    #[command(flatten)]
    config: ConfigPath,
    /// A SQLite ledger or a copy of one, instead of the config's own.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Only what was signed since then, as `2026-06-01T00:00:00Z`.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

impl Replay {
    pub(super) fn run(self) -> Result<(), Failure> {
        let bundle = self.dir.load()?;
        let since = self.since.as_deref().map(UtcTime::parse).transpose();
        let since = since.map_err(|fault| Failure::unfit(format!("--since: {fault}")))?;
        let (command, told) = ("policy replay", filter("since", since.as_ref()).into_iter().collect());
        let ledger = match &self.ledger {
            Some(file) => Noted::at(Place { store: Store::Sqlite(file.clone()), anchor: None }, command, told),
            None => Noted::open(&self.config.load()?, command, told),
        };
        let opened = ledger.and_then(|ledger| Ok((ledger.journal()?, ledger.reads()?)));
        let (journal, mut reads) = opened.map_err(|fault| Failure::unfit(fault.text))?;
        let since = since.map_or(i64::MIN, UtcTime::millis);
        let found = replay(&bundle, &limits(), &*journal, &mut *reads, since).map_err(Failure::failed)?;
        match self.dir.format {
            Format::Json => say!("{:#}", json!({ "policy_digest": bundle.digest.to_string(), "replay": found })),
            Format::Text => show(&found),
        }
        match found.otherwise.len() {
            0 => Ok(()),
            count => Err(Failure::failed(format!("{count} quotes would be decided otherwise"))),
        }
    }
}

fn show(found: &Replayed) {
    for quote in &found.otherwise {
        let (number, reason) = (quote.sequence.unwrap_or_default(), quote.reason.as_deref().unwrap_or("OTHER_KEY"));
        say!(
            "{} {} {number} of {}, asked by {}: {reason}: {}",
            quote.at,
            quote.quote_id,
            quote.partner,
            quote.caller,
            quote.why
        );
    }
    let Replayed { same, by_other_rules, otherwise, payload_gone, caller_unknown } = found;
    say!(
        "{} would be decided otherwise, {same} as they were, {by_other_rules} of these by other rules",
        otherwise.len()
    );
    say!(
        "not replayed: {payload_gone} whose payload is not held any more, {caller_unknown} whose caller is not on record"
    );
    say!("what was refused is not held, and is not replayed either");
}
