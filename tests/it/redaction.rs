//! What must not be told is told nowhere: quotes whose every value and every property name that does not belong is a marker go through
//! success and every refusal, at every log level, and every output is searched.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use quotesign::proto::{HaltReach, HaltRequest, ReinstateCallerRequest, ResumeRequest, SuspendCallerRequest};
use quotesign::proto::{SignQuoteRequest, VerifyQuoteRequest, halt_reach::To};
use serde_json::{Value, json};
use tonic::Status;

use crate::{
    harness::{Caller, Gateway, PARTNER, Quote, Site, TRUST_DOMAIN, done, reason, toml, until},
    shipping::{Sink, ship_to},
};

/// In everything that a caller sends and nobody may tell.
const MARKER: &str = "mrkr";
/// Amounts, which cannot be texts.
const PENCE: u64 = 86_753;
const AMOUNTS: [&str; 3] = ["867.53", "1735.06", "869.52"];
const TOKEN: &str = "mrkr-token-not-a-real-one";

/// A quote that keeps the contract, with markers wherever it may have them.
fn marked(number: u64) -> Quote {
    Quote::number(number).sending(PENCE).with("subscription_id", json!(format!("sub_{MARKER}")))
}

/// What was answered, as all of it goes over the wire.
fn told(status: &Status) -> String {
    let headers = status.metadata().clone().into_headers();
    format!("{} {} {headers:?}", status.message(), String::from_utf8_lossy(status.details()))
}

/// Sends quotes that are refused, each for another reason; gives the answers, and the reasons.
async fn refusals(site: &Site, gateway: &Gateway, quotes: &Caller, conflict: &Quote) -> (Vec<String>, Vec<String>) {
    let mut answers = Vec::new();
    let mut next = 1_000;
    let mut number = || {
        next += 1;
        next
    };
    let mut bad: Vec<Vec<u8>> = vec![
        format!("{{\"{MARKER}\": \"{MARKER}\"").into_bytes(),
        format!("{{\"a\":1,\"a\":\"{MARKER}\"}}").into_bytes(),
        format!("[\"{MARKER}\"]").into_bytes(),
        marked(number()).with(&format!("{MARKER}_property"), json!(format!("{MARKER}_value"))).bytes(),
        marked(number()).with(&format!("{MARKER}_object"), json!({ MARKER: [MARKER, { MARKER: 1 }] })).bytes(),
        marked(number()).with("quote_signature_v1", json!(MARKER)).bytes(),
        marked(number()).with("corridor", json!("NO-XX")).bytes(),
        marked(number()).valid(-600, -10).bytes(),
        marked(number()).with("corridor", json!("US-MX")).bytes(),
        marked(1).bytes(),
        marked(900_000).bytes(),
        conflict.clone().with("subscription_id", json!(format!("sub_other_{MARKER}"))).bytes(),
    ];
    let good = marked(number());
    let claims: Vec<String> = good.0.as_object().unwrap().keys().cloned().collect();
    for claim in &claims {
        // These may be told.
        let named = ["partner_id", "quote_id", "corridor"].contains(&claim.as_str());
        let text = if named { "named-value" } else { MARKER };
        for value in [json!(text), json!({ MARKER: MARKER }), json!([MARKER]), json!(f64::MAX), json!(null)] {
            bad.push(marked(number()).with(claim, value).bytes());
        }
        bad.push(marked(number()).without(claim).bytes());
    }
    for payload in bad {
        answers.extend(quotes.sign_bytes(payload).await.err());
    }
    answers.extend(quotes.sign_in(MARKER, marked(number()).bytes()).await.err());
    let request = SignQuoteRequest {
        environment: "development".to_owned(),
        payload: marked(number()).bytes(),
        quote_id: MARKER.to_owned(),
        ..SignQuoteRequest::default()
    };
    answers.extend(quotes.0.clone().sign_quote(request).await.err());
    answers.extend(gateway.quotes("auditor").await.sign(&marked(number())).await.err());

    // A method that nobody has.
    let mut nobodys = tonic::client::Grpc::new(gateway.client("pricing").grpc().await.unwrap());
    nobodys.ready().await.unwrap();
    let path = format!("/{MARKER}.Service/{MARKER}").parse().unwrap();
    let codec = tonic_prost::ProstCodec::<SignQuoteRequest, SignQuoteRequest>::default();
    answers.extend(nobodys.unary(tonic::Request::new(SignQuoteRequest::default()), path, codec).await.err());

    // What operators stop.
    let mut operator = gateway.admin("operator").await;
    let reach = || Some(HaltReach { to: Some(To::Partner(PARTNER.to_owned())) });
    operator.halt(HaltRequest { reach: reach(), reason: "a test".to_owned() }).await.unwrap();
    answers.extend(quotes.sign(&marked(number())).await.err());
    operator.resume(ResumeRequest { reach: reach(), reason: "a test".to_owned() }).await.unwrap();
    let caller = format!("spiffe://{TRUST_DOMAIN}/pricing");
    operator
        .suspend_caller(SuspendCallerRequest {
            caller: caller.clone(),
            reason: "a test".to_owned(),
            ..SuspendCallerRequest::default()
        })
        .await
        .unwrap();
    answers.extend(quotes.sign(&marked(number())).await.err());
    operator.reinstate_caller(ReinstateCallerRequest { caller, reason: "a test".to_owned() }).await.unwrap();

    // A device that is away, and one whose task dies.
    let tokens = site.path("tokens");
    fs::rename(&tokens, site.path("tokens-away")).unwrap();
    until("the device is away", async || {
        number();
        let refused = quotes.sign(&marked(number())).await.err();
        let is_away = refused.as_ref().is_some_and(|status| reason(status) == "SIGNER_UNAVAILABLE");
        answers.extend(refused);
        is_away
    })
    .await;
    fs::rename(site.path("tokens-away"), &tokens).unwrap();
    let reasons = answers.iter().map(reason).collect();
    (answers.iter().map(told).collect(), reasons)
}

