//! quotesign: a gateway that signs price quotes with keys that never leave their hardware.

pub mod domain;
pub mod clock;
pub mod jwk;
pub mod jws;
pub mod audit;
