//! Local verification of a signed quote: one piece of code for the verify stage, for `VerifyQuote` and for
//! `quotesign verify`. It takes the ten steps that the operator asks of every partner, under the same names, and
//! three of our own. It fetches nothing and reads no clock.

use serde_json::{Map, Value};

use crate::{
    clock::UtcTime,
    domain::{InputDigest, Kid, Malformed, PartnerId, SequenceNumber},
    json::{self, Limits},
    jwk::PublicKey,
    jws::{self, CompactJws},
    policy::contract::Contract,
};

/// A step of the verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Three parts of canonical base64url.
    ReadCompactJws,
    /// The header is a JSON object with a kid.
    ExtractKid,
    /// The key set is at hand.
    FetchLocalJwks,
    /// It holds the kid.
    SelectMatchingPublicKey,
    /// The signature is RS256 of that key over the text.
    VerifyRs256Signature,
    /// The payload is strict I-JSON.
    DecodePayload,
    /// It keeps a known contract and has every claim that plays a part in it.
    CheckRequiredClaims,
    /// It has not expired.
    CheckQuoteExpiry,
    /// It has a subscription reference.
    CheckCustomerSubscriptionReference,
    /// Its number is bound to these very bytes in the ledger.
    CheckQuoteSequence,
    /// The header is, to the byte, the one the gateway writes.
    CheckHeaderMembers,
    /// The payload is in RFC 8785 form.
    CheckJcsForm,
    /// The payload keeps its contract's schema.
    CheckSchema,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::ReadCompactJws,
        Self::ExtractKid,
        Self::FetchLocalJwks,
        Self::SelectMatchingPublicKey,
        Self::VerifyRs256Signature,
        Self::DecodePayload,
        Self::CheckRequiredClaims,
        Self::CheckQuoteExpiry,
        Self::CheckCustomerSubscriptionReference,
        Self::CheckQuoteSequence,
        Self::CheckHeaderMembers,
        Self::CheckJcsForm,
        Self::CheckSchema,
    ];

    /// The stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadCompactJws => "read_compact_jws",
            Self::ExtractKid => "extract_kid",
            Self::FetchLocalJwks => "fetch_local_jwks",
            Self::SelectMatchingPublicKey => "select_matching_public_key",
            Self::VerifyRs256Signature => "verify_rs256_signature",
            Self::DecodePayload => "decode_payload",
            Self::CheckRequiredClaims => "check_required_claims",
            Self::CheckQuoteExpiry => "check_quote_expiry",
            Self::CheckCustomerSubscriptionReference => "check_customer_subscription_reference",
            Self::CheckQuoteSequence => "check_quote_sequence",
            Self::CheckHeaderMembers => "check_header_members",
            Self::CheckJcsForm => "check_jcs_form",
            Self::CheckSchema => "check_schema",
        }
    }
}

/// What a step came to. Never holds a value of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It holds.
    Passed,
    /// It does not, and why.
    Failed(String),
    /// It could not be looked at, and why.
    NotChecked(&'static str),
}

/// What is known beside the JWS.
pub struct Evidence<'e> {
    /// The key of a kid, in the set at hand.
    pub key: &'e dyn Fn(&Kid) -> Option<&'e PublicKey>,
    /// Whose keys these are, where that is known: a quote of another partner is not signed by them.
    pub partner: Option<&'e PartnerId>,
    /// The contract that a payload says it keeps.
    pub contract: &'e dyn Fn(&Map<String, Value>) -> Option<&'e Contract>,
    /// The time.
    pub now: UtcTime,
}

/// What the ledger binds to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The number.
    pub sequence: SequenceNumber,
    /// The digest of the signing input that carries it.
    pub input: InputDigest,
}

/// What a verification found, step by step.
#[derive(Debug)]
pub struct Report {
    findings: Vec<(Step, Finding)>,
    /// The kid of the header, where it could be read.
    pub kid: Option<Kid>,
    /// The payload, where the signature holds.
    pub payload: Option<Map<String, Value>>,
    sequence: Option<u64>,
    input: Option<InputDigest>,
}

/// Bounds on what is read; wider than any quote that the gateway signs.
const LIMITS: Limits = Limits { payload_bytes_max: 1 << 20, depth_max: 64, nodes_max: 1 << 16 };
const EARLIER: &str = "an earlier step failed";
const NO_LEDGER: &str = "no ledger is at hand";

