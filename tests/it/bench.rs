//! `quotesign bench`: what it counts, what it finds, and where it does not run. How fast anything is, is no matter here.

use std::{
    fs,
    process::{Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    commands::client_file,
    harness::{Gateway, Site, children, done, failed, quotesign, toml, until},
};

/// A site whose gateway gives the numbers, under these quotas.
fn assigning(quota: &str) -> Site {
    let site = Site::new();
    site.edit_policy(|policy| {
        policy["partners"][0]["sequence"]["mode"] = toml_edit::value("assign");
        for name in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            policy["quotas"][name] = toml(quota);
        }
    });
    site
}

const NO_QUOTA: &str = "{ per_second = 1000000, burst = 1000000 }";

fn bench(site: &Site, gateway: &Gateway, args: &[&str]) -> Output {
    let all = ["bench", "--warm-up-s", "0", "--format", "json", "--client"];
    quotesign().args(all).arg(client_file(site, gateway)).args(args).output().unwrap()
}

fn report(output: Output) -> Value {
    serde_json::from_str(&done(output)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_signed_closed_and_open_is_what_the_ledger_holds() {
    let site = assigning(NO_QUOTA);
    let gateway = site.serve().await;
    let pid = gateway.pid().to_string();
    let args = ["--sequence", "assign", "--quotes", "150", "--verify-every", "10", "--pid", &pid];
    let closed = report(bench(&site, &gateway, &args));
    let run = &closed["runs"][0];
    assert_eq!((&run["kind"], &run["signed"], &run["unsent"]), (&"closed".into(), &150.into(), &0.into()));
    assert_eq!((&closed["verified"], &closed["faults"]), (&15.into(), &serde_json::json!({})));
    let latency = |name: &str| run["latency_us"][name].as_u64().unwrap();
    let spread = ["p50", "p90", "p99", "p99_9", "max"].map(latency);
    assert!(spread.is_sorted() && spread[0] > 0, "{spread:?}");
    for whose in ["gateway", "hosts", "client"] {
        assert!(run["cpu_us"][whose].as_f64().unwrap() > 0.0, "{whose}: {run}");
    }

    let args = ["--sequence", "assign", "--rate", "60", "--duration-s", "2", "--in-flight", "16"];
    let open = report(bench(&site, &gateway, &args));
    let run = &open["runs"][0];
    assert_eq!((&run["kind"], &run["signed"], &run["unsent"]), (&"open".into(), &120.into(), &0.into()));
    assert!(run["latency_us"]["max"].as_u64() >= run["service_us"]["max"].as_u64(), "{run}");
    let committed = site.journalled("quote.committed", 270).await;
    assert_eq!(committed.len(), 270);
    assert!(gateway.stop().success());
}

/// A gateway that stalls is not spared the quotes that it kept from being sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_told_by_every_quote_that_was_due_meanwhile() {
    let site = assigning(NO_QUOTA);
    let gateway = site.serve().await;
    let args = ["--sequence", "assign", "--rate", "50", "--duration-s", "4", "--in-flight", "1"];
    let bench = std::thread::scope(|scope| {
        let running = scope.spawn(|| bench(&site, &gateway, &args));
        std::thread::sleep(std::time::Duration::from_secs(2));
        gateway.signal(Signal::STOP);
        std::thread::sleep(std::time::Duration::from_secs(1));
        gateway.signal(Signal::CONT);
        running.join().unwrap()
    });
    let report = report(bench);
    let run = &report["runs"][0];
    assert_eq!(run["signed"], 200, "{run}");
    // Of 200 quotes a quarter was due while it stood still, and one alone was under way.
    let (latency, service) = (run["latency_us"]["p90"].as_u64().unwrap(), run["service_us"]["p90"].as_u64().unwrap());
    assert!(latency > 400_000 && latency > 3 * service, "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_refuses_is_counted_by_its_reason() {
    let site = assigning("{ per_second = 1, burst = 20 }");
    let gateway = site.serve().await;
    let args = ["--sequence", "assign", "--rate", "100", "--duration-s", "1"];
    let report = report(bench(&site, &gateway, &args));
    let run = &report["runs"][0];
    let (signed, refused) = (run["signed"].as_u64().unwrap(), run["refused"]["RATE_LIMITED"].as_u64().unwrap());
    assert!((20..30).contains(&signed) && signed + refused == 100, "{run}");
    assert_eq!((&run["errors"], &report["faults"]), (&serde_json::json!({}), &serde_json::json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_number_keep_their_order_or_are_not_begun_with() {
    let site = Site::new();
    let gateway = site.serve().await;
    let report = report(bench(&site, &gateway, &["--quotes", "20"]));
    assert_eq!((&report["runs"][0]["signed"], &report["lanes"]), (&20.into(), &1.into()));
    assert_eq!(gateway.quotes("pricing").await.last().await, 20);
    let refused = failed(bench(&site, &gateway, &["--in-flight", "2"]), 2);
    assert!(refused.contains("--sequence assign"), "{refused}");
    let file = client_file(&site, &gateway);
    let refused = failed(bench(&site, &gateway, &["--client", file.to_str().unwrap()]), 2);
    assert!(refused.contains("--sequence assign"), "{refused}");
}

#[test]
fn production_is_refused_before_anything_is_sent() {
    let site = Site::new();
    let client = fs::read_to_string(site.path("client.toml")).unwrap();
    let file = site.path("production.toml");
    fs::write(&file, client.replace("\"development\"", "\"production\"")).unwrap();
    let refused = failed(quotesign().args(["bench", "--client"]).arg(file).output().unwrap(), 2);
    assert!(refused.contains("production signs real quotes"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_it_takes_its_own_gateway_with_it() {
    let temporary = tempfile::tempdir().unwrap();
    let mut bench = quotesign();
    bench.env("TMPDIR", temporary.path()).args(["bench", "--own", "--duration-s", "600"]);
    let bench = bench.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let is_up = || {
        children(bench.id())
            .any(|child| fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default().contains("serve"))
    };
    until("its gateway is up", async || is_up()).await;
    let gateway = children(bench.id()).next().unwrap();
    kill_process(Pid::from_child(&bench), Signal::TERM).unwrap();
    let ended = bench.wait_with_output().unwrap();
    assert!(failed(ended, 1).contains("it was told to end"));
    assert!(!fs::exists(format!("/proc/{gateway}")).unwrap(), "its gateway is left");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn a_gateway_of_its_own_is_measured_whole_and_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let mut bench = quotesign();
    bench.env("TMPDIR", temporary.path()).args(["bench", "--own", "--format", "json", "--warm-up-s", "0"]);
    bench.args(["--callers", "2", "--in-flight", "3", "--duration-s", "2", "--quotes", "200", "--load", "0.5"]);
    let report = report(bench.args(["--trace-ratio", "1", "--verify-every", "20"]).output().unwrap());
    let runs = report["runs"].as_array().unwrap();
    assert_eq!((&report["callers"], &report["lanes"], runs.len()), (&2.into(), &6.into(), 2));
    assert_eq!(report["faults"], serde_json::json!({}));
    let positive =
        |value: &Value, what: &str| assert!(value.as_f64().is_some_and(|value| value > 0.0), "{what}: {report}");
    for what in ["rate_per_s", "cpu_us", "p50_us", "p99_us", "alone_p50_us"] {
        positive(&report["raw"][what], what);
    }
    positive(&report["synchronisation_us"]["p50"], "synchronisation");
    positive(&runs[1]["rate_wanted"], "rate_wanted");
    for run in runs {
        for stage in ["parse", "validate", "authorize", "reserve", "sign", "verify", "commit"] {
            assert_eq!(run["stages"][stage]["count"], run["signed"], "{stage}");
            positive(&run["stages"][stage]["mean_us"], stage);
        }
        positive(&run["threads_cpu_us"]["gateway: ledger-writer"], "the ledger's thread");
    }
    assert!(report["targets"].as_array().unwrap().len() >= 2, "{report}");
    let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
