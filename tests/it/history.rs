//! Holds what clients were told against what the ledger holds. It knows nothing of how either came about, so any
//! trial can use it: kills, races, restores.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use quotesign::{
    audit::{Event, Record},
    domain::{Environment, Identity, PartnerId, PayloadDigest, QuoteId, SequenceNumber},
    jwk::PublicKey,
    jws::CompactJws,
    ledger::{
        Place,
        chain::{self, Position, StoredRecord},
        step::{self, Stage},
    },
    proto::SignQuoteResponse,
};
use serde_json::{Value, json};

use crate::harness::{Quote, Site};

/// What a client asked for and what it was told in the end. A call without an answer is not in here.
#[derive(Debug, Clone)]
pub struct Told {
    pub id: String,
    pub sequence: u64,
    pub payload: PayloadDigest,
    pub answer: Answer,
}

#[derive(Debug, Clone)]
pub enum Answer {
    Signed {
        jws: String,
        sequence: u64,
        record: String,
    },
    /// Refused for good: the number was too low.
    Refused,
}

impl Told {
    pub fn signed(quote: &Quote, answer: &SignQuoteResponse) -> Self {
        let SignQuoteResponse { jws, sequence, audit_record_id, .. } = answer.clone();
        Self { answer: Answer::Signed { jws, sequence, record: audit_record_id }, ..Self::refused(quote) }
    }

    pub fn refused(quote: &Quote) -> Self {
        Self {
            id: quote.id().to_owned(),
            sequence: quote.0["quote_sequence"].as_u64().unwrap(),
            payload: digest(&quote.0),
            answer: Answer::Refused,
        }
    }
}

fn digest(payload: &Value) -> PayloadDigest {
    PayloadDigest::of(&serde_jcs::to_vec(payload).unwrap())
}

/// All that a ledger holds, read with no gateway in the way.
#[derive(Debug, Clone)]
pub struct Store {
    pub quotes: BTreeMap<String, step::Quote>,
    /// The journal's lanes, each with where it stands.
    pub lanes: Vec<(Vec<StoredRecord>, Position)>,
    pub key: Arc<PublicKey>,
}

impl Store {
    pub fn read(site: &Site) -> Self {
        let reader = site.ledger();
        let db = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
        let mut identities = db.prepare("SELECT identity FROM quote").unwrap();
        let identities = identities.query_map((), |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap);
        let quotes = identities.map(|text| {
            let (environment, partner, id): (Environment, PartnerId, QuoteId) = serde_json::from_str(&text).unwrap();
            let quote = reader.quote(&Identity::new(environment, &partner, &id)).unwrap().unwrap();
            (id.to_string(), quote)
        });
        let lanes = vec![(reader.records(0, u32::MAX).unwrap(), reader.head().unwrap())];
        Self { quotes: quotes.collect(), lanes, key: key_of(site) }
    }

    /// The same of a ledger that several gateways write.
    pub fn shared(site: &Site, place: &Place) -> Self {
        let journal = place.journal().unwrap();
        let lanes = journal.lanes().unwrap().into_iter();
        let lanes = lanes.map(|lane| (journal.records(&lane.lane, 0, u32::MAX).unwrap(), lane.head)).collect();
        let mut engine = place.open(Environment::Development).unwrap();
        let quotes = reserved(&lanes).into_iter().filter_map(|(record, _)| {
            let (partner, id) = (record.context.partner?, record.context.quote_id?);
            let quote = engine.quote(&Identity::new(Environment::Development, &partner, &id)).unwrap()?;
            Some((id.to_string(), quote))
        });
        Self { quotes: quotes.collect(), lanes, key: key_of(site) }
    }
}

fn key_of(site: &Site) -> Arc<PublicKey> {
    let keys: Vec<_> = std::fs::read_dir(site.path("policy/keys")).unwrap().map(Result::unwrap).collect();
    let [key] = keys.as_slice() else { panic!("a trial has one key") };
    Arc::new(PublicKey::from_jwk(&std::fs::read(key.path()).unwrap()).unwrap())
}

/// The records of reservations in the order of their numbers, each with the number before it in its own lane.
fn reserved(lanes: &Vec<(Vec<StoredRecord>, Position)>) -> Vec<(Record, SequenceNumber)> {
    let mut found = Vec::new();
    for (journal, _) in lanes {
        let mut last = SequenceNumber::ZERO;
        for stored in journal {
            let Ok(record) = serde_json::from_slice::<Record>(&stored.bytes) else { continue };
            if let (Event::Reserved, Some(number)) = (record.event, record.facts.sequence) {
                found.push((record, last));
                last = number;
            }
        }
    }
    found.sort_by_key(|(record, _)| record.facts.sequence);
    found
}

