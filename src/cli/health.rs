//! `quotesign health`.

use clap::Args;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::service::health::SIGNING;

use super::{ClientPath, Failure, block_on, out::say};

#[derive(Debug, Args)]
pub(super) struct Health {
    #[command(flatten)]
    path: ClientPath,
    /// Ask for this partner's share alone.
    #[arg(long)]
    partner: Option<String>,
}

impl Health {
    pub(super) fn run(self) -> Result<(), Failure> {
        let client = self.path.load()?;
        block_on(async {
            let channel = client.grpc().await.map_err(Failure::failed)?;
            let service = self.partner.map_or_else(|| SIGNING.to_owned(), |partner| format!("{SIGNING}/{partner}"));
            let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await;
            let status = answer.map_err(|status| Failure::refused(&status))?.into_inner().status();
            say!("{}", status.as_str_name());
            if status == ServingStatus::Serving {
                Ok(())
            } else {
                Err(Failure::failed("the gateway cannot sign; `quotesign admin status` says why"))
            }
        })
    }
}
