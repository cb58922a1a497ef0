//! Quotes that wait for their signature, as the writer left them: a commit finds its own here, and reads it from no page.

use std::collections::HashMap;

use crate::{
    domain::Identity,
    ledger::step::{Quote, Stage},
};

/// More than a gateway has under way; some 4 MB.
const QUOTES_MAX: usize = 8_192;

/// What the file holds of them. Whoever changes the file takes it away, and gives it back when the change is durable: after
/// anything else nothing is known, and all is read.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<Identity, Quote>);

impl Known {
    /// The quote, if it is known; [`Known::put`] has it back.
    pub(super) fn take(&mut self, identity: &Identity) -> Option<Quote> {
        self.0.remove(identity)
    }

    #[cfg(test)]
    pub(super) fn holds(&self, identity: &Identity) -> bool {
        self.0.contains_key(identity)
    }

    /// Keeps those of `quotes` that wait. With too many of them, some never came to their end: all are forgotten.
    pub(super) fn put(&mut self, quotes: HashMap<Identity, Quote>) {
        if self.0.len() >= QUOTES_MAX {
            self.0.clear();
        }
        self.0.extend(quotes.into_iter().filter(|(_, quote)| quote.stage == Stage::Reserved));
    }
}
