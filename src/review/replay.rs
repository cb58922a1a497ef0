//! What a bundle would have decided of quotes that were signed: each is put to it as it came, at the time at which it
//! was signed, by the caller that the journal names.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::forecast::{Decision, Forecast, Question, forecast};
use crate::{
    audit::{Event, Record},
    domain::Identity,
    json::Limits,
    ledger::{EngineError, Journal, Reads, Stretch, step::Stage},
    policy::{Bundle, Partner},
};

/// How many records are read at once.
const PAGE: u32 = 1000;

/// A quote that would be decided otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Otherwise {
    /// The audit record of its commit.
    pub record: String,
    /// When it was signed.
    pub at: String,
    /// Who asked.
    pub caller: String,
    /// Whose it is.
    pub partner: String,
    /// Its id.
    pub quote_id: String,
    /// Its number.
    pub sequence: Option<u64>,
    /// The stable reason for which it would be refused; absent where another key would sign.
    pub reason: Option<String>,
    /// Why, or which key instead of which.
    pub why: String,
}

/// What came of a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// Quotes that would be signed again, with the same key.
    pub same: u64,
    /// Those among them that other rules would permit.
    pub by_other_rules: u64,
    /// Quotes that would be decided otherwise.
    pub otherwise: Vec<Otherwise>,
    /// Signed, and their payload is not held any more.
    pub payload_gone: u64,
    /// Signed, and the journal does not say for whom.
    pub caller_unknown: u64,
}

/// Puts to `policy` every quote that the journal says was signed and that was so from `since` on.
///
/// # Errors
/// Where the ledger cannot be read.
pub fn replay(
    policy: &Bundle,
    limits: &Limits,
    journal: &dyn Journal,
    reads: &mut dyn Reads,
    since: i64,
) -> Result<Replay, EngineError> {
    let mut replay = Replay::default();
    for Stretch { lane, first, .. } in journal.lanes()? {
        let mut from = first.next_index;
        loop {
            let page = journal.records(&lane, from, PAGE)?;
            let Some(last) = page.last() else { break };
            from = last.index.saturating_add(1);
            for stored in &page {
                let record = stored.record()?;
                if record.event == Event::Committed && record.at.millis() >= since {
                    replay.put(policy, limits, reads, &record)?;
                }
            }
        }
    }
    Ok(replay)
}

impl Replay {
    fn put(
        &mut self,
        policy: &Bundle,
        limits: &Limits,
        reads: &mut dyn Reads,
        record: &Record,
    ) -> Result<(), EngineError> {
        let context = &record.context;
        let (Some(caller), Some(partner), Some(quote_id)) = (&context.caller, &context.partner, &context.quote_id)
        else {
            self.caller_unknown += 1;
            return Ok(());
        };
        let held = reads.quote(&Identity::new(context.environment, partner, quote_id))?;
        let signed = held.and_then(|quote| match quote.stage {
            Stage::Signed { jws, .. } => jws.parts().ok().map(|parts| parts.payload),
            Stage::Reserved | Stage::Voided => None,
        });
        let Some(payload) = signed.and_then(|signed| as_sent(policy, &signed)) else {
            self.payload_gone += 1;
            return Ok(());
        };
        let question = Question {
            caller: caller.clone(),
            payload,
            quote_id: quote_id.to_string(),
            values_fixed_at: context.values_fixed_at,
            at: record.at,
            is_reserved: true,
            signed_before: 0,
        };
        let found = forecast(policy, limits, &question);
        match differs(&found, record) {
            None => {
                self.same += 1;
                self.by_other_rules += u64::from(found.rules != context.rule_ids);
            }
            Some((reason, why)) => self.otherwise.push(Otherwise {
                record: record.id.to_string(),
                at: record.at.to_string(),
                caller: caller.to_string(),
                partner: partner.to_string(),
                quote_id: quote_id.to_string(),
                sequence: record.facts.sequence.map(crate::domain::SequenceNumber::get),
                reason,
                why,
            }),
        }
        Ok(())
    }
}

/// Why it is otherwise: the stable reason, where it would be refused, and a text.
fn differs(found: &Forecast, record: &Record) -> Option<(Option<String>, String)> {
    if found.decision != Decision::Allow {
        let reason = found.reason().unwrap_or_default().to_owned();
        let places: Vec<String> = found.violations().iter().map(|(place, why)| format!("{place} {why}")).collect();
        let why = found.refusal.as_ref().map(ToString::to_string).unwrap_or_default();
        let why = if places.is_empty() { why } else { format!("{why}: {}", places.join("; ")) };
        return Some((Some(reason), why));
    }
    let (now, then) = (found.kid.as_ref()?, record.facts.kid.as_ref()?);
    (now != then).then(|| (None, format!("`{now}` would sign it instead of `{then}`")))
}

/// The payload as the caller sent it: without its number where the gateway gives it.
fn as_sent(policy: &Bundle, signed: &[u8]) -> Option<Vec<u8>> {
    let mut quote: Map<String, Value> = serde_json::from_slice(signed).ok()?;
    if let Some(contract) = policy.contract_of(&quote).map(Arc::clone) {
        let assigned = policy.partner_of(&quote, &contract.claims.partner).is_some_and(Partner::is_assigned_numbers);
        if assigned {
            quote.remove(&contract.claims.sequence);
        }
    }
    serde_json::to_vec(&quote).ok()
}
