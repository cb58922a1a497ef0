//! A contract: the JSON Schema of a kind of quote, and which of its claims plays which part. The gateway
//! itself knows no claim by name.

use std::{fmt, sync::Arc};

use jsonschema::{Draft, PatternOptions, Validator, error::ValidationErrorKind};
use serde_json::{Map, Value, json};

use crate::{
    clock::UtcTime,
    domain::Corridor,
    json::{self, Limits},
    money::{Currencies, Rate},
};

mod parts;

use super::file::{Claims, ContractEntry, MoneyRules, VersionMark};

/// A contract, compiled.
pub struct Contract {
    /// Its name in the bundle and in records.
    pub name: String,
    /// How a payload says that it keeps this contract.
    pub version: VersionMark,
    /// Which claim plays which part.
    pub claims: Claims,
    /// The rules across the money claims.
    pub money: MoneyRules,
    schema: Validator,
}

impl fmt::Debug for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Contract({})", self.name)
    }
}

/// One way in which a quote breaks its contract. Never holds a value of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where: a JSON Pointer (RFC 6901).
    pub pointer: String,
    /// Why, in one sentence.
    pub reason: String,
}

/// The JSON Pointer of a claim; the whole quote's where the name is empty.
#[must_use]
pub fn pointer(claim: &str) -> String {
    if claim.is_empty() { String::new() } else { format!("/{}", claim.replace('~', "~0").replace('/', "~1")) }
}

/// Bounds on a schema file.
const SCHEMA_LIMITS: Limits = Limits { payload_bytes_max: 1 << 20, depth_max: 64, nodes_max: 1 << 16 };
/// At most this many characters of a part of a pointer are told back.
const NAME_SHOWN_MAX: usize = 40;
/// At most this many violations are told at once.
const VIOLATIONS_MAX: usize = 50;

impl Contract {
    /// `assigned` says whether the gateway gives the numbers of any partner's quotes under it.
    pub(super) fn compile(
        entry: &ContractEntry,
        schema: &[u8],
        currencies: &Arc<Currencies>,
        assigned: bool,
    ) -> Result<Self, String> {
        // Read as strictly as a quote: a keyword that stands twice would be taken once, in silence.
        let schema =
            json::read_object(schema, &SCHEMA_LIMITS).map_err(|fault| format!("not strict I-JSON: {fault}"))?;
        let schema = Value::Object(schema);
        refuse_unknown_keywords(&schema)?;
        let currencies = currencies.clone();
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .offline()
            .should_validate_formats(true)
            .should_ignore_unknown_formats(false)
            .with_pattern_options(PatternOptions::regex())
            .with_format("x-amount", is_amount)
            .with_format("x-rate", |text: &str| Rate::read(text).is_some())
            .with_format("x-utc", |text: &str| UtcTime::parse(text).is_ok())
            .with_format("x-corridor", |text: &str| text.parse::<Corridor>().is_ok())
            .with_format("x-currency", move |text: &str| currencies.get(text).is_some())
            .build(&schema)
            .map_err(|fault| format!("not a usable JSON Schema 2020-12: {fault}"))?;
        parts::check(&schema, &entry.claims, &entry.version, assigned)?;
        Ok(Self {
            name: entry.name.clone(),
            version: entry.version.clone(),
            claims: entry.claims.clone(),
            money: entry.money.clone(),
            schema: validator,
        })
    }

    /// Whether `quote` says that it keeps this contract.
    #[must_use]
    pub fn is_kept_by(&self, quote: &Map<String, Value>) -> bool {
        quote.get(&self.version.claim).and_then(Value::as_str) == Some(self.version.value.as_str())
    }

    /// Every way in which `quote` breaks the schema; empty where it keeps it.
    #[must_use]
    pub fn violations(&self, quote: &Value) -> Vec<Violation> {
        if self.schema.is_valid(quote) {
            return Vec::new();
        }
        let mut violations: Vec<Violation> = Vec::new();
        for fault in self.schema.iter_errors(quote).map(|fault| violation(&fault)).take(VIOLATIONS_MAX) {
            // A value that misses its pattern misses its format too; once is enough.
            if !violations.iter().any(|known| known.pointer == fault.pointer) {
                violations.push(fault);
            }
        }
        violations
    }
}

impl Claims {
    /// The names of all claims that play a part.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        [
            &self.partner,
            &self.subscription,
            &self.sequence,
            &self.corridor,
            &self.issued_at,
            &self.expires_at,
            &self.send_amount,
            &self.send_currency,
            &self.receive_amount,
            &self.receive_currency,
            &self.rate,
            &self.partner_fee,
            &self.principal_fee,
            &self.total,
        ]
        .into_iter()
        .chain(&self.quote_id)
        .map(String::as_str)
    }
}

