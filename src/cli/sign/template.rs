//! A quote of the shipped contract from which fresh ones are made: what an example cannot keep is filled in.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::clock::{Clock as _, SystemClock, UtcTime};

/// A quote with claims that go stale.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Template {
    quote: Map<String, Value>,
    partner: String,
    /// Quotes keep the length of validity.
    valid_for: Duration,
}

impl Template {
    pub(in crate::cli) fn read(payload: &[u8]) -> Result<Self, String> {
        let quote: Map<String, Value> = serde_json::from_slice(payload).map_err(|fault| fault.to_string())?;
        let text = |claim: &str| quote.get(claim).and_then(Value::as_str);
        let partner = text("partner_id").ok_or("the quote has no `partner_id`")?.to_owned();
        let time = |claim| text(claim).and_then(|text| UtcTime::parse(text).ok());
        let (Some(issued), Some(expires)) = (time("issued_at"), time("expires_at")) else {
            return Err("the quote has no `issued_at` and `expires_at` to take its validity from".to_owned());
        };
        Ok(Self { quote, partner, valid_for: expires.since(issued) })
    }

    pub(in crate::cli) fn partner(&self) -> &str {
        &self.partner
    }

    /// Empty where it has none.
    pub(in crate::cli) fn corridor(&self) -> &str {
        self.quote.get("corridor").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether it has a number of its own.
    pub(in crate::cli) fn has_number(&self) -> bool {
        self.quote.contains_key("quote_sequence")
    }

    /// The same with another claim.
    pub(in crate::cli) fn with(mut self, claim: &str, value: &str) -> Self {
        self.quote.insert(claim.to_owned(), json!(value));
        self
    }

    /// A quote with this id, issued then; without a number, where the gateway gives it.
    pub(in crate::cli) fn fill(&self, id: &str, sequence: Option<u64>, issued: UtcTime) -> Map<String, Value> {
        let mut quote = self.quote.clone();
        quote.insert("quote_id".to_owned(), json!(id));
        match sequence {
            Some(number) => drop(quote.insert("quote_sequence".to_owned(), json!(number))),
            None => drop(quote.remove("quote_sequence")),
        }
        quote.insert("issued_at".to_owned(), json!(issued));
        quote.insert("expires_at".to_owned(), json!(issued.plus(self.valid_for)));
        quote
    }
}

/// This moment, as the contract spells times.
pub(in crate::cli) fn this_second() -> UtcTime {
    let now = SystemClock.now();
    UtcTime::from_millis(now.millis() - now.millis().rem_euclid(1000))
}
