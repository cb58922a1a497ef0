//! What a caller has had signed, as the journal tells it.

use tonic::Status;
use uuid::{Builder, Uuid};

use super::Admin;
use crate::{
    audit::{Event, Record},
    clock::UtcTime,
    domain::{Caller, SequenceNumber},
    proto,
    service::status,
};

/// As many are told at once.
const TOLD_MAX: usize = 10_000;
/// As many records are read at once, so that nobody else waits long for the reader.
const PAGE: u32 = 2_000;

impl Admin {
    /// What `caller` has had signed since `since`, oldest first, and whether there is more.
    pub(super) async fn signed_by(
        &self,
        caller: &Caller,
        since: UtcTime,
    ) -> Result<(Vec<proto::SignedQuote>, bool), Status> {
        let (mut signed, mut after) = (Vec::new(), before(since));
        loop {
            let page = self.pipeline.ledger.records_after(after, PAGE).await.map_err(status::of_ledger_error)?;
            let Some(last) = page.last() else { return Ok((signed, false)) };
            after = last.id;
            let theirs = |record: &&Record| {
                record.event == Event::Committed && record.context.caller.as_ref() == Some(caller) && record.at >= since
            };
            signed.extend(page.iter().filter(theirs).map(told));
            if signed.len() > TOLD_MAX {
                signed.truncate(TOLD_MAX);
                return Ok((signed, true));
            }
        }
    }
}

/// An id below those of all records that were made at `at` or later.
fn before(at: UtcTime) -> Uuid {
    Builder::from_unix_timestamp_millis(u64::try_from(at.millis()).unwrap_or_default(), &[0; 10]).into_uuid()
}

fn told(record: &Record) -> proto::SignedQuote {
    let text = |text: Option<String>| text.unwrap_or_default();
    proto::SignedQuote {
        partner: text(record.context.partner.as_ref().map(ToString::to_string)),
        quote_id: text(record.context.quote_id.as_ref().map(ToString::to_string)),
        sequence: record.facts.sequence.map_or(0, SequenceNumber::get),
        kid: text(record.facts.kid.as_ref().map(ToString::to_string)),
        signed_at: Some(proto::timestamp(record.at)),
        jws_sha256: text(record.facts.jws_sha256.clone()),
    }
}
