//! What the documents state, held against the gateway.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use quotesign::{
    audit::{Context, Event, Facts, Record, Status},
    clock::UtcTime,
    domain::{CorrelationId, Environment, SequenceNumber, sha256},
    proto::Reason,
    service::status,
};
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

/// The first column of the table that begins with `head`.
fn column(page: &str, head: &str) -> BTreeSet<String> {
    let rows = page.split_once(head).unwrap().1.split_once("\n\n").unwrap().0.lines().skip(2);
    rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect()
}

#[test]
fn the_page_of_the_audit_record_lists_every_field_and_every_event() {
    let page = read("docs/audit-record.md");
    let at = Some(UtcTime::from_millis(0));
    let text = Some("00".to_owned());
    let context = Context {
        caller: Some("spiffe://example.org/pricing".parse().unwrap()),
        contract: text.clone(),
        correlation_id: CorrelationId::made(),
        corridor: Some("GB-IN".parse().unwrap()),
        customer_ref: text.clone(),
        environment: Environment::Sandbox,
        gateway_version: String::new(),
        method: text.clone(),
        operator: text.clone(),
        partner: Some("acme-remit".parse().unwrap()),
        policy_digest: String::new(),
        policy_serial: 1,
        quote_id: Some("q1".parse().unwrap()),
        rule_ids: vec![String::new()],
        span_id: text.clone(),
        trace_id: text.clone(),
        values_fixed_at: at,
    };
    let facts = Facts {
        checkpoint: text.clone(),
        count: Some(1),
        detail: text.clone(),
        expires_at: at,
        filters: vec![String::new()],
        generation: Some(1),
        input_sha256: text.clone(),
        jws_sha256: text.clone(),
        kid: Some("quote-a".parse().unwrap()),
        payload_sha256: text.clone(),
        previous_sequence: Some(SequenceNumber::ZERO),
        reader: text.clone(),
        reason: text.clone(),
        scope: text.clone(),
        sequence: Some(SequenceNumber::ZERO),
        status: Some(Status::Ok),
        stop: text,
    };
    let record = serde_json::to_value(Record::new(Event::Committed, UtcTime::from_millis(0), context, facts)).unwrap();
    let mut fields = BTreeSet::new();
    for (name, value) in record.as_object().unwrap() {
        match value.as_object() {
            Some(within) => fields.extend(within.keys().map(|field| format!("{name}.{field}"))),
            None => drop(fields.insert(name.clone())),
        }
    }
    assert_eq!(column(&page, "| field |"), fields);
    let events: BTreeSet<String> = Event::ALL.iter().map(|event| event.name().to_owned()).collect();
    assert_eq!(column(&page, "| event |"), events);
    assert!(Event::ALL.iter().all(|event| serde_json::to_value(event).unwrap() == event.name()));
}
