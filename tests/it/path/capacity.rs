//! A gateway that is full, and callers that cannot wait: nothing is lost and no number is taken twice.

use std::time::Duration;

use quotesign::{ledger::step::Stage, proto::SignQuoteRequest};
use tonic::Code;

use crate::harness::{Quote, Site, reason, refused, until, wait};

/// A site whose first signature takes this long, with threads enough that nothing else waits for it.
fn slow(point: &str, sleep_ms: u32) -> Site {
    Site::new().with("FAILPOINTS", &format!("{point}=1*sleep({sleep_ms})->off")).with("TOKIO_WORKER_THREADS", "4")
}

/// Three places: one session, and two quotes may wait for it. Of three places a lone caller may hold two, so that there
/// is always room for another.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_device_refuses_before_a_number_is_taken_and_keeps_room_for_another_caller() {
    let site =
        Site::new().with("FAILPOINTS", "pipeline::before-sign=2*sleep(2000)->off").with("TOKIO_WORKER_THREADS", "4");
    site.edit_signer("sessions", 1.into());
    site.edit_signer("queue_max", 2.into());
    site.edit_policy(|policy| {
        let mut other = policy["callers"][0].clone();
        other["id"] = toml_edit::value("spiffe://dev.quotesign.example/pricing-2");
        policy["callers"].as_array_of_tables_mut().unwrap().push(other.into_table().unwrap());
    });
    site.admit("pricing-2", &["spiffe://dev.quotesign.example/pricing-2"], &[]);
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let sign = |number| {
        let pricing = pricing.clone();
        tokio::spawn(async move { pricing.sign(&Quote::number(number)).await })
    };
    let first = sign(1);
    until("the first quote holds its number", async || pricing.last().await == 1).await;
    let second = sign(2);
    until("the second quote holds its number", async || pricing.last().await == 2).await;
    let third = Quote::number(3);
    let full = refused(pricing.sign(&third).await, Code::ResourceExhausted, "OVERLOADED");
    assert!(!wait(&full).is_zero());
    assert_eq!(pricing.last().await, 2);
    let other = gateway.quotes("pricing-2").await.sign(&Quote::number(3)).await.unwrap();
    assert_eq!(other.sequence, 3);
    assert_eq!(first.await.unwrap().unwrap().sequence, 1);
    assert_eq!(second.await.unwrap().unwrap().sequence, 2);
    assert_eq!(pricing.sign(&Quote::number(4)).await.unwrap().sequence, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_ran_out_of_time_is_made_again_and_gets_the_jws() {
    for point in ["pipeline::before-sign", "pipeline::before-commit"] {
        let site = slow(point, 1_000);
        let gateway = site.serve().await;
        let mut pricing = gateway.quotes_without_a_timer("pricing").await;
        let quote = Quote::number(1);
        let mut request = tonic::Request::new(SignQuoteRequest {
            environment: "development".to_owned(),
            payload: quote.bytes(),
            ..SignQuoteRequest::default()
        });
        request.set_timeout(Duration::from_millis(300));
        refused(pricing.sign_quote(request).await, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        let pricing = gateway.quotes("pricing").await;
        let retried = pricing.sign(&quote).await.unwrap();
        assert_eq!((retried.sequence, pricing.last().await), (1, 1));
        // The first call's own signature is committed or dropped before the gateway ends.
        assert!(gateway.stop().success());
        let committed = site.journalled("quote.committed", 1).await;
        assert_eq!(committed.len(), 1, "{committed:?}");
        let gateway = site.serve().await;
        assert_eq!(gateway.quotes("pricing").await.sign(&quote).await.unwrap().jws, retried.jws);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_came_after_the_quotes_expiry_is_not_released() {
    let site = slow("pipeline::before-sign", 4_500);
    site.edit_policy(|policy| policy["validity"]["useful_s"] = toml_edit::value(1));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1).valid(0, 4);
    let refused = pricing.sign(&quote).await.unwrap_err();
    assert_eq!(reason(&refused), "QUOTE_EXPIRED");
    assert_eq!(site.stage(&quote), Some(Stage::Reserved), "signed or not, it was never stored");
    assert_eq!(reason(&pricing.sign(&quote).await.unwrap_err()), "QUOTE_EXPIRED");
}
