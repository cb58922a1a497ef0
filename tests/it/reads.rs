//! Who reads the journal is in it: whatever they ask for, whichever engine keeps it, and however often a gateway is killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use quotesign::clock::UtcTime;
use quotesign::proto::{ListSignedQuotesRequest, list_signed_quotes_request::Of, timestamp};
use serde_json::Value;

use crate::{
    harness::{Gateway, PARTNER, Quote, Site, TRUST_DOMAIN, done, failed, toml, until},
    kills::{Dice, number_from, seed_from},
    server::{Cluster, Database},
};

/// A site that sweeps each second.
fn site() -> Site {
    Site::new().with("QUOTESIGN__LEDGER__SWEEP_S", "1")
}

fn spool(site: &Site) -> PathBuf {
    site.path("ledger.sqlite.reads")
}

fn taken(site: &Site) -> PathBuf {
    site.path("ledger.sqlite.reads.taken")
}

fn is_read(record: &Value) -> bool {
    record["event"] == "journal.read"
}

/// The records of reads, read past the commands so that looking leaves no note.
fn reads(site: &Site) -> Vec<Value> {
    let records = site.ledger().tail(100_000).unwrap();
    let records = records.iter().map(|stored| serde_json::from_slice::<Value>(&stored.bytes).unwrap());
    records.filter(is_read).collect()
}

