//! `docs/threat-model.md` and `docs/scale.md`: what they name is there, what they show comes out again, and what they claim and
//! nothing else shows is tried.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;

use crate::{
    commands::client,
    harness::{PARTNER, Quote, Site, done, failed, refused},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PAGES: [&str; 2] = ["docs/threat-model.md", "docs/scale.md"];
const SUITES: [&str; 5] = ["it", "kms", "ledger", "signers", "lib"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|fault| panic!("{path}: {fault}"))
}

/// A page without its fenced blocks.
fn prose(page: &str) -> String {
    read(page).split("```").step_by(2).collect()
}

/// What stands between backticks.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// A test that is named as `it tls::what_is_not_tls_gets_an_alert_at_most`: the suite, and the path in it.
fn test_of(span: &str) -> Option<(&str, &str)> {
    let (suite, path) = span.split_once(' ')?;
    let is_path = path.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c));
    (SUITES.contains(&suite) && is_path && path.contains('_')).then_some((suite, path))
}

/// Whether there is this test, and it is one.
fn is_test((suite, path): (&str, &str)) -> bool {
    let mut modules: Vec<&str> = path.split("::").collect();
    let name = modules.pop().unwrap();
    modules.retain(|module| *module != "tests");
    let file = match (suite, modules.is_empty()) {
        ("lib", _) => format!("src/{}.rs", modules.join("/")),
        (_, true) => format!("tests/{suite}/main.rs"),
        (_, false) => format!("tests/{suite}/{}.rs", modules.join("/")),
    };
    let Ok(text) = fs::read_to_string(Path::new(ROOT).join(file)) else { return false };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declares = |line: &str| line.contains(&format!("fn {name}("));
    let Some(at) = lines.iter().position(|line| declares(line)) else { return false };
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("///"));
    let mut attributes = above.filter(|line| line.starts_with("#["));
    // The suite of KMS has a macro around its tests, which adds it.
    attributes.any(|line| line.starts_with("#[test") || line.starts_with("#[tokio::test")) || suite == "kms"
}

#[test]
fn every_file_and_every_test_that_the_pages_name_is_there() {
    let folders = ["src/", "tests/", "docs/", "policy/", "examples/", "tools/", "deploy/"];
    let (mut files, mut tests) = (BTreeSet::new(), BTreeSet::new());
    for page in PAGES {
        let text = prose(page);
        for span in spans(&text) {
            if let Some(named) = test_of(span) {
                assert!(is_test(named), "{page} names a test that is not there: {span}");
                tests.insert(span.to_owned());
            } else if folders.iter().any(|folder| span.starts_with(folder)) {
                let file = span.split(' ').next().unwrap();
                assert!(Path::new(ROOT).join(file).exists(), "{page} names a file that is not there: {span}");
                files.insert(file.to_owned());
            }
        }
    }
    assert!(files.len() > 30 && tests.len() > 60, "{} files, {} tests", files.len(), tests.len());
    for none in ["tls::there_is_no_such_test", "nowhere::a_test", "harness::until", "tls::client"] {
        assert!(!is_test(("it", none)), "{none}");
    }
    assert_eq!(test_of("it tls::a_test"), Some(("it", "tls::a_test")));
    assert_eq!(test_of("cargo test"), None);
}

/// What a heading is linked by.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Every page of the repository's own.
fn all_pages() -> Vec<String> {
    let folders = ["", "docs", "docs/runbooks", "policy", "clients"].map(Path::new);
    let files = folders.into_iter().flat_map(|folder| {
        let entries = fs::read_dir(Path::new(ROOT).join(folder)).unwrap();
        entries.map(move |entry| folder.join(entry.unwrap().file_name()).to_str().unwrap().to_owned())
    });
    files.filter(|file| Path::new(file).extension().is_some_and(|ending| ending == "md")).collect()
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let mut count = 0;
    for page in all_pages() {
        for link in prose(&page).split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => Path::new(&page).with_file_name(file).to_str().unwrap().to_owned(),
            };
            let text = if Path::new(ROOT).join(&target).is_dir() { String::new() } else { read(&target) };
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            assert!(part.is_empty() || headings.any(|heading| anchor(heading) == part), "{page}: {link}");
            count += 1;
        }
    }
    assert!(count >= 100, "{count}");
}

