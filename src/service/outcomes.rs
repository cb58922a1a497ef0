//! What a caller reports of the operator's answer to a quote.

use tonic::Status;

use crate::{
    audit::Facts,
    domain::{CorrelationId, QuoteId},
    outcomes::Outcome,
    proto::{QuoteOutcome, Reason, ReportQuoteOutcomeRequest},
};

use super::status;

/// The longest error code of the operator.
const CODE_BYTES_MAX: usize = 64;

/// A report that can be taken down.
pub(super) struct Reported {
    pub quote_id: QuoteId,
    pub outcome: Outcome,
    error_code: Option<String>,
    correlation_id: CorrelationId,
}

impl Reported {
    pub fn read(request: &ReportQuoteOutcomeRequest) -> Result<Self, Status> {
        let refuse = |text: String| status::plain(Reason::InvalidRequest, text);
        let fits = |code: &str| {
            (1..=CODE_BYTES_MAX).contains(&code.len())
                && code.chars().all(|character| character.is_ascii_alphanumeric() || "._-".contains(character))
        };
        let quote_id = request.quote_id.parse().map_err(|fault| refuse(format!("`quote_id`: {fault}")))?;
        let correlation_id = request.correlation_id.parse();
        let correlation_id = correlation_id.map_err(|fault| refuse(format!("`correlation_id`: {fault}")))?;
        let (outcome, error_code) = match (request.outcome(), request.error_code.as_str()) {
            (QuoteOutcome::Accepted, "") if !request.verification_failed => (Outcome::Accepted, None),
            (QuoteOutcome::Accepted, _) => {
                return Err(refuse(
                    "`error_code` and `verification_failed` go with a refusal; leave them out".to_owned(),
                ));
            }
            (QuoteOutcome::Refused, code) if fits(code) => {
                let outcome = if request.verification_failed { Outcome::Unverified } else { Outcome::Refused };
                (outcome, Some(code.to_owned()))
            }
            (QuoteOutcome::Refused, _) => {
                return Err(refuse("`error_code` must be 1 to 64 letters, digits, `.`, `_` or `-`".to_owned()));
            }
            (QuoteOutcome::Unspecified, _) => {
                return Err(refuse("`outcome` must be accepted or refused".to_owned()));
            }
        };
        Ok(Self { quote_id, outcome, error_code, correlation_id })
    }

    pub fn facts(&self) -> Facts {
        let detail = format!("{}; the operator's correlation id is {}", self.outcome.as_str(), self.correlation_id);
        Facts { detail: Some(detail), reason: self.error_code.clone(), ..Facts::default() }
    }
}
