//! `docs/runbooks/`: every command in them, in their order, in production and with a moved clock.

use std::fs;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::CertificateParams;
use serde_json::Value;
use time::macros::datetime;

use crate::{
    first_start::{Production, ROOT, SIGNING},
    harness::{client_certificate, toml, until},
};

/// The commands of each section of a page, in their order.
fn sections(page: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(format!("{ROOT}/docs/runbooks/{page}")).unwrap();
    let commands = |section: &str| {
        let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
        blocks.flat_map(str::lines).map(str::to_owned).collect()
    };
    text.split("\n## ").skip(1).map(commands).collect()
}

fn kid_of(jws: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(jws.split('.').next().unwrap()).unwrap();
    serde_json::from_slice::<Value>(&header).unwrap()["kid"].as_str().unwrap().to_owned()
}

/// What a command printed, and its exit code.
fn told(production: &Production, line: &str) -> (i32, String) {
    let output = production.line(line);
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// How each step of a rotation stands.
fn stands(production: &Production, look: &str) -> (i32, Vec<String>) {
    let (code, text) = told(production, look);
    let words = |line: &str| line.split_whitespace().nth(2).unwrap_or_default().to_owned();
    (code, text.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit())).map(words).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_rotation_goes_by_the_page_and_no_step_can_be_skipped() {
    let steps = sections("planned-rotation.md");
    let production = Production::signing().await;
    let gateway = production.serve("2027-05-20T09:00:05Z");
    gateway.signing().await;
    let sign = &steps[3][1];
    assert_eq!(kid_of(production.good(sign).trim()), "quote-signing-2026-12");

    assert!(production.bad(&steps[2][0], 1).contains("is confirmed already"), "the key before");
    let [begin] = &steps[0][..] else { panic!("step 1 is one command") };
    let early = production.bad(&begin.replace("2027-06-01T09", "2027-05-21T09"), 1);
    assert!(early.contains("the earliest start is 2027-05-21T10:00:00Z"), "{early}");
    fs::create_dir_all(production.site.path("policy/cases")).unwrap();
    fs::write(production.site.path("policy/cases/tried.toml"), "[settings]\nenvironment = 'production'\n").unwrap();
    production.bad(begin, 3);
    let [check, diff, copy, remove, reload, look] = &steps[1][..] else { panic!("step 2 is six commands") };
    production.good(check);
    let changes = production.good(diff);
    assert!(production.site.path("policy.next/cases/tried.toml").exists(), "it is tried on the change");
    for change in ["public key of `quote-signing-2027-06`", "retire_at", "serial: raised from"] {
        assert!(changes.contains(change), "{change}: {changes}");
    }
    let [confirm, copy_again, remove_again, reload_again] = &steps[2][..] else { panic!("step 3 is four commands") };
    production.good(copy);
    production.good(remove);
    let skipped = production.bad(confirm, 1);
    assert!(skipped.contains("step 2 (publish) comes first"), "{skipped}");
    assert_eq!(
        stands(&production, look),
        (3, ["done", "WAITING", "later", "later", "later", "later"].map(str::to_owned).into())
    );
    production.good(reload);
    until("step 2 is done", async || stands(&production, look).1[1] == "done").await;
    assert_eq!(stands(&production, look).1[2], "WAITING");
    let second = production.bad(&begin.replace("2027-06-01", "2027-07-01"), 1);
    assert!(second.contains("finish its rotation first"), "{second}");
    production.bad(confirm, 3);
    for command in [copy_again, remove_again, reload_again] {
        production.good(command);
    }
    until("step 3 is done", async || stands(&production, look).1[2] == "done").await;
    assert_eq!(stands(&production, look).1[3], "WAITING");
    assert_eq!(kid_of(production.good(sign).trim()), "quote-signing-2026-12");
    assert!(gateway.stop().success());

    let gateway = production.serve("2027-06-01T09:00:05Z");
    gateway.signing().await;
    let begun = ["done", "done", "done", "done", "WAITING", "later"].map(str::to_owned);
    until("the new key signs", async || stands(&production, &steps[3][0]) == (3, begun.clone().into())).await;
    assert_eq!(kid_of(production.good(sign).trim()), "quote-signing-2027-06");
    let set = production.good("quotesign jwks --client operator.toml");
    assert!(set.contains("quote-signing-2026-12") && set.contains("quote-signing-2027-06"), "{set}");
    assert!(gateway.stop().success());

    let gateway = production.serve("2027-06-10T00:00:05Z");
    gateway.signing().await;
    until("all is done", async || stands(&production, &steps[5][0]) == (0, ["done"; 6].map(str::to_owned).into()))
        .await;
    assert!(!production.good("quotesign jwks --client operator.toml").contains("quote-signing-2026-12"));
    let turned = production.site.journalled("key.turned", 5).await;
    let told: Vec<_> = turned.iter().map(|record| record["facts"]["detail"].as_str().unwrap().to_owned()).collect();
    for state in ["prepared", "active, before prepared", "retired, before active"] {
        assert!(told.iter().any(|told| told == state), "{state}: {told:?}");
    }
    production.good(
        "quotesign keys revoke quote-signing-2027-06 --cause key-may-be-compromised --reason INC-8 --client operator.toml",
    );
    let lost = production.bad(&steps[5][0], 1);
    assert!(lost.contains("which was to follow `quote-signing-2026-12`, was revoked"), "{lost}");
    assert!(gateway.stop().success());
    production.good("quotesign audit verify");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emergency_rotation_goes_by_the_page() {
    let steps = sections("emergency-rotation.md");
    let production = Production::signing().await;
    production.site.edit_policy(|policy| {
        let mut second = policy["callers"][1].as_table().unwrap().clone();
        second["id"] = toml("'spiffe://prod.acme-remit.example/second'");
        policy["callers"].as_array_of_tables_mut().unwrap().push(second);
    });
    let mut params: CertificateParams = client_certificate(&["spiffe://prod.acme-remit.example/second"], &[]);
    params.not_before = datetime!(2026-01-01 0:00 UTC);
    production.site.issue("second", params);
    let gateway = production.serve(SIGNING);
    gateway.signing().await;
    let operator = fs::read_to_string(production.site.path("operator.toml")).unwrap();
    fs::write(production.site.path("second.toml"), operator.replace("operator", "second")).unwrap();
    let sign = &steps[3][0];
    assert_eq!(kid_of(production.good(sign).trim()), "quote-signing-2026-12");

    let [revoke, halt] = &steps[0][..] else { panic!("step 1 is two commands") };
    let report = production.good(revoke);
    for line in [
        "environment      production",
        "affected kid     quote-signing-2026-12",
        "incident         unauthorized-signing-suspected: INC-7",
        "quotes           1 signed in the window, of which 1 are still valid",
        "to be added",
        "NOT YET",
    ] {
        assert!(report.contains(line), "{line}: {report}");
    }
    production.good(halt);
    let [rotate, activate, resume] = &steps[1][..] else { panic!("step 2 is three commands") };
    let first = production.bad(rotate, 1);
    assert!(first.contains("SECOND_CALLER_NEEDED"), "{first}");
    // Whoever asked first is still one person.
    let alone = production.bad(&activate.replace("second.toml", "operator.toml"), 1);
    assert!(alone.contains("SECOND_CALLER_NEEDED"), "{alone}");
    production.good(activate);
    production.good(resume);
    let [text, csv] = &steps[2][..] else { panic!("step 3 is two commands") };
    assert!(production.good(text).contains("reissue "));
    let rows = production.good(csv);
    assert_eq!(rows.lines().count(), 2, "{rows}");
    assert!(rows.lines().nth(1).unwrap().starts_with("quote-signing-2026-12,"), "{rows}");
    gateway.signing().await;
    assert_eq!(kid_of(production.good(sign).trim()), "quote-signing-2026-12b");
    for command in &steps[4] {
        production.good(command);
    }
    let activated = production.site.journalled("key.activated", 1).await;
    assert!(
        activated[0]["facts"]["detail"]
            .as_str()
            .unwrap()
            .contains("first asked for by spiffe://prod.acme-remit.example/operator")
    );
    assert_eq!(activated[0]["context"]["caller"], "spiffe://prod.acme-remit.example/second");
    assert!(gateway.stop().success());
}
