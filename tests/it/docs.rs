//! What the documents state, held against the gateway.

use std::{collections::BTreeMap, fs};

use quotesign::{domain::sha256, proto::Reason, service::status};
use serde_json::Value;

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn the_contract_page_states_the_canonical_form_of_the_example() {
    let quote: BTreeMap<String, Value> = serde_json::from_str(&read("examples/quote.json")).unwrap();
    let canonical = serde_jcs::to_string(&quote).unwrap();
    assert_eq!(canonical, serde_json::to_string(&quote).unwrap());
    let page = read("docs/quote-contract.md").split_whitespace().collect::<Vec<_>>().join(" ");
    for fact in [
        format!("the JCS form of `examples/quote.json` as it is in the repository has {} bytes", canonical.len()),
        format!("has the SHA-256 `{}`", hex::encode(sha256(canonical.as_bytes()))),
    ] {
        assert!(page.contains(&fact), "the page does not say: {fact}");
    }
    let beginning = page.split_once(" bytes, begins `").unwrap().1.split_once('`').unwrap().0;
    assert!(beginning.len() > 20 && canonical.starts_with(beginning), "{beginning}");
}

#[test]
fn the_contract_page_lists_every_reason_with_its_code() {
    let page = read("docs/quote-contract.md");
    let table = page.split_once("| reason |").unwrap().1.split_once("\n\n").unwrap().0;
    let rows: BTreeMap<&str, &str> = table
        .lines()
        .skip(2)
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            (cells[1], cells[2])
        })
        .collect();
    let reasons = (1..1000).filter_map(|number| Reason::try_from(number).ok());
    let expected: BTreeMap<&str, String> = reasons.map(|reason| (status::name(reason), name_of(reason))).collect();
    let expected: BTreeMap<&str, &str> = expected.iter().map(|(reason, code)| (*reason, &**code)).collect();
    assert_eq!(rows, expected);
}

/// The gRPC name of a reason's code: `FailedPrecondition` is `FAILED_PRECONDITION`.
fn name_of(reason: Reason) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", status::code(reason)).chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
