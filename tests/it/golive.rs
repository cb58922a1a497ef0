//! `golive` and `support`: what they show is so, what is not so is told, and nothing is in them that must not be sent.

use std::{collections::BTreeMap, fs, process::Output};

use quotesign::{
    clock::{Clock as _, SystemClock},
    proto::{
        ActivateKeyRequest, HaltReach, HaltRequest, QuoteOutcome, ReportQuoteOutcomeRequest, SeedSequenceRequest,
        halt_reach,
    },
};
use serde_json::{Value, json};

use crate::{
    commands::client,
    first_start::{Production, ROOT, SIGNING},
    harness::{Gateway, PARTNER, Quote, Site, done, failed, seconds, toml},
    lifecycle::Cdn,
    stops::kid,
};

/// A sandbox that could go live: confirmed, seeded, and its key set at a public URL.
async fn sandbox() -> (Site, Gateway, Cdn) {
    let site = Site::sandbox();
    let cdn = Cdn::new(&site).await;
    site.edit_config(|config| config["jwks"]["url_ca"] = toml("'tls/ca.pem'"));
    let jwk = fs::read_to_string(site.path(&format!("policy/keys/{}.jwk.json", kid(&site)))).unwrap();
    fs::write(&cdn.file, format!("{{\"keys\":[{jwk}]}}")).unwrap();
    site.edit_policy(|policy| {
        policy["partners"][0]["jwks_url"] = toml(&format!("'{}'", cdn.url));
        let confirmed = format!("{{ at = {}, ref = 'OPS-4711' }}", seconds(SystemClock.now()));
        policy["keys"][0]["confirmed"] = toml(&confirmed);
    });
    let gateway = site.start();
    site.journalled("key.served", 1).await;
    let activate = ActivateKeyRequest { kid: kid(&site), reason: "OPS-20".to_owned() };
    gateway.admin("operator").await.activate_key(activate).await.unwrap();
    let (partner, reason) = (PARTNER.to_owned(), "OPS-20".to_owned());
    let seed = SeedSequenceRequest { partner, corridor: String::new(), floor: 0, reason };
    gateway.admin("operator").await.seed_sequence(seed).await.unwrap();
    gateway.signing().await;
    (site, gateway, cdn)
}

