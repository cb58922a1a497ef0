//! The operator's common problems with key sets, each brought about, and what the gateway or a command says of it. The rows of
//! `docs/key-sets.md` are these.

use std::{fs, process::Output};

use rcgen::CertificateParams;
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    commands::client,
    first_start::{Production, ROOT, SIGNING},
    harness::{PARTNER, Quote, Site, done, failed, quotesign, refused, toml},
    lifecycle::Cdn,
    stops::kid,
};

fn check(args: &[&str]) -> Output {
    quotesign().args([&["jwks", "check"], args].concat()).output().unwrap()
}

fn lines(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_page_lists_the_problems_that_are_brought_about_here() {
    let page = fs::read_to_string(format!("{ROOT}/docs/key-sets.md")).unwrap();
    let table = page.split_once("| problem |").unwrap().1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|')).count();
    let tests = fs::read_to_string(format!("{ROOT}/tests/it/problems.rs")).unwrap();
    assert_eq!(rows, tests.matches("\n/// Problem: ").count());
}

/// Problem: the kid of a quote is not in the set.
#[tokio::test(flavor = "multi_thread")]
async fn a_kid_that_is_not_in_the_set() {
    let site = Site::new();
    let gateway = site.serve().await;
    let signed = gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    let (jws, set) = (site.path("quote.jws"), site.path("other.json"));
    fs::write(&jws, &signed.jws).unwrap();
    let served = done(client(&site, &gateway, &["jwks"]));
    fs::write(&set, served.replace(&signed.kid, "quote-signing-other")).unwrap();
    let told = client(&site, &gateway, &["verify", jws.to_str().unwrap(), "--jwks", set.to_str().unwrap()]);
    let said = lines(&told);
    failed(told, 1);
    assert!(
        said.lines().any(|line| line.starts_with("FAILED") && line.contains("select_matching_public_key")),
        "{said}"
    );
    let told = check(&[set.to_str().unwrap(), "--active", &signed.kid]);
    assert!(lines(&told).contains(&format!("FAILED    the active kid: `{}` signs and is not there", signed.kid)));
}

/// Problem: the set is no valid JSON.
#[test]
fn a_set_that_is_no_json() {
    let site = Site::new();
    let set = site.path("set.json");
    fs::write(&set, "{\"keys\": [").unwrap();
    let told = check(&[set.to_str().unwrap()]);
    assert!(lines(&told).contains("FAILED    valid JSON: "));
    failed(told, 1);
}

/// Problem: the set shows private fields.
#[test]
fn a_set_with_private_fields() {
    let site = Site::new();
    let jwk = fs::read_to_string(site.path(&format!("policy/keys/{}.jwk.json", kid(&site)))).unwrap();
    let mut key: Value = serde_json::from_str(&jwk).unwrap();
    key["dp"] = json!("AQAB");
    let set = site.path("set.json");
    fs::write(&set, json!({ "keys": [key] }).to_string()).unwrap();
    let told = check(&[set.to_str().unwrap()]);
    assert!(lines(&told).contains("CRITICAL  no private key material: the member `dp`"));
    assert!(failed(told, 3).contains("rotate now"));
    // A bundle does not take one either.
    fs::write(site.path(&format!("policy/keys/{}.jwk.json", kid(&site))), key.to_string()).unwrap();
    failed(site.run(&["config", "check"]), 2);
}

/// Problem: the set has only the new key.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_with_the_new_key_alone() {
    let site = Site::new();
    let gateway = site.serve().await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    let (out, old) = (site.path("new"), kid(&site));
    let args = ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER, "--kid", "quote-signing-new"];
    done(site.run(&[&args[..], &["--bits", "2048", "--out", out.to_str().unwrap()]].concat()));
    let name = "quote-signing-new.jwk.json";
    fs::copy(out.join(name), site.path(&format!("policy/keys/{name}"))).unwrap();
    fs::remove_file(site.path(&format!("policy/keys/{old}.jwk.json"))).unwrap();
    site.edit_policy(|policy| {
        policy["keys"][0]["kid"] = toml("'quote-signing-new'");
        policy["keys"][0]["locator"] = toml("'pkcs11:token=quotesign-dev;object=quote-signing-new;type=private'");
    });
    let refused = failed(client(&site, &gateway, &["admin", "reload-policy"]), 1);
    assert!(refused.contains(&format!("the key `{old}` is gone before its `retire_at`; put it back")), "{refused}");
    assert!(gateway.stop().success());
    // Nor does a start take it, while a quote that it signed can be presented.
    let started = crate::harness::Gateway::try_spawn(
        {
            let mut command = site.command();
            command.arg("serve").arg("--config").arg(site.config());
            command
        },
        &site,
    );
    let log = started.err().unwrap().join("\n");
    assert!(log.contains("has signed quotes that can still be presented and is gone; put it back"), "{log}");
}

/// Problem: a quote is signed before the key is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nobody_can_know_yet() {
    let production = Production::new().with_key();
    production.confirm();
    let gateway = production.serve(SIGNING);
    production.site.journalled("key.served", 1).await;
    production.good("quotesign admin seed-sequence --floor 0 --reason first --client operator.toml");
    assert_eq!(production.refusal(1, SIGNING), "NO_ACTIVE_KEY");
    drop(gateway);
}

/// Problem: a sandbox quote with a production key.
#[tokio::test(flavor = "multi_thread")]
async fn a_quote_of_another_environment() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let sent = pricing.sign_in("sandbox", Quote::number(1).bytes()).await;
    refused(sent, Code::FailedPrecondition, "ENVIRONMENT_MISMATCH");
    let other = Site::sandbox();
    let shared = failed(site.run(&["config", "check", "--apart-from", other.config().to_str().unwrap()]), 2);
    assert!(shared.contains("trust_domain") || shared.contains("trust domain"), "{shared}");
}

/// Problem: the TLS certificate has expired.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_expired() {
    let site = Site::new();
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let now = time::OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::days(30), now - time::Duration::days(1));
    let cdn = Cdn::with(&site, params).await;
    fs::write(&cdn.file, "{\"keys\":[]}").unwrap();
    let told = check(&[&cdn.url, "--ca", site.path("tls/ca.pem").to_str().unwrap()]);
    assert!(failed(told, 2).to_lowercase().contains("expired"));
}

/// Problem: a weak RSA key.
#[test]
fn a_key_that_is_weak() {
    let site = Site::new();
    let args = ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER, "--kid", "quote-signing-weak"];
    let weak = site.run(&[&args[..], &["--bits", "1024"]].concat());
    assert!(!weak.status.success(), "{weak:?}");
    let n = "w6".repeat(86);
    let key = json!({ "kty": "RSA", "kid": "quote-signing-weak", "use": "sig", "alg": "RS256", "n": n, "e": "AQAB" });
    let set = site.path("set.json");
    fs::write(&set, json!({ "keys": [key] }).to_string()).unwrap();
    let told = check(&[set.to_str().unwrap()]);
    assert!(lines(&told).contains("FAILED    2048 bits or more: `quote-signing-weak` has"), "{}", lines(&told));
    let old = kid(&site);
    fs::write(site.path(&format!("policy/keys/{old}.jwk.json")), {
        let mut key = key.clone();
        key["kid"] = json!(old);
        key.to_string()
    })
    .unwrap();
    assert!(failed(site.run(&["config", "check"]), 2).contains("bits"));
}
