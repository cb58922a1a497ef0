//! The gateway as others meet it: the real binary, real `SoftHSM` tokens, a real SQLite file, real gRPC over
//! real TLS. One test binary, so that it links once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that cannot go on fails"
)]

mod access;
mod api;
mod assigned;
mod audit;
mod bench;
mod chart;
mod checkpoints;
mod clients;
mod collector;
mod commands;
mod contract_document;
mod corpus;
mod dashboards;
mod docs;
mod doctor;
mod drain;
#[cfg(feature = "kms")]
#[allow(dead_code, reason = "the suite of KMS uses the rest of it")]
#[path = "../kms/emulator.rs"]
mod emulator;
mod external;
mod fairness;
mod faults;
mod first_start;
mod golive;
mod harness;
mod health;
mod history;
mod hostile;
mod image;
mod jwks;
mod keeping;
mod kills;
#[cfg(feature = "kms")]
mod kms;
mod lifecycle;
mod manual;
mod observability;
mod oracles;
mod pages;
mod overload;
mod path;
mod policy;
mod powercut;
mod problems;
mod properties;
mod pruning;
mod redaction;
mod reads;
mod reloading;
mod replicas;
mod rollback;
mod room;
mod runbooks;
#[allow(dead_code, reason = "the suite of the ledger uses the rest of it")]
#[path = "../ledger/server.rs"]
mod server;
mod setup;
mod shipping;
mod soak;
mod stages;
mod stops;
mod streams;
mod tidy;
mod tls;
mod traces;
mod versions;
mod year;
