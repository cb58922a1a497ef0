//! The ledger's engines: one contract for all of them, and what each must bear.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that cannot go on fails"
)]

mod contract;
mod model;
mod ops;
mod postgres;
mod reached;
#[allow(dead_code, reason = "the trials of replicas use the rest of it")]
mod server;

use contract::{CASES, Store};
use quotesign::{
    domain::Environment,
    ledger::{
        Engine, EngineError, Journal,
        chain::StoredRecord,
        sqlite::{Reader, Sqlite},
    },
};
use tempfile::TempDir;

struct File(TempDir);

impl File {
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("ledger.sqlite")
    }
}

impl Store for File {
    /// A program that another test starts holds all that is open here for a moment, the lock of an engine that was dropped
    /// among it.
    fn open(&self) -> Box<dyn Engine> {
        let tries = (0..100).map(|_| Sqlite::open(&self.path(), Environment::Sandbox));
        let is_held = |opened: &Result<Sqlite, EngineError>| {
            let is_held = matches!(opened, Err(EngineError::Unfit(why)) if why.ends_with("in use by another process"));
            if is_held {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            is_held
        };
        Box::new({ tries }.find(|opened| !is_held(opened)).unwrap().unwrap())
    }

    fn journal(&self) -> Vec<StoredRecord> {
        Reader::open(&self.path()).unwrap().records(0, u32::MAX).unwrap()
    }

    fn lane(&self) -> &'static str {
        ""
    }

    fn reader(&self) -> Box<dyn Journal> {
        Box::new(Reader::open(&self.path()).unwrap())
    }
}

#[test]
fn sqlite_keeps_the_contract() {
    for (name, case) in CASES {
        println!("sqlite: {name}");
        let file = File(TempDir::new().unwrap());
        Sqlite::migrate(&file.path(), Environment::Sandbox).unwrap();
        case(&file);
    }
}
