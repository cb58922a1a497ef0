//! `QuoteSigningService`: sign, verify, and where a sequence stands.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    audit::{self, Event, Facts, Record},
    call::Call,
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{Corridor, Environment, Identity, Malformed, SequenceNumber},
    jws::CompactJws,
    ledger,
    pipeline::{Pipeline, parse::QuoteRequest},
    policy::{Bundle, Partner},
    proto::{self, Reason, quote_signing_service_server::QuoteSigningService},
    telemetry::Metrics,
    verification::{self, Binding, Evidence, Finding, Report},
};

use super::{access, outcomes, status};

mod stream;
mod window;

use stream::QuoteStream;
pub use window::Windows;

/// Serves callers.
pub struct Quotes {
    /// The path of a quote.
    pub pipeline: Arc<Pipeline>,
    /// Where it is counted what was found of quotes.
    pub metrics: Arc<Metrics>,
    /// How many quotes of streams may be under way.
    pub windows: Windows,
}

/// What a request is told that cannot be read: that is an attempt as any other.
async fn attempted(pipeline: &Pipeline, call: &Call, unread: Status) -> Status {
    let policy = pipeline.policy.load_full();
    pipeline.attempt(&policy, call).await.err().map_or(unread, |refusal| status::of(&refusal))
}

/// Signs the quote of one call, or of one place in a stream.
async fn sign(
    pipeline: &Arc<Pipeline>,
    call: &Call,
    request: proto::SignQuoteRequest,
) -> Result<proto::SignQuoteResponse, Status> {
    let proto::SignQuoteRequest { environment, payload, quote_id, values_fixed_at } = request;
    let policy = pipeline.policy.load_full();
    let values_fixed_at = match values_fixed_at.map(|at| instant("values_fixed_at", at)).transpose() {
        Ok(values_fixed_at) => values_fixed_at,
        Err(unread) => return Err(attempted(pipeline, call, unread).await),
    };
    let mut trail = access::trail(call, pipeline.environment, &policy);
    let request = QuoteRequest { environment, payload, quote_id, values_fixed_at };
    let signed = pipeline.sign_quote(&policy, call, request, &mut trail).await;
    match signed {
        Ok(answer) => Ok(proto::SignQuoteResponse {
            jws: answer.released.jws.as_str().to_owned(),
            kid: answer.released.kid.to_string(),
            sequence: answer.released.sequence.get(),
            payload_sha256: answer.released.payload.0.to_vec(),
            policy_digest: answer.policy.to_string(),
            replayed: answer.replayed,
            audit_record_id: answer.released.record.to_string(),
            expires_at: Some(proto::timestamp(answer.released.expires_at)),
        }),
        Err(refusal) => {
            call.journalled.set();
            pipeline.journal_refusal(trail, &refusal);
            Err(status::of(&refusal))
        }
    }
}

#[tonic::async_trait]
impl QuoteSigningService for Quotes {
    async fn sign_quote(
        &self,
        request: Request<proto::SignQuoteRequest>,
    ) -> Result<Response<proto::SignQuoteResponse>, Status> {
        let call = access::SIGN_QUOTE.call(&request)?;
        sign(&self.pipeline, &call, request.into_inner()).await.map(Response::new)
    }

    type SignQuotesStream = ReceiverStream<Result<proto::SignQuotesResponse, Status>>;

    async fn sign_quotes(
        &self,
        request: Request<Streaming<proto::SignQuotesRequest>>,
    ) -> Result<Response<Self::SignQuotesStream>, Status> {
        let stream = QuoteStream::begin(self.pipeline.clone(), &self.metrics, &self.windows, &request).await?;
        let (answers, answered) = mpsc::channel(self.windows.stream());
        tokio::spawn(stream.run(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(answered)))
    }

    async fn verify_quote(
        &self,
        request: Request<proto::VerifyQuoteRequest>,
    ) -> Result<Response<proto::VerifyQuoteResponse>, Status> {
        let call = access::VERIFY_QUOTE.call(&request)?;
        let proto::VerifyQuoteRequest { partner, jws } = request.into_inner();
        let policy = self.pipeline.policy.load_full();
        let (partner, _) = access::VERIFY_QUOTE.with_partner(&self.pipeline, &policy, &call, &partner)?;
        self.pipeline.knows_revocations().map_err(status::of_ledger_error)?;
        let now = self.pipeline.clock.now().map_err(|fault| status::of(&fault.into()))?;
        let standings = self.pipeline.standings();
        let report = {
            let evidence = Evidence {
                key: &|kid| {
                    let mut published = policy.timeline.published(&partner.id, now, |kid| standings.of(kid));
                    published.find(|key| key.kid == *kid).map(|key| &*key.public)
                },
                partner: Some(&partner.id),
                contract: &|quote| policy.contract_of(quote).map(Arc::as_ref),
                now,
            };
            verification::verify(&CompactJws::from_text(jws), &evidence)
        };
        let binding = self.binding(&policy, &report).await?;
        let report = report.bound(binding.as_ref());
        self.metrics.verification(partner.id.as_str(), report.is_valid());
        if let Some((step, _)) = report.findings().iter().find(|(_, finding)| matches!(finding, Finding::Failed(_))) {
            // Of the JWS itself nothing: it is the caller's own text.
            let (id, caller, step) = (&call.correlation_id, &call.caller, step.name());
            tracing::info!(correlation_id = %id, %caller, partner = %partner.id, step, "a quote that was presented is not valid");
        }
        Ok(Response::new(proto::VerifyQuoteResponse {
            valid: report.is_valid(),
            steps: report.findings().iter().map(|(step, finding)| told(*step, finding)).collect(),
            kid: report.kid.map(|kid| kid.to_string()).unwrap_or_default(),
        }))
    }

