//! Holds a published JWK Set against what verifiers and the operator expect of one: the eleven checks of the operator's
//! list, and what a fetch over TLS shows beside them. For people without the gateway as well, and for whatever the gateway
//! itself is about to publish.

use std::{collections::BTreeSet, fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{clock::UtcTime, domain::Kid, jwk::PublicKey};

/// Members that a private key has (RFC 7517, RFC 7518 section 6.3.2), and that of a symmetric one.
pub const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
/// Where private keys are written as text, this is written before them.
const PRIVATE_TEXT: &str = "PRIVATE KEY";
/// The largest modulus that is weaker than the operator takes, and the one that is recommended.
const BITS: (usize, usize) = (2048, 3072);
/// A certificate that ends sooner is told.
const CERTIFICATE_SOON: Duration = Duration::from_hours(24 * 21);
/// Longer than this no cache should keep a set; the operator recommends as much.
const MAX_AGE_S: u64 = 3600;

/// What was got at an address, beside the body.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// `Location`, where it redirects.
    pub location: Option<String>,
    /// When the server's certificate ends.
    pub certificate_ends: Option<UtcTime>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Passed,
    /// It works, and something should be better.
    Warning,
    /// Verifiers will refuse it or part of it.
    Failed,
    /// A private key may be in it: rotate now.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Warning => "WARNING",
            Self::Failed => "FAILED",
            Self::Critical => "CRITICAL",
        })
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What, and what to do; empty where it passed.
    pub detail: String,
}

/// The members of private keys that stand in `json`, and the text of one; empty where there is none. It need not be JSON that
/// anybody takes: whatever looks like a member counts, before and after a fault, at any depth, within a string too.
#[must_use]
pub fn private_parts(json: &[u8]) -> Vec<String> {
    // What another encoding than UTF-8 puts between the letters.
    let text: String = String::from_utf8_lossy(json).chars().filter(|sign| *sign != '\0').collect();
    let mut found = BTreeSet::new();
    scan(&text, 0, &mut found);
    found.into_iter().collect()
}

/// How deep strings within strings are read.
const STRINGS_DEEP: usize = 4;

fn scan(text: &str, depth: usize, found: &mut BTreeSet<String>) {
    if text.to_uppercase().contains(PRIVATE_TEXT) {
        found.insert("the text of a private key".to_owned());
    }
    let mut rest = text;
    while let Some(at) = rest.find('"') {
        let (string, after) = read_string(rest.get(at + 1..).unwrap_or_default());
        rest = after;
        let is_name = rest.trim_start().starts_with(':');
        if is_name && PRIVATE_MEMBERS.iter().any(|private| private.eq_ignore_ascii_case(&string)) {
            found.insert(format!("the member `{string}`"));
        }
        let may_hold_some = string.contains('"') || string.to_uppercase().contains(PRIVATE_TEXT);
        if depth < STRINGS_DEEP && may_hold_some {
            scan(&string, depth + 1, found);
        }
    }
}

/// A string up to its closing quote, and what follows. Escapes are undone as far as they can be.
fn read_string(text: &str) -> (String, &str) {
    let (mut string, mut signs) = (String::new(), text.char_indices());
    while let Some((at, sign)) = signs.next() {
        match sign {
            '"' => return (string, text.get(at + 1..).unwrap_or_default()),
            '\\' => match signs.next() {
                Some((at, 'u')) => {
                    let code = text.get(at + 1..at + 5).and_then(|code| u32::from_str_radix(code, 16).ok());
                    if let Some(sign) = code.and_then(char::from_u32) {
                        string.push(sign);
                        signs.by_ref().take(4).for_each(drop);
                    }
                }
                Some((_, escaped)) => string.push(escaped),
                None => {}
            },
            sign => string.push(sign),
        }
    }
    (string, "")
}

/// The keys that a set shows, as a verifier reads it.
#[derive(Debug, Default)]
pub struct Shown {
    /// Every kid that stands in it, also of a key that cannot be read.
    pub kids: BTreeSet<String>,
    keys: Vec<PublicKey>,
}

impl Shown {
    /// Whether it shows this very key under its kid, and no other under it.
    #[must_use]
    pub fn has(&self, key: &PublicKey) -> bool {
        let mut same_kid = self.keys.iter().filter(|shown| shown.kid() == key.kid());
        let same_key = |shown: &PublicKey| shown.same_key(key.modulus(), key.exponent());
        same_kid.next().is_some_and(same_key) && same_kid.next().is_none()
    }

    /// Whether the kid stands in it, with whatever key.
    #[must_use]
    pub fn names(&self, kid: &Kid) -> bool {
        self.kids.contains(kid.as_str())
    }
}

