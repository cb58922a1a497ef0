//! A checkpoint: the head of the tree over the journal's links, with the head of every lane, as a text in the form of a C2SP
//! tlog-checkpoint, in a compact JWS by a key that signs nothing else.
//!
//! ```text
//! quotesign/production                              the origin: which ledger's
//! 3                                                 how many links the tree has
//! 7bhvKi0nxpQ+…                                     its root, base64
//! at 2026-11-28T12:00:00Z                           when it was made
//! after 5ab4…                                       SHA-256 of the text of the checkpoint before; absent on the first
//! head 24 91c0… eu-1                                where a lane stands: its next index, its link, its name; a line for each
//! subtree 0f6e…                                     a whole subtree of the tree, the largest first; what it needs to grow
//! ```

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::tree::{Frontier, Hash};
use crate::{
    clock::UtcTime,
    domain::sha256,
    jwk::PublicKey,
    jws::{CompactJws, SigningInput, checkpoint_header},
    ledger::chain::{Heads, Position},
};

/// Where a journal stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which ledger's.
    pub origin: String,
    /// When it was made, by the clock of the gateway that made it.
    pub at: UtcTime,
    /// [`Checkpoint::digest`] of the one before.
    pub after: Option<Hash>,
    /// Where every lane stood.
    pub heads: Heads,
    /// The tree over all their links so far.
    pub tree: Frontier,
}

/// Why a text is no checkpoint that can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is no JWS, or another one than of a checkpoint.
    #[error("it is no signed checkpoint")]
    Form,
    /// None of the keys given is the one that its header names.
    #[error(
        "it is signed by a key that was not given: name its public half with --key, or in `audit.checkpoint.earlier_keys`"
    )]
    Key,
    /// The signature is not the key's.
    #[error("its signature does not hold")]
    Signature,
    /// What is signed is no checkpoint of this version.
    #[error("what is signed is no checkpoint that this version knows")]
    Text,
}

