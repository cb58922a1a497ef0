//! The public JWKS: HTTPS, as anyone's client sees it.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output},
};

use quotesign::proto::{GetJwksRequest, KeyState, ListKeysRequest, ReloadPolicyRequest};
use rcgen::CertificateParams;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Authority, DAY, Gateway, PARTNER, Site, done, failed, public_place, quotesign, timed_key, toml};
use quotesign::clock::{Clock as _, SystemClock};

const PATH: &str = "/partners/acme-remit/.well-known/jwks.json";

/// What curl was answered: the status, the headers in lower case, and the body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn kids(&self) -> BTreeSet<String> {
        let set: Value = serde_json::from_str(&self.body).unwrap();
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    }
}

fn curl(site: &Site, gateway: &Gateway, path: &str, options: &[&str]) -> Answer {
    let ca = site.path("tls/ca.pem");
    let url = format!("https://{}{path}", gateway.address("jwks"));
    let output = Command::new("curl").args(["-sSi", "--cacert"]).arg(ca).args(options).arg(url).output().unwrap();
    let text = done(output);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head.lines().map(|line| line.split_once(':').map_or(line.to_owned(), lower)).collect::<Vec<_>>();
    Answer { status, head: head.join("\n"), body: body.to_owned() }
}

fn lower((name, value): (&str, &str)) -> String {
    format!("{}:{value}", name.to_lowercase())
}

