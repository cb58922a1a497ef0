//! Quotes that are signed, retried, changed and too late, to show what comes of each. Their correlation ids stay in the
//! journal.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use tonic::{Request, Status, transport::Channel};
use uuid::Uuid;

use crate::{
    client::ClientFile,
    clock::UtcTime,
    domain::Kid,
    policy::{SequenceMode, contract::Contract},
    proto::{
        GetSequenceRequest, SignQuoteRequest, SignQuoteResponse, VerificationOutcome, VerifyQuoteRequest,
        quote_signing_service_client::QuoteSigningServiceClient,
    },
    review::golive::Facts,
    transport::edge::CORRELATION,
};

use super::{Failure, Here, offline::put};

/// A quote that has so long to live is signed at once.
const VALID: Duration = Duration::from_mins(5);

struct Probe<'p> {
    here: &'p Here<'p>,
    contract: &'p Contract,
    template: Map<String, Value>,
    gateway: QuoteSigningServiceClient<Channel>,
}

/// What was asked and what came of it.
struct Said {
    correlation_id: String,
    answer: Result<SignQuoteResponse, Status>,
}

pub(super) async fn run(
    here: &Here<'_>,
    client: &ClientFile,
    template: &[u8],
    active: Option<&Kid>,
    facts: &mut Facts,
) -> Result<(), Failure> {
    let unfit = |why: &str| Failure::unfit(format!("--quote: {why}"));
    let template: Map<String, Value> = serde_json::from_slice(template).map_err(|_| unfit("it is no JSON object"))?;
    let contract = here.bundle.contract_of(&template).ok_or_else(|| unfit("it keeps no contract of the bundle"))?;
    let gateway = QuoteSigningServiceClient::new(client.grpc().await.map_err(Failure::failed)?);
    let mut probe = Probe { here, contract, template, gateway };
    let quote = probe.quote(here.now).await?;
    let first = probe.sign(&quote).await;
    let signed = match &first.answer {
        Ok(signed) => signed.clone(),
        Err(status) => {
            put(facts, "probe.signed", false, told(&first, &reason(status)));
            return Ok(());
        }
    };
    put(facts, "probe.signed", true, told(&first, &format!("audit record {}", signed.audit_record_id)));
    form(&signed, active, facts);
    probe.recorded(&signed, facts)?;
    probe.verified(&signed, facts).await;
    let again = probe.sign(&quote).await;
    let is_same = |said: &Said| matches!(&said.answer, Ok(answer) if answer.replayed && answer.jws == signed.jws);
    put(facts, "probe.replay", is_same(&again), told(&again, "the same quote gave the same JWS, byte for byte"));
    let turned = probe.send(in_another_order(&quote)).await;
    put(
        facts,
        "probe.order",
        is_same(&turned),
        told(&turned, "members in another order, with spaces, gave the same JWS"),
    );
    let mut changed = quote.clone();
    changed.insert(contract.claims.subscription.clone(), json!("sub_golive_probe"));
    let conflict = probe.sign(&changed).await;
    refused(facts, "probe.conflict", &conflict, "QUOTE_CONFLICT");
    let late = probe.quote(here.now.minus(Duration::from_hours(1))).await?;
    let late = probe.sign(&late).await;
    refused(facts, "probe.expired", &late, "QUOTE_EXPIRED");
    let new = probe.quote(here.now).await?;
    let new = probe.sign(&new).await;
    let what = new.answer.as_ref().map_or_else(reason, |answer| format!("number {}", answer.sequence));
    put(facts, "probe.recovery", new.answer.is_ok(), told(&new, &what));
    Ok(())
}

fn told(said: &Said, what: &str) -> String {
    format!("{what} (correlation id {})", said.correlation_id)
}

fn reason(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().map_or_else(|| format!("{:?}", status.code()), |info| info.reason)
}

fn refused(facts: &mut Facts, name: &'static str, said: &Said, expected: &str) {
    let is = said.answer.as_ref().map_or_else(reason, |_| "it was signed".to_owned());
    put(facts, name, is == expected, told(said, &is));
}

