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

/// An instant, as messages hold it.
pub fn timestamp(at: crate::clock::UtcTime) -> prost_types::Timestamp {
    let (seconds, millis) = (at.millis().div_euclid(1000), at.millis().rem_euclid(1000));
    prost_types::Timestamp { seconds, nanos: i32::try_from(millis * 1_000_000).unwrap_or(0) }
}
