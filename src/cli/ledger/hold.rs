//! `quotesign ledger hold` and `release`: what a dispute or a court asks for is not pruned meanwhile. Through a running
//! gateway, or with `--offline` on the ledger itself.

use clap::Args;

use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    ledger::{
        Done, HoldAct, Op,
        asked::{hold_of, reason_of, since_of},
    },
    proto::{ReleaseHoldRequest, SetHoldRequest, timestamp},
};

use super::{
    super::{ClientPath, ConfigPath, Failure, admin::gateway, block_on, out::say},
    act,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Hold {
    #[command(flatten)]
    way: Way,
    /// Its name, by which it is released.
    #[arg(value_parser = hold_of)]
    name: String,
    /// What expired or was journalled since then is kept, as `2026-06-01T00:00:00Z`.
    #[arg(long, value_name = "TIME")]
    since: String,
    /// For the record: why.
    #[arg(long, value_parser = reason_of)]
    reason: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Release {
    #[command(flatten)]
    way: Way,
    /// The hold's name.
    name: String,
    /// For the record: why.
    #[arg(long, value_parser = reason_of)]
    reason: String,
}

/// Through a gateway, or on the ledger itself.
#[derive(Debug, Args)]
struct Way {
    #[command(flatten)]
    client: ClientPath,
    #[command(flatten)]
    config: ConfigPath,
    /// Act on the ledger of the config, with no gateway at it, instead of through the gateway of the client file.
    #[arg(long)]
    offline: bool,
}

impl Way {
    /// Sets the hold, or releases it where `since` is absent; the record of the act.
    fn act(self, hold: String, since: Option<UtcTime>, reason: String) -> Result<String, Failure> {
        if self.offline {
            let (config, now) = (self.config.load()?, SystemClock.now());
            let since = since.map(|since| since_of(since, now)).transpose();
            let since = since.map_err(|fault| Failure::unfit(format!("--since {fault}")))?;
            let op = |context| Op::Hold(HoldAct { id: hold, since, reason, context, now });
            return match act::alone(&config, op)? {
                Done::Held(record) => Ok(record.to_string()),
                _ => Err(Failure::failed("the ledger answered another operation")),
            };
        }
        let client = self.client.load()?;
        block_on(async {
            let mut gateway = gateway(&client).await?;
            let done = if let Some(since) = since {
                let request = SetHoldRequest { hold, since: Some(timestamp(since)), reason };
                gateway.set_hold(request).await.map(|done| done.into_inner().audit_record_id)
            } else {
                let request = ReleaseHoldRequest { hold, reason };
                gateway.release_hold(request).await.map(|done| done.into_inner().audit_record_id)
            };
            done.map_err(|status| Failure::refused(&status))
        })
    }
}

impl Hold {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let since = UtcTime::parse(&self.since).map_err(|fault| Failure::unfit(format!("--since: {fault}")))?;
        let record = self.way.act(self.name.clone(), Some(since), self.reason)?;
        say!("what expired or was journalled since {since} is kept until the hold `{}` is released", self.name);
        say!("audit record {record}");
        Ok(())
    }
}

impl Release {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let record = self.way.act(self.name.clone(), None, self.reason)?;
        say!("the hold `{}` is released", self.name);
        say!("audit record {record}");
        Ok(())
    }
}
