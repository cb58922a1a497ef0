//! The shape of `policy.toml`. Every field is known; what is unknown is refused.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    clock::UtcTime,
    domain::{Caller, Corridor, Environment, Kid, PartnerId},
    money::Rounding,
};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyFile {
    pub environment: Environment,
    pub serial: u64,
    pub partners: Vec<PartnerEntry>,
    pub callers: Vec<CallerEntry>,
    pub contracts: Vec<ContractEntry>,
    pub validity: Validity,
    pub publication: Publication,
    pub rotation: Rotation,
    pub quotas: Quotas,
    pub volume: Volume,
    pub two_callers: TwoCallersEntry,
    #[serde(default)]
    pub keys: Vec<KeyEntry>,
}

/// Which acts need two operators.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TwoCallersEntry {
    pub acts: Vec<String>,
    pub within_s: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartnerEntry {
    pub id: PartnerId,
    pub contracts: Vec<String>,
    pub jwks_hosts: Vec<String>,
    pub jwks_url: Option<String>,
    pub sequence: SequenceRule,
    pub contacts: BTreeMap<String, String>,
}

/// How a partner's quotes are numbered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceRule {
    /// The parts that name a sequence.
    pub scope: Vec<ScopePart>,
    /// Who gives the numbers.
    #[serde(default)]
    pub mode: SequenceMode,
    /// How far beyond the last number a number may lie.
    pub jump_max: u64,
}

/// Who gives a sequence's numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SequenceMode {
    /// The caller; each must be greater than the last one taken.
    #[default]
    Verify,
    /// The gateway; a quote comes without its sequence claim.
    Assign,
}

/// A part of a sequence's scope. Customer data is never one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopePart {
    /// The partner; always the first.
    Partner,
    /// The corridor.
    Corridor,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CallerEntry {
    pub id: Caller,
    pub roles: Vec<String>,
    /// For the reader of the file alone.
    #[serde(rename = "about")]
    pub _about: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ContractEntry {
    pub name: String,
    pub version: VersionMark,
    pub schema: String,
    pub claims: Claims,
    pub money: MoneyRules,
}

/// The claim and value by which a payload says which contract it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionMark {
    /// The claim.
    pub claim: String,
    /// Its value.
    pub value: String,
}

/// Which claim plays which part.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The partner.
    pub partner: String,
    /// The customer's subscription reference.
    pub subscription: String,
    /// The quote's id; where a contract has no such claim, the request's own field gives it.
    pub quote_id: Option<String>,
    /// The number in the sequence.
    pub sequence: String,
    /// The corridor.
    pub corridor: String,
    /// When the quote was issued.
    pub issued_at: String,
    /// When it ends.
    pub expires_at: String,
    /// What the customer sends.
    pub send_amount: String,
    /// In which currency.
    pub send_currency: String,
    /// What arrives.
    pub receive_amount: String,
    /// In which currency.
    pub receive_currency: String,
    /// Receive units for one send unit.
    pub rate: String,
    /// The partner's fee.
    pub partner_fee: String,
    /// The principal's fee.
    pub principal_fee: String,
    /// What the customer pays in all.
    pub total: String,
}

/// The rules across the money claims.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoneyRules {
    /// The currency of the fees and the total.
    pub fees_in: FeesIn,
    /// What the total is.
    pub total: TotalRule,
    /// How send x rate becomes the receive amount.
    pub receive_rounding: Rounding,
    /// The send and the receive currency of each corridor. Where it names any, a quote is of one of them and in its
    /// currencies; where it names none, that is left to `authorize.cedar`.
    #[serde(default)]
    pub corridors: BTreeMap<Corridor, [String; 2]>,
}

/// The currency of the fees and the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeesIn {
    /// The send currency.
    Send,
}

/// What the total is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum TotalRule {
    /// Send amount, partner fee and principal fee together.
    #[serde(rename = "send + partner_fee + principal_fee")]
    SendAndFees,
}

/// The bounds on a quote's times, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validity {
    /// How far `issued_at` may lie in the future.
    pub clock_skew_s: u32,
    /// The longest time from `issued_at` to `expires_at`.
    pub longest_s: u32,
    /// A quote that ends sooner than this is not worth signing.
    pub useful_s: u32,
    /// How long after its expiry a quote may still be presented and must still be verifiable.
    pub late_acceptance_s: u32,
    /// Whether callers must say when the values shown to the customer were fixed.
    #[serde(default)]
    pub values_fixed_at: ValuesFixedAt,
}

/// Whether callers must say when the values shown to the customer were fixed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValuesFixedAt {
    /// They may.
    #[default]
    Optional,
    /// They must.
    Required,
}

/// How keys are made known before they sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// How long a key stands in the JWKS before it may sign, in seconds.
    pub propagation_s: u32,
}

/// What is asked of the timeline of keys as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// The longest time from a key's `publish_at` to its `sign_until`, in days.
    pub key_age_max_days: u32,
    /// How long before something runs out it is warned of, in days.
    pub warn_ahead_days: u32,
}

/// What callers and partners may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quotas {
    /// Calls of one caller, counted in memory before anything is parsed.
    pub attempts_per_caller: Quota,
    /// Signed quotes of one partner, counted in the ledger.
    pub signed_per_partner: SignedQuota,
    /// Signed quotes of one caller, counted in the ledger.
    pub signed_per_caller: SignedQuota,
    /// Signed quotes of one key, counted in the ledger.
    pub signed_per_key: SignedQuota,
}

/// When a key signs so much that it is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// More signatures than this in an hour.
    pub warn_per_hour: std::num::NonZeroU32,
    /// More than so many times what the key signs in an hour otherwise.
    pub warn_times_usual: std::num::NonZeroU32,
    /// So few in an hour are never unusual.
    pub ignore_below: u32,
}

/// A rate with a burst, and how many in a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedQuota {
    /// How many come back in a second.
    pub per_second: std::num::NonZeroU32,
    /// How many may be used at once.
    pub burst: std::num::NonZeroU32,
    /// How many in each day of UTC; as many as the rate gives where it is absent.
    pub per_day: Option<std::num::NonZeroU32>,
}

/// A rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// How many come back in a second.
    pub per_second: std::num::NonZeroU32,
    /// How many may be used at once.
    pub burst: std::num::NonZeroU32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyEntry {
    pub kid: Kid,
    pub partner: PartnerId,
    /// The signers that hold it, the preferred one first.
    pub signer: OneOrMany,
    /// Where they find it: one for all of them, or one for each.
    pub locator: OneOrMany,
    #[serde(default)]
    pub attributes: AttributesRule,
    pub attributes_reason: Option<String>,
    pub publish_at: UtcTime,
    pub confirmed: Option<Confirmation>,
    pub sign_from: UtcTime,
    pub sign_until: UtcTime,
    pub retire_at: UtcTime,
    #[serde(default)]
    pub standby: bool,
    pub emergency: Option<String>,
}

/// What may be written alone where there is one.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a text, or a list of texts")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// What is done about a key whose attributes do not show that it was generated on its device and cannot leave it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttributesRule {
    /// It does not sign.
    #[default]
    Require,
    /// It signs, and the log says so. Outside development the bundle must say why.
    Warn,
    /// Nobody looks; in development alone.
    Off,
}

/// The operator's word that it knows a key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// When it was given.
    pub at: UtcTime,
    /// Where it is on record.
    #[serde(rename = "ref")]
    pub reference: String,
}
