//! What the contract refuses: payloads that are no strict JSON, quotes that break a rule, and expired ones.

use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Quote, Site, pointers, refused};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_one_strict_json_object_is_malformed() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let text = Quote::number(1).0.to_string();
    let padded = |bytes: usize| Quote::number(1).with("subscription_id", json!("x".repeat(bytes))).bytes();
    for (why, payload) in [
        ("stands twice", text.replacen('{', "{\"corridor\":\"GB-IN\",", 1).into_bytes()),
        ("not a plain integer", text.replace("\"quote_sequence\":1", "\"quote_sequence\":1.0").into_bytes()),
        ("not a plain integer", text.replace("\"quote_sequence\":1", "\"quote_sequence\":1e0").into_bytes()),
        ("something follows", format!("{text} x").into_bytes()),
        ("something follows", format!("{text}{text}").into_bytes()),
        ("not an object", format!("[{text}]").into_bytes()),
        ("EOF", Vec::new()),
        ("unicode", text.bytes().map(|byte| if byte == b'-' { 0xff } else { byte }).collect()),
        ("expected value", format!("\u{feff}{text}").into_bytes()),
        ("too deep", text.replace("\"v1\"", &format!("{}{}", "[".repeat(9), "]".repeat(9))).into_bytes()),
        ("larger than 16384 bytes", padded(16 * 1024)),
    ] {
        let refusal = refused(pricing.sign_bytes(payload).await, Code::InvalidArgument, "MALFORMED_JSON");
        assert!(refusal.message().contains(why), "{}", refusal.message());
    }
    refused(pricing.sign_bytes(padded(64 * 1024)).await, Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(pricing.last().await, 0);
    pricing.sign_bytes(format!(" \n{text}\r\n\t").into_bytes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_of_the_contract_is_told_by_its_claim() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let good = || Quote::number(1);
    for (what, quote, pointer) in [
        ("an unknown contract version", good().with("quote_signature_v1", json!("v2")), ""),
        ("no contract version", good().without("quote_signature_v1"), ""),
        ("a wrong total", good().with("total_customer_cost", json!("251.98")), "/total_customer_cost"),
        ("a cent too much", good().with("receive_amount", json!("29560.93")), "/receive_amount"),
        ("a cent too little", good().with("receive_amount", json!("29560.91")), "/receive_amount"),
        ("yen with decimals", good().with("receive_currency", json!("JPY")), "/receive_amount"),
        ("pounds without decimals", good().with("partner_fee", json!("1")), "/partner_fee"),
        ("a currency not reviewed", good().with("receive_currency", json!("XXX")), "/receive_currency"),
        ("a rate of zero", good().with("fx_rate", json!("0.0")), "/fx_rate"),
        ("nothing sent", good().sending(0), "/send_amount"),
        ("an end before the start", good().valid(0, -60), "/expires_at"),
        ("an end at the start", good().valid(0, 0), "/expires_at"),
        ("a validity too long", good().valid(0, 901), "/expires_at"),
        ("a start in the future", good().valid(60, 120), "/issued_at"),
        ("a date that is none", good().with("issued_at", json!("2026-02-30T10:00:00Z")), "/issued_at"),
        ("an unexpected claim", good().with("note", json!("hello")), ""),
        ("a number in place of a text", good().with("send_amount", json!(250)), "/send_amount"),
        ("a text in place of a number", good().with("quote_sequence", json!("1")), "/quote_sequence"),
        ("the number zero", good().with("quote_sequence", json!(0)), "/quote_sequence"),
        ("an empty customer", good().with("subscription_id", json!("")), "/subscription_id"),
        ("a space behind the id", good().with("quote_id", json!("q-1 ")), "/quote_id"),
    ] {
        let refusal = refused(pricing.sign(&quote).await, Code::InvalidArgument, "SCHEMA_VIOLATION");
        assert!(pointers(&refusal).iter().any(|told| told == pointer), "{what}: {refusal:?}");
        let told = format!("{refusal:?}");
        for value in quote.0.as_object().unwrap().values().filter_map(Value::as_str).filter(|value| value.len() > 2) {
            assert!(!told.contains(value), "{what}: {told}");
        }
    }
    assert_eq!(pricing.last().await, 0);
    pricing.sign(&good()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_quote_is_neither_signed_nor_worth_signing() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    for quote in [Quote::number(1).valid(-600, -60), Quote::number(1).valid(-600, 0), Quote::number(1).valid(-600, 3)] {
        refused(pricing.sign(&quote).await, Code::FailedPrecondition, "QUOTE_EXPIRED");
    }
    assert_eq!(pricing.last().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_own_id_is_empty_or_that_of_the_quote() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    let request = |quote_id: &str| quotesign::proto::SignQuoteRequest {
        environment: "development".to_owned(),
        payload: quote.bytes(),
        quote_id: quote_id.to_owned(),
        ..Default::default()
    };
    let answer = pricing.0.clone().sign_quote(request("another")).await;
    let refusal = refused(answer, Code::InvalidArgument, "SCHEMA_VIOLATION");
    assert_eq!(pointers(&refusal), ["/quote_id"]);
    pricing.0.clone().sign_quote(request(quote.0["quote_id"].as_str().unwrap())).await.unwrap();
}
