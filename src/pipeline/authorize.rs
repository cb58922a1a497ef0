//! Asks policy whether this caller may sign this quote. Denied unless allowed; a rule that errors denies.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    audit,
    call::Call,
    policy::{
        Bundle, Partner,
        authority::{Action, Resource},
        contract::Contract,
    },
    terms::Terms,
};

use super::validate::Valid;

/// Policy does not let this caller sign this quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy does not let this caller sign this quote ({})", if rule_ids.is_empty() { "no rule permits it".to_owned() } else { rule_ids.join(", ") })]
pub struct Denied {
    /// The rules that forbid it; empty where none permits it.
    pub rule_ids: Vec<String>,
}

/// A quote with all that was learnt of it so far.
#[derive(Debug)]
pub struct Subject {
    /// The quote as sent.
    pub quote: Map<String, Value>,
    /// What it says.
    pub terms: Terms,
    /// What it keeps.
    pub contract: Arc<Contract>,
    /// Whose it is.
    pub partner: Partner,
}

/// A quote that policy lets this caller sign.
#[derive(Debug)]
pub struct Authorized(Subject);

/// Authorises the caller.
///
/// # Errors
/// Where policy does not allow it, or knows no such partner; the two look alike.
pub fn authorize(valid: Valid, policy: &Bundle, call: &Call, trail: &mut audit::Context) -> Result<Authorized, Denied> {
    let (quote, terms, contract) = valid.taken();
    let resource = Resource::Partner(&terms.partner);
    let verdict = policy.authority.decide(&call.caller, Action::SignQuote, resource, Some(&terms));
    trail.rule_ids.clone_from(&verdict.rule_ids);
    match policy.partner(&terms.partner).cloned() {
        Some(partner) if verdict.allowed => Ok(Authorized(Subject { quote, terms, contract, partner })),
        _ => Err(Denied { rule_ids: verdict.rule_ids }),
    }
}

impl Authorized {
    pub(super) fn taken(self) -> Subject {
        self.0
    }
}
