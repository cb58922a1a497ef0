//! What the security team asks of policy bundles: what would happen to a quote, do the cases hold, what does a change
//! change, what would it have changed, who signs when; and what anyone asks of a journal: which records, what they come to,
//! does the chain hold. Everything here reads, and decides with the very stages of the path; none of it signs a quote.

pub mod apart;
pub mod calendar;
pub mod cases;
pub mod diff;
pub mod exported;
pub mod forecast;
pub mod golive;
pub mod journal;
pub mod replay;
