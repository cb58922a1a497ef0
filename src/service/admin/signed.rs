//! What a caller has had signed, as the journal tells it.

use tonic::Status;

use super::{
    Admin, invalid,
    stops::{caller_of, kid_of},
};
use crate::{
    audit::{self, Context, Event, Facts, Record, id_before},
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{Caller, Kid, SequenceNumber},
    proto::{self, list_signed_quotes_request},
    service::{quotes::instant, status},
};

/// As many are told at once.
const TOLD_MAX: usize = 10_000;
/// As many records are read at once, so that nobody else waits long for the reader.
const PAGE: u32 = 2_000;
/// As many pages of the journal are read for one answer.
const PAGES_MAX: usize = 25;

impl Admin {
    /// A page of what a key or a caller has had signed. That it is read is journalled before.
    pub(super) async fn signed_page(
        &self,
        context: Context,
        request: proto::ListSignedQuotesRequest,
    ) -> Result<proto::ListSignedQuotesResponse, Status> {
        let whose = whose_of(request.of)?;
        let since = request.since.ok_or_else(|| invalid("`since` must say from when on"))?;
        let since = instant("since", since)?;
        let mut after = match request.page_token.as_str() {
            "" => id_before(since),
            token => token.parse().map_err(|_| invalid("`page_token` is none; give it as the page before did"))?,
        };
        let filters = vec![whose.told(), format!("since={since}")];
        let facts = Facts { filters, status: context.answered(audit::Status::Ok), ..Facts::default() };
        let read = Record::new(Event::Read, SystemClock.now(), context, facts);
        self.pipeline.ledger.record(read).await.map_err(status::of_ledger_error)?;
        let mut quotes = Vec::new();
        for _ in 0..PAGES_MAX {
            let page = self.pipeline.ledger.records_after(after, PAGE).await.map_err(status::of_ledger_error)?;
            let Some(last) = page.last() else {
                return Ok(proto::ListSignedQuotesResponse { quotes, ..Default::default() });
            };
            after = last.id;
            let theirs = page.iter().filter(|record| record.event == Event::Committed && record.at >= since);
            quotes.extend(theirs.filter(|record| whose.is_of(record)).map(told));
            if quotes.len() >= PAGE as usize {
                break;
            }
        }
        Ok(proto::ListSignedQuotesResponse { quotes, next_page_token: after.to_string() })
    }

    /// What `caller` has had signed since `since`, oldest first, and whether there is more, or may be: whoever asks has suspended it, and
    /// is told so whatever becomes of the reading.
    pub(super) async fn signed_by(&self, caller: &Caller, since: UtcTime) -> (Vec<proto::SignedQuote>, bool) {
        let (mut signed, mut after) = (Vec::new(), id_before(since));
        for _ in 0..PAGES_MAX {
            let page = match self.pipeline.ledger.records_after(after, PAGE).await {
                Ok(page) => page,
                Err(fault) => {
                    tracing::warn!(%caller, %fault, "what a caller had signed could not be read to its end");
                    break;
                }
            };
            let Some(last) = page.last() else { return (signed, false) };
            after = last.id;
            let theirs = |record: &&Record| {
                record.event == Event::Committed && record.context.caller.as_ref() == Some(caller) && record.at >= since
            };
            signed.extend(page.iter().filter(theirs).map(told));
            if signed.len() > TOLD_MAX {
                signed.truncate(TOLD_MAX);
                break;
            }
        }
        (signed, true)
    }
}

/// Whose signatures are asked for.
enum Whose {
    Key(Kid),
    Caller(Caller),
}

impl Whose {
    /// What the record of the read says of it.
    fn told(&self) -> String {
        match self {
            Self::Key(kid) => format!("kid={kid}"),
            Self::Caller(caller) => format!("caller={caller}"),
        }
    }

    fn is_of(&self, record: &Record) -> bool {
        match self {
            Self::Key(kid) => record.facts.kid.as_ref() == Some(kid),
            Self::Caller(caller) => record.context.caller.as_ref() == Some(caller),
        }
    }
}

fn whose_of(of: Option<list_signed_quotes_request::Of>) -> Result<Whose, Status> {
    match of {
        Some(list_signed_quotes_request::Of::Kid(kid)) => kid_of(&kid).map(Whose::Key),
        Some(list_signed_quotes_request::Of::Caller(caller)) => caller_of(&caller, None).map(Whose::Caller),
        None => Err(invalid("one of `kid` and `caller` must say whose")),
    }
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
        expires_at: record.facts.expires_at.map(proto::timestamp),
    }
}
