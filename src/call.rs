//! What the transport knows of a call before any stage looks at it.

use std::time::Instant;

use crate::domain::{Caller, CorrelationId};

/// One call of an authenticated caller.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who calls.
    pub caller: Caller,
    /// The gRPC method, as `quotesign.v1.QuoteSigningService/SignQuote`.
    pub method: &'static str,
    /// Joins its log lines, records and answers.
    pub correlation_id: CorrelationId,
    /// When the caller ceases to wait.
    pub deadline: Instant,
}
