//! quotesign: a gateway that signs price quotes with keys that never leave their hardware.
//!
//! The modules stand in the order in which a quote meets them; `ARCHITECTURE.md` tells the whole.

/// Files whose names are durable.
pub mod disk;
/// The words of the gateway as types.
pub mod domain;
/// Time, and whether to trust it.
pub mod clock;
/// Exact money.
pub mod money;
/// What this replica knows may not be signed.
pub mod stopped;
/// What a quote says, read into types.
pub mod terms;
/// JSON that two readers understand alike.
pub mod json;
/// Public keys as JWKs.
pub mod jwk;
/// Whether a published key set is as verifiers expect it.
pub mod key_set;
/// Compact JWS: the only bytes a device signs.
pub mod jws;
/// TOML that is read strictly.
pub mod strict_toml;
/// The generated types of the gRPC API.
pub mod proto;
pub mod published;
/// What the transport knows of a call.
pub mod call;
/// TLS, connections and the edge of a call.
pub mod transport;
/// TLS towards what the gateway itself connects to.
pub mod outgoing;
/// Who may sign what, with which key, until when.
pub mod policy;
/// The one verifier of signed quotes.
pub mod verification;
/// What is recorded of it.
pub mod audit;
/// The only memory.
pub mod ledger;
/// What binds the memory together.
pub mod notary;
/// The devices.
pub mod signer;
/// How far the shipping of the journal is behind.
pub mod backlog;
/// How much room there is where the ledger is.
pub mod room;
/// How much each key signs, and whether that is usual.
pub mod volume;
/// The path of one quote, top to bottom.
pub mod outcomes;
pub mod pipeline;
/// What the security team asks of policy bundles.
pub mod review;
/// The control plane.
pub mod control;
/// Log lines and metrics.
pub mod telemetry;
/// The gRPC services and the HTTP fronts.
pub mod service;
/// How one gateway is run.
pub mod config;
/// Puts it together and runs it.
pub mod gateway;
/// How the commands reach a gateway.
pub mod client;
/// The commands.
pub mod cli;
