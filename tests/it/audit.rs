//! The journal as auditors use it: what is asked of it, what leaves the gateway, and what no tampering hides.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Command,
    time::{Duration, Instant},
};

use quotesign::{
    audit::{self, Context, Event, Facts, Record},
    clock::UtcTime,
    domain::{CorrelationId, Environment, sha256},
    ledger::{Journal as _, sqlite::Reader},
    proto::{
        ActivateKeyRequest, GetSequenceRequest, HaltReach, HaltRequest, QuoteOutcome, ReloadPolicyRequest,
        ReportQuoteOutcomeRequest, ResumeRequest, SeedSequenceRequest, SignQuoteRequest, SuspendCallerRequest,
        halt_reach::To,
    },
    review::exported::{Kept, verify_ledger},
};
use rusqlite::{Connection, params};
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::{Code, Request};

use crate::{
    checkpoints::page_script,
    harness::{Caller, PARTNER, Quote, Site, TRUST_DOMAIN, done, failed, quotesign, reason, refused, toml},
    kills::number_from,
};

/// A site whose gateway signed three quotes, refused one, gave one again, and has stopped.
async fn with_a_journal() -> Site {
    let site = Site::new();
    let gateway = site.serve().await;
    let quotes = gateway.quotes("pricing").await;
    let [first, second, third] = [1, 2, 3].map(Quote::number);
    for quote in [&first, &second, &third, &third] {
        quotes.sign(quote).await.unwrap();
    }
    gateway.quotes("auditor").await.sign(&Quote::number(4)).await.unwrap_err();
    site.journalled("quote.refused", 1).await;
    gateway.kill();
    site
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The head that `audit verify` prints.
fn head(said: &str) -> String {
    said.lines().find_map(|line| line.strip_prefix("head ")).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_asked_for_by_what_they_tell_of() {
    let site = with_a_journal().await;
    let all = site.journal();
    let tail = |args: &[&str]| lines(&done(site.run(&[&["audit", "tail", "-n", "100"], args].concat())));
    let pricing = format!("spiffe://{TRUST_DOMAIN}/pricing");
    let last = all.last().unwrap();
    // The order of the journal is not quite that of the times.
    let earliest = all.iter().map(|record| record["at"].as_str().unwrap()).min().unwrap();
    let committed = |record: &&Value| record["event"] == "quote.committed";
    let third = all.iter().rfind(committed).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let events = |records: &[Value]| records.iter().map(|record| text(&record["event"])).collect::<Vec<_>>();
    let of_third = tail(&["--quote", &text(&third["context"]["quote_id"])]);
    assert_eq!(events(&of_third), ["quote.reserved", "quote.committed", "quote.replayed"]);
    assert_eq!(tail(&["--event", "quote.committed"]).len(), 3);
    assert_eq!(events(&tail(&["--correlation-id", &text(&last["context"]["correlation_id"])])), ["quote.refused"]);
    assert_eq!(tail(&["--caller", &pricing, "--partner", PARTNER]).len(), 7);
    assert!(tail(&["--kid", &text(&third["facts"]["kid"])]).len() >= 6);
    assert_eq!(tail(&["--since", earliest]).len(), all.len());
    assert!(tail(&["--until", earliest]).is_empty());
    let newest = done(site.run(&["audit", "tail", "-n", "1", "--event", "quote.committed"]));
    assert_eq!(lines(&newest), std::slice::from_ref(third));
    let bad = failed(site.run(&["audit", "tail", "--since", "yesterday"]), 2);
    assert!(bad.contains("--since") && bad.contains("RFC 3339"), "{bad}");

    let summary = |args: &[&str]| done(site.run(&[&["audit", "summary"], args].concat()));
    let told: Value = serde_json::from_str(&summary(&["--format", "json"])).unwrap();
    assert_eq!(told["records"], all.len());
    assert_eq!((&told["events"]["quote.committed"], &told["events"]["quote.replayed"]), (&3.into(), &1.into()));
    assert_eq!(told["refused"], serde_json::json!({ "POLICY_DENIED": 1 }));
    assert_eq!(told["signed_by_caller"][&pricing], 3);
    assert_eq!(told["signed_percent"], 75.0);
    assert!(told["acts"].as_array().unwrap().iter().any(|act| act["event"] == "key.published"));
    assert!(summary(&[]).contains("signed: 75 % of the calls to sign a new quote"));
    let of_event = summary(&["--event", "quote.committed"]);
    assert!(of_event.starts_with("3 records, ") && !of_event.contains('%'), "{of_event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_verified_with_nothing_but_itself_and_a_head_that_was_kept() {
    let site = with_a_journal().await;
    let kept = head(&done(site.run(&["audit", "verify"])));
    let file = site.path("journal.jsonl");
    let name = file.to_str().unwrap();
    done(site.run(&["audit", "export", "--out", name]));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = failed(site.run(&["audit", "export", "--out", name]), 1);
    assert!(again.contains("exists"), "{again}");
    assert_eq!(done(site.run(&["audit", "export"])), fs::read_to_string(&file).unwrap());

    // Elsewhere, where there is neither config nor ledger.
    let elsewhere = tempfile::tempdir().unwrap();
    let verify = |args: &[&str]| {
        let mut command = quotesign();
        command.current_dir(elsewhere.path()).args(["audit", "verify", name]).args(args).output().unwrap()
    };
    let said = done(verify(&[]));
    assert!(said.contains("no head was given") && head(&said) == kept && !said.contains("complete"), "{said}");
    assert!(done(verify(&["--head", &kept])).ends_with("kept heads that are in it: 1\n"));
    let other = kept.split_once(':').unwrap().0.to_owned() + ":" + &"00".repeat(32);
    assert!(failed(verify(&["--head", &other]), 1).contains("written anew"));
    assert!(failed(verify(&["--head", "nonsense"]), 2).contains("LANE=INDEX:LINK"));
    assert!(failed(verify(&["--head", &format!("gw-1={kept}")]), 1).contains("no lane `gw-1`"));

    // The script of the page comes to the same, and finds a change.
    let script = page_script("first_link");
    let python = |file: &str| Command::new("python3").args(["-c", &script, file]).output().unwrap();
    assert_eq!(done(python(name)).trim(), kept);
    let changed = fs::read_to_string(&file).unwrap().replacen("GB-IN", "GB-NG", 1);
    fs::write(&file, changed).unwrap();
    assert!(failed(verify(&[]), 1).contains("does not follow"));
    assert!(!python(name).status.success());

    // With a filter: the records alone.
    let committed = lines(&done(site.run(&["audit", "export", "--event", "quote.committed"])));
    assert!(committed.len() == 3 && committed.iter().all(|record| record["schema"] == "quotesign.audit.v1"));
}

/// Undoes itself: a tampering with the database, at a place that `random` names. Tells whether it changed anything.
fn tamper(ledger: &Connection, how: u32, random: u32) -> rusqlite::Result<usize> {
    let count: u32 = ledger.query_row("SELECT count(*) FROM audit", (), |row| row.get(0))?;
    let (at, other) = (random % count, random / count % count);
    let spare = 1_000_000;
    match how {
        0 => ledger.execute("UPDATE audit SET record = CAST(record || ' ' AS BLOB) WHERE idx = ?1", [at]),
        1 => ledger.execute("DELETE FROM audit WHERE idx = ?1", [at]),
        // With everything after it one place on.
        2 => ledger
            .execute("UPDATE audit SET idx = idx + ?2 WHERE idx > ?1", [at, spare])
            .and_then(|_| ledger.execute("UPDATE audit SET idx = idx - ?2 + 1 WHERE idx > ?1", [at, spare]))
            .and_then(|_| {
                ledger.execute(
                    "INSERT INTO audit SELECT ?1 + 1, at, event, identity, randomblob(16), record, leaf, NULL FROM audit \
                     WHERE idx = ?1",
                    [at],
                )
            }),
        3 if at != other => [(at, spare), (other, at), (spare, other)]
            .iter()
            .map(|(from, to)| ledger.execute("UPDATE audit SET idx = ?2 WHERE idx = ?1", [from, to]))
            .sum(),
        4 => ledger.execute("UPDATE audit SET link = randomblob(32) WHERE idx = ?1 AND link IS NOT NULL", [at]),
        // With a leaf that fits.
        5 => {
            let record: Vec<u8> = ledger.query_row("SELECT record FROM audit WHERE idx = ?1", [at], |row| row.get(0))?;
            let record = [&record[..], b" "].concat();
            let leaf = sha256(&[&[1], &record[..]].concat());
            ledger.execute("UPDATE audit SET record = ?2, leaf = ?3 WHERE idx = ?1", params![at, record, leaf])
        }
        6 => ledger.execute("DELETE FROM audit WHERE idx >= ?1", [at]),
        // Rolled back, with the head of then.
        7 => {
            let link: Option<Vec<u8>> =
                ledger.query_row("SELECT link FROM audit WHERE idx = ?1", [at], |row| row.get(0))?;
            let Some(link) = link.filter(|_| at + 1 < count) else { return Ok(0) };
            ledger.execute("DELETE FROM audit WHERE idx > ?1", [at])?;
            ledger.execute("UPDATE chain SET next_idx = ?1, link = ?2", params![at + 1, link])
        }
        // The record stays as it is, and whoever reads by ids does not come upon it, or again and again.
        8 if random.is_multiple_of(2) => ledger.execute("UPDATE audit SET record_id = x'00' WHERE idx = ?1", [at]),
        8 => ledger.execute("UPDATE audit SET record_id = randomblob(16) WHERE idx = ?1", [at]),
        _ => Ok(0),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tamperings_with_the_database_are_found_by_who_kept_the_newest_head() {
    let site = with_a_journal().await;
    let path = site.path("ledger.sqlite");
    let ledger = Connection::open(&path).unwrap();
    let stretch = Reader::open(&path).unwrap().lanes().unwrap().remove(0);
    let newest = [Kept { lane: stretch.lane, head: stretch.head }];
    let verified = |kept: &[Kept]| verify_ledger(&Reader::open(&path).unwrap(), kept);
    verified(&newest).unwrap();
    let copy = site.path("kept.sqlite");
    ledger.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    ledger.execute("ATTACH ?1 AS kept", [copy.to_str().unwrap()]).unwrap();
    let (mut tampered, mut only_by_head, mut nth) = (0, 0, 0_u32);
    while tampered < 1_000 {
        nth += 1;
        let random = u32::from_be_bytes(sha256(&nth.to_be_bytes())[..4].try_into().unwrap());
        if tamper(&ledger, nth % 9, random).unwrap() == 0 {
            continue;
        }
        tampered += 1;
        let fault = verified(&newest).expect_err(&format!("tampering {nth} was not found"));
        assert!(fault.to_string().chars().any(|char| char.is_ascii_digit()), "it is said where: {fault}");
        only_by_head += u32::from(verified(&[]).is_ok());
        ledger
            .execute_batch(
                "DELETE FROM audit; INSERT INTO audit SELECT * FROM kept.audit;
                 DELETE FROM chain; INSERT INTO chain SELECT * FROM kept.chain;",
            )
            .unwrap();
    }
    assert!(only_by_head > 50, "a rollback with the head of then is found by a kept head alone");
    verified(&newest).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_under_another_id_is_named_and_leads_no_reader_in_circles() {
    let site = with_a_journal().await;
    let ledger = Connection::open(site.path("ledger.sqlite")).unwrap();
    let committed = "SELECT min(idx) FROM audit WHERE event = 'quote.committed'";
    let at: u32 = ledger.query_row(committed, (), |row| row.get(0)).unwrap();
    let named = format!("record {at} stands under another id than its own");
    // Before everything no report comes upon it.
    ledger.execute("UPDATE audit SET record_id = x'00' WHERE idx = ?1", [at]).unwrap();
    let left = lines(&done(site.run(&["audit", "export", "--event", "quote.committed"])));
    assert_eq!(left.len(), 2);
    let said = failed(site.run(&["audit", "verify"]), 1);
    assert!(said.contains(&named), "{said}");
    // Behind everything they would begin anew where it belongs.
    ledger.execute("UPDATE audit SET record_id = ?2 WHERE idx = ?1", params![at, [0xff_u8; 16]]).unwrap();
    for args in [
        &["verify"][..],
        &["summary"],
        &["tail"],
        &["tail", "--event", "quote.committed"],
        &["export", "--partner", PARTNER],
    ] {
        let said = failed(site.run(&[&["audit"], args].concat()), 1);
        assert!(said.contains(&named), "{args:?}: {said}");
    }
}

/// A row behind the head, chained as it should be, is what somebody writes who can write the ledger and forgot where it says that it stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_journal_does_not_reach_is_in_no_report_and_verify_names_it() {
    let site = with_a_journal().await;
    let before = done(site.run(&["audit", "tail", "-n", "1"]));
    let ledger = Connection::open(site.path("ledger.sqlite")).unwrap();
    let next: u32 = ledger.query_row("SELECT next_idx FROM chain", (), |row| row.get(0)).unwrap();
    let forged = Record::new(
        Event::Committed,
        UtcTime::from_millis(1_795_000_000_000),
        Context::new(CorrelationId::made(), Environment::Development, String::new(), 1),
        Facts::default(),
    );
    let (bytes, link): (_, [u8; 32]) =
        (forged.to_bytes().unwrap(), ledger.query_row("SELECT link FROM chain", (), |row| row.get(0)).unwrap());
    let leaf = audit::leaf(&bytes);
    ledger
        .execute(
            "INSERT INTO audit VALUES (?1, ?2, 'quote.committed', NULL, ?3, ?4, ?5, ?6)",
            params![
                next,
                forged.at.millis(),
                forged.id.as_bytes(),
                bytes,
                leaf,
                audit::link(&link, next.into(), &[leaf])
            ],
        )
        .unwrap();
    let tail = done(site.run(&["audit", "tail", "-n", "1"]));
    assert!(!tail.contains(&forged.id.to_string()) && tail == before, "{tail}");
    let said = failed(site.run(&["audit", "verify"]), 1);
    assert!(said.contains(&format!("record {next} stands in the ledger, and the journal does not reach it")), "{said}");
    // In front of what was pruned none is looked for by readers either.
    ledger.execute("UPDATE audit SET idx = -1 WHERE idx = ?1", [next]).unwrap();
    assert_eq!(done(site.run(&["audit", "tail", "-n", "1000"])).lines().count(), next as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_records_are_found_by_who_has_the_key_and_nobody_reads_whose_they_are() {
    let site = Site::new();
    let gateway = site.serve().await;
    let quotes = gateway.quotes("pricing").await;
    let of = |number, customer: &str| Quote::number(number).with("subscription_id", customer.into());
    for quote in [of(1, "sub_marker_one"), of(2, "sub_marker_two"), of(3, "sub_marker_one")] {
        quotes.sign(&quote).await.unwrap();
    }
    // Refused, and the customer's all the same.
    quotes.sign(&of(4, "sub_marker_one").valid(-7200, -3600)).await.unwrap_err();
    site.journalled("quote.refused", 1).await;
    let tail = |args: &[&str]| site.run(&[&["audit", "tail", "-n", "100"], args].concat());
    let of_one = lines(&done(tail(&["--customer", "sub_marker_one", "--partner", PARTNER])));
    let events: Vec<_> = of_one.iter().map(|record| record["event"].as_str().unwrap()).collect();
    let signed = ["quote.reserved", "quote.committed"];
    assert_eq!(events, [&signed[..], &signed, &["quote.refused"]].concat());
    let hashes: std::collections::BTreeSet<_> = site
        .journal()
        .iter()
        .filter_map(|record| Some(record["context"]["customer_ref"].as_str()?.to_owned()))
        .collect();
    assert_eq!(hashes.len(), 2);
    assert!(!done(tail(&[])).contains("sub_marker"), "no reference is in a record");
    assert!(!gateway.log.lock().unwrap().concat().contains("sub_marker"));
    assert!(failed(tail(&["--customer", "sub_marker_one"]), 2).contains("--partner"));

    // Another key finds nothing, none can be asked with, and one that is too short is refused at the start.
    fs::write(site.path("other.key"), [7; 32]).unwrap();
    fs::write(site.path("short.key"), [7; 31]).unwrap();
    let asked = |key: Option<&str>| {
        site.edit_config(|config| match key {
            Some(key) => config["audit"]["reference_key"] = toml(&format!("'{key}'")),
            None => drop(config.remove("audit")),
        });
        tail(&["--customer", "sub_marker_one", "--partner", PARTNER])
    };
    let of_none = asked(Some("other.key"));
    let key = hashes.iter().next().unwrap().split(':').next().unwrap();
    let told = String::from_utf8_lossy(&of_none.stderr).into_owned();
    assert!(told.contains(key) && told.contains("--earlier-key"), "{told}");
    assert_eq!(done(of_none), "");
    // The key was exchanged: what was hashed under the one before is found with it.
    let before = site.path("reference.key");
    let args = ["--customer", "sub_marker_one", "--partner", PARTNER, "--earlier-key", before.to_str().unwrap()];
    let found = tail(&args);
    assert!(found.stderr.is_empty(), "{}", String::from_utf8_lossy(&found.stderr));
    assert_eq!(lines(&done(found)).len(), of_one.len());
    assert!(failed(asked(Some("short.key")), 2).contains("has 31 bytes; give 32 to 1024 random ones"));
    let short = failed(site.run(&["config", "check"]), 2);
    assert!(short.contains("`audit.reference_key`") && short.contains("openssl rand"), "{short}");
    assert!(failed(asked(None), 2).contains("the config has no `audit.reference_key`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_sends_only_refusals_fills_no_journal_and_each_is_counted_while_others_sign() {
    let site = Site::new();
    site.edit_policy(|policy| {
        policy["quotas"]["attempts_per_caller"] = toml("{ per_second = 1000000, burst = 1000000 }");
    });
    let gateway = site.serve().await;
    let (pricing, auditor) = (gateway.quotes("pricing").await, gateway.quotes("auditor").await);
    let before = site.journal().len();
    let quote = Quote::number(9_000);
    let seconds = number_from("FLOOD_SECONDS", 5);
    let until = Instant::now() + Duration::from_secs(seconds);
    let flood = |caller: Caller| {
        let quote = quote.clone();
        async move {
            let mut denied = 0_u64;
            while Instant::now() < until {
                let refused = caller.sign(&quote).await.unwrap_err();
                denied += u64::from(reason(&refused) == "POLICY_DENIED");
            }
            denied
        }
    };
    let signing = async {
        let mut signed = 0;
        while Instant::now() < until {
            signed += 1;
            pricing.sign(&Quote::number(signed)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        signed
    };
    let floods: JoinSet<u64> = (0..16).map(|_| flood(auditor.clone())).collect();
    let (denied, signed) = tokio::join!(floods.join_all(), signing);
    let denied: u64 = denied.into_iter().sum();
    println!("{denied} refusals and {signed} signatures in {seconds} s");
    assert!(denied > 100 * seconds && signed > 4 * seconds, "{denied} were denied, {signed} were signed");
    assert!(gateway.stop().success());
    let refusals: Vec<Value> = site.journal().into_iter().filter(|record| record["event"] == "quote.refused").collect();
    // 60 singly in each window of a minute, and their counts with each sweep.
    let bound = usize::try_from((seconds / 60 + 2) * 60 + seconds / 10 + 2).unwrap();
    assert!(refusals.len() <= bound, "{}", refusals.len());
    assert!(site.journal().len() - before <= bound + 2 * usize::try_from(signed).unwrap() + 20);
    let summary = done(site.run(&["audit", "summary", "--format", "json"]));
    let told: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(told["refused"]["POLICY_DENIED"], denied);
    assert_eq!(told["events"]["quote.committed"], signed);
}

/// Whoever decides, the ledger, the checks of an act or the server below: a caller that is known leaves a record of what it tried.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_known_caller_is_refused_is_journalled_once() {
    let site = Site::new();
    site.edit_policy(|policy| policy["quotas"]["attempts_per_caller"] = toml("{ per_second = 1, burst = 6 }"));
    let gateway = site.serve().await;
    let (pricing, auditor) = (gateway.quotes("pricing").await, gateway.quotes("auditor").await);
    let admin = gateway.admin("operator").await;
    let seed = |floor, reason: &str| SeedSequenceRequest {
        partner: PARTNER.to_owned(),
        floor,
        reason: reason.to_owned(),
        ..SeedSequenceRequest::default()
    };
    admin.clone().seed_sequence(seed(7, "OPS-1")).await.unwrap();
    refused(admin.clone().seed_sequence(seed(3, "OPS-1")).await, Code::FailedPrecondition, "FLOOR_NOT_RAISED");
    refused(admin.clone().seed_sequence(seed(9, "")).await, Code::InvalidArgument, "INVALID_REQUEST");
    let reach = Some(HaltReach { to: Some(To::All(true)) });
    let resume = ResumeRequest { reach, reason: "OPS-1".to_owned() };
    refused(admin.clone().resume(resume).await, Code::NotFound, "NOT_FOUND");
    refused(pricing.sign_bytes(vec![b'x'; 200_000]).await, Code::InvalidArgument, "INVALID_REQUEST");
    let unread = SignQuoteRequest {
        environment: "development".to_owned(),
        values_fixed_at: Some(prost_types::Timestamp { seconds: 0, nanos: -1 }),
        ..SignQuoteRequest::default()
    };
    let mut compressed = Request::new(unread.clone());
    compressed.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let told = refused(pricing.0.clone().sign_quote(compressed).await, Code::InvalidArgument, "INVALID_REQUEST");
    assert!(told.message().contains("without `grpc-encoding`"), "{told}");
    let mut read = 0;
    loop {
        let refused = pricing.0.clone().sign_quote(unread.clone()).await.unwrap_err();
        match reason(&refused).as_str() {
            "INVALID_REQUEST" => read += 1,
            "RATE_LIMITED" => break,
            other => panic!("{other}"),
        }
    }
    assert!((1..=8).contains(&read), "what cannot be read is no attempt: {read}");
    let suspend = SuspendCallerRequest {
        caller: "spiffe://dev.quotesign.example/auditor".to_owned(),
        reason: "OPS-2".to_owned(),
        signed_since: None,
    };
    admin.clone().suspend_caller(suspend).await.unwrap();
    let asked = GetSequenceRequest { partner: PARTNER.to_owned(), corridor: String::new() };
    refused(auditor.0.clone().get_sequence(asked).await, Code::PermissionDenied, "CALLER_SUSPENDED");

    site.journalled("quote.refused", read + 7).await;
    let journal = site.journal();
    let records = journal.iter().filter(|record| record["event"] == "quote.refused");
    let mut told: Vec<String> = records
        .map(|record| {
            let part = |of: &Value| of.as_str().unwrap_or("").rsplit('/').next().unwrap_or("").to_owned();
            let (caller, method) = (part(&record["context"]["caller"]), part(&record["context"]["method"]));
            format!("{caller} {method} {}", part(&record["facts"]["reason"]))
        })
        .collect();
    told.sort();
    let mut wanted = vec![
        "auditor GetSequence CALLER_SUSPENDED",
        "operator Resume NOT_FOUND",
        "operator SeedSequence FLOOR_NOT_RAISED",
        "operator SeedSequence INVALID_REQUEST",
        "pricing SignQuote RATE_LIMITED",
    ];
    wanted.extend(vec!["pricing SignQuote INVALID_REQUEST"; read + 2]);
    wanted.sort_unstable();
    assert_eq!(told, wanted);
    assert!(gateway.stop().success());
}

/// One quote, asked for again and again: the journal stays bounded, and the count is right.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_again_is_written_up_to_a_bound_and_else_counted() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    let signed = pricing.sign(&quote).await.unwrap();
    for _ in 0..75 {
        let again = pricing.sign(&quote).await.unwrap();
        assert!(again.replayed && again.jws == signed.jws);
    }
    assert!(gateway.stop().success());
    let replayed: Vec<Value> =
        site.journal().into_iter().filter(|record| record["event"] == "quote.replayed").collect();
    let (counted, singly): (Vec<&Value>, Vec<&Value>) =
        replayed.iter().partition(|record| !record["facts"]["count"].is_null());
    // A minute may have begun anew.
    assert!((60..75).contains(&singly.len()), "{}", singly.len());
    let counts: u64 = counted.iter().map(|record| record["facts"]["count"].as_u64().unwrap()).sum();
    assert_eq!(counts + singly.len() as u64, 75);
    assert!(counted.iter().all(|record| record["context"]["method"].as_str().unwrap().ends_with("/SignQuote")));
    let summary = done(site.run(&["audit", "summary", "--format", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&summary).unwrap()["events"]["quote.replayed"], 75);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_ends_a_call_says_what_the_call_was_answered_with() {
    let site = Site::new();
    let gateway = site.serve().await;
    let (quotes, admin) = (gateway.quotes("pricing").await, gateway.admin("operator").await);
    let quote = Quote::number(1);
    quotes.sign(&quote).await.unwrap();
    quotes.sign(&quote).await.unwrap();
    quotes.sign_bytes(b"no quote".to_vec()).await.unwrap_err();
    gateway.quotes("auditor").await.sign(&Quote::number(2)).await.unwrap_err();
    let unknown = GetSequenceRequest { partner: "other-remit".to_owned(), corridor: String::new() };
    quotes.0.clone().get_sequence(unknown).await.unwrap_err();
    let outcome = ReportQuoteOutcomeRequest {
        partner: PARTNER.to_owned(),
        quote_id: quote.id().to_owned(),
        outcome: QuoteOutcome::Accepted.into(),
        correlation_id: "api-1".to_owned(),
        ..ReportQuoteOutcomeRequest::default()
    };
    quotes.0.clone().report_quote_outcome(outcome).await.unwrap();
    let reason = || "a test".to_owned();
    let reach = || Some(HaltReach { to: Some(To::Partner(PARTNER.to_owned())) });
    admin.clone().halt(HaltRequest { reach: reach(), reason: reason() }).await.unwrap();
    admin.clone().resume(ResumeRequest { reach: reach(), reason: reason() }).await.unwrap();
    let kid = fs::read_dir(site.path("policy/keys")).unwrap().next().unwrap().unwrap().file_name();
    let kid = kid.to_str().unwrap().trim_end_matches(".jwk.json").to_owned();
    admin.clone().activate_key(ActivateKeyRequest { kid, reason: reason() }).await.unwrap_err();
    site.edit_policy(|_| {});
    admin.clone().reload_policy(ReloadPolicyRequest {}).await.unwrap();
    site.edit_policy(|policy| policy["environment"] = toml("'sandbox'"));
    admin.clone().reload_policy(ReloadPolicyRequest {}).await.unwrap_err();
    site.journalled("quote.refused", 3).await;

    let journal = site.journal();
    let told = |event: &str| -> Vec<&str> {
        let records = journal.iter().filter(|record| record["event"] == event);
        let mut told: Vec<_> = records.map(|record| record["facts"]["status"].as_str().unwrap_or("")).collect();
        told.sort_unstable();
        told
    };
    for (event, statuses) in [
        ("quote.reserved", &[""][..]),
        ("quote.committed", &["OK"]),
        ("quote.replayed", &["OK"]),
        ("quote.refused", &["INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED"]),
        ("quote.outcome_reported", &["OK"]),
        ("signing.halted", &["OK"]),
        ("signing.resumed", &["OK"]),
        ("act.proposed", &["FAILED_PRECONDITION"]),
        ("policy.loaded", &["OK"]),
        ("policy.refused", &["FAILED_PRECONDITION"]),
        ("gateway.started", &[""]),
        ("key.published", &[""]),
    ] {
        assert_eq!(told(event), statuses, "{event}");
    }
    // The same as the line of the call, which is written when it is answered.
    let log = gateway.log.lock().unwrap().clone();
    let calls = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let calls: Vec<Value> = calls.filter(|line| line["message"] == "call").collect();
    let mut held = 0;
    for record in journal.iter().filter(|record| record["facts"]["status"].is_string()) {
        let of_call = |line: &&Value| line["correlation_id"] == record["context"]["correlation_id"];
        let answered = calls.iter().find(of_call).unwrap()["status"].as_str().unwrap().to_lowercase();
        assert_eq!(record["facts"]["status"].as_str().unwrap().replace('_', "").to_lowercase(), answered, "{record}");
        held += 1;
    }
    assert_eq!(held, 11);
}
