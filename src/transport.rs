//! TLS, connections and the edge of a call: everything between the network and a service method. Knows who
//! calls and until when, and nothing of quotes.

pub mod tls;
pub mod live;
pub mod peer;
pub mod accept;
pub mod serve;
pub mod line;
pub mod edge;
