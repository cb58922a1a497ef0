//! The gateway as others meet it: the real binary, real `SoftHSM` tokens, a real SQLite file, real gRPC over
//! real TLS. One test binary, so that it links once.

mod harness;
mod path;
