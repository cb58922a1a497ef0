//! What the fuzz targets share: the shipped bundle, a fixed time, and a quote on its way through the first stages.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use quotesign::{
    audit::Context,
    call::Call,
    clock::UtcTime,
    domain::Environment,
    json::Limits,
    pipeline::{
        attempts::{Attempts, count},
        authorize::authorize,
        canonicalise::{Canonical, canonicalise},
        parse::{ParseError, Parsed, QuoteRequest, parse},
        validate::{Invalid, Valid, validate},
    },
    policy::{Bundle, shipped},
};

/// The gateway's own bounds, as its config has them by itself.
pub const LIMITS: Limits = Limits { payload_bytes_max: 16 << 10, depth_max: 8, nodes_max: 256 };

/// The shipped bundle.
pub static POLICY: LazyLock<Arc<Bundle>> =
    LazyLock::new(|| Arc::new(shipped::bundle().unwrap_or_else(|problems| panic!("{problems:?}"))));

/// A time at which the seeds are valid.
pub fn now() -> UtcTime {
    UtcTime::parse("2026-06-15T10:00:30Z").expect("a time")
}

fn call() -> Call {
    let caller = "spiffe://dev.quotesign.example/pricing".parse().expect("a caller");
    Call::new(caller, "quotesign.v1.QuoteSigningService/SignQuote", Duration::from_secs(1))
}

fn trail() -> Context {
    Context::new("fuzz".parse().expect("an id"), Environment::Development, String::new(), 0)
}

/// Through the parse stage. Each call is counted anew, so that no quota stands in the way.
pub fn parsed(payload: &[u8]) -> Result<Parsed, ParseError> {
    let counted = count(&Attempts::default(), &POLICY, &call()).expect("a first attempt");
    let request = QuoteRequest {
        environment: "development".to_owned(),
        payload: payload.to_vec(),
        quote_id: String::new(),
        values_fixed_at: None,
    };
    parse(counted, request, Environment::Development, &LIMITS)
}

/// Through the validate stage.
pub fn valid(parsed: Parsed) -> Result<Valid, Invalid> {
    validate(parsed, &POLICY, now(), &mut trail())
}

/// Through the stages up to the canonical form, where policy lets the quote pass.
pub fn canonical(valid: Valid) -> Option<Canonical> {
    let authorized = authorize(valid, &POLICY, &call(), &mut trail()).ok()?;
    Some(canonicalise(authorized, &POLICY).expect("a canonical form"))
}
