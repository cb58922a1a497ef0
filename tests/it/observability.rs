//! What monitoring sees of a gateway, and the alerts that go with it.

use std::{collections::BTreeSet, fs, process::Command};

use quotesign::proto::{HaltReach, HaltRequest, VerifyQuoteRequest, halt_reach::To};

use crate::harness::{PARTNER, Quote, Site, done, until};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn promtool(args: &[&str]) -> String {
    let program = format!("{HERE}/.tools/promtool/promtool");
    done(Command::new(program).args(args).current_dir(format!("{HERE}/deploy/observability")).output().unwrap())
}

fn read(path: &str) -> String {
    fs::read_to_string(format!("{HERE}/{path}")).unwrap()
}

/// What follows `before` in the lines of a text, to the end of the word.
fn words(text: &str, before: &str) -> BTreeSet<String> {
    let rest = text.split(before).skip(1);
    rest.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned()).collect()
}

#[test]
fn each_alert_is_tried_and_asks_for_metrics_that_there_are() {
    assert!(promtool(&["check", "rules", "alerts.yaml"]).contains("SUCCESS"));
    assert!(promtool(&["test", "rules", "alerts_test.yaml"]).contains("SUCCESS"));
    let (rules, tests) = (read("deploy/observability/alerts.yaml"), read("deploy/observability/alerts_test.yaml"));
    let alerts = words(&rules, "- alert: ");
    assert!(alerts.len() > 20);
    assert_eq!(words(&tests, "{alertname=\""), alerts);
    let documented = words(&(read("docs/metrics.md") + &read("docs/key-sets.md")), "`quotesign_");
    let asked: BTreeSet<String> =
        words(&rules, "quotesign_").into_iter().map(|name| name.trim_end_matches("_bucket").to_owned()).collect();
    let watched = words(&read("src/cli/jwks/watch.rs"), "\"");
    let known = |name: &&String| {
        let of_watch = name.strip_prefix("jwks_").map(|name| name.trim_end_matches("_total"));
        !documented.contains(*name) && !of_watch.is_some_and(|name| watched.contains(name))
    };
    assert_eq!(asked.iter().find(known), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_sees_what_was_signed_verified_and_stopped_and_what_comes_next() {
    let site = Site::new();
    let gateway = site.serve().await;
    let quotes = gateway.quotes("pricing").await;
    let signed = quotes.sign(&Quote::number(1)).await.unwrap();
    let second = Quote::number(2);
    quotes.sign(&second).await.unwrap();
    quotes.sign(&second).await.unwrap();
    for (jws, valid) in [(signed.jws.clone(), true), (signed.jws.replacen('.', ".A", 1), false)] {
        let request = VerifyQuoteRequest { partner: PARTNER.to_owned(), jws };
        assert_eq!(quotes.0.clone().verify_quote(request).await.unwrap().into_inner().valid, valid);
    }
    let reach = Some(HaltReach { to: Some(To::Partner(PARTNER.to_owned())) });
    gateway.admin("operator").await.halt(HaltRequest { reach, reason: "a test".to_owned() }).await.unwrap();
    let wanted = [
        format!("quotesign_key_signatures_total{{kid=\"{}\"}} 2", signed.kid),
        "quotesign_verifications_total{partner=\"acme-remit\",valid=\"true\"} 1".to_owned(),
        "quotesign_verifications_total{partner=\"acme-remit\",valid=\"false\"} 1".to_owned(),
        "quotesign_stops{kind=\"halted\"} 1".to_owned(),
        "quotesign_partner_active_key{partner=\"acme-remit\"} 1".to_owned(),
        format!("quotesign_policy_serial{{digest=\"{}\"}} 1", signed.policy_digest),
        "quotesign_timeline_next_change_timestamp_seconds{partner=\"acme-remit\"} ".to_owned(),
        "quotesign_certificate_expiry_timestamp_seconds{front=\"jwks\"} ".to_owned(),
    ];
    until("all of it is in the metrics", async || {
        let text = gateway.operations("/metrics").await.1;
        let missing = wanted.iter().find(|line| !text.contains(*line));
        if let Some(line) = missing {
            eprintln!("not yet: {line}");
        }
        missing.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_the_gateway_nor_the_process_of_a_device_leaves_a_core_dump() {
    let site = Site::new();
    let gateway = site.serve().await;
    let children = format!("/proc/{0}/task", gateway.pid());
    let children = fs::read_dir(children).unwrap().map(|task| task.unwrap().path().join("children"));
    // A thread may have ended meanwhile.
    let children = children.filter_map(|file| fs::read_to_string(file).ok()).collect::<Vec<_>>().concat();
    let mut processes: Vec<&str> = children.split_whitespace().collect();
    assert!(!processes.is_empty(), "the device has a process of its own");
    let own = gateway.pid().to_string();
    processes.push(&own);
    for process in processes {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let values: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(values, ["0", "0"], "{core}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_has_its_line_with_what_it_was_about_and_what_came_of_it() {
    let site = Site::new();
    let gateway = site.serve().await;
    let quotes = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    quotes.sign(&quote).await.unwrap();
    quotes.sign(&quote.clone().with("send_amount", "marker".into())).await.unwrap_err();
    quotes.sequence("").await.unwrap();
    quotes.sign_bytes(b"no quote".to_vec()).await.unwrap_err();
    let lines = || -> Vec<serde_json::Value> {
        let log = gateway.log.lock().unwrap();
        let lines = log.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line["message"] == "call").collect()
    };
    until("the lines are written", async || lines().len() == 4).await;
    let id = &quote.0["quote_id"];
    let told =
        [("Ok", true, true), ("InvalidArgument", true, true), ("Ok", true, false), ("InvalidArgument", false, false)];
    for (line, (status, has_partner, has_quote)) in lines().iter().zip(told) {
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line.get("partner").is_some_and(|partner| partner == PARTNER), has_partner, "{line}");
        assert_eq!(line.get("quote_id"), has_quote.then_some(id), "{line}");
        assert_eq!(line["reason"] == "", status == "Ok", "{line}");
        assert_eq!(
            (&line["environment"], &line["version"]),
            (&"development".into(), &env!("CARGO_PKG_VERSION").into())
        );
        for field in ["timestamp", "method", "caller", "correlation_id"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {line}");
        }
    }
    assert!(!gateway.log.lock().unwrap().concat().contains("marker"));
}

/// The status, the correlation id and the rest of what curl was answered.
fn curl(site: &Site, url: &str, options: &[&str]) -> (u16, String) {
    let form = "%{http_code} %header{x-correlation-id}";
    let mut command = Command::new("curl");
    command.args(["-sS", "-o", "/dev/null", "-w", form, "--cacert"]).arg(site.path("tls/ca.pem"));
    let said = done(command.args(options).arg(url).output().unwrap());
    let (status, id) = said.split_once(' ').unwrap();
    (status.parse().unwrap(), id.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_for_a_key_set_has_its_line_and_nothing_that_a_stranger_chose_is_in_it() {
    let site = Site::new();
    let gateway = site.serve().await;
    let set = format!("https://{}/partners/{PARTNER}/.well-known/jwks.json", gateway.address("jwks"));
    let at = |path: &str| format!("https://{}{path}", gateway.address("jwks"));
    let route = "GET /partners/{partner}/.well-known/jwks.json";
    let other = route.replacen("GET", "other", 1);
    let asked = [
        (curl(&site, &set, &["-H", "x-correlation-id: check-1"]), 200, route, true),
        (curl(&site, &set, &["-H", "x-correlation-id: marker \"id\""]), 200, route, true),
        (curl(&site, &set, &["--head"]), 200, "HEAD /partners/{partner}/.well-known/jwks.json", true),
        (curl(&site, &at("/.well-known/jwks.json"), &[]), 200, "GET /.well-known/jwks.json", true),
        (curl(&site, &at("/partners/marker-remit/.well-known/jwks.json"), &[]), 404, route, false),
        (curl(&site, &at("/marker?marker=marker"), &["-A", "marker"]), 404, "GET unknown", false),
        (curl(&site, &set, &["-X", "MARKER"]), 405, &other, false),
    ];
    let lines = |message: &str| -> Vec<serde_json::Value> {
        let log = gateway.log.lock().unwrap();
        let lines = log.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line["message"] == message).collect()
    };
    until("the lines are written", async || lines("request").len() == asked.len()).await;
    for (line, ((answered, id), status, method, has_partner)) in lines("request").iter().zip(&asked) {
        assert_eq!((answered, &line["status"], &line["method"]), (status, &(*status).into(), &(*method).into()));
        assert_eq!((&line["correlation_id"], id.is_empty()), (&id.as_str().into(), false), "it is echoed");
        assert_eq!(line.get("partner").is_some_and(|partner| partner == PARTNER), *has_partner, "{line}");
        assert_eq!(
            (&line["environment"], &line["version"]),
            (&"development".into(), &env!("CARGO_PKG_VERSION").into())
        );
        assert!(line["micros"].is_u64() && line["timestamp"].is_string(), "{line}");
    }
    assert_eq!(asked[0].0.1, "check-1");

    // A flood: each is counted, few are written, and how many were not is told.
    done(
        Command::new("curl")
            .args(["-sS", "-Z", "-o", "/dev/null", "--cacert"])
            .arg(site.path("tls/ca.pem"))
            .arg(at("/marker-[1-1000]"))
            .output()
            .unwrap(),
    );
    let counted = |metrics: &str, line: &str| metrics.lines().any(|one| one == line);
    let metrics = gateway.operations("/metrics").await.1;
    assert!(counted(&metrics, "quotesign_jwks_requests_total{status=\"404\"} 1002"), "{metrics}");
    assert!(counted(&metrics, "quotesign_jwks_requests_total{status=\"405\"} 1"));
    let left_out = || {
        lines("requests without a line of their own").iter().filter_map(|line| line["requests"].as_u64()).sum::<u64>()
    };
    until("the rest is told", async || {
        u64::try_from(lines("request").len() - asked.len()).unwrap() + left_out() == 1000
    })
    .await;
    let written = lines("request").len() - asked.len();
    assert!((1..=500).contains(&written), "{written} of 1000 were written");
    assert!(!gateway.log.lock().unwrap().concat().contains("marker"));
}
