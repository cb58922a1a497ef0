//! Whether an answer is what it must be. Every one is looked at: its shape, its header, its kid, its number, and that it answers the
//! quote that was sent; a sample is verified as a whole by the project's own verifier. A fault never holds a value of a payload.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::{
    clock::{Clock as _, SystemClock},
    domain::{PartnerId, sha256},
    jwk::PublicKey,
    jws::CompactJws,
    policy::Bundle,
    proto::SignQuoteResponse,
    verification::{self, Evidence},
};

/// Holds what was seen, and what was wrong with it.
pub(super) struct Checker {
    keys: Vec<PublicKey>,
    partner: PartnerId,
    policy: Arc<Bundle>,
    /// One in so many is verified as a whole.
    verify_every: u64,
    seen: AtomicU64,
    verified: AtomicU64,
    /// Scope and number of all answers.
    numbers: Mutex<HashSet<(usize, u64)>>,
    faults: Mutex<BTreeMap<String, u64>>,
}

/// What an answer is held against.
pub(super) struct Sent<'s> {
    /// The sequence that its number belongs to.
    pub(super) scope: usize,
    /// The quote's own id.
    pub(super) id: &'s str,
    /// The number it was sent with.
    pub(super) number: Option<u64>,
    /// All numbers of its sequence that were answered before it was sent are lower.
    pub(super) above: u64,
    /// The bytes.
    pub(super) payload: &'s [u8],
}

impl Checker {
    pub(super) fn new(keys: Vec<PublicKey>, partner: PartnerId, policy: Arc<Bundle>, verify_every: u64) -> Self {
        Self {
            keys,
            partner,
            policy,
            verify_every,
            seen: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            numbers: Mutex::default(),
            faults: Mutex::default(),
        }
    }

    /// How many were verified as a whole.
    pub(super) fn verified(&self) -> u64 {
        self.verified.load(Ordering::Relaxed)
    }

    /// What was wrong, and how often.
    pub(super) fn faults(&self) -> BTreeMap<String, u64> {
        self.faults.lock().clone()
    }

