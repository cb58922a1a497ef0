//! `quotesign health`.

use clap::Args;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{client::ClientFile, domain::Kid, service::health::SIGNING};

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
        let status = block_on(ask(&client, self.partner.as_deref()))?;
        say!("{}", status.as_str_name());
        if status == ServingStatus::Serving {
            Ok(())
        } else {
            Err(Failure::failed("the gateway cannot sign; `quotesign admin status` says why"))
        }
    }
}

/// Asks the gateway whether it can sign, for `partner` where one is given.
pub(super) async fn ask(client: &ClientFile, partner: Option<&str>) -> Result<ServingStatus, Failure> {
    of(client, partner.map_or_else(|| SIGNING.to_owned(), |partner| format!("{SIGNING}/{partner}"))).await
}

/// Asks the gateway whether this key can sign.
pub(super) async fn of_key(client: &ClientFile, kid: &Kid) -> Result<ServingStatus, Failure> {
    of(client, format!("key/{kid}")).await
}

async fn of(client: &ClientFile, service: String) -> Result<ServingStatus, Failure> {
    let channel = client.grpc().await.map_err(Failure::failed)?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await;
    Ok(answer.map_err(|status| Failure::refused(&status))?.into_inner().status())
}