async fn reload(gateway: &Gateway) {
    gateway.admin("operator").await.reload_policy(ReloadPolicyRequest {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_set_is_served_as_caches_and_verifiers_expect_it() {
    let site = Site::new();
    let gateway = site.start();
    let answer = curl(&site, &gateway, PATH, &[]);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
    let set: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(set.as_object().unwrap().keys().collect::<Vec<_>>(), ["keys"]);
    let [key] = set["keys"].as_array().unwrap().as_slice() else { panic!("{set}") };
    let members: BTreeSet<&str> = key.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, BTreeSet::from(["kty", "kid", "use", "alg", "n", "e"]));
    assert_eq!((&key["kty"], &key["use"], &key["alg"]), (&json!("RSA"), &json!("sig"), &json!("RS256")));
    let file = site.path(&format!("policy/keys/{}.jwk.json", key["kid"].as_str().unwrap()));
    assert_eq!(serde_json::from_str::<Value>(&fs::read_to_string(file).unwrap()).unwrap(), *key);

    let etag = answer.header("etag").unwrap();
    for held in [etag.to_owned(), format!("W/{etag}"), format!("\"other\", {etag}")] {
        let unchanged = curl(&site, &gateway, PATH, &["-H", &format!("if-none-match: {held}")]);
        assert_eq!((unchanged.status, &*unchanged.body, unchanged.header("etag")), (304, "", Some(etag)));
    }
    let changed = curl(&site, &gateway, PATH, &["-H", "if-none-match: \"other\""]);
    assert_eq!((changed.status, &changed.body), (200, &answer.body));
    let head = curl(&site, &gateway, PATH, &["--head"]);
    assert_eq!((head.status, &*head.body, head.header("etag")), (200, "", Some(etag)));
    for version in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
        assert_eq!(curl(&site, &gateway, PATH, &version).body, answer.body);
    }
    assert_eq!(curl(&site, &gateway, PATH, &["--http1.1"]).body, answer.body);
    let told = gateway.keys("auditor").await.get_jwks(GetJwksRequest { partner: PARTNER.into() }).await;
    assert_eq!(told.unwrap().into_inner().jwks, answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_is_on_that_listener() {
    let site = Site::new();
    let gateway = site.start();
    for path in [
        "/",
        "/jwks.json",
        "/.well-known/",
        "/partners/other-remit/.well-known/jwks.json",
        "/partners/ACME-REMIT/.well-known/jwks.json",
        "/partners/acme-remit/.well-known/",
        "/livez",
        "/metrics",
        "/readyz?for=jwks",
    ] {
        assert_eq!(curl(&site, &gateway, path, &[]).status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        assert_eq!(curl(&site, &gateway, PATH, &["-X", method]).status, 405, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bare_path_is_one_partners_and_no_key_is_in_anothers_set() {
    let site = Site::new();
    let gateway = site.start();
    let bare = "/.well-known/jwks.json";
    let set = curl(&site, &gateway, PATH, &[]).body;
    assert_eq!(curl(&site, &gateway, bare, &[]).body, set);
    site.edit_policy(|policy| {
        policy["partners"][0]["jwks_hosts"] = toml("['keys.acme.example']");
        let mut other = policy["partners"][0].as_table().unwrap().clone();
        other["id"] = toml("'other-remit'");
        other["jwks_hosts"] = toml("['keys.other.example']");
        policy["partners"].as_array_of_tables_mut().unwrap().push(other);
    });
    reload(&gateway).await;
    assert_eq!(curl(&site, &gateway, bare, &[]).status, 404);
    let of_host = |host: &str| curl(&site, &gateway, bare, &["-H", &format!("host: {host}")]);
    assert_eq!(of_host("keys.acme.example").body, set);
    assert_eq!(of_host("keys.acme.example:8445").body, set);
    assert_eq!(of_host("keys.other.example").body, r#"{"keys":[]}"#);
    assert_eq!(of_host("keys.third.example").status, 404);
    assert_eq!(curl(&site, &gateway, "/partners/other-remit/.well-known/jwks.json", &[]).body, r#"{"keys":[]}"#);
    assert_eq!(curl(&site, &gateway, PATH, &[]).body, set);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_set_needs_no_device() {
    let site = Site::new();
    fs::remove_dir_all(site.path("tokens")).unwrap();
    fs::create_dir(site.path("tokens")).unwrap();
    let gateway = site.start();
    assert_eq!(curl(&site, &gateway, PATH, &[]).kids().len(), 1);
    assert_eq!(gateway.operations("/readyz?for=jwks").await.0, 200);
    let (status, parts) = gateway.operations("/readyz?for=signing").await;
    assert_eq!(status, 503, "{parts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_in_the_set_from_publish_at_until_retire_at() {
    let site = Site::new();
    let now = SystemClock.now();
    let plans = [
        ("planned", [1, 2, 10, 20], KeyState::Planned),
        ("prepared", [-1, 2, 10, 20], KeyState::Prepared),
        ("active", [-2, -1, 10, 20], KeyState::Active),
        ("retiring", [-5, -4, -1, 2], KeyState::Retiring),
        ("retired", [-20, -10, -5, -1], KeyState::Retired),
    ];
    for (name, days, _) in plans {
        let kid = format!("quote-signing-{name}");
        let snippet = done(site.run(&[
            "keys",
            "generate",
            "--bits",
            "2048",
            "--signer",
            "hsm-primary",
            "--partner",
            PARTNER,
            "--kid",
            &kid,
        ]));
        let at = |days: i32| {
            let span = DAY * i32::unsigned_abs(days);
            if days < 0 { now.minus(span) } else { now.plus(span) }
        };
        let key = timed_key(&snippet, days.map(at));
        site.edit_policy(|policy| policy["keys"].as_array_of_tables_mut().unwrap().push(key));
    }
    let gateway = site.start();
    let listed = gateway.keys("auditor").await.list_keys(ListKeysRequest { partner: PARTNER.into() }).await;
    let listed = listed.unwrap().into_inner().keys;
    let published = curl(&site, &gateway, PATH, &[]).kids();
    for (name, _, state) in plans {
        let key = listed.iter().find(|key| key.kid == format!("quote-signing-{name}")).unwrap();
        assert_eq!(key.state(), state);
        let is_shown = !["planned", "retired"].contains(&name);
        assert_eq!(published.contains(&key.kid), is_shown, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_can_be_held_against_what_verifiers_expect() {
    let site = Site::new();
    let gateway = site.start();
    let served = curl(&site, &gateway, PATH, &[]);
    let kid = served.kids().pop_first().unwrap();
    let ca = site.path("tls/ca.pem");
    let url = format!("https://{}{PATH}", gateway.address("jwks"));
    let check = |place: &str, more: &[&str]| {
        let args = [&["jwks", "check", place, "--ca", ca.to_str().unwrap()][..], more].concat();
        quotesign().args(args).output().unwrap()
    };
    let told = done(check(&url, &["--active", &kid]));
    assert!(told.lines().all(|line| line.starts_with("passed ")), "{told}");
    for what in
        ["HTTP 200", "Content-Type", "Cache-Control", "certificate", "no private key material", "the active kid"]
    {
        assert!(told.contains(what), "{what}: {told}");
    }
    let told: Value = serde_json::from_slice(&check(&url, &["--format", "json"]).stdout).unwrap();
    assert_eq!(told["worst"], "passed");
    // Another kid signs; another path; a CA that is not the server's; no TLS at all.
    failed(check(&url, &["--active", "quote-signing-gone"]), 1);
    let nothing = check(&format!("https://{}/nothing", gateway.address("jwks")), &[]);
    assert!(String::from_utf8_lossy(&nothing.stdout).contains("answered 404"));
    assert_eq!(nothing.status.code(), Some(1));
    let other = Authority::named("another CA");
    fs::write(site.path("other.pem"), &other.pem).unwrap();
    let args = ["jwks", "check", &url, "--ca", site.path("other.pem").to_str().unwrap()].map(str::to_owned);
    let told = failed(quotesign().args(args).output().unwrap(), 2);
    assert!(told.contains("UnknownIssuer"), "{told}");
    failed(check(&url.replace("https", "http"), &[]), 2);
    // A set with a private member, from a file.
    let leak = site.path("leak.json");
    fs::write(&leak, served.body.replacen("\"kty\"", "\"d\":\"AQAB\",\"kty\"", 1)).unwrap();
    let told = check(leak.to_str().unwrap(), &[]);
    assert_eq!(told.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&told.stdout).contains("CRITICAL  no private key material: the member `d`"));

    // What is written for a CDN is what is served, and no key that was revoked.
    let out = site.path("set.json");
    let export = || site.run(&["jwks", "export", "--partner", PARTNER, "--out", out.to_str().unwrap()]);
    done(export());
    assert_eq!(fs::read_to_string(&out).unwrap(), served.body);
    done(crate::commands::client(&site, &gateway, &["keys", "revoke", &kid, "--reason", "OPS-14"]));
    done(export());
    assert_eq!(fs::read_to_string(&out).unwrap(), "{\"keys\":[]}");
    failed(site.run(&["jwks", "export", "--partner", "nobody"]), 2);
    assert!(gateway.stop().success());
}

/// A server that redirects, or whose certificate has ended, as the check sees it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_does_wrong_is_told() {
    let (home, authority) = (tempfile::TempDir::new().unwrap(), Authority::new());
    let ca = home.path().join("ca.pem");
    fs::write(&ca, &authority.pem).unwrap();
    let serve = async |name: &str, days: i64, answer: &'static str| -> Output {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let now = time::OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - time::Duration::days(90), now + time::Duration::days(days));
        let identity = authority.issue(home.path(), name, params);
        let (acceptor, socket, url) = public_place(identity).await;
        let server = tokio::spawn(async move {
            let (stream, _) = socket.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _closed = stream.shutdown().await;
        });
        let args = ["jwks", "check", &url, "--ca", ca.to_str().unwrap()].map(str::to_owned);
        let told = tokio::task::spawn_blocking(move || quotesign().args(args).output().unwrap()).await.unwrap();
        server.await.unwrap();
        told
    };
    let moved = "HTTP/1.1 301 Moved\r\nlocation: https://elsewhere.example/jwks.json\r\ncontent-length: 0\r\n\r\n";
    let told = serve("moved", 30, moved).await;
    assert_eq!(told.status.code(), Some(1));
    let lines = String::from_utf8(told.stdout).unwrap();
    assert!(lines.contains("FAILED    no redirect: redirects to https://elsewhere.example"), "{lines}");
    let ended = serve("ended", -1, moved).await;
    assert!(failed(ended, 2).contains("xpired"));
    let bare = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\n{}";
    let told = serve("soon", 7, bare).await;
    let lines = String::from_utf8(told.stdout).unwrap();
    for line in [
        "FAILED    Content-Type: is served as text/html",
        "WARNING   Cache-Control: no max-age",
        "WARNING   certificate: the certificate ends at",
        "FAILED    a `keys` array",
    ] {
        assert!(lines.contains(line), "{line}\n{lines}");
    }
}
