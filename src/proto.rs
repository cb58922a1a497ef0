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

/// The instant of a message, to the millisecond; absent where it is none.
#[must_use]
pub fn instant(at: prost_types::Timestamp) -> Option<crate::clock::UtcTime> {
    use crate::clock::UtcTime;
    let nanos = u32::try_from(at.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let millis = at.seconds.checked_mul(1000)?.checked_add(i64::from(nanos / 1_000_000))?;
    let instant = UtcTime::from_millis(millis);
    // A time that its own spelling does not give back would make a record that nobody can read.
    (UtcTime::parse(&instant.to_string()) == Ok(instant)).then_some(instant)
}

/// The text of a message's instant; empty where there is none.
#[must_use]
pub fn text_of(at: Option<prost_types::Timestamp>) -> String {
    at.and_then(instant).map(|at| at.to_string()).unwrap_or_default()
}

/// An instant, as messages hold it.
pub fn timestamp(at: crate::clock::UtcTime) -> prost_types::Timestamp {
    let (seconds, millis) = (at.millis().div_euclid(1000), at.millis().rem_euclid(1000));
    prost_types::Timestamp { seconds, nanos: i32::try_from(millis * 1_000_000).unwrap_or(0) }
}
