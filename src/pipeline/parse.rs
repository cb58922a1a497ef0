//! Reads what the caller sent: the environment it means, and the payload as strict I-JSON.

use serde_json::{Map, Value};

use crate::{
    clock::UtcTime,
    domain::Environment,
    json::{self, Limits},
};

use super::attempts::Counted;

/// What a caller sends.
#[derive(Debug, Clone)]
pub struct QuoteRequest {
    /// The environment it means.
    pub environment: String,
    /// The quote.
    pub payload: Vec<u8>,
    /// The quote's id where its contract has no claim for it; otherwise empty or equal to the claim.
    pub quote_id: String,
    /// When the values shown to the customer were fixed, where the caller says so.
    pub values_fixed_at: Option<UtcTime>,
}

/// Why a request was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The request means another environment.
    #[error("this gateway is for {ours}; set `environment` to it or call another gateway")]
    Environment {
        /// The gateway's own.
        ours: Environment,
    },
    /// The payload is not strict I-JSON.
    #[error("the payload is not strict I-JSON: {0}")]
    Json(String),
}

/// A payload that was read.
#[derive(Debug)]
pub struct Parsed {
    /// The quote.
    quote: Map<String, Value>,
    beside: Beside,
}

/// What a request says beside the quote.
#[derive(Debug)]
pub struct Beside {
    /// The quote's id; may be empty.
    pub quote_id: String,
    /// When the values shown to the customer were fixed.
    pub values_fixed_at: Option<UtcTime>,
}

/// Reads a request.
///
/// # Errors
/// Where it means another environment, or its payload is not strict I-JSON within `limits`.
pub fn parse(
    _counted: Counted,
    request: QuoteRequest,
    environment: Environment,
    limits: &Limits,
) -> Result<Parsed, ParseError> {
    if request.environment != environment.as_str() {
        return Err(ParseError::Environment { ours: environment });
    }
    let quote = json::read_object(&request.payload, limits).map_err(ParseError::Json)?;
    let QuoteRequest { quote_id, values_fixed_at, .. } = request;
    Ok(Parsed { quote, beside: Beside { quote_id, values_fixed_at } })
}

impl Parsed {
    /// The quote as it was read; nothing of it is checked yet.
    pub(super) fn quote(&self) -> &Map<String, Value> {
        &self.quote
    }

    pub(super) fn taken(self) -> (Map<String, Value>, Beside) {
        (self.quote, self.beside)
    }
}