/// What a set shows that holds nothing private; absent where it is none.
#[must_use]
pub fn shown(body: &[u8]) -> Option<Shown> {
    let set: Value = serde_json::from_slice(body).ok().filter(|_| private_parts(body).is_empty())?;
    let mut shown = Shown::default();
    for key in set.get("keys")?.as_array()? {
        shown.kids.extend(key.get("kid").and_then(Value::as_str).map(str::to_owned));
        shown.keys.extend(PublicKey::from_jwk(key.to_string().as_bytes()).ok());
    }
    Some(shown)
}

/// The set `body` without the keys that `goes` names; absent where it is none.
#[must_use]
pub fn without(body: &str, goes: impl Fn(&str) -> bool) -> Option<String> {
    let mut set: Value = serde_json::from_str(body).ok()?;
    let keys = set.get_mut("keys")?.as_array_mut()?;
    let count = keys.len();
    keys.retain(|key| !key.get("kid").and_then(Value::as_str).is_some_and(&goes));
    let is_same = keys.len() == count;
    Some(if is_same { body.to_owned() } else { set.to_string() })
}

/// Holds the set against everything. `active` is the kid that signs now, where it is known.
#[must_use]
pub fn inspect(body: &[u8], fetched: Option<&Fetched>, active: Option<&Kid>, now: UtcTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(fetched) = fetched {
        of_fetch(&mut findings, fetched, now);
    }
    let private = private_parts(body);
    let critical = format!(
        "{}: treat the key as compromised, revoke it and rotate now, even where nobody has used it",
        private.join(", ")
    );
    put(&mut findings, "no private key material", Severity::Critical, private.is_empty(), &critical);
    let parsed: Result<Value, _> = serde_json::from_slice(body);
    let fault = parsed.as_ref().err().map(ToString::to_string).unwrap_or_default();
    put(&mut findings, "valid JSON", Severity::Failed, parsed.is_ok(), &format!("{fault}; mend what writes the set"));
    let set = parsed.unwrap_or_default();
    let keys = set.get("keys").and_then(Value::as_array);
    put(
        &mut findings,
        "a `keys` array",
        Severity::Failed,
        keys.is_some(),
        "a JWK Set is an object with the array `keys`",
    );
    let entries = keys.into_iter().flatten();
    let strangers = entries.clone().filter(|key| !key.is_object()).count();
    let told = format!("{strangers} entries are no objects; a JWK is one");
    put(&mut findings, "every entry a key", Severity::Failed, strangers == 0, &told);
    let keys: Vec<&Map<String, Value>> = entries.filter_map(Value::as_object).collect();
    put(&mut findings, "it has keys", Severity::Failed, !keys.is_empty(), "no quote can be verified with an empty set");
    of_keys(&mut findings, &keys);
    if let Some(active) = active {
        let there = keys.iter().any(|key| key.get("kid").and_then(Value::as_str) == Some(active.as_str()));
        let gone = format!("`{active}` signs and is not there: publish it, or sign with a key that is");
        put(&mut findings, "the active kid", Severity::Failed, there, &gone);
    }
    findings
}

fn of_fetch(findings: &mut Vec<Finding>, fetched: &Fetched, now: UtcTime) {
    let Fetched { status, content_type, cache_control, location, certificate_ends } = fetched;
    let redirected =
        format!("redirects to {}; serve the set at the registered URL itself", location.as_deref().unwrap_or("?"));
    put(findings, "no redirect", Severity::Failed, !(300..400).contains(status), &redirected);
    put(findings, "HTTP 200", Severity::Failed, *status == 200, &format!("answered {status}"));
    let kind = content_type.as_deref().and_then(|kind| kind.split(';').next()).map(str::trim);
    let is_json = matches!(kind, Some("application/json" | "application/jwk-set+json"));
    let served = format!("is served as {}; serve it as application/json", kind.unwrap_or("nothing"));
    put(findings, "Content-Type", Severity::Failed, is_json, &served);
    let max_age = cache_control.as_deref().and_then(max_age_of);
    let cached = match max_age {
        Some(seconds) => format!("max-age={seconds}; rotations wait as long: `public, max-age=300` is recommended"),
        None => "no max-age: caches choose for themselves; send `public, max-age=300`".to_owned(),
    };
    put(
        findings,
        "Cache-Control",
        Severity::Warning,
        max_age.is_some_and(|seconds| (1..=MAX_AGE_S).contains(&seconds)),
        &cached,
    );
    if let Some(ends) = certificate_ends {
        let soon = format!("the certificate ends at {ends}; renew it");
        put(findings, "certificate", Severity::Warning, *ends > now.plus(CERTIFICATE_SOON), &soon);
    }
}

fn max_age_of(cache_control: &str) -> Option<u64> {
    cache_control.split(',').find_map(|part| part.trim().strip_prefix("max-age=")?.parse().ok())
}

