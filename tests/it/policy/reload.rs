//! How a running gateway comes to another bundle: it acts on what `bundle.digest` announces, refuses what is not good, and
//! where it is told to, takes signed bundles alone.

use std::{
    fs,
    os::unix::fs::symlink,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use quotesign::{
    clock::{Clock as _, SystemClock},
    proto::ReloadPolicyRequest,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    commands::client,
    harness::{Gateway, PARTNER, Quote, Site, done, failed, quotesign, reason, timed_key, until},
    kills::number_from,
};

fn digest(site: &Site, write: bool) -> String {
    let mut command = quotesign();
    command.args(["policy", "digest"]).arg(site.path("policy"));
    if write {
        command.arg("--write");
    }
    done(command.output().unwrap()).trim_end().to_owned()
}

fn status(site: &Site, gateway: &Gateway) -> String {
    done(client(site, gateway, &["admin", "status"]))
}

async fn comes_into_force(site: &Site, gateway: &Gateway, digest: &str) {
    until("the bundle is in force", async || status(site, gateway).contains(digest)).await;
}

/// Longer than the gateway takes to look again, twice.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(1500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_changes_on_disk_is_taken_over_once_its_digest_is_announced() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let before = digest(&site, true);
    comes_into_force(&site, &gateway, &before).await;
    // Files that are being written announce nothing.
    site.edit_policy(|policy| policy["quotas"]["signed_per_key"]["burst"] = toml_edit::value(501));
    a_while().await;
    assert!(status(&site, &gateway).contains(&before), "what is not announced is not read");
    let after = digest(&site, true);
    assert_ne!(before, after);
    comes_into_force(&site, &gateway, &after).await;
    pricing.sign(&Quote::number(1)).await.unwrap();

    // One that is announced and no good: told, journalled once, and the last good one goes on serving.
    let text = fs::read_to_string(site.path("policy/policy.toml")).unwrap();
    fs::write(site.path("policy/policy.toml"), text.replace("jump_max = 1000", "jump_max = 0")).unwrap();
    let files = quotesign::policy::files::read(&site.path("policy")).unwrap();
    fs::write(site.path("policy/bundle.digest"), quotesign::policy::files::digest(&files).to_string()).unwrap();
    let refused = site.journalled("policy.refused", 1).await;
    assert!(refused[0]["facts"]["detail"].as_str().unwrap().contains("jump_max"), "{refused:?}");
    a_while().await;
    assert_eq!(site.journalled("policy.refused", 1).await.len(), 1, "it is not tried again and again");
    assert!(status(&site, &gateway).contains(&after));
    until("the metric says so", async || {
        gateway.operations("/metrics").await.1.contains("component_serving{component=\"policy\"} 0")
    })
    .await;
    let (ready, parts) = gateway.operations("/readyz?for=signing").await;
    assert!(ready == 200 && parts.contains("jump_max"), "{parts}");
    pricing.sign(&Quote::number(2)).await.unwrap();
    fs::write(site.path("policy/policy.toml"), text).unwrap();
    site.edit_policy(|_| ());
    let mended = digest(&site, true);
    comes_into_force(&site, &gateway, &mended).await;
    until("all is well", async || {
        gateway.operations("/metrics").await.1.contains("component_serving{component=\"policy\"} 1")
    })
    .await;
    assert!(gateway.stop().success());
}

