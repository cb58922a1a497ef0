//! What a quote says, read into types: the parts that policy, sequence and ledger need. Made by the validate
//! stage from a payload that keeps its contract.

use crate::{
    clock::UtcTime,
    domain::{Corridor, PartnerId, QuoteId, SequenceNumber},
    money::{Currency, Minor},
};

/// The terms of one quote. Customer references stay in the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The contract's name.
    pub contract: String,
    /// Whose quote it is.
    pub partner: PartnerId,
    /// Its id.
    pub quote_id: QuoteId,
    /// Its number; absent where the gateway is to give it.
    pub sequence: Option<SequenceNumber>,
    /// Between which places.
    pub corridor: Corridor,
    /// What is sent.
    pub send: Minor,
    /// In which currency; the fees and the total are in it too.
    pub send_currency: Currency,
    /// What arrives.
    pub receive: Minor,
    /// In which currency.
    pub receive_currency: Currency,
    /// The partner's fee.
    pub partner_fee: Minor,
    /// The principal's fee.
    pub principal_fee: Minor,
    /// What the customer pays in all.
    pub total: Minor,
    /// When it was issued.
    pub issued_at: UtcTime,
    /// From when on it is void.
    pub expires_at: UtcTime,
}
