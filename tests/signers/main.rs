//! PKCS#11 tokens as devices: one contract, run against every module that can be set up without hardware, and what is
//! shown with SoftHSM alone. `scripts/setup test` installs the modules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that cannot go on fails"
)]

mod backend;
#[path = "../contract/signer.rs"]
mod contract;
mod modules;
mod replicas;
mod tokens;
