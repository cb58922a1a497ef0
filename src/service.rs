//! The gRPC services and the two HTTP fronts. The only layer that names tonic types: it turns calls into the
//! words of the crate, and refusals into statuses.

pub mod access;
pub mod admin;
pub mod health;
pub mod jwks;
pub mod keys;
mod outcomes;
pub mod operations;
pub mod quotes;
pub mod status;
