//! `quotesign keys revoke`.

use clap::Args;

use crate::proto::RevokeKeyRequest;

use super::super::{ClientPath, Failure, admin::gateway, block_on, out::say};

#[derive(Debug, Args)]
pub(in crate::cli) struct Revoke {
    #[command(flatten)]
    path: ClientPath,
    /// The key id.
    kid: String,
    /// For the record: why.
    #[arg(long)]
    reason: String,
}

impl Revoke {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let client = self.path.load()?;
        block_on(async {
            let request = RevokeKeyRequest { kid: self.kid.clone(), reason: self.reason };
            let done = gateway(&client).await?.revoke_key(request).await.map_err(|status| Failure::refused(&status))?;
            say!("`{}` is revoked, for good, on every gateway of this ledger: nothing it signed is released", self.kid);
            say!("audit record {}", done.into_inner().audit_record_id);
            Ok(())
        })
    }
}