/// Everything that does not hold; empty where all does. Numbers are to be asked for from 1 on, each by one quote.
pub fn faults(told: &[Told], store: &Store) -> Vec<String> {
    let mut faults = Vec::new();
    for (journal, head) in &store.lanes {
        match chain::verify(Position::GENESIS, journal.iter().cloned()) {
            Ok(summary) if summary.head == *head => {}
            Ok(_) => faults.push("the journal does not end at its head".to_owned()),
            Err(fault) => faults.push(format!("the chain is broken: {fault}")),
        }
    }
    faults.extend(told.iter().filter_map(|told| fault_of(told, store).err()));
    faults.extend(disagreements(told));
    faults.extend(shared_numbers(store));
    faults.extend(journal_faults(told, store));
    faults
}

fn holds(holds: bool, otherwise: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

/// One answer against the ledger.
fn fault_of(told: &Told, store: &Store) -> Result<(), String> {
    let Told { id, sequence, payload, answer } = told;
    let quote = store.quotes.get(id);
    let Answer::Signed { jws, sequence: given, record } = answer else {
        return holds(quote.is_none(), format!("{id} was refused, and the ledger has it"));
    };
    let released = quote.and_then(step::Quote::released).ok_or(format!("{id} was acknowledged and is not signed"))?;
    holds(released.jws.as_str() == jws, format!("{id}: the JWS told is not the stored one"))?;
    holds(given == sequence && released.sequence.get() == *sequence, format!("{id} has another number"))?;
    holds(released.payload == *payload, format!("{id} is bound to another payload"))?;
    holds(released.record.to_string() == *record, format!("{id} was told another record"))?;
    let quote = read(jws, &store.key).map_err(|fault| format!("{id}: {fault}"))?;
    holds(digest(&quote) == *payload, format!("{id}: the JWS holds another payload"))
}

/// The payload of a JWS, by means of its own: what is checked here is also the gateway's verifier.
fn read(jws: &str, key: &PublicKey) -> Result<Value, String> {
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|fault| fault.to_string());
    let (input, signature) = jws.rsplit_once('.').ok_or("the JWS has no signature")?;
    let (header, payload) = input.split_once('.').ok_or("the JWS has no payload")?;
    let wanted = format!(r#"{{"alg":"RS256","kid":"{}","typ":"JWT"}}"#, key.kid());
    holds(part(header)? == wanted.as_bytes(), "the JWS has another header")?;
    let components = RsaPublicKeyComponents { n: key.modulus(), e: key.exponent() };
    let verified = components.verify(&RSA_PKCS1_2048_8192_SHA256, input.as_bytes(), &part(signature)?);
    verified.map_err(|_| "the JWS does not verify")?;
    serde_json::from_slice(&part(payload)?).map_err(|fault| fault.to_string())
}

/// Quotes that were told two things, and numbers that two payloads were told.
fn disagreements(told: &[Told]) -> Vec<String> {
    let (mut by_quote, mut by_number) = (HashMap::new(), HashMap::new());
    let mut faults = Vec::new();
    for told in told {
        let Answer::Signed { jws, .. } = &told.answer else { continue };
        if *by_quote.entry(&told.id).or_insert(jws) != jws {
            faults.push(format!("{} has two JWS", told.id));
        }
        if *by_number.entry(told.sequence).or_insert(told.payload) != told.payload {
            faults.push(format!("the number {} was told for two payloads", told.sequence));
        }
    }
    faults
}

fn shared_numbers(store: &Store) -> Vec<String> {
    let mut owners = HashMap::new();
    let numbers = store.quotes.iter().map(|(id, quote)| (quote.sequence, id));
    let shared = numbers.filter(|(number, id)| owners.insert(*number, *id).is_some());
    shared.map(|(number, _)| format!("the number {number} has two quotes")).collect()
}

/// The journal against the quotes: each reserved once after the number before it, each signed once; and every
/// number between is one that somebody was refused.
fn journal_faults(told: &[Told], store: &Store) -> Vec<String> {
    let mut faults = Vec::new();
    let mut last = SequenceNumber::ZERO;
    let (mut owners, mut committed) = (BTreeMap::new(), HashMap::new());
    for (record, before) in reserved(&store.lanes) {
        let number = record.facts.sequence.unwrap_or(SequenceNumber::ZERO);
        let id = record.context.quote_id.as_ref().map(ToString::to_string).unwrap_or_default();
        if record.facts.previous_sequence != Some(last) || number <= last || number <= before {
            faults.push(format!("{number} was reserved out of order"));
        }
        if owners.insert(number.get(), id.clone()).is_some() {
            faults.push(format!("{number} was reserved twice"));
        }
        last = number;
    }
    for stored in store.lanes.iter().flat_map(|(journal, _)| journal) {
        let Ok(record) = serde_json::from_slice::<Record>(&stored.bytes) else {
            faults.push(format!("record {} cannot be read", stored.index));
            continue;
        };
        let id = record.context.quote_id.as_ref().map(ToString::to_string).unwrap_or_default();
        if record.event == Event::Committed && committed.insert(id.clone(), record).is_some() {
            faults.push(format!("{id} was committed twice"));
        }
    }
    let reserved = owners;
    if reserved.values().collect::<HashSet<_>>().len() != reserved.len() {
        faults.push("a quote was reserved twice".to_owned());
    }
    for (id, quote) in &store.quotes {
        if reserved.get(&quote.sequence.get()) != Some(id) {
            faults.push(format!("{id} has no record of its reservation"));
        }
        let Stage::Signed { jws, record } = &quote.stage else { continue };
        let told_of = |by: &Record| by.id == *record && by.facts.jws_sha256 == Some(jws.digest().to_string());
        if !committed.get(id).is_some_and(told_of) {
            faults.push(format!("{id} has no record of its commit"));
        }
    }
    let refused =
        |number: u64| told.iter().any(|told| told.sequence == number && matches!(told.answer, Answer::Refused));
    let gaps = (1..=last.get()).filter(|number| !reserved.contains_key(number) && !refused(*number));
    faults.extend(gaps.map(|number| format!("the number {number} is missing and nobody was refused it")));
    faults
}

/// A change to what was told or stored, and the fault it must be found by.
type Forgery = (&'static str, fn(&mut Vec<Told>, &mut Store));

const FORGERIES: [Forgery; 11] = [
    ("the JWS told is not the stored one", |told, _| {
        let Answer::Signed { jws: other, .. } = told[1].answer.clone() else { panic!() };
        let Answer::Signed { jws, .. } = &mut told[0].answer else { panic!() };
        *jws = other;
    }),
    ("does not verify", |told, store| {
        let Answer::Signed { jws, .. } = &mut told[0].answer else { panic!() };
        *jws = format!("{}AAAA", &jws[..jws.len() - 4]);
        let altered = CompactJws::from_text(jws.clone());
        let Stage::Signed { jws, .. } = &mut store.quotes.get_mut(&told[0].id).unwrap().stage else { panic!() };
        *jws = altered;
    }),
    ("is bound to another payload", |told, _| told[0].payload = PayloadDigest([9; 32])),
    ("was acknowledged and is not signed", |told, store| {
        store.quotes.get_mut(&told[0].id).unwrap().stage = Stage::Reserved;
    }),
    ("has another number", |told, _| told[0].sequence = 7),
    ("was refused, and the ledger has it", |told, _| told[0].answer = Answer::Refused),
    ("has two quotes", |told, store| {
        let number = store.quotes[&told[1].id].sequence;
        store.quotes.get_mut(&told[0].id).unwrap().sequence = number;
    }),
    ("has two JWS", |told, _| {
        let id = told[1].id.clone();
        told.push(Told { id, ..told[0].clone() });
    }),
    ("the chain is broken", |_, store| store.lanes[0].0[1].bytes.push(b' ')),
    ("does not end at its head", |_, store| drop(store.lanes[0].0.pop())),
    ("missing and nobody was refused it", |told, _| drop(told.pop())),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_checker_finds_what_is_forged_and_nothing_else() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let mut told = Vec::new();
    for number in [1, 3] {
        let quote = Quote::number(number).with("subscription_id", json!(format!("sub_{number}")));
        told.push(Told::signed(&quote, &pricing.sign(&quote).await.unwrap()));
    }
    let late = Quote::number(2);
    pricing.sign(&late).await.unwrap_err();
    told.push(Told::refused(&late));
    assert!(gateway.stop().success());
    let store = Store::read(&site);
    assert_eq!(faults(&told, &store), Vec::<String>::new());
    for (fault, forge) in FORGERIES {
        let (mut told, mut store) = (told.clone(), store.clone());
        forge(&mut told, &mut store);
        let found = faults(&told, &store);
        assert!(found.iter().any(|found| found.contains(fault)), "`{fault}` is not among {found:?}");
    }
}