    async fn report_quote_outcome(
        &self,
        request: Request<proto::ReportQuoteOutcomeRequest>,
    ) -> Result<Response<proto::ReportQuoteOutcomeResponse>, Status> {
        let call = access::REPORT_QUOTE_OUTCOME.call(&request)?;
        self.take_outcome(&call, request.into_inner()).await.map(Response::new)
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
            server_time: Some(proto::timestamp(SystemClock.now())),
        }))
    }
}

impl Quotes {
    /// Takes down what the operator's API said of a quote that this ledger holds.
    async fn take_outcome(
        &self,
        call: &Call,
        request: proto::ReportQuoteOutcomeRequest,
    ) -> Result<proto::ReportQuoteOutcomeResponse, Status> {
        let rpc = access::REPORT_QUOTE_OUTCOME;
        let policy = self.pipeline.policy.load_full();
        let (partner, verdict) = rpc.with_partner(&self.pipeline, &policy, call, &request.partner)?;
        let reported = outcomes::Reported::read(&request)?;
        let identity = Identity::new(self.pipeline.environment, &partner.id, &reported.quote_id);
        let quote = self.pipeline.ledger.quote(identity).await.map_err(status::of_ledger_error)?;
        let signed = quote.filter(|quote| quote.released().is_some());
        let quote = signed.ok_or_else(|| status::plain(Reason::NotFound, "no quote of this id was signed"))?;
        let now = SystemClock.now();
        let record = Record::new(
            Event::OutcomeReported,
            now,
            audit::Context {
                partner: Some(partner.id.clone()),
                quote_id: Some(reported.quote_id.clone()),
                rule_ids: verdict.rule_ids,
                ..access::trail(call, self.pipeline.environment, &policy)
            },
            Facts {
                kid: Some(quote.kid.clone()),
                sequence: Some(quote.sequence),
                status: Some(audit::Status::Ok),
                ..reported.facts()
            },
        );
        let id = record.id;
        self.pipeline.ledger.record(record).await.map_err(status::of_ledger_error)?;
        self.pipeline.outcomes.reported(&quote.kid, &reported.quote_id, reported.outcome, now);
        Ok(proto::ReportQuoteOutcomeResponse { kid: quote.kid.to_string(), audit_record_id: id.to_string() })
    }

    /// What the ledger binds to the number of a verified payload. Asked by the number, which every contract has.
    async fn binding(&self, policy: &Bundle, report: &Report) -> Result<Option<Binding>, Status> {
        let Some(payload) = &report.payload else { return Ok(None) };
        let numbered = policy.contract_of(payload).and_then(|contract| {
            let claims = &contract.claims;
            let partner = policy.partner_of(payload, &claims.partner)?;
            let corridor = payload.get(&claims.corridor)?.as_str()?.parse().ok()?;
            let sequence = payload.get(&claims.sequence)?.as_u64()?.try_into().ok()?;
            Some((policy.scope(partner, Some(&corridor)), sequence))
        });
        let Some((scope, sequence)) = numbered else { return Ok(None) };
        let quote = self.pipeline.ledger.numbered(scope, sequence).await.map_err(status::of_ledger_error)?;
        Ok(quote.map(|quote| Binding { sequence: quote.sequence, input: quote.input }))
    }
}

fn told(step: verification::Step, finding: &Finding) -> proto::VerificationStep {
    let (outcome, detail) = match finding {
        Finding::Passed => (proto::VerificationOutcome::Passed, String::new()),
        Finding::Failed(why) => (proto::VerificationOutcome::Failed, why.clone()),
        Finding::NotChecked(why) => (proto::VerificationOutcome::NotChecked, (*why).to_owned()),
    };
    proto::VerificationStep { name: step.name().to_owned(), outcome: outcome.into(), detail }
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

/// An instant of a request, to the millisecond.
pub(super) fn instant(field: &str, at: prost_types::Timestamp) -> Result<UtcTime, Status> {
    proto::instant(at).ok_or_else(|| status::plain(Reason::InvalidRequest, format!("`{field}` is no instant; mend it")))
}
