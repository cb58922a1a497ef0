//! What was signed before is read beside the writer, and given again.

use super::{Ledger, openings::Opening};
use crate::{
    audit::{Context, Facts, Record},
    domain::{Caller, Identity, PayloadDigest},
    ledger::{LedgerError, Refusal, Released, Stop, step::Quote},
};

/// A JWS of an earlier call, read beside the writer.
#[derive(Debug)]
pub struct Recalled {
    /// The quote.
    pub quote: Quote,
    pub(super) released: Released,
    as_of: Opening,
}

impl Recalled {
    /// What a record says of it, where it is given again.
    #[must_use]
    pub fn given(&self, context: &Context) -> Facts {
        self.quote.given(&self.released.jws, context)
    }
}

impl Ledger {
    /// What an earlier call had signed of this identity and payload, where it may be given to `caller` again.
    ///
    /// # Errors
    /// [`Refusal::KidRevoked`] where its kid was revoked since: nothing gives it ever again. Where the store cannot be read.
    pub async fn released(
        &self,
        identity: Identity,
        payload: PayloadDigest,
        caller: Option<Caller>,
    ) -> Result<Option<Recalled>, LedgerError> {
        let found = self.look_as_of(move |reads| {
            let Some(quote) = reads.quote(&identity)?.filter(|quote| quote.payload == payload) else { return Ok(None) };
            let stop = reads.stops()?.on(&identity, &quote.kid, caller.as_ref()).cloned();
            Ok(quote.released().map(|released| (quote, released, stop)))
        });
        match found.await? {
            (Some((quote, released, None)), as_of) => Ok(Some(Recalled { quote, released, as_of })),
            (Some((.., Some(Stop::Revoked(kid)))), _) => Err(Refusal::KidRevoked { kid }.into()),
            (_, _) => Ok(None),
        }
    }

    /// Journals that what was read is given again, by `record`: with the next batch, where it `is_written` and not only counted. Where a server shows what a failover could
    /// still lose, it returns once the record is durable: what was before that on the same server is so then, too.
    ///
    /// # Errors
    /// Where it may not be given: the record cannot be made durable, or the store is not the one that was read any more.
    pub async fn give_again(
        &self,
        recalled: Recalled,
        record: Record,
        is_written: impl FnOnce() -> bool,
    ) -> Result<Released, LedgerError> {
        // A store that the writer does not trust, or cannot reach, is not the one to believe: and nobody would learn of the answer.
        self.0.queue.health().map_err(LedgerError::Unavailable)?;
        if self.0.reads_are_durable {
            if is_written() {
                self.journal(record);
            }
            return Ok(recalled.released);
        }
        self.record(record).await?;
        if self.0.openings.now() != recalled.as_of {
            return Err(LedgerError::Unavailable("the ledger was opened anew since the quote was read".to_owned()));
        }
        Ok(recalled.released)
    }
}
