//! `QuoteSigningService`: sign, verify, and where a sequence stands.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::{
    audit::{Context, Event, Facts, Record},
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{Corridor, Environment, Malformed, SequenceNumber},
    jws::{self, Check, CompactJws},
    ledger,
    pipeline::{Pipeline, parse::QuoteRequest, refusal::Refusal},
    policy::Partner,
    proto::{self, Reason, quote_signing_service_server::QuoteSigningService},
};

use super::{access, status};

/// Serves callers.
pub struct Quotes {
    /// The path of a quote.
    pub pipeline: Arc<Pipeline>,
}

#[tonic::async_trait]
impl QuoteSigningService for Quotes {
    async fn sign_quote(
        &self,
        request: Request<proto::SignQuoteRequest>,
    ) -> Result<Response<proto::SignQuoteResponse>, Status> {
        let call = access::SIGN_QUOTE.call(&request)?;
        let proto::SignQuoteRequest { environment, payload, quote_id } = request.into_inner();
        let policy = self.pipeline.policy.load_full();
        let mut trail = access::trail(&call, self.pipeline.environment, &policy);
        let request = QuoteRequest { environment, payload, quote_id };
        match self.pipeline.sign_quote(&policy, &call, request, &mut trail).await {
            Ok(answer) => Ok(Response::new(proto::SignQuoteResponse {
                jws: answer.released.jws.as_str().to_owned(),
                kid: answer.released.kid.to_string(),
                sequence: answer.released.sequence.get(),
                payload_sha256: answer.released.payload.0.to_vec(),
                policy_digest: answer.policy.to_string(),
                replayed: answer.replayed,
                audit_record_id: answer.released.record.to_string(),
                expires_at: Some(timestamp(answer.released.expires_at)),
            })),
            Err(refusal) => {
                self.journal(trail, &refusal);
                Err(status::of(&refusal))
            }
        }
    }

    async fn verify_quote(
        &self,
        request: Request<proto::VerifyQuoteRequest>,
    ) -> Result<Response<proto::VerifyQuoteResponse>, Status> {
        let call = access::VERIFY_QUOTE.call(&request)?;
        let proto::VerifyQuoteRequest { partner, jws } = request.into_inner();
        let policy = self.pipeline.policy.load();
        let (partner, _) = access::VERIFY_QUOTE.with_partner(&self.pipeline, &policy, &call, &partner)?;
        let jws = CompactJws::from_text(jws);
        let now = SystemClock.now();
        let outcome = jws::verify(&jws, |kid| {
            policy.timeline.published(&partner.id, now).find(|key| key.kid == *kid).map(|key| &*key.public)
        });
        let kid = jws::kid_of(&jws).map(|kid| kid.to_string()).unwrap_or_default();
        let failed = outcome.as_ref().err();
        Ok(Response::new(proto::VerifyQuoteResponse { valid: failed.is_none(), checks: checks(failed), kid }))
    }

    async fn get_sequence(
        &self,
        request: Request<proto::GetSequenceRequest>,
    ) -> Result<Response<proto::GetSequenceResponse>, Status> {
        let call = access::GET_SEQUENCE.call(&request)?;
        let proto::GetSequenceRequest { partner, corridor } = request.into_inner();
        let policy = self.pipeline.policy.load_full();
        let (partner, _) = access::GET_SEQUENCE.with_partner(&self.pipeline, &policy, &call, &partner)?;
        let corridor = corridor_of(partner, &corridor)?;
        let scope = policy.scope(partner, corridor.as_ref());
        let last = self.pipeline.ledger.last_taken(scope).await.map_err(status::of_ledger_error)?;
        let seeds_itself = policy.environment == Environment::Development;
        let last = last
            .or(seeds_itself.then_some(SequenceNumber::ZERO))
            .ok_or_else(|| status::of_ledger_error(ledger::LedgerError::Refused(ledger::Refusal::UnknownScope)))?;
        Ok(Response::new(proto::GetSequenceResponse {
            last: last.get(),
            highest_acceptable: last.ahead(partner.sequence.jump_max).get(),
            server_time: Some(timestamp(SystemClock.now())),
        }))
    }
}

impl Quotes {
    /// Journals a refusal; it joins the next batch and never holds the answer up.
    fn journal(&self, trail: Context, refusal: &Refusal) {
        if matches!(refusal, Refusal::Verify(_) | Refusal::Torn | Refusal::NoCanonicalForm(_)) {
            tracing::error!(correlation_id = %trail.correlation_id, %refusal, "alarm: a quote could not be released");
        } else if refusal.is_retryable() {
            tracing::warn!(correlation_id = %trail.correlation_id, %refusal, "a quote was refused");
        }
        let facts = Facts {
            reason: Some(status::name(refusal.reason()).to_owned()),
            detail: Some(refusal.to_string()),
            ..Facts::default()
        };
        self.pipeline.ledger.journal(Record::new(Event::Refused, SystemClock.now(), trail, facts));
    }
}

fn checks(failed: Option<&jws::Unverified>) -> Vec<proto::VerificationCheck> {
    let mut checks = Vec::new();
    for check in Check::ALL {
        let fault = failed.filter(|fault| fault.check == check);
        let detail = fault.map_or("", |fault| fault.detail).to_owned();
        checks.push(proto::VerificationCheck { name: check.name().to_owned(), passed: fault.is_none(), detail });
        if fault.is_some() {
            break;
        }
    }
    checks
}

/// The corridor of a request: named exactly where the partner's sequences are told apart by it.
pub(super) fn corridor_of(partner: &Partner, text: &str) -> Result<Option<Corridor>, Status> {
    let refuse = |why: String| status::plain(Reason::InvalidRequest, format!("`corridor`: {why}"));
    match (partner.numbers_by_corridor(), text) {
        (false, "") => Ok(None),
        (false, _) => Err(refuse("this partner has one sequence for all corridors; leave it empty".to_owned())),
        (true, text) => text.parse().map(Some).map_err(|fault: Malformed| refuse(fault.to_string())),
    }
}

pub(super) fn timestamp(at: UtcTime) -> prost_types::Timestamp {
    let (seconds, millis) = (at.millis().div_euclid(1000), at.millis().rem_euclid(1000));
    prost_types::Timestamp { seconds, nanos: i32::try_from(millis * 1_000_000).unwrap_or(0) }
}
