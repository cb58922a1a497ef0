//! TLS, connections and the edge of a call: everything between the network and a service method. Knows who
//! calls and until when, and nothing of quotes.

pub mod accept;
pub mod certificate;
pub mod edge;
pub mod peer;
pub mod tls;
