//! `quotesign halt` and `quotesign resume`: stop signing at once, and go on.

use clap::Args;
use tonic::Status;

use crate::proto::{HaltReach, HaltRequest, ResumeRequest, halt_reach};

use super::{
    ClientPath, Failure,
    admin::{Gateway, gateway},
    block_on,
    out::say,
};

/// A halt, or its end.
#[derive(Debug, Args)]
pub(super) struct Act {
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

/// What an act came to: its record, none where that is not durable yet, and whether nobody knows what was meant.
struct Done {
    record: String,
    unknown: bool,
}

impl Act {
    pub(super) fn halt(self) -> Result<(), Failure> {
        self.run(
            async |mut gateway, reach, reason| {
                let done = gateway.halt(HaltRequest { reach: Some(reach), reason }).await?.into_inner();
                Ok(Done { record: done.audit_record_id, unknown: done.unknown })
            },
            |text| format!("is halted {text}, on every gateway of this ledger, until `quotesign resume` of the same"),
        )
    }

    pub(super) fn resume(self) -> Result<(), Failure> {
        self.run(
            async |mut gateway, reach, reason| {
                let done = gateway.resume(ResumeRequest { reach: Some(reach), reason }).await?;
                Ok(Done { record: done.into_inner().audit_record_id, unknown: false })
            },
            |text| format!("is no longer halted {text}; `quotesign admin status` shows what else stands"),
        )
    }

    fn run(
        self,
        act: impl AsyncFnOnce(Gateway, HaltReach, String) -> Result<Done, Status>,
        told: impl FnOnce(String) -> String,
    ) -> Result<(), Failure> {
        let (client, (reach, text)) = (self.path.load()?, self.reach.reach());
        block_on(async {
            let done = act(gateway(&client).await?, reach, self.reason).await;
            let Done { record, unknown } = done.map_err(|status| Failure::refused(&status))?;
            if record.is_empty() {
                return Err(super::not_yet_durable(&format!("nothing more is released {text}"), unknown));
            }
            say!("signing {}", told(text.clone()));
            say!("audit record {record}");
            if unknown {
                return Err(super::misspelt(&format!("neither bundle nor ledger knows what is halted {text}")));
            }
            Ok(())
        })
    }
}