fn of_keys(findings: &mut Vec<Finding>, keys: &[&Map<String, Value>]) {
    let (mut lacking, mut kinds, mut algorithms, mut uses, mut weak, mut short) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut kids, mut twice, mut poor) = (BTreeSet::new(), Vec::new(), Vec::new());
    let (mut moduli, mut shared, mut exponents) = (BTreeSet::new(), Vec::new(), Vec::new());
    for (at, key) in keys.iter().enumerate() {
        let text = |member: &str| key.get(member).and_then(Value::as_str);
        let name = text("kid").map_or_else(|| format!("key {at}"), |kid| format!("`{kid}`"));
        let missing: Vec<_> = ["kty", "kid", "n", "e"].into_iter().filter(|member| text(member).is_none()).collect();
        if !missing.is_empty() {
            lacking.push(format!("{name} lacks {}", missing.join(", ")));
        }
        kinds.extend((text("kty") != Some("RSA")).then(|| name.clone()));
        algorithms.extend(key.get("alg").is_some_and(|alg| alg != "RS256").then(|| name.clone()));
        uses.extend(key.get("use").is_some_and(|usage| usage != "sig").then(|| name.clone()));
        let exponent = text("e").and_then(|e| URL_SAFE_NO_PAD.decode(e).ok()).unwrap_or_default();
        let is_odd = exponent.last().is_some_and(|last| last % 2 == 1) && exponent != [1];
        exponents.extend((text("e").is_some() && !is_odd).then(|| name.clone()));
        shared.extend(text("n").is_some_and(|n| !moduli.insert(n)).then(|| name.clone()));
        let bits = text("n").and_then(|n| URL_SAFE_NO_PAD.decode(n).ok()).map_or(0, |n| bits_of(&n));
        weak.extend((bits < BITS.0).then(|| format!("{name} has {bits} bits")));
        short.extend((BITS.0..BITS.1).contains(&bits).then(|| format!("{name} has {bits}")));
        if let Some(kid) = text("kid") {
            twice.extend((!kids.insert(kid)).then(|| name.clone()));
            poor.extend(kid.parse::<Kid>().is_err().then(|| name.clone()));
        }
    }
    let listed = |all: &[String]| all.join(", ");
    put(findings, "kty, kid, n and e", Severity::Failed, lacking.is_empty(), &listed(&lacking));
    put(
        findings,
        "e is an RSA exponent",
        Severity::Failed,
        exponents.is_empty(),
        &format!("{}: it must be an odd number above 1, base64url", listed(&exponents)),
    );
    let same = format!("{}: one key under two kids; give each its own", listed(&shared));
    put(findings, "each key once", Severity::Failed, shared.is_empty(), &same);
    put(findings, "kty is RSA", Severity::Failed, kinds.is_empty(), &listed(&kinds));
    put(findings, "alg is RS256", Severity::Failed, algorithms.is_empty(), &listed(&algorithms));
    put(findings, "use is sig", Severity::Failed, uses.is_empty(), &listed(&uses));
    put(
        findings,
        "2048 bits or more",
        Severity::Failed,
        weak.is_empty(),
        &format!("{}; make a new key", listed(&weak)),
    );
    put(
        findings,
        "3072 bits",
        Severity::Warning,
        short.is_empty(),
        &format!("{}; 3072 are recommended", listed(&short)),
    );
    let again = format!("{}: a verifier takes one of them at random", listed(&twice));
    put(findings, "each kid once", Severity::Failed, twice.is_empty(), &again);
    let poor = format!("{}: take a name like `quote-signing-2026-06`", listed(&poor));
    put(findings, "readable kids", Severity::Warning, poor.starts_with(':'), &poor);
}

fn bits_of(modulus: &[u8]) -> usize {
    let significant =
        modulus.iter().position(|byte| *byte != 0).map_or(&[][..], |at| modulus.get(at..).unwrap_or_default());
    significant.first().map_or(0, |top| significant.len() * 8 - top.leading_zeros() as usize)
}

