//! `quotesign policy diff`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::{
    cli::out::say,
    policy::{Bundle, files},
    review::diff::diff,
};

use super::{Failure, Format, bundle_in, prove, unfit};

/// Exit codes: 0 told, and nothing more is allowed where that was asked; 1 the new one allows more, or a rule of it can
/// fail; 2 it could not be told or proved.
#[derive(Debug, Args)]
pub(in crate::cli) struct Diff {
    /// The bundle before.
    old: PathBuf,
    /// The bundle after.
    new: PathBuf,
    /// Have it proved whether the new one allows anything that the old one did not, and whether a rule of it can fail. Needs
    /// the program `policy-prove` and cvc5; see docs/policy.md.
    #[arg(long)]
    prove: bool,
    /// How to print.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Diff {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (old, new) = (bundle_in(&self.old)?, bundle_in(&self.new)?);
        let read = |dir: &PathBuf| files::read(dir).map_err(|problems| unfit(dir, &problems));
        let changes = diff((&old, &read(&self.old)?), (&new, &read(&self.new)?));
        let proof = self.prove.then(|| prove::prove(&self.old, &self.new)).transpose()?;
        match self.format {
            Format::Json => {
                let proof = proof.as_ref().map(prove::Proof::to_json);
                let digest = |bundle: &Bundle| bundle.digest.to_string();
                say!("{:#}", json!({ "old": digest(&old), "new": digest(&new), "changes": changes, "proof": proof }));
            }
            Format::Text => {
                if changes.is_empty() {
                    say!("nothing that either decides by has changed");
                }
                for change in &changes {
                    say!("{change}");
                }
                for line in proof.iter().flat_map(prove::Proof::lines) {
                    say!("{line}");
                }
            }
        }
        match proof {
            Some(proof) if proof.allows_more() => {
                Err(Failure::failed("the new bundle allows what the old one did not, or a rule of it can fail"))
            }
            _ => Ok(()),
        }
    }
}
