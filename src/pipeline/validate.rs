//! Holds a quote against its contract: the JSON Schema, exact money, the rules across claims, and its times.
//! Every violation is told at once, with its place and never with its value.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    audit,
    clock::UtcTime,
    domain::{Malformed, QuoteId, SequenceNumber},
    money::{Currencies, Currency, Minor, Rate},
    policy::{
        Bundle, Validity,
        contract::{Contract, Violation},
    },
    terms::Terms,
};

use super::parse::Parsed;

/// Why a quote is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It breaks its contract.
    #[error("the quote breaks its contract in {} places", .0.len())]
    Violations(Vec<Violation>),
    /// It has expired, or ends too soon to be of use.
    #[error("the quote has expired, or has less than {useful_s} s left; issue a new one under a new id")]
    Expired {
        /// The least time it must have left, in seconds.
        useful_s: u32,
    },
}

/// A quote that keeps its contract.
#[derive(Debug)]
pub struct Valid {
    /// The quote as sent.
    quote: Map<String, Value>,
    /// What it says.
    terms: Terms,
}

/// Validates a quote.
///
/// # Errors
/// Every violation at once; expiry only where all else is well.
pub fn validate(parsed: Parsed, policy: &Bundle, now: UtcTime, trail: &mut audit::Context) -> Result<Valid, Invalid> {
    let (quote, quote_id) = parsed.taken();
    let Some(contract) = policy.contract_of(&quote) else {
        return Err(Invalid::Violations(vec![Violation {
            pointer: String::new(),
            reason: "names no contract that policy knows by its version claim".to_owned(),
        }]));
    };
    let quote = Value::Object(quote);
    let mut violations = contract.violations(&quote);
    let Value::Object(quote) = quote else { return Err(Invalid::Violations(violations)) };
    let mut reader = Reader { quote: &quote, currencies: &policy.currencies, violations: &mut violations };
    let terms = reader.terms(contract, &quote_id);
    let Some(terms) = terms.filter(|_| violations.is_empty()) else {
        if violations.is_empty() {
            let reason = "the schema lets a claim pass that plays a part and cannot be read";
            violations.push(Violation { pointer: String::new(), reason: reason.to_owned() });
        }
        return Err(Invalid::Violations(violations));
    };
    trail.partner = Some(terms.partner.clone());
    trail.quote_id = Some(terms.quote_id.clone());
    trail.corridor = Some(terms.corridor.clone());
    trail.contract = Some(terms.contract.clone());
    if policy.partner(&terms.partner).is_some_and(|partner| !partner.keeps(&contract.name)) {
        violations.push(at(&contract.version.claim, "names a contract that is not this partner's"));
    }
    times(&terms, contract, &policy.validity, now, &mut violations);
    if !violations.is_empty() {
        return Err(Invalid::Violations(violations));
    }
    if terms.expires_at < now.plus(policy.validity.useful()) {
        let useful_s = policy.validity.useful_s;
        return Err(Invalid::Expired { useful_s });
    }
    Ok(Valid { quote, terms })
}

impl Valid {
    pub(super) fn taken(self) -> (Map<String, Value>, Terms) {
        let Self { quote, terms } = self;
        (quote, terms)
    }
}

fn times(terms: &Terms, contract: &Contract, validity: &Validity, now: UtcTime, violations: &mut Vec<Violation>) {
    let claims = &contract.claims;
    if terms.issued_at > now.plus(validity.clock_skew()) {
        violations.push(at(&claims.issued_at, "lies in the future"));
    }
    if terms.expires_at <= terms.issued_at {
        violations.push(at(&claims.expires_at, "is not after the time of issue"));
    } else if terms.expires_at.since(terms.issued_at) > validity.longest() {
        violations
            .push(at(&claims.expires_at, &format!("is more than {} s after the time of issue", validity.longest_s)));
    }
}

fn at(claim: &str, reason: &str) -> Violation {
    Violation { pointer: format!("/{}", claim.replace('~', "~0").replace('/', "~1")), reason: reason.to_owned() }
}

/// Reads claims into types. What is wrong is noted and reading goes on, so that all of it is told at once.
struct Reader<'a> {
    quote: &'a Map<String, Value>,
    currencies: &'a Arc<Currencies>,
    violations: &'a mut Vec<Violation>,
}

