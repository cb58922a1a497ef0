//! All the ways in which the path refuses, in one place, each with its stable reason.

use std::time::Duration;

use crate::{
    audit::Status,
    backlog::TooFarBehind,
    clock::ClockFault,
    ledger::{self, LedgerError},
    proto::Reason,
    signer::{SignError, turns::Busy},
};

use super::{
    attempts::Exhausted, authorize::Denied, canonicalise::NoCanonicalForm, commit::CommitError, parse::ParseError,
    select::NoKey, validate::Invalid, verify::VerifyError,
};

/// Why a quote was not signed, by the stage that refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Too many attempts.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// Not readable.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// Not valid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Not allowed.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No place.
    #[error(transparent)]
    Overloaded(#[from] Busy),
    /// No key.
    #[error(transparent)]
    NoKey(#[from] NoKey),
    /// The journal was not shipped for too long.
    #[error(transparent)]
    AuditLag(#[from] TooFarBehind),
    /// The ledger refused or failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The device failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The signature is not released.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The clock cannot be trusted.
    #[error(transparent)]
    Clock(#[from] ClockFault),
    /// A fault of the gateway.
    #[error(transparent)]
    NoCanonicalForm(#[from] NoCanonicalForm),
    /// As within, and journalled already.
    #[error(transparent)]
    Told(Box<Refusal>),
    /// The task that signs ended without an answer: a fault of the gateway.
    #[error("the signing task ended without an answer")]
    Torn,
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Ledger(error) => Self::Ledger(error),
            CommitError::Clock(fault) => Self::Clock(fault),
        }
    }
}

impl Refusal {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Told(refusal) => refusal.reason(),
            Self::Exhausted(_) => Reason::RateLimited,
            Self::Parse(ParseError::Environment { .. }) => Reason::EnvironmentMismatch,
            Self::Parse(ParseError::Json(_)) => Reason::MalformedJson,
            Self::Invalid(Invalid::Violations(_)) => Reason::SchemaViolation,
            Self::Invalid(Invalid::Expired) | Self::Verify(VerifyError::Expired) => Reason::QuoteExpired,
            Self::Denied(_) => Reason::PolicyDenied,
            Self::Overloaded(_) | Self::Ledger(LedgerError::Full) => Reason::Overloaded,
            Self::AuditLag(_) => Reason::AuditLag,
            Self::NoKey(NoKey::NoneActive(_) | NoKey::Waits(..) | NoKey::Revoked(_)) => Reason::NoActiveKey,
            Self::Ledger(LedgerError::Refused(refusal)) => reason_of(refusal),
            Self::Ledger(LedgerError::Unavailable(_)) => Reason::LedgerUnavailable,
            // A number is held by now, also where the device has no room; and another gateway has the key of a stored JWS.
            Self::NoKey(NoKey::NotServing(_))
            | Self::Verify(VerifyError::KeyGone)
            | Self::Sign(
                SignError::Full
                | SignError::Gone
                | SignError::TimedOut
                | SignError::Lost(_)
                | SignError::Unavailable(_)
                | SignError::Unfit(_),
            ) => Reason::SignerUnavailable,
            Self::Verify(VerifyError::Mismatch(_)) => Reason::SignatureMismatch,
            Self::Clock(_) | Self::Verify(VerifyError::Clock(_)) => Reason::ClockUntrusted,
            Self::NoCanonicalForm(_) | Self::Torn => Reason::Internal,
        }
    }

    /// Whether it says that the gateway or its device cannot do its part, which is for its operators to know.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(
            self.reason(),
            Reason::SignerUnavailable
                | Reason::LedgerUnavailable
                | Reason::ClockUntrusted
                | Reason::AuditLag
                | Reason::SignatureMismatch
                | Reason::Internal
        )
    }

    /// When to come again, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Exhausted(Exhausted { retry_after })
            | Self::Overloaded(Busy { retry_after })
            | Self::Ledger(LedgerError::Refused(ledger::Refusal::QuotaSpent { retry_after, .. })) => Some(*retry_after),
            _ => self.is_retryable().then_some(RETRY_AFTER),
        }
    }

    /// Whether the same quote may be sent again as it is.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        is_retryable(self.reason())
    }
}

