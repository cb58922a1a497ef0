//! What the ledger shows: which key signs and why it may, that the journal holds, and what the operator has said of quotes.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    audit::Event,
    ledger::Reads,
    outcomes::Outcome,
    policy::{AttributesRule, timeline::TimedKey},
    published::{Published, Standings},
    review::golive::Facts,
    stopped::Stopped,
};

use super::{Failure, Here, offline::put};
use crate::cli::audit::verified;

/// So many records are read for what the operator has said.
const RECORDS_MAX: u32 = 100_000;
const PAGE: u32 = 2_000;

/// What was read.
pub(super) struct Book {
    standings: Standings,
    reads: Box<dyn Reads>,
}

pub(super) fn read(here: &Here<'_>) -> Result<Book, Failure> {
    let place = here.config.ledger.place().map_err(Failure::unfit)?;
    let mut reads = place.reads().map_err(Failure::failed)?;
    let (stops, kids) = (reads.stops().map_err(Failure::failed)?, reads.kids().map_err(Failure::failed)?);
    let published = Published::default();
    published.learn(kids);
    let revoked = here.bundle.timeline.all().map(|key| &key.kid).filter(|kid| stops.is_revoked(kid));
    Ok(Book { standings: Standings::of_now(&Stopped::knowing(revoked), &published), reads })
}

impl Book {
    /// The key that signs now.
    pub(super) fn active<'h>(&self, here: &Here<'h>) -> Option<&'h Arc<TimedKey>> {
        here.bundle.timeline.current(&here.partner.id, here.now, |kid| self.standings.of(kid))
    }

    pub(super) fn look(
        mut self,
        here: &Here<'_>,
        active: Option<&Arc<TimedKey>>,
        facts: &mut Facts,
    ) -> Result<(), Failure> {
        match active {
            None => {
                put(
                    facts,
                    "key.active",
                    false,
                    "no key of the partner may sign now; `quotesign admin status` says why",
                );
            }
            Some(key) => self.of_key(key, facts),
        }
        let place = here.config.ledger.place().map_err(Failure::unfit)?;
        let journal = place.journal().map_err(Failure::failed)?;
        match verified(&*journal) {
            Ok(lines) => put(facts, "audit.chain", true, lines.join("; ")),
            Err(failure) => put(facts, "audit.chain", false, failure.text),
        }
        if let Some(evidence) = self.accepted(here)? {
            put(facts, "outcome.accepted", true, evidence);
        }
        Ok(())
    }

    fn of_key(&self, key: &TimedKey, facts: &mut Facts) {
        let TimedKey { kid, sign_from, sign_until, .. } = key;
        put(facts, "key.active", true, format!("`{kid}` signs from {sign_from} to {sign_until}"));
        match &key.confirmed {
            Some(confirmed) => {
                let evidence =
                    format!("`{kid}` was confirmed at {}, on record as {}", confirmed.at, confirmed.reference);
                put(facts, "key.confirmed", true, evidence);
            }
            None => put(facts, "key.confirmed", false, format!("`{kid}` has no `confirmed` in policy")),
        }
        let standing = self.standings.of(kid);
        match standing.served_since {
            Some(since) => put(
                facts,
                "key.served",
                true,
                format!("`{kid}`: every gateway that counts serves it, seen since {since}"),
            ),
            None => put(facts, "key.served", false, format!("`{kid}` was not seen to be served by every gateway")),
        }
        let places: Vec<_> = key.places.iter().map(|(signer, _)| signer.as_str()).collect();
        let places = places.join(", ");
        let (holds, evidence) = match key.attributes {
            AttributesRule::Require => {
                (true, format!("on {places}, which states that it was generated there and cannot leave it"))
            }
            AttributesRule::Warn => {
                (true, format!("on {places}; policy says why the device cannot state that it never left it"))
            }
            AttributesRule::Off => (false, format!("on {places}; nobody looks at its attributes")),
        };
        put(facts, "key.protected", holds, evidence);
    }

    /// The newest report that the operator's API took a quote of the partner.
    fn accepted(&mut self, here: &Here<'_>) -> Result<Option<String>, Failure> {
        let (mut after, mut found, mut read) = (Uuid::nil(), None, 0);
        while read < RECORDS_MAX {
            let page = self.reads.records_after(after, PAGE).map_err(Failure::failed)?;
            let Some(last) = page.last() else { break };
            after = last.id;
            read += PAGE;
            let mut accepted = page.into_iter().filter(|record| {
                record.event == Event::OutcomeReported
                    && record.context.partner.as_ref() == Some(&here.partner.id)
                    && record.facts.detail.as_deref().is_some_and(|said| said.starts_with(Outcome::Accepted.as_str()))
            });
            found = accepted.next_back().or(found);
        }
        Ok(found.map(|record| {
            let said = record.facts.detail.unwrap_or_default();
            format!("{} {said} (audit record {})", record.at, record.id)
        }))
    }
}
