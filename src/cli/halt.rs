//! `quotesign halt` and `quotesign resume`: stop signing at once, and go on.

use clap::Args;

use crate::proto::{HaltReach, HaltRequest, ResumeRequest, halt_reach};

use super::{ClientPath, Failure, admin::gateway, block_on, out::say};

#[derive(Debug, Args)]
pub(super) struct Halt {
    #[command(flatten)]
    path: ClientPath,
    #[command(flatten)]
    reach: ReachArgs,
    /// For the record: why.
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    path: ClientPath,
    #[command(flatten)]
    reach: ReachArgs,
    /// For the record: why.
    #[arg(long)]
    reason: String,
}

/// How far: exactly one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct ReachArgs {
    /// Everything that the gateway and all that share its ledger sign.
    #[arg(long)]
    all: bool,
    /// The quotes of one partner.
    #[arg(long)]
    partner: Option<String>,
    /// What one key would sign.
    #[arg(long)]
    kid: Option<String>,
}

impl ReachArgs {
    fn reach(self) -> (HaltReach, String) {
        let (to, text) = match (self.partner, self.kid) {
            (Some(partner), _) => (halt_reach::To::Partner(partner.clone()), format!("for the partner {partner}")),
            (None, Some(kid)) => (halt_reach::To::Kid(kid.clone()), format!("with the key {kid}")),
            (None, None) => (halt_reach::To::All(self.all), "altogether".to_owned()),
        };
        (HaltReach { to: Some(to) }, text)
    }
}

impl Halt {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (client, (reach, text)) = (self.path.load()?, self.reach.reach());
        block_on(async {
            let request = HaltRequest { reach: Some(reach), reason: self.reason };
            let done = gateway(&client).await?.halt(request).await.map_err(|status| Failure::refused(&status))?;
            say!("signing is halted {text}, on every gateway of this ledger, until `quotesign resume` of the same");
            say!("audit record {}", done.into_inner().audit_record_id);
            Ok(())
        })
    }
}

impl Resume {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (client, (reach, text)) = (self.path.load()?, self.reach.reach());
        block_on(async {
            let request = ResumeRequest { reach: Some(reach), reason: self.reason };
            let done = gateway(&client).await?.resume(request).await.map_err(|status| Failure::refused(&status))?;
            say!("signing is no longer halted {text}; `quotesign admin status` shows what else stands");
            say!("audit record {}", done.into_inner().audit_record_id);
            Ok(())
        })
    }
}