/// As a mounted `ConfigMap` is: each name a link into `..data`, which is itself a link that is swapped in one piece.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_swapped_by_a_link_is_taken_over() {
    let site = Site::new();
    let mounted = site.path("mounted");
    fs::create_dir(&mounted).unwrap();
    let lay = |version: &str| {
        digest(&site, true);
        super::copy(&site.path("policy"), &mounted.join(version));
        symlink(version, mounted.join("..new")).unwrap();
        fs::rename(mounted.join("..new"), mounted.join("..data")).unwrap();
    };
    lay("..one");
    for entry in fs::read_dir(site.path("policy")).unwrap() {
        let name = entry.unwrap().file_name();
        symlink(format!("..data/{}", name.to_str().unwrap()), mounted.join(&name)).unwrap();
    }
    site.edit_config(|config| config["policy"] = toml_edit::value("mounted"));
    let gateway = site.serve().await;
    let before = digest(&site, false);
    comes_into_force(&site, &gateway, &before).await;
    site.edit_policy(|_| ());
    lay("..two");
    let after = digest(&site, false);
    assert_ne!(before, after);
    comes_into_force(&site, &gateway, &after).await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    assert!(gateway.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_can_take_signed_bundles_alone() {
    let site = Site::new();
    let out = site.path("seal");
    let made = ["keys", "generate", "--signer", "hsm-primary", "--kid", "policy-signing-2026", "--partner", PARTNER];
    done(site.run(&[&made[..], &["--out", out.to_str().unwrap()]].concat()));
    let jwk = out.join("policy-signing-2026.jwk.json");
    let dir = site.path("policy");
    let (jwk, dir) = (jwk.to_str().unwrap(), dir.to_str().unwrap());
    let locator = "pkcs11:token=quotesign-dev;object=policy-signing-2026;type=private";
    let sign = || -> Output {
        site.run(&["policy", "sign", dir, "--signer", "hsm-primary", "--locator", locator, "--jwk", jwk])
    };
    let verify = || quotesign().args(["policy", "verify", dir, "--jwk", jwk]).output().unwrap();
    site.edit_config(|config| config["policy_key"] = toml_edit::value(jwk));
    let unsigned = failed(site.run(&["config", "check"]), 2);
    assert!(unsigned.contains("bundle.jws: is no detached JWS; sign the bundle"), "{unsigned}");

    // Neither of the two keys that sign something else signs a bundle, not even one that no gateway takes.
    let kid = fs::read_dir(site.path("policy/keys")).unwrap().next().unwrap().unwrap().file_name();
    let kid = kid.to_str().unwrap().trim_end_matches(".jwk.json").to_owned();
    let pinned = site.path(&format!("policy/keys/{kid}.jwk.json"));
    let checkpoint = site.path("checkpoint.jwk.json");
    for (object, jwk, said) in
        [(&*kid, pinned.as_path(), "take another for quotes"), ("checkpoints-dev", &checkpoint, "signs checkpoints")]
    {
        let locator = format!("pkcs11:token=quotesign-dev;object={object};type=private");
        let args = ["policy", "sign", dir, "--signer", "hsm-primary", "--locator", &locator, "--jwk"];
        let refused = failed(site.run(&[&args[..], &[jwk.to_str().unwrap()]].concat()), 2);
        assert!(refused.contains(said) && !site.path("policy/bundle.jws").exists(), "{refused}");
    }

    done(sign());
    done(verify());
    openssl_agrees(&site, jwk);
    let gateway = site.serve().await;
    // Another bundle, with the signature of the one before.
    site.edit_policy(|_| ());
    assert!(failed(verify(), 1).contains("is not `policy-signing-2026`'s of these files"));
    let refused = failed(client(&site, &gateway, &["admin", "reload-policy"]), 1);
    assert!(refused.contains("its signature is not"), "{refused}");
    done(sign());
    done(client(&site, &gateway, &["admin", "reload-policy"]));
    // Nor is the signature of a quote one of a bundle, nor an empty one, nor another header.
    let signed = gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap().jws;
    let good = fs::read_to_string(site.path("policy/bundle.jws")).unwrap();
    let (_, signature) = good.split_once("..").unwrap();
    let mut quote = signed.split('.');
    let (header, of_quote) = (quote.next().unwrap(), quote.nth(1).unwrap());
    for forged in [
        format!("{header}..{of_quote}"),
        format!("{header}..{signature}"),
        good.replace(signature, "\n"),
        good.replacen("..", ".", 1),
        String::new(),
    ] {
        fs::write(site.path("policy/bundle.jws"), forged).unwrap();
        failed(verify(), 1);
        failed(client(&site, &gateway, &["admin", "reload-policy"]), 1);
    }
    fs::write(site.path("policy/bundle.jws"), good).unwrap();
    done(client(&site, &gateway, &["admin", "reload-policy"]));
    assert_eq!(site.journalled("policy.refused", 6).await.len(), 6);
    // One that is announced before it is signed is refused, and taken over once it is.
    site.edit_policy(|_| ());
    let announced = digest(&site, true);
    site.journalled("policy.refused", 7).await;
    a_while().await;
    done(sign());
    comes_into_force(&site, &gateway, &announced).await;
    assert!(gateway.stop().success());
    assert_eq!(site.journalled("policy.refused", 7).await.len(), 7);
}

/// The list of the files as `sha256sum` prints it, verified with nothing of ours.
fn openssl_agrees(site: &Site, jwk: &str) {
    let script = r#"
set -eu
cd "$1"
sums=$(find . -path ./cases -prune -o -type f ! -name README.md ! -name 'bundle.*' -print | sed 's#^\./##' | LC_ALL=C sort | xargs sha256sum)
/usr/bin/python3 - "$2" > ../seal/public.pem <<'EOF'
import json, sys
from jwcrypto import jwk
sys.stdout.buffer.write(jwk.JWK(**json.load(open(sys.argv[1]))).export_to_pem())
EOF
header=$(cut -d. -f1 bundle.jws)
printf '%s.%s' "$header" "$(printf '%s\n' "$sums" | base64 -w0 | tr '+/' '-_' | tr -d '=')" > ../seal/input
"#;
    let ran = Command::new("bash").args(["-c", script, "-"]).arg(site.path("policy")).arg(jwk).output().unwrap();
    done(ran);
    let jws = fs::read_to_string(site.path("policy/bundle.jws")).unwrap();
    let signature = jws.trim_end().rsplit('.').next().unwrap();
    fs::write(site.path("seal/signature"), URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-verify", "public.pem", "-signature", "signature", "input"]);
    assert_eq!(done(openssl.current_dir(site.path("seal")).output().unwrap()), "Verified OK\n");
}

/// Reloads while calls are under way: none of them fails, and what they cost is told.
#[tokio::test(flavor = "multi_thread")]
async fn reloading_under_full_load_drops_no_call() {
    const CALLERS: u64 = 12;
    let site = Site::new();
    site.edit_policy(|policy| {
        for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            policy["quotas"][quota] = toml_edit::value(toml_edit::InlineTable::from_iter([
                ("per_second", toml_edit::Value::from(100_000)),
                ("burst", 100_000.into()),
            ]));
        }
        policy["partners"][0]["sequence"]["jump_max"] = toml_edit::value(1_000_000);
    });
    let gateway = site.serve().await;
    let next = Arc::new(AtomicU64::new(1));
    let loads = number_from("TRIALS", 20).min(200) / 4;
    let mut p99 = Vec::new();
    for reloading in [false, true, false, true] {
        let over = CancellationToken::new();
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (pricing, next, over) = (gateway.quotes("pricing").await, next.clone(), over.clone());
            callers.spawn(async move {
                let mut took = Vec::new();
                while !over.is_cancelled() {
                    let begun = Instant::now();
                    // Numbers that race may be refused; nothing else may.
                    match pricing.sign(&Quote::number(next.fetch_add(1, Ordering::Relaxed))).await {
                        Ok(_) => took.push(begun.elapsed()),
                        Err(status) => assert_eq!(reason(&status), "SEQUENCE_NOT_MONOTONIC", "{status:?}"),
                    }
                }
                took
            });
        }
        let mut admin = gateway.admin("operator").await;
        for _ in 0..loads {
            if reloading {
                site.edit_policy(|_| ());
                admin.reload_policy(ReloadPolicyRequest {}).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        over.cancel();
        let mut took: Vec<Duration> = callers.join_all().await.concat();
        took.sort();
        println!("reloading: {reloading}, {} calls, p99 {:?}", took.len(), took[took.len() * 99 / 100]);
        p99.push(took[took.len() * 99 / 100].as_secs_f64());
    }
    println!("p99 while reloading is {:.2} times that without", (p99[1] + p99[3]) / (p99[0] + p99[2]));
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
}

/// The ledger remembers the keys of bundles that nobody has any more; one that gives such a kid to another key is refused as loudly as
/// any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_kid_that_was_another_key_in_some_bundle_before_is_refused_loudly() {
    let site = Site::new();
    let gateway = site.serve().await;
    let reload = || client(&site, &gateway, &["admin", "reload-policy"]);
    let tomorrow = SystemClock.now().plus(Duration::from_hours(24));
    let times = [0, 24, 48, 96].map(|hours| tomorrow.plus(Duration::from_hours(hours)));
    let keys = ["quote-b1", "quote-b2"].map(|kid| {
        let args =
            ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER, "--bits", "2048", "--kid", kid];
        let out = site.path(kid);
        let printed = done(site.run(&[&args[..], &["--out", out.to_str().unwrap()]].concat()));
        (printed, fs::read_to_string(out.join(format!("{kid}.jwk.json"))).unwrap())
    });
    let [(printed, first), (_, other)] = keys;
    let pinned = site.path("policy/keys/quote-b1.jwk.json");
    let with = |jwk: &str| {
        fs::write(&pinned, jwk).unwrap();
        site.edit_policy(|policy| {
            policy["keys"].as_array_of_tables_mut().unwrap().push(timed_key(&printed, times));
        });
    };
    with(&first);
    done(reload());
    fs::remove_file(&pinned).unwrap();
    site.edit_policy(|policy| {
        policy["keys"].as_array_of_tables_mut().unwrap().retain(|key| key["kid"].as_str() != Some("quote-b1"));
    });
    done(reload());
    with(&other.replace("quote-b2", "quote-b1"));
    let refused = failed(reload(), 1);
    assert!(refused.contains("BUNDLE_REFUSED") && refused.contains("`quote-b1` was another key"), "{refused}");
    let journalled = site.journalled("policy.refused", 1).await;
    assert!(journalled[0]["facts"]["detail"].as_str().unwrap().contains("quote-b1"), "{journalled:?}");
    until("it is counted", async || {
        gateway.operations("/metrics").await.1.contains("quotesign_policy_reloads_total{result=\"refused\"} 1")
    })
    .await;
    assert!(status(&site, &gateway).contains("was another key"));
    assert!(gateway.stop().success());
}