impl<'a> Reader<'a> {
    fn terms(&mut self, contract: &Contract, beside: &str) -> Option<Terms> {
        let claims = &contract.claims;
        let partner = self.word(&claims.partner);
        let quote_id = self.quote_id(claims.quote_id.as_deref(), beside);
        let sequence = self.sequence(&claims.sequence);
        let corridor = self.word(&claims.corridor);
        let send_currency = self.currency(&claims.send_currency);
        let receive_currency = self.currency(&claims.receive_currency);
        let send = self.amount(&claims.send_amount, send_currency);
        let receive = self.amount(&claims.receive_amount, receive_currency);
        let partner_fee = self.amount(&claims.partner_fee, send_currency);
        let principal_fee = self.amount(&claims.principal_fee, send_currency);
        let total = self.amount(&claims.total, send_currency);
        let issued_at = self.time(&claims.issued_at);
        let expires_at = self.time(&claims.expires_at);
        if self.text(&claims.subscription).is_some_and(str::is_empty) {
            self.violations.push(at(&claims.subscription, "is empty"));
        }
        let terms = Terms {
            contract: contract.name.clone(),
            partner: partner?,
            quote_id: quote_id?,
            sequence: sequence?,
            corridor: corridor?,
            send: send?,
            send_currency: send_currency?,
            receive: receive?,
            receive_currency: receive_currency?,
            partner_fee: partner_fee?,
            principal_fee: principal_fee?,
            total: total?,
            issued_at: issued_at?,
            expires_at: expires_at?,
        };
        self.sums(contract, &terms);
        Some(terms)
    }

    /// The rules across the money claims.
    fn sums(&mut self, contract: &Contract, terms: &Terms) {
        let claims = &contract.claims;
        for (claim, amount) in [(&claims.send_amount, terms.send), (&claims.receive_amount, terms.receive)] {
            if amount.get() == 0 {
                self.violations.push(at(claim, "must be above zero"));
            }
        }
        let total = terms.send.plus(terms.partner_fee).and_then(|sum| sum.plus(terms.principal_fee));
        if total != Some(terms.total) {
            self.violations.push(at(&claims.total, "is not the send amount and both fees together"));
        }
        let Some(rate) = self.text(&claims.rate).and_then(Rate::read) else {
            self.violations.push(at(&claims.rate, "is not a rate above zero, as in `1.2345`"));
            return;
        };
        let rounding = contract.money.receive_rounding;
        if rate.convert(terms.send, terms.send_currency, terms.receive_currency, rounding) != Some(terms.receive) {
            self.violations.push(at(
                &claims.receive_amount,
                "is not the send amount times the rate, rounded as the contract says",
            ));
        }
        if terms.send_currency == terms.receive_currency && terms.send != terms.receive {
            self.violations.push(at(&claims.receive_amount, "differs from the send amount in the same currency"));
        }
    }

    /// A claim's text; absent (and noted by the schema already) where it is none.
    fn text(&self, claim: &str) -> Option<&'a str> {
        self.quote.get(claim).and_then(Value::as_str)
    }

    /// Reads a claim that is there; notes it where it does not fit and the schema had not.
    fn read<T>(&mut self, claim: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match read(self.text(claim)?) {
            Ok(value) => Some(value),
            Err(reason) => {
                let fault = at(claim, &reason);
                if !self.violations.iter().any(|known| known.pointer == fault.pointer) {
                    self.violations.push(fault);
                }
                None
            }
        }
    }

    fn word<T: std::str::FromStr<Err = Malformed>>(&mut self, claim: &str) -> Option<T> {
        self.read(claim, |text| text.parse().map_err(|fault: Malformed| fault.to_string()))
    }

    fn time(&mut self, claim: &str) -> Option<UtcTime> {
        self.read(claim, |text| UtcTime::parse(text).map_err(|fault| fault.to_string()))
    }

    fn currency(&mut self, claim: &str) -> Option<Currency> {
        let currencies = self.currencies;
        self.read(claim, |code| currencies.get(code).ok_or_else(|| "is not a reviewed currency".to_owned()))
    }

    fn amount(&mut self, claim: &str, currency: Option<Currency>) -> Option<Minor> {
        let currency = currency?;
        self.read(claim, |text| {
            currency
                .minor_units(text)
                .ok_or_else(|| "is not a plain amount with its currency's fraction digits".to_owned())
        })
    }

    fn sequence(&mut self, claim: &str) -> Option<SequenceNumber> {
        let number = self.quote.get(claim).and_then(Value::as_u64)?;
        SequenceNumber::try_from(number).ok().filter(|number| *number > SequenceNumber::ZERO)
    }

    fn quote_id(&mut self, claim: Option<&str>, beside: &str) -> Option<QuoteId> {
        let id = match claim {
            Some(claim) => self.word::<QuoteId>(claim)?,
            None => match beside.parse() {
                Ok(id) => id,
                Err(fault) => {
                    let reason = format!("set the request's `quote_id`: {fault}");
                    self.violations.push(Violation { pointer: String::new(), reason });
                    return None;
                }
            },
        };
        if !beside.is_empty() && beside != id.as_str() {
            let reason = "differs from the request's `quote_id`";
            self.violations.push(at(claim.unwrap_or_default(), reason));
            return None;
        }
        Some(id)
    }
}
