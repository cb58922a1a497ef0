//! Quotas: on attempts, in memory and before anything is parsed; on signed quotes, in the ledger and for good.

use std::time::Instant;

use tonic::{Code, Status};

use crate::harness::{Caller, DAY, Quote, Site, quotas, reason, refused, toml, wait};

/// The largest number of calls in which a spent quota must show.
const CALLS_MAX: u64 = 200;

/// Signs quotes from this number on until one is refused; the number and the refusal.
async fn spend(pricing: &Caller, from: u64) -> (u64, Status) {
    for number in from..from + CALLS_MAX {
        if let Err(refusal) = pricing.sign(&Quote::number(number)).await {
            return (number, refusal);
        }
    }
    panic!("the quota was never spent");
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_bounded_for_each_caller_and_strangers_spend_none_but_their_own() {
    let site = Site::new();
    site.edit_policy(|policy| policy["quotas"]["attempts_per_caller"] = toml("{ per_second = 1, burst = 4 }"));
    site.admit("stranger", &["spiffe://dev.quotesign.example/stranger"], &[]);
    let gateway = site.serve().await;
    let stranger = gateway.quotes("stranger").await;
    let mut refusals = Vec::new();
    for _ in 0..CALLS_MAX {
        let refusal = stranger.sign_bytes(b"not even JSON".to_vec()).await.unwrap_err();
        if refusal.code() == Code::ResourceExhausted {
            refusals.push(refusal);
            break;
        }
        refused::<()>(Err(refusal), Code::InvalidArgument, "MALFORMED_JSON");
    }
    let limited = refused::<()>(Err(refusals.pop().unwrap()), Code::ResourceExhausted, "RATE_LIMITED");
    assert!(!wait(&limited).is_zero());
    assert_eq!(quotas(&limited), ["attempts_per_caller"]);
    let pricing = gateway.quotes("pricing").await;
    pricing.sign(&Quote::number(1)).await.unwrap();
    let (number, limited) = spend(&pricing, 2).await;
    assert!(number >= 5, "the burst is 4, and {number} was refused");
    let limited = refused::<()>(Err(limited), Code::ResourceExhausted, "RATE_LIMITED");
    assert_eq!(quotas(&limited), ["attempts_per_caller"]);
    // Reading where the sequence stands would be an attempt too.
    assert_eq!(site.journalled("quote.reserved", 1).await.last().unwrap()["facts"]["sequence"], number - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_quota_of_signed_quotes_stays_spent_over_a_restart_and_replays_are_free() {
    const BURST: u64 = 30;
    for (quota, of) in
        [("signed_per_partner", "acme-remit"), ("signed_per_caller", "spiffe://dev.quotesign.example/pricing")]
    {
        let site = Site::new();
        site.edit_policy(|policy| {
            policy["quotas"][quota] = toml(&format!("{{ per_second = 1, burst = {BURST} }}"));
        });
        let gateway = site.serve().await;
        let pricing = gateway.quotes("pricing").await;
        let first = Quote::number(1);
        let signed = pricing.sign(&first).await.unwrap();
        let (number, limited) = spend(&pricing, 2).await;
        assert!(number > BURST, "the burst is {BURST}, and {number} was refused");
        let limited = refused::<()>(Err(limited), Code::ResourceExhausted, "RATE_LIMITED");
        assert!(!wait(&limited).is_zero());
        assert_eq!(quotas(&limited), [format!("{quota}/{of}")]);
        assert_eq!(pricing.last().await, number - 1);
        assert_eq!(pricing.sign(&first).await.unwrap().jws, signed.jws);
        gateway.kill();
        let gateway = site.serve().await;
        let pricing = gateway.quotes("pricing").await;
        assert_eq!(pricing.sign(&first).await.unwrap().jws, signed.jws);
        // What came back in the meantime is one a second, far from a new burst.
        let (again, _) = spend(&pricing, number).await;
        assert!(again - number < BURST, "{} more were signed", again - number);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_of_a_key_is_spent_once_and_says_when_the_next_begins() {
    let site = Site::new();
    site.edit_policy(|policy| {
        policy["quotas"]["signed_per_key"] = toml("{ per_second = 50, burst = 3, per_day = 3 }");
    });
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let (number, limited) = spend(&pricing, 1).await;
    assert_eq!(number, 4);
    let limited = refused::<()>(Err(limited), Code::ResourceExhausted, "RATE_LIMITED");
    let [quota] = &*quotas(&limited) else { panic!() };
    assert!(quota.starts_with("signed_per_key.per_day/"), "{quota}");
    let (wait, day) = (wait(&limited), DAY);
    assert!(wait <= day && wait > std::time::Duration::ZERO, "{wait:?}");
    assert!(gateway.stop().success());
    let gateway = site.serve().await;
    let again = gateway.quotes("pricing").await.sign(&Quote::number(4)).await.unwrap_err();
    assert_eq!(reason(&again), "RATE_LIMITED", "a restart gives nothing back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_signs_more_than_usual_is_told_and_nothing_is_refused() {
    let site = Site::new();
    site.edit_policy(|policy| policy["volume"]["warn_per_hour"] = toml("3"));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut kid = String::new();
    for number in 1..=3 {
        kid = pricing.sign(&Quote::number(number)).await.unwrap().kid;
    }
    let metric = async |name: &str| {
        let line = format!("quotesign_{name}{{kid=\"{kid}\"}} ");
        let text = gateway.operations("/metrics").await.1;
        text.lines().find_map(|told| told.strip_prefix(&line).map(str::to_owned))
    };
    crate::harness::until("it is counted", async || metric("key_signatures_this_hour").await.as_deref() == Some("3"))
        .await;
    assert_eq!(metric("key_volume_unusual").await.as_deref(), Some("0"));
    for number in 4..=6 {
        pricing.sign(&Quote::number(number)).await.unwrap();
    }
    let told = site.journalled("key.volume_unusual", 1).await;
    assert_eq!((told.len(), &told[0]["facts"]["kid"]), (1, &serde_json::Value::from(kid.as_str())), "{told:?}");
    crate::harness::until("the metric says so", async || metric("key_volume_unusual").await.as_deref() == Some("1"))
        .await;
    assert_eq!(site.journalled("key.volume_unusual", 1).await.len(), 1, "once in its hour");
    assert!(gateway.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_gives_back_nothing_of_a_quota_that_stays_as_it_was() {
    let site = Site::new();
    site.edit_policy(|policy| {
        policy["quotas"]["attempts_per_caller"] = toml("{ per_second = 1, burst = 12 }");
        policy["quotas"]["signed_per_caller"] = toml("{ per_second = 1, burst = 4, per_day = 1000 }");
    });
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut admin = gateway.admin("operator").await;
    let reload = quotesign::proto::ReloadPolicyRequest {};
    let (mut signed, mut spent, begun) = (0, Vec::<String>::new(), Instant::now());
    let is_spent = |spent: &[String], quota| spent.iter().any(|text| text.contains(quota));
    for number in 1..=CALLS_MAX {
        // Another bundle now and then, with the same quotas. The operator has attempts of its own.
        if number.is_multiple_of(4) && number <= 20 {
            site.edit_policy(|_| ());
            admin.reload_policy(reload).await.unwrap();
        }
        match pricing.sign(&Quote::number(number)).await {
            Ok(_) => signed += 1,
            Err(status) => spent.push(status.message().to_owned()),
        }
        if number > 20 && is_spent(&spent, "signed_per_caller") && is_spent(&spent, "attempts_per_caller") {
            break;
        }
    }
    // The burst, and what comes back in the seconds that all this takes: five bursts that were given again would be more.
    assert!(
        (4..=6 + begun.elapsed().as_secs()).contains(&signed),
        "{signed} signed in {:?}: {spent:?}",
        begun.elapsed()
    );
    for quota in ["signed_per_caller", "attempts_per_caller"] {
        assert!(is_spent(&spent, quota), "{quota}: {spent:?}");
    }
    // A quota that was changed begins anew.
    site.edit_policy(|policy| policy["quotas"]["attempts_per_caller"] = toml("{ per_second = 1, burst = 13 }"));
    admin.reload_policy(reload).await.unwrap();
    let status = pricing.sign(&Quote::number(99)).await.unwrap_err();
    assert!(!status.message().contains("attempts_per_caller"), "{status:?}");
    assert!(gateway.stop().success());
}
