//! `quotesign keys list`: the RSA keys that the devices hold, and which of them policy knows.

use std::collections::BTreeMap;

use clap::Args;

use crate::{policy::Bundle, signer::provision::Listed};

use crate::cli::out::say;

use super::{ConfigPath, Failure, block_on, device};

#[derive(Debug, Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    path: ConfigPath,
    /// One signer of the config; all of them by itself.
    #[arg(long)]
    signer: Option<String>,
}

impl List {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let signers: Vec<String> = match self.signer {
            Some(signer) => vec![signer],
            None => config.signer_names().map(str::to_owned).collect(),
        };
        // A bundle that is not good yet is no reason not to look at the devices.
        let bundle = Bundle::load(&config.policy).ok();
        let checkpoints = config.audit.checkpoint.as_ref().and_then(|section| section.key().ok());
        let mut known: BTreeMap<String, String> =
            checkpoints.iter().map(|key| (key.thumbprint(), format!("{} (checkpoints)", key.kid()))).collect();
        let quotes = bundle.iter().flat_map(|bundle| bundle.timeline.all());
        known.extend(quotes.map(|pinned| (pinned.public.thumbprint(), pinned.kid.to_string())));
        let mut failed = Vec::new();
        for signer in &signers {
            let device = device(&config, signer)?;
            match block_on(async { device.list().await.map_err(Failure::failed) }) {
                Ok(keys) => keys.iter().for_each(|key| say!("{}", line(signer, key, &known))),
                Err(failure) => failed.push(format!("{signer}: {}", failure.text)),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(Failure::failed(failed.join("\n"))) }
    }
}

/// A key on a line: signer, bits, thumbprint, the kid in policy or for checkpoints, whether it may sign, locator.
fn line(signer: &str, key: &Listed, known: &BTreeMap<String, String>) -> String {
    let bits = key.bits.map_or_else(|| "-".to_owned(), |bits| bits.to_string());
    let thumbprint = key.thumbprint.as_deref().unwrap_or("-");
    let kid = known.get(thumbprint).map_or("not in policy", String::as_str);
    let fit = key.unfit.as_ref().map_or_else(|| "fit".to_owned(), |why| format!("unfit: {why}"));
    format!("{signer}\t{bits}\t{thumbprint}\t{kid}\t{fit}\t{}", key.locator)
}
