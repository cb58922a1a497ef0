//! A proof that one record stands in a journal, for whoever holds a checkpoint of it: the record, the digests of those of its
//! batch, and the way from the batch's link up to the checkpoint's tree. It tells nothing of any other record.

use serde::{Deserialize, Serialize};

use super::{
    checkpoint::{self, Checkpoint, entry, hash},
    tree::{self, Frontier, Hash, climb, leaf},
};
use crate::{
    audit,
    jwk::PublicKey,
    ledger::{
        EngineError, Journal, Stretch,
        chain::{Heads, Position, StoredRecord},
    },
};

/// The version of a proof's form.
pub const SCHEMA: &str = "quotesign.proof.v1";

/// A proof, as it is written: digests in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// [`SCHEMA`].
    pub schema: String,
    /// The lane.
    pub lane: String,
    /// The record's index in it.
    pub index: u64,
    /// The record's bytes, which are JSON text.
    pub record: String,
    /// The link before the record's batch.
    pub link_before: String,
    /// The index of the batch's first record.
    pub first_index: u64,
    /// The leaves of the batch's records.
    pub batch: Vec<String>,
    /// The place of the batch's link in the checkpoint's tree.
    pub tree_index: u64,
    /// The audit path from there to the root, from the bottom.
    pub path: Vec<String>,
    /// The signed checkpoint.
    pub checkpoint: String,
}

/// Why a proof proves nothing, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] EngineError),
    /// It is none of this version.
    #[error("it is no proof of this version")]
    Form,
    /// Its checkpoint cannot be relied on.
    #[error("the checkpoint in it: {0}")]
    Checkpoint(#[from] checkpoint::Fault),
    /// It leads elsewhere.
    #[error("{0}")]
    Wrong(&'static str),
    /// No checkpoint has come since the record.
    #[error("no checkpoint has come since the record; the gateway makes one soon")]
    NotYet,
    /// The checkpoint that somebody holds is not in the ledger.
    #[error("the ledger does not hold your checkpoint any more: it was set back, or this is another ledger's")]
    Lost,
    /// The record is not in the journal.
    #[error("the journal does not hold this record any more")]
    Absent,
    /// Links beside the record's, under the same checkpoint, were pruned.
    #[error("the journal was pruned up to this record, and does not hold any more what its proof needs")]
    Pruned,
    /// The ledger is not what its checkpoints were made of.
    #[error("the links of the ledger are not those that its checkpoint was made of: verify the journal")]
    Tampered,
}

impl Proof {
    /// Reads one.
    ///
    /// # Errors
    /// Where it is none of this version.
    pub fn read(text: &str) -> Result<Self, Fault> {
        let proof: Self = serde_json::from_str(text).map_err(|_| Fault::Form)?;
        if proof.schema == SCHEMA { Ok(proof) } else { Err(Fault::Form) }
    }

    /// Holds it against the checkpoint in it, which one of `keys` must have signed; says which that is.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn check(&self, keys: &[PublicKey]) -> Result<Checkpoint, Fault> {
        let checkpoint = Checkpoint::open(&self.checkpoint, keys)?;
        let batch: Vec<Hash> = hashes(&self.batch)?;
        let place = self.index.checked_sub(self.first_index).and_then(|place| usize::try_from(place).ok());
        if place.and_then(|place| batch.get(place)) != Some(&audit::leaf(self.record.as_bytes())) {
            return Err(Fault::Wrong("the record is not the one whose digest is in its batch"));
        }
        let before = Position { next_index: self.first_index, link: hash(&self.link_before).ok_or(Fault::Form)? };
        let link = leaf(&entry(&self.lane, before.after(&batch)));
        let root = climb(link, self.tree_index, checkpoint.tree.size(), &hashes(&self.path)?);
        if root != Some(checkpoint.tree.root()) {
            return Err(Fault::Wrong("the record's batch is not in the checkpoint's tree"));
        }
        Ok(checkpoint)
    }
}

fn hashes(texts: &[String]) -> Result<Vec<Hash>, Fault> {
    texts.iter().map(|text| hash(text)).collect::<Option<_>>().ok_or(Fault::Form)
}

/// A record with its batch.
struct Batch {
    before: Position,
    records: Vec<StoredRecord>,
}

/// How many records around one are read at once, to find the ends of its batch.
const AROUND: u64 = 1024;
const PAGE: u32 = 10_000;

