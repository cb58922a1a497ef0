//! What the transport knows of a call before any stage looks at it.

mod course;
mod trace;
mod turn;

pub use course::{Course, Stage};
pub use trace::{Parent, Sampler, Trace};
pub use turn::{Line, Turn};

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::domain::{Caller, CorrelationId, PartnerId, QuoteId};

/// One call of an authenticated caller, or one quote of a stream.
#[derive(Debug)]
pub struct Call {
    /// Who calls.
    pub caller: Caller,
    /// The gRPC method, as `quotesign.v1.QuoteSigningService/SignQuote`.
    pub method: &'static str,
    /// Joins its log lines, records and answers.
    pub correlation_id: CorrelationId,
    /// When the caller ceases to wait.
    pub deadline: Instant,
    /// What it turned out to be about, for its line in the access log.
    pub subject: Arc<OnceLock<Subject>>,
    /// When its stages ran.
    pub course: Arc<Course>,
    /// Its place in a trace, where it has one.
    pub trace: Option<Trace>,
    /// Its turn among the quotes of a stream, where it is one.
    pub turn: Option<Turn>,
    /// Whether the journal has how it ended.
    pub journalled: Journalled,
}

impl Call {
    /// A call that belongs to no trace.
    #[must_use]
    pub fn new(caller: Caller, method: &'static str, within: Duration) -> Self {
        let now = Instant::now();
        Self {
            caller,
            method,
            correlation_id: CorrelationId::made(),
            deadline: now + within,
            subject: Arc::default(),
            course: Arc::new(Course::new(now)),
            trace: None,
            turn: None,
            journalled: Journalled::default(),
        }
    }
}

/// Whether the journal has how a call ended: whoever decides it says so, and the edge has the rest journalled.
#[derive(Debug, Clone, Default)]
pub struct Journalled(Arc<AtomicBool>);

impl Journalled {
    /// It has.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a call is about, as far as that was learnt before it ended.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// The partner.
    pub partner: Option<PartnerId>,
    /// The quote.
    pub quote_id: Option<QuoteId>,
}