/// What a lane's link is in the tree: the index after it (u64, big-endian), the link, the lane's name.
#[must_use]
pub fn entry(lane: &str, Position { next_index, link }: Position) -> Vec<u8> {
    [next_index.to_be_bytes().as_slice(), &link, lane.as_bytes()].concat()
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { origin, at, after, heads, tree } = self;
        let mut text = format!("{origin}\n{}\n{}\nat {at}\n", tree.size(), STANDARD.encode(tree.root()));
        // Writing to a text cannot fail.
        if let Some(after) = after {
            let _ = writeln!(text, "after {}", hex::encode(after));
        }
        for (lane, head) in heads {
            let _ = writeln!(text, "head {} {} {lane}", head.next_index, hex::encode(head.link));
        }
        for subtree in tree.subtrees() {
            let _ = writeln!(text, "subtree {}", hex::encode(subtree));
        }
        text
    }

    /// Whether it is read as what it is: no name in it is taken for another line.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        Self::parse(&self.text()).as_ref() == Some(self)
    }

    /// Of the text.
    #[must_use]
    pub fn digest(&self) -> Hash {
        sha256(self.text().as_bytes())
    }

    /// What `key` signs.
    #[must_use]
    pub fn input(&self, key: &PublicKey) -> SigningInput {
        SigningInput::of_checkpoint(key.kid(), self.text().as_bytes())
    }

    /// Reads the one spelling of a checkpoint.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n').peekable();
        let origin = lines.next()?.to_owned();
        let size = lines.next()?.parse().ok()?;
        let root = lines.next()?;
        let at = UtcTime::parse(lines.next()?.strip_prefix("at ")?).ok()?;
        let mut after = None;
        if let Some(digest) = lines.peek().and_then(|line| line.strip_prefix("after ")) {
            after = Some(hash(digest)?);
            lines.next();
        }
        let mut heads = Heads::new();
        while let Some(head) = lines.peek().and_then(|line| line.strip_prefix("head ")) {
            let mut parts = head.splitn(3, ' ');
            let next_index = parts.next()?.parse().ok()?;
            let link = hash(parts.next()?)?;
            heads.insert(parts.next()?.to_owned(), Position { next_index, link });
            lines.next();
        }
        let subtrees = lines.map(|line| line.strip_prefix("subtree ").and_then(hash)).collect::<Option<_>>()?;
        let tree = Frontier::new(size, subtrees)?;
        let read = Self { origin, at, after, heads, tree };
        (STANDARD.encode(read.tree.root()) == root && read.text() == text).then_some(read)
    }

    /// Opens a signed checkpoint, where one of `keys` has signed it.
    ///
    /// # Errors
    /// Why it cannot be relied on.
    pub fn open(jws: &str, keys: &[PublicKey]) -> Result<Self, Fault> {
        let jws = CompactJws::from_text(jws.trim_end().to_owned());
        let parts = jws.parts().map_err(|_| Fault::Form)?;
        let is_of = |key: &&PublicKey| parts.header == checkpoint_header(key.kid()).as_bytes();
        let Some(key) = keys.iter().find(is_of) else {
            let is_checkpoint =
                std::str::from_utf8(&parts.header).is_ok_and(|header| header.contains(crate::jws::CHECKPOINT));
            return Err(if is_checkpoint { Fault::Key } else { Fault::Form });
        };
        if !key.verifies(parts.input.as_bytes(), &parts.signature) {
            return Err(Fault::Signature);
        }
        Self::of_payload(&parts.payload)
    }

    /// What a signed checkpoint says, where it is our own ledger's and what it says is recomputed anyway.
    ///
    /// # Errors
    /// Where it is none.
    pub fn unverified(jws: &str) -> Result<Self, Fault> {
        let jws = CompactJws::from_text(jws.to_owned());
        Self::of_payload(&jws.parts().map_err(|_| Fault::Form)?.payload)
    }

    fn of_payload(payload: &[u8]) -> Result<Self, Fault> {
        std::str::from_utf8(payload).ok().and_then(Self::parse).ok_or(Fault::Text)
    }
}

/// A digest in lower-case hex.
pub(super) fn hash(text: &str) -> Option<Hash> {
    hex::decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::notary::tree;

    prop_compose! {
        fn checkpoints()(
            size in 0_u64..500,
            heads in prop::collection::btree_map("[a-z0-9._-]{0,8}", (any::<u64>(), any::<[u8; 32]>()), 0..4),
            after in any::<Option<Hash>>(),
            at in 0_i64..4_000_000_000_000,
        ) -> Checkpoint {
            let mut tree = Frontier::default();
            tree.extend((0..size).map(|leaf| tree::leaf(&leaf.to_be_bytes())));
            let heads = heads.into_iter().map(|(lane, (next_index, link))| (lane, Position { next_index, link })).collect();
            Checkpoint { origin: "quotesign/sandbox".to_owned(), at: UtcTime::from_millis(at), after, heads, tree }
        }
    }

    proptest! {
        #[test]
        fn a_checkpoint_is_read_as_it_was_written(checkpoint in checkpoints()) {
            prop_assert_eq!(Checkpoint::parse(&checkpoint.text()), Some(checkpoint));
        }

        /// A checkpoint has one spelling, so that its digest is the digest of what it says.
        #[test]
        fn a_text_is_read_where_it_is_the_one_spelling(checkpoint in checkpoints(), place in any::<usize>(), byte in any::<char>()) {
            let text = checkpoint.text();
            let mut bent: Vec<char> = text.chars().collect();
            let place = place % bent.len();
            bent[place] = byte;
            let bent: String = bent.into_iter().collect();
            match Checkpoint::parse(&bent) {
                Some(read) => prop_assert_eq!(read.text(), bent),
                None => prop_assert!(bent != text),
            }
        }
    }
}
