//! What goes wrong with AWS KMS, translated in one place. The text keeps the code and the request id, by which AWS
//! finds a request, and never the message: some messages repeat the request with its headers.

use std::{error::Error, fmt};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
};

use crate::signer::SignError;

/// Whose fault it is, and so what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The key cannot do what it is for. Nothing but an operator heals it.
    Unfit,
    /// KMS says that the key may not sign: disabled, to be deleted, gone, not allowed. A matter of this key alone.
    Refused,
    /// KMS failed at this request or has the key unavailable; it may work in a moment.
    Failed,
    /// The account asks for more than its quota.
    Throttled,
    /// No answer: the network, or a KMS that is down.
    Unreachable,
    /// Nobody, or nobody that AWS knows, is asking.
    Credentials,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    text: String,
    code: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Fault {
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), code: None }
    }

    pub(super) fn unfit(text: impl Into<String>) -> Self {
        Self::new(Kind::Unfit, text)
    }

    /// An answer that no KMS gives. It is worth another try, and counts.
    pub(super) fn nonsense(text: &str) -> Self {
        Self::new(Kind::Failed, format!("AWS KMS gave an answer that makes no sense: {text}"))
    }

    pub(super) fn no_answer(call: &str) -> Self {
        Self::new(Kind::Unreachable, format!("AWS KMS did not answer `{call}` in time"))
    }

    /// The code that AWS gave.
    pub(super) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Whether it will be the same with the next call, so that there is no use in making it.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self.kind, Kind::Unfit | Kind::Refused | Kind::Credentials)
    }

    /// Whether it says something of the device and not of one key.
    pub(super) fn is_of_device(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::Credentials)
    }

    /// What an order is told that met with it.
    pub(super) fn to_order(&self) -> SignError {
        match self.kind {
            Kind::Unfit => SignError::Unfit(self.text.clone()),
            Kind::Refused | Kind::Credentials => SignError::Unavailable(self.text.clone()),
            Kind::Failed | Kind::Unreachable => SignError::Lost(self.text.clone()),
            Kind::Throttled => SignError::Full,
        }
    }

    /// What an order is told that is not tried because of it.
    pub(super) fn to_order_refused(&self) -> SignError {
        match self.kind {
            Kind::Unfit => SignError::Unfit(self.text.clone()),
            _ => SignError::Unavailable(self.text.clone()),
        }
    }
}

/// The remedy where AWS does not know who asks.
const CREDENTIALS_REMEDY: &str = "give the process a web identity (`AWS_ROLE_ARN` and `AWS_WEB_IDENTITY_TOKEN_FILE`), \
    an instance's or task's role, or a profile (`AWS_PROFILE`)";

/// Translates what the SDK says. Some errors of KMS are typed and some, throttling among them, are not; the code is
/// there for all.
pub(super) fn translate<E>(call: &'static str, error: &SdkError<E>) -> Fault
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => Fault::no_answer(call),
        SdkError::ServiceError(answer) => match (answer.err().code(), answer.raw().status().as_u16()) {
            (None, status) if status < 400 => Fault::nonsense(&format!("HTTP status {status} to `{call}`")),
            (code, status) => of_code(call, code, status, RequestId::request_id(error)),
        },
        SdkError::DispatchFailure(failure) if failure.is_timeout() => Fault::no_answer(call),
        SdkError::ResponseError(answer) => {
            Fault::nonsense(&format!("HTTP status {} to `{call}`", answer.raw().status().as_u16()))
        }
        _ => cause::<CredentialsError>(error).map_or_else(|| unreachable(error), no_credentials),
    }
}

