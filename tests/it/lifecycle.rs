//! A key's way: it signs once everybody was seen to serve it, and is gone everywhere once it was revoked. With a stand-in for a
//! CDN that serves what was exported to it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Output,
    sync::Arc,
    time::{Duration, Instant},
};

use quotesign::{
    clock::{Clock as _, SystemClock},
    proto::{
        ActivateKeyRequest, HaltReach, HaltRequest, QuoteOutcome, ReloadPolicyRequest, ReportQuoteOutcomeRequest,
        ResumeRequest, SeedSequenceRequest, SuspendCallerRequest, halt_reach,
    },
};
use rcgen::CertificateParams;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::{
    commands::client,
    harness::{
        DAY, Gateway, PARTNER, Quote, Site, done, failed, public_place, quotesign, refused, seconds, toml, until,
    },
    stops::kid,
};

/// Serves what lies in a file at `/jwks.json`, over TLS of the site's own CA.
pub struct Cdn {
    pub file: PathBuf,
    pub url: String,
}

impl Cdn {
    pub async fn new(site: &Site) -> Self {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        Self::with(site, CertificateParams::new(names).unwrap()).await
    }

    pub async fn with(site: &Site, certificate: CertificateParams) -> Self {
        let identity = site.authority.issue(&site.path("tls"), "cdn", certificate);
        let (acceptor, socket, url) = public_place(identity).await;
        let file = site.path("cdn.json");
        let served = Arc::new(file.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let (acceptor, served) = (acceptor.clone(), served.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut request = [0; 2048];
                    let _read = stream.read(&mut request).await;
                    let answer = match fs::read_to_string(&*served) {
                        Ok(body) => format!(
                            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: public, max-age=300\r\n\
                             content-length: {}\r\n\r\n{body}",
                            body.len()
                        ),
                        Err(_) => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
                    };
                    let _written = stream.write_all(answer.as_bytes()).await;
                    let _closed = stream.shutdown().await;
                });
            }
        });
        Self { file, url }
    }
}

/// The same JWK with another modulus.
fn with_another_modulus(jwk: &str) -> String {
    let at = jwk.find("\"n\": \"").unwrap() + 30;
    let other = if &jwk[at..=at] == "x" { "y" } else { "x" };
    format!("{}{other}{}", &jwk[..at], &jwk[at + 1..])
}

/// A site whose sets are exported, with a hook that fills the CDN while `open` is there.
async fn exporting() -> (Site, Cdn) {
    let site = Site::new();
    let cdn = Cdn::new(&site).await;
    let hook = site.path("purge.sh");
    let (open, file) = (site.path("open"), cdn.file.display());
    let script = format!(
        "#!/bin/sh\n[ -e {} ] || exit 3\n[ \"$QUOTESIGN_PARTNER\" = {PARTNER} ] || exit 4\n\
         [ \"$QUOTESIGN_JWKS_URL\" = {} ] || exit 5\ncp \"$QUOTESIGN_JWKS_FILE\" {file}\n",
        open.display(),
        cdn.url
    );
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    site.edit_config(|config| {
        config["jwks"]["url_ca"] = toml("'tls/ca.pem'");
        config["jwks"]["export"] = toml("'exported'");
        config["jwks"]["purge"] = toml(&format!("['{}']", hook.display()));
    });
    site.edit_policy(|policy| policy["partners"][0]["jwks_url"] = toml(&format!("'{}'", cdn.url)));
    (site, cdn)
}

async fn part(gateway: &Gateway, name: &str) -> Option<String> {
    let (_, body) = gateway.operations("/readyz?for=jwks").await;
    serde_json::from_str::<Value>(&body).unwrap()[name].as_str().map(str::to_owned)
}

