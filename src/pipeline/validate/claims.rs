//! Reads the claims that play a part into types, with exact money and the rules across claims.

use serde_json::{Map, Value};

use crate::{
    clock::UtcTime,
    domain::{Corridor, Malformed, PartnerId, QuoteId, SequenceNumber},
    money::{Currencies, Currency, Minor, Rate},
    policy::contract::{Contract, Violation},
    terms::Terms,
};

use super::at;

/// Reads claims into types. What is wrong is noted and reading goes on, so that all of it is told at once.
pub(super) struct Claims<'a> {
    pub quote: &'a Map<String, Value>,
    pub currencies: &'a Currencies,
    pub violations: &'a mut Vec<Violation>,
}

/// What could be read. Every rule looks at the claims that it needs, whatever became of the others.
#[derive(Debug)]
pub(super) struct Claimed {
    pub partner: Option<PartnerId>,
    pub quote_id: Option<QuoteId>,
    pub corridor: Option<Corridor>,
    pub issued_at: Option<UtcTime>,
    pub expires_at: Option<UtcTime>,
    sequence: Option<SequenceNumber>,
    /// Whether the gateway gives the number.
    assigned: bool,
    send: Option<Minor>,
    send_currency: Option<Currency>,
    receive: Option<Minor>,
    receive_currency: Option<Currency>,
    rate: Option<Rate>,
    partner_fee: Option<Minor>,
    principal_fee: Option<Minor>,
    total: Option<Minor>,
}

impl Claimed {
    /// The terms, where every claim that plays a part could be read.
    pub(super) fn terms(self, contract: &Contract) -> Option<Terms> {
        Some(Terms {
            contract: contract.name.clone(),
            partner: self.partner?,
            quote_id: self.quote_id?,
            sequence: if self.assigned { None } else { Some(self.sequence?) },
            corridor: self.corridor?,
            send: self.send?,
            send_currency: self.send_currency?,
            receive: self.receive?,
            receive_currency: self.receive_currency?,
            partner_fee: self.partner_fee?,
            principal_fee: self.principal_fee?,
            total: self.total?,
            issued_at: self.issued_at?,
            expires_at: self.expires_at?,
        })
    }
}

impl<'a> Claims<'a> {
    /// Reads every claim that plays a part, and holds the rules across the money claims.
    pub(super) fn read_all(&mut self, contract: &Contract, beside: &str, assigned: bool) -> Claimed {
        let claims = &contract.claims;
        let send_currency = self.currency(&claims.send_currency);
        let receive_currency = self.currency(&claims.receive_currency);
        let claimed = Claimed {
            partner: self.word(&claims.partner),
            quote_id: self.quote_id(claims.quote_id.as_deref(), beside),
            sequence: if assigned { None } else { self.sequence(&claims.sequence) },
            assigned,
            corridor: self.word(&claims.corridor),
            send: self.amount(&claims.send_amount, send_currency),
            receive: self.amount(&claims.receive_amount, receive_currency),
            rate: self.rate(&claims.rate),
            partner_fee: self.amount(&claims.partner_fee, send_currency),
            principal_fee: self.amount(&claims.principal_fee, send_currency),
            total: self.amount(&claims.total, send_currency),
            issued_at: self.time(&claims.issued_at),
            expires_at: self.time(&claims.expires_at),
            send_currency,
            receive_currency,
        };
        if self.text(&claims.subscription).is_some_and(str::is_empty) {
            self.note(&claims.subscription, "is empty");
        }
        self.positive(contract, &claimed);
        self.total(contract, &claimed);
        self.conversion(contract, &claimed);
        self.corridor(contract, &claimed);
        claimed
    }

    fn positive(&mut self, contract: &Contract, claimed: &Claimed) {
        let claims = &contract.claims;
        for (claim, amount) in [(&claims.send_amount, claimed.send), (&claims.receive_amount, claimed.receive)] {
            if amount.is_some_and(|amount| amount.get() == 0) {
                self.violations.push(at(claim, "must be above zero"));
            }
        }
    }

    fn total(&mut self, contract: &Contract, claimed: &Claimed) {
        let (Some(send), Some(partner_fee), Some(principal_fee), Some(total)) =
            (claimed.send, claimed.partner_fee, claimed.principal_fee, claimed.total)
        else {
            return;
        };
        let sum = send.plus(partner_fee).and_then(|sum| sum.plus(principal_fee));
        if sum != Some(total) {
            self.violations.push(at(&contract.claims.total, "is not the send amount and both fees together"));
        }
    }

    /// The receive amount is the send amount times the rate; in one currency the rate is one, so that no rate is
    /// signed that only rounding hides.
    fn conversion(&mut self, contract: &Contract, claimed: &Claimed) {
        let (claims, rounding) = (&contract.claims, contract.money.receive_rounding);
        let (Some(from), Some(to), Some(rate)) = (claimed.send_currency, claimed.receive_currency, claimed.rate) else {
            return;
        };
        if from == to && !rate.is_one() {
            self.violations.push(at(&claims.rate, "is not one, although both currencies are the same"));
        }
        let (Some(send), Some(receive)) = (claimed.send, claimed.receive) else { return };
        if rate.convert(send, from, to, rounding) != Some(receive) {
            self.violations.push(at(
                &claims.receive_amount,
                "is not the send amount times the rate, rounded as the contract says",
            ));
        }
    }

    /// The corridor's own currencies, where the contract names them.
    fn corridor(&mut self, contract: &Contract, claimed: &Claimed) {
        let (claims, corridors) = (&contract.claims, &contract.money.corridors);
        let Some(corridor) = &claimed.corridor else { return };
        let Some([send, receive]) = corridors.get(corridor) else {
            if !corridors.is_empty() {
                self.violations.push(at(&claims.corridor, "is no corridor of this contract"));
            }
            return;
        };
        for (claim, is, must) in [
            (&claims.send_currency, claimed.send_currency, send),
            (&claims.receive_currency, claimed.receive_currency, receive),
        ] {
            if is.is_some_and(|is| is.code() != must) {
                self.violations.push(at(claim, "is not the currency of this corridor"));
            }
        }
    }

    /// A claim's text; absent (and noted by the schema already) where it is none.
    fn text(&self, claim: &str) -> Option<&'a str> {
        self.quote.get(claim).and_then(Value::as_str)
    }

    /// Reads a claim that is there; notes it where it does not fit.
    fn read<T>(&mut self, claim: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match read(self.text(claim)?) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.note(claim, &reason);
                None
            }
        }
    }

    /// Notes that a claim cannot be read, where the schema had not.
    fn note(&mut self, claim: &str, reason: &str) {
        let fault = at(claim, reason);
        if !self.violations.iter().any(|known| known.pointer == fault.pointer) {
            self.violations.push(fault);
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

    fn rate(&mut self, claim: &str) -> Option<Rate> {
        self.read(claim, |text| Rate::read(text).ok_or_else(|| "is not a rate above zero, as in `1.2345`".to_owned()))
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
