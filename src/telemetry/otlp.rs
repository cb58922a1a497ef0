//! What leaves the gateway by the OpenTelemetry protocol (OTLP): the journal as log records, calls as spans, metrics.
//!
//! - `exporter`: one request to a collector, over gRPC or HTTP, and what its answer means; `headers`: what is sent along; `written`:
//!   the body, which is written already
//! - `records`: an audit record as a log record, the same bytes whenever it is made
//! - `shipper`: the journal in order, at least once, whatever the collector answers
//! - `spans`, `points`: recorded calls, and the metrics

pub mod exporter;
pub mod headers;
pub mod points;
pub mod records;
pub mod shipper;
pub mod spans;
mod wire;
mod written;

/// The room that these bytes took, empty; none where somebody else still holds a part of them.
pub(crate) fn room(bytes: prost::bytes::Bytes) -> Vec<u8> {
    let mut room = bytes.try_into_mut().map_or_else(|_| Vec::new(), Vec::from);
    room.clear();
    room
}
