//! What stops signing, by the commands that operators have: revoking a key, halting, and going on.

use std::fs;

use quotesign::proto::KeyState;
use serde_json::Value;
use tonic::Code;

use crate::{
    commands::client,
    harness::{Gateway, PARTNER, Quote, Site, done, failed, reason, refused, until},
};

fn kid(site: &Site) -> String {
    let file = fs::read_dir(site.path("policy/keys")).unwrap().next().unwrap().unwrap().file_name();
    file.into_string().unwrap().strip_suffix(".jwk.json").unwrap().to_owned()
}

/// A site whose ledger has an anchor, and so a file of revoked kids beside it.
fn site() -> Site {
    let site = Site::new();
    let anchor = site.path("ledger.anchor");
    site.with("QUOTESIGN__LEDGER__ANCHOR", anchor.to_str().unwrap())
}

fn kids(site: &Site, gateway: &Gateway) -> Vec<String> {
    let set: Value = serde_json::from_str(&done(client(site, gateway, &["jwks"]))).unwrap();
    set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_signs_replays_and_publishes_nothing_ever_again() {
    let site = site();
    let kid = kid(&site);
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    let signed = pricing.sign(&quote).await.unwrap();
    assert_eq!(kids(&site, &gateway), [kid.as_str()]);
    done(site.run(&["ledger", "backup", site.path("before").to_str().unwrap()]));

    let told = done(client(&site, &gateway, &["keys", "revoke", &kid, "--reason", "lost, OPS-9"]));
    assert!(told.starts_with(&format!("`{kid}` is revoked, for good")), "{told}");
    // At once, by the replica that was asked.
    assert_eq!(kids(&site, &gateway), Vec::<String>::new());
    for quote in [&quote, &Quote::number(2)] {
        refused(pricing.sign(quote).await, Code::FailedPrecondition, "KEY_REVOKED");
    }
    assert_eq!(pricing.last().await, 1, "no number was taken");
    let jws = signed.jws;
    fs::write(site.path("quote.jws"), &jws).unwrap();
    let verified = client(&site, &gateway, &["verify", site.path("quote.jws").to_str().unwrap()]);
    let steps = String::from_utf8(verified.stdout.clone()).unwrap();
    assert_eq!(failed(verified, 1), "quotesign: the signed quote is not valid\n");
    assert!(steps.lines().any(|line| line.starts_with("FAILED") && line.contains("kid")), "{steps}");
    let mut listed = gateway.keys("operator").await;
    let request = quotesign::proto::ListKeysRequest { partner: PARTNER.to_owned() };
    let keys = listed.list_keys(request).await.unwrap().into_inner().keys;
    assert_eq!(keys.iter().map(quotesign::proto::Key::state).collect::<Vec<_>>(), [KeyState::Revoked]);
    assert!(!keys[0].current);
    let status = done(client(&site, &gateway, &["admin", "status"]));
    assert!(status.contains(&format!("STOPPED     revoked/{kid}")), "{status}");
    until("signing is not serving", async || !gateway.can_sign().await).await;
    let again = done(client(&site, &gateway, &["keys", "revoke", &kid, "--reason", "again"]));
    assert!(again.contains("audit record"), "{again}");
    let resume = failed(client(&site, &gateway, &["resume", "--kid", &kid, "--reason", "no"]), 1);
    assert!(resume.contains("is not halted"), "{resume}");
    assert!(gateway.stop().success());

    // A ledger that has gone back in time, and its revocations with it, learns them again.
    for end in ["-wal", "-shm"] {
        drop(fs::remove_file(site.path(&format!("ledger.sqlite{end}"))));
    }
    fs::copy(site.path("before"), site.path("ledger.sqlite")).unwrap();
    let floor = format!("[\"development\",\"{PARTNER}\"]=10");
    done(site.run(&["ledger", "accept-rollback", "--reason", "OPS-9", "--raise-floor", &floor]));
    let gateway = site.start();
    gateway.logged("the ledger had lost a revocation").await;
    let pricing = gateway.quotes("pricing").await;
    refused(pricing.sign(&Quote::number(11)).await, Code::FailedPrecondition, "KEY_REVOKED");
    assert_eq!(kids(&site, &gateway), Vec::<String>::new());
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
    let records = site.journalled("key.revoked", 1).await;
    assert!(records[0]["facts"]["detail"].as_str().unwrap().contains("had lost it"), "{records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_halt_stands_until_that_very_one_is_resumed() {
    let site = site();
    let kid = kid(&site);
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let first = Quote::number(1);
    let signed = pricing.sign(&first).await.unwrap();
    let run = |args: &[&str]| client(&site, &gateway, args);
    for reach in [&["--all"][..], &["--partner", PARTNER], &["--kid", &kid]] {
        let act = |act| [&[act][..], reach, &["--reason", "price feed wrong, OPS-10"]].concat();
        done(run(&act("halt")));
        for quote in [&first, &Quote::number(9)] {
            refused(pricing.sign(quote).await, Code::Unavailable, "SIGNING_HALTED");
        }
        assert_eq!(kids(&site, &gateway), [kid.as_str()], "keys stay published");
        // Another reach than the one that stands.
        let other = if reach == ["--all"] { &["--partner", PARTNER][..] } else { &["--all"] };
        let resumed = run(&[&["resume"][..], other, &["--reason", "not this one"]].concat());
        assert!(failed(resumed, 1).contains("is not halted"));
        refused(pricing.sign(&first).await, Code::Unavailable, "SIGNING_HALTED");
        done(run(&act("resume")));
        assert_eq!(pricing.sign(&first).await.unwrap().jws, signed.jws);
    }
    pricing.sign(&Quote::number(2)).await.unwrap();
    for bad in [
        &["halt", "--reason", "x"][..],
        &["halt", "--all", "--kid", "a", "--reason", "x"],
        &["halt", "--all", "--reason", ""],
    ] {
        assert!(!run(bad).status.success(), "{bad:?}");
    }
    // What another gateway, or another hand, has put into the ledger is known within a second.
    done(run(&["halt", "--partner", PARTNER, "--reason", "OPS-11"]));
    until("health says so", async || {
        done(run(&["admin", "status"])).contains("signing/acme-remit: signing is stopped (halted/partner/acme-remit)")
    })
    .await;
    assert!(gateway.stop().success());
    let gateway = site.start();
    let pricing = gateway.quotes("pricing").await;
    until("it is halted after a restart too", async || {
        reason(&pricing.sign(&first).await.unwrap_err()) == "SIGNING_HALTED"
    })
    .await;
    done(client(&site, &gateway, &["resume", "--partner", PARTNER, "--reason", "OPS-11"]));
    pricing.sign(&first).await.unwrap();
    let halted = site.journalled("signing.halted", 4).await;
    assert_eq!(halted[0]["facts"]["stop"], "halted/all");
    assert_eq!(halted[0]["context"]["caller"], "spiffe://dev.quotesign.example/operator");
}