/// The cells of each row of the tables that begin with `head`.
fn rows(page: &str, head: &str) -> Vec<Vec<String>> {
    let (text, head) = (read(page), format!("\n{head}\n"));
    let tables = text.split(&head).skip(1);
    let lines = tables.flat_map(|table| table.lines().skip(1).take_while(|line| line.starts_with('|')));
    lines.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

#[test]
fn every_threat_says_what_stops_it_where_and_what_shows_that() {
    let page = "docs/threat-model.md";
    let threats = rows(page, "| | threat | what stops it | where | shown by |");
    assert!(threats.len() > 40, "{}", threats.len());
    let kinds: BTreeSet<&str> = threats.iter().flat_map(|row| row[0].split(", ")).collect();
    assert_eq!(kinds, BTreeSet::from(["S", "T", "R", "I", "D", "E"]));
    for row in &threats {
        let [_, threat, stops, _, shown] = &row[..] else { panic!("{row:?}") };
        assert!(!threat.is_empty() && !stops.is_empty(), "{row:?}");
        assert!(shown == "-" || spans(shown).any(|span| test_of(span).is_some()), "{row:?}");
    }
    let unshown = threats.iter().filter(|row| row[4] == "-").count();
    assert!(unshown * 10 < threats.len(), "{unshown} of {} are shown by nothing", threats.len());

    let invariants = rows(page, "| | invariant | stops | shown by | ends where |");
    let numbers: Vec<&str> = invariants.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(numbers, ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"]);
    for row in &invariants {
        assert!(row.len() == 5 && spans(&row[3]).any(|span| test_of(span).is_some()), "{row:?}");
        assert!(!row[4].is_empty(), "{row:?}");
    }
}

fn simulate(page: &Path) -> Output {
    let script = Path::new(ROOT).join("tools/scale-sim/simulate.py");
    Command::new("python3").arg("-B").arg(script).arg("--check").arg(page).current_dir(ROOT).output().unwrap()
}

#[test]
fn the_page_on_scale_is_what_the_simulation_says() {
    let page = Path::new(ROOT).join("docs/scale.md");
    assert!(done(simulate(&page)).contains("what it holds comes out again"));

    let dir = TempDir::new().unwrap();
    let changed = dir.path().join("scale.md");
    let figure = "| one HSM, RSA-2048 | 833 |";
    let text = read("docs/scale.md");
    assert_eq!(text.matches(figure).count(), 1);
    fs::write(&changed, text.replace(figure, "| one HSM, RSA-2048 | 933 |")).unwrap();
    let told = failed(simulate(&changed), 1);
    assert!(told.contains("page: | one HSM, RSA-2048 | 933 |") && told.contains("holds something else"), "{told}");
}

/// The part of a move that ledgers decide: halted on both sides, the floor, resumed. What the page says is left behind is left behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_partner_moves_to_another_ledger_and_no_number_is_given_twice() {
    let (old, new) = (Site::new(), Site::new());
    let (before, after) = (old.serve().await, new.serve().await);
    let (here, there) = (before.quotes("pricing").await, after.quotes("pricing").await);
    let act =
        |site, gateway, act: &str, reason| client(site, gateway, &[act, "--partner", PARTNER, "--reason", reason]);
    let seed = |floor: u64| {
        let floor = floor.to_string();
        let args = ["admin", "seed-sequence", "--partner", PARTNER, "--floor", &floor, "--reason", "moved in, OPS-12"];
        client(&new, &after, &args)
    };
    done(act(&new, &after, "halt", "moves in, OPS-12"));
    let last = Quote::number(7);
    here.sign(&Quote::number(3)).await.unwrap();
    here.sign(&last).await.unwrap();

    done(act(&old, &before, "halt", "moved away, OPS-12"));
    for quote in [&last, &Quote::number(8)] {
        refused(here.sign(quote).await, Code::Unavailable, "SIGNING_HALTED");
    }
    refused(there.sign(&Quote::number(8)).await, Code::Unavailable, "SIGNING_HALTED");
    let floor = here.last().await;
    assert_eq!(floor, 7);
    done(seed(floor));
    assert!(failed(seed(floor - 1), 1).contains("FLOOR_NOT_RAISED"));
    done(act(&new, &after, "resume", "moved in, OPS-12"));

    // Neither what was signed, nor another payload of its number.
    for quote in [&last, &last.clone().sending(100), &Quote::number(7), &Quote::number(5)] {
        refused(there.sign(quote).await, Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC");
    }
    assert_eq!(there.sign(&Quote::number(8)).await.unwrap().sequence, 8);
    // An id that was used before is as new here: the page says that nothing stops this.
    let again = Quote::number(9).with("quote_id", json!(last.id()));
    assert_eq!(there.sign(&again).await.unwrap().sequence, 9);
    refused(here.sign(&Quote::number(10)).await, Code::Unavailable, "SIGNING_HALTED");
    assert_eq!(here.last().await, 7, "nothing was taken at the old one");
}

/// What the owner of a store can do to a quote that was signed is found when it is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_jws_that_was_changed_in_the_store_is_never_given_again() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let (quote, other) = (Quote::number(1), Quote::number(2));
    let jws = pricing.sign(&quote).await.unwrap().jws;
    let others = pricing.sign(&other).await.unwrap().jws;
    assert!(gateway.stop().success());

    let (header, rest) = jws.split_once('.').unwrap();
    let (_, signature) = rest.split_once('.').unwrap();
    let payload = others.split('.').nth(1).unwrap();
    let store = |from: &str, to: &str| {
        let ledger = Connection::open(site.path("ledger.sqlite")).unwrap();
        let changed = ledger.execute("UPDATE release SET jws = ?2 WHERE jws = ?1", [from, to]).unwrap();
        assert_eq!(changed, 1);
    };
    // Another quote's, which is as good as its own; another payload under its signature.
    let mixed = format!("{header}.{payload}.{signature}");
    let mut stored = jws.clone();
    for changed in [others.clone(), mixed] {
        // Both would be one text: the other's is set aside first.
        if changed == others {
            store(&others, "elsewhere");
        }
        store(&stored, &changed);
        stored = changed;
        let gateway = site.serve().await;
        refused(gateway.quotes("pricing").await.sign(&quote).await, Code::Internal, "SIGNATURE_MISMATCH");
        assert!(gateway.stop().success());
    }
    store(&stored, &jws);
    let gateway = site.serve().await;
    let again = gateway.quotes("pricing").await.sign(&quote).await.unwrap();
    assert!(again.replayed && again.jws == jws);
}
