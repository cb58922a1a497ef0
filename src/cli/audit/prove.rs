//! `quotesign audit checkpoint`, `prove` and `verify-proof`: what somebody keeps of a journal, and how one record is shown to them.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    audit::{Event, Record},
    cli::{
        ConfigPath, Failure,
        noted::{Noted, filter},
        out::say,
    },
    domain::{PartnerId, QuoteId},
    jwk::PublicKey,
    ledger::Journal,
    notary::{
        checkpoint::Checkpoint,
        proof::{self, Proof},
    },
    review::{exported, journal::Wanted},
};

use super::{absent, each, into_file};

/// The public keys that checkpoints are held against.
#[derive(Debug, Args)]
pub(super) struct Keys {
    /// The public JWK of a key that signs checkpoints; may be given again, for the keys before it.
    #[arg(long = "key", value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Keys {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn load(&self) -> Result<Vec<PublicKey>, Failure> {
        self.files.iter().map(|file| PublicKey::from_jwk(&read(file)?).map_err(|fault| named(file, fault))).collect()
    }
}

fn named(file: &Path, fault: impl std::fmt::Display) -> Failure {
    Failure::unfit(format!("{}: {fault}", file.display()))
}

/// No checkpoint and no proof is larger.
const BYTES_MAX: u64 = 16 << 20;

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).and_then(|opened| opened.take(BYTES_MAX).read_to_end(&mut bytes));
    opened.map(|_| bytes).map_err(|fault| named(file, fault))
}

pub(super) fn text(file: &Path) -> Result<String, Failure> {
    String::from_utf8(read(file)?).map_err(|_| named(file, "it is no text"))
}

/// Writes a line to a new file for its owner alone, or to standard output.
fn put(file: Option<&Path>, text: &str) -> Result<(), Failure> {
    if let Some(file) = file {
        return into_file(file, |out| writeln!(out, "{text}").map_err(Failure::failed));
    }
    say!("{text}");
    Ok(())
}