fn unreachable(error: &(dyn Error + 'static)) -> Fault {
    let text = format!("AWS KMS cannot be reached: {}; see the network and the endpoint", innermost(error));
    Fault::new(Kind::Unreachable, text)
}

/// Translates what came of looking for credentials.
pub(super) fn no_credentials(error: &CredentialsError) -> Fault {
    let why = match error {
        CredentialsError::CredentialsNotLoaded(_) => "there are none".to_owned(),
        CredentialsError::ProviderTimedOut(_) => "whoever gives them did not answer in time".to_owned(),
        _ => innermost(error),
    };
    Fault::new(Kind::Credentials, format!("no AWS credentials: {why}; {CREDENTIALS_REMEDY}"))
}

fn of_code(call: &str, code: Option<&str>, status: u16, request: Option<&str>) -> Fault {
    let allow = format!("; allow `kms:{call}` to the role, in IAM or in the key's policy");
    let (kind, fact, remedy) = match code.unwrap_or_default() {
        "InvalidKeyUsageException" | "UnsupportedOperationException" | "ValidationException" => {
            (Kind::Unfit, "AWS KMS does not do so with this key", "; generate an RSA key for SIGN_VERIFY")
        }
        "DisabledException" => (Kind::Refused, "the key is disabled", "; enable it with `aws kms enable-key`"),
        "KMSInvalidStateException" | "InvalidStateException" => {
            (Kind::Refused, "the key's state forbids it", "; see `aws kms describe-key`")
        }
        "NotFoundException" => (Kind::Refused, "AWS KMS has no such key", "; correct the locator in policy"),
        "AccessDeniedException" | "AccessDenied" => (Kind::Refused, "AWS does not allow it", allow.as_str()),
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "LimitExceededException"
        | "RequestLimitExceeded"
        | "RequestThrottledException"
        | "TooManyRequestsException" => (
            Kind::Throttled,
            "the account's quota is used up",
            "; have it raised or lower `requests_per_second` of the replicas",
        ),
        "ExpiredTokenException"
        | "ExpiredToken"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "MissingAuthenticationTokenException"
        | "IncompleteSignature"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "OptInRequired" => {
            (Kind::Credentials, "AWS refuses the credentials", "; see the role, the region and the clock")
        }
        "KeyUnavailableException" => (Kind::Failed, "AWS KMS has the key unavailable for the moment", ""),
        _ if status == 429 => (Kind::Throttled, "there are too many requests", "; see the endpoint"),
        _ => (Kind::Failed, "AWS KMS failed", ""),
    };
    let name = code.map_or_else(|| format!("HTTP status {status}"), printable);
    let id = request.map_or_else(String::new, |id| format!(", request {}", printable(id)));
    Fault { kind, text: format!("{fact} (`{call}`: {name}{id}){remedy}"), code: code.map(str::to_owned) }
}

/// What came from outside, short and without anything that could forge a log line.
fn printable(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(64).collect()
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

fn cause<'e, T: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e T> {
    chain(error).find_map(|cause| cause.downcast_ref())
}

/// The last link of the chain; the ones before it only say that there is one.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let text = chain(error).last().map_or_else(String::new, ToString::to_string);
    text.chars().filter(|char| !char.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_sorted_by_whose_fault_it_is() {
        for (code, kind) in [
            ("InvalidKeyUsageException", Kind::Unfit),
            ("UnsupportedOperationException", Kind::Unfit),
            ("ValidationException", Kind::Unfit),
            ("DisabledException", Kind::Refused),
            ("KMSInvalidStateException", Kind::Refused),
            ("NotFoundException", Kind::Refused),
            ("AccessDeniedException", Kind::Refused),
            ("ThrottlingException", Kind::Throttled),
            ("LimitExceededException", Kind::Throttled),
            ("ExpiredTokenException", Kind::Credentials),
            ("UnrecognizedClientException", Kind::Credentials),
            ("KeyUnavailableException", Kind::Failed),
            ("KMSInternalException", Kind::Failed),
            ("DependencyTimeoutException", Kind::Failed),
            ("SomethingNew", Kind::Failed),
        ] {
            let fault = of_code("Sign", Some(code), 400, Some("1a2b"));
            assert_eq!((fault.kind, fault.code()), (kind, Some(code)));
            let text = fault.to_string();
            assert!(text.contains(&format!(" (`Sign`: {code}, request 1a2b)")), "{text}");
        }
        assert_eq!(of_code("Sign", None, 502, None).kind, Kind::Failed);
        assert_eq!(of_code("Sign", None, 429, None).kind, Kind::Throttled);
    }

    #[test]
    fn what_comes_from_outside_cannot_forge_a_log_line() {
        let fault = of_code("Sign", Some("Bad\nlevel=error \u{1b}[0m"), 400, Some(&"9".repeat(500)));
        let text = fault.to_string();
        assert!(!text.contains('\n') && !text.contains('\u{1b}') && text.len() < 300, "{text}");
    }

    #[test]
    fn an_order_hears_whether_another_try_is_worth_it() {
        let told = |kind| Fault::new(kind, "why").to_order();
        assert_eq!(told(Kind::Unfit), SignError::Unfit("why".to_owned()));
        assert_eq!(told(Kind::Refused), SignError::Unavailable("why".to_owned()));
        assert_eq!(told(Kind::Failed), SignError::Lost("why".to_owned()));
        assert_eq!(told(Kind::Throttled), SignError::Full);
        assert_eq!(told(Kind::Unreachable), SignError::Lost("why".to_owned()));
        assert_eq!(told(Kind::Credentials), SignError::Unavailable("why".to_owned()));
        assert!(no_credentials(&CredentialsError::not_loaded("x")).to_string().contains("AWS_WEB_IDENTITY_TOKEN_FILE"));
    }
}
