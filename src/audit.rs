//! Audit records: what was decided, for whom, under which policy, and what came of it. The ledger stores
//! them, hash-chained, in the transaction of the act they tell of. They hold digests and ids, never values
//! of a quote but the named few (quote id, sequence, partner, corridor, kid).

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    clock::UtcTime,
    domain::{Caller, CorrelationId, Corridor, Environment, Kid, PartnerId, QuoteId, SequenceNumber, sha256},
};

pub mod customer;
mod status;

pub use status::Status;

/// The version of the record's schema, in every record.
pub const SCHEMA: &str = "quotesign.audit.v1";

/// Defines the events with their names, of which there is one list.
macro_rules! events {
    ($($(#[$about:meta])* $event:ident = $name:literal,)+) => {
        /// What a record tells of.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Event {
            $($(#[$about])* #[serde(rename = $name)] $event,)+
        }

        impl Event {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$event),+];

            /// Its name in records, and wherever else it is told.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$event => $name,)+
                }
            }
        }
    };
}

events! {
    /// A number was bound to a payload, before anything was signed.
    Reserved = "quote.reserved",
    /// A reservation was bound to another kid, since its own may no longer sign.
    Rekeyed = "quote.rekeyed",
    /// A verified JWS was stored and may be released.
    Committed = "quote.committed",
    /// A reservation ended unsigned; its number is burnt.
    Voided = "quote.voided",
    /// A stored JWS was given again.
    Replayed = "quote.replayed",
    /// A call was refused.
    Refused = "quote.refused",
    /// A sequence's scope was created, or its floor raised.
    Seeded = "sequence.seeded",
    /// A kid was made known, before it was published for the first time.
    Published = "key.published",
    /// Every gateway that counts serves a key, and its registered URL shows it where policy names one.
    Served = "key.served",
    /// A key has come to another state of its timeline.
    Turned = "key.turned",
    /// A key may sign before its propagation time is over, as two operators decided.
    Activated = "key.activated",
    /// A key signed more than is usual; nothing was refused for that.
    VolumeUnusual = "key.volume_unusual",
    /// A kid was revoked; nothing of it is released from here on.
    Revoked = "key.revoked",
    /// Signing was halted.
    Halted = "signing.halted",
    /// Signing was resumed.
    Resumed = "signing.resumed",
    /// One of two operators asked for an act that needs two; nothing was done yet.
    Proposed = "act.proposed",
    /// Another operator agreed to an act that needs two; the act's own record follows.
    Agreed = "act.agreed",
    /// What the operator's API said of a quote.
    OutcomeReported = "quote.outcome_reported",
    /// A caller was suspended: nothing is done for it.
    Suspended = "caller.suspended",
    /// A caller was reinstated.
    Reinstated = "caller.reinstated",
    /// Quotes that expired long ago were forgotten; their numbers stay taken.
    Pruned = "ledger.pruned",
    /// Somebody keeps the ledger from pruning.
    HoldSet = "ledger.hold_set",
    /// Nobody of that name does any more.
    HoldReleased = "ledger.hold_released",
    /// A ledger that had gone back in time was taken as it is, and its floors raised.
    RollbackAccepted = "ledger.rollback_accepted",
    /// A ledger was given a new anchor.
    AnchorAdopted = "ledger.anchor_adopted",
    /// The journal of every gateway was bound together by a signed checkpoint.
    Checkpointed = "journal.checkpointed",
    /// Somebody read the journal.
    Read = "journal.read",
    /// A policy bundle came into force.
    PolicyLoaded = "policy.loaded",
    /// A policy bundle was refused.
    PolicyRefused = "policy.refused",
    /// A front's TLS files had changed and are in force.
    TlsReloaded = "tls.reloaded",
    /// A gateway started.
    Started = "gateway.started",
}

