//! What another bundle would have decided of what was signed.

use std::{fs, process::Output};

use serde_json::Value;

use crate::harness::{Quote, Site, done, toml};

const PRICING: &str = "spiffe://dev.quotesign.example/pricing";

/// Signs three quotes, of which the ledger then holds two, and replays them under changed bundles.
#[tokio::test(flavor = "multi_thread")]
async fn quotes_that_were_signed_are_put_to_another_bundle_as_they_came() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut kid = String::new();
    for number in 1..=3 {
        kid = pricing.sign(&Quote::number(number)).await.unwrap().kid;
    }
    // A refusal is not held.
    pricing.sign(&Quote::number(2)).await.unwrap_err();
    let copy = site.path("copy.sqlite");
    done(site.run(&["ledger", "backup", copy.to_str().unwrap()]));
    assert!(gateway.stop().success());
    // What pruning does to a quote.
    let forget = "DELETE FROM quote WHERE sequence = 1";
    rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap().execute_batch(forget).unwrap();
    let replay = |more: &[&str]| -> Output {
        let dir = site.path("policy");
        site.run(&[&["policy", "replay", dir.to_str().unwrap()], more].concat())
    };
    let told = done(replay(&[]));
    assert!(told.contains("0 would be decided otherwise, 2 as they were, 0 of these by other rules"), "{told}");
    assert!(told.contains("not replayed: 1 whose payload is not held any more"), "{told}");
    let told = done(replay(&["--ledger", copy.to_str().unwrap()]));
    assert!(told.contains("3 as they were") && told.contains("not replayed: 0 "), "the copy holds all: {told}");
    let none = done(replay(&["--since", "2999-01-01T00:00:00Z"]));
    assert!(none.contains("0 as they were"), "{none}");

    let rules = fs::read_to_string(site.path("policy/authorize.cedar")).unwrap();
    let with = |find: &str, replace: &str| {
        assert!(rules.contains(find));
        fs::write(site.path("policy/authorize.cedar"), rules.replacen(find, replace, 1)).unwrap();
    };
    let otherwise = |out: Output| -> Value {
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        serde_json::from_slice(&out.stdout).unwrap()
    };
    // A ceiling below what was sent.
    with("context.send_minor <= 500000", "context.send_minor <= 24999");
    let told = otherwise(replay(&["--format", "json"]));
    let quotes = told["replay"]["otherwise"].as_array().unwrap();
    assert_eq!(quotes.len(), 2, "{told}");
    assert!(quotes[0]["reason"] == "POLICY_DENIED" && quotes[0]["caller"] == PRICING, "{told}");
    assert_eq!(quotes.iter().map(|quote| quote["sequence"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3]);
    // Another rule that permits the same.
    with("@id(\"pricing-signs-gb-in\")", "@id(\"pricing-signs-india\")");
    assert!(done(replay(&[])).contains("2 as they were, 2 of these by other rules"));
    fs::write(site.path("policy/authorize.cedar"), &rules).unwrap();
    // No key would have signed at that time.
    site.edit_policy(|policy| {
        policy["keys"][0]["sign_from"] = toml("2999-01-01T00:00:00Z");
        policy["keys"][0]["sign_until"] = toml("2999-02-01T00:00:00Z");
        policy["keys"][0]["retire_at"] = toml("2999-03-01T00:00:00Z");
        policy["rotation"]["key_age_max_days"] = toml("1000000");
    });
    let told = otherwise(replay(&["--format", "json"]));
    assert_eq!(told["replay"]["otherwise"][0]["reason"], "NO_ACTIVE_KEY");
    assert!(told["replay"]["otherwise"][0]["why"].as_str().unwrap().contains("no key of"), "{told} {kid}");
    assert_eq!(replay(&["--ledger", "/nowhere"]).status.code(), Some(2));
}