fn golive(site: &Site, gateway: &Gateway, args: &[&str]) -> Output {
    let _client_file = client(site, gateway, &["jwks"]);
    let file = site.path("client-now.toml");
    let sandbox = fs::read_to_string(&file).unwrap().replace("'development'", "'sandbox'");
    fs::write(&file, sandbox).unwrap();
    let file = file.to_str().unwrap().to_owned();
    site.run(&[&["golive", "--partner", PARTNER, "--client", &file], args].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_can_show_is_shown_with_evidence_that_can_be_found() {
    let (site, gateway, _cdn) = sandbox().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    pricing.sign_in("sandbox", quote.bytes()).await.unwrap();
    let accepted = ReportQuoteOutcomeRequest {
        partner: PARTNER.to_owned(),
        quote_id: quote.id().to_owned(),
        outcome: QuoteOutcome::Accepted.into(),
        correlation_id: "op-4712".to_owned(),
        ..ReportQuoteOutcomeRequest::default()
    };
    pricing.0.clone().report_quote_outcome(accepted).await.unwrap();
    let example = format!("{ROOT}/examples/quote.json");
    let told = golive(&site, &gateway, &["--quote", &example, "--format", "json"]);
    let dossier: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert!(failed(told, 1).contains("1 of 64 rows have failed"));
    let mut outcomes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for answer in dossier["answers"].as_array().unwrap() {
        outcomes.entry(answer["outcome"].as_str().unwrap()).or_default().push(answer["asks"].as_str().unwrap());
    }
    // It was activated a moment ago.
    assert_eq!(outcomes["failed"], ["It was served for the propagation time"]);
    // All but what needs another environment's config.
    let open = [
        "Neither environment's keys are used in the other",
        "Each environment has a configuration of its own",
        "The sandbox has its own",
    ];
    assert_eq!(outcomes["not_looked"], open);
    assert!(outcomes["passed"].len() > 40, "{outcomes:?}");
    let evidence = |asks: &str| {
        let mut answers = dossier["answers"].as_array().unwrap().iter();
        answers.find(|answer| answer["asks"] == asks).unwrap()["evidence"].as_str().unwrap().to_owned()
    };
    assert!(evidence("The operator's API has taken a quote").contains("op-4712"));
    // Each probe is in the journal under its correlation id.
    let journal = site.journal();
    for (asks, event) in [
        ("A signed quote", "quote.committed"),
        ("A retry that changed nothing", "quote.replayed"),
        ("A conflict that was refused", "quote.refused"),
        ("An expired quote that was refused", "quote.refused"),
        ("After one, a new quote is signed", "quote.committed"),
    ] {
        let evidence = evidence(asks);
        let id = evidence.split("correlation id ").nth(1).unwrap().trim_end_matches(')');
        let of_probe = |record: &&Value| record["context"]["correlation_id"] == id && record["event"] == event;
        assert!(journal.iter().any(|record| of_probe(&record)), "{asks}: {evidence}");
    }
    for (format, parts) in [
        ("markdown", ["# Go-live evidence: acme-remit in sandbox", "| passed |", "## Go-live 9: key set"]),
        ("html", ["<svg xmlns", "class=\"passed\"", "Key management 24"]),
    ] {
        let out = site.path(&format!("golive.{format}"));
        failed(golive(&site, &gateway, &["--quote", &example, "--format", format, "--out", out.to_str().unwrap()]), 1);
        let text = fs::read_to_string(out).unwrap();
        for part in parts {
            assert!(text.contains(part), "{format}: {part}");
        }
        assert!(!text.contains("src=") && !text.contains("<script") && !text.contains("eyJ"), "{format}");
    }
    // What is not so is told, and fails.
    let other = Site::new();
    let shared = golive(&site, &gateway, &["--apart-from", other.config().to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&shared.stdout).contains("| FAILED |"));
    assert!(failed(shared, 1).contains("rows have failed"));
    // What must not be submitted is not, whoever wrote it where.
    site.edit_policy(|policy| policy["partners"][0]["contacts"]["technical"] = toml("'Bearer abcdef'"));
    let kept = golive(&site, &gateway, &[]);
    assert!(kept.stdout.is_empty());
    assert!(failed(kept, 1).contains("nothing was written: it would hold an access token"));
    assert!(gateway.stop().success());
}

/// A name is no key, a key that signs may be halted, and what the operator took last year he may refuse today.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_so_of_the_key_that_signs_has_failed() {
    let (site, gateway, cdn) = sandbox().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    pricing.sign_in("sandbox", quote.bytes()).await.unwrap();
    let jwks = fs::read_to_string(&cdn.file).unwrap();
    let rows = |args: &[&str]| {
        let told = golive(&site, &gateway, &[&["--format", "json"], args].concat());
        let dossier: Value = serde_json::from_slice(&told.stdout).unwrap();
        let failed = dossier["answers"].as_array().unwrap().iter().filter(|answer| answer["outcome"] == "failed");
        failed.map(|answer| answer["asks"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let propagated = "It was served for the propagation time";
    assert_eq!(rows(&[]), [propagated]);
    // A key of the same name that is not the key, and one that stands there twice.
    let own: Value = serde_json::from_str(&jwks).unwrap();
    let mut others = own.clone();
    let modulus = own["keys"][0]["n"].as_str().unwrap();
    others["keys"][0]["n"] = json!(format!("{}AAAB", &modulus[..modulus.len() - 4]));
    let mut twice = own.clone();
    twice["keys"].as_array_mut().unwrap().push(own["keys"][0].clone());
    for set in [others, twice] {
        fs::write(&cdn.file, set.to_string()).unwrap();
        assert_eq!(rows(&[]), ["It has the active kid", propagated, "The active kid is registered and visible"]);
    }
    fs::write(&cdn.file, jwks).unwrap();
    // The operator's API takes it no more, and then nothing is signed.
    let refused = ReportQuoteOutcomeRequest {
        partner: PARTNER.to_owned(),
        quote_id: quote.id().to_owned(),
        outcome: QuoteOutcome::Refused.into(),
        error_code: "quote.signatureInvalid".to_owned(),
        verification_failed: true,
        correlation_id: "op-4714".to_owned(),
    };
    pricing.0.clone().report_quote_outcome(refused).await.unwrap();
    let taken = ["The operator's API has taken a quote", propagated, "The operator's sandbox verifies them"];
    assert_eq!(rows(&[]), taken);
    let reach = Some(HaltReach { to: Some(halt_reach::To::All(true)) });
    gateway.admin("operator").await.halt(HaltRequest { reach, reason: "OPS-21".to_owned() }).await.unwrap();
    assert!(rows(&[]).contains(&"The signing key is active".to_owned()));
    assert!(gateway.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn production_is_only_read() {
    let production = Production::signing().await;
    let gateway = production.serve(SIGNING);
    gateway.signing().await;
    let before = production.site.journal().len();
    let probe = "quotesign golive --partner acme-remit --client operator.toml --quote examples/quote.json";
    assert!(production.bad(probe, 2).contains("production is only read"));
    let told = production.good("quotesign golive --partner acme-remit --client operator.toml");
    assert!(told.contains("# Go-live evidence: acme-remit in production") && !told.contains("FAILED"), "{told}");
    assert!(told.contains("`quote-signing-2026-12` was confirmed at 2026-12-02T10:30:00Z, on record as OPS-4711"));
    assert_eq!(production.site.journal().len(), before);
    assert!(gateway.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn support_is_told_what_it_asks_for_and_no_value_of_the_quote() {
    let (site, gateway, cdn) = sandbox().await;
    let quote = Quote::number(1);
    let signed = gateway.quotes("pricing").await.sign_in("sandbox", quote.bytes()).await.unwrap();
    let support = |args: &[&str]| {
        let common = ["support", "--partner", PARTNER, "--quote", quote.id(), "--api-error", "quote.signatureInvalid"];
        site.run(&[&common[..], args].concat())
    };
    let told = done(support(&["--format", "json", "--api-correlation-id", "op-4713"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    for (name, value) in [
        ("environment", json!("sandbox")),
        ("jwks_url", json!(cdn.url)),
        ("active_kid", json!(signed.kid)),
        ("jwks_http_status", json!(200)),
        ("quote_id", json!(quote.id())),
        ("api_error_code", json!("quote.signatureInvalid")),
        ("api_correlation_id", json!("op-4713")),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
    assert!(told["private_key_exposed"].as_str().unwrap().starts_with("no: "));
    let of_quote = &told["quote"];
    assert_eq!(of_quote["header"], json!({ "alg": "RS256", "kid": signed.kid, "typ": "JWT" }));
    assert_eq!(of_quote["payload"]["quote_sequence"], 1);
    assert_eq!(of_quote["audit_record_id"], signed.audit_record_id);
    let record = site.journal().into_iter().find(|record| record["id"] == signed.audit_record_id).unwrap();
    assert_eq!(of_quote["correlation_id"], record["context"]["correlation_id"]);
    let text = done(support(&[]));
    for claim in ["subscription_id", "send_amount", "total_customer_cost", "fx_rate"] {
        let value = quote.0[claim].as_str().unwrap();
        assert!(text.contains(&format!("quote.payload.{claim}: text of {} characters", value.len())), "{text}");
    }
    assert!(!text.contains(quote.0["subscription_id"].as_str().unwrap()) && !text.contains(&signed.jws));
    // A set that shows a private key says so first of all.
    let jwks = fs::read_to_string(&cdn.file).unwrap();
    fs::write(&cdn.file, jwks.replace("\"kty\"", "\"q\": \"AQAB\", \"kty\"")).unwrap();
    assert!(done(support(&[])).contains("private_key_exposed: YES: the member `q`"));
    let never = site.run(&["support", "--partner", PARTNER, "--quote", "never-signed"]);
    assert!(done(never).contains("this ledger holds no quote of that id"));
    assert!(gateway.stop().success());
}
