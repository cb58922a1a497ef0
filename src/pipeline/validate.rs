//! Holds a quote against its contract: the JSON Schema, exact money, the rules across claims, and its times.
//! Every violation is told at once, with its place and never with its value.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    audit,
    clock::UtcTime,
    policy::{
        Bundle, Partner, Validity, ValuesFixedAt,
        contract::{Contract, Violation, pointer},
    },
    terms::Terms,
};

use super::parse::Parsed;

mod claims;

use claims::{Claimed, Claims};

/// Why a quote is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It breaks its contract.
    #[error("the quote breaks its contract in {} places", .0.len())]
    Violations(Vec<Violation>),
    /// It has expired. Whether it ends too soon to be worth a signature is asked where it is not signed yet.
    #[error("the quote has expired; issue a new one under a new id")]
    Expired,
}

/// A quote that keeps its contract.
#[derive(Debug)]
pub struct Valid {
    quote: Map<String, Value>,
    terms: Terms,
    contract: Arc<Contract>,
}

/// Validates a quote.
///
/// # Errors
/// Every violation at once; expiry only where all else is well.
pub fn validate(parsed: Parsed, policy: &Bundle, now: UtcTime, trail: &mut audit::Context) -> Result<Valid, Invalid> {
    let (quote, beside) = parsed.taken();
    let Some(contract) = policy.contract_of(&quote).cloned() else {
        let reason = "names no contract that policy knows by its version claim".to_owned();
        return Err(Invalid::Violations(vec![Violation { pointer: String::new(), reason }]));
    };
    let partner = policy.partner_of(&quote, &contract.claims.partner);
    let assigned = partner.is_some_and(Partner::is_assigned_numbers);
    let mut violations = against_schema(&quote, &contract, assigned);
    let mut claims = Claims { quote: &quote, currencies: &policy.currencies, violations: &mut violations };
    let claimed = claims.read_all(&contract, &beside.quote_id, assigned);
    enter(trail, &claimed, &contract, beside.values_fixed_at);
    if partner.is_some_and(|partner| !partner.keeps(&contract.name)) {
        violations.push(at(&contract.version.claim, "names a contract that is not this partner's"));
    }
    times(&claimed, &contract, &policy.validity, now, &mut violations);
    values_fixed(beside.values_fixed_at, &policy.validity, now, &mut violations);
    let Some(terms) = claimed.terms(&contract).filter(|_| violations.is_empty()) else {
        if violations.is_empty() {
            violations.push(at("", "lets a claim pass its schema that plays a part and cannot be read"));
        }
        return Err(Invalid::Violations(violations));
    };
    if terms.expires_at <= now {
        return Err(Invalid::Expired);
    }
    Ok(Valid { quote, terms, contract })
}

impl Valid {
    /// What it says.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(super) fn taken(self) -> (Map<String, Value>, Terms, Arc<Contract>) {
        (self.quote, self.terms, self.contract)
    }
}

/// What the schema says. Where the gateway is to give the number, the quote must come without it, and is looked
/// at as if it had one.
fn against_schema(quote: &Map<String, Value>, contract: &Contract, assigned: bool) -> Vec<Violation> {
    let claim = &contract.claims.sequence;
    if !assigned {
        return contract.violations(&Value::Object(quote.clone()));
    }
    let mut numbered = quote.clone();
    let sent = numbered.insert(claim.clone(), 1.into()).is_some();
    let mut violations = contract.violations(&Value::Object(numbered));
    if sent {
        violations.push(at(claim, "is given by the gateway; leave it out"));
    }
    violations
}

/// What the records of this call say of the quote from here on: what could be read of it.
fn enter(trail: &mut audit::Context, claimed: &Claimed, contract: &Contract, values_fixed_at: Option<UtcTime>) {
    trail.partner.clone_from(&claimed.partner);
    trail.quote_id.clone_from(&claimed.quote_id);
    trail.corridor.clone_from(&claimed.corridor);
    trail.contract = Some(contract.name.clone());
    trail.values_fixed_at = values_fixed_at;
}

fn times(claimed: &Claimed, contract: &Contract, validity: &Validity, now: UtcTime, violations: &mut Vec<Violation>) {
    let claims = &contract.claims;
    let Some(issued_at) = claimed.issued_at else { return };
    if issued_at > now.plus(validity.clock_skew()) {
        violations.push(at(&claims.issued_at, "lies in the future"));
    }
    let Some(expires_at) = claimed.expires_at else { return };
    if expires_at <= issued_at {
        violations.push(at(&claims.expires_at, "is not after the time of issue"));
    } else if expires_at.since(issued_at) > validity.longest() {
        let most = format!("is more than {} s after the time of issue", validity.longest_s);
        violations.push(at(&claims.expires_at, &most));
    }
}

/// The request's own field, so no JSON Pointer into the quote names it.
fn values_fixed(at: Option<UtcTime>, validity: &Validity, now: UtcTime, violations: &mut Vec<Violation>) {
    let reason = match at {
        None if validity.values_fixed_at == ValuesFixedAt::Required => "must be set in the request",
        Some(at) if at > now.plus(validity.clock_skew()) => "lies in the future",
        _ => return,
    };
    violations.push(Violation { pointer: "values_fixed_at".to_owned(), reason: reason.to_owned() });
}

fn at(claim: &str, reason: &str) -> Violation {
    Violation { pointer: pointer(claim), reason: reason.to_owned() }
}
