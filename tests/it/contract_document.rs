//! Holds the examples of `docs/quote-contract.md` against the product.

use std::fs;

use quotesign::{service::status, verification::Step};

use crate::{
    harness::{Quote, Site, pointers, reason},
    stages::{Stages, repository},
};

/// What the document says of one changed line.
#[derive(Debug)]
struct Example {
    change: String,
    reason: String,
    pointer: String,
}

/// The rows of the first table behind a heading.
fn table(heading: &str) -> Vec<Vec<String>> {
    let document = fs::read_to_string(repository("docs/quote-contract.md")).unwrap();
    let (_, behind) = document.split_once(&format!("\n{heading}\n")).unwrap();
    let rows = behind.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| {
        let row = row.trim_matches('|').replace("\\|", "\u{1}");
        row.split('|').map(|cell| cell.trim().trim_matches('`').replace('\u{1}', "|")).collect()
    };
    rows.skip(2).map(cells).collect()
}

fn examples() -> Vec<Example> {
    let rows = table("### One example each").into_iter();
    let examples = rows.map(|row| {
        let [change, reason, pointer, _] = row.try_into().unwrap();
        Example { change, reason, pointer }
    });
    examples.collect()
}

/// The quote with one of its lines replaced by that of the example; one that it has not is added.
fn changed(quote: &str, change: &str) -> String {
    let (claim, _) = change.split_once(':').unwrap();
    let mut members: Vec<_> =
        quote.trim().trim_matches(['{', '}']).split(",\n").map(|line| line.trim().to_owned()).collect();
    let line = members.iter_mut().find(|line| line.starts_with(&format!("{claim}:")));
    match line {
        Some(line) => change.clone_into(line),
        None => members.push(change.to_owned()),
    }
    format!("{{{}}}", members.join(","))
}

fn is_the_ledgers(reason: &str) -> bool {
    ["QUOTE_CONFLICT", "SEQUENCE_NOT_MONOTONIC"].contains(&reason)
}

#[test]
fn every_example_is_refused_as_the_document_says() {
    let stages = Stages::shipped();
    let quote = fs::read_to_string(repository("examples/quote.json")).unwrap();
    assert!(stages.canonicalise(quote.as_bytes()).is_ok(), "the example itself is not refused");
    for Example { change, reason: expected, pointer } in examples() {
        if is_the_ledgers(&expected) {
            continue;
        }
        let status = status::of(&stages.canonicalise(changed(&quote, &change).as_bytes()).unwrap_err());
        assert_eq!(reason(&status), expected, "{change}");
        let places = match pointers(&status).as_slice() {
            [] => "none".to_owned(),
            [whole] if whole.is_empty() => "the quote as a whole".to_owned(),
            [one] => one.clone(),
            more => panic!("{change}: {more:?}"),
        };
        assert_eq!(places, pointer, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_ledger_are_refused_as_the_document_says() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    // The example with times of today.
    let quote = format!("{:#}", Quote::number(1).with("quote_id", "q-20260615-0001".into()).0);
    pricing.sign_bytes(quote.clone().into_bytes()).await.unwrap();
    let mut seen = 0;
    for Example { change, reason: expected, pointer } in examples() {
        if !is_the_ledgers(&expected) {
            continue;
        }
        let status = pricing.sign_bytes(changed(&quote, &change).into_bytes()).await.unwrap_err();
        assert_eq!(reason(&status), expected, "{change}");
        assert_eq!((pointers(&status), &*pointer), (Vec::new(), "none"));
        seen += 1;
    }
    assert!(seen >= 2, "{seen}");
}

/// Every reason that a quote by itself can bring about has an example.
#[test]
fn no_reason_is_left_without_an_example() {
    let told: Vec<_> = examples().into_iter().map(|example| example.reason).collect();
    for reason in [
        "MALFORMED_JSON",
        "SCHEMA_VIOLATION",
        "QUOTE_EXPIRED",
        "POLICY_DENIED",
        "SEQUENCE_NOT_MONOTONIC",
        "QUOTE_CONFLICT",
    ] {
        assert!(told.iter().any(|told| told == reason), "{reason}");
    }
}

#[test]
fn the_steps_of_verification_are_listed_in_order() {
    let told: Vec<_> = table("## Verifying a signed quote").into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(told, Step::ALL.map(Step::name));
}
