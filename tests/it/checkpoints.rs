//! Signed checkpoints: what binds the journal together, what whoever keeps one finds, and proofs of single records.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use quotesign::{
    audit,
    domain::sha256,
    jwk::PublicKey,
    ledger::{Journal as _, sqlite::Reader},
    notary::checkpoint::Checkpoint,
    proto::GetJwksRequest,
    review::exported::{Kept, verify},
};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::{
    harness::{Gateway, PARTNER, Quote, Site, done, failed, quotesign, toml, until},
    kills::number_from,
    server::Cluster,
};

const INTERVAL_S: &str = "4";

/// A site whose gateways make checkpoints as often as may be.
fn site() -> Site {
    let site = Site::new();
    site.edit_config(|config| config["audit"]["checkpoint"]["interval_s"] = toml(INTERVAL_S));
    site
}

fn newest(site: &Site) -> Option<(u64, String)> {
    Reader::open(&site.path("ledger.sqlite")).unwrap().newest_checkpoint().unwrap()
}

/// Waits until a checkpoint has come after `size` links.
async fn bound_after(site: &Site, size: u64) -> u64 {
    let mut now = 0;
    until("a checkpoint", async || {
        now = newest(site).map_or(0, |(size, _)| size);
        now > size
    })
    .await;
    now
}

fn metric(text: &str, name: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
}

async fn sign(gateway: &Gateway, numbers: impl IntoIterator<Item = u64>) -> Vec<Quote> {
    let quotes = gateway.quotes("pricing").await;
    let mut signed = Vec::new();
    for number in numbers {
        let quote = Quote::number(number);
        quotes.sign(&quote).await.unwrap();
        signed.push(quote);
    }
    signed
}

fn id(quote: &Quote) -> &str {
    quote.0["quote_id"].as_str().unwrap()
}

async fn metrics(gateway: &Gateway) -> String {
    gateway.operations("/metrics").await.1
}