/// The form of what was signed.
fn form(signed: &SignQuoteResponse, active: Option<&Kid>, facts: &mut Facts) {
    let parts: Vec<_> = signed.jws.split('.').collect();
    let header = parts.first().and_then(|header| URL_SAFE_NO_PAD.decode(header).ok());
    let header: Value = header.and_then(|header| serde_json::from_slice(&header).ok()).unwrap_or_default();
    let is_compact = parts.len() == 3 && header.get("alg") == Some(&json!("RS256"));
    put(facts, "probe.compact", is_compact, format!("three parts; header {header}"));
    let kid = header.get("kid").and_then(Value::as_str).unwrap_or_default();
    let is_active = active.is_some_and(|active| active.as_str() == kid);
    put(facts, "probe.kid", is_active, format!("the header's kid is `{kid}`"));
}

/// From last to first, with spaces between.
fn in_another_order(quote: &Map<String, Value>) -> Vec<u8> {
    let members: Vec<_> = quote.iter().rev().map(|(name, value)| format!(" {} : {value} ", json!(name))).collect();
    format!("{{{}}}", members.join(",\n")).into_bytes()
}

impl Probe<'_> {
    /// A new quote that is issued at this time, with the next number.
    async fn quote(&mut self, issued_at: UtcTime) -> Result<Map<String, Value>, Failure> {
        let claims = &self.contract.claims;
        let mut quote = self.template.clone();
        if let Some(id) = &claims.quote_id {
            quote.insert(id.clone(), json!(Uuid::now_v7().to_string()));
        }
        let second = |at: UtcTime| UtcTime::from_millis(at.millis() - at.millis().rem_euclid(1000)).to_string();
        quote.insert(claims.issued_at.clone(), json!(second(issued_at)));
        quote.insert(claims.expires_at.clone(), json!(second(issued_at.plus(VALID))));
        if self.here.partner.sequence.mode == SequenceMode::Assign {
            quote.remove(&claims.sequence);
            return Ok(quote);
        }
        let corridor = quote.get(&claims.corridor).and_then(Value::as_str).unwrap_or_default().to_owned();
        let corridor = if self.here.partner.numbers_by_corridor() { corridor } else { String::new() };
        let request = GetSequenceRequest { partner: self.here.partner.id.to_string(), corridor };
        let stands = self.gateway.get_sequence(request).await.map_err(|status| Failure::refused(&status))?;
        quote.insert(claims.sequence.clone(), json!(stands.into_inner().last.saturating_add(1)));
        Ok(quote)
    }

    async fn sign(&mut self, quote: &Map<String, Value>) -> Said {
        self.send(Value::Object(quote.clone()).to_string().into_bytes()).await
    }

    async fn send(&mut self, payload: Vec<u8>) -> Said {
        let correlation_id = format!("golive-{}", Uuid::now_v7());
        let environment = self.here.config.environment.to_string();
        let mut request = Request::new(SignQuoteRequest { environment, payload, ..SignQuoteRequest::default() });
        if let Ok(id) = correlation_id.parse() {
            request.metadata_mut().insert(CORRELATION, id);
        }
        request.set_timeout(Duration::from_secs(10));
        let answer = self.gateway.sign_quote(request).await.map(tonic::Response::into_inner);
        Said { correlation_id, answer }
    }

    async fn verified(&mut self, signed: &SignQuoteResponse, facts: &mut Facts) {
        let request = VerifyQuoteRequest { partner: self.here.partner.id.to_string(), jws: signed.jws.clone() };
        match self.gateway.verify_quote(request).await {
            Err(status) => put(facts, "probe.verified", false, reason(&status)),
            Ok(answer) => {
                let steps = answer.into_inner().steps;
                let passed = steps.iter().filter(|step| step.outcome() == VerificationOutcome::Passed).count();
                put(
                    facts,
                    "probe.verified",
                    passed == steps.len(),
                    format!("{passed} of {} steps passed", steps.len()),
                );
            }
        }
    }

    fn recorded(&self, signed: &SignQuoteResponse, facts: &mut Facts) -> Result<(), Failure> {
        let ledger = self.here.ledger;
        let id = &signed.audit_record_id;
        // The ledger's connection of its own runs where tasks do not.
        let found = std::thread::scope(|scope| {
            let read =
                scope.spawn(|| ledger.journal()?.record(&id.parse().unwrap_or_default()).map_err(Failure::failed));
            read.join().unwrap_or(Ok(None))
        });
        let found = found?.is_some();
        put(facts, "audit.record", found, format!("audit record {id}"));
        Ok(())
    }
}
