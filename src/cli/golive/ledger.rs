//! What the ledger shows: which key signs and why it may, that the journal holds, and what the operator has said of quotes.

use std::sync::Arc;

use crate::{
    audit::Event,
    ledger::{Journal, stops::Stops},
    outcomes::Outcome,
    policy::timeline::TimedKey,
    published::Standings,
    review::golive::Facts,
};

use super::{Failure, Here, offline::put};
use crate::cli::audit::verified;

/// So many records are read for what the operator has said.
const RECORDS_MAX: u32 = 20_000;

/// What was read.
pub(super) struct Book {
    standings: Standings,
    stops: Stops,
}

pub(super) fn read(here: &Here<'_>) -> Result<Book, Failure> {
    let mut reads = here.ledger.reads()?;
    let (stops, kids) = (reads.stops().map_err(Failure::failed)?, reads.kids().map_err(Failure::failed)?);
    Ok(Book { standings: Standings::of_ledger(stops.clone(), kids), stops })
}

impl Book {
    /// The key that signs now.
    pub(super) fn active<'h>(&self, here: &Here<'h>) -> Option<&'h Arc<TimedKey>> {
        here.bundle.timeline.current(&here.partner.id, here.now, |kid| self.standings.of(kid))
    }

    pub(super) fn look(
        self,
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
            Some(key) => self.of_key(here, key, facts),
        }
        let journal = here.ledger.journal()?;
        match verified(&*journal) {
            Ok(lines) => put(facts, "audit.chain", true, lines.join("; ")),
            Err(failure) => put(facts, "audit.chain", false, failure.text),
        }
        if let Some((accepted, evidence)) = Self::accepted(&*journal, here, active)? {
            put(facts, "outcome.accepted", accepted, evidence);
        }
        Ok(())
    }

    fn of_key(&self, here: &Here<'_>, key: &TimedKey, facts: &mut Facts) {
        let TimedKey { kid, sign_from, sign_until, .. } = key;
        match self.stops.halt(&here.partner.id, Some(kid)) {
            Some(halt) => put(facts, "key.active", false, format!("`{kid}` would sign, but for {halt}")),
            None => put(facts, "key.active", true, format!("`{kid}` signs from {sign_from} to {sign_until}")),
        }
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
            Some(since) => {
                let is_known = here.bundle.timeline.known_from(key, standing).is_some_and(|known| known <= here.now);
                let evidence = format!("`{kid}`: every gateway that counts serves it, seen since {since}");
                let short = if is_known { "" } else { "; its propagation time is not over: it was activated" };
                put(facts, "key.served", is_known, evidence + short);
            }
            None => put(facts, "key.served", false, format!("`{kid}` was not seen to be served by every gateway")),
        }
    }

    /// The newest report, of the newest records, on whether the operator's API takes what the key signs, or of any key of the
    /// partner where none signs: whether it does, and where that stands.
    fn accepted(
        journal: &dyn Journal,
        here: &Here<'_>,
        active: Option<&Arc<TimedKey>>,
    ) -> Result<Option<(bool, String)>, Failure> {
        let newest = journal.tail(RECORDS_MAX).map_err(Failure::failed)?;
        for stored in newest.iter().rev() {
            let record = stored.record().map_err(Failure::failed)?;
            let said = record.facts.detail.as_deref().unwrap_or_default();
            let is_theirs = record.context.partner.as_ref() == Some(&here.partner.id);
            let is_of_key = active.is_none_or(|active| record.facts.kid.as_ref() == Some(&active.kid));
            if record.event != Event::OutcomeReported || !is_theirs || !is_of_key {
                continue;
            }
            let told = |outcome: Outcome| said.starts_with(outcome.as_str());
            if told(Outcome::Accepted) || told(Outcome::Unverified) {
                let evidence = format!("{} {said} (audit record {})", record.at, record.id);
                return Ok(Some((told(Outcome::Accepted), evidence)));
            }
        }
        Ok(None)
    }
}
