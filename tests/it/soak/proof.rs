//! What is held against each other at the end: what clients were told, what the ledger holds, what the journal says, what the collector
//! got. The files are read as streams, so that an hour's journal fits.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use quotesign::domain::sha256;
use serde::Serialize;
use serde_json::Value;

use super::load::Told;
use crate::{collector::Collector, harness::Site, server::Database};

/// How many of each fault; all are to be 0.
#[derive(Debug, Default, Serialize)]
pub struct Proof {
    pub answers: u64,
    pub records: u64,
    pub shipped: u64,
    /// Answers that the ledger does not hold as they were told.
    pub lost_from_ledger: u64,
    /// Answers that the journal does not have exactly one record of, by id and digest.
    pub lost_from_journal: u64,
    /// Records that the collector did not get.
    pub lost_from_collector: u64,
    /// Records that came twice or more, each the same; no fault.
    pub came_again: u64,
    /// Records that the collector got and the journal does not have.
    pub never_journalled: u64,
    /// Numbers of a sequence with two payloads, among answers and records.
    pub duplicates: u64,
    /// Numbers that a lane was told and that are not one after another.
    pub gaps: u64,
    pub journal_verifies: bool,
}

impl Proof {
    pub fn is_clean(&self) -> bool {
        let faults = [
            self.lost_from_ledger,
            self.lost_from_journal,
            self.lost_from_collector,
            self.never_journalled,
            self.duplicates,
            self.gaps,
        ];
        self.journal_verifies && faults == [0; 6]
    }
}

/// Holds all of it against each other. No gateway runs any more.
pub fn proof(site: &Site, database: &Database, collector: &Collector, told: &[Told]) -> Proof {
    let verified = site.run(&["audit", "verify"]);
    if !verified.status.success() {
        println!("{}", String::from_utf8_lossy(&verified.stderr));
    }
    let mut proof = Proof { journal_verifies: verified.status.success(), ..Proof::default() };
    proof.answers = told.len() as u64;
    answers(&mut proof, told);
    ledger(&mut proof, database, told);
    let records = journal(&mut proof, site, told);
    shipped(&mut proof, collector, &records);
    proof
}

fn answers(proof: &mut Proof, told: &[Told]) {
    let mut owners = HashMap::new();
    let mut lanes: HashMap<&str, Vec<u64>> = HashMap::new();
    for told in told {
        if *owners.entry((&told.corridor, told.number)).or_insert(told.jws_sha256) != told.jws_sha256 {
            proof.duplicates += 1;
        }
        lanes.entry(&told.corridor).or_default().push(told.number);
    }
    // A lane asks for one number after another, and nobody else has its sequence.
    let is_out = |numbers: &[u64]| numbers.iter().zip(1..).filter(|(number, at)| **number != *at).count() as u64;
    proof.gaps = lanes.values().map(|numbers| is_out(numbers)).sum();
}

fn ledger(proof: &mut Proof, database: &Database, told: &[Told]) {
    let rows = database.sql(
        "COPY (SELECT sequence, encode(sha256(convert_to(jws, 'UTF8')), 'hex'), kid, identity FROM quote WHERE state = 2) TO STDOUT",
    );
    let mut held = HashMap::new();
    for row in rows.lines() {
        let mut columns = row.splitn(4, '\t');
        let [number, digest, kid] = [(); 3].map(|()| columns.next().unwrap().to_owned());
        // An identity is environment, partner and quote id.
        let identity: (String, String, String) = serde_json::from_str(columns.next().unwrap()).unwrap();
        held.insert(identity.2, (number.parse::<u64>().unwrap(), digest, kid));
    }
    let is_lost =
        |told: &&Told| held.get(&told.id) != Some(&(told.number, hex::encode(told.jws_sha256), told.kid.clone()));
    proof.lost_from_ledger = told.iter().filter(is_lost).count() as u64;
}

/// Gives the digest of every record.
fn journal(proof: &mut Proof, site: &Site, told: &[Told]) -> HashSet<[u8; 32]> {
    let mut export = site.command();
    export.args(["audit", "export", "--config"]).arg(site.config()).stdout(Stdio::piped());
    let mut export = export.spawn().unwrap();
    let (mut records, mut committed) = (HashSet::new(), HashMap::new());
    let mut payloads: HashMap<(String, u64), String> = HashMap::new();
    for line in BufReader::new(export.stdout.take().unwrap()).lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let Some(text) = line["record"].as_str() else { continue };
        records.insert(sha256(text.as_bytes()));
        let record: Value = serde_json::from_str(text).unwrap();
        let (context, facts) = (&record["context"], &record["facts"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if let (Some(number), Some(payload)) = (facts["sequence"].as_u64(), facts["payload_sha256"].as_str()) {
            let owner = payloads.entry((text(&context["corridor"]), number)).or_insert_with(|| payload.to_owned());
            proof.duplicates += u64::from(owner != payload);
        }
        if record["event"] == "quote.committed" {
            let told_of = (text(&record["id"]), text(&facts["jws_sha256"]));
            committed.entry(text(&context["quote_id"])).or_insert_with(Vec::new).push(told_of);
        }
    }
    assert!(export.wait().unwrap().success());
    let is_lost = |told: &&Told| {
        let one = (told.record.clone(), hex::encode(told.jws_sha256));
        committed.get(&told.id).is_none_or(|records| *records != [one])
    };
    proof.lost_from_journal = told.iter().filter(is_lost).count() as u64;
    proof.records = records.len() as u64;
    records
}

fn shipped(proof: &mut Proof, collector: &Collector, records: &HashSet<[u8; 32]>) {
    let mut came = HashSet::new();
    collector.bodies(|body| {
        let digest = sha256(body.as_bytes());
        proof.never_journalled += u64::from(!records.contains(&digest));
        proof.came_again += u64::from(!came.insert(digest));
    });
    proof.shipped = came.len() as u64;
    // The export that was just made is a read, whose own record came after the gateways were gone.
    proof.lost_from_collector = records.difference(&came).count() as u64;
}

/// A proof that cannot fail proves nothing: each forgery of what was told is found.
#[test]
fn what_is_forged_among_answers_is_found() {
    let told = |number: u64, digest: u8| Told {
        corridor: "GB-0".to_owned(),
        number,
        id: format!("q{number}"),
        kid: String::new(),
        jws_sha256: [digest; 32],
        record: String::new(),
    };
    let look = |all: &[Told]| {
        let mut proof = Proof { journal_verifies: true, ..Proof::default() };
        answers(&mut proof, all);
        (proof.duplicates, proof.gaps, proof.is_clean())
    };
    assert_eq!(look(&[told(1, 1), told(2, 2)]), (0, 0, true));
    assert_eq!(look(&[told(1, 1), told(1, 2)]), (1, 1, false));
    assert_eq!(look(&[told(1, 1), told(3, 3)]), (0, 1, false));
}
