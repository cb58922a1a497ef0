//! What is kept of the ledger, and for how long: gaps, backups and their way back, holds and pruning.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use quotesign::{domain::sha256, ledger::sqlite::Reader};
use serde_json::Value;

use crate::{
    commands::client,
    harness::{DAY, PARTNER, Quote, Site, done, failed, reason, toml, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn every_number_without_a_released_quote_is_explained() {
    let site = Site::new().with("QUOTESIGN__LEDGER__SWEEP_S", "1");
    let seed = |floor: &str| {
        let args = ["ledger", "seed", "--partner", PARTNER, "--floor", floor, "--reason", "OPS-1"];
        site.run(&args)
    };
    assert!(done(seed("10")).starts_with("the sequence was created with the floor 10\naudit record "));
    assert!(failed(seed("10"), 1).contains("is not above"));
    assert!(failed(seed("9007199254740991"), 2).contains("--floor is above 4503599627370496"));
    let endless = ["ledger", "seed", "--partner", PARTNER, "--floor", "11", "--reason", "two\nlines"];
    assert!(failed(site.run(&endless), 2).contains("must say in 1 to 500 bytes of one line why"));
    let shell = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
    for environment in ["production", "development"] {
        shell.execute("UPDATE meta SET environment = ?1", [environment]).unwrap();
        for command in [&["ledger", "gaps"][..], &["audit", "verify"], &["audit", "tail"]] {
            match environment {
                "development" => drop(done(site.run(command))),
                _ => assert!(failed(site.run(command), 1).contains("belongs to the environment `production`")),
            }
        }
    }
    drop(shell);
    let nobody = ["ledger", "seed", "--partner", "nobody", "--floor", "1", "--reason", "x"];
    assert!(failed(site.run(&nobody), 2).contains("policy has no `nobody`"));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    for number in [11, 12, 15] {
        pricing.sign(&Quote::number(number)).await.unwrap();
    }
    let held = failed(seed("20"), 1);
    assert!(held.contains("is in use by another process"), "{held}");
    let raised = done(client(&site, &gateway, &["admin", "seed-sequence", "--floor", "20", "--reason", "OPS-2"]));
    assert!(raised.contains("from 15 to 20"), "{raised}");
    pricing.sign(&Quote::number(21)).await.unwrap();
    assert!(gateway.stop().success());

    // One that is reserved when the gateway is killed, open until it expires, and then burnt by us.
    let site = site.with("FAILPOINTS", "pipeline::before-sign=pause");
    let gateway = site.serve().await;
    let (pricing, quote) = (gateway.quotes("pricing").await, Quote::number(22).valid(0, 12));
    let call = tokio::spawn({
        let quote = quote.clone();
        async move { pricing.sign(&quote).await }
    });
    site.until_stage(&quote, "it is reserved", |_| true).await;
    gateway.kill();
    assert!(call.await.unwrap().is_err());
    let told = |gaps: &str, line: &str| assert!(gaps.lines().any(|told| told.contains(line)), "{line}: {gaps}");
    let gaps = done(site.run(&["ledger", "gaps"]));
    told(&gaps, "13 to 14: skipped: the next one asked for was greater (caller)");
    told(&gaps, "16 to 20: the floor was raised: OPS-2 (operator)");
    told(&gaps, "22: reserved, and neither signed nor voided yet (open)");
    told(&gaps, "8 numbers without a released quote, in 3 places");
    let mut site = site;
    site.env.remove("FAILPOINTS");
    let gateway = site.serve().await;
    until("it is voided", async || {
        done(site.run(&["ledger", "gaps", "--json"])).lines().any(|line| {
            let gap: Value = serde_json::from_str(line).unwrap();
            gap["first"] == 22 && gap["by"] == "gateway"
        })
    })
    .await;
    let gaps = |scope: &str| site.run(&["ledger", "gaps", "--scope", scope]);
    told(&done(gaps(&format!("[\"development\", \"{PARTNER}\"]"))), "8 numbers without a released quote, in 3 places");
    assert!(failed(gaps("[\"development\",\"other\"]"), 2).contains("neither the ledger nor any record has"));
    assert!(failed(gaps("nonsense"), 2).contains("write it as"));
    assert!(gateway.stop().success());

    // Taken out: the reservation of 12, with all that tells of it.
    let shell = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
    let taken_out = "DELETE FROM audit WHERE CAST(record AS TEXT) ->> '$.facts.sequence' = 12";
    assert_eq!(shell.execute(taken_out, ()), Ok(2));
    let missing = site.run(&["ledger", "gaps"]);
    told(
        &String::from_utf8_lossy(&missing.stdout),
        "12: taken, and no record tells of it: it was taken out of the journal (unknown)",
    );
    assert!(failed(missing, 1).contains("records were taken out of the journal"));
}

/// Whoever has the file and the plain shell can read it, also while the gateway writes.
#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_read_with_the_plain_shell() {
    let site = Site::new();
    let gateway = site.serve().await;
    let quote = Quote::number(7);
    let signed = gateway.quotes("pricing").await.sign(&quote).await.unwrap();
    let shell = |sql: &str| {
        let file = site.path("ledger.sqlite");
        let shell = std::process::Command::new("sqlite3").arg("-readonly").arg(file).arg(sql).output().unwrap();
        done(shell).trim().to_owned()
    };
    let told = shell("SELECT identity, sequence, jws FROM quote JOIN release ON release.idx = quote.release_idx");
    let identity = format!("[\"development\",\"{PARTNER}\",\"{}\"]", quote.id());
    assert_eq!(told, format!("{identity}|7|{}", signed.jws));
    // As `docs/ledger.md` finds it.
    let key = &hex::encode(sha256(identity.as_bytes()))[..32];
    assert_eq!(shell(&format!("SELECT identity FROM quote WHERE key = x'{key}'")), identity);
    let plan = shell(&format!("EXPLAIN QUERY PLAN SELECT identity FROM quote WHERE key = x'{key}'"));
    assert!(plan.contains("USING INDEX quote_key"), "{plan}");
    let events = shell("SELECT CAST(record AS TEXT) ->> '$.event' FROM audit ORDER BY idx DESC LIMIT 2");
    assert_eq!(events, "quote.committed\nquote.reserved");
    assert!(gateway.stop().success());
}

/// Whoever synchronises again after the disk has failed to take something is told that all is well, and it need not be.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_disk_has_not_taken_the_ledgers_file_nothing_is_signed_until_a_new_start() {
    let mut site = Site::new().with("FAILPOINTS", "ledger::synchronise=1*return->off");
    site.edit_policy(|policy| {
        for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            policy["quotas"][quota] = toml("{ per_second = 1000000, burst = 1000000 }");
        }
    });
    let gateway = site.serve().await;
    let client = gateway.quotes("pricing").await;
    // Until the log is long enough to be moved as a whole.
    let (mut signed, mut refused) = (Vec::new(), None);
    for number in 1..5_000 {
        let quote = Quote::number(number);
        match client.sign(&quote).await {
            Ok(answer) => signed.push((quote, answer.jws)),
            Err(status) => {
                refused = Some(status);
                break;
            }
        }
    }
    let refused = refused.expect("the log was never moved");
    assert_eq!(reason(&refused), "LEDGER_UNAVAILABLE");
    let next = signed.len() as u64 + 10;
    // It is not forgotten by trying again, though the disk takes all of it now.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(reason(&client.sign(&Quote::number(next)).await.unwrap_err()), "LEDGER_UNAVAILABLE");
    let (status, told) = gateway.operations("/readyz?for=signing").await;
    assert!(status == 503 && told.contains("start it again"), "{status}: {told}");
    let log = fs::metadata(site.path("ledger.sqlite-wal")).unwrap().len();
    assert!(gateway.stop().success());
    assert_eq!(
        fs::metadata(site.path("ledger.sqlite-wal")).unwrap().len(),
        log,
        "it is folded by nobody before the start"
    );
    site.env.remove("FAILPOINTS");
    let gateway = site.serve().await;
    let client = gateway.quotes("pricing").await;
    for (quote, jws) in signed.iter().rev().take(20) {
        assert_eq!(client.sign(quote).await.unwrap().jws, *jws);
    }
    client.sign(&Quote::number(next + 1)).await.unwrap();
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));
}

