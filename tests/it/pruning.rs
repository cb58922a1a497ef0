//! The journal forgets what was exported and is past its time, and everything that hangs on it still holds.

use std::{collections::BTreeMap, fs, time::Duration};

use quotesign::{
    audit::{Context, Event, Facts, Record},
    clock::{Clock as _, SystemClock},
    domain::Environment,
    ledger::{
        Done, Engine as _, Journal as _, Op, PruneJournal, Stretch,
        sqlite::{Reader, Sqlite},
    },
    notary::checkpoint::Checkpoint,
};
use serde_json::json;

use crate::{
    commands::client,
    harness::{Caller, Gateway, Quote, Site, done, failed, quotesign, reason, toml, until, wait},
    server::{Cluster, Database},
    shipping::{Sink, ship_to},
};

/// A site that binds its journal as often as may be, ships it to `sink`, and keeps it for no time.
fn prunes(site: Site, sink: &Sink) -> Site {
    site.edit_config(|config| {
        config["audit"]["checkpoint"]["interval_s"] = toml("4");
        config["audit"]["keep_days"] = toml("0");
    });
    ship_to(&site, &format!("http://127.0.0.1:{}", sink.ports["grpc"]), "");
    site.with("QUOTESIGN__LEDGER__SWEEP_S", "1")
}

fn reader(site: &Site) -> Reader {
    Reader::open(&site.path("ledger.sqlite")).unwrap()
}

fn lane(site: &Site) -> Stretch {
    reader(site).lanes().unwrap().pop().unwrap()
}

fn newest(site: &Site) -> Option<Checkpoint> {
    reader(site).newest_checkpoint().unwrap().map(|(_, jws)| Checkpoint::unverified(&jws).unwrap())
}

