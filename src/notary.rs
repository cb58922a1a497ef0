//! Binds the journal together: a signed checkpoint says where every lane of every gateway stands, and whoever keeps one
//! can tell a journal that was changed, cut or rolled back since; and a proof shows one record to a holder of a checkpoint
//! without the others.
//!
//! - `tree`: the Merkle tree of RFC 6962 over the journal's links
//! - `checkpoint`: its head with those of the lanes, as a text that is signed
//! - `proof`: one record with its way up to the head
//! - `survey`: what a ledger's journal has grown by since its newest checkpoint, recomputed

pub mod checkpoint;
pub mod proof;
pub mod survey;
pub mod tree;
