//! `quotesign admin`: an operator's acts on a running gateway.

use clap::{Args, Subcommand};
use tonic::transport::Channel;

use crate::{
    client::ClientFile,
    domain::Environment,
    proto::{
        GetStatusRequest, Hold, ReloadPolicyRequest, SeedSequenceRequest, admin_service_client::AdminServiceClient,
        text_of,
    },
};

use super::{ClientPath, Failure, block_on, jwks::partner_of, out::say};

#[derive(Debug, Subcommand)]
pub(super) enum AdminCommand {
    /// What the gateway is and how each part of it fares.
    Status(Reach),
    /// Create a sequence with a floor, or raise its floor. Production needs this once before the first quote.
    SeedSequence(SeedSequence),
    /// Have the gateway read its policy bundle again.
    ReloadPolicy(Reach),
}

#[derive(Debug, Args)]
pub(super) struct Reach {
    #[command(flatten)]
    path: ClientPath,
}

#[derive(Debug, Args)]
pub(super) struct SeedSequence {
    #[command(flatten)]
    path: ClientPath,
    /// The partner; the client file's own where it is not given.
    #[arg(long)]
    partner: Option<String>,
    /// The corridor, where policy tells the partner's sequences apart by it.
    #[arg(long, default_value = "")]
    corridor: String,
    /// The last number that counts as taken: the first quote must carry a greater one.
    #[arg(long)]
    floor: u64,
    /// For the record: why.
    #[arg(long)]
    reason: String,
}

pub(super) type Gateway = AdminServiceClient<Channel>;

/// The operator's side of a running gateway.
pub(super) async fn gateway(client: &ClientFile) -> Result<Gateway, Failure> {
    client.admin().await.map(Gateway::new).map_err(Failure::failed)
}

impl AdminCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let path = match &self {
            Self::Status(reach) | Self::ReloadPolicy(reach) => &reach.path,
            Self::SeedSequence(seed) => &seed.path,
        };
        let client = path.load()?;
        block_on(async {
            let gateway = gateway(&client).await?;
            match self {
                Self::Status(_) => status(gateway).await,
                Self::ReloadPolicy(_) => reload(gateway).await,
                Self::SeedSequence(seed) => {
                    let partner = partner_of(&client, seed.partner.as_deref())?.to_string();
                    let SeedSequence { corridor, floor, reason, .. } = seed;
                    seeded(gateway, SeedSequenceRequest { partner, corridor, floor, reason }).await
                }
            }
        })
    }
}

async fn status(mut gateway: Gateway) -> Result<(), Failure> {
    let status =
        gateway.get_status(GetStatusRequest {}).await.map_err(|status| Failure::refused(&status))?.into_inner();
    let environment =
        if status.environment == Environment::Production.as_str() { "PRODUCTION" } else { &status.environment };
    say!("quotesign {} for {environment}", status.version);
    say!("policy serial {}, digest {}", status.policy_serial, status.policy_digest);
    if !status.last_reload_error.is_empty() {
        say!("the newest reload was refused: {}", status.last_reload_error);
    }
    for stop in status.stops {
        say!("STOPPED     {stop}");
    }
    match status.holds {
        Some(held) => {
            for Hold { hold, since } in held.holds {
                say!("held        {hold}: nothing is pruned that expired or was journalled since {}", text_of(since));
            }
        }
        None => say!(
            "held        the gateway did not tell: its ledger did not answer within a second, or it is of an older release"
        ),
    }
    for replica in status.replicas.iter().filter(|replica| !replica.name.is_empty()) {
        let vote = if replica.no_vote.is_empty() { String::new() } else { format!(", no vote: {}", replica.no_vote) };
        say!(
            "gateway     {} with policy serial {}, seen {} ms ago{vote}",
            replica.name,
            replica.policy_serial,
            replica.seen_ms_ago
        );
    }
    for part in status.components {
        say!(
            "{:<11} {}{}",
            if part.serving { "serving" } else { "NOT SERVING" },
            part.name,
            if part.detail.is_empty() { String::new() } else { format!(": {}", part.detail) }
        );
    }
    Ok(())
}

async fn reload(mut gateway: Gateway) -> Result<(), Failure> {
    let done =
        gateway.reload_policy(ReloadPolicyRequest {}).await.map_err(|status| Failure::refused(&status))?.into_inner();
    say!("policy serial {}, digest {}", done.policy_serial, done.policy_digest);
    say!("before {}", done.previous_digest);
    say!("audit record {}", done.audit_record_id);
    Ok(())
}

async fn seeded(mut gateway: Gateway, request: SeedSequenceRequest) -> Result<(), Failure> {
    let floor = request.floor;
    let done = gateway.seed_sequence(request).await.map_err(|status| Failure::refused(&status))?.into_inner();
    match done.previous {
        None => say!("the sequence was created with the floor {floor}"),
        Some(previous) => say!("the floor was raised from {previous} to {floor}"),
    }
    say!("audit record {}", done.audit_record_id);
    Ok(())
}