/// The script of the page on audit records that holds `text`.
pub fn page_script(text: &str) -> String {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/audit-record.md")).unwrap();
    let scripts = page.split("```python\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    scripts.into_iter().find(|script| script.contains(text)).unwrap().to_owned()
}

/// A pod is given the time for one.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_ends_does_not_wait_for_a_checkpoint_under_way_before_it_makes_the_last() {
    let slow = Duration::from_secs(7);
    let site = site()
        .with("FAILPOINTS", &format!("notary::survey=sleep({})", slow.as_millis()))
        .with("QUOTESIGN__DRAIN__GRACE_MS", "0");
    let gateway = site.serve().await;
    sign(&gateway, [1]).await;
    // Looks are a second apart, give or take.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let begun = Instant::now();
    assert!(gateway.stop().success());
    let took = begun.elapsed();
    assert!(took > slow && took < slow + slow / 2, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_binds_the_journal_and_a_proof_shows_one_record_of_it() {
    let site = site();
    let gateway = site.serve().await;
    let mut quotes = sign(&gateway, 1..=5).await;
    let first = bound_after(&site, 0).await;
    let file = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let (kept, key) = (file("kept.jws"), file("checkpoint.jwk.json"));
    done(site.run(&["audit", "checkpoint", "--out", &kept]));
    quotes.extend(sign(&gateway, 6..=9).await);
    bound_after(&site, first).await;
    assert_eq!(metric(&metrics(&gateway).await, "quotesign_journal_holds"), "1");
    quotes.extend(sign(&gateway, 10..=12).await);
    // What comes after the newest one is bound when the gateway ends.
    assert!(gateway.stop().success());
    let (size, jws) = newest(&site).unwrap();
    assert!(size > first);
    let last = site.journal().pop().unwrap();
    assert_eq!((&last["event"], &last["facts"]["checkpoint"]), (&"journal.checkpointed".into(), &jws.into()));

    // Whoever keeps one verifies what it binds, of the ledger and of an export; openssl says so too.
    let said = done(site.run(&["audit", "verify", "--checkpoint", &kept, "--key", &key]));
    assert!(said.contains("nothing that it binds is missing") && !said.contains("complete"), "{said}");
    assert!(said.contains("bound by what was kept: records 0 to ") && said.contains("chain alone, which"), "{said}");
    let export = file("journal.jsonl");
    done(site.run(&["audit", "export", "--out", &export]));
    let offline = |args: &[&str]| quotesign().current_dir("/").args(["audit"]).args(args).output().unwrap();
    done(offline(&["verify", &export, "--checkpoint", &kept, "--key", &key]));
    let quote_key = fs::read_dir(site.path("policy/keys")).unwrap().next().unwrap().unwrap().path();
    let other = failed(offline(&["verify", &export, "--checkpoint", &kept, "--key", quote_key.to_str().unwrap()]), 1);
    assert!(other.contains("a key that was not given"), "{other}");
    openssl_verifies(&site, &kept, &key);

    // A proof needs nothing but itself and the key, and tells of no other record.
    let quote = &quotes[2];
    let proof = file("proof.json");
    done(site.run(&["audit", "prove", "--quote", id(quote), "--out", &proof]));
    let said = done(offline(&["verify-proof", &proof, "--key", &key]));
    assert!(said.contains(id(quote)) && said.contains("proven: "), "{said}");
    let text = fs::read_to_string(&proof).unwrap();
    assert!(quotes.iter().filter(|other| id(other) != id(quote)).all(|other| !text.contains(id(other))));
    let python =
        |proof: &str| Command::new("python3").args(["-c", &page_script("tree_index"), proof]).output().unwrap();
    assert!(done(python(&proof)).ends_with(&format!(" of {size} links\n")));

    // For a holder of an older checkpoint, where it covers the record.
    let older = file("older.json");
    done(site.run(&["audit", "prove", "--quote", id(quote), "--checkpoint", &kept, "--out", &older]));
    done(offline(&["verify-proof", &older, "--key", &key, "--checkpoint", &kept]));
    assert!(
        failed(offline(&["verify-proof", &proof, "--key", &key, "--checkpoint", &kept]), 1)
            .contains("another checkpoint")
    );
    let late = failed(site.run(&["audit", "prove", "--quote", id(&quotes[10]), "--checkpoint", &kept]), 1);
    assert!(late.contains("no checkpoint has come since"), "{late}");
    assert!(failed(site.run(&["audit", "prove", "--quote", "q-none"]), 1).contains("no signing of this quote"));

    // A proof in which anything was changed proves nothing, to this program or to the script.
    let proof: Value = serde_json::from_str(&text).unwrap();
    for field in proof.as_object().unwrap().keys() {
        let mut bent = proof.clone();
        bend(&mut bent[field]);
        let bent_file = file("bent.json");
        fs::write(&bent_file, bent.to_string()).unwrap();
        let bad = failed(offline(&["verify-proof", &bent_file, "--key", &key]), 1);
        assert!(bad.contains("bent.json: "), "{field}: {bad}");
        // The script leaves the schema and the checkpoint's signature to others.
        assert_eq!(python(&bent_file).status.success(), ["schema", "checkpoint"].contains(&field.as_str()), "{field}");
    }
}

/// Changes a value a little; a checkpoint in its signature.
fn bend(value: &mut Value) {
    match value {
        Value::Number(number) => *value = (number.as_u64().unwrap() + 1).into(),
        Value::Array(values) => {
            bend(values.last_mut().unwrap());
        }
        Value::String(text) => {
            let at = text.len() / 2;
            let at = if text.contains('.') && text.len() > 500 { text.len() - 20 } else { at };
            if text.is_empty() {
                text.push('x');
                return;
            }
            let other = if &text[at..=at] == "0" { "1" } else { "0" };
            text.replace_range(at..=at, other);
        }
        _ => panic!("{value}"),
    }
}

/// As `scripts/verify-jws-openssl.sh` does for quotes, for the signature alone.
fn openssl_verifies(site: &Site, jws: &str, key: &str) {
    let script = r#"
set -eu
key=$(cat "$2"); jws=$(cat "$1")
raw() { printf '%s' "$1" | tr -- '-_' '+/' | awk '{ while (length($0) % 4) $0 = $0 "="; print }' | openssl base64 -d -A; }
hex() { raw "$1" | od -An -v -tx1 | tr -d ' \n'; }
n=$(printf '%s' "$key" | sed -n 's/.*"n": *"\([^"]*\)".*/\1/p')
printf 'asn1=SEQUENCE:k\n[k]\na=SEQUENCE:alg\nb=BITWRAP,SEQUENCE:rsa\n[alg]\no=OID:rsaEncryption\np=NULL\n[rsa]\nn=INTEGER:0x%s\ne=INTEGER:65537\n' "$(hex "$n")" > k.conf
openssl asn1parse -genconf k.conf -noout -out k.der
raw "${jws##*.}" > sig; printf '%s' "${jws%.*}" > input
openssl dgst -sha256 -verify k.der -keyform DER -signature sig input
"#;
    let ran = Command::new("bash").current_dir(site.path("")).args(["-c", script, "-", jws, key]).output().unwrap();
    assert_eq!(done(ran), "Verified OK\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_itself_finds_a_journal_that_was_tampered_with_and_signs_nothing_of_it() {
    let site = site();
    let gateway = site.serve().await;
    sign(&gateway, 1..=3).await;
    let size = bound_after(&site, 0).await;
    sign(&gateway, 4..=6).await;
    let ledger = Connection::open(site.path("ledger.sqlite")).unwrap();
    let changed =
        "UPDATE audit SET record = CAST(replace(CAST(record AS TEXT), 'quote.reserved', 'quote.reserwed') AS BLOB)
                   WHERE idx = (SELECT max(idx) FROM audit WHERE event = 'quote.reserved')";
    assert_eq!(ledger.execute(changed, ()).unwrap(), 1);
    until("it is found", async || metric(&metrics(&gateway).await, "quotesign_journal_holds") == "0").await;
    gateway.logged("THE JOURNAL WAS TAMPERED WITH").await;
    gateway.logged("is not the one its leaf was made of").await;
    assert!(gateway.stop().success());
    assert_eq!(newest(&site).unwrap().0, size, "none is signed of it");
    assert!(failed(site.run(&["audit", "verify"]), 1).contains("is not the one its leaf was made of"));

    // One that was set back as a whole, checkpoints included, goes unseen by its own gateway only until it is held against one
    // that was kept; with the checkpoints gone alone, the next look finds it.
    ledger
        .execute(
            "UPDATE audit SET record = CAST(replace(CAST(record AS TEXT), 'quote.reserwed', 'quote.reserved') AS BLOB)",
            (),
        )
        .unwrap();
    done(site.run(&["audit", "verify"]));
    let gateway = site.serve().await;
    sign(&gateway, 7..=8).await;
    bound_after(&site, size).await;
    ledger.execute("DELETE FROM checkpoint WHERE size > 0", ()).unwrap();
    until("it is found", async || metric(&metrics(&gateway).await, "quotesign_journal_holds") == "0").await;
    gateway.logged("links and has one of 0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_share_a_ledger_let_one_tree_grow_over_all_their_lanes() {
    let cluster = Cluster::shared();
    let database = cluster.empty();
    let site = site();
    let address = format!("postgresql://postgres@127.0.0.1:{}/{}", database.port, database.name);
    site.edit_config(|config| {
        let ledger = config["ledger"].as_table_mut().unwrap();
        ledger.remove("sqlite");
        ledger["postgres"] = toml(&format!("{{ address = '{address}' }}"));
    });
    done(site.run(&["ledger", "migrate"]));
    let start = |name: &str| {
        let mut command = site.command();
        command.env("QUOTESIGN__LEDGER__POSTGRES__REPLICA", name);
        command.arg("serve").arg("--config").arg(site.config());
        Gateway::spawn(command, &site)
    };
    let gateways = [start("gw-a"), start("gw-b"), start("gw-c")];
    let sizes = || database.sql("SELECT count(*) FROM checkpoint");
    let mut number = 0;
    for gateway in &gateways {
        gateway.signing().await;
    }
    // Enough rounds that two gateways come to look at once now and then.
    for _ in 0..3 {
        let before = sizes();
        for gateway in &gateways {
            number += 1;
            sign(gateway, [number]).await;
        }
        until("a checkpoint", async || sizes() != before).await;
    }
    for gateway in gateways {
        until("it has looked", async || metrics(&gateway).await.contains("quotesign_journal_holds 1")).await;
        assert!(gateway.stop().success());
    }
    let forked = "SELECT count(*) FROM checkpoint c WHERE before <> coalesce((SELECT max(size) FROM checkpoint d WHERE d.size < c.size), 0)";
    assert_eq!(database.sql(forked), "0");
    let file = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let (kept, key) = (file("kept.jws"), file("checkpoint.jwk.json"));
    done(site.run(&["audit", "checkpoint", "--out", &kept]));
    let said = done(site.run(&["audit", "verify", "--checkpoint", &kept, "--key", &key]));
    assert!(["gw-a", "gw-b", "gw-c"].iter().all(|lane| said.contains(&format!("lane {lane}\n"))), "{said}");
    for record in site.journal().iter().filter(|record| record["event"] == "quote.committed") {
        let (id, proof) = (record["id"].as_str().unwrap(), file("proof.json"));
        done(site.run(&["audit", "prove", "--record", id, "--out", &proof]));
        let said = done(
            quotesign().args(["audit", "verify-proof", &proof, "--key", &key, "--checkpoint", &kept]).output().unwrap(),
        );
        assert!(said.contains(id));
        fs::remove_file(proof).unwrap();
    }
    // A lane that is gone with all its records is missed.
    database.sql("DELETE FROM lane WHERE lane = 'gw-b'");
    assert!(failed(site.run(&["audit", "verify", "--checkpoint", &kept, "--key", &key]), 1).contains("no lane `gw-b`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_checkpoints_signs_no_quotes() {
    let site = site();
    // The checkpoints' key as one of quotes, under a kid of quotes.
    let quotes: Value = serde_json::from_slice(
        &fs::read(fs::read_dir(site.path("policy/keys")).unwrap().next().unwrap().unwrap().path()).unwrap(),
    )
    .unwrap();
    let own = fs::read_to_string(site.path("checkpoint.jwk.json")).unwrap();
    fs::write(site.path("checkpoint.jwk.json"), quotes.to_string()).unwrap();
    let refused = failed(site.run(&["config", "check"]), 2);
    assert!(refused.contains("is the one that signs checkpoints"), "{refused}");
    fs::write(site.path("checkpoint.jwk.json"), own).unwrap();
    done(site.run(&["config", "check"]));
    for (field, value, said) in [
        ("signer", "'none'", "`audit.checkpoint.signer` = `none` is no signer of this config"),
        ("locator", "'arn:aws:kms'", "`audit.checkpoint.locator`: "),
        ("interval_s", "3", "`audit.checkpoint.interval_s` = `3` is out of range; give 4 to 3600"),
        ("origin", "'two words'", "`audit.checkpoint.origin` is none"),
        ("public_key", "'absent.jwk.json'", "`audit.checkpoint.public_key` = "),
    ] {
        let was = fs::read(site.config()).unwrap();
        site.edit_config(|config| config["audit"]["checkpoint"][field] = toml(value));
        let refused = failed(site.run(&["config", "check"]), 2);
        assert!(refused.contains(said), "{refused}");
        fs::write(site.config(), was).unwrap();
    }
    // It stands in no key set.
    let gateway = site.serve().await;
    let request = GetJwksRequest { partner: PARTNER.to_owned() };
    let set = gateway.keys("auditor").await.get_jwks(request).await.unwrap().into_inner().jwks;
    assert!(!set.contains("checkpoints-dev"), "{set}");
}

/// The journal of a gateway that has stopped, exported, with its newest checkpoint.
async fn exported() -> (Site, Vec<String>, Checkpoint) {
    let site = site();
    let gateway = site.serve().await;
    sign(&gateway, 1..=30).await;
    assert!(gateway.stop().success());
    let lines = done(site.run(&["audit", "export"])).lines().map(str::to_owned).collect();
    let checkpoint = Checkpoint::unverified(&newest(&site).unwrap().1).unwrap();
    (site, lines, checkpoint)
}

/// Tampers with a line of an export; nothing where that changes nothing.
fn tamper(lines: &[String], bound: usize, how: u32, random: u32) -> Option<Vec<String>> {
    let mut bent = lines.to_vec();
    // The first line begins the lane; what comes after `bound` records no checkpoint binds.
    let (at, other) = (1 + random as usize % bound, 1 + (random >> 8) as usize % bound);
    match how {
        0 => {
            let text = bent[at].clone();
            let digit = text.rfind(|char: char| char.is_ascii_digit())?;
            let changed = if &text[digit..=digit] == "1" { "2" } else { "1" };
            bent[at].replace_range(digit..=digit, changed);
        }
        1 => drop(bent.remove(at)),
        2 => bent.insert(at, lines[other].clone()),
        3 => bent.swap(at, other),
        4 => bent.truncate(at + 1),
        // Back to where the checkpoint was made, which is no rollback for it.
        5 if at == bound => return None,
        // Rolled back, with the head of then.
        5 => {
            let record: Value = serde_json::from_str(&bent[at]).unwrap();
            let link = record["link"].as_str()?.to_owned();
            bent.truncate(at + 1);
            bent.push(json!({ "head_index": record["index"].as_u64().unwrap() + 1, "head_link": link }).to_string());
        }
        // The front is cut off, up to everything, and the beginning says so.
        6 => {
            let record: Value = serde_json::from_str(&bent[at]).unwrap();
            let link = record["link"].as_str()?.to_owned();
            bent.drain(1..=at);
            let first_index = record["index"].as_u64().unwrap() + 1;
            let begin =
                json!({ "schema": "quotesign.journal.v1", "lane": "", "first_index": first_index, "first_link": link });
            bent[0] = begin.to_string();
        }
        // Written anew from a record on, with links that follow.
        _ => {
            let mut record: Value = serde_json::from_str(&bent[at]).unwrap();
            let changed = record["record"].as_str().unwrap().replacen("GB-IN", "GB-NG", 1);
            record["record"] = changed.into();
            bent[at] = record.to_string();
            relink(&mut bent);
        }
    }
    (bent != lines).then_some(bent)
}

/// What whoever owns the store can do: every link follows again.
fn relink(lines: &mut [String]) {
    let (mut link, mut first, mut leaves) = (audit::GENESIS, 0, Vec::new());
    for line in lines {
        let mut parsed: Value = serde_json::from_str(line).unwrap();
        if let Some(record) = parsed["record"].as_str() {
            leaves.push(audit::leaf(record.as_bytes()));
            if parsed.get("link").is_some() {
                link = audit::link(&link, first, &leaves);
                first += leaves.len() as u64;
                leaves.clear();
                parsed["link"] = hex::encode(link).into();
            }
        } else if parsed.get("head_link").is_some() {
            parsed["head_link"] = hex::encode(link).into();
        }
        *line = parsed.to_string();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tamperings_with_an_export_are_found_and_placed_by_who_kept_the_newest_checkpoint() {
    let (_site, lines, checkpoint) = exported().await;
    let kept: Vec<Kept> =
        checkpoint.heads.iter().map(|(lane, head)| Kept { lane: lane.clone(), head: *head }).collect();
    let bound = usize::try_from(kept[0].head.next_index).unwrap();
    let verified = |lines: &[String], kept: &[Kept]| verify((lines.join("\n") + "\n").as_bytes(), kept);
    verified(&lines, &kept).unwrap();
    let (mut tampered, mut only_by_checkpoint, mut nth) = (0, 0, 0_u32);
    while tampered < 1_000 {
        nth += 1;
        let random = u32::from_be_bytes(sha256(&nth.to_be_bytes())[..4].try_into().unwrap());
        let Some(bent) = tamper(&lines, bound, nth % 8, random) else { continue };
        tampered += 1;
        let fault = verified(&bent, &kept).expect_err(&format!("tampering {nth} was not found"));
        assert!(fault.to_string().chars().any(|char| char.is_ascii_digit()), "it is said where: {fault}");
        only_by_checkpoint += u32::from(verified(&bent, &[]).is_ok());
    }
    assert!(only_by_checkpoint > 100, "what was rolled back or written anew is found by a checkpoint alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_the_journal_in_a_database_is_found_by_who_kept_the_newest_checkpoint() {
    let database = Cluster::shared().empty();
    let site = site();
    let address = format!("postgresql://postgres@127.0.0.1:{}/{}", database.port, database.name);
    site.edit_config(|config| {
        let ledger = config["ledger"].as_table_mut().unwrap();
        ledger.remove("sqlite");
        ledger["postgres"] = toml(&format!("{{ address = '{address}', replica = 'gw-a' }}"));
    });
    done(site.run(&["ledger", "migrate"]));
    let gateway = site.serve().await;
    sign(&gateway, 1..=20).await;
    assert!(gateway.stop().success());
    let file = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let (kept, key) = (file("kept.jws"), file("checkpoint.jwk.json"));
    done(site.run(&["audit", "checkpoint", "--out", &kept]));
    let verify = || site.run(&["audit", "verify", "--checkpoint", &kept, "--key", &key]);
    done(verify());
    database.sql("CREATE TABLE kept_audit AS SELECT * FROM audit; CREATE TABLE kept_lane AS SELECT * FROM lane");
    let bound: u32 = Checkpoint::unverified(fs::read_to_string(&kept).unwrap().trim_end()).unwrap().heads["gw-a"]
        .next_index
        .try_into()
        .unwrap();
    let lines: Vec<String> = done(site.run(&["audit", "export"])).lines().map(str::to_owned).collect();
    for nth in 0..u32::try_from(number_from("TRIALS", 10)).unwrap().min(200) * 5 {
        let random = u32::from_be_bytes(sha256(&nth.to_be_bytes())[..4].try_into().unwrap());
        let (at, other) = (random % bound, random / bound % bound);
        let other = if other == at { (at + 1) % bound } else { other };
        database.sql(&match nth % 8 {
            0 => format!("UPDATE audit SET record = record || ' ' WHERE idx = {at}"),
            1 => format!("DELETE FROM audit WHERE idx = {at}"),
            2 => format!("UPDATE audit SET idx = CASE idx WHEN {at} THEN -1 ELSE idx END; UPDATE audit SET idx = {at} WHERE idx = {other}; UPDATE audit SET idx = {other} WHERE idx = -1"),
            3 => format!("UPDATE audit SET record = record || ' ', leaf = sha256('\\x01' || record || ' ') WHERE idx = {at}"),
            4 => format!("DELETE FROM audit WHERE idx >= {at}"),
            // Rolled back, with the head of then.
            5 => format!(
                "DELETE FROM audit WHERE idx > (SELECT min(idx) FROM audit WHERE idx >= {} AND link IS NOT NULL);
                 UPDATE lane SET next_idx = (SELECT max(idx) + 1 FROM audit), link = (SELECT link FROM audit ORDER BY idx DESC LIMIT 1)",
                at.min(bound - 2)
            ),
            6 => format!("UPDATE audit SET record_id = decode(md5(record_id::text), 'hex') WHERE idx = {at}"),
            _ => written_anew(&lines, at),
        });
        let found = verify();
        let text = String::from_utf8_lossy(&found.stderr).into_owned();
        let places: Vec<u32> =
            text.split(|char: char| !char.is_ascii_digit()).filter_map(|at| at.parse().ok()).collect();
        // The last batch that the checkpoint binds may lack its end: then what is missing is at its end, or is the end.
        let is_placed = match nth % 8 {
            0 | 1 | 4 => places.contains(&at),
            2 => text.contains(&format!("the records {}", at.min(other))) || places.contains(&at.min(other)),
            3 => text.contains("the link at record") && places.iter().any(|place| *place >= at),
            5 => text.contains("the journal ends at") && places[0] > at.min(bound - 2),
            6 => text.contains(&format!("record {at} stands under another id than its own")),
            _ => text.contains("they were written anew"),
        };
        let told = found.status.code() == Some(1) && text.contains("gw-a") && is_placed;
        assert!(told, "tampering {nth} ({}) at {at}, {other}: {text}", nth % 8);
        database.sql("TRUNCATE audit; INSERT INTO audit SELECT * FROM kept_audit; TRUNCATE lane; INSERT INTO lane SELECT * FROM kept_lane");
    }
    done(verify());
}

/// A record changed and every link after it made to follow, as whoever owns the database can.
fn written_anew(lines: &[String], at: u32) -> String {
    let mut lines = lines.to_vec();
    let is_it = |line: &String| serde_json::from_str::<Value>(line).unwrap()["index"] == at;
    let line = lines.iter_mut().find(|line| is_it(line)).unwrap();
    let mut changed: Value = serde_json::from_str(line).unwrap();
    changed["record"] = format!("{} ", changed["record"].as_str().unwrap()).into();
    *line = changed.to_string();
    relink(&mut lines);
    let mut sql = vec![format!(
        "UPDATE audit SET record = record || ' ', leaf = sha256('\\x01' || record || ' ') WHERE idx = {at}"
    )];
    for line in lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if let (Some(index), Some(link)) = (line["index"].as_u64(), line["link"].as_str()) {
            sql.push(format!("UPDATE audit SET link = '\\x{link}' WHERE idx = {index}"));
        } else if let Some(link) = line["head_link"].as_str() {
            sql.push(format!("UPDATE lane SET link = '\\x{link}'"));
        }
    }
    sql.join("; ")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_exchanged_and_the_tree_goes_on() {
    let site = site();
    let gateway = site.serve().await;
    sign(&gateway, 1..=2).await;
    assert!(gateway.stop().success());
    let (size, first) = newest(&site).unwrap();
    let file = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let out = file("");
    let args = ["keys", "generate", "--for", "checkpoints", "--signer", "hsm-primary", "--kid", "checkpoints-2"];
    let printed = done(site.run(&[&args[..], &["--bits", "2048", "--out", &out]].concat()));
    let section: toml_edit::DocumentMut = printed.parse().unwrap();
    let (old, new) = (file("checkpoint.jwk.json"), file("checkpoints-2.jwk.json"));
    let exchange = |earlier: &[&str]| {
        site.edit_config(|config| {
            let mut checkpoint = section["audit"]["checkpoint"].clone();
            checkpoint["interval_s"] = toml(INTERVAL_S);
            checkpoint["earlier_keys"] = toml(&format!("{earlier:?}"));
            config["audit"]["checkpoint"] = checkpoint;
        });
    };
    // Without the old key nobody can say that what it signed is true.
    exchange(&[]);
    let gateway = site.serve().await;
    sign(&gateway, 3..=4).await;
    gateway.logged("audit.checkpoint.earlier_keys").await;
    assert!(!metrics(&gateway).await.contains("quotesign_journal_holds 0"), "that is no tampering");
    assert!(gateway.stop().success());
    assert_eq!(newest(&site).unwrap().0, size);
    exchange(&[&old]);
    let gateway = site.serve().await;
    sign(&gateway, 5..=6).await;
    bound_after(&site, size).await;
    assert!(gateway.stop().success());
    let opened = |jws: &str, key: &str| Checkpoint::open(jws, &[PublicKey::from_jwk(&fs::read(key).unwrap()).unwrap()]);
    let chain = Reader::open(&site.path("ledger.sqlite")).unwrap().checkpoints(size, 10).unwrap();
    let next = opened(&chain[0].1, &new).unwrap();
    assert_eq!(next.after, Some(opened(&first, &old).unwrap().digest()));
    assert!(opened(&chain[0].1, &old).is_err());
    done(site.run(&["audit", "checkpoint", "--out", &file("kept.jws")]));
    done(site.run(&["audit", "verify", "--checkpoint", &file("kept.jws"), "--key", &new, "--key", &old]));
}

/// What whoever can write the ledger does to it while the gateway is stopped; the next one finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_finds_what_was_done_to_checkpoints_and_lanes_while_none_ran() {
    let site = site();
    let gateway = site.serve().await;
    sign(&gateway, 1..=2).await;
    let first = bound_after(&site, 0).await;
    sign(&gateway, 3..=4).await;
    assert!(gateway.stop().success());
    assert!(newest(&site).unwrap().0 > first);
    let ledger = Connection::open(site.path("ledger.sqlite")).unwrap();
    let mut number = 5;
    for (what, sql, undo) in [
        (
            "newer ones removed",
            "CREATE TABLE kept AS SELECT * FROM checkpoint; DELETE FROM checkpoint WHERE size > (SELECT min(size) FROM checkpoint)",
            "INSERT OR IGNORE INTO checkpoint SELECT * FROM kept",
        ),
        (
            "one that is not what its row says",
            "INSERT INTO checkpoint SELECT 1000000, 999999, jws FROM checkpoint WHERE size = (SELECT min(size) FROM checkpoint)",
            "DELETE FROM checkpoint WHERE size = 1000000",
        ),
        ("all removed", "DELETE FROM checkpoint", "INSERT INTO checkpoint SELECT * FROM kept"),
    ] {
        ledger.execute_batch(sql).unwrap();
        let gateway = site.serve().await;
        sign(&gateway, [number]).await;
        number += 1;
        until(what, async || metric(&metrics(&gateway).await, "quotesign_journal_holds") == "0").await;
        assert!(gateway.stop().success());
        ledger.execute_batch(undo).unwrap();
    }
    // Put back, all is well again.
    let gateway = site.serve().await;
    let size = newest(&site).unwrap().0;
    sign(&gateway, [number]).await;
    bound_after(&site, size).await;
    assert!(gateway.stop().success());
    // The front of the journal is cut off, and the ledger says that it begins there.
    let file = |name: &str| site.path(name).to_str().unwrap().to_owned();
    done(site.run(&["audit", "checkpoint", "--out", &file("kept.jws")]));
    ledger
        .execute_batch(
            "UPDATE chain SET first_idx = 8, first_link = (SELECT link FROM audit WHERE idx = 7); DELETE FROM audit WHERE idx < 8",
        )
        .unwrap();
    let said = failed(
        site.run(&["audit", "verify", "--checkpoint", &file("kept.jws"), "--key", &file("checkpoint.jwk.json")]),
        1,
    );
    assert!(said.contains("records 0 to 7 are not in it"), "{said}");
}