/// What all records of one call share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Who called; absent for what the gateway does by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Caller>,
    /// The contract the quote was held against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contract: Option<String>,
    /// Joins the call's log lines, records and answers.
    pub correlation_id: CorrelationId,
    /// The quote's corridor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corridor: Option<Corridor>,
    /// The customer, as [`customer::ReferenceKey::of`] calls it; absent where the config names no key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub customer_ref: Option<String>,
    /// Where.
    pub environment: Environment,
    /// The gateway's version.
    pub gateway_version: String,
    /// The gRPC method; absent for what the gateway does by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Who acted with a command on the ledger itself: the user of the machine where it ran.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operator: Option<String>,
    /// The partner concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partner: Option<PartnerId>,
    /// The policy bundle under which it was decided: SHA-256, lower-case hex.
    pub policy_digest: String,
    /// That bundle's serial.
    pub policy_serial: u64,
    /// The quote concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote_id: Option<QuoteId>,
    /// The Cedar rules that decided, by `@id`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rule_ids: Vec<String>,
    /// The call's span, W3C Trace Context, hex; absent where the call belongs to no trace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub span_id: Option<String>,
    /// Its trace, likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace_id: Option<String>,
    /// When the values shown to the customer were fixed, as the caller says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values_fixed_at: Option<UtcTime>,
}

impl Context {
    /// What a gateway itself can say: where, and under which policy. The rest is filled in as it is learnt.
    #[must_use]
    pub fn new(correlation_id: CorrelationId, environment: Environment, digest: String, serial: u64) -> Self {
        Self {
            correlation_id,
            environment,
            gateway_version: env!("CARGO_PKG_VERSION").to_owned(),
            policy_digest: digest,
            policy_serial: serial,
            caller: None,
            method: None,
            operator: None,
            partner: None,
            quote_id: None,
            corridor: None,
            customer_ref: None,
            values_fixed_at: None,
            contract: None,
            rule_ids: Vec::new(),
            span_id: None,
            trace_id: None,
        }
    }

    /// What a record of the call says it was answered with; nothing of what the gateway does by itself.
    #[must_use]
    pub fn answered(&self, status: Status) -> Option<Status> {
        self.method.is_some().then_some(status)
    }
}

/// One record. Its bytes are its RFC 8785 form: fields stand in the order of their names, here and in what they hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, by the gateway's clock.
    pub at: UtcTime,
    /// Who, where, under which policy.
    pub context: Context,
    /// What it tells of.
    pub event: Event,
    /// What came of it.
    #[serde(default)]
    pub facts: Facts,
    /// This record's own id.
    pub id: Uuid,
    /// [`SCHEMA`].
    pub schema: String,
}

/// What a record says beyond its context; each is absent where it does not apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The signed checkpoint, a compact JWS.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checkpoint: Option<String>,
    /// How many refusals a record stands for that were not written singly; absent on a record of one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
    /// A fixed text or a person's own words for an administrative act; no payload value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The quote's expiry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UtcTime>,
    /// What a read asked for, as `partner=acme-remit`; the name alone where the value is nobody's to know.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub filters: Vec<String>,
    /// How often the reservation was bound to a key; the first time is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// SHA-256 of the JWS signing input, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_sha256: Option<String>,
    /// SHA-256 of the compact JWS, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jws_sha256: Option<String>,
    /// The key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<Kid>,
    /// SHA-256 of the payload's RFC 8785 form, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_sha256: Option<String>,
    /// The number before it in its scope, so that a removed record shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_sequence: Option<SequenceNumber>,
    /// Who read with a command: the user of the machine where it ran.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reader: Option<String>,
    /// The stable reason of a refusal or a void; of a reported outcome, the operator's own error code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The sequence's scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<SequenceNumber>,
    /// What the call was answered with; absent where the record ends none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<Status>,
    /// What was stopped or resumed, as `revoked/<kid>` or `halted/<reach>`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stop: Option<String>,
}

impl Record {
    /// A record of `event` at `at`, with an id of its own.
    #[must_use]
    pub fn new(event: Event, at: UtcTime, context: Context, facts: Facts) -> Self {
        Self { schema: SCHEMA.to_owned(), id: Uuid::now_v7(), event, at, context, facts }
    }

