//! Replays the corpus of quotes under `tests/fixtures/quotes/` through the first stages: each file states what is
//! to become of it.

use std::{collections::BTreeSet, fs};

use quotesign::{
    domain::PayloadDigest,
    json,
    jws::CompactJws,
    pipeline::refusal::Refusal,
    service::status,
    verification::{self, Evidence},
};
use serde_json::Value;

use crate::{
    harness::{pointers, reason},
    stages::{LIMITS, Stages, bundle_with_rules, repository},
};

/// What the fuzz targets share. They are built by `make fuzz` alone; so at least this much of them always builds.
#[path = "../../fuzz/src/lib.rs"]
mod fuzzed;

const CASES_MIN: usize = 170;
const ACCEPTED_MIN: usize = 25;
/// Any caller that may sign may sign anything: the corpus is about what a quote is, not about who may sign it.
const ANYTHING: &str = r#"
@id("anything")
@reason("The corpus is about the contract alone.")
permit (principal in Role::"pricing", action == Action::"SignQuote", resource);
"#;

struct Case {
    name: String,
    expected: String,
    payload: Vec<u8>,
}

/// The cases of a folder: a line that says what is expected, and behind its line feed the payload.
fn cases(folder: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(repository("tests/fixtures/quotes").join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(path.extension().is_some_and(|ending| ending == "quote"), "{name} is no case");
        let bytes = fs::read(&path).unwrap();
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let expected = String::from_utf8(bytes[..end].to_vec()).unwrap();
        cases.push(Case { name, expected, payload: bytes[end + 1..].to_vec() });
    }
    cases
}

/// A refusal as the corpus writes it: the reason, and the pointers in order, `""` for the quote as a whole.
fn told(refusal: &Refusal) -> String {
    let status = status::of(refusal);
    let pointers: BTreeSet<_> = pointers(&status).into_iter().collect();
    let pointers = pointers.iter().map(|pointer| if pointer.is_empty() { "\"\"" } else { pointer });
    [&*reason(&status)].into_iter().chain(pointers).collect::<Vec<_>>().join(" ")
}

/// What is expected, with its pointers in the order of [`told`].
fn in_order(expected: &str) -> String {
    let mut words = expected.split(' ');
    let reason = words.next().unwrap();
    let mut pointers: Vec<_> = words.collect();
    pointers.sort_by_key(|pointer| pointer.trim_matches('"'));
    [reason].into_iter().chain(pointers).collect::<Vec<_>>().join(" ")
}

/// What a quote says: its texts but for the names of its members, and its long numbers. By quotes and digits alone,
/// so that what is no JSON has values too.
fn values(payload: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(payload).into_owned();
    let pieces: Vec<_> = text.split('"').collect();
    let names_follow = |at: usize| pieces.get(at + 1).is_some_and(|next| next.trim_start().starts_with(':'));
    let texts = pieces.iter().enumerate().filter(|(at, piece)| piece.len() > 2 && !names_follow(*at));
    let texts = texts.map(|(_, piece)| (*piece).to_owned()).filter(|piece| piece.chars().any(char::is_alphanumeric));
    let numbers = text.split(|letter: char| !letter.is_ascii_digit()).filter(|digits| digits.len() > 4);
    texts.chain(numbers.map(str::to_owned)).collect()
}

#[test]
fn every_case_comes_to_what_it_states() {
    let (stages, mut wrong, mut seen) = (Stages::shipped(), Vec::new(), [0; 2]);
    for (number, folder) in ["accept", "reject"].into_iter().enumerate() {
        for Case { name, expected, payload } in cases(folder) {
            assert_eq!(folder == "accept", expected == "ACCEPT", "{name} lies in the wrong folder");
            seen[number] += 1;
            let came_to = match stages.validate(&payload) {
                Ok(_) => "ACCEPT".to_owned(),
                Err(refusal) => told(&refusal),
            };
            if came_to != in_order(&expected) {
                wrong.push(format!("{folder}/{name}: expected {expected}, came to {came_to}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(seen[0] >= ACCEPTED_MIN && seen[0] + seen[1] >= CASES_MIN, "the corpus is too small: {seen:?}");
}

#[test]
fn no_refusal_tells_a_value_of_the_quote() {
    let (stages, mut looked_for) = (Stages::shipped(), 0);
    for Case { name, payload, .. } in cases("reject") {
        let status = status::of(&stages.validate(&payload).unwrap_err());
        let details = tonic_types::StatusExt::get_error_details(&status);
        let told = format!("{} {details:?}", status.message());
        for value in values(&payload) {
            looked_for += 1;
            assert!(!told.contains(&value), "{name}: `{value}` is told in {told}");
        }
    }
    assert!(looked_for > 1000, "{looked_for}");
}

#[test]
fn what_is_accepted_is_signed_claim_for_claim() {
    let stages = Stages::under(bundle_with_rules(ANYTHING));
    let mut of_other_partners = Vec::new();
    for Case { name, payload, .. } in cases("accept") {
        // The plainest reader there is, for what the quote says.
        let sent: Value = serde_json::from_slice(&payload).unwrap();
        let canonical = match stages.canonicalise(&payload) {
            Ok(canonical) => canonical,
            Err(Refusal::Denied(_)) => {
                of_other_partners.push(name);
                continue;
            }
            Err(refusal) => panic!("{name}: {refusal}"),
        };
        let form = serde_json_canonicalizer::to_vec(&sent).unwrap();
        assert_eq!(canonical.mark().payload, PayloadDigest::of(&form), "{name}: other bytes would be signed");
        let signed = json::read_object(&form, &LIMITS).unwrap();
        assert_eq!(Value::Object(signed), sent, "{name}");
    }
    of_other_partners.sort();
    assert_eq!(of_other_partners, ["longest-partner.quote", "shortest-partner.quote"]);
}

/// Whatever fuzzing once found: any outcome will do, as long as there is one.
#[test]
fn findings_of_the_past_come_to_an_end() {
    let stages = Stages::shipped();
    let evidence = Evidence {
        key: &|kid| stages.policy.key(kid).map(|key| &*key.public),
        partner: None,
        contract: &|quote| stages.policy.contract_of(quote).map(AsRef::as_ref),
        now: stages.now,
    };
    let mut replayed = 0;
    for entry in fs::read_dir(repository("tests/fixtures/quotes/findings")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let _any_outcome = stages.canonicalise(&bytes).map(drop);
        let jws = CompactJws::from_text(String::from_utf8_lossy(&bytes).into_owned());
        assert!(!verification::verify(&jws, &evidence).is_valid(), "nobody has the private key");
        replayed += 1;
    }
    assert!(replayed > 0, "the folder holds its README at least");
}

/// Fuzzing begins with these: none would get anywhere if the first stages took none of them.
#[test]
fn what_fuzzing_begins_with_gets_as_far_as_a_canonical_form() {
    let canonical = |case: &Case| fuzzed::canonical(fuzzed::valid(fuzzed::parsed(&case.payload).ok()?).ok()?);
    let accepted = cases("accept");
    let passed = accepted.iter().filter(|case| canonical(case).is_some()).count();
    assert!(passed * 2 > accepted.len(), "{passed} of {}", accepted.len());
}
