//! Turns refusals into gRPC statuses with `google.rpc` details.

use std::{collections::HashMap, time::Duration};

use tonic::{
    Code, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{
    ledger::{self, LedgerError},
    pipeline::{refusal::Refusal, select::NoKey, validate::Invalid},
    proto::Reason,
};

/// The `domain` of every ErrorInfo.
pub const DOMAIN: &str = "quotesign.v1";

/// The gRPC code of each reason.
#[must_use]
pub fn code(reason: Reason) -> Code {
    Code::from_i32(answer(reason).number())
}

/// When gRPC's own retries come again; they know nothing of RetryInfo.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// The longest that they are to wait: beyond it their caller is told, who can do something else meanwhile.
const PUSHBACK_MAX: Duration = Duration::from_secs(2);

/// Nothing that can be read as a time ends them (gRFC A6).
fn pushback(wait: Duration) -> AsciiMetadataValue {
    if wait > PUSHBACK_MAX {
        return AsciiMetadataValue::from_static("-1");
    }
    AsciiMetadataValue::from(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}

pub use crate::pipeline::refusal::{answer, name};

/// A status of a reason and a message.
#[must_use]
pub fn plain(reason: Reason, message: impl Into<String>) -> Status {
    with(reason, message, HashMap::new(), ErrorDetails::new())
}

fn with(
    reason: Reason,
    message: impl Into<String>,
    metadata: HashMap<String, String>,
    mut details: ErrorDetails,
) -> Status {
    details.set_error_info(name(reason), DOMAIN, metadata);
    let mut trailers = MetadataMap::new();
    if let Some(wait) = details.retry_info().and_then(|info| info.retry_delay) {
        trailers.insert(PUSHBACK, pushback(wait));
    }
    Status::with_error_details_and_metadata(code(reason), message, details, trailers)
}

/// The status of a refusal of the quote's path.
#[must_use]
pub fn of(refusal: &Refusal) -> Status {
    if let Refusal::Told(refusal) = refusal {
        return of(refusal);
    }
    let mut details = ErrorDetails::new();
    if let Some(wait) = refusal.retry_after() {
        details.set_retry_info(Some(wait));
    }
    let mut metadata = HashMap::new();
    match refusal {
        Refusal::Invalid(Invalid::Violations(violations)) => {
            let fields = violations.iter().map(|fault| FieldViolation::new(&fault.pointer, &fault.reason));
            details.set_bad_request(fields.collect::<Vec<_>>());
        }
        Refusal::Exhausted(_) => {
            details.add_quota_failure_violation("attempts_per_caller", refusal.to_string());
        }
        Refusal::Ledger(LedgerError::Refused(refused)) => of_ledger(refused, &mut metadata, &mut details),
        Refusal::NoKey(NoKey::Waits(kid, _)) => {
            details.add_precondition_failure_violation("KEY", kid.as_str(), refusal.to_string());
        }
        Refusal::NoKey(NoKey::NoneActive(partner)) => {
            details.add_precondition_failure_violation("KEY", partner.as_str(), refusal.to_string());
        }
        _ => {}
    }
    with(refusal.reason(), message(refusal), metadata, details)
}

/// The status of a ledger's refusal outside the quote's path.
#[must_use]
pub fn of_ledger_error(error: LedgerError) -> Status {
    of(&Refusal::Ledger(error))
}

fn of_ledger(refused: &ledger::Refusal, metadata: &mut HashMap<String, String>, details: &mut ErrorDetails) {
    match refused {
        ledger::Refusal::NotMonotonic { given, last } => {
            metadata.insert("given".to_owned(), given.to_string());
            metadata.insert("last".to_owned(), last.to_string());
            details.add_precondition_failure_violation("SEQUENCE", "", refused.to_string());
        }
        ledger::Refusal::TooFarAhead { given, last, highest } => {
            metadata.insert("given".to_owned(), given.to_string());
            metadata.insert("last".to_owned(), last.to_string());
            metadata.insert("highest_acceptable".to_owned(), highest.to_string());
            details.add_precondition_failure_violation("SEQUENCE", "", refused.to_string());
        }
        ledger::Refusal::QuotaSpent { quota, .. } => {
            details.add_quota_failure_violation(quota, refused.to_string());
        }
        ledger::Refusal::Conflict { .. }
        | ledger::Refusal::UnknownScope
        | ledger::Refusal::Expired
        | ledger::Refusal::InputMismatch
        | ledger::Refusal::NotReserved
        | ledger::Refusal::KidRevoked { .. }
        | ledger::Refusal::KidWithdrawn { .. }
        | ledger::Refusal::Halted { .. }
        | ledger::Refusal::KidReused { .. }
        | ledger::Refusal::KidUnknown { .. }
        | ledger::Refusal::NoSuchHold { .. }
        | ledger::Refusal::HoldKeepsMore { .. }
        | ledger::Refusal::NotStopped { .. }
        | ledger::Refusal::Suspended
        | ledger::Refusal::FloorNotRaised { .. } => {}
    }
}

/// What the caller reads. The texts of backends stay in our own log; a caller learns what to do.
fn message(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Ledger(LedgerError::Refused(ledger::Refusal::Conflict { .. })) => {
            "this quote id is bound to another payload; issue the changed quote under a new id and number".to_owned()
        }
        Refusal::Ledger(LedgerError::Refused(ledger::Refusal::UnknownScope)) => {
            "this sequence was never seeded; an operator does that once with `quotesign admin seed-sequence`".to_owned()
        }
        Refusal::Ledger(LedgerError::Refused(ledger::Refusal::KidRevoked { .. })) => {
            "the key of this quote was revoked; issue the quote anew under a new id and number".to_owned()
        }
        Refusal::Ledger(LedgerError::Refused(ledger::Refusal::Halted { .. })) => {
            "signing is halted by the operators; send the same quote again when they have resumed it".to_owned()
        }
        Refusal::Ledger(LedgerError::Unavailable(_)) => {
            "the ledger cannot record at the moment; send the same quote again".to_owned()
        }
        Refusal::Ledger(LedgerError::Refused(ledger::Refusal::KidWithdrawn { .. })) => {
            "the key was revoked before it signed this quote; send the same quote again, for another key to sign it"
                .to_owned()
        }
        Refusal::Ledger(LedgerError::Refused(ledger::Refusal::NotReserved)) => {
            "another call came between; send the same quote again".to_owned()
        }
        Refusal::NoKey(NoKey::Revoked(_)) => {
            "the partner's key was revoked and no other may sign yet; the operators replace it".to_owned()
        }
        Refusal::Sign(_) | Refusal::NoKey(NoKey::NotServing(_)) => {
            "no device could sign in time; send the same quote again".to_owned()
        }
        Refusal::Verify(crate::pipeline::verify::VerifyError::Mismatch(_)) => {
            "the signature did not verify and was not released; the operators were alarmed".to_owned()
        }
        Refusal::Denied(_) => "policy does not let this caller sign this quote".to_owned(),
        _ => refusal.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_of_grpcs_own_wait_as_they_are_told_and_not_for_long() {
        for (wait, told) in [(0, "0"), (20, "20"), (2_000, "2000"), (2_001, "-1"), (86_400_000, "-1")] {
            assert_eq!(pushback(Duration::from_millis(wait)), told, "{wait}");
        }
    }

    /// Who is told to issue a quote anew gives up its number: only where nothing else helps.
    #[test]
    fn a_revoked_key_ends_what_it_signed_and_nothing_else() {
        let kid = || "quote-signing-a".parse().unwrap();
        let told =
            |refusal: Refusal| (name(refusal.reason()), refusal.is_retryable(), of(&refusal).message().to_owned());
        let refused = |refused| Refusal::Ledger(LedgerError::Refused(refused));
        let (reason, again, _) = told(refused(ledger::Refusal::KidRevoked { kid: kid() }));
        assert_eq!((reason, again), ("KEY_REVOKED", false));
        for refusal in [
            refused(ledger::Refusal::KidWithdrawn { kid: kid() }),
            refused(ledger::Refusal::NotReserved),
            Refusal::Verify(crate::pipeline::verify::VerifyError::KeyGone),
            Refusal::Sign(crate::signer::SignError::Full),
        ] {
            let (reason, again, message) = told(refusal);
            assert_eq!((reason, again), ("SIGNER_UNAVAILABLE", true));
            assert!(message.contains("send the same quote again"), "{message}");
        }
        let (reason, again, _) = told(Refusal::NoKey(NoKey::Revoked(kid())));
        assert_eq!((reason, again), ("NO_ACTIVE_KEY", false));
    }

    /// Every reason of the proto has a code, none of them OK, and a name without its prefix.
    #[test]
    fn every_reason_has_a_code_and_a_name() {
        let mut seen = 0;
        for number in 0.. {
            let Ok(reason) = Reason::try_from(number) else { break };
            assert_ne!(code(reason), Code::Ok);
            assert_ne!(code(reason), Code::Unknown);
            assert!(!name(reason).starts_with("REASON"));
            seen += 1;
        }
        assert_eq!(seen, 29);
    }
}
