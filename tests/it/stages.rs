//! Drives a payload through the first stages of the path, which do no I/O, at a fixed time and under the shipped
//! bundle.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
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
        parse::{Parsed, QuoteRequest, parse},
        refusal::Refusal,
        validate::{Valid, validate},
    },
    policy::{Bundle, shipped},
};

/// The gateway's own bounds, as its config has them by itself.
pub const LIMITS: Limits = Limits { payload_bytes_max: 16 << 10, depth_max: 8, nodes_max: 256 };
/// The key of the shipped bundle.
pub const KID: &str = "quote-signing-2026-06";

/// The stages, with all that they need.
pub struct Stages {
    pub policy: Arc<Bundle>,
    pub now: UtcTime,
    call: Call,
}

impl Stages {
    /// Under the shipped bundle, half a minute after `examples/quote.json` was issued.
    pub fn shipped() -> Self {
        Self::under(shipped::bundle().unwrap_or_else(|problems| panic!("{problems:?}")))
    }

    pub fn under(policy: Bundle) -> Self {
        let caller = "spiffe://dev.quotesign.example/pricing".parse().unwrap();
        let call = Call::new(caller, "quotesign.v1.QuoteSigningService/SignQuote", Duration::from_mins(1));
        Self { policy: Arc::new(policy), now: UtcTime::parse("2026-06-15T10:00:30Z").unwrap(), call }
    }

    fn trail(&self) -> Context {
        Context::new(self.call.correlation_id.clone(), Environment::Development, String::new(), 0)
    }

    /// Each call is counted anew, so that no quota stands in the way.
    pub fn parse(&self, payload: &[u8]) -> Result<Parsed, Refusal> {
        let counted = count(&Attempts::default(), &self.policy, &self.call)?;
        let request = QuoteRequest {
            environment: "development".to_owned(),
            payload: payload.to_vec(),
            quote_id: String::new(),
            values_fixed_at: None,
        };
        Ok(parse(counted, request, Environment::Development, &LIMITS)?)
    }

    pub fn validate(&self, payload: &[u8]) -> Result<Valid, Refusal> {
        Ok(validate(self.parse(payload)?, &self.policy, self.now, &mut self.trail())?)
    }

    /// Up to the bytes that would be signed.
    pub fn canonicalise(&self, payload: &[u8]) -> Result<Canonical, Refusal> {
        let valid = self.validate(payload)?;
        let authorized = authorize(valid, &self.policy, &self.call, &mut self.trail())?;
        Ok(canonicalise(authorized, &self.policy)?)
    }
}

/// The development bundle, with other rules on signing.
pub fn bundle_with_rules(rules: &str) -> Bundle {
    let dir = tempfile::TempDir::with_prefix("quotesign-it-").unwrap();
    copy(&repository("examples/policy-development"), dir.path());
    let own = fs::read_to_string(dir.path().join("authorize.cedar")).unwrap();
    let (_, others) = own.split_once("// Reading.").unwrap();
    fs::write(dir.path().join("authorize.cedar"), format!("{rules}\n{others}")).unwrap();
    Bundle::load(dir.path()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