/// Whether what was refused for this reason may be sent again as it is.
#[must_use]
pub fn is_retryable(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::RateLimited
            | Reason::Overloaded
            | Reason::SignerUnavailable
            | Reason::LedgerUnavailable
            | Reason::DeadlineExceeded
            | Reason::ClockUntrusted
            | Reason::AuditLag
            | Reason::SigningHalted
            | Reason::StreamEnded
            | Reason::Internal
    )
}

/// For what heals in a time that is not known.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The stable reason of a ledger's refusal.
#[must_use]
pub fn reason_of(refusal: &ledger::Refusal) -> Reason {
    match refusal {
        ledger::Refusal::Conflict { .. } => Reason::QuoteConflict,
        ledger::Refusal::NotMonotonic { .. } | ledger::Refusal::TooFarAhead { .. } => Reason::SequenceNotMonotonic,
        ledger::Refusal::NoSuchHold { .. }
        | ledger::Refusal::NotStopped { .. }
        | ledger::Refusal::KidUnknown { .. } => Reason::NotFound,
        ledger::Refusal::HoldKeepsMore { .. } => Reason::InvalidRequest,
        ledger::Refusal::UnknownScope => Reason::SequenceScopeUnknown,
        ledger::Refusal::QuotaSpent { .. } => Reason::RateLimited,
        ledger::Refusal::Expired => Reason::QuoteExpired,
        ledger::Refusal::FloorNotRaised { .. } => Reason::FloorNotRaised,
        ledger::Refusal::KidRevoked { .. } => Reason::KeyRevoked,
        // The same quote again is signed by another key, or by this call's rival.
        ledger::Refusal::KidWithdrawn { .. } | ledger::Refusal::NotReserved => Reason::SignerUnavailable,
        ledger::Refusal::Halted { .. } => Reason::SigningHalted,
        ledger::Refusal::Suspended => Reason::CallerSuspended,
        ledger::Refusal::KidReused { .. } => Reason::BundleRefused,
        ledger::Refusal::InputMismatch => Reason::Internal,
    }
}

/// The stable name of a reason, as ErrorInfo and records have it.
#[must_use]
pub fn name(reason: Reason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("REASON_").unwrap_or(name)
}

/// What a call is answered with for each reason.
#[must_use]
pub fn answer(reason: Reason) -> Status {
    match reason {
        Reason::CallerUnidentified => Status::Unauthenticated,
        Reason::RateLimited | Reason::Overloaded => Status::ResourceExhausted,
        Reason::InvalidRequest | Reason::MalformedJson | Reason::SchemaViolation => Status::InvalidArgument,
        Reason::PolicyDenied | Reason::CallerSuspended => Status::PermissionDenied,
        Reason::QuoteExpired
        | Reason::NoActiveKey
        | Reason::SequenceNotMonotonic
        | Reason::SequenceScopeUnknown
        | Reason::EnvironmentMismatch
        | Reason::BundleRefused
        | Reason::FloorNotRaised
        | Reason::KeyRevoked
        | Reason::SecondCallerNeeded => Status::FailedPrecondition,
        Reason::QuoteConflict => Status::AlreadyExists,
        Reason::SignerUnavailable
        | Reason::LedgerUnavailable
        | Reason::ClockUntrusted
        | Reason::SigningHalted
        | Reason::AuditLag
        | Reason::StreamEnded => Status::Unavailable,
        Reason::DeadlineExceeded => Status::DeadlineExceeded,
        Reason::NotFound => Status::NotFound,
        Reason::Unspecified | Reason::SignatureMismatch | Reason::Internal => Status::Internal,
    }
}