    /// Takes an answer down.
    pub(super) fn take(&self, sent: &Sent<'_>, answer: &SignQuoteResponse) {
        let verifies = self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.verify_every.max(1));
        if let Err(fault) = self.look(sent, answer, verifies) {
            *self.faults.lock().entry(fault).or_default() += 1;
        }
    }

    fn look(&self, sent: &Sent<'_>, answer: &SignQuoteResponse, verifies: bool) -> Result<(), String> {
        holds(!answer.replayed, "a quote that was never sent before was answered as signed before")?;
        let mut parts = answer.jws.split('.').map(|part| URL_SAFE_NO_PAD.decode(part));
        let (Some(Ok(header)), Some(Ok(payload)), Some(Ok(signature)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("the answer is no compact JWS".to_owned());
        };
        let key = self.keys.iter().find(|key| key.kid().as_str() == answer.kid);
        let key = key.ok_or("the kid is not in the key set")?;
        let wanted = format!(r#"{{"alg":"RS256","kid":"{}","typ":"JWT"}}"#, key.kid());
        holds(header == wanted.as_bytes(), "the header is not RS256, the kid told and JWT")?;
        holds(signature.len() * 8 == key.bits().next_multiple_of(8), "the signature is not as long as its key")?;
        let payload: Map<String, Value> = serde_json::from_slice(&payload).map_err(|_| "the payload is no object")?;
        let told = |claim: &str| payload.get(claim);
        holds(told("quote_id").and_then(Value::as_str) == Some(sent.id), "the JWS is of another quote")?;
        holds(
            told("quote_sequence").and_then(Value::as_u64) == Some(answer.sequence),
            "the number told is not the JWS's",
        )?;
        holds(sent.number.is_none_or(|number| number == answer.sequence), "the number is not the one that was sent")?;
        holds(answer.sequence > sent.above, "the number is not above one that was told before")?;
        holds(answer.payload_sha256 == sha256(sent.payload), "the digest told is not that of the quote")?;
        holds(self.numbers.lock().insert((sent.scope, answer.sequence)), "a number was told twice")?;
        if verifies { self.verify(answer) } else { Ok(()) }
    }

    fn verify(&self, answer: &SignQuoteResponse) -> Result<(), String> {
        let evidence = Evidence {
            key: &|kid| self.keys.iter().find(|key| key.kid() == kid),
            partner: Some(&self.partner),
            contract: &|quote| self.policy.contract_of(quote).map(Arc::as_ref),
            now: SystemClock.now(),
        };
        let report = verification::verify(&CompactJws::from_text(answer.jws.clone()), &evidence);
        let report = report.into_result().map_err(|unverified| format!("a JWS fails {}", unverified.step.name()))?;
        holds(report.is_valid(), "a JWS could not be verified as a whole")?;
        self.verified.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn holds(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::shipped;

    /// A checker, and the answer to quote `q` with the number 4, of which nothing is verified.
    fn answered() -> (Checker, SignQuoteResponse) {
        let policy = shipped::bundle().unwrap();
        let jwk = policy.key(&"quote-signing-2026-06".parse().unwrap()).unwrap().public.to_jwk();
        let key = PublicKey::from_jwk(jwk.to_string().as_bytes()).unwrap();
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let header = part(r#"{"alg":"RS256","kid":"quote-signing-2026-06","typ":"JWT"}"#);
        let payload = part(r#"{"quote_id":"q","quote_sequence":4}"#);
        let jws = format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode(vec![0; key.bits() / 8]));
        let answer = SignQuoteResponse {
            jws,
            kid: key.kid().to_string(),
            sequence: 4,
            payload_sha256: sha256(b"sent").to_vec(),
            ..SignQuoteResponse::default()
        };
        let checker = Checker::new(vec![key], "acme-remit".parse().unwrap(), Arc::new(policy), u64::MAX);
        // The first is verified.
        checker.seen.store(1, Ordering::Relaxed);
        (checker, answer)
    }

    const SENT: Sent<'_> = Sent { scope: 0, id: "q", number: None, above: 3, payload: b"sent" };

    #[test]
    fn an_answer_that_is_not_what_it_must_be_is_a_fault() {
        type Forgery = (&'static str, fn(&mut SignQuoteResponse));
        let forgeries: [Forgery; 6] = [
            ("signed before", |answer| answer.replayed = true),
            ("no compact JWS", |answer| answer.jws.push_str(".x")),
            ("not in the key set", |answer| answer.kid = "other".to_owned()),
            ("the number told is not", |answer| answer.sequence = 5),
            ("the digest told", |answer| answer.payload_sha256 = vec![0]),
            ("as long as its key", |answer| answer.jws.truncate(answer.jws.len() - 4)),
        ];
        for (fault, forge) in forgeries {
            let (checker, mut answer) = answered();
            forge(&mut answer);
            checker.take(&SENT, &answer);
            let faults = checker.faults();
            assert!(faults.len() == 1 && faults.keys().all(|found| found.contains(fault)), "{fault}: {faults:?}");
        }
        let (checker, answer) = answered();
        checker.take(&Sent { above: 4, ..SENT }, &answer);
        checker.take(&Sent { id: "r", ..SENT }, &answer);
        checker.take(&Sent { number: Some(5), ..SENT }, &answer);
        assert_eq!(checker.faults().len(), 3);
    }

    #[test]
    fn a_number_that_is_told_twice_in_its_sequence_is_a_fault() {
        let (checker, answer) = answered();
        checker.take(&SENT, &answer);
        checker.take(&Sent { scope: 1, ..SENT }, &answer);
        assert!(checker.faults().is_empty(), "{:?}", checker.faults());
        checker.take(&SENT, &answer);
        assert_eq!(checker.faults(), BTreeMap::from([("a number was told twice".to_owned(), 1)]));
    }

    #[test]
    fn a_signature_that_does_not_hold_is_found_by_the_sample() {
        let (checker, answer) = answered();
        checker.seen.store(0, Ordering::Relaxed);
        checker.take(&SENT, &answer);
        assert_eq!(checker.faults().keys().collect::<Vec<_>>(), ["a JWS fails verify_rs256_signature"]);
        assert_eq!(checker.verified(), 0);
    }
}
