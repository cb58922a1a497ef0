//! The commands, as people and scripts use them: what they print, what they refuse, and how they exit.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use clap::CommandFactory as _;
use quotesign::{cli::Cli, domain::sha256, ledger::sqlite::Reader};
use rusqlite::Connection;
use serde_json::Value;

use crate::harness::{DAY, Gateway, PARTNER, Quote, Site, done, failed, quotesign, seconds, toml, until};
use quotesign::clock::{Clock as _, SystemClock};

mod config;
mod reload;

/// Writes a client file with pricing's certificate for gRPC and the operator's for admin.
pub fn client_file(site: &Site, gateway: &Gateway) -> PathBuf {
    let file = site.path("client-now.toml");
    let text = format!(
        "environment = 'development'\npartner = '{PARTNER}'\nca = 'tls/ca.pem'\njwks = 'https://{}'\n\
         [grpc]\nurl = 'https://{}'\ncertificate = 'tls/pricing.pem'\nprivate_key = 'tls/pricing.key'\n\
         [admin]\nurl = 'https://{}'\ncertificate = 'tls/operator.pem'\nprivate_key = 'tls/operator.key'\n",
        gateway.address("jwks"),
        gateway.address("grpc"),
        gateway.address("admin")
    );
    fs::write(&file, text).unwrap();
    file
}