/// Proves the record at `index` of `lane` to a holder of the ledger's checkpoint of `size` links, or of its newest one.
///
/// # Errors
/// Why it cannot be proven, and where the ledger cannot be read.
pub fn prove(journal: &dyn Journal, lane: &str, index: u64, size: Option<u64>) -> Result<Proof, Fault> {
    let batch = batch(journal, lane, index)?;
    let after = batch.before.next_index.saturating_add(batch.records.len() as u64);
    let (before, chain) = checkpoints(journal, lane, after, size)?;
    if let Some(size) = size
        && journal.checkpoints(size.saturating_sub(1), 1)?.first().is_none_or(|(is, _)| *is != size)
    {
        return Err(Fault::Lost);
    }
    let (Some(first), Some((held, newest))) = (chain.first(), chain.last()) else { return Err(Fault::NotYet) };
    let mut leaves = Vec::new();
    let mut tree_index = None;
    let (since, kept) = before;
    let mut heads = since.clone();
    for (_, checkpoint) in &chain {
        for (name, head) in &checkpoint.heads {
            let from = heads.get(name).map_or(0, |head| head.next_index);
            for position in links(journal, name, from, head.next_index)? {
                if name == lane && position.next_index == after {
                    tree_index = Some(kept.size().saturating_add(leaves.len() as u64));
                }
                leaves.push(leaf(&entry(name, position)));
            }
        }
        heads.clone_from(&checkpoint.heads);
    }
    let mut grown = kept.clone();
    grown.extend(leaves.iter().copied());
    let tree_index = tree_index.filter(|_| grown == newest.tree && first.1.tree.size() > kept.size());
    let path = tree_index.and_then(|tree_index| tree::path(&kept, &leaves, tree_index));
    let Some(path) = path else {
        let is_left =
            |stretch: &Stretch| stretch.first.next_index <= since.get(&stretch.lane).map_or(0, |head| head.next_index);
        let all_is_left = journal.lanes()?.iter().all(is_left);
        return Err(if all_is_left { Fault::Tampered } else { Fault::Pruned });
    };
    let place = usize::try_from(index.saturating_sub(batch.before.next_index)).unwrap_or(usize::MAX);
    let record = batch.records.get(place).ok_or(Fault::Absent)?;
    Ok(Proof {
        schema: SCHEMA.to_owned(),
        lane: lane.to_owned(),
        index,
        record: String::from_utf8_lossy(&record.bytes).into_owned(),
        link_before: hex::encode(batch.before.link),
        first_index: batch.before.next_index,
        batch: batch.records.iter().map(|record| hex::encode(record.leaf)).collect(),
        tree_index: tree_index.unwrap_or_default(),
        path: path.iter().map(hex::encode).collect(),
        checkpoint: held.clone(),
    })
}

/// The whole batch of the record at `index`.
fn batch(journal: &dyn Journal, lane: &str, index: u64) -> Result<Batch, Fault> {
    let stretch = journal.lanes()?.into_iter().find(|stretch| stretch.lane == lane).ok_or(Fault::Absent)?;
    if index < stretch.first.next_index || index >= stretch.head.next_index {
        return Err(Fault::Absent);
    }
    let mut from = index.saturating_sub(AROUND).max(stretch.first.next_index);
    loop {
        let count = u32::try_from(index.saturating_sub(from).saturating_add(AROUND)).unwrap_or(u32::MAX);
        let around = journal.records(lane, from, count)?;
        let ended = around.iter().rev().find(|record| record.index < index && record.link.is_some());
        let before = match ended {
            Some(StoredRecord { index, link: Some(link), .. }) => {
                Position { next_index: index.saturating_add(1), link: *link }
            }
            _ if from == stretch.first.next_index => stretch.first,
            _ => {
                from = from.saturating_sub(AROUND).max(stretch.first.next_index);
                continue;
            }
        };
        let mut records: Vec<_> = around.into_iter().filter(|record| record.index >= before.next_index).collect();
        let last = records.iter().position(|record| record.index >= index && record.link.is_some());
        records.truncate(last.ok_or(Fault::Absent)?.saturating_add(1));
        return Ok(Batch { before, records });
    }
}

/// A signed checkpoint with what it says.
type Signed = (String, Checkpoint);

/// The checkpoints from the first one that covers `lane` up to `after`, to the one of `size` or the newest; and where the one
/// before them left the lanes and the tree.
fn checkpoints(
    journal: &dyn Journal,
    lane: &str,
    after: u64,
    size: Option<u64>,
) -> Result<((Heads, Frontier), Vec<Signed>), Fault> {
    let mut before = (Heads::new(), Frontier::default());
    let mut chain: Vec<Signed> = Vec::new();
    let mut last = 0;
    loop {
        let page = journal.checkpoints(last, PAGE)?;
        let Some((newest, _)) = page.last() else { return Ok((before, chain)) };
        last = *newest;
        for (at, jws) in page {
            if size.is_some_and(|size| at > size) {
                return Ok((before, chain));
            }
            let checkpoint = Checkpoint::unverified(&jws)?;
            if chain.is_empty() && checkpoint.heads.get(lane).is_none_or(|head| head.next_index < after) {
                before = (checkpoint.heads, checkpoint.tree);
            } else {
                chain.push((jws, checkpoint));
            }
        }
    }
}

fn links(journal: &dyn Journal, lane: &str, from: u64, to: u64) -> Result<Vec<Position>, Fault> {
    let mut links: Vec<Position> = Vec::new();
    let mut next = from;
    while next < to {
        let page = journal.links(lane, next, PAGE)?;
        let Some(last) = page.last() else { break };
        next = last.next_index;
        links.extend(page.into_iter().filter(|position| position.next_index <= to));
    }
    Ok(links)
}