    /// The record's bytes: its RFC 8785 form. That takes no sorting, as the fields are in order and hold texts, lists of
    /// texts and numbers that RFC 8785 writes as any JSON writer does.
    ///
    /// # Errors
    /// Never for a record of this type, which holds nothing that JSON cannot; the error is passed on all the same.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = Vec::with_capacity(BYTES_USUAL);
        serde_json::to_writer(&mut bytes, self)?;
        Ok(bytes)
    }
}

/// Most records are shorter.
const BYTES_USUAL: usize = 1536;

/// An id below those of all records that were made at `at` or later: ids are UUIDs of version 7, which rise with time.
#[must_use]
pub fn id_before(at: UtcTime) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(u64::try_from(at.millis()).unwrap_or_default(), &[0; 10]).into_uuid()
}

/// The leaf of a record in the hash chain: SHA-256(0x01 | bytes).
#[must_use]
pub fn leaf(record: &[u8]) -> [u8; 32] {
    sha256(&[&[0x01], record].concat())
}

/// The link of a batch: SHA-256(0x02 | link before | index of its first record, u64 big-endian | number of its
/// records, u32 big-endian | leaves).
#[must_use]
pub fn link(before: &[u8; 32], first_index: u64, leaves: &[[u8; 32]]) -> [u8; 32] {
    let count = u32::try_from(leaves.len()).unwrap_or(u32::MAX);
    let mut bytes = vec![0x02];
    bytes.extend_from_slice(before);
    bytes.extend_from_slice(&first_index.to_be_bytes());
    bytes.extend_from_slice(&count.to_be_bytes());
    bytes.extend(leaves.iter().flatten());
    sha256(&bytes)
}

/// The link before the first batch of a lane.
pub const GENESIS: [u8; 32] = [0; 32];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever texts a record holds, its bytes are those of an implementation of RFC 8785.
        #[test]
        fn a_records_bytes_are_its_canonical_form(
            texts in prop::collection::vec(any::<String>(), 8),
            serial in 0_u64..1 << 53,
            generation in any::<Option<u32>>(),
            count in prop::option::of(0_u64..1 << 53),
            at in 0_i64..4_000_000_000_000,
            status in prop::sample::select(Status::ALL),
            is_full in any::<bool>(),
        ) {
            let [digest, method, contract, rule, reason, detail, filter, reader] = <[String; 8]>::try_from(texts).unwrap();
            let mut context = Context::new(CorrelationId::made(), Environment::Sandbox, digest, serial);
            let mut facts = Facts { count, generation, ..Facts::default() };
            if is_full {
                let at = UtcTime::from_millis(at);
                context = Context {
                    caller: Some("spiffe://example.org/pricing".parse().unwrap()),
                    contract: Some(contract),
                    corridor: Some("GB-IN".parse().unwrap()),
                    customer_ref: Some("00".to_owned()),
                    method: Some(method),
                    partner: Some("acme-remit".parse().unwrap()),
                    quote_id: Some("q1".parse().unwrap()),
                    rule_ids: vec![rule.clone(), rule],
                    span_id: Some("00".to_owned()),
                    trace_id: Some("01".to_owned()),
                    values_fixed_at: Some(at),
                    ..context
                };
                facts = Facts {
                    checkpoint: Some("a.b.c".to_owned()),
                    detail: Some(detail),
                    filters: vec![filter.clone(), filter],
                    reader: Some(reader),
                    expires_at: Some(at),
                    input_sha256: Some("00".to_owned()),
                    jws_sha256: Some("01".to_owned()),
                    kid: Some("quote-a".parse().unwrap()),
                    payload_sha256: Some("02".to_owned()),
                    previous_sequence: Some(SequenceNumber::ZERO),
                    reason: Some(reason),
                    scope: Some("[]".to_owned()),
                    sequence: Some(SequenceNumber::try_from((1_u64 << 53) - 1).unwrap()),
                    status: Some(status),
                    stop: Some("halted/all".to_owned()),
                    ..facts
                };
            }
            let record = Record::new(Event::Committed, UtcTime::from_millis(at), context, facts);
            prop_assert_eq!(record.to_bytes().unwrap(), serde_jcs::to_vec(&record).unwrap());
        }
    }
}