/// The first step that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", step.name())]
pub struct Unverified {
    /// The step.
    pub step: Step,
    /// Why.
    pub why: String,
}

/// Verifies the exact text of a compact JWS. Whether its number is bound is left to [`Report::bound`].
#[must_use]
pub fn verify(jws: &CompactJws, evidence: &Evidence<'_>) -> Report {
    let mut report = Report { findings: Vec::new(), kid: None, payload: None, sequence: None, input: None };
    if let Err(Unverified { step, why }) = report.take_steps(jws, evidence) {
        report.found(step, Finding::Failed(why));
    }
    for step in Step::ALL.into_iter().skip(report.findings.len()) {
        report.found(step, Finding::NotChecked(EARLIER));
    }
    report
}

impl Report {
    /// Every step in order, with what it came to.
    #[must_use]
    pub fn findings(&self) -> &[(Step, Finding)] {
        &self.findings
    }

    /// Whether every step passed; the sequence may be unchecked.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.findings.iter().all(|(step, finding)| match finding {
            Finding::Passed => true,
            Finding::Failed(_) => false,
            Finding::NotChecked(_) => *step == Step::CheckQuoteSequence,
        })
    }

    /// Takes the sequence step, with what the ledger says of the quote: nothing where it does not know it.
    #[must_use]
    pub fn bound(mut self, binding: Option<&Binding>) -> Self {
        let carried = (self.sequence, self.input);
        let finding = match binding {
            _ if self.payload.is_none() => Finding::NotChecked(EARLIER),
            None => Finding::Failed("the ledger does not know this quote".to_owned()),
            Some(binding) if carried == (Some(binding.sequence.get()), Some(binding.input)) => Finding::Passed,
            Some(_) => Finding::Failed("the ledger binds this quote to another number or other bytes".to_owned()),
        };
        for (step, found) in &mut self.findings {
            if *step == Step::CheckQuoteSequence {
                found.clone_from(&finding);
            }
        }
        self
    }

    /// # Errors
    /// The first step that failed.
    pub fn into_result(self) -> Result<Self, Unverified> {
        let failed = self.findings.iter().find_map(|(step, finding)| match finding {
            Finding::Failed(why) => Some(Unverified { step: *step, why: why.clone() }),
            _ => None,
        });
        failed.map_or(Ok(self), Err)
    }

    fn found(&mut self, step: Step, finding: Finding) {
        self.findings.push((step, finding));
    }

    fn passed(&mut self, step: Step) {
        self.found(step, Finding::Passed);
    }

    /// Up to the signature each step needs the one before. Behind it, each is looked at whatever the others came to.
    fn take_steps(&mut self, jws: &CompactJws, evidence: &Evidence<'_>) -> Result<(), Unverified> {
        let fail = |step, why: &str| Unverified { step, why: why.to_owned() };
        let parts = jws.parts().map_err(|why| fail(Step::ReadCompactJws, why))?;
        self.passed(Step::ReadCompactJws);
        let kid = kid_of(&parts.header).map_err(|why| Unverified { step: Step::ExtractKid, why })?;
        self.kid = Some(kid.clone());
        self.passed(Step::ExtractKid);
        self.passed(Step::FetchLocalJwks);
        let key = (evidence.key)(&kid);
        let key = key.ok_or_else(|| fail(Step::SelectMatchingPublicKey, "the key set holds no key of this kid"))?;
        self.passed(Step::SelectMatchingPublicKey);
        if !key.verifies(parts.input.as_bytes(), &parts.signature) {
            return Err(fail(Step::VerifyRs256Signature, "the signature is not this key's over these bytes"));
        }
        self.passed(Step::VerifyRs256Signature);
        let payload = json::read_object(&parts.payload, &LIMITS);
        let payload = payload.map_err(|why| Unverified { step: Step::DecodePayload, why })?;
        self.passed(Step::DecodePayload);
        self.input = Some(InputDigest::of(parts.input.as_bytes()));
        self.look_at(payload, &parts, &kid, evidence);
        Ok(())
    }

    fn look_at(&mut self, payload: Map<String, Value>, parts: &jws::Parts<'_>, kid: &Kid, evidence: &Evidence<'_>) {
        let payload = Value::Object(payload);
        let contract = payload.as_object().and_then(evidence.contract);
        let of_contract = |check: &dyn Fn(&Contract) -> Finding| match contract {
            Some(contract) => check(contract),
            None => Finding::NotChecked("the payload names no known contract"),
        };
        let text = |claim: &str| payload.get(claim).and_then(Value::as_str);
        let required = match contract {
            None => Finding::Failed("the payload names no known contract by its version claim".to_owned()),
            Some(contract) => match contract.claims.all().find(|claim| payload.get(claim).is_none()) {
                None => {
                    let claimed = text(&contract.claims.partner);
                    let is_theirs = evidence.partner.is_none_or(|partner| claimed == Some(partner.as_str()));
                    holds(is_theirs, "the quote is another partner's than the key")
                }
                Some(claim) => Finding::Failed(format!("`{claim}` is missing")),
            },
        };
        self.found(Step::CheckRequiredClaims, required);
        self.found(
            Step::CheckQuoteExpiry,
            of_contract(
                &|contract| match text(&contract.claims.expires_at).and_then(|text| UtcTime::parse(text).ok()) {
                    Some(expires_at) if evidence.now < expires_at => Finding::Passed,
                    Some(_) => Finding::Failed("the quote has expired".to_owned()),
                    None => Finding::Failed("the expiry is no time".to_owned()),
                },
            ),
        );
        self.found(
            Step::CheckCustomerSubscriptionReference,
            of_contract(&|contract| {
                let reference = text(&contract.claims.subscription).unwrap_or_default();
                holds(!reference.is_empty(), "there is no subscription reference")
            }),
        );
        self.sequence = contract.and_then(|contract| payload.get(&contract.claims.sequence)).and_then(Value::as_u64);
        self.found(Step::CheckQuoteSequence, Finding::NotChecked(NO_LEDGER));
        let exact = jws::header(kid).as_bytes() == parts.header;
        let want = r#"the header is not exactly {"alg":"RS256","kid":…,"typ":"JWT"}"#;
        self.found(Step::CheckHeaderMembers, holds(exact, want));
        let canonical = serde_jcs::to_vec(&payload).ok().as_deref() == Some(&parts.payload);
        self.found(Step::CheckJcsForm, holds(canonical, "the payload is not in RFC 8785 form"));
        self.found(
            Step::CheckSchema,
            of_contract(&|contract| match contract.violations(&payload).first() {
                None => Finding::Passed,
                Some(first) => Finding::Failed(format!("`{}` {}", first.pointer, first.reason)),
            }),
        );
        if let Value::Object(payload) = payload {
            self.payload = Some(payload);
        }
    }
}

