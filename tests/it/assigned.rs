//! Numbers that the gateway gives, and the time at which the values shown to the customer were fixed.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use quotesign::{
    clock::{Clock as _, SystemClock, UtcTime},
    proto::{SignQuoteRequest, SignQuoteResponse},
};
use serde_json::{Value, json};
use tonic::Status;

use crate::harness::{Caller, Quote, Site, pointers, reason};

/// A site whose partner's quotes are numbered by the gateway.
fn assigning() -> Site {
    let site = Site::new();
    site.edit_policy(|policy| policy["partners"][0]["sequence"]["mode"] = toml_edit::value("assign"));
    site
}

fn unnumbered() -> Quote {
    Quote::number(1).without("quote_sequence")
}

fn payload(answer: &SignQuoteResponse) -> Value {
    let part = answer.jws.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_puts_the_number_in_before_it_signs() {
    let site = assigning();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = unnumbered();
    let first = pricing.sign(&quote).await.unwrap();
    assert!(!first.replayed && first.sequence == 1);
    assert_eq!(payload(&first), quote.clone().with("quote_sequence", json!(1)).0, "nothing else is added");
    let next = pricing.sign(&unnumbered()).await.unwrap();
    assert_eq!((next.sequence, &payload(&next)["quote_sequence"]), (2, &json!(2)));

    let again = pricing.sign(&quote).await.unwrap();
    assert!(again.replayed && again.sequence == 1 && again.jws == first.jws);
    let changed = quote.with("subscription_id", json!("sub_other"));
    assert_eq!(reason(&pricing.sign(&changed).await.unwrap_err()), "QUOTE_CONFLICT");
    let later = pricing.sign(&unnumbered()).await.unwrap();
    assert_eq!(later.sequence, 3, "neither a replay nor a conflict takes a number");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_at_the_same_time_get_numbers_of_their_own() {
    const CALLERS: u64 = 24;
    let site = assigning();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let calls = (0..CALLERS).map(|_| {
        let pricing = pricing.clone();
        tokio::spawn(async move { pricing.sign(&unnumbered()).await.unwrap() })
    });
    let mut numbers = BTreeSet::new();
    for call in calls.collect::<Vec<_>>() {
        let answer = call.await.unwrap();
        assert_eq!(payload(&answer)["quote_sequence"], json!(answer.sequence));
        numbers.insert(answer.sequence);
    }
    assert_eq!(numbers, (1..=CALLERS).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_the_caller_gives_is_refused() {
    let site = assigning();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    for sent in [json!(1), json!(7), json!(0), json!("1"), Value::Null] {
        let refused = pricing.sign(&unnumbered().with("quote_sequence", sent)).await.unwrap_err();
        assert_eq!(reason(&refused), "SCHEMA_VIOLATION");
        assert_eq!(pointers(&refused), ["/quote_sequence"]);
    }
    // Where callers number, one that leaves the number out is refused as well.
    let site = Site::new();
    let gateway = site.serve().await;
    let refused = gateway.quotes("pricing").await.sign(&unnumbered()).await.unwrap_err();
    assert_eq!(pointers(&refused), ["/quote_sequence"]);
}

async fn sign_fixed(caller: &Caller, quote: &Quote, at: Option<UtcTime>) -> Result<SignQuoteResponse, Status> {
    let values_fixed_at = at.map(|at| prost_types::Timestamp {
        seconds: at.millis().div_euclid(1000),
        nanos: i32::try_from(at.millis().rem_euclid(1000)).unwrap() * 1_000_000,
    });
    let payload = quote.0.to_string().into_bytes();
    let request =
        SignQuoteRequest { environment: "development".into(), payload, values_fixed_at, ..Default::default() };
    caller.0.clone().sign_quote(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_values_were_fixed_is_asked_for_bounded_and_recorded() {
    let site = Site::new();
    site.edit_policy(|policy| policy["validity"]["values_fixed_at"] = toml_edit::value("required"));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let now = SystemClock.now();
    for at in [None, Some(now.plus(Duration::from_mins(1))), Some(UtcTime::from_millis(253_402_300_799_999))] {
        let refused = sign_fixed(&pricing, &Quote::number(1), at).await.unwrap_err();
        assert_eq!(reason(&refused), "SCHEMA_VIOLATION");
        assert_eq!(pointers(&refused), ["values_fixed_at"]);
    }
    for beyond in [253_402_300_800_000, i64::MAX / 2, -62_167_219_200_001, i64::MIN / 2] {
        let refused = sign_fixed(&pricing, &Quote::number(1), Some(UtcTime::from_millis(beyond))).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_REQUEST", "{beyond}");
    }
    // A broken claim does not hide it.
    let both = sign_fixed(&pricing, &Quote::number(1).with("corridor", json!("")), None).await.unwrap_err();
    assert_eq!(pointers(&both), ["/corridor", "values_fixed_at"]);

    let fixed_at = now.minus(Duration::from_millis(61_001));
    let quote = Quote::number(1);
    let signed = sign_fixed(&pricing, &quote, Some(fixed_at)).await.unwrap();
    assert_eq!(payload(&signed), quote.0, "it is no part of what is signed");
    let record = site.run(&["audit", "show", &signed.audit_record_id]);
    let record: Value = serde_json::from_slice(&record.stdout).unwrap();
    assert_eq!(record["event"], json!("quote.committed"));
    assert_eq!(record["context"]["values_fixed_at"], json!(fixed_at.to_string()));

    // Where policy does not ask for it, it may be left out, and then no record has it.
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let signed = sign_fixed(&pricing, &Quote::number(1), None).await.unwrap();
    let record = site.run(&["audit", "show", &signed.audit_record_id]);
    let record: Value = serde_json::from_slice(&record.stdout).unwrap();
    assert_eq!(record["context"]["values_fixed_at"], Value::Null);
    let ahead = sign_fixed(&pricing, &Quote::number(2), Some(now.plus(Duration::from_hours(1)))).await.unwrap_err();
    assert_eq!(pointers(&ahead), ["values_fixed_at"]);
}