/// Removes the ledger, as a lost disk would.
fn lose(site: &Site) {
    for end in ["", "-wal", "-shm"] {
        drop(fs::remove_file(site.path(&format!("ledger.sqlite{end}"))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_taken_while_the_gateway_signs_and_comes_back_by_command() {
    let site = Site::new();
    let anchor = site.path("ledger.anchor");
    let site = site.with("QUOTESIGN__LEDGER__ANCHOR", anchor.to_str().unwrap());
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let first = Quote::number(1);
    let signed = pricing.sign(&first).await.unwrap();
    let calls = tokio::spawn({
        let pricing = pricing.clone();
        async move {
            for number in 2..60 {
                pricing.sign(&Quote::number(number)).await.unwrap();
            }
        }
    });
    let backup = |name: &str| site.run(&["ledger", "backup", site.path(name).to_str().unwrap()]);
    let told = done(backup("under-load"));
    assert!(told.contains(": a copy of the ledger up to record "), "{told}");
    calls.await.unwrap();
    assert!(failed(backup("under-load"), 1).contains("File exists"));
    assert!(gateway.stop().success());
    done(backup("newest"));
    assert_eq!(mode(&site.path("newest")), 0o600);
    let restore = |name: &str, more: &[&str]| {
        let path = site.path(name);
        site.run(&[&["ledger", "restore", path.to_str().unwrap()], more].concat())
    };

    let whole = failed(restore("newest", &[]), 1);
    assert!(whole.contains("the ledger is whole"), "{whole}");
    // One of another release is as whole.
    let version = |step: &str| {
        let shell = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
        shell.execute_batch(&format!("UPDATE meta SET version = version {step}")).unwrap();
    };
    for (step, back, why) in [("- 1", "+ 1", "has an older schema"), ("+ 1", "- 1", "has a newer schema")] {
        version(step);
        let other = failed(restore("newest", &[]), 1);
        assert!(other.contains(why) && other.contains("it is not damaged"), "{other}");
        version(back);
    }
    lose(&site);
    fs::write(site.path("torn"), &fs::read(site.path("newest")).unwrap()[..40_000]).unwrap();
    let torn = failed(restore("torn", &[]), 1);
    assert!(torn.contains("damaged") || torn.contains("malformed"), "{torn}");
    let older = failed(restore("under-load", &[]), 1);
    assert!(older.contains("the backup is older than the ledger was") && older.contains("--go-back"), "{older}");
    assert!(!site.path("ledger.sqlite").exists(), "a refusal leaves nothing behind");
    // As a medium may give it.
    fs::set_permissions(site.path("newest"), fs::Permissions::from_mode(0o444)).unwrap();
    fs::write(site.path("ledger.sqlite.restoring"), "cut short").unwrap();
    done(restore("newest", &[]));
    assert_eq!(mode(&site.path("ledger.sqlite")), 0o600);
    assert!(!site.path("ledger.sqlite.restoring").exists());
    backup_of_a_volume_that_has_become_read_only(&site);
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    assert_eq!(pricing.sign(&first).await.unwrap().jws, signed.jws);
    assert_eq!(pricing.last().await, 59);
    assert!(gateway.stop().success());
    done(site.run(&["audit", "verify"]));

    // A damaged one is put aside, and an older backup is taken only by who says so, and decides afterwards.
    fs::write(site.path("ledger.sqlite"), "no ledger").unwrap();
    let told = done(restore("under-load", &["--go-back"]));
    assert!(told.contains("what was there is now") && told.contains("accept-rollback"), "{told}");
    let mut serve = site.command();
    serve.args(["serve", "--config"]).arg(site.config()).env("QUOTESIGN__LOG__FILTER", "off");
    let refused = failed(serve.output().unwrap(), 2);
    assert!(refused.contains("has gone back in time"), "{refused}");

    // One whose anchor is damaged too: nothing leads away from the backup.
    lose(&site);
    fs::write(&anchor, "").unwrap();
    let absent = failed(site.run(&["ledger", "anchor", "adopt", "--reason", "OPS-3"]), 1);
    assert!(absent.contains("`quotesign ledger restore`"), "{absent}");
    done(site.run(&["ledger", "migrate"]));
    let untold = failed(restore("newest", &[]), 1);
    assert!(untold.contains("cannot be told, since the anchor is damaged") && untold.contains("--go-back"), "{untold}");
    let told = done(restore("newest", &["--go-back"]));
    assert!(told.contains("its anchor is damaged: see `quotesign ledger anchor adopt`"), "{told}");
    done(site.run(&["ledger", "anchor", "adopt", "--reason", "OPS-3"]));
    assert!(site.serve().await.stop().success());
}

/// Where this machine lets one be mounted.
fn backup_of_a_volume_that_has_become_read_only(site: &Site) {
    let here = fs::canonicalize(site.path("")).unwrap();
    let target = tempfile::TempDir::new().unwrap();
    let mut mounts = std::process::Command::new("unshare");
    let script =
        "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" || exit 77; cd \"$1\" && shift && exec \"$@\"";
    mounts.args(["--mount", "sh", "-c", script, "sh"]).arg(&here).arg(site.command().get_program());
    mounts.args(["ledger", "backup", "--config"]).arg(site.config()).arg(target.path().join("copy")).envs(&site.env);
    match mounts.output() {
        Ok(ran) if ran.status.code() != Some(77) => {
            let told = done(ran);
            assert!(told.contains(": a copy of the ledger up to record "), "{told}");
        }
        _ => println!("nothing can be mounted here: a read-only volume is not tried"),
    }
}

/// A copy made by hand is two files, of which only one would be put in place.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_a_log_beside_it_is_refused_until_the_log_is_in_it() {
    let site = Site::new();
    let gateway = site.serve().await;
    let quote = Quote::number(1);
    let signed = gateway.quotes("pricing").await.sign(&quote).await.unwrap();
    for end in ["", "-wal"] {
        fs::copy(site.path(&format!("ledger.sqlite{end}")), site.path(&format!("by-hand{end}"))).unwrap();
    }
    assert!(fs::metadata(site.path("by-hand-wal")).unwrap().len() > 0);
    assert!(gateway.stop().success());
    lose(&site);
    let by_hand = site.path("by-hand");
    let restore = || site.run(&["ledger", "restore", by_hand.to_str().unwrap()]);
    let refused = failed(restore(), 1);
    assert!(refused.contains("by-hand-wal: a log lies beside the backup"), "{refused}");
    assert!(refused.contains("`quotesign ledger backup`") && refused.contains("sqlite3 "), "{refused}");
    assert!(!site.path("ledger.sqlite").exists());
    // As it says.
    let fold = "PRAGMA wal_checkpoint(TRUNCATE)";
    let folded = rusqlite::Connection::open(&by_hand).unwrap().query_row(fold, (), |row| row.get::<_, i64>(0));
    assert_eq!(folded, Ok(0));
    assert!(refused.contains(fold), "{refused}");
    done(restore());
    let gateway = site.serve().await;
    assert_eq!(gateway.quotes("pricing").await.sign(&quote).await.unwrap().jws, signed.jws);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn quotes_are_forgotten_when_their_time_is_over_and_nobody_holds_them() {
    let site = Site::new().with("QUOTESIGN__LEDGER__SWEEP_S", "1").with("QUOTESIGN__LEDGER__KEEP_DAYS", "0");
    let since = quotesign::clock::Clock::now(&quotesign::clock::SystemClock).minus(DAY).to_string();
    let hold = ["ledger", "hold", "case-1", "--since", &since, "--reason", "OPS-12"];
    let unnamed = ["ledger", "hold", "case 1", "--since", &since, "--reason", "OPS-12", "--offline"];
    assert!(failed(site.run(&unnamed), 2).contains("must be 1 to 64 letters"));
    let ahead = ["ledger", "hold", "case-1", "--since", "2099-01-01T00:00:00Z", "--reason", "OPS-12"];
    assert!(failed(site.run(&[&ahead[..], &["--offline"]].concat()), 2).contains("--since lies ahead of the time"));
    done(site.run(&[&hold[..], &["--offline"]].concat()));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1).valid(0, 8);
    pricing.sign(&quote).await.unwrap();
    let there = || {
        let id = quote.id();
        let reader = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
        let sql = "SELECT count(*) FROM quote WHERE identity LIKE '%' || ?1 || '%'";
        reader.query_row(sql, [id], |row| row.get::<_, u32>(0)).unwrap() == 1
    };
    until("it has expired", async || reason_of(&pricing, &quote).await == "QUOTE_EXPIRED").await;
    // Several sweeps.
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    assert!(there(), "the hold keeps it");
    let status = || done(client(&site, &gateway, &["admin", "status"]));
    assert!(
        status()
            .contains(&format!("held        case-1: nothing is pruned that expired or was journalled since {since}"))
    );
    let ahead = failed(client(&site, &gateway, &ahead), 1);
    assert!(ahead.contains("INVALID_REQUEST: `since` lies ahead"), "{ahead}");
    let nobody = failed(client(&site, &gateway, &["ledger", "release", "case-2", "--reason", "x"]), 1);
    assert!(nobody.contains("no hold is named `case-2`"), "{nobody}");
    done(client(&site, &gateway, &["ledger", "release", "case-1", "--reason", "OPS-12 closed"]));
    assert!(!status().contains("held "), "{}", status());
    until("it is pruned", async || !there()).await;
    assert_eq!(reason_of(&pricing, &quote).await, "QUOTE_EXPIRED", "and never signed again");
    assert_eq!(pricing.last().await, 1, "its number stays taken");
    done(client(&site, &gateway, &[&hold[..3], &["--since", "2026-01-01T00:00:00Z", "--reason", "OPS-13"]].concat()));
    gateway.kill();
    assert_eq!(
        site.journalled("ledger.hold_set", 2).await[0]["facts"]["detail"],
        format!("case-1 since {since}: OPS-12")
    );
    site.journalled("ledger.pruned", 1).await;
    done(site.run(&["audit", "verify"]));
    drop(Reader::open(&site.path("ledger.sqlite")).unwrap());
}

async fn reason_of(pricing: &crate::harness::Caller, quote: &Quote) -> String {
    pricing.sign(quote).await.map_or_else(|status| reason(&status), |_| String::new())
}
