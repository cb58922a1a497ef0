//! The words of the gateway as types: who calls, for which partner, which quote, which number, which key.
//!
//! A value of these types is well formed; whether it is allowed is for policy and the ledger to say.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

/// The largest integer that I-JSON (RFC 7493) lets two parties exchange exactly: 2^53 - 1.
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// Why a word is not well formed. The text names the rule and never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct Malformed {
    rule: &'static str,
}

impl Malformed {
    /// The rule of [`crate::clock::UtcTime::parse`].
    pub(crate) const fn time() -> Self {
        Self {
            rule: "a time is RFC 3339 in UTC, as in `2026-06-01T12:00:00Z`: whole seconds or milliseconds, capital T and Z",
        }
    }
}

/// The longest correlation id.
const CORRELATION_BYTES_MAX: usize = 64;

macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $fits:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text as it stands in quotes, policy and records.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Malformed;
            fn try_from(text: String) -> Result<Self, Malformed> {
                let fits: fn(&str) -> bool = $fits;
                if fits(&text) { Ok(Self(text)) } else { Err(Malformed { rule: $rule }) }
            }
        }

        impl FromStr for $name {
            type Err = Malformed;
            fn from_str(text: &str) -> Result<Self, Malformed> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> Self {
                word.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

fn made_of(text: &str, len_max: usize, fits: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.len() <= len_max && text.bytes().all(fits)
}

fn is_slug(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._:".contains(&byte)
}

word!(
    /// A partner of the operator: its quotes, keys, JWKS and sequences are its own.
    PartnerId,
    |text| made_of(text, 64, is_slug),
    "a partner id is 1 to 64 of a-z, 0-9 and `-`"
);
word!(
    /// The id that one quote keeps for ever; with environment and partner it is the quote's [`Identity`].
    QuoteId,
    |text| made_of(text, 128, is_token),
    "a quote id is 1 to 128 of A-Z, a-z, 0-9, `-`, `.`, `_` and `:`"
);
word!(
    /// A key id (RFC 7515 section 4.1.4): readable, and never one of the names that say nothing.
    Kid,
    |text| {
        made_of(text, 64, is_token)
            && text.len() >= 6
            && !["current", "default", "latest"].iter().any(|banned| banned.eq_ignore_ascii_case(text))
    },
    "a kid is 6 to 64 of A-Z, a-z, 0-9, `-`, `.`, `_` and `:`, and names its key, as in `quote-signing-2026-06`"
);
word!(
    /// The pair of places a transfer goes between, such as `GB-IN`.
    Corridor,
    |text| made_of(text, 32, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'-'),
    "a corridor is 1 to 32 of A-Z, 0-9 and `-`, as in `GB-IN`"
);
word!(
    /// What joins a call's log lines, records and answers (`x-correlation-id`).
    CorrelationId,
    |text| made_of(text, CORRELATION_BYTES_MAX, is_token),
    "a correlation id is 1 to 64 of A-Z, a-z, 0-9, `-`, `.`, `_` and `:`"
);

/// A key's place on its timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// Not yet in the JWKS.
    Planned,
    /// In the JWKS, not signing.
    Prepared,
    /// Inside its signing window.
    Active,
    /// Past its signing window, still in the JWKS.
    Retiring,
    /// Gone from the JWKS.
    Retired,
}

impl KeyState {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Planned, Self::Prepared, Self::Active, Self::Retiring, Self::Retired];

    /// The name as records have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Retired => "retired",
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl CorrelationId {
    /// One made here, for a call that brought none.
    #[must_use]
    pub fn made() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }

    /// That of one part of what this one is of: with the tag behind it, and cut where that would be too long.
    #[must_use]
    pub fn tagged(&self, tag: u64) -> Self {
        let tag = format!(".{tag}");
        let kept = CORRELATION_BYTES_MAX.saturating_sub(tag.len()).min(self.0.len());
        self.0.get(..kept).map_or_else(Self::made, |kept| Self(format!("{kept}{tag}")))
    }
}