/// Runs a client command to its end, with that file.
pub fn client(site: &Site, gateway: &Gateway, args: &[&str]) -> Output {
    quotesign().args(args).arg("--client").arg(client_file(site, gateway)).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_is_filled_in_for_whichever_sequence_its_partner_has() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/quote.json");
    for mode in ["verify", "assign"] {
        let site = Site::new();
        site.edit_policy(|policy| {
            let sequence = format!("{{ scope = ['partner', 'corridor'], mode = '{mode}', jump_max = 1000 }}");
            policy["partners"][0]["sequence"] = toml(&sequence);
        });
        let mut quote: Value = serde_json::from_str(&fs::read_to_string(example).unwrap()).unwrap();
        if mode == "assign" {
            quote.as_object_mut().unwrap().remove("quote_sequence").unwrap();
        }
        let file = site.path("quote.json");
        fs::write(&file, quote.to_string()).unwrap();
        let gateway = site.serve().await;
        for number in 1..=2 {
            let args = ["sign", file.to_str().unwrap(), "--fill", "--format", "json"];
            let told: Value = serde_json::from_str(&done(client(&site, &gateway, &args))).unwrap();
            assert_eq!(told["sequence"], number, "{mode}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_is_signed_kept_sent_again_and_verified_by_command() {
    let site = Site::new();
    let gateway = site.serve().await;
    let run = |args: &[&str]| client(&site, &gateway, args);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/quote.json");
    let (saved, signed, jwks) = (site.path("quote.json"), site.path("signed.jws"), site.path("jwks.json"));
    let [saved, signed, jwks] = [&saved, &signed, &jwks].map(|path| path.to_str().unwrap());

    let jws = done(run(&["sign", example, "--fill", "--save", saved]));
    fs::write(signed, &jws).unwrap();
    let again: Value = serde_json::from_str(&done(run(&["sign", saved, "--format", "json"]))).unwrap();
    assert_eq!((&again["jws"], &again["replayed"], &again["sequence"]), (&jws.trim().into(), &true.into(), &1.into()));
    fs::write(jwks, done(run(&["jwks"]))).unwrap();
    for args in [&["verify", signed][..], &["verify", jws.trim()], &["verify", signed, "--jwks", jwks]] {
        let said = done(run(args));
        assert!(said.contains("passed       verify_rs256_signature\n") && !said.contains("FAILED"), "{said}");
    }
    let changed = jws.trim().replacen('.', ".A", 1);
    let refused = run(&["verify", &changed]);
    assert!(String::from_utf8_lossy(&refused.stdout).contains("FAILED"));
    assert_eq!(failed(refused, 1), "quotesign: the signed quote is not valid\n");

    let stale = failed(run(&["sign", example]), 1);
    assert!(stale.starts_with("quotesign: QUOTE_EXPIRED: "), "{stale}");
    fs::write(saved, Quote::number(2).without("corridor").bytes()).unwrap();
    let broken = failed(run(&["sign", saved]), 1);
    assert_eq!(
        broken,
        "quotesign: SCHEMA_VIOLATION: the quote breaks its contract in 1 places\nquotesign:   /corridor is missing\n"
    );
    let nowhere = failed(run(&["sign", "nowhere.json"]), 2);
    assert_eq!(nowhere, "quotesign: nowhere.json: No such file or directory (os error 2)\n");
    let unknown = failed(run(&["jwks", "--partner", "nobody"]), 1);
    assert!(unknown.contains("/partners/nobody/") && unknown.contains("404"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_the_state_and_raises_a_floor() {
    let site = Site::new();
    let gateway = site.serve().await;
    let run = |args: &[&str]| client(&site, &gateway, args);
    for args in [&["health"][..], &["health", "--partner", PARTNER]] {
        assert_eq!(done(run(args)), "SERVING\n");
    }
    assert_eq!(failed(run(&["health", "--partner", "nobody"]), 1).lines().count(), 1);
    let digest = done(quotesign().args(["policy", "digest"]).arg(site.path("policy")).output().unwrap());
    let status = done(run(&["admin", "status"]));
    assert!(status.contains(&format!("policy serial 1, digest {digest}")), "{status}");
    for part in ["ledger", "clock", "signer/hsm-primary", "signing/acme-remit"] {
        assert!(status.lines().any(|line| line.starts_with("serving") && line.ends_with(part)), "{part}: {status}");
    }
    assert!(!status.contains("NOT SERVING"), "{status}");
    let seed = |floor| run(&["admin", "seed-sequence", "--floor", floor, "--reason", "OPS-1"]);
    assert!(done(seed("50")).starts_with("the sequence was created with the floor 50\naudit record "));
    assert!(done(seed("60")).starts_with("the floor was raised from 50 to 60\naudit record "));
    assert_eq!(failed(seed("60"), 1), "quotesign: FLOOR_NOT_RAISED: the floor 60 is not above 60\n");
    let partner = failed(run(&["admin", "seed-sequence", "--floor", "1", "--reason", "x", "--partner", "nobody"]), 1);
    assert!(partner.starts_with("quotesign: NOT_FOUND: "), "{partner}");
    gateway.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_not_there_is_one_line() {
    let site = Site::new();
    let gateway = site.start();
    let ended = |args: &[&str], gateway: &Gateway| client(&site, gateway, args);
    assert!(ended(&["admin", "status"], &gateway).status.success());
    gateway.signal(rustix::process::Signal::KILL);
    until("the gateway is gone", async || !ended(&["admin", "status"], &gateway).status.success()).await;
    for args in [&["health"][..], &["admin", "status"], &["jwks"]] {
        let line = failed(ended(args, &gateway), 1);
        assert!(line.lines().count() == 1 && line.contains("https://127.0.0.1:"), "{line}");
    }
    let absent = failed(quotesign().args(["health", "--client", "nowhere.toml"]).output().unwrap(), 2);
    assert_eq!(absent.lines().count(), 1);
    assert!(absent.contains("nowhere.toml: cannot be read") && absent.contains("--client"), "{absent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_shown_and_its_chain_verified_while_the_gateway_writes() {
    let site = Site::new();
    let gateway = site.serve().await;
    // So that the quote's records are the last ones.
    site.journalled("key.served", 1).await;
    site.journalled("key.turned", 1).await;
    let signed = gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    let shown: Value = serde_json::from_str(&done(site.run(&["audit", "show", &signed.audit_record_id]))).unwrap();
    assert_eq!((&shown["event"], &shown["facts"]["sequence"]), (&"quote.committed".into(), &1.into()));
    let tail = done(site.run(&["audit", "tail", "-n", "2"]));
    let events: Vec<Value> =
        tail.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone()).collect();
    assert_eq!(events, ["quote.reserved", "quote.committed"]);
    let verified = done(site.run(&["audit", "verify"]));
    assert!(verified.starts_with("vouched for: records 0 to 5 in 6 links\nhead 6:"), "{verified}");
    let none = failed(site.run(&["audit", "show", "00000000-0000-7000-8000-000000000000"]), 1);
    assert_eq!(none, "quotesign: the journal holds no record 00000000-0000-7000-8000-000000000000\n");

    gateway.kill();
    let ledger = Connection::open(site.path("ledger.sqlite")).unwrap();
    let change = |sql: &str| ledger.execute(sql, ()).unwrap();
    assert_eq!(change("UPDATE audit SET record = CAST(replace(record, 'GB-IN', 'GB-NG') AS BLOB) WHERE idx = 4"), 1);
    assert_eq!(failed(site.run(&["audit", "verify"]), 1).lines().count(), 1);
    change("UPDATE audit SET record = CAST(replace(record, 'GB-NG', 'GB-IN') AS BLOB) WHERE idx = 4");
    done(site.run(&["audit", "verify"]));
    change("DELETE FROM audit WHERE idx = 5");
    let shorter = failed(site.run(&["audit", "verify"]), 1);
    assert_eq!(shorter, "quotesign: the journal ends at 5, and its head says 6\n");
}

#[test]
fn keys_on_the_device_are_listed_and_checked_against_policy() {
    let site = Site::new();
    let file = kids(&site.path("policy/keys")).pop().unwrap();
    let kid = file.strip_suffix(".jwk.json").unwrap().to_owned();
    let out = site.path("elsewhere");
    let other = ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER, "--kid", "quote-signing-other"];
    done(site.run(&[&other[..], &["--bits", "2048", "--out", out.to_str().unwrap()]].concat()));
    let listed = done(site.run(&["keys", "list"]));
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    let [checkpoints, own, other] = lines.as_slice() else { panic!("{listed}") };
    assert_eq!((checkpoints[1], checkpoints[3], checkpoints[4]), ("2048", "checkpoints-dev (checkpoints)", "fit"));
    assert_eq!((other[1], other[3], other[4]), ("2048", "not in policy", "fit"));
    assert_eq!((own[0], own[1], own[3], own[4]), ("hsm-primary", "3072", &*kid, "fit"));
    assert_eq!(own[5], format!("pkcs11:token=quotesign-dev;object={kid};type=private"));

    assert_eq!(done(site.run(&["keys", "check"])), format!("{kid}\thsm-primary\tsigns\n"));
    assert!(failed(site.run(&["keys", "check", "--kid", "none"]), 2).contains("no such key"));
    // Pinned to the other key: it must not pass for the first.
    let jwk = fs::read_to_string(out.join("quote-signing-other.jwk.json")).unwrap();
    let pinned = jwk.replace("quote-signing-other", &kid);
    fs::write(site.path(&format!("policy/keys/{kid}.jwk.json")), pinned).unwrap();
    let unfit = site.run(&["keys", "check"]);
    assert!(String::from_utf8_lossy(&unfit.stdout).contains("it is not the key that policy pins"));
    assert_eq!(failed(unfit, 1), "quotesign: 1 of 1 do not sign\n");
    let nowhere = failed(site.run(&["keys", "list", "--signer", "none"]), 2);
    assert_eq!(nowhere, "quotesign: --signer: the config has no `none`; it has: hsm-primary\n");
}

/// Nobody could call, and nobody revoke a key: the gateway does not start so.
#[test]
fn callers_of_whom_no_listener_lets_in_one_are_told() {
    let site = Site::new();
    for listener in ["grpc", "admin"] {
        site.edit_config(|config| config[listener]["trust_domain"] = toml_edit::value("other.example"));
    }
    for check in [&["config", "check"][..], &["keys", "check"]] {
        let told = failed(site.run(check), 2);
        for field in ["`grpc.trust_domain`, so nobody can call", "`admin.trust_domain`, so nobody could"] {
            assert!(told.contains(field), "{told}");
        }
    }
}

/// Each key is another login, and a few with a wrong PIN lock a token.
#[test]
fn a_check_of_keys_tries_a_wrong_pin_once() {
    let site = Site::new();
    let args = ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER, "--kid", "quote-signing-other"];
    done(site.run(&[&args[..], &["--bits", "2048"]].concat()));
    site.edit_policy(|policy| {
        let mut other = policy["keys"][0].clone();
        other["kid"] = toml_edit::value("quote-signing-other");
        other["locator"] = toml_edit::value("pkcs11:token=quotesign-dev;object=quote-signing-other;type=private");
        policy["keys"].as_array_of_tables_mut().unwrap().push(other.into_table().unwrap());
    });
    assert_eq!(done(site.run(&["keys", "check"])).matches("\tsigns\n").count(), 2);
    fs::write(site.path("pin"), "not the pin\n").unwrap();
    let checked = site.run(&["keys", "check"]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!((told.matches("C_Login: PinIncorrect").count(), told.matches("not tried\n").count()), (1, 1), "{told}");
    assert_eq!(failed(checked, 1), "quotesign: 2 of 2 do not sign\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_once_shown_without_its_private_half_and_rotated_in_by_policy() {
    let site = Site::new();
    let old = kids(&site.path("policy/keys"));
    let keys = |act: &str, kid: &str, more: &[&str]| {
        let args = ["keys", act, "--signer", "hsm-primary", "--partner", PARTNER, "--kid", kid];
        site.run(&[&args[..], more].concat())
    };
    let snippet = done(keys("generate", "quote-signing-next", &["--bits", "2048"]));
    let file = site.path("policy/keys/quote-signing-next.jwk.json");
    let jwk = fs::read_to_string(&file).unwrap();
    let members: Value = serde_json::from_str(&jwk).unwrap();
    let members: BTreeSet<&str> = members.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, BTreeSet::from(["kty", "kid", "use", "alg", "n", "e"]));
    let again = failed(keys("generate", "quote-signing-next", &["--bits", "2048"]), 1);
    assert_eq!(again, "quotesign: `quote-signing-next` exists already; a kid is never used again\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), jwk);
    let elsewhere = site.path("elsewhere");
    assert!(done(keys("jwk", "quote-signing-next", &["--out", elsewhere.to_str().unwrap()])).contains("[[keys]]"));
    assert_eq!(fs::read_to_string(elsewhere.join("quote-signing-next.jwk.json")).unwrap(), jwk);
    assert_eq!(failed(keys("jwk", "quote-signing-none", &[]), 1).lines().count(), 1);
    let few = failed(keys("generate", "quote-signing-few", &["--bits", "1024"]), 1);
    assert_eq!(few, "quotesign: a key of 1024 bits is not made; it needs 2048 to 8192\n");
    assert!(failed(keys("generate", "latest", &[]), 2).starts_with("quotesign: --kid: a kid is "));
    let signer =
        failed(site.run(&["keys", "jwk", "--signer", "other", "--partner", PARTNER, "--kid", "quote-signing-x"]), 2);
    assert_eq!(signer, "quotesign: --signer: the config has no `other`; it has: hsm-primary\n");

    // What it printed goes into policy.toml with the times of the plan.
    let entry: toml_edit::DocumentMut = snippet.parse().unwrap();
    site.edit_policy(|policy| {
        let mut key = entry["keys"].as_array_of_tables().unwrap().get(0).unwrap().clone();
        let now = SystemClock.now();
        for (field, at) in [
            ("publish_at", now.minus(DAY)),
            ("sign_from", now),
            ("sign_until", now.plus(DAY * 30)),
            ("retire_at", now.plus(DAY * 40)),
        ] {
            key.insert(field, toml(&seconds(at)));
        }
        // The first one was made in this very second, perhaps, and of two that begin at once the kid decides.
        for field in ["publish_at", "sign_from"] {
            policy["keys"][0][field] = toml(&seconds(now.minus(DAY)));
        }
        policy["keys"].as_array_of_tables_mut().unwrap().push(key);
    });
    let checked = done(quotesign().args(["policy", "check"]).arg(site.path("policy")).output().unwrap());
    let current = checked.lines().find(|line| line.ends_with("signs now")).unwrap();
    assert!(current.contains("quote-signing-next"), "{checked}");
    let gateway = site.serve().await;
    assert_eq!(gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap().kid, "quote-signing-next");
    let set = gateway.client("pricing").jwks(&PARTNER.parse().unwrap()).await.unwrap();
    let set: Value = serde_json::from_slice(&set).unwrap();
    assert_eq!(set["keys"].as_array().unwrap().len(), old.len() + 1);
}

fn kids(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_is_migrated_once_and_belongs_to_one_gateway() {
    let site = Site::new();
    let file = site.path("ledger.sqlite");
    let ready = format!("{}: ready for development\n", file.display());
    assert_eq!(done(site.run(&["ledger", "migrate"])), ready);
    let gateway = site.serve().await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    let in_use = format!("quotesign: the ledger `{}` is in use by another process\n", file.display());
    assert_eq!(failed(site.run(&["ledger", "migrate"]), 1), in_use);
    let second =
        site.command().args(["serve", "--config"]).arg(site.config()).env("QUOTESIGN__LOG__FILTER", "off").output();
    assert_eq!(failed(second.unwrap(), 2), in_use);
    assert!(gateway.can_sign().await);
    assert!(gateway.stop().success());
    let before = Reader::open(&file).unwrap().head().unwrap();
    assert_eq!(done(site.run(&["ledger", "migrate"])), ready);
    assert_eq!(Reader::open(&file).unwrap().head().unwrap(), before);
}

#[test]
fn a_bundle_is_checked_and_its_digest_can_be_made_with_sha256sum() {
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/policy");
    let run = |args: &[&str]| quotesign().args(args).output().unwrap();
    let digest = done(run(&["policy", "digest", policy]));
    assert!(done(run(&["policy", "check", policy])).starts_with("good: production serial 7, digest "));
    let files = ["authorize.cedar", "currencies.csv", "policy.toml", "quotesign.cedarschema"];
    let mut files: Vec<String> = files.into_iter().map(str::to_owned).collect();
    for folder in ["keys", "schemas"] {
        let names = fs::read_dir(format!("{policy}/{folder}")).unwrap();
        files.extend(names.map(|name| format!("{folder}/{}", name.unwrap().file_name().into_string().unwrap())));
    }
    files.sort_unstable();
    let hash = |file: &String| hex::encode(sha256(&fs::read(format!("{policy}/{file}")).unwrap()));
    let listing: Vec<String> = files.iter().map(|file| format!("{}  {file}\n", hash(file))).collect();
    assert_eq!(digest.trim_end(), hex::encode(sha256(listing.concat().as_bytes())));
    let none = failed(run(&["policy", "check", "nowhere"]), 2);
    assert_eq!(none.lines().count(), 1, "{none}");
}

#[test]
fn every_command_explains_itself() {
    let mut waiting = vec![(Vec::new(), Cli::command())];
    let mut seen = 0;
    while let Some((path, command)) = waiting.pop() {
        let help = done(quotesign().args(&path).arg("--help").output().unwrap());
        assert!(help.contains("Usage: quotesign") && help.starts_with(char::is_uppercase), "{path:?}: {help}");
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            let name = inner.get_name().to_owned();
            waiting.push(([path.clone(), vec![name]].concat(), inner.clone()));
        }
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
    for shell in ["bash", "zsh", "fish"] {
        let script = done(quotesign().args(["completions", shell]).output().unwrap());
        assert!(script.contains("quotesign") && script.contains("seed-sequence"), "{shell}");
    }
    assert!(done(quotesign().arg("--version").output().unwrap()).starts_with("quotesign "));
    assert_eq!(quotesign().arg("no-such-command").output().unwrap().status.code(), Some(2));
}

/// A reader such as `head` goes when it has seen enough.
#[test]
fn a_closed_pipe_is_no_fault_of_the_command() {
    let site = Site::new();
    let (policy, config) = (site.path("policy"), site.config());
    let [policy, config] = [&policy, &config].map(|path| path.to_str().unwrap());
    for args in [&["completions", "bash"][..], &["policy", "check", policy], &["config", "check", "--config", config]] {
        let mut child = quotesign().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !stderr.contains("panicked"), "{args:?}: {:?} {stderr}", output.status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_is_verified_with_the_keys_at_an_address() {
    let site = Site::new();
    let gateway = site.serve().await;
    let (signed, ca) = (site.path("signed.jws"), site.path("tls/ca.pem"));
    let (signed, ca) = (signed.to_str().unwrap(), ca.to_str().unwrap());
    fs::write(signed, gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap().jws).unwrap();
    let verify =
        |url: &str, more: &[&str]| quotesign().args(["verify", signed, "--jwks", url]).args(more).output().unwrap();
    let url = format!("https://{}/partners/{PARTNER}/.well-known/jwks.json", gateway.address("jwks"));
    assert!(done(verify(&url, &["--ca", ca])).contains("not checked  check_quote_sequence"));
    // Another partner's quote is not what was asked for; an address without TLS, or with another's CA, is not asked.
    let other = failed(verify(&url, &["--ca", ca, "--partner", "other-remit"]), 1);
    assert!(other.contains("not valid"), "{other}");
    assert!(failed(verify(&url.replace("https", "http"), &[]), 2).contains("over https:// alone"));
    assert!(failed(verify(&url, &[]), 1).contains(&url));
    assert!(failed(verify(&format!("{url}x"), &["--ca", ca]), 1).contains("404"));
}

/// Somebody may have put a PIN into a locator: it is refused, and not told back.
#[test]
fn a_pin_in_a_locator_is_refused_and_not_told_back() {
    let site = Site::new();
    let locator = "pkcs11:token=quotes;object=quote-signing-2026-06;type=private?pin-value=not-a-real-pin";
    site.edit_policy(|policy| policy["keys"][0]["locator"] = toml_edit::value(locator));
    let (policy, config) = (site.path("policy"), site.config());
    for args in
        [&["policy", "check", policy.to_str().unwrap()][..], &["config", "check", "--config", config.to_str().unwrap()]]
    {
        let output = quotesign().args(args).output().unwrap();
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(!output.status.success() && told.contains("pin-value") && !told.contains("not-a-real-pin"), "{told}");
    }
    let config = quotesign::config::Config::load(&config).unwrap();
    let refused = config.accepts(&config.signers[0].name, locator).unwrap().unwrap_err();
    assert!(!refused.contains("not-a-real-pin"), "{refused}");
}
