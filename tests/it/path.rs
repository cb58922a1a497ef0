//! The path of a quote: signed, refused at every stage that can refuse, replayed, and the same after a restart.

use serde_json::json;
use tonic::Code;

use crate::harness::{Quote, Site, pointers, reason};

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_is_signed_and_the_same_quote_again_gives_the_same_jws() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    let first = pricing.sign(&quote).await.unwrap();
    assert!(!first.replayed && first.sequence == 1);
    let again = pricing.sign(&quote).await.unwrap();
    assert!(again.replayed && again.jws == first.jws && again.audit_record_id == first.audit_record_id);
    assert!(gateway.stop().success());
    let gateway = site.serve().await;
    let restarted = gateway.quotes("pricing").await.sign(&quote).await.unwrap();
    assert!(restarted.replayed && restarted.jws == first.jws);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_keeps_its_payload_and_a_number_is_used_once() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(5);
    pricing.sign(&quote).await.unwrap();
    let other = quote.clone().with("subscription_id", json!("sub_other"));
    let conflict = pricing.sign(&other).await.unwrap_err();
    assert_eq!((conflict.code(), reason(&conflict)), (Code::AlreadyExists, "QUOTE_CONFLICT".to_owned()));
    let low = pricing.sign(&Quote::number(5)).await.unwrap_err();
    assert_eq!((low.code(), reason(&low)), (Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC".to_owned()));
    let far = pricing.sign(&Quote::number(5 + 1001)).await.unwrap_err();
    assert_eq!(reason(&far), "SEQUENCE_NOT_MONOTONIC");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_violation_is_told_at_once_and_never_its_value() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1)
        .with("send_amount", json!("250.0"))
        .with("send_currency", json!("SECRET"))
        .with("issued_at", json!("2026-06-15 12:00"))
        .without("subscription_id");
    let refused = pricing.sign(&quote).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::InvalidArgument, "SCHEMA_VIOLATION".to_owned()));
    let mut pointers = pointers(&refused);
    pointers.sort();
    assert_eq!(pointers, ["/issued_at", "/send_currency", "/subscription_id"]);
    assert!(!format!("{refused:?}").contains("SECRET"));
}
