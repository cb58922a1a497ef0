//! `quotesign callers`: refuse all that a caller asks for, and let it in again.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    clock::UtcTime,
    proto::{ReinstateCallerRequest, SuspendCallerRequest, SuspendCallerResponse, timestamp},
};

use super::{ClientPath, Failure, admin::gateway, block_on, out::say};

#[derive(Debug, Subcommand)]
pub(super) enum CallersCommand {
    /// Refuse all that a caller asks for, on every gateway of the ledger, and list what it has had signed.
    Suspend(Suspend),
    /// Let a suspended caller in again.
    Reinstate(Reinstate),
}

#[derive(Debug, Args)]
pub(super) struct Suspend {
    #[command(flatten)]
    act: Act,
    /// List what it has had signed since then, as `2026-06-01T00:00:00Z`, a JSON object a line.
    #[arg(long, value_name = "TIME")]
    signed_since: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Reinstate {
    #[command(flatten)]
    act: Act,
}

#[derive(Debug, Args)]
struct Act {
    #[command(flatten)]
    path: ClientPath,
    /// The caller, as `spiffe://trust-domain/path` or `dns:name`.
    caller: String,
    /// For the record: why.
    #[arg(long)]
    reason: String,
}

impl CallersCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Suspend(command) => command.run(),
            Self::Reinstate(command) => command.run(),
        }
    }
}

impl Suspend {
    fn run(self) -> Result<(), Failure> {
        let Act { path, caller, reason } = self.act;
        let since = self.signed_since.as_deref().map(UtcTime::parse).transpose();
        let since = since.map_err(|fault| Failure::unfit(format!("--signed-since: {fault}")))?;
        let client = path.load()?;
        block_on(async {
            let request = SuspendCallerRequest { caller: caller.clone(), reason, signed_since: since.map(timestamp) };
            let done = gateway(&client).await?.suspend_caller(request).await;
            let done = done.map_err(|status| Failure::refused(&status))?.into_inner();
            if done.not_yet_durable {
                return Err(super::not_yet_durable(&format!("nothing more is done for `{caller}`"), done.unknown));
            }
            say!("`{caller}` is suspended on every gateway of this ledger until `quotesign callers reinstate`");
            say!("audit record {}", done.audit_record_id);
            tell(&caller, &done);
            if done.unknown {
                return Err(super::misspelt(&format!("the bundle declares no caller `{caller}`")));
            }
            Ok(())
        })
    }
}

fn tell(caller: &str, done: &SuspendCallerResponse) {
    for quote in &done.signed {
        let at = quote.signed_at.map(|at| UtcTime::from_millis(at.seconds * 1000 + i64::from(at.nanos) / 1_000_000));
        say!(
            "{}",
            json!({
                "partner": quote.partner,
                "quote_id": quote.quote_id,
                "sequence": quote.sequence,
                "kid": quote.kid,
                "signed_at": at.map(|at| at.to_string()),
                "jws_sha256": quote.jws_sha256,
            })
        );
    }
    if done.has_more {
        say!(
            "there is more, or may be: `quotesign audit tail --caller {caller} --event quote.committed` has all of it"
        );
    }
}

impl Reinstate {
    fn run(self) -> Result<(), Failure> {
        let Act { path, caller, reason } = self.act;
        let client = path.load()?;
        block_on(async {
            let request = ReinstateCallerRequest { caller: caller.clone(), reason };
            let done = gateway(&client).await?.reinstate_caller(request).await;
            let record = done.map_err(|status| Failure::refused(&status))?.into_inner().audit_record_id;
            say!("`{caller}` may call again");
            say!("audit record {record}");
            Ok(())
        })
    }
}
