//! A gateway that is full, and callers that cannot wait: nothing is lost and no number is taken twice.

use std::time::Duration;

use quotesign::proto::SignQuoteRequest;
use tonic::Code;

use crate::harness::{Quote, Site, refused, until, wait};

/// A site whose first signature takes this long, with threads enough that nothing else waits for it.
fn slow(point: &str, sleep_ms: u32) -> Site {
    Site::new().with("FAILPOINTS", &format!("{point}=1*sleep({sleep_ms})->off")).with("TOKIO_WORKER_THREADS", "4")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_gateway_refuses_before_a_number_is_taken() {
    let site = slow("pipeline::before-sign", 2_000).with("QUOTESIGN__LIMITS__IN_FLIGHT_MAX", "1");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let first = tokio::spawn({
        let pricing = pricing.clone();
        async move { pricing.sign(&Quote::number(1)).await }
    });
    until("the first quote holds its number", async || pricing.last().await == 1).await;
    let second = Quote::number(2);
    let full = refused(pricing.sign(&second).await, Code::ResourceExhausted, "OVERLOADED");
    assert!(!wait(&full).is_zero());
    assert_eq!(pricing.last().await, 1);
    assert_eq!(first.await.unwrap().unwrap().sequence, 1);
    assert_eq!(pricing.sign(&second).await.unwrap().sequence, 2);
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
