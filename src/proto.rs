//! The generated types of `proto/quotesign/v1`, and the descriptors that reflection serves.

#![allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the documentation is in proto/"
)]

tonic::include_proto!("quotesign.v1");

/// The encoded `FileDescriptorSet` of all of the above.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quotesign.descriptors"));