/// Where a gateway, its bundle, its keys and its ledger belong. They must all agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// A developer's machine; the only environment with relaxations, all listed in `docs/decisions.md`.
    Development,
    /// The operator's test system.
    Sandbox,
    /// Real money.
    Production,
}

impl Environment {
    /// The name as it stands in config, policy and requests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Sandbox => "sandbox",
            Self::Production => "production",
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who calls: the one name that a verified client certificate gives. Never equal across kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Caller {
    /// A SPIFFE id, kept whole: `spiffe://trust-domain/path`.
    Spiffe(String),
    /// A DNS name in lower case, written `dns:name`.
    Dns(String),
}

impl FromStr for Caller {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: Malformed = Malformed {
            rule: "a caller is `spiffe://trust-domain/path` or `dns:name` in lower case without a wildcard",
        };
        if let Some(name) = text.strip_prefix("dns:") {
            return if is_dns_name(name) { Ok(Self::Dns(name.to_owned())) } else { Err(RULE) };
        }
        if is_spiffe_id(text) { Ok(Self::Spiffe(text.to_owned())) } else { Err(RULE) }
    }
}

impl Caller {
    /// The trust domain of a SPIFFE id.
    #[must_use]
    pub fn trust_domain(&self) -> Option<&str> {
        match self {
            Self::Spiffe(id) => id.strip_prefix("spiffe://")?.split('/').next(),
            Self::Dns(_) => None,
        }
    }
}

/// The SPIFFE trust domains whose callers each listener takes; only callers of DNS names where there is none.
#[derive(Debug, Clone, Default)]
pub struct TrustDomains {
    /// Of the listener for callers.
    pub grpc: Option<String>,
    /// Of the listener for operators.
    pub admin: Option<String>,
}

/// The SPIFFE-ID rules: lower-case trust domain, a non-empty path of plain segments, 2,048 bytes at most.
fn is_spiffe_id(text: &str) -> bool {
    let Some((domain, path)) = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    text.len() <= 2048
        && made_of(domain, 255, |byte| is_slug(byte) || b"._".contains(&byte))
        && path.split('/').all(|segment| {
            segment != "."
                && segment != ".."
                && made_of(segment, 2048, |byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        })
}

/// Whether a text is a DNS name in lower case, without a wildcard and a full stop at its end.
#[must_use]
pub fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| made_of(label, 63, is_slug) && !label.starts_with('-') && !label.ends_with('-'))
}

impl TryFrom<String> for Caller {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

impl From<Caller> for String {
    fn from(caller: Caller) -> Self {
        caller.to_string()
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(id) => f.write_str(id),
            Self::Dns(name) => write!(f, "dns:{name}"),
        }
    }
}

/// A quote's place in its scope's sequence: 0 (nothing signed yet) to 2^53 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SequenceNumber(u64);

impl SequenceNumber {
    /// Nothing taken yet.
    pub const ZERO: Self = Self(0);

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// The number `steps` further on, held at the largest one there is.
    #[must_use]
    pub fn ahead(self, steps: u64) -> Self {
        Self(self.0.saturating_add(steps).min(INTEGER_MAX))
    }
}

impl TryFrom<u64> for SequenceNumber {
    type Error = Malformed;
    fn try_from(number: u64) -> Result<Self, Malformed> {
        if number <= INTEGER_MAX {
            Ok(Self(number))
        } else {
            Err(Malformed { rule: "a sequence number is at most 2^53 - 1" })
        }
    }
}

