//! `quotesign sign`.

use std::{fs, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use serde_json::json;
use tonic::{Code, Request, transport::Channel};

use crate::{
    client::ClientFile,
    clock::UtcTime,
    proto::{
        GetSequenceRequest, SignQuoteRequest, SignQuoteResponse,
        quote_signing_service_client::QuoteSigningServiceClient, timestamp,
    },
};

use super::{ClientPath, Failure, block_on, dev::write_private, out::say};

mod template;

pub(super) use template::{Template, this_second};

#[derive(Debug, Args)]
pub(super) struct Sign {
    #[command(flatten)]
    path: ClientPath,
    /// The quote: one JSON object.
    file: PathBuf,
    /// Fill in what an example cannot keep: a fresh quote id, times from now, and the next sequence number as the
    /// gateway tells it. For quotes of the shipped contract. Where the gateway gives the numbers, leave `quote_sequence` out of
    /// the file: none is filled in then.
    #[arg(long)]
    fill: bool,
    /// Write the quote that was sent to this file, so that it can be sent again.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// The quote's id, where its contract names no claim for it.
    #[arg(long, default_value = "")]
    quote_id: String,
    /// When the values shown to the customer were fixed, as `2026-06-01T12:00:00Z`. Policy can require it.
    #[arg(long, value_name = "TIME")]
    values_fixed_at: Option<String>,
    /// How long to wait, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    deadline_ms: u64,
    /// What to print: the JWS alone, or everything.
    #[arg(long, value_enum, default_value_t = Format::Jws)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Jws,
    Json,
}

impl Sign {
    pub(super) fn run(self) -> Result<(), Failure> {
        let client = self.path.load()?;
        let named = |fault| Failure::unfit(format!("{}: {fault}", self.file.display()));
        let mut payload = fs::read(&self.file).map_err(named)?;
        block_on(async {
            let channel = client.grpc().await.map_err(Failure::failed)?;
            let mut gateway = QuoteSigningServiceClient::new(channel);
            if self.fill {
                payload = fill(&payload, &mut gateway).await?;
            }
            if let Some(path) = &self.save {
                write_private(path, &payload)?;
            }
            let signed = self.send(&client, payload, &mut gateway).await?;
            self.print(&signed);
            Ok(())
        })
    }

    async fn send(
        &self,
        client: &ClientFile,
        payload: Vec<u8>,
        gateway: &mut QuoteSigningServiceClient<Channel>,
    ) -> Result<SignQuoteResponse, Failure> {
        let environment = client.environment.to_string();
        let mut request = Request::new(SignQuoteRequest {
            environment,
            payload,
            quote_id: self.quote_id.clone(),
            values_fixed_at: self.fixed_at()?,
        });
        request.set_timeout(Duration::from_millis(self.deadline_ms));
        Ok(gateway.sign_quote(request).await.map_err(|status| Failure::refused(&status))?.into_inner())
    }

    fn fixed_at(&self) -> Result<Option<prost_types::Timestamp>, Failure> {
        let read = |text: &String| {
            let at = UtcTime::parse(text).map_err(|fault| Failure::unfit(format!("--values-fixed-at: {fault}")))?;
            Ok(timestamp(at))
        };
        self.values_fixed_at.as_ref().map(read).transpose()
    }

    fn print(&self, signed: &SignQuoteResponse) {
        match self.format {
            Format::Jws => say!("{}", signed.jws),
            Format::Json => {
                let all = json!({
                    "jws": signed.jws,
                    "kid": signed.kid,
                    "sequence": signed.sequence,
                    "payload_sha256": hex::encode(&signed.payload_sha256),
                    "policy_digest": signed.policy_digest,
                    "replayed": signed.replayed,
                    "audit_record_id": signed.audit_record_id,
                    "expires_at": signed.expires_at.map(|at| UtcTime::from_millis(at.seconds * 1000 + i64::from(at.nanos) / 1_000_000).to_string()),
                });
                say!("{all:#}");
            }
        }
    }
}

/// Fills in the claims of the shipped contract that go stale. The quote keeps its length of validity, and one without a number stays so.
async fn fill(payload: &[u8], gateway: &mut QuoteSigningServiceClient<Channel>) -> Result<Vec<u8>, Failure> {
    let template = Template::read(payload).map_err(|fault| Failure::unfit(format!("--fill: {fault}")))?;
    let next = if template.has_number() { Some(last(&template, gateway).await? + 1) } else { None };
    let quote = template.fill(&uuid::Uuid::now_v7().to_string(), next, this_second());
    serde_json::to_vec_pretty(&quote).map_err(Failure::failed)
}

/// The last number that was taken, of the partner or, where its sequences are by corridor, of the quote's: policy says which, and the
/// gateway has it.
async fn last(template: &Template, gateway: &mut QuoteSigningServiceClient<Channel>) -> Result<u64, Failure> {
    let ask = |corridor: &str| {
        let (partner, corridor) = (template.partner().to_owned(), corridor.to_owned());
        let mut request = Request::new(GetSequenceRequest { partner, corridor });
        request.set_timeout(Duration::from_secs(10));
        request
    };
    let mut answer = gateway.get_sequence(ask("")).await;
    if answer.as_ref().is_err_and(|status| status.code() == Code::InvalidArgument) && !template.corridor().is_empty() {
        answer = gateway.get_sequence(ask(template.corridor())).await;
    }
    Ok(answer.map_err(|status| Failure::refused(&status))?.into_inner().last)
}