/// Fails where an output holds what must not be told.
fn is_clean(name: &str, text: &str, secrets: &[String]) {
    let lower = text.to_lowercase();
    let told = [MARKER.to_owned(), "authorization".to_owned()].into_iter().chain(AMOUNTS.map(str::to_owned));
    for secret in told.chain(secrets.iter().cloned()) {
        let at = lower.find(&secret.to_lowercase());
        let around = at.map(|at| text.get(at.saturating_sub(150)..(at + 150).min(text.len())).unwrap_or(text));
        assert_eq!(around, None, "{name} tells `{secret}`");
    }
}

/// Everything that was written by gateway or command, under the site.
fn files(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files(&entry, found);
        } else {
            found.push(entry);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_tells_what_was_in_a_quote_or_any_secret() {
    for level in ["error", "warn", "info", "debug", "trace"] {
        let site = Site::new()
            // Without its addresses no gateway is found.
            .with(
                "QUOTESIGN__LOG__FILTER",
                &format!("{level},quotesign::gateway={}", if level == "trace" { level } else { "info" }),
            )
            .with("FAILPOINTS", "pipeline::before-commit=40*off->1*panic->off");
        let sink = Sink::running(&site, &[]);
        fs::write(site.path("headers"), format!("Authorization: Bearer {TOKEN}\n")).unwrap();
        let rest = "trace_ratio = 1.0, metrics_interval_s = 1, headers_file = 'headers'";
        ship_to(&site, &format!("http://127.0.0.1:{}", sink.ports["grpc"]), rest);
        site.edit_policy(|policy| {
            policy["quotas"]["attempts_per_caller"] = toml("{ per_second = 100000, burst = 100000 }");
        });
        let gateway = site.start();
        gateway.signing().await;
        let quotes = gateway.quotes("pricing").await;
        let first = marked(1);
        let signed = quotes.sign(&first).await.unwrap();
        let (mut answers, reasons) = refusals(&site, &gateway, &quotes, &first).await;
        let seen = |wanted: &str| reasons.iter().any(|reason| reason == wanted);
        for wanted in [
            "MALFORMED_JSON",
            "SCHEMA_VIOLATION",
            "QUOTE_EXPIRED",
            "POLICY_DENIED",
            "QUOTE_CONFLICT",
            "SEQUENCE_NOT_MONOTONIC",
            "ENVIRONMENT_MISMATCH",
            "SIGNING_HALTED",
            "CALLER_SUSPENDED",
            "SIGNER_UNAVAILABLE",
        ] {
            assert!(seen(wanted), "{wanted} is not among {reasons:?}");
        }
        until("a task has died of its panic", async || {
            let next = quotes.last().await + 1;
            let Err(status) = quotes.sign(&marked(next)).await else { return false };
            answers.push(told(&status));
            reason(&status) == "INTERNAL"
        })
        .await;
        for jws in [signed.jws.clone(), signed.jws.replace('.', "x."), format!("{MARKER}.{MARKER}.{MARKER}")] {
            let request = VerifyQuoteRequest { partner: PARTNER.to_owned(), jws };
            let report = quotes.0.clone().verify_quote(request).await.unwrap().into_inner();
            answers.push(format!("{report:?}"));
        }
        until("traces and metrics came", async || !sink.lines("span").is_empty() && !sink.lines("metric").is_empty())
            .await;

        let metrics = gateway.operations("/metrics").await.1;
        let ready = gateway.operations("/readyz?for=signing").await.1;
        let log = gateway.log.clone();
        assert!(gateway.stop().success());
        let log = log.lock().unwrap().join("\n");
        let mut secrets = vec![TOKEN.to_owned()];
        for name in ["pin", "so-pin"] {
            secrets.push(fs::read_to_string(site.path(name)).unwrap().trim().to_owned());
        }
        let shipped = fs::read_to_string(site.path("shipped.jsonl")).unwrap();
        // The sink tells which headers came, and must.
        assert!(shipped.contains(TOKEN));
        let strip = |line: &str| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("metadata");
            line.to_string()
        };
        let shipped: String = shipped.lines().map(strip).collect::<Vec<_>>().join("\n");
        let mut outputs = vec![
            ("the log", log),
            ("what was shipped", shipped),
            ("the metrics", metrics),
            ("the health", ready),
            ("an answer", answers.join("\n")),
            ("the journal", done(site.run(&["audit", "export"]))),
            ("the summary", done(site.run(&["audit", "summary"]))),
            ("golive", both(&site, &["golive", "--partner", PARTNER])),
            ("the doctor", both(&site, &["doctor"])),
            ("the config check", done(site.run(&["config", "check"]))),
        ];
        let id = first.0["quote_id"].as_str().unwrap().to_owned();
        outputs.push(("support", both(&site, &["support", "--partner", PARTNER, "--quote", &id])));
        for (name, text) in &outputs {
            assert!(!text.is_empty(), "{name} is empty");
            is_clean(name, text, &secrets);
        }
        let mut all = Vec::new();
        files(&site.path(""), &mut all);
        let is_ours = |path: &&std::path::PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("ledger.sqlite") || name.starts_with("revoked")
        };
        let ours: Vec<_> = all.iter().filter(is_ours).collect();
        assert!(ours.len() >= 2, "{ours:?}");
        for path in ours {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o177, 0, "{}", path.display());
        }
    }
}

/// All that a command says, whether or not it is content.
fn both(site: &Site, args: &[&str]) -> String {
    let output = site.run(args);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