/// Waits until a checkpoint covers everything that is in the journal now, but for records of checkpoints at its end: of those alone none
/// is made.
async fn bound(site: &Site) -> Checkpoint {
    let Stretch { first, head, .. } = lane(site);
    let records = reader(site).records(first.next_index, u32::MAX).unwrap();
    let news = records.iter().filter(|stored| stored.of_event(Event::Checkpointed).is_none());
    let head = news.map(|stored| stored.index + 1).max().unwrap_or(head.next_index);
    let mut found = None;
    until("a checkpoint of it", async || {
        found = newest(site).filter(|newest| newest.heads[""].next_index >= head);
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn sign(gateway: &Gateway, numbers: impl IntoIterator<Item = u64>) -> Vec<(Quote, String)> {
    let quotes = gateway.quotes("pricing").await;
    let mut signed = Vec::new();
    for number in numbers {
        let quote = Quote::number(number);
        let jws = quotes.sign(&quote).await.unwrap().jws;
        signed.push((quote, jws));
    }
    signed
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_exported_and_is_past_its_time_goes_and_all_that_hangs_on_it_holds() {
    let site = Site::new();
    let mut sink = Sink::absent(&site, &[]);
    let anchor = site.path("ledger.anchor");
    let site = prunes(site, &sink).with("QUOTESIGN__LEDGER__ANCHOR", anchor.to_str().unwrap());
    let file = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let key = file("checkpoint.jwk.json");
    let keep = |name: &str| {
        done(site.run(&["audit", "checkpoint", "--out", &file(name)]));
        file(name)
    };
    let gateway = site.serve().await;
    let early = sign(&gateway, 1..=3).await;
    bound(&site).await;
    let first = keep("first.jws");
    sign(&gateway, 4..=5).await;
    let cut = bound(&site).await;
    // From here on everything is held.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let since = SystemClock.now().to_string();
    let hold = ["ledger", "hold", "case-1", "--since", &since, "--reason", "LEGAL-1"];
    done(client(&site, &gateway, &hold));
    let mut late = sign(&gateway, 6..=8).await;
    bound(&site).await;
    let middle = keep("middle.jws");
    late.extend(sign(&gateway, 9..=11).await);
    bound(&site).await;
    done(site.run(&["ledger", "backup", &file("whole")]));

    // Past its time and bound, but shipped nowhere.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(lane(&site).first.next_index, 0, "what was exported nowhere stays");
    sink.start();
    until("it is pruned up to the hold", async || lane(&site).first.next_index > 0).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(lane(&site).first, cut.heads[""], "to the checkpoint before what is held, and no further");
    let pruned = site.journalled("ledger.pruned", 1).await;
    let detail = pruned[0]["facts"]["detail"].as_str().unwrap();
    assert!(detail.starts_with("records 0 to ") && detail.contains(", journalled before "), "{detail}");

    // The ledger and an export are verified; a checkpoint that is older than the beginning says so.
    bound(&site).await;
    let newest = keep("newest.jws");
    let export = file("journal.jsonl");
    done(site.run(&["audit", "export", "--out", &export]));
    let offline = |args: &[&str]| quotesign().current_dir("/").args(["audit"]).args(args).output().unwrap();
    done(site.run(&["audit", "verify", "--checkpoint", &newest, "--key", &key]));
    assert!(done(offline(&["verify", &export, "--checkpoint", &newest, "--key", &key])).contains("records 0 to "));
    // One that is older than the pruning does not bind the record of it: for its holder the front may have been cut off.
    let said = failed(offline(&["verify", &export, "--checkpoint", &middle, "--key", &key]), 1);
    assert!(said.contains("take a newer checkpoint"), "{said}");
    for verified in [
        site.run(&["audit", "verify", "--checkpoint", &first, "--key", &key]),
        offline(&["verify", &export, "--checkpoint", &first, "--key", &key]),
    ] {
        let said = failed(verified, 1);
        assert!(said.contains("the records begin at") && said.contains("an export that goes back to it"), "{said}");
    }

    // What is left is proven, against the newest checkpoint and an older one; of what is gone it is said that it is gone.
    for (at, (quote, _)) in late.iter().enumerate() {
        let proof = file(&format!("proof-{at}.json"));
        done(site.run(&["audit", "prove", "--quote", quote.id(), "--out", &proof]));
        done(offline(&["verify-proof", &proof, "--key", &key]));
    }
    let older = file("older.json");
    done(site.run(&["audit", "prove", "--quote", late[0].0.id(), "--checkpoint", &middle, "--out", &older]));
    done(offline(&["verify-proof", &older, "--key", &key, "--checkpoint", &middle]));
    let record = reader(&site).quote(&identity(&early[0].0)).unwrap().unwrap().released().unwrap().record.to_string();
    for gone in [
        &["audit", "prove", "--quote", early[0].0.id()][..],
        &["audit", "prove", "--record", &record],
        &["audit", "show", &record],
    ] {
        let said = failed(site.run(gone), 1);
        assert!(said.contains("the journal holds no ") && said.contains("its oldest records were pruned"), "{said}");
    }
    let gaps = done(site.run(&["ledger", "gaps"]));
    assert!(gaps.contains("0 numbers") && gaps.contains("the journal's oldest records were pruned"), "{gaps}");

    // What was signed is given again, now and after a restart, though its record is gone.
    let again = async |gateway: &Gateway| {
        let quotes = gateway.quotes("pricing").await;
        for (quote, jws) in early.iter().chain(&late) {
            assert_eq!(quotes.sign(quote).await.unwrap().jws, *jws);
        }
    };
    again(&gateway).await;
    assert!(gateway.stop().success());
    let gateway = site.serve().await;
    again(&gateway).await;

    // A backup from before is told for what it is; one of now is restored, and goes on.
    done(client(&site, &gateway, &["ledger", "release", "case-1", "--reason", "LEGAL-1 closed"]));
    until("the rest is pruned", async || lane(&site).first.next_index > cut.heads[""].next_index + 12).await;
    assert!(gateway.stop().success());
    let left = lane(&site);
    assert!(left.head.next_index - left.first.next_index < left.first.next_index, "{left:?}");
    done(site.run(&["ledger", "backup", &file("pruned")]));
    for end in ["", "-wal", "-shm"] {
        drop(fs::remove_file(site.path(&format!("ledger.sqlite{end}"))));
    }
    let refused = failed(site.run(&["ledger", "restore", &file("whole")]), 1);
    assert!(refused.contains("the backup is older than the ledger was"), "{refused}");
    done(site.run(&["ledger", "restore", &file("pruned")]));
    let gateway = site.serve().await;
    again(&gateway).await;
    sign(&gateway, [12]).await;
    let newest = keep("last.jws");
    done(site.run(&["audit", "verify", "--checkpoint", &newest, "--key", &key]));
    until("it has looked", async || gateway.operations("/metrics").await.1.contains("quotesign_journal_holds 1")).await;
    let log = gateway.log.lock().unwrap().concat();
    assert!(!log.contains("THE JOURNAL"), "{log}");
}

fn identity(quote: &Quote) -> quotesign::domain::Identity {
    let partner = crate::harness::PARTNER.parse().unwrap();
    quotesign::domain::Identity::new(Environment::Development, &partner, &quote.id().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_from_a_record_on_that_no_collector_took_is_pruned() {
    let site = Site::new();
    let sink = Sink::running(&site, &[]);
    let site = prunes(site, &sink);
    let poison = Quote::number(3);
    let fault = json!({ "poison": { "attribute": "quotesign.quote_id", "value": poison.0["quote_id"] } });
    sink.fault(fault).await;
    let gateway = site.serve().await;
    sign(&gateway, 1..=2).await;
    bound(&site).await;
    gateway.quotes("pricing").await.sign(&poison).await.unwrap();
    sign(&gateway, 4..=6).await;
    let mut aside = Vec::new();
    until("it is set aside", async || {
        aside = reader(&site).quarantined().unwrap();
        aside.len() == 2
    })
    .await;
    bound(&site).await;
    until("what is before it is pruned", async || lane(&site).first.next_index > 0).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(lane(&site).first.next_index <= aside[0].index, "{:?}", lane(&site).first);
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
    assert_eq!(done(site.run(&["audit", "quarantine"])).lines().count(), 2);
    // Once the collector takes them nothing holds the rest.
    sink.fault(json!({})).await;
    let gateway = site.serve().await;
    sign(&gateway, [7]).await;
    bound(&site).await;
    until("they are pruned", async || lane(&site).first.next_index > aside[1].index).await;
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
}

/// The JWS of a quote. How many are asked for is up to how long pruning takes, so that they may spend a burst: then it comes again when told.
async fn jws_of(quotes: &Caller, quote: &Quote) -> String {
    loop {
        match quotes.sign(quote).await {
            Ok(signed) => return signed.jws,
            Err(status) => {
                assert_eq!(reason(&status), "RATE_LIMITED", "{status}");
                tokio::time::sleep(wait(&status)).await;
            }
        }
    }
}

/// A journal of 20,000 records, a gateway that is killed again and again while it prunes them, and calls meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_while_it_prunes_leaves_a_journal_that_holds() {
    let site = Site::new();
    let sink = Sink::running(&site, &[]);
    let site = prunes(site, &sink);
    {
        let mut engine = Sqlite::open(&site.path("ledger.sqlite"), Environment::Development).unwrap();
        let context = Context::new("test-1".parse().unwrap(), Environment::Development, "00".to_owned(), 0);
        for _ in 0..200 {
            let record =
                || Op::Record(Record::new(Event::Refused, SystemClock.now(), context.clone(), Facts::default()));
            let batch: Vec<_> = std::iter::repeat_with(record).take(100).collect();
            engine.apply(&batch).unwrap();
        }
    }
    let (mut killed, mut number, mut told) = (0, 0, BTreeMap::new());
    while lane(&site).first.next_index < 20_000 {
        let before = lane(&site).first.next_index;
        let gateway = site.serve().await;
        let quotes = gateway.quotes("pricing").await;
        until("it prunes", async || {
            number += 1;
            let quote = Quote::number(number);
            let jws = jws_of(&quotes, &quote).await;
            told.insert(quote.id().to_owned(), (quote, jws));
            lane(&site).first.next_index > before
        })
        .await;
        // Whoever verifies meanwhile is told nothing that is not so.
        if killed % 2 == 1 {
            done(site.run(&["audit", "verify"]));
        }
        tokio::time::sleep(Duration::from_millis(killed * 37 % 150)).await;
        gateway.kill();
        killed += 1;
        done(site.run(&["audit", "verify"]));
    }
    println!("killed {killed} times while it pruned; {} quotes", told.len());
    assert!(killed > 2, "too little happened to say anything");
    let gateway = site.serve().await;
    let quotes = gateway.quotes("pricing").await;
    for (quote, jws) in told.values() {
        assert_eq!(jws_of(&quotes, quote).await, *jws);
    }
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
}

/// The site with a database for its ledger.
fn shares(site: Site, database: &Database) -> Site {
    let address = format!("postgresql://postgres@127.0.0.1:{}/{}", database.port, database.name);
    site.edit_config(|config| {
        let ledger = config["ledger"].as_table_mut().unwrap();
        ledger.remove("sqlite");
        ledger["postgres"] = toml(&format!("{{ address = '{address}' }}"));
    });
    done(site.run(&["ledger", "migrate"]));
    site
}

/// Starts one of the gateways that share it.
fn replica(site: &Site, name: &str) -> Gateway {
    let mut command = site.command();
    command.env("QUOTESIGN__LEDGER__POSTGRES__REPLICA", name);
    // One that shares a ledger is given its anchor while that is empty, or by an act.
    if name == "gw-b" {
        command.env("QUOTESIGN__LEDGER__ANCHOR", site.path("anchor"));
    }
    command.arg("serve").arg("--config").arg(site.config());
    Gateway::spawn(command, site)
}

/// Where a lane begins.
fn begins(database: &Database, lane: &str) -> u64 {
    database.sql(&format!("SELECT first_idx FROM lane WHERE lane = '{lane}'")).trim().parse().unwrap_or(0)
}

async fn sign_next(gateway: &Gateway, database: &Database) {
    sign(gateway, [database.sql("SELECT coalesce(max(last), 0) FROM scope").trim().parse::<u64>().unwrap() + 1]).await;
}

/// Its lane can be cut no further, so that nobody else would ever say again where it begins.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_lane_of_a_gateway_that_is_gone_begins_is_told_for_as_long_as_it_is_there() {
    let database = Cluster::shared().empty();
    let site = Site::new();
    let sink = Sink::running(&site, &[]);
    let site = shares(prunes(site, &sink), &database);
    let (gone, stays) = (replica(&site, "gw-b"), replica(&site, "gw-a"));
    for gateway in [&gone, &stays] {
        gateway.signing().await;
        sign_next(gateway, &database).await;
    }
    gone.kill();
    // The newest record of the other that says where the lane that is gone begins now.
    let told = || {
        database.sql(&format!(
            "SELECT max(idx) FROM audit WHERE lane = 'gw-a' AND event = 'ledger.pruned'
             AND convert_from(record, 'UTF8') LIKE '% to {} of lane gw-b, journalled before %'",
            begins(&database, "gw-b").saturating_sub(1)
        ))
    };
    let mut left = String::new();
    until("it is pruned to its newest batch", async || {
        sign_next(&stays, &database).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        left = database.sql("SELECT count(link) FROM audit WHERE lane = 'gw-b'");
        left.trim() == "1"
    })
    .await;
    // The record of that goes in its time, and so does what is said in its place.
    for _ in 0..2 {
        let was: u64 = told().trim().parse().expect("it is told");
        until("the record is pruned", async || {
            sign_next(&stays, &database).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            begins(&database, "gw-a") > was
        })
        .await;
    }
    assert!(stays.stop().success());
    let file = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let (kept, key) = (file("kept.jws"), file("checkpoint.jwk.json"));
    done(site.run(&["audit", "checkpoint", "--out", &kept]));
    done(site.run(&["audit", "verify", "--checkpoint", &kept, "--key", &key]));
    // It is told once, however often it was said again.
    let again = "SELECT count(*) FROM audit WHERE convert_from(record, 'UTF8') LIKE '%of lane gw-b, %'";
    assert_eq!(database.sql(again).trim(), "1");
    // And it is no other's: a front that was cut off is told as before.
    database.sql("UPDATE lane SET first_idx = first_idx + 1 WHERE lane = 'gw-b'");
    failed(site.run(&["audit", "verify", "--checkpoint", &kept, "--key", &key]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_share_a_ledger_prune_their_lanes_and_the_first_those_of_who_is_gone() {
    let database = Cluster::shared().empty();
    let site = Site::new();
    let sink = Sink::running(&site, &[]);
    let site = shares(prunes(site, &sink), &database);
    let start = |name: &str| replica(&site, name);
    let first = |lane: &str| begins(&database, lane);
    let (gone, stays) = (start("gw-b"), start("gw-a"));
    for (number, gateway) in [(1, &stays), (2, &gone)] {
        gateway.signing().await;
        sign(gateway, [number]).await;
    }
    until("both prune their own", async || first("gw-a") > 0 && first("gw-b") > 0).await;
    sign(&gone, 3..=6).await;
    let was = first("gw-b");
    gone.kill();
    // What the other had written is shipped, bound and pruned by the one that is left.
    until("the other's is pruned", async || {
        sign_next(&stays, &database).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        first("gw-b") > was + 4
    })
    .await;
    let by = database.sql(
        "SELECT count(*) FROM audit WHERE lane = 'gw-a' AND convert_from(record, 'UTF8') LIKE '%of lane gw-b, journalled before%'",
    );
    assert_ne!(by.trim(), "0", "it is told who did that");
    // It comes back, with an anchor from before, and goes on.
    let back = start("gw-b");
    back.signing().await;
    sign_next(&back, &database).await;
    for gateway in [stays, back] {
        let holds = async || gateway.operations("/metrics").await.1.contains("quotesign_journal_holds 1");
        until("it has looked", holds).await;
        let log = gateway.log.lock().unwrap().concat();
        assert!(!log.contains("THE JOURNAL"), "{log}");
        assert!(gateway.stop().success());
    }
    let file = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let (kept, key) = (file("kept.jws"), file("checkpoint.jwk.json"));
    done(site.run(&["audit", "checkpoint", "--out", &kept]));
    done(site.run(&["audit", "verify", "--checkpoint", &kept, "--key", &key]));
    let forked = "SELECT count(*) FROM checkpoint c WHERE before <> coalesce((SELECT max(size) FROM checkpoint d WHERE d.size < c.size), 0)";
    assert_eq!(database.sql(forked).trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn to_keep_records_for_a_time_without_a_collector_is_told_for_what_it_is() {
    let site = Site::new();
    let said = done(site.run(&["config", "check"]));
    assert!(!said.contains("warning"), "{said}");
    site.edit_config(|config| config["audit"]["keep_days"] = toml("30"));
    let said = done(site.run(&["config", "check"]));
    assert!(said.contains("warning: `audit.keep_days` prunes nothing without `[otlp]`"), "{said}");
    let gateway = site.serve().await;
    gateway.logged("prunes nothing without `[otlp]`").await;
    assert!(gateway.stop().success());
    ship_to(&site, "http://127.0.0.1:4317", "");
    assert!(!done(site.run(&["config", "check"])).contains("warning"));
}

/// Where a cut was begun and not ended, as by a crash: what is left under the same checkpoint is in the journal, and cannot be proven.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_needs_what_was_pruned_says_so_and_speaks_of_no_tampering() {
    let site = Site::new();
    let gateway = site.serve().await;
    let signed = sign(&gateway, 1..=3).await;
    // Both are bound by the checkpoint that is made at the end.
    assert!(gateway.stop().success());
    let gateway = site.serve().await;
    let later = sign(&gateway, 4..=5).await;
    assert!(gateway.stop().success());
    {
        let first = lane(&site).first;
        let record = reader(&site).quote(&identity(&signed[2].0)).unwrap().unwrap().released().unwrap().record;
        let index = reader(&site).record(&record).unwrap().unwrap().index;
        let links = reader(&site).links("", first.next_index, 1_000).unwrap();
        let to = links.into_iter().rev().find(|link| link.next_index <= index).unwrap();
        let mut engine = Sqlite::open(&site.path("ledger.sqlite"), Environment::Development).unwrap();
        let (now, context) =
            (SystemClock.now(), Context::new("test-1".parse().unwrap(), Environment::Development, "00".to_owned(), 0));
        let newest = now.minus(Duration::from_secs(1));
        let (lane, again) = (String::new(), Vec::new());
        let cut = PruneJournal { lane, from: first, to, newest, before: now, again, context, now };
        let replies = engine.apply(&[Op::PruneJournal(cut)]).unwrap();
        assert_eq!(replies, [Ok(Done::PrunedJournal(to.next_index))]);
    }
    let prove = |quote: &Quote| site.run(&["audit", "prove", "--quote", quote.id()]);
    let said = failed(prove(&signed[2].0), 1);
    assert!(said.contains("was pruned up to this record"), "{said}");
    assert!(failed(prove(&signed[0].0), 1).contains("its oldest records were pruned"));
    done(prove(&later[0].0));
    done(site.run(&["audit", "verify"]));
    // A record that was removed is none that was pruned.
    let ledger = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
    ledger.execute("DELETE FROM audit WHERE idx = (SELECT max(idx) - 4 FROM audit)", ()).unwrap();
    let broken = failed(site.run(&["audit", "verify"]), 1);
    assert!(broken.contains("is missing"), "{broken}");
}