fn holds(it_does: bool, else_why: &str) -> Finding {
    if it_does { Finding::Passed } else { Finding::Failed(else_why.to_owned()) }
}

/// The kid of a header. What else stands there is looked at later: nothing of it is ever acted on.
fn kid_of(header: &[u8]) -> Result<Kid, String> {
    let header = json::read_object(header, &LIMITS).map_err(|why| format!("the header: {why}"))?;
    let kid = header.get("kid").and_then(Value::as_str).ok_or("the header has no `kid`")?;
    kid.parse().map_err(|fault: Malformed| fault.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_lc_rs::{
        hmac,
        rand::SystemRandom,
        rsa::KeySize,
        signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair},
    };
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;
    use crate::{
        jws::SigningInput,
        policy::{Bundle, shipped},
    };

    const HEADER: &str = r#"{"alg":"RS256","kid":"quote-signing-test","typ":"JWT"}"#;

    struct Fixture {
        pair: RsaKeyPair,
        key: PublicKey,
        policy: Bundle,
        partner: PartnerId,
        now: UtcTime,
    }

    impl Fixture {
        fn new() -> Self {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
            let public = pair.public_key();
            let (n, e) = (public.modulus().big_endian_without_leading_zero(), public.exponent());
            let key = PublicKey::new("quote-signing-test".parse().unwrap(), n, e.big_endian_without_leading_zero());
            let now = UtcTime::parse("2026-06-15T10:00:00Z").unwrap();
            Self {
                pair,
                key: key.unwrap(),
                policy: shipped::bundle().unwrap(),
                partner: "acme-remit".parse().unwrap(),
                now,
            }
        }

        fn quote(&self) -> Map<String, Value> {
            let quote: Map<String, Value> = serde_json::from_str(include_str!("../examples/quote.json")).unwrap();
            let expires_at = UtcTime::parse(quote["expires_at"].as_str().unwrap()).unwrap();
            assert!(self.now < expires_at, "the example is valid at the fixture's time");
            quote
        }

        fn payload(&self) -> String {
            serde_jcs::to_string(&self.quote()).unwrap()
        }

        fn sign(&self, input: &[u8]) -> Vec<u8> {
            let mut signature = vec![0; self.pair.public_modulus_len()];
            self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input, &mut signature).unwrap();
            signature
        }

        fn forge(&self, header: &str, payload: &str) -> CompactJws {
            let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
            let signature = URL_SAFE_NO_PAD.encode(self.sign(input.as_bytes()));
            CompactJws::from_text(format!("{input}.{signature}"))
        }

        fn verify(&self, jws: &CompactJws) -> Report {
            let evidence = Evidence {
                key: &|kid| (kid == self.key.kid()).then_some(&self.key),
                partner: Some(&self.partner),
                contract: &|quote| self.policy.contract_of(quote).map(AsRef::as_ref),
                now: self.now,
            };
            verify(jws, &evidence)
        }

        /// The first step that fails.
        fn fails_at(&self, jws: &CompactJws) -> Option<Step> {
            self.verify(jws).into_result().err().map(|unverified| unverified.step)
        }
    }

    #[test]
    fn the_steps_have_the_operators_names_in_its_order() {
        let names: Vec<_> = Step::ALL.iter().map(|step| step.name()).collect();
        let ten = "read_compact_jws extract_kid fetch_local_jwks select_matching_public_key verify_rs256_signature \
                   decode_payload check_required_claims check_quote_expiry check_customer_subscription_reference \
                   check_quote_sequence check_header_members check_jcs_form check_schema";
        assert_eq!(names, ten.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_signed_verifies_and_no_byte_of_it_may_change() {
        let fixture = Fixture::new();
        let input = SigningInput::of_quote(fixture.key.kid(), fixture.payload().as_bytes());
        let signature = fixture.sign(input.bytes());
        let jws = input.into_jws(&signature);
        assert!(fixture.verify(&jws).is_valid());
        for at in 0..jws.as_str().len() {
            let mut bytes = jws.as_str().as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = CompactJws::from_text(String::from_utf8(bytes).unwrap());
            assert!(!fixture.verify(&changed).is_valid(), "byte {at}");
        }
    }

    #[test]
    fn a_quote_of_another_partner_is_not_this_keys() {
        let fixture = Fixture { partner: "other-remit".parse().unwrap(), ..Fixture::new() };
        let jws = fixture.forge(HEADER, &fixture.payload());
        assert_eq!(fixture.fails_at(&jws), Some(Step::CheckRequiredClaims));
    }

    #[test]
    fn headers_other_than_ours_are_refused_even_when_signed() {
        let fixture = Fixture::new();
        let payload = fixture.payload();
        assert_eq!(fixture.fails_at(&fixture.forge(HEADER, &payload)), None);
        for header in [
            r#"{"alg":"none","kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"HS256","kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"RS256","kid":"quote-signing-test"}"#,
            r#"{"kid":"quote-signing-test","alg":"RS256","typ":"JWT"}"#,
            r#"{"alg":"RS256", "kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"RS256","crit":["b64"],"kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"RS256","b64":false,"kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"RS256","kid":"quote-signing-test","typ":"JWT","zip":"DEF"}"#,
            r#"{"alg":"RS256","jku":"https://a.example","kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"RS256","jwk":{"kty":"RSA"},"kid":"quote-signing-test","typ":"JWT"}"#,
            r#"{"alg":"RS256","kid":"quote-signing-test","typ":"JWT","x5u":"https://a.example"}"#,
            r#"{"alg":"RS256","kid":"quote-signing-test","typ":"JWT","x5c":["AA"]}"#,
        ] {
            assert_eq!(fixture.fails_at(&fixture.forge(header, &payload)), Some(Step::CheckHeaderMembers), "{header}");
        }
        let doubled = r#"{"alg":"none","alg":"RS256","kid":"quote-signing-test","typ":"JWT"}"#;
        assert_eq!(fixture.fails_at(&fixture.forge(doubled, &payload)), Some(Step::ExtractKid));
        let other = r#"{"alg":"RS256","kid":"quote-signing-other","typ":"JWT"}"#;
        assert_eq!(fixture.fails_at(&fixture.forge(other, &payload)), Some(Step::SelectMatchingPublicKey));
    }

    #[test]
    fn the_public_key_is_no_secret_to_sign_with() {
        let fixture = Fixture::new();
        let header = r#"{"alg":"HS256","kid":"quote-signing-test","typ":"JWT"}"#;
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(fixture.payload()));
        let secret = hmac::Key::new(hmac::HMAC_SHA256, fixture.key.to_jwk().to_string().as_bytes());
        let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&secret, input.as_bytes()));
        let jws = CompactJws::from_text(format!("{input}.{tag}"));
        assert_eq!(fixture.fails_at(&jws), Some(Step::VerifyRs256Signature));
        let unsigned = CompactJws::from_text(format!("{input}."));
        assert_eq!(fixture.fails_at(&unsigned), Some(Step::ReadCompactJws));
    }

    #[test]
    fn payloads_in_another_form_are_refused_even_when_signed() {
        let fixture = Fixture::new();
        let pretty = serde_json::to_string_pretty(&fixture.quote()).unwrap();
        assert_eq!(fixture.fails_at(&fixture.forge(HEADER, &pretty)), Some(Step::CheckJcsForm));
        let canonical = fixture.payload();
        let (first, rest) = canonical.trim_start_matches('{').split_once(',').unwrap();
        let reordered = format!("{{{},{first}}}", rest.trim_end_matches('}'));
        assert_eq!(fixture.fails_at(&fixture.forge(HEADER, &reordered)), Some(Step::CheckJcsForm));
        for payload in [r#"{"a":1,"a":1}"#, r#"{"a":1.5}"#, "[]", "1", "x"] {
            assert_eq!(fixture.fails_at(&fixture.forge(HEADER, payload)), Some(Step::DecodePayload), "{payload}");
        }
    }

    #[test]
    fn every_step_behind_the_signature_is_looked_at() {
        let fixture = Fixture::new();
        let with = |claim: &str, value: Option<Value>| {
            let mut quote = fixture.quote();
            match value {
                Some(value) => quote.insert(claim.to_owned(), value),
                None => quote.remove(claim),
            };
            fixture.fails_at(&fixture.forge(HEADER, &serde_jcs::to_string(&quote).unwrap()))
        };
        assert_eq!(with("quote_signature_v1", Some("v9".into())), Some(Step::CheckRequiredClaims));
        assert_eq!(with("corridor", None), Some(Step::CheckRequiredClaims));
        let past = fixture.now.minus(Duration::from_secs(1)).to_string();
        assert_eq!(with("expires_at", Some(past.into())), Some(Step::CheckQuoteExpiry));
        assert_eq!(with("subscription_id", Some("".into())), Some(Step::CheckCustomerSubscriptionReference));
        assert_eq!(with("send_amount", Some("-1".into())), Some(Step::CheckSchema));
    }

    #[test]
    fn the_sequence_step_needs_the_ledgers_word() {
        let fixture = Fixture::new();
        let jws = fixture.forge(HEADER, &fixture.payload());
        let sequence = |report: &Report| report.findings()[9].clone();
        let report = fixture.verify(&jws);
        assert_eq!(sequence(&report), (Step::CheckQuoteSequence, Finding::NotChecked(NO_LEDGER)));
        let input = InputDigest::of(jws.parts().unwrap().input.as_bytes());
        let number: SequenceNumber = fixture.quote()["quote_sequence"].as_u64().unwrap().try_into().unwrap();
        let bound = |binding: Option<Binding>| fixture.verify(&jws).bound(binding.as_ref());
        assert_eq!(sequence(&bound(Some(Binding { sequence: number, input }))).1, Finding::Passed);
        assert!(!bound(Some(Binding { sequence: number.ahead(1), input })).is_valid());
        assert!(!bound(Some(Binding { sequence: number, input: InputDigest([0; 32]) })).is_valid());
        assert!(!bound(None).is_valid());
    }

    #[test]
    fn a_probe_can_never_be_a_jws() {
        let fixture = Fixture::new();
        let probe = SigningInput::probe([7; 16]);
        let signature = fixture.sign(probe.bytes());
        assert_eq!(fixture.fails_at(&probe.into_jws(&signature)), Some(Step::ReadCompactJws));
    }
}