/// Prints a checkpoint and what it binds.
pub(super) fn tell(checkpoint: &Checkpoint) {
    say!("checkpoint {} of {}: {} links", checkpoint.at, checkpoint.origin, checkpoint.tree.size());
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Newest {
    #[command(flatten)]
    path: ConfigPath,
    /// Write it here, never over a file that is there; to standard output where it is not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Newest {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let none = "there is no checkpoint yet; the gateway makes them where `audit.checkpoint` names a key";
        let section = config.audit.checkpoint.as_ref().ok_or_else(|| Failure::failed(none))?;
        let keys = section.keys().map_err(Failure::unfit)?;
        let ledger = Noted::open(&config, "audit checkpoint", Vec::new())?;
        let newest = ledger.journal()?.newest_checkpoint().map_err(Failure::failed)?;
        let (size, jws) = newest.ok_or_else(|| Failure::failed(none))?;
        // What somebody keeps is what a gateway has signed.
        let opened = Checkpoint::open(&jws, &keys);
        let opened =
            opened.map_err(|fault| Failure::failed(format!("the newest checkpoint in the ledger: {fault}")))?;
        if opened.tree.size() != size {
            return Err(Failure::failed(
                "the newest checkpoint in the ledger is not the one that its row says: SOMEBODY CHANGED IT",
            ));
        }
        put(self.out.as_deref(), &jws)
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Prove {
    #[command(flatten)]
    path: ConfigPath,
    /// Prove the signing of this quote.
    #[arg(long, value_name = "ID", required_unless_present = "record")]
    quote: Option<QuoteId>,
    /// The partner of the quote, where several have one of this id.
    #[arg(long, value_name = "ID")]
    partner: Option<PartnerId>,
    /// Prove this very record.
    #[arg(long, value_name = "ID", conflicts_with_all = ["quote", "partner"])]
    record: Option<Uuid>,
    /// The checkpoint that the holder keeps; the ledger's newest where it is not given.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Write the proof here, never over a file that is there; to standard output where it is not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Prove {
    pub(super) fn run(self) -> Result<(), Failure> {
        let ledger = Noted::open(&self.path.load()?, "audit prove", self.told())?;
        let journal = ledger.journal()?;
        let id = match (self.record, &self.quote) {
            (Some(id), _) => id,
            (None, quote) => self.signing_of(&ledger, &*journal, quote.clone())?,
        };
        let (lane, index) = place(&*journal, &id)?;
        let held = self.checkpoint.as_deref().map(held).transpose()?;
        let size = held.as_ref().map(|held| held.tree.size());
        let proof = proof::prove(&*journal, &lane, index, size).map_err(Failure::failed)?;
        if let Some(held) = held {
            let proven = Checkpoint::unverified(&proof.checkpoint).map_err(Failure::failed)?;
            if proven.digest() != held.digest() {
                return Err(Failure::failed(
                    "--checkpoint: the ledger has another one there: it was written anew, or this is another ledger's",
                ));
            }
        }
        let text = serde_json::to_string_pretty(&proof).map_err(Failure::failed)?;
        put(self.out.as_deref(), &text)
    }

    fn told(&self) -> Vec<String> {
        let Self { quote, partner, record, .. } = self;
        let told =
            [filter("quote", quote.as_ref()), filter("partner", partner.as_ref()), filter("record", record.as_ref())];
        told.into_iter().flatten().collect()
    }

    /// The record of the quote's commit.
    fn signing_of(&self, ledger: &Noted, journal: &dyn Journal, quote_id: Option<QuoteId>) -> Result<Uuid, Failure> {
        let event = Some(Event::Committed.name().to_owned());
        let wanted = Wanted { quote_id, partner: self.partner.clone(), event, ..Wanted::default() };
        let mut found: Vec<Record> = Vec::new();
        each(ledger, &wanted, |record| {
            found.push(record);
            Ok(())
        })?;
        match found.as_slice() {
            [one] => Ok(one.id),
            [] => {
                let pruned = exported::pruned(journal).map_err(Failure::failed)?;
                Err(Failure::failed(format!(
                    "the journal holds no signing of this quote{pruned}; `quotesign audit tail --quote` shows what it does, and --record proves any record",
                )))
            }
            _ => Err(Failure::unfit("several partners have a quote of this id; name one with --partner")),
        }
    }
}

fn held(file: &Path) -> Result<Checkpoint, Failure> {
    Checkpoint::unverified(text(file)?.trim_end()).map_err(|fault| named(file, fault))
}

/// In which lane a record is, and where.
fn place(journal: &dyn Journal, id: &Uuid) -> Result<(String, u64), Failure> {
    let record = journal.record(id).map_err(Failure::failed)?.map_or_else(|| Err(absent(journal, id)), Ok)?;
    for stretch in journal.lanes().map_err(Failure::failed)? {
        let there = journal.records(&stretch.lane, record.index, 1).map_err(Failure::failed)?;
        if there.first() == Some(&record) {
            return Ok((stretch.lane, record.index));
        }
    }
    Err(absent(journal, id))
}

/// Exit codes: 0 it proves the record, 1 it does not, 2 not understood.
#[derive(Debug, Args)]
pub(in crate::cli) struct VerifyProof {
    /// What `quotesign audit prove` wrote. Nothing but this file, the keys and the checkpoint is read.
    proof: PathBuf,
    #[command(flatten)]
    keys: Keys,
    /// The checkpoint that the proof must lead to; where it is not given, the signed one in the proof.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
}

impl VerifyProof {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.keys.is_empty() {
            return Err(Failure::unfit("--key: name the public JWK of the key that signs checkpoints"));
        }
        let failed = |fault: proof::Fault| Failure::failed(format!("{}: {fault}", self.proof.display()));
        let proof = Proof::read(&text(&self.proof)?).map_err(failed)?;
        let keys = self.keys.load()?;
        let checkpoint = proof.check(&keys).map_err(failed)?;
        if let Some(file) = &self.checkpoint {
            let held = Checkpoint::open(&text(file)?, &keys)
                .map_err(|fault| Failure::failed(format!("{}: {fault}", file.display())))?;
            if held.digest() != checkpoint.digest() {
                return Err(Failure::failed(
                    "the proof leads to another checkpoint; ask for one with `quotesign audit prove --checkpoint`",
                ));
            }
        }
        let record: Value = serde_json::from_str(&proof.record).map_err(Failure::failed)?;
        say!("{record:#}");
        tell(&checkpoint);
        say!(
            "proven: the record is number {} of lane `{}`, as it was when the checkpoint was made",
            proof.index,
            proof.lane
        );
        Ok(())
    }
}
