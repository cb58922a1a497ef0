//! What stops signing, by the commands that operators have: revoking a key, halting, and going on.

use std::fs;

use quotesign::proto::KeyState;
use serde_json::Value;
use tonic::Code;

use crate::{
    commands::client,
    harness::{Gateway, PARTNER, Quote, Site, done, failed, reason, refused, until},
};

/// The development key.
pub fn kid(site: &Site) -> String {
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
    assert!(told.contains(&format!("`{kid}` is revoked, for good")), "{told}");
    // At once, by the replica that was asked.
    assert_eq!(kids(&site, &gateway), Vec::<String>::new());
    // What it signed is to be issued anew, and what it had not signed waits for another key.
    refused(pricing.sign(&quote).await, Code::FailedPrecondition, "KEY_REVOKED");
    refused(pricing.sign(&Quote::number(2)).await, Code::FailedPrecondition, "NO_ACTIVE_KEY");
    assert_eq!(pricing.last().await, 1, "no number was taken");
    let misspelt = failed(client(&site, &gateway, &["keys", "report", "quote-signing-2206-12"]), 6);
    assert!(misspelt.contains("is it misspelt?"), "{misspelt}");
    // Whoever takes it out of its device harms nobody.
    let part = format!("component=\"key/{kid}");
    until("it is no part any more", async || !gateway.operations("/metrics").await.1.contains(&part)).await;
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
    // It is contained since the first time, of which the journal tells.
    assert!(
        again.contains("had been revoked before: `quotesign audit tail --kid") && !again.contains("first detected"),
        "{again}"
    );
    let resume = failed(client(&site, &gateway, &["resume", "--kid", &kid, "--reason", "no"]), 1);
    assert!(resume.contains("does not stand"), "{resume}");
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
    refused(pricing.sign(&Quote::number(11)).await, Code::FailedPrecondition, "NO_ACTIVE_KEY");
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
        assert!(failed(resumed, 1).contains("does not stand"));
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
    // A name that nobody knows is halted, and whoever gave it is told at once that what he meant still signs.
    for (reach, name) in [("--partner", "acme-remmit"), ("--kid", "quote-signing-2206-12")] {
        let told = failed(run(&["halt", reach, name, "--reason", "OPS-12"]), 6);
        assert!(told.contains("is it misspelt?") && told.contains(name), "{told}");
        done(run(&["resume", reach, name, "--reason", "OPS-12"]));
    }
    let nobody = "spiffe://dev.quotesign.example/prizing";
    let told = failed(run(&["callers", "suspend", nobody, "--reason", "OPS-12"]), 6);
    assert!(told.contains("is it misspelt?") && told.contains(nobody), "{told}");
    pricing.sign(&Quote::number(3)).await.unwrap();
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
    let halted = site.journalled("signing.halted", 6).await;
    assert_eq!(halted[0]["facts"]["stop"], "halted/all");
    let of_partner = done(site.run(&["audit", "tail", "--partner", PARTNER, "--event", "signing.halted"]));
    let of_kid = of_partner.lines().filter(|line| line.contains("halted/kid/")).count();
    assert!(of_kid > 0 && of_partner.lines().count() > of_kid, "its own halts and its keys' are found: {of_partner}");
    assert!(!of_partner.contains("halted/all"), "{of_partner}");
    assert_eq!(halted[0]["context"]["caller"], "spiffe://dev.quotesign.example/operator");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_caller_is_refused_everything_at_once_and_what_it_had_signed_is_listed() {
    const PRICING: &str = "spiffe://dev.quotesign.example/pricing";
    let site = Site::new();
    let gateway = site.serve().await;
    let (pricing, auditor) = (gateway.quotes("pricing").await, gateway.quotes("auditor").await);
    let quotes: Vec<Quote> = (1..=4).map(Quote::number).collect();
    let mut signed = Vec::new();
    for quote in &quotes[..3] {
        signed.push(pricing.sign(quote).await.unwrap());
    }
    let run = |gateway: &Gateway, args: &[&str]| {
        client(&site, gateway, &[&["callers"], args, &["--reason", "OPS-12"]].concat())
    };

    let told = done(run(&gateway, &["suspend", PRICING, "--signed-since", "2026-01-01T00:00:00Z"]));
    let listed: Vec<Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let numbers: Vec<_> = listed.iter().map(|quote| quote["sequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3], "{told}");
    let digest = quotesign::jws::CompactJws::from_text(signed[0].jws.clone()).digest().to_string();
    assert_eq!(listed[0]["jws_sha256"], Value::from(digest));
    // On the connection that was open: nothing new, nothing again, nothing read.
    let refuses = async |caller: &crate::harness::Caller| {
        for quote in [&quotes[0], &quotes[3]] {
            refused(caller.sign(quote).await, Code::PermissionDenied, "CALLER_SUSPENDED");
        }
        let mut keys = gateway.keys("pricing").await;
        let request = quotesign::proto::GetJwksRequest { partner: PARTNER.to_owned() };
        refused(keys.get_jwks(request).await, Code::PermissionDenied, "CALLER_SUSPENDED");
    };
    refuses(&pricing).await;
    assert_eq!(
        auditor
            .0
            .clone()
            .verify_quote(quotesign::proto::VerifyQuoteRequest {
                partner: PARTNER.to_owned(),
                jws: signed[0].jws.clone(),
            })
            .await
            .unwrap()
            .into_inner()
            .steps
            .len(),
        13,
        "others are as before"
    );
    // A bundle that names the caller still does not let it in.
    site.edit_policy(|_| ());
    done(client(&site, &gateway, &["admin", "reload-policy"]));
    refuses(&pricing).await;

    // Nobody locks the last door from the inside.
    let own = failed(run(&gateway, &["suspend", "spiffe://dev.quotesign.example/operator"]), 1);
    assert!(own.contains("another one must suspend it"), "{own}");
    let never = failed(run(&gateway, &["reinstate", "spiffe://dev.quotesign.example/auditor"]), 1);
    assert!(never.contains("NOT_FOUND") && never.contains("does not stand"), "{never}");
    assert!(gateway.stop().success());

    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    refused(pricing.sign(&quotes[3]).await, Code::PermissionDenied, "CALLER_SUSPENDED");
    done(run(&gateway, &["reinstate", PRICING]));
    let again = pricing.sign(&quotes[0]).await.unwrap();
    assert!(again.replayed && again.jws == signed[0].jws);
    assert!(!pricing.sign(&quotes[3]).await.unwrap().replayed);
    let events = site.journal();
    for event in ["caller.suspended", "caller.reinstated"] {
        let record = events.iter().find(|record| record["event"] == event).unwrap();
        assert_eq!(record["facts"]["stop"], format!("suspended/{PRICING}"));
    }
    assert!(gateway.stop().success());
}

/// A halt that waits in the file beside the anchor, and was taken and resumed all the same: the process ended before the file was gone,
/// or another gateway did both.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_since_it_was_stopped_here_is_not_stopped_again() {
    let site = site();
    let gateway = site.serve().await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    for act in ["halt", "resume"] {
        done(client(&site, &gateway, &[act, "--all", "--reason", "OPS-40"]));
    }
    let halted = site.journalled("signing.halted", 1).await.remove(0);
    assert!(gateway.stop().success());
    let waits = |stop: &str| {
        let (context, at) = (&halted["context"], &halted["at"]);
        serde_json::json!({ "stop": stop, "reason": "OPS-40", "context": context, "at": at }).to_string() + "\n"
    };
    let pending = site.path("ledger.anchor.pending");
    fs::write(&pending, waits("halted/all") + &waits("halted/partner/borealis-pay")).unwrap();
    let gateway = site.serve().await;
    until("the ledger was asked", async || !pending.exists()).await;
    gateway.quotes("pricing").await.sign(&Quote::number(2)).await.unwrap();
    let status = done(client(&site, &gateway, &["admin", "status"]));
    assert!(!status.contains("halted/all") && status.contains("halted/partner/borealis-pay"), "{status}");
    assert!(gateway.stop().success());
    fs::write(&pending, "no line\n").unwrap();
    let told = failed(site.run(&["serve"]), 2);
    assert!(told.contains("ledger.anchor.pending") && told.contains("cannot be read"), "{told}");
}