fn served(site: &Site) -> usize {
    site.journal().iter().filter(|record| record["event"] == "key.served").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_served_once_the_registered_url_shows_it_and_revoked_once_it_does_not() {
    let (site, cdn) = exporting().await;
    let kid = kid(&site);
    let gateway = site.serve().await;
    // The hook fails: the export is told to be late, and the key is not taken for served. The endpoint itself is well.
    let late =
        async || part(&gateway, &format!("export/{PARTNER}")).await.is_some_and(|why| why.contains("has failed"));
    until("the export is late", late).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((served(&site), gateway.operations("/readyz?for=jwks").await.0), (0, 200));
    // Another key under the kid, as of another environment, is not this one.
    let jwk = fs::read_to_string(site.path(&format!("policy/keys/{kid}.jwk.json"))).unwrap();
    let other = with_another_modulus(&jwk);
    fs::write(&cdn.file, format!("{{\"keys\":[{other}]}}")).unwrap();
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(served(&site), 0);
    fs::write(site.path("open"), "").unwrap();
    site.journalled("key.served", 1).await;
    let exported = fs::read_to_string(site.path(&format!("exported/{PARTNER}/jwks.json"))).unwrap();
    assert_eq!(exported, fs::read_to_string(&cdn.file).unwrap());
    assert_eq!(exported.trim(), done(client(&site, &gateway, &["jwks"])).trim());
    let signed = gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();

    // The CDN keeps what it has: the act is not complete, and says so until it is.
    fs::remove_file(site.path("open")).unwrap();
    let ca = site.path("tls/ca.pem");
    let revoke = |wait: &str| -> Output {
        let args = ["keys", "revoke", &kid, "--reason", "OPS-15", "--wait", wait, "--url-ca", ca.to_str().unwrap()];
        client(&site, &gateway, &[&args[..], &["--cause", "private-material-published", "--format", "json"]].concat())
    };
    let incomplete = revoke("1");
    let report: Value = serde_json::from_slice(&incomplete.stdout).unwrap();
    assert!(failed(incomplete, 4).contains("incomplete"));
    assert_eq!((&report["quotes_signed"], &report["to_reissue"]), (&1.into(), &1.into()));
    assert_eq!(report["jwks_url"], Value::from(cdn.url.as_str()));
    assert_eq!(report["incident"], "private-material-published: OPS-15");
    let digest = quotesign::jws::CompactJws::from_text(signed.jws).digest().to_string();
    assert_eq!(report["quotes"][0]["jws_sha256"], Value::from(digest));
    assert!(!report.to_string().contains("sub_"), "no customer's reference: {report}");
    let begun = Instant::now();
    until("its own set is empty", async || done(client(&site, &gateway, &["jwks"])).trim() == r#"{"keys":[]}"#).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    let told =
        async |what: &str| part(&gateway, &format!("revocation/{kid}")).await.is_some_and(|why| why.contains(what));
    until("it is told", async || told("still shown").await).await;
    fs::write(site.path("open"), "").unwrap();
    let complete = done(revoke("30"));
    assert!(complete.contains("no longer shows"), "{complete}");
    assert_eq!(fs::read_to_string(&cdn.file).unwrap(), r#"{"keys":[]}"#);
    until("it is complete", async || told("serving").await).await;
    assert!(gateway.stop().success());
}

/// Neither the bundle nor the device is needed to stop a key.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_revoked_without_its_files_and_its_device() {
    let site = Site::new();
    let kid = kid(&site);
    let gateway = site.serve().await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    fs::remove_dir_all(site.path("policy")).unwrap();
    fs::remove_dir_all(site.path("tokens")).unwrap();
    let report = done(client(&site, &gateway, &["keys", "revoke", &kid, "--reason", "OPS-21", "--format", "csv"]));
    let rows: Vec<&str> = report.lines().collect();
    assert_eq!(rows[0], "kid,quote_id,sequence,signed_at,expires_at,still_valid,jws_sha256");
    assert!(rows.len() == 2 && rows[1].contains(",1,") && rows[1].contains(",true,"), "{report}");
    assert_eq!(done(client(&site, &gateway, &["jwks"])).trim(), r#"{"keys":[]}"#);
    // A kid that no bundle has named is revoked as well: whoever finds it lost need not look it up first.
    let unknown = client(&site, &gateway, &["keys", "revoke", "quote-signing-1999", "--reason", "OPS-21"]);
    assert!(failed(unknown, 6).contains("is it misspelt?"));
    let status = done(client(&site, &gateway, &["admin", "status"]));
    assert!(status.contains("STOPPED     revoked/quote-signing-1999"), "{status}");
    assert!(gateway.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn acts_that_widen_need_two_where_policy_says_so() {
    let site = Site::new();
    let (second, third) = ("spiffe://dev.quotesign.example/second", "spiffe://dev.quotesign.example/third");
    site.edit_policy(|policy| {
        policy["two_callers"]["acts"] = toml("['Resume', 'ActivateKey', 'SeedSequence']");
        for id in [second, third] {
            let mut caller = policy["callers"][1].as_table().unwrap().clone();
            caller["id"] = toml(&format!("'{id}'"));
            policy["callers"].as_array_of_tables_mut().unwrap().push(caller);
        }
    });
    site.admit("second", &[second], &[]);
    site.admit("third", &[third], &[]);
    let gateway = site.serve().await;
    let reach = || Some(HaltReach { to: Some(halt_reach::To::Partner(PARTNER.to_owned())) });
    let halt = HaltRequest { reach: reach(), reason: "OPS-16".to_owned() };
    gateway.admin("operator").await.halt(halt).await.unwrap();
    let resume = async |caller: &str, reach: Option<HaltReach>| {
        let request = ResumeRequest { reach, reason: "OPS-16 over".to_owned() };
        gateway.admin(caller).await.resume(request).await
    };
    for _ in 0..2 {
        refused(resume("operator", reach()).await, Code::FailedPrecondition, "SECOND_CALLER_NEEDED");
    }
    // Another act, however near.
    let all = Some(HaltReach { to: Some(halt_reach::To::All(true)) });
    refused(resume("second", all).await, Code::FailedPrecondition, "SECOND_CALLER_NEEDED");
    let pricing = gateway.quotes("pricing").await;
    refused(pricing.sign(&Quote::number(1)).await, Code::Unavailable, "SIGNING_HALTED");
    // Who may not, cannot agree either.
    let stranger = resume("pricing", reach()).await;
    assert_eq!(stranger.unwrap_err().code(), Code::PermissionDenied);
    resume("second", reach()).await.unwrap();
    pricing.sign(&Quote::number(1)).await.unwrap();
    refused(resume("third", reach()).await, Code::FailedPrecondition, "SECOND_CALLER_NEEDED");
    let kid = kid(&site);
    let activate = async |caller: &str| {
        let request = ActivateKeyRequest { kid: kid.clone(), reason: "OPS-17".to_owned() };
        gateway.admin(caller).await.activate_key(request).await
    };
    refused(activate("third").await, Code::FailedPrecondition, "SECOND_CALLER_NEEDED");
    assert!(!activate("operator").await.unwrap().into_inner().audit_record_id.is_empty());
    let resumed = site.journalled("signing.resumed", 1).await;
    assert_eq!(resumed.len(), 1);
    // Who asked first and was suspended since does not count.
    let halt = HaltRequest { reach: reach(), reason: "OPS-16".to_owned() };
    gateway.admin("operator").await.halt(halt).await.unwrap();
    refused(resume("third", reach()).await, Code::FailedPrecondition, "SECOND_CALLER_NEEDED");
    let suspend = SuspendCallerRequest { caller: third.to_owned(), reason: "OPS-22".to_owned(), signed_since: None };
    gateway.admin("operator").await.suspend_caller(suspend).await.unwrap();
    refused(resume("second", reach()).await, Code::FailedPrecondition, "SECOND_CALLER_NEEDED");
    resume("operator", reach()).await.unwrap();
    let detail = resumed[0]["facts"]["detail"].as_str().unwrap();
    assert_eq!(detail, "OPS-16 over (first asked for by spiffe://dev.quotesign.example/operator)");
    assert_eq!(resumed[0]["context"]["caller"], second);
    assert_eq!(site.journalled("act.agreed", 3).await.len(), 3);
    assert!(gateway.stop().success());
}

/// A floor is never lowered again, and what policy says of it may be said of one partner.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_asked_for_a_floor_and_lost_the_right_to_it_has_not_agreed() {
    let site = Site::new();
    let second = "spiffe://dev.quotesign.example/second";
    site.edit_policy(|policy| {
        policy["two_callers"]["acts"] = toml("['SeedSequence']");
        let mut caller = policy["callers"][1].as_table().unwrap().clone();
        caller["id"] = toml(&format!("'{second}'"));
        policy["callers"].as_array_of_tables_mut().unwrap().push(caller);
    });
    site.admit("second", &[second], &[]);
    let gateway = site.serve().await;
    let seed = async |caller: &str| {
        let (partner, corridor, reason) = (PARTNER.to_owned(), String::new(), "OPS-23".to_owned());
        gateway.admin(caller).await.seed_sequence(SeedSequenceRequest { partner, corridor, floor: 7, reason }).await
    };
    let reload = async |what: fn(&mut toml_edit::DocumentMut)| {
        site.edit_policy(what);
        gateway.admin("operator").await.reload_policy(ReloadPolicyRequest {}).await.unwrap();
    };
    refused(seed("second").await, Code::FailedPrecondition, "SECOND_CALLER_NEEDED");
    reload(|policy| {
        let callers = policy["callers"].as_array_of_tables_mut().unwrap();
        callers.retain(|caller| !caller["id"].as_str().unwrap().ends_with("/second"));
    })
    .await;
    refused(seed("operator").await, Code::FailedPrecondition, "SECOND_CALLER_NEEDED");
    assert_eq!(seed("second").await.unwrap_err().code(), Code::NotFound);
    assert!(gateway.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_said_is_taken_down_and_failing_verification_is_told() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut quotes = Vec::new();
    for number in 1..=4 {
        let quote = Quote::number(number);
        pricing.sign(&quote).await.unwrap();
        quotes.push(quote);
    }
    let report = async |quote_id: &str, outcome: QuoteOutcome, code: &str, verification_failed: bool| {
        let request = ReportQuoteOutcomeRequest {
            partner: PARTNER.to_owned(),
            quote_id: quote_id.to_owned(),
            outcome: outcome.into(),
            error_code: code.to_owned(),
            verification_failed,
            correlation_id: "op-4711".to_owned(),
        };
        pricing.0.clone().report_quote_outcome(request).await.map(tonic::Response::into_inner)
    };
    let accepted = report(quotes[0].id(), QuoteOutcome::Accepted, "", false).await.unwrap();
    assert_eq!(accepted.kid, kid(&site));
    let failing = async || gateway.operations("/metrics").await.1;
    let kid = kid(&site);
    until("it is counted", async || {
        failing().await.contains(&format!("quotesign_quote_outcomes{{kid=\"{kid}\",outcome=\"accepted\"}} 1"))
    })
    .await;
    assert!(failing().await.contains(&format!("quotesign_quote_verification_failing{{kid=\"{kid}\"}} 0")));
    for quote in &quotes[1..] {
        report(quote.id(), QuoteOutcome::Refused, "quote.signatureInvalid", true).await.unwrap();
    }
    until("it is told", async || {
        failing().await.contains(&format!("quotesign_quote_verification_failing{{kid=\"{kid}\"}} 1"))
    })
    .await;
    for (id, outcome, code, failed) in [
        (quotes[0].id(), QuoteOutcome::Unspecified, "", false),
        (quotes[0].id(), QuoteOutcome::Accepted, "quote.expired", false),
        (quotes[0].id(), QuoteOutcome::Refused, "", false),
        (quotes[0].id(), QuoteOutcome::Refused, "two words", false),
        ("a b", QuoteOutcome::Accepted, "", false),
    ] {
        refused(report(id, outcome, code, failed).await, Code::InvalidArgument, "INVALID_REQUEST");
    }
    refused(report("never-signed", QuoteOutcome::Accepted, "", false).await, Code::NotFound, "NOT_FOUND");
    let records = site.journalled("quote.outcome_reported", 4).await;
    let told = &records[1];
    assert_eq!((&told["facts"]["reason"], &told["facts"]["sequence"]), (&"quote.signatureInvalid".into(), &2.into()));
    assert_eq!(told["facts"]["detail"], "verification failed; the operator's correlation id is op-4711");
    assert!(gateway.stop().success());
}

/// Runs a command until the test is over.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _it_may_have_ended = self.0.kill();
        let _it_may_have_ended = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_is_watched_as_verifiers_see_it() {
    use std::io::{BufRead as _, BufReader};
    let site = Site::new();
    let cdn = Cdn::new(&site).await;
    let kid = kid(&site);
    let jwk = fs::read_to_string(site.path(&format!("policy/keys/{kid}.jwk.json"))).unwrap();
    let good = format!("{{\"keys\":[{jwk}]}}");
    fs::write(&cdn.file, &good).unwrap();
    let mut child = quotesign()
        .args(["jwks", "watch", &cdn.url, "--every", "1", "--listen", "127.0.0.1:0", "--partner", PARTNER, "--ca"])
        .arg(site.path("tls/ca.pem"))
        .arg("--policy")
        .arg(site.path("policy"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let _running = Running(child);
    let first = lines.next().unwrap().unwrap();
    let address = first.strip_prefix("metrics at http://").unwrap().strip_suffix("/metrics").unwrap().to_owned();
    let metric = async |name: &str| -> String {
        let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let line = answer.lines().find_map(|line| line.strip_prefix(&format!("quotesign_jwks_{name} ")));
        line.unwrap_or_default().to_owned()
    };
    let all = async |expected: [(&str, &str); 6]| {
        for (name, value) in expected {
            if metric(name).await != value {
                return false;
            }
        }
        true
    };
    let fine = [
        ("up", "1"),
        ("http_status", "200"),
        ("valid", "1"),
        ("private_members", "0"),
        ("active_kid_present", "1"),
        ("unexpected_changes_total", "0"),
    ];
    until("all is well", async || all(fine).await).await;
    assert!(metric("certificate_expiry_timestamp_seconds").await.parse::<f64>().unwrap() > 1.7e9);
    // Another key under the kid.
    let other = with_another_modulus(&jwk);
    fs::write(&cdn.file, format!("{{\"keys\":[{other}]}}")).unwrap();
    until("a change that nobody planned", async || metric("unexpected_changes_total").await == "1").await;
    fs::write(&cdn.file, good.replace("\"kty\"", "\"d\": \"AQAB\", \"kty\"")).unwrap();
    until("private members", async || metric("private_members").await == "1").await;
    assert_eq!(metric("valid").await, "0");
    fs::write(&cdn.file, "{\"keys\":[]}").unwrap();
    until("the active kid is gone", async || metric("active_kid_present").await == "0").await;
    fs::remove_file(&cdn.file).unwrap();
    until("down", async || metric("up").await == "0" && metric("http_status").await == "404").await;
    fs::write(&cdn.file, &good).unwrap();
    until("up again", async || metric("up").await == "1" && metric("valid").await == "1").await;
}

/// What watches for private keys reads the exit code, and may read nothing else.
#[test]
fn the_exit_code_is_the_commands_own_where_nobody_reads_what_it_says() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("set.json");
    fs::write(&file, r#"{"keys":[{"kty":"RSA","kid":"quote-a","n":"AQAB","e":"AQAB","d":"AQAB"}]}"#).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut check = quotesign();
    check.args(["jwks", "check"]).arg(&file).stdout(writer.try_clone().unwrap()).stderr(writer);
    assert_eq!(check.status().unwrap().code(), Some(3));
}

/// A certificate that verifiers would refuse is refused in production before anything is served with it.
#[test]
fn a_certificate_that_verifiers_refuse_is_refused_in_production() {
    let site = Site::new().with("QUOTESIGN__LEDGER__ANCHOR", "/dev/shm/quotesign-test-none.anchor");
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let put = |name: &str, certificate: &str, key: &str| {
        fs::write(site.path(&format!("tls/{name}.pem")), certificate).unwrap();
        fs::write(site.path(&format!("tls/{name}.key")), key).unwrap();
    };
    put("own", &own.cert.pem(), &own.signing_key.serialize_pem());
    let dated = |name: &str, from: i64, until: i64| {
        let now = time::OffsetDateTime::now_utc();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = now + time::Duration::days(from);
        params.not_after = now + time::Duration::days(until);
        site.authority.issue(&site.path("tls"), name, params);
    };
    dated("ended", -30, -1);
    dated("early", 1, 30);
    for (name, why) in [("own", "is self-signed"), ("ended", "has expired at"), ("early", "is valid from")] {
        let check = |environment: &str| {
            site.edit_config(|config| {
                config["environment"] = toml(&format!("'{environment}'"));
                config["jwks"]["certificate"] = toml(&format!("'tls/{name}.pem'"));
                config["jwks"]["private_key"] = toml(&format!("'tls/{name}.key'"));
            });
            site.edit_policy(|policy| {
                policy["environment"] = toml(&format!("'{environment}'"));
                let production = environment == "production";
                policy["publication"]["propagation_s"] = toml(if production { "300" } else { "0" });
                policy["keys"][0]["publish_at"] = toml(&seconds(SystemClock.now().minus(DAY)));
            });
            site.run(&["config", "check"])
        };
        done(check("development"));
        let told = failed(check("production"), 2);
        assert!(told.contains("[jwks]: ") && told.contains(why), "{told}");
    }
}
