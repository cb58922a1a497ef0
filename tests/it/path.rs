//! The path of a quote: signed, refused at every stage that can refuse, replayed, and the same after a restart.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{DAY, Quote, Site, pointers, preconditions, reason, refused, seconds, toml, until, wait};
use quotesign::clock::{Clock as _, SystemClock};

mod capacity;
mod contract;
mod quotas;
mod sequences;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_environment_is_refused() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    for other in ["production", "sandbox", "Development", ""] {
        let answer = pricing.sign_in(other, Quote::number(1).bytes()).await;
        refused(answer, Code::FailedPrecondition, "ENVIRONMENT_MISMATCH");
    }
    assert_eq!(pricing.last().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_says_no_in_one_sentence_whatever_the_rule() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let auditor = gateway.quotes("auditor").await;
    let quote = Quote::number(1);
    let mut said = BTreeSet::new();
    for (caller, quote) in [
        (&auditor, quote.clone()),
        (&pricing, quote.clone().with("partner_id", json!("nobody"))),
        (&pricing, quote.clone().sending(500_001)),
        (&pricing, quote.clone().with("corridor", json!("GB-KP"))),
        (&pricing, quote.clone().with("corridor", json!("GB-US"))),
    ] {
        let denied = refused(caller.sign(&quote).await, Code::PermissionDenied, "POLICY_DENIED");
        said.insert((denied.message().to_owned(), denied.details().to_vec()));
    }
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said.first().unwrap().0, "policy does not let this caller sign this quote");
    let records = site.journalled("quote.refused", 5).await;
    let rules: Vec<_> = records.iter().map(|record| record["context"]["rule_ids"].clone()).collect();
    assert_eq!(rules.iter().filter(|ids| **ids == json!(["no-sanctioned-corridor"])).count(), 1, "{rules:?}");
    assert_eq!(pricing.last().await, 0);
    pricing.sign(&quote.sending(500_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_that_may_sign_now_nothing_is_signed() {
    let site = Site::new();
    let tomorrow = toml(&seconds(SystemClock.now().plus(DAY)));
    site.edit_policy(|policy| policy["keys"][0]["sign_from"] = tomorrow);
    let gateway = site.start();
    let pricing = gateway.quotes("pricing").await;
    let answer = pricing.sign(&Quote::number(1)).await;
    let none = refused(answer, Code::FailedPrecondition, "NO_ACTIVE_KEY");
    assert_eq!(preconditions(&none), [("KEY".to_owned(), "acme-remit".to_owned())]);
    assert_eq!(pricing.last().await, 0);
    assert!(!gateway.can_sign().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_device_the_gateway_takes_no_number_and_asks_to_come_again() {
    let site = Site::new();
    let (tokens, away) = (site.path("tokens"), site.path("tokens-away"));
    std::fs::rename(&tokens, &away).unwrap();
    std::fs::create_dir(&tokens).unwrap();
    let gateway = site.start();
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    let down = refused(pricing.sign(&quote).await, Code::Unavailable, "SIGNER_UNAVAILABLE");
    assert!(!wait(&down).is_zero());
    assert_eq!(pricing.last().await, 0);
    gateway.kill();
    std::fs::remove_dir(&tokens).unwrap();
    std::fs::rename(&away, &tokens).unwrap();
    let gateway = site.serve().await;
    let signed = gateway.quotes("pricing").await.sign(&quote).await.unwrap();
    assert!(signed.sequence == 1 && !signed.replayed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_journalled_takes_no_number_and_tells_no_value() {
    const CUSTOMER: &str = "sub_7f3k-marked";
    const AMOUNTS: [&str; 3] = ["1731.31", "3462.62", "1733.30"];
    let site = Site::new().with("QUOTESIGN__LOG__FILTER", "quotesign=trace,info");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let marked = |number| Quote::number(number).with("subscription_id", json!(CUSTOMER)).sending(173_131);
    let signed = marked(3);
    pricing.sign(&signed).await.unwrap();
    let text = marked(4).0.to_string();
    let mut told = Vec::new();
    for (payload, why) in [
        (text.replace("\"GB-IN\"", "0.5"), "MALFORMED_JSON"),
        (format!("{text}{text}"), "MALFORMED_JSON"),
        (text.replacen('{', &format!("{{\"subscription_id\":\"{CUSTOMER}\","), 1), "MALFORMED_JSON"),
        (text.replace("GBP", CUSTOMER), "SCHEMA_VIOLATION"),
        (text.replace("1733.30", "1731.31"), "SCHEMA_VIOLATION"),
        (text.replace("quote_id", "quote.id"), "SCHEMA_VIOLATION"),
        (marked(4).valid(-600, 1).0.to_string(), "QUOTE_EXPIRED"),
        (text.replace("GB-IN", "KP-IN"), "POLICY_DENIED"),
        (marked(3).0.to_string(), "SEQUENCE_NOT_MONOTONIC"),
        (marked(3000).0.to_string(), "SEQUENCE_NOT_MONOTONIC"),
        (signed.with("principal_fee", json!("0.51")).sending(173_131).0.to_string(), "SCHEMA_VIOLATION"),
    ] {
        let refusal = pricing.sign_bytes(payload.into_bytes()).await.unwrap_err();
        assert_eq!(reason(&refusal), why);
        told.push(format!("{refusal:?}"));
        assert_eq!(pricing.last().await, 3, "{why} took a number");
    }
    let records = site.journalled("quote.refused", told.len()).await;
    for (record, refusal) in records.iter().zip(&told) {
        assert!(refusal.contains(record["facts"]["reason"].as_str().unwrap()), "{record} {refusal}");
        assert_eq!(record["context"]["caller"], "spiffe://dev.quotesign.example/pricing");
    }
    assert_eq!(records.len(), told.len());
    told.extend(site.journal().iter().map(ToString::to_string));
    told.extend(gateway.log.lock().unwrap().iter().cloned());
    for text in told {
        assert!(!text.contains(CUSTOMER) && !AMOUNTS.iter().any(|amount| text.contains(amount)), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_get_one_jws_for_one_quote_and_no_number_twice() {
    const MANY: u64 = 64;
    let site = Site::new();
    site.edit_policy(|policy| {
        for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            policy["quotas"][quota] = toml("{ per_second = 10000, burst = 10000 }");
        }
    });
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let same = Quote::number(1);
    let alike: Vec<_> = (0..MANY)
        .map(|_| {
            let (pricing, same) = (pricing.clone(), same.clone());
            tokio::spawn(async move { pricing.sign(&same).await.unwrap().jws })
        })
        .collect();
    let mut one = BTreeSet::new();
    for jws in alike {
        one.insert(jws.await.unwrap());
    }
    assert_eq!(one.len(), 1);
    let rising: Vec<_> = (2..MANY + 2)
        .map(|number| {
            let pricing = pricing.clone();
            tokio::spawn(async move { (number, pricing.sign(&Quote::number(number)).await) })
        })
        .collect();
    let mut signed = BTreeSet::from([1]);
    for answer in rising {
        match answer.await.unwrap() {
            (number, Ok(answer)) => assert!(answer.sequence == number && signed.insert(number)),
            (_, late) => drop(refused(late, Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC")),
        }
    }
    let numbers = |event| {
        let records = site.journal().into_iter().filter(move |record| record["event"] == event);
        records.map(|record| record["facts"]["sequence"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    // In the order of the journal: each number above the one before it, and every one of them accounted for.
    assert_eq!(numbers("quote.reserved"), signed.iter().copied().collect::<Vec<_>>());
    assert_eq!(numbers("quote.committed").into_iter().collect::<BTreeSet<_>>(), signed);
    assert_eq!(numbers("quote.committed").len(), signed.len());
    // Numbers that arrive later still find the highest one taken.
    assert_eq!(pricing.last().await, MANY + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_does_not_verify_is_never_released() {
    let site = Site::new().with("FAILPOINTS", "device::corrupt-signature=1*return->off");
    // Whoever hears errors alone of the edge is told the same id.
    let site = site.with("QUOTESIGN__LOG__FILTER", "info,quotesign::transport::edge=error");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    refused(pricing.sign(&quote).await, Code::Internal, "SIGNATURE_MISMATCH");
    gateway.logged("alarm").await;
    let records = site.journalled("quote.refused", 1).await;
    assert_eq!(records[0]["facts"]["reason"], "SIGNATURE_MISMATCH", "the alarm is on record");
    let log = gateway.log.lock().unwrap().clone();
    let of_key = log.iter().find(|line| line.contains("a signature does not verify")).unwrap();
    let of_key: Value = serde_json::from_str(of_key).unwrap();
    assert_eq!(of_key["span"]["correlation_id"], records[0]["context"]["correlation_id"], "the line is the call's");
    assert!(!pricing.sign(&quote).await.unwrap().replayed, "the number was kept, and the next signature is good");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_released_while_the_ledger_cannot_record() {
    // The store waits for the other process, and waits again to be opened anew, before it gives up.
    let site = Site::new().with("QUOTESIGN__LIMITS__DEADLINE_MS_MAX", "60000");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let other = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let quote = Quote::number(1);
    let away = refused(pricing.sign(&quote).await, Code::Unavailable, "LEDGER_UNAVAILABLE");
    assert!(!wait(&away).is_zero());
    other.execute_batch("ROLLBACK").unwrap();
    let mut signed = None;
    until("the ledger records again", async || {
        signed = pricing.sign(&quote).await.ok();
        signed.is_some()
    })
    .await;
    let signed = signed.unwrap();
    assert!(!signed.replayed && signed.sequence == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_is_told_at_once_whatever_else_cannot_be_read() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let told = async |quote: Quote| {
        let refused = pricing.sign(&quote).await.unwrap_err();
        assert_eq!(reason(&refused), "SCHEMA_VIOLATION");
        let mut pointers = pointers(&refused);
        pointers.sort();
        pointers
    };
    // The corridor cannot be read; the sum, the rate and the times are wrong all the same.
    let many = Quote::number(1)
        .valid(3_600, 3_000)
        .with("corridor", json!("?"))
        .with("total_customer_cost", json!("1.00"))
        .with("receive_amount", json!("1.00"));
    assert_eq!(told(many).await, ["/corridor", "/expires_at", "/issued_at", "/receive_amount", "/total_customer_cost"]);
    // One fee cannot be read: the total cannot be checked, the rate and the amounts can.
    let fee = Quote::number(1).with("partner_fee", json!("1.999")).with("fx_rate", json!("3.5"));
    assert_eq!(told(fee).await, ["/partner_fee", "/receive_amount"]);
    // In one currency the rate is one, also where rounding hides that it is not.
    let same = Quote::number(1).with("receive_currency", json!("GBP")).with("fx_rate", json!("1.0000001"));
    let same = {
        let sent = same.0["send_amount"].clone();
        same.with("receive_amount", sent)
    };
    assert_eq!(told(same).await, ["/fx_rate"]);
}