fn put(findings: &mut Vec<Finding>, check: &'static str, severity: Severity, passed: bool, detail: &str) {
    findings.push(if passed {
        Finding { check, severity: Severity::Passed, detail: String::new() }
    } else {
        Finding { check, severity, detail: detail.to_owned() }
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";

    fn key(extra: &str) -> String {
        format!(
            r#"{{"kty":"RSA","kid":"quote-signing-2026-01","use":"sig","alg":"RS256","n":"{N}","e":"AQAB"{extra}}}"#
        )
    }

    fn worst(body: &str) -> (Severity, Vec<&'static str>) {
        let now = UtcTime::from_millis(0);
        let findings = inspect(body.as_bytes(), None, Some(&"quote-signing-2026-01".parse().unwrap()), now);
        let worst = findings.iter().map(|finding| finding.severity).max().unwrap();
        let told = |finding: &&Finding| finding.severity == worst && worst != Severity::Passed;
        (worst, findings.iter().filter(told).map(|finding| finding.check).collect())
    }

    #[test]
    fn a_set_loses_the_keys_that_go_and_is_else_the_very_same() {
        let set = r#"{"keys": [{"kid": "a", "n": "x"}, {"kid": "b"}, {"n": "y"}]}"#;
        assert_eq!(without(set, |_| false).as_deref(), Some(set));
        let left: Value = serde_json::from_str(&without(set, |kid| kid == "b").unwrap()).unwrap();
        assert_eq!(left, json!({"keys": [{"kid": "a", "n": "x"}, {"n": "y"}]}));
        for none in ["", "[]", r#"{"keys": 1}"#] {
            assert_eq!(without(none, |_| true), None, "{none}");
        }
    }

    #[test]
    fn a_private_member_is_found_wherever_it_stands() {
        for member in PRIVATE_MEMBERS {
            let spelt = format!("\\u{:04x}{}", u32::from(member.chars().next().unwrap()), &member[1..]);
            for name in [member.to_owned(), member.to_uppercase(), spelt] {
                for body in [
                    format!(r#"{{"keys":[{}]}}"#, key(&format!(r#","{name}":"AQAB""#))),
                    format!(r#"{{"{name}":1,"keys":[{}]}}"#, key("")),
                    format!(r#"{{"keys":[{}],"note":{{"deep":[[{{"{name}":null}}]]}}}}"#, key("")),
                    format!(r#"{{"keys":[{}],"x":{{"{name}":1,"{name}":2}}}}"#, key("")),
                    // Whatever stands before it, and in whatever encoding of a string.
                    format!("\u{feff}{{\"keys\":[{{\"{name}\":\"AQAB\"}}]}}"),
                    format!(r#"{{"x":1e999,"keys":[{{"kty":"RSA",}},{{"{name}":"AQAB"}}]}}"#),
                    format!("{}{{\"{name}\":1}}{}", "[".repeat(300), "]".repeat(300)),
                    json!({ "keys": [], "x": format!(r#"{{"{name}":1}}"#) }).to_string(),
                    // Cut off, or followed by something else.
                    format!(r#"{{"keys":[{{"{name}":"AQAB","#),
                    format!(r#"{{"keys":[{{"{name}":"AQAB"}}]}} trailing"#),
                ] {
                    assert_eq!(worst(&body), (Severity::Critical, vec!["no private key material"]), "{body}");
                    let wide: Vec<u8> = body.encode_utf16().flat_map(u16::to_le_bytes).collect();
                    assert!(!private_parts(&wide).is_empty(), "{body}");
                }
            }
        }
        let pem = format!(r#"{{"keys":[{}]}}"#, key(r#","x":"-----BEGIN RSA PRIVATE KEY-----""#));
        assert_eq!(worst(&pem).0, Severity::Critical);
        // A text or a kid of such a name is none.
        assert_eq!(worst(&format!(r#"{{"keys":[{}]}}"#, key(r#","x":"d","y":["p","q"]"#))).0, Severity::Warning);
    }

    #[test]
    fn each_check_finds_what_it_is_for() {
        let set = |key: &str| format!(r#"{{"keys":[{key}]}}"#);
        assert_eq!(worst(&set(&key(""))), (Severity::Warning, vec!["3072 bits"]));
        for (body, check) in [
            ("{".to_owned(), "valid JSON"),
            (r#"{"key":[]}"#.to_owned(), "a `keys` array"),
            (r#"{"keys":[]}"#.to_owned(), "it has keys"),
            (set(&key("").replace(r#""e":"AQAB""#, r#""f":"AQAB""#)), "kty, kid, n and e"),
            (set(&key("").replace("\"RSA\"", "\"EC\"")), "kty is RSA"),
            (set(&key("").replace("RS256", "PS256")), "alg is RS256"),
            (set(&key("").replace("\"sig\"", "\"enc\"")), "use is sig"),
            (set(&key("").replace(N, &N[..100])), "2048 bits or more"),
            (set(&format!("{},{}", key(""), key(""))), "each kid once"),
            (set(&format!("{},{}", key(""), key("").replace("2026-01", "2026-02"))), "each key once"),
            (set(&key("").replace("AQAB", "AQ")), "e is an RSA exponent"),
            (set(&key("").replace("AQAB", "!!!")), "e is an RSA exponent"),
            (set(&format!("{},null", key(""))), "every entry a key"),
            (set(&key("").replace("quote-signing-2026-01", "quote-signing-2026-02")), "the active kid"),
        ] {
            let (severity, checks) = worst(&body);
            assert!(severity == Severity::Failed && checks.contains(&check), "{check}: {checks:?}");
        }
    }
}
