//! Sequences: numbers that rise, scopes that an operator creates, floors that never fall.

use quotesign::proto::{ActivateKeyRequest, SeedSequenceRequest, SeedSequenceResponse};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    harness::{Gateway, PARTNER, Quote, Site, metadata, preconditions, refused, toml},
    stops::kid,
};

async fn seed(gateway: &Gateway, floor: u64, reason: &str) -> Result<SeedSequenceResponse, Status> {
    let request =
        SeedSequenceRequest { partner: PARTNER.into(), corridor: String::new(), floor, reason: reason.into() };
    gateway.admin("operator").await.seed_sequence(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_does_not_fit_is_told_what_would() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    pricing.sign(&Quote::number(5)).await.unwrap();
    for number in [4, 5] {
        let low = pricing.sign(&Quote::number(number)).await;
        let low = refused(low, Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC");
        assert_eq!((metadata(&low, "given"), metadata(&low, "last")), (number.to_string(), "5".to_owned()));
        assert_eq!(preconditions(&low), [("SEQUENCE".to_owned(), String::new())]);
    }
    let far = refused(pricing.sign(&Quote::number(1006)).await, Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC");
    assert_eq!((metadata(&far, "given"), metadata(&far, "last")), ("1006".to_owned(), "5".to_owned()));
    assert_eq!(metadata(&far, "highest_acceptable"), "1005");
    let sequence = pricing.sequence("").await.unwrap();
    assert_eq!((sequence.last, sequence.highest_acceptable), (5, 1005));
    pricing.sign(&Quote::number(1005)).await.unwrap();
    let corridor = pricing.sequence("GB-IN").await;
    refused(corridor, Code::InvalidArgument, "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_development_an_operator_creates_a_sequence_and_its_floor_only_rises() {
    let site = Site::sandbox();
    let gateway = site.start();
    let pricing = gateway.quotes("pricing").await;
    let sign = async |number| pricing.sign_in("sandbox", Quote::number(number).bytes()).await;
    // The bundle says that the key was published yesterday; this ledger has seen it served since now.
    let waits = refused(sign(1).await, Code::FailedPrecondition, "NO_ACTIVE_KEY");
    assert!(waits.message().contains("may not sign yet"), "{}", waits.message());
    let request = ActivateKeyRequest { kid: kid(&site), reason: "OPS-0".to_owned() };
    gateway.admin("operator").await.activate_key(request).await.unwrap();
    gateway.signing().await;
    refused(sign(1).await, Code::FailedPrecondition, "SEQUENCE_SCOPE_UNKNOWN");
    refused(pricing.sequence("").await, Code::FailedPrecondition, "SEQUENCE_SCOPE_UNKNOWN");
    refused(seed(&gateway, 41, "").await, Code::InvalidArgument, "INVALID_REQUEST");
    refused(seed(&gateway, 41, "two\nlines").await, Code::InvalidArgument, "INVALID_REQUEST");
    refused(seed(&gateway, 1 << 53, "too high").await, Code::InvalidArgument, "INVALID_REQUEST");
    let seeded = seed(&gateway, 41, "OPS-1: after the migration").await.unwrap();
    assert_eq!(seeded.previous, None);
    refused(sign(41).await, Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC");
    assert_eq!(sign(42).await.unwrap().sequence, 42);
    for floor in [0, 41, 42] {
        refused(seed(&gateway, floor, "OPS-2").await, Code::FailedPrecondition, "FLOOR_NOT_RAISED");
    }
    assert_eq!(seed(&gateway, 100, "OPS-3").await.unwrap().previous, Some(42));
    refused(sign(100).await, Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC");
    assert_eq!(sign(101).await.unwrap().sequence, 101);
    let records = site.journalled("sequence.seeded", 2).await;
    assert_eq!(records[0]["id"], json!(seeded.audit_record_id));
    assert_eq!(records[0]["facts"]["detail"], "OPS-1: after the migration");
    assert_eq!(records[0]["context"]["caller"], "spiffe://dev.quotesign.example/operator");
    assert_eq!(
        (&records[1]["facts"]["previous_sequence"], &records[1]["facts"]["sequence"]),
        (&json!(42), &json!(100))
    );
    assert_eq!(records.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_policy_says_so_each_corridor_has_a_sequence_of_its_own() {
    let site = Site::new();
    site.edit_policy(|policy| policy["partners"][0]["sequence"]["scope"] = toml("['partner', 'corridor']"));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let to_nigeria =
        |number| Quote::number(number).with("corridor", json!("GB-NG")).with("receive_currency", json!("NGN"));
    pricing.sign(&Quote::number(7)).await.unwrap();
    pricing.sign(&to_nigeria(1)).await.unwrap();
    refused(pricing.sign(&to_nigeria(1)).await, Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC");
    pricing.sign(&to_nigeria(2)).await.unwrap();
    assert_eq!(pricing.sequence("GB-IN").await.unwrap().last, 7);
    assert_eq!(pricing.sequence("GB-NG").await.unwrap().last, 2);
    assert_eq!(pricing.sequence("GB-PH").await.unwrap().last, 0);
    refused(pricing.sequence("").await, Code::InvalidArgument, "INVALID_REQUEST");
    refused(pricing.sequence("gb-in").await, Code::InvalidArgument, "INVALID_REQUEST");
}