/// A point and at most four digits behind it; how many a currency takes is checked with the currency.
fn is_amount(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits =
        |part: &str, most| !part.is_empty() && part.len() <= most && part.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole, 15) && digits(fraction, 4) && (whole == "0" || !whole.starts_with('0'))
}

/// Puts a schema fault into words that hold no value of the quote.
fn violation(fault: &jsonschema::ValidationError<'_>) -> Violation {
    use ValidationErrorKind as Kind;
    let mut pointer = shown_pointer(&fault.instance_path().to_string());
    let reason = match fault.kind() {
        Kind::Required { property } => {
            pointer.push_str(&self::pointer(property.as_str().unwrap_or_default()));
            "is missing".to_owned()
        }
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            // A name that nobody expects may be a value that slipped: whoever sent it can find it by the contract.
            format!("has {} properties that the contract does not name; leave them out", unexpected.len())
        }
        Kind::Format { format } => format!("is not of the format `{format}`"),
        Kind::Pattern { pattern } => format!("does not match `{pattern}`"),
        Kind::Constant { expected_value } => format!("must be {expected_value}"),
        Kind::Type { kind } => format!("must be of the type {}", type_names(kind)),
        Kind::MaxLength { limit } => format!("is longer than {limit} characters"),
        Kind::MinLength { limit } => format!("is shorter than {limit} characters"),
        Kind::Minimum { limit } => format!("is less than {limit}"),
        Kind::Maximum { limit } => format!("is more than {limit}"),
        other => format!("breaks the schema's `{}`", other.keyword()),
    };
    Violation { pointer, reason }
}

fn type_names(kind: &jsonschema::error::TypeKind) -> String {
    match kind {
        jsonschema::error::TypeKind::Single(one) => one.to_string(),
        jsonschema::error::TypeKind::Multiple(many) => {
            many.iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" or ")
        }
    }
}

/// A pointer whose parts are the caller's own names only within the bound.
fn shown_pointer(pointer: &str) -> String {
    pointer.split('/').map(shortened).collect::<Vec<_>>().join("/")
}

fn shortened(name: &str) -> String {
    let shown: String = name.chars().filter(|letter| !letter.is_control()).take(NAME_SHOWN_MAX).collect();
    if shown.len() < name.len() { format!("{shown}…") } else { shown }
}

/// Holds the schema itself against a meta-schema that knows no keyword beyond 2020-12, at any depth: a
/// misspelt keyword would otherwise check nothing, in silence.
fn refuse_unknown_keywords(schema: &Value) -> Result<(), String> {
    let strict = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:quotesign:strict-meta-schema",
        "$dynamicAnchor": "meta",
        "$ref": "https://json-schema.org/draft/2020-12/schema",
        "unevaluatedProperties": false
    });
    let meta = jsonschema::options()
        .with_draft(Draft::Draft202012)
        .offline()
        .build(&strict)
        .map_err(|fault| format!("the meta-schema does not compile: {fault}"))?;
    // The fault also shows at every parent; the deepest place is the real one.
    match meta.iter_errors(schema).max_by_key(|fault| fault.instance_path().to_string().matches('/').count()) {
        None => Ok(()),
        Some(fault) => Err(format!("at `{}`: {fault}", fault.instance_path())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_keywords_are_refused_at_any_depth() {
        let good = json!({"properties": {"a": {"type": "string", "pattern": "^a$"}}});
        assert_eq!(refuse_unknown_keywords(&good), Ok(()));
        let fault = refuse_unknown_keywords(&json!({"properties": {"a": {"patern": "^a$"}}})).unwrap_err();
        assert!(fault.contains("/properties/a") && fault.contains("patern"), "{fault}");
    }

    #[test]
    fn amounts_have_one_spelling() {
        for good in ["0", "0.05", "100", "999999999999999.9999"] {
            assert!(is_amount(good), "{good}");
        }
        for bad in ["", "00", "01.0", "1.", ".1", "-1", "+1", "1e2", "1.00000", "1000000000000000", "１"] {
            assert!(!is_amount(bad), "{bad}");
        }
    }

    #[test]
    fn an_unexpected_name_is_told_only_within_a_bound() {
        assert_eq!(shortened(&"x".repeat(500)).chars().count(), NAME_SHOWN_MAX + 1);
        let pointer = shown_pointer(&format!("/extra/{}/0", "x".repeat(500)));
        assert_eq!(pointer, format!("/extra/{}…/0", "x".repeat(NAME_SHOWN_MAX)));
    }
}