impl From<SequenceNumber> for u64 {
    fn from(number: SequenceNumber) -> Self {
        number.0
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! sha256_word {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The digest of `bytes`.
            #[must_use]
            pub fn of(bytes: &[u8]) -> Self {
                Self(sha256(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = [0; 64];
                let _fits = hex::encode_to_slice(self.0, &mut text);
                f.write_str(str::from_utf8(&text).unwrap_or_default())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

sha256_word!(
    /// SHA-256 of the RFC 8785 form of what the caller sent: what an [`Identity`] is bound to.
    PayloadDigest
);
sha256_word!(
    /// SHA-256 of a JWS signing input (RFC 7515 section 5.1): what RS256 signs.
    InputDigest
);
sha256_word!(
    /// SHA-256 of a compact JWS.
    JwsDigest
);
sha256_word!(
    /// SHA-256 over a policy bundle's files; see `policy digest`.
    PolicyDigest
);

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// What makes a quote this quote: environment, partner and quote id, encoded as a JCS array.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(String);

impl Identity {
    /// The identity of `quote` among the quotes of `partner` in `environment`.
    #[must_use]
    pub fn new(environment: Environment, partner: &PartnerId, quote: &QuoteId) -> Self {
        Self(jcs_array([environment.as_str(), partner.as_str(), quote.as_str()]))
    }

    /// The encoding, as the ledger keeps it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The sequence that a quote's number belongs to, encoded as a JCS array. Never holds customer data.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(String);

impl Scope {
    /// The scope of `partner` in `environment`, narrowed to `corridor` where policy says so.
    #[must_use]
    pub fn new(environment: Environment, partner: &PartnerId, corridor: Option<&Corridor>) -> Self {
        let head = [environment.as_str(), partner.as_str()];
        Self(jcs_array(head.into_iter().chain(corridor.map(Corridor::as_str))))
    }

    /// The scope of this encoding, and the environment that it is in; absent where it is none.
    #[must_use]
    pub fn read(text: &str) -> Option<(Environment, Self)> {
        let (environment, partner, corridor) = Self::parts(text)?;
        let scope = Self::new(environment, &partner, corridor.as_ref());
        (scope.0 == text).then_some((environment, scope))
    }

    /// What such an encoding is made of.
    #[must_use]
    pub fn parts(text: &str) -> Option<(Environment, PartnerId, Option<Corridor>)> {
        serde_json::from_str(text)
            .or_else(|_| serde_json::from_str(text).map(|(environment, partner)| (environment, partner, None)))
            .ok()
    }

    /// The encoding, as the ledger keeps it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn jcs_array<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    serde_json::Value::from_iter(parts).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn caller(text: &str) -> Option<Caller> {
        text.parse().ok()
    }

    #[test]
    fn the_tag_of_a_quote_is_never_cut_from_its_correlation_id() {
        let tagged = |id: &str, tag| id.parse::<CorrelationId>().unwrap().tagged(tag).to_string();
        assert_eq!(tagged("abc", 7), "abc.7");
        let long = tagged(&"a".repeat(64), u64::MAX);
        assert_eq!(long, format!("{}.{}", "a".repeat(43), u64::MAX));
        assert!(long.parse::<CorrelationId>().is_ok());
    }

    #[test]
    fn callers_of_two_kinds_are_never_equal() {
        assert_eq!(caller("spiffe://a.example/x"), Some(Caller::Spiffe("spiffe://a.example/x".into())));
        assert_eq!(caller("dns:a.example"), Some(Caller::Dns("a.example".into())));
        for bad in [
            "a.example",
            "dns:*.a.example",
            "dns:A.example",
            "dns:",
            "dns:-a.example",
            "spiffe://a.example",
            "spiffe://a.example/",
            "spiffe://A.example/x",
            "spiffe://a.example/x/../y",
            "spiffe://a.example/x?y",
            "spiffe://a.example:443/x",
            "spiffe://u@a.example/x",
            "https://a.example/x",
        ] {
            assert_eq!(caller(bad), None, "{bad}");
        }
    }

    #[test]
    fn kids_that_say_nothing_are_refused() {
        for bad in ["key", "current", "1", "test", "", "quote signing", "q/2026-06"] {
            assert!(bad.parse::<Kid>().is_err(), "{bad}");
        }
        for good in ["quote-signing-2026-01", "partner-prod-rsa-001"] {
            assert!(good.parse::<Kid>().is_ok(), "{good}");
        }
    }

    proptest! {
        /// Two different lists of parts never share an encoding, whatever characters they hold.
        #[test]
        fn encodings_do_not_collide(a in prop::collection::vec(".*", 2..4), b in prop::collection::vec(".*", 2..4)) {
            let encode = |parts: &[String]| jcs_array(parts.iter().map(String::as_str));
            prop_assert_eq!(a == b, encode(&a) == encode(&b));
        }
    }
}
