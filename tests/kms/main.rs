//! AWS KMS as a device, over the wire: against `ministack`, which does what AWS does with a digest, with faults put in
//! by a proxy of our own, and against `moto`, which gets digests wrong and must be noticed. `scripts/setup test`
//! installs both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that cannot go on fails"
)]

#[path = "../contract/signer.rs"]
mod contract;
mod credentials;
mod emulator;
mod faults;
mod harness;
mod keys;
mod provisioning;
mod proxy;
mod share;
