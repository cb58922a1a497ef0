//! `quotesign policy test`.

use clap::Args;
use serde_json::json;

use crate::{cli::out::say, review::cases};

use super::{Dir, Failure, Format, limits};

#[derive(Debug, Args)]
pub(in crate::cli) struct Test {
    #[command(flatten)]
    dir: Dir,
}

impl Test {
    pub(super) fn run(self) -> Result<(), Failure> {
        let bundle = self.dir.load()?;
        let outcomes = cases::run(&self.dir.dir, &bundle, &limits()).map_err(|problems| self.dir.unfit(&problems))?;
        let failed = outcomes.iter().filter(|outcome| !outcome.differs.is_empty()).count();
        match self.dir.format {
            Format::Text => outcomes.iter().for_each(|outcome| say!("{outcome}")),
            Format::Json => {
                let told = |outcome: &cases::Outcome| json!({ "file": outcome.file, "case": outcome.name, "differs": outcome.differs });
                say!("{:#}", json!({ "cases": outcomes.iter().map(told).collect::<Vec<_>>(), "failed": failed }));
            }
        }
        match (outcomes.len(), failed) {
            (0, _) => Err(Failure::unfit(format!("{}/cases/ holds no case; write one", self.dir.dir.display()))),
            (_, 0) => Ok(()),
            (all, failed) => Err(Failure::failed(format!("{failed} of {all} cases came out otherwise"))),
        }
    }
}
