//! `quotesign keys activate`: lets a key sign before its propagation time is over.

use clap::Args;

use crate::proto::ActivateKeyRequest;

use super::super::{ClientPath, Failure, admin::gateway, block_on, out::say};

#[derive(Debug, Args)]
pub(in crate::cli) struct Activate {
    #[command(flatten)]
    path: ClientPath,
    /// The key id, of the bundle in force.
    kid: String,
    /// For the record: why.
    #[arg(long)]
    reason: String,
}

impl Activate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let client = self.path.load()?;
        block_on(async {
            let request = ActivateKeyRequest { kid: self.kid.clone(), reason: self.reason };
            let done = gateway(&client).await?.activate_key(request).await;
            let record = done.map_err(|status| Failure::refused(&status))?.into_inner().audit_record_id;
            say!(
                "`{}` signs inside its window from now on; verifiers may refuse its quotes until their caches are renewed",
                self.kid
            );
            say!("audit record {}", if record.is_empty() { "of an earlier call" } else { &record });
            Ok(())
        })
    }
}
