//! A ledger that comes back older than it was: nothing is signed until somebody decides.

use std::fs;

use quotesign::ledger::sqlite::Reader;
use serde_json::json;

use crate::{
    commands::client,
    harness::{PARTNER, Quote, Site, done, failed, reason, toml, until},
};

/// Signs these numbers through a gateway of its own.
async fn sign(site: &Site, numbers: std::ops::RangeInclusive<u64>) {
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    for number in numbers {
        pricing.sign(&Quote::number(number)).await.unwrap();
    }
    assert!(gateway.stop().success());
}

fn refused(site: &Site) -> String {
    let mut serve = site.command();
    serve.args(["serve", "--config"]).arg(site.config()).env("QUOTESIGN__LOG__FILTER", "off");
    failed(serve.output().unwrap(), 2)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_restored_from_a_backup_signs_nothing_until_somebody_decides() {
    let site = Site::new();
    let anchor = site.path("ledger.anchor");
    let site = site.with("QUOTESIGN__LEDGER__ANCHOR", anchor.to_str().unwrap());
    sign(&site, 1..=3).await;
    let (file, backup) = (site.path("ledger.sqlite"), site.path("backup.sqlite"));
    fs::copy(&file, &backup).unwrap();
    let accept = |floors: &[&str]| {
        let mut arguments = vec!["ledger", "accept-rollback", "--reason", "OPS-7"];
        arguments.extend(floors.iter().flat_map(|floor| ["--raise-floor", floor]));
        site.run(&arguments)
    };
    // A reader that stays open would keep the log, and with it what the backup does not have.
    let scope = {
        let reader = Reader::open(&file).unwrap();
        quotesign::ledger::Journal::scopes(&reader).unwrap().pop().unwrap().0.as_str().to_owned()
    };
    let floor = |number: u64| format!("{scope}={number}");
    let nothing = failed(accept(&[&floor(9)]), 1);
    assert!(nothing.contains("there is nothing to accept"), "{nothing}");
    sign(&site, 4..=6).await;

    fs::copy(&backup, &file).unwrap();
    assert!(!site.path("ledger.sqlite-wal").exists(), "nothing of the newer one is left");
    let told = refused(&site);
    assert!(told.contains("has gone back in time: the journal stood at"), "{told}");
    assert!(told.contains("quotesign ledger accept-rollback"), "{told}");
    let adopt = failed(site.run(&["ledger", "anchor", "adopt", "--reason", "OPS-7"]), 1);
    assert!(adopt.contains("it is not lost"), "{adopt}");
    let low = failed(accept(&[&floor(2)]), 2);
    assert!(low.contains("is below 3, taken here already"), "{low}");
    let other = failed(accept(&["[\"production\",\"other\"]=9", &floor(6)]), 2);
    assert!(other.contains("is no scope of the ledger"), "{other}");
    // One that was seeded since, and is lost altogether.
    let lost = format!("[\"development\",\"{PARTNER}\",\"GB-IN\"]=9");
    let lost = lost.as_str();
    let unnamed = failed(accept(&[lost]), 2);
    assert!(unnamed.contains("name a floor for"), "{unnamed}");
    let unknown = failed(accept(&["[\"development\",\"acme-remti\"]=9", &floor(6)]), 2);
    assert!(unknown.contains("policy has no `acme-remti`"), "{unknown}");
    let other = failed(accept(&[lost, &floor(6)]), 2);
    assert!(other.contains("policy has this partner's with no corridor"), "{other}");
    // Each caller says how far it was, and there are several to a scope.
    let twice = failed(accept(&[&floor(3), &floor(6)]), 2);
    assert!(twice.contains("is named twice: name it once, with the greatest number"), "{twice}");
    let endless = failed(accept(&[&floor((1 << 53) - 1)]), 2);
    assert!(endless.contains("would leave the sequence no room"), "{endless}");
    let scopes = |all: &str| {
        site.edit_policy(|policy| policy["partners"][0]["sequence"]["scope"] = toml(all));
    };
    scopes("['partner', 'corridor']");
    let mut halted = site.command();
    halted.args(["ledger", "accept-rollback", "--halt", "--reason", "OPS-7", "--config"]).arg(site.config());
    halted.args(["--raise-floor", &floor(6), "--raise-floor", lost]);
    let accepted = done(halted.output().unwrap());
    assert!(accepted.contains("2 floors raised") && accepted.contains("halted/all"), "{accepted}");
    scopes("['partner']");
    let scopes = quotesign::ledger::Journal::scopes(&Reader::open(&file).unwrap()).unwrap();
    assert!(scopes.iter().any(|(scope, last)| format!("{}={last}", scope.as_str()) == lost), "{scopes:?}");

    let gateway = site.start();
    let pricing = gateway.quotes("pricing").await;
    until("it knows that it is halted", async || {
        pricing.sign(&Quote::number(7)).await.is_err_and(|told| reason(&told) == "SIGNING_HALTED")
    })
    .await;
    done(client(&site, &gateway, &["resume", "--all", "--reason", "OPS-7"]));
    let lost = pricing.sign(&Quote::number(6)).await.unwrap_err();
    assert_eq!(reason(&lost), "SEQUENCE_NOT_MONOTONIC");
    pricing.sign(&Quote::number(7)).await.unwrap();
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
    let record = site.journalled("ledger.rollback_accepted", 1).await.pop().unwrap();
    assert!(record["facts"]["detail"].as_str().unwrap().ends_with(": OPS-7"), "{record}");
    assert!(record["context"]["operator"].as_str().unwrap().contains("(uid "), "{record}");
    let summary = done(site.run(&["audit", "summary", "--event", "ledger.rollback_accepted"]));
    assert!(summary.contains(&format!("by {}", record["context"]["operator"].as_str().unwrap())), "{summary}");
    assert_ne!(record["context"]["policy_serial"], json!(0), "the policy in force is not forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anchor_that_is_missing_beside_a_ledger_is_not_made_anew_by_itself() {
    let site = Site::new();
    let anchor = site.path("ledger.anchor");
    let site = site.with("QUOTESIGN__LEDGER__ANCHOR", anchor.to_str().unwrap());
    sign(&site, 1..=1).await;
    for damage in [|path: &std::path::Path| fs::remove_file(path), |path: &std::path::Path| fs::write(path, "x")] {
        damage(&anchor).unwrap();
        let told = refused(&site);
        assert!(told.contains("quotesign ledger anchor adopt"), "{told}");
        // Whoever starts new gateways by one command does not have a damaged one replaced by it.
        let file = fs::read(&anchor).ok();
        let adopted = done(site.run(&["ledger", "anchor", "adopt", "--if-missing", "--reason", "OPS-8"]));
        assert_eq!(adopted.contains("was left as it is"), file.is_some(), "{adopted}");
        if file.is_some() {
            assert_eq!(fs::read(&anchor).ok(), file);
            done(site.run(&["ledger", "anchor", "adopt", "--reason", "OPS-8"]));
        }
    }
    sign(&site, 2..=2).await;
    site.journalled("ledger.anchor_adopted", 2).await;
}
