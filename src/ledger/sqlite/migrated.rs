//! A file of an older version is brought up with all that it holds, and keeps the rules of this one.

use std::fs;

use super::{
    super::step::tests::{commit, identity, pending, reserve, scope, void},
    tests::{HERE, Home},
    *,
};

#[test]
fn a_ledger_of_the_version_before_is_brought_up_with_all_it_holds() {
    let home = Home::new();
    let mut ledger = home.seeded();
    let held = pending(ledger.one(Op::Reserve(reserve("q1", 5))).unwrap());
    drop(ledger);
    let now = home.path().with_file_name("now.sqlite");
    fs::rename(home.path(), &now).unwrap();
    home.shell(&format!(
        "ATTACH '{}' AS now; {}
         INSERT INTO meta SELECT one, 1, environment FROM now.meta; INSERT INTO scope SELECT * FROM now.scope;
         INSERT INTO audit SELECT * FROM now.audit; DELETE FROM chain;
         INSERT INTO chain SELECT one, epoch, next_idx, link, newest_at FROM now.chain;
         INSERT INTO quote SELECT identity, scope, sequence, payload, kid, generation, input, expires_at, state,
           release_idx, record_id FROM now.quote",
        now.display(),
        schema::MIGRATIONS[0],
    ));
    assert!(home.refusal().ends_with("has an older schema: run `quotesign ledger migrate`"));
    Sqlite::migrate(&home.path(), HERE).unwrap();
    let mut ledger = home.open();
    assert_eq!(pending(ledger.one(Op::Reserve(reserve("q1", 5))).unwrap()), held);
    let numbered = ledger.numbered(&scope("GB-IN"), held.sequence()).unwrap();
    assert_eq!(numbered.map(|quote| quote.input), Some(held.input()));
    assert_eq!(ledger.numbered(&scope("GB-US"), held.sequence()).unwrap(), None);
}

#[test]
fn a_ledger_of_texts_is_brought_up_with_what_was_signed_and_voided() {
    let home = Home::new();
    let mut ledger = home.seeded();
    let held = (1..4).map(|n| pending(ledger.one(Op::Reserve(reserve(&format!("q{n}"), n))).unwrap()));
    let held: Vec<_> = held.collect();
    ledger.one(Op::Commit(commit(&held[0], "e30.e30.x"))).unwrap();
    ledger.one(Op::Void(void("q2", 600_000))).unwrap();
    let all = |ledger: &mut Sqlite| ["q1", "q2", "q3"].map(|quote| ledger.quote(&identity(quote)).unwrap().unwrap());
    let before = all(&mut ledger);
    drop(ledger);
    // As version 7 had it.
    home.shell(
        "ALTER TABLE quote RENAME TO now; DROP INDEX quote_key; DROP INDEX quote_number; DROP INDEX quote_waiting;
         DROP INDEX quote_done",
    );
    let table = schema::MIGRATIONS[3].split(';').next().unwrap();
    home.shell(&format!(
        "{table}; ALTER TABLE quote_in_order RENAME TO quote;
         INSERT INTO quote SELECT id, identity, scope, sequence, payload, kid, generation, input, expires_at, state,
           release_idx, record_id FROM now;
         DROP TABLE now; CREATE UNIQUE INDEX quote_identity ON quote (identity); UPDATE meta SET version = 7",
    ));
    assert!(home.refusal().ends_with("run `quotesign ledger migrate`"));
    Sqlite::migrate(&home.path(), HERE).unwrap();
    check_whole(&home.path(), HERE).unwrap();
    let mut ledger = home.open();
    assert_eq!(all(&mut ledger), before);
    assert!(ledger.one(Op::Commit(commit(&held[2], "e30.e30.y"))).is_ok());
}

#[test]
fn what_is_written_of_a_quote_is_checked_without_a_table_made_for_it() {
    let home = Home::new();
    home.seeded().one(Op::Reserve(reserve("q1", 1))).unwrap();
    let shell = Connection::open(home.path()).unwrap();
    for sql in [rows::NEW_QUOTE, rows::NEXT_QUOTE] {
        let mut explain = shell.prepare(&format!("EXPLAIN {sql}")).unwrap();
        let steps = explain.raw_query().mapped(|row| row.get(1)).collect::<Result<Vec<String>, _>>().unwrap();
        assert!(steps.iter().any(|step| step == "OpenWrite"), "{steps:?}");
        assert!(!steps.iter().any(|step| step == "OpenEphemeral"), "{steps:?}");
    }
    for state in [0, 4] {
        let error = shell.execute("UPDATE quote SET state = ?1", [state]).unwrap_err().to_string();
        assert_eq!(error, "CHECK constraint failed: state BETWEEN 1 AND 3");
    }
}

#[test]
fn a_rule_that_is_written_anew_holds_for_whoever_has_the_file_open() {
    let home = Home::new();
    fs::remove_file(home.path()).unwrap();
    home.shell("PRAGMA journal_mode = WAL");
    for version in &schema::MIGRATIONS[..6] {
        home.shell(version);
    }
    home.shell("INSERT INTO meta (one, version, environment) VALUES (1, 6, 'sandbox')");
    let beside = Connection::open(home.path()).unwrap();
    let mut put = beside.prepare("UPDATE quote SET state = 9").unwrap();
    assert_eq!(put.execute(()).unwrap(), 0);
    home.shell(schema::MIGRATIONS[6]);
    home.shell(
        "INSERT INTO quote VALUES (1, 'q', 's', 1, zeroblob(32), 'k', 1, zeroblob(32), 0, 1, NULL, NULL);
         PRAGMA integrity_check",
    );
    let refused = put.execute(()).unwrap_err().to_string();
    assert_eq!(refused, "CHECK constraint failed: state BETWEEN 1 AND 3");
    let found: String = beside.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(found, "ok");
}