fn commands(reads: &[Value]) -> Vec<&str> {
    reads.iter().map(|record| record["facts"]["detail"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_that_reads_the_journal_leaves_a_record_of_who_asked_for_what() {
    let site = Site::new();
    let gateway = site.serve().await;
    let quote = Quote::number(1).with("subscription_id", "sub_marker".into());
    let signed = gateway.quotes("pricing").await.sign(&quote).await.unwrap();
    gateway.kill();
    let before = reads(&site).len();
    let export = site.path("journal.jsonl");
    let (id, export) = (signed.audit_record_id.as_str(), export.to_str().unwrap());
    let policy = site.path("policy");
    let since = "2026-01-01T00:00:00Z";
    let asked: [(&[&str], &str, Vec<String>); 12] = [
        (&["audit", "tail"], "audit tail", vec![]),
        (
            &[
                "audit",
                "tail",
                "--quote",
                quote.id(),
                "--partner",
                PARTNER,
                "--customer",
                "sub_marker",
                "--since",
                since,
            ],
            "audit tail",
            vec![
                format!("quote={}", quote.id()),
                format!("partner={PARTNER}"),
                "customer".into(),
                format!("since={since}"),
            ],
        ),
        (&["audit", "show", id], "audit show", vec![format!("record={id}")]),
        (&["audit", "export", "--out", export], "audit export", vec![]),
        (&["audit", "summary", "--event", "quote.committed"], "audit summary", vec!["event=quote.committed".into()]),
        (&["audit", "verify"], "audit verify", vec![]),
        (&["audit", "checkpoint"], "audit checkpoint", vec![]),
        (&["audit", "prove", "--quote", quote.id()], "audit prove", vec![format!("quote={}", quote.id())]),
        (
            &["support", "--partner", PARTNER, "--quote", quote.id()],
            "support",
            vec![format!("partner={PARTNER}"), format!("quote={}", quote.id())],
        ),
        (&["golive", "--partner", PARTNER], "golive", vec![format!("partner={PARTNER}")]),
        (&["ledger", "gaps"], "ledger gaps", vec![]),
        (
            &["policy", "replay", policy.to_str().unwrap(), "--since", since],
            "policy replay",
            vec![format!("since={since}")],
        ),
    ];
    for (args, command, _) in &asked {
        let output = site.run(args);
        assert_ne!(output.status.code(), Some(2), "{command}: {output:?}");
    }
    // What reads a file and no ledger needs no note.
    done(Command::new(env!("CARGO_BIN_EXE_quotesign")).args(["audit", "verify", export]).output().unwrap());
    assert_eq!(fs::metadata(spool(&site)).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(reads(&site).len(), before, "nobody but the gateway writes the ledger");

    let gateway = site.serve().await;
    until("all of it is journalled", async || reads(&site).len() == before + asked.len()).await;
    until("and removed", async || !taken(&site).exists() && !spool(&site).exists()).await;
    let uid = rustix::process::getuid().as_raw();
    for (record, (args, command, filters)) in reads(&site).iter().skip(before).zip(&asked) {
        assert_eq!(record["facts"]["detail"], *command, "{args:?}");
        let told = record["facts"].get("filters").cloned().unwrap_or_else(|| Value::Array(Vec::new()));
        assert_eq!(serde_json::from_value::<Vec<String>>(told).unwrap(), *filters, "{args:?}");
        assert!(record["facts"]["reader"].as_str().unwrap().ends_with(&format!("uid {uid})")), "{record}");
        assert_eq!((record["context"].get("caller"), record["context"].get("method")), (None, None));
        assert_eq!(record["context"]["correlation_id"], record["id"]);
        assert_eq!(record["facts"].get("status"), None);
    }
    let all = site.whole_journal();
    assert!(!serde_json::to_string(&all).unwrap().contains("sub_marker"));
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_gateway_journals_a_read_with_its_sweep_and_a_call_that_reads_with_the_next_batch() {
    let site = site();
    let gateway = site.serve().await;
    let quotes = gateway.quotes("pricing").await;
    let signed = quotes.sign(&Quote::number(1)).await.unwrap();
    done(site.run(&["audit", "tail", "--kid", &signed.kid]));
    until("the command's read", async || reads(&site).len() == 1).await;
    assert_eq!(reads(&site)[0]["facts"]["filters"], serde_json::json!([format!("kid={}", signed.kid)]));

    let since = UtcTime::parse("2026-01-01T00:00:00Z").unwrap();
    let request = ListSignedQuotesRequest {
        of: Some(Of::Kid(signed.kid.clone())),
        since: Some(timestamp(since)),
        ..ListSignedQuotesRequest::default()
    };
    let mut admin = gateway.admin("operator").await;
    assert_eq!(admin.list_signed_quotes(request.clone()).await.unwrap().into_inner().quotes.len(), 1);
    until("the call's read", async || reads(&site).len() == 2).await;
    let record = &reads(&site)[1];
    assert_eq!(record["context"]["caller"], format!("spiffe://{TRUST_DOMAIN}/operator"));
    assert_eq!(record["context"]["method"], "quotesign.v1.AdminService/ListSignedQuotes");
    assert_eq!(
        record["facts"]["filters"],
        serde_json::json!([format!("kid={}", signed.kid), format!("since={since}")])
    );
    assert_eq!((&record["facts"]["status"], record["facts"].get("reader")), (&"OK".into(), None));
    // Who may not read leaves a refusal.
    gateway.admin("auditor").await.list_signed_quotes(request).await.unwrap_err();
    site.journalled("quote.refused", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_is_journalled_once_wherever_the_gateway_is_killed() {
    let mut site = site().with("FAILPOINTS", "ledger::readings-journalled=pause").with("TOKIO_WORKER_THREADS", "4");
    let gateway = site.serve().await;
    done(site.run(&["audit", "tail"]));
    done(site.run(&["audit", "verify"]));
    // Both may be taken at once or one by one; the first sweep that finds any stands still there.
    until("a note is a record", async || !reads(&site).is_empty()).await;
    assert!(taken(&site).exists(), "it is journalled and not removed");
    gateway.kill();
    assert!(taken(&site).exists());
    done(site.run(&["ledger", "gaps"]));

    site.env.remove("FAILPOINTS");
    let gateway = site.serve().await;
    until("all are", async || !taken(&site).exists() && !spool(&site).exists()).await;
    let (first, told) = (reads(&site), reads(&site));
    assert_eq!(commands(&first), ["audit tail", "audit verify", "ledger gaps"]);
    gateway.kill();

    // Killed after it took the file and before any of it was a record.
    done(site.run(&["audit", "summary"]));
    fs::rename(spool(&site), taken(&site)).unwrap();
    done(site.run(&["audit", "tail"]));
    let gateway = site.serve().await;
    until("all are", async || reads(&site).len() == told.len() + 2).await;
    assert_eq!(commands(&reads(&site))[3..], ["audit summary", "audit tail"]);
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn however_often_the_gateway_is_killed_each_read_is_one_record() {
    let (trials, seed) = (number_from("TRIALS", 8).min(200), seed_from());
    println!("TRIALS={trials} SEED={seed}");
    let (site, mut dice) = (site(), Dice::new(seed));
    for _ in 0..trials {
        let gateway = site.start();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| drop(done(site.run(&["audit", "verify"])))));
            }
            std::thread::sleep(Duration::from_millis(dice.throw(1_500)));
            gateway.kill();
        });
    }
    let gateway = site.serve().await;
    until("all are journalled", async || !taken(&site).exists() && !spool(&site).exists()).await;
    assert_eq!(reads(&site).len(), usize::try_from(trials).unwrap() * 20);
    let ids: BTreeSet<_> = reads(&site).iter().map(|record| record["id"].to_string()).collect();
    assert_eq!(ids.len(), reads(&site).len());
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_made_up_is_told_and_dropped_and_a_full_spool_lets_nobody_read() {
    let site = site();
    done(site.run(&["audit", "tail"]));
    let note = fs::read_to_string(spool(&site)).unwrap();
    let made_up = note.replacen("audit tail", "audit \\u202e tail", 1) + "nonsense\n{}\n";
    fs::write(spool(&site), made_up + &note + &note + &"marker\n".repeat(160_000)).unwrap();
    let full = site.run(&["audit", "tail"]);
    assert!(full.stdout.is_empty());
    let full = failed(full, 1);
    assert!(full.contains("nothing was read") && full.contains("start the gateway"), "{full}");
    let support = failed(site.run(&["support", "--partner", PARTNER]), 1);
    assert!(support.contains("nothing was read"), "{support}");

    let gateway = site.serve().await;
    gateway.logged("notes of reads were tampered with").await;
    until("what was none is gone", async || !taken(&site).exists()).await;
    assert_eq!(commands(&reads(&site)), ["audit tail"], "the same note twice is one record");
    let log = gateway.log.lock().unwrap().concat();
    assert!(!log.contains("marker") && log.matches("tampered").count() < 5, "{log}");
    done(site.run(&["audit", "tail"]));
    until("it goes on", async || reads(&site).len() == 2).await;
}

#[test]
fn a_read_that_cannot_be_noted_is_refused_and_roots_note_is_the_ledgers_owners() {
    let site = Site::new();
    fs::create_dir(spool(&site)).unwrap();
    for args in [&["audit", "tail"][..], &["audit", "verify"], &["ledger", "gaps"], &["golive", "--partner", PARTNER]] {
        let refused = site.run(args);
        assert!(refused.stdout.is_empty(), "{args:?}");
        assert!(failed(refused, 1).contains("nothing was read"), "{args:?}");
    }
    fs::remove_dir(spool(&site)).unwrap();
    if rustix::process::getuid().is_root() {
        chown(site.path("ledger.sqlite"), Some(12_345), Some(12_345)).unwrap();
        done(site.run(&["audit", "tail"]));
        assert_eq!(fs::metadata(spool(&site)).unwrap().uid(), 12_345);
    }
}

/// Two gateways on one database.
struct Shared {
    site: Site,
    database: Database,
}

impl Shared {
    fn new() -> Self {
        let (site, database) = (site(), Cluster::shared().empty());
        let address = format!("postgresql://postgres@127.0.0.1:{}/{}", database.port, database.name);
        site.edit_config(|config| {
            let ledger = config["ledger"].as_table_mut().unwrap();
            ledger.remove("sqlite");
            ledger["postgres"] = toml(&format!("{{ address = '{address}', timeout_ms = 2000 }}"));
        });
        done(site.run(&["ledger", "migrate"]));
        Self { site, database }
    }

    fn start(&self, name: &str, failpoints: &str) -> Gateway {
        let mut command = self.site.command();
        command.env("QUOTESIGN__LEDGER__POSTGRES__REPLICA", name).env("FAILPOINTS", failpoints);
        command.env("TOKIO_WORKER_THREADS", "4").arg("serve").arg("--config").arg(self.site.config());
        Gateway::spawn(command, &self.site)
    }

    fn waiting(&self) -> u32 {
        self.database.sql("SELECT count(*) FROM reading").parse().unwrap()
    }

    /// How many records there are of each command's reads.
    fn reads(&self) -> BTreeMap<String, usize> {
        let told = self.database.sql("SELECT convert_from(record, 'UTF8') FROM audit WHERE event = 'journal.read'");
        let records: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut reads = BTreeMap::new();
        for command in commands(&records) {
            *reads.entry(command.to_owned()).or_default() += 1;
        }
        reads
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_gateways_that_share_a_ledger_one_journals_a_read_and_another_where_it_is_killed() {
    let shared = Shared::new();
    let site = &shared.site;
    done(site.run(&["audit", "tail"]));
    assert_eq!((shared.waiting(), shared.reads().len()), (1, 0));
    let killed = shared.start("gw-0", "ledger::readings-journalled=pause");
    until("it is a record", async || shared.reads().len() == 1).await;
    assert_eq!(shared.waiting(), 1, "it is journalled and not removed");
    killed.kill();

    let (first, second) = (shared.start("gw-0", ""), shared.start("gw-1", ""));
    first.signing().await;
    second.signing().await;
    until("another has removed it", async || shared.waiting() == 0).await;
    assert_eq!(shared.reads(), BTreeMap::from([("audit tail".to_owned(), 1)]));
    for _ in 0..20 {
        done(site.run(&["ledger", "gaps"]));
    }
    until("all are journalled", async || shared.waiting() == 0).await;
    assert_eq!(shared.reads()["ledger gaps"], 20);

    // What is no note is dropped; where too much waits nobody reads.
    shared.database.sql("INSERT INTO reading (line) VALUES ('nonsense')");
    until("what was none is gone", async || shared.waiting() == 0).await;
    drop((first, second));
    shared.database.sql("INSERT INTO reading (line) SELECT repeat('a', 8000) FROM generate_series(1, 132)");
    let full = site.run(&["audit", "tail"]);
    assert!(full.stdout.is_empty());
    let full = failed(full, 1);
    assert!(full.contains("nothing was read") && full.contains("start a gateway"), "{full}");
    let third = shared.start("gw-2", "");
    third.logged("tampered").await;
    until("there is room", async || shared.waiting() == 0).await;
    done(site.run(&["audit", "verify"]));
}
