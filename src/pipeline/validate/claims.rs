//! Reads the claims that play a part into types, with exact money and the rules across claims.

use serde_json::{Map, Value};

use crate::{
    clock::UtcTime,
    domain::{Malformed, QuoteId, SequenceNumber},
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

impl<'a> Claims<'a> {
    /// What the quote says; absent where a claim that plays a part cannot be read.
    pub(super) fn terms(&mut self, contract: &Contract, beside: &str, assigned: bool) -> Option<Terms> {
        let claims = &contract.claims;
        let partner = self.word(&claims.partner);
        let quote_id = self.quote_id(claims.quote_id.as_deref(), beside);
        let sequence = if assigned { Some(None) } else { self.sequence(&claims.sequence).map(Some) };
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
        self.corridor(contract, terms);
        let Some(rate) = self.text(&claims.rate).and_then(Rate::read) else {
            self.note(&claims.rate, "is not a rate above zero, as in `1.2345`");
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

    /// The corridor's own currencies, where the contract names them.
    fn corridor(&mut self, contract: &Contract, terms: &Terms) {
        let (claims, corridors) = (&contract.claims, &contract.money.corridors);
        let Some([send, receive]) = corridors.get(&terms.corridor) else {
            if !corridors.is_empty() {
                self.violations.push(at(&claims.corridor, "is no corridor of this contract"));
            }
            return;
        };
        for (claim, is, must) in [
            (&claims.send_currency, terms.send_currency, send),
            (&claims.receive_currency, terms.receive_currency, receive),
        ] {
            if is.code() != must {
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
