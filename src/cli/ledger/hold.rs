//! `quotesign ledger hold` and `release`: what a dispute or a court asks for is not pruned meanwhile. Through a running
//! gateway, or with `--offline` on the ledger itself.

use clap::Args;
use prost_types::Timestamp;

use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    ledger::{Done, HoldAct, Op},
    proto::{ReleaseHoldRequest, SetHoldRequest},
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
    name: String,
    /// What expired or was journalled since then is kept, as `2026-06-01T00:00:00Z`.
    #[arg(long, value_name = "TIME")]
    since: String,
    /// For the record: why.
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Release {
    #[command(flatten)]
    way: Way,
    /// The hold's name.
    name: String,
    /// For the record: why.
    #[arg(long)]
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
    fn alone(&self, id: &str, since: Option<UtcTime>, reason: &str) -> Result<String, Failure> {
        let config = self.config.load()?;
        let (id, reason, now) = (id.to_owned(), reason.to_owned(), SystemClock.now());
        match act::alone(&config, |context| Op::Hold(HoldAct { id, since, reason, context, now }))? {
            Done::Held(record) => Ok(record.to_string()),
            _ => Err(Failure::failed("the ledger answered another operation")),
        }
    }
}

impl Hold {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let since = UtcTime::parse(&self.since).map_err(|fault| Failure::unfit(format!("--since: {fault}")))?;
        let record = if self.way.offline {
            self.way.alone(&self.name, Some(since), &self.reason)?
        } else {
            let client = self.way.client.load()?;
            let millis = since.millis();
            let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or_default();
            let at = Timestamp { seconds: millis.div_euclid(1000), nanos };
            let request = SetHoldRequest { hold: self.name.clone(), since: Some(at), reason: self.reason };
            block_on(async {
                let done = gateway(&client).await?.set_hold(request).await;
                Ok(done.map_err(|status| Failure::refused(&status))?.into_inner().audit_record_id)
            })?
        };
        say!("what expired or was journalled since {since} is kept until the hold `{}` is released", self.name);
        say!("audit record {record}");
        Ok(())
    }
}

impl Release {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let record = if self.way.offline {
            self.way.alone(&self.name, None, &self.reason)?
        } else {
            let client = self.way.client.load()?;
            let request = ReleaseHoldRequest { hold: self.name.clone(), reason: self.reason };
            block_on(async {
                let done = gateway(&client).await?.release_hold(request).await;
                Ok(done.map_err(|status| Failure::refused(&status))?.into_inner().audit_record_id)
            })?
        };
        say!("the hold `{}` is released", self.name);
        say!("audit record {record}");
        Ok(())
    }
}
