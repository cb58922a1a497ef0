//! What is asked of a journal: which records, and what they come to.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::Serialize;
use uuid::Uuid;

use crate::{
    audit::{Event, Record, id_before},
    clock::UtcTime,
    domain::{Caller, CorrelationId, Kid, PartnerId, QuoteId},
    ledger::stops::Stop,
};

/// Which records are wanted: those of which each field that is given holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of this quote.
    pub quote_id: Option<QuoteId>,
    /// Of this partner, or what stopped it.
    pub partner: Option<PartnerId>,
    /// Of what this caller asked for, or that it was suspended.
    pub caller: Option<Caller>,
    /// About this key.
    pub kid: Option<Kid>,
    /// Of this event, by its name.
    pub event: Option<String>,
    /// Of this call.
    pub correlation_id: Option<CorrelationId>,
    /// Of quotes for this customer, as records call it under each key that is tried; of any where there is none.
    pub customer_refs: Vec<String>,
    /// Made then or later.
    pub since: Option<UtcTime>,
    /// Made before.
    pub until: Option<UtcTime>,
}

/// How much earlier than its time a record's id may be.
const SLACK: Duration = Duration::from_mins(10);

impl Wanted {
    /// Whether `record` is wanted.
    #[must_use]
    pub fn is(&self, record: &Record) -> bool {
        let is_theirs = |customer: &String| self.customer_refs.contains(customer);
        let is_of_customer =
            self.customer_refs.is_empty() || record.context.customer_ref.as_ref().is_some_and(is_theirs);
        is_of_customer && self.is_but_for_the_customer(record)
    }

    /// The id of the key under which `record` tells its customer, where that may be the one that is asked for: no such key was tried.
    #[must_use]
    pub fn untried_key<'r>(&self, record: &'r Record) -> Option<&'r str> {
        fn key_of(customer: &str) -> Option<&str> {
            customer.split_once(':').map(|(key, _)| key)
        }
        let key = key_of(record.context.customer_ref.as_deref()?)?;
        let is_tried = self.customer_refs.iter().any(|tried| key_of(tried) == Some(key));
        (!self.customer_refs.is_empty() && !is_tried && self.is_but_for_the_customer(record)).then_some(key)
    }

    fn is_but_for_the_customer(&self, record: &Record) -> bool {
        fn holds<T: PartialEq>(wanted: Option<&T>, is: Option<&T>) -> bool {
            wanted.is_none_or(|wanted| is == Some(wanted))
        }
        let (context, facts) = (&record.context, &record.facts);
        // Whoever asks for a partner, a key or a caller is told what was stopped of it, also by records that say so in this way alone.
        let stop = facts.stop.as_deref().and_then(|stop| stop.parse::<Stop>().ok());
        let of_stop = |is: &dyn Fn(&Stop) -> bool| stop.as_ref().is_some_and(is);
        holds(self.quote_id.as_ref(), context.quote_id.as_ref())
            && (holds(self.partner.as_ref(), context.partner.as_ref())
                || of_stop(&|stop| stop.partner() == self.partner.as_ref()))
            && (holds(self.caller.as_ref(), context.caller.as_ref())
                || of_stop(&|stop| stop.caller() == self.caller.as_ref()))
            && (holds(self.kid.as_ref(), facts.kid.as_ref()) || of_stop(&|stop| stop.kid() == self.kid.as_ref()))
            && holds(self.correlation_id.as_ref(), Some(&context.correlation_id))
            && self.event.as_deref().is_none_or(|name| name == record.event.name())
            && self.since.is_none_or(|since| record.at >= since)
            && self.until.is_none_or(|until| record.at < until)
    }

    /// Whether refusals are among what is wanted as often as what was signed: one often has no key yet.
    #[must_use]
    pub const fn has_refusals(&self) -> bool {
        self.kid.is_none() && self.event.is_none() && self.counts_all()
    }

    /// Whether what was only counted is among what is wanted: it names neither a partner nor a quote, a customer or a call.
    const fn counts_all(&self) -> bool {
        self.partner.is_none()
            && self.quote_id.is_none()
            && self.correlation_id.is_none()
            && self.customer_refs.is_empty()
    }

    /// An id below those of all records that can be wanted: they rise with time.
    #[must_use]
    pub fn after(&self) -> Uuid {
        // A clock that was set between a record's time and its id is no reason to leave it out.
        self.since.map_or(Uuid::nil(), |since| id_before(since.minus(SLACK)))
    }
}

/// What records come to: what a review after a launch or an incident asks for.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// How many records.
    pub records: u64,
    /// The time of the first of them.
    pub first: Option<UtcTime>,
    /// And of the last.
    pub last: Option<UtcTime>,
    /// How many of each event.
    pub events: BTreeMap<&'static str, u64>,
    /// Refusals by reason; those that were only counted are in it.
    pub refused: BTreeMap<String, u64>,
    /// Signed quotes by partner.
    pub signed_by_partner: BTreeMap<String, u64>,
    /// By key.
    pub signed_by_key: BTreeMap<String, u64>,
    /// By caller.
    pub signed_by_caller: BTreeMap<String, u64>,
    /// How many of the refusals were of calls to sign a quote.
    pub quotes_refused: u64,
    /// Of a hundred calls to sign a new quote that were decided on, how many were served; absent where there was none. One that was refused
    /// and asked again counts again.
    pub signed_percent: Option<f64>,
    /// What the operator said, by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Acts of operators and of emergencies, and what befell keys and ledger, oldest first: time, event, who, and why.
    pub acts: VecDeque<Act>,
    /// How many acts there are before those that are told.
    pub acts_left_out: u64,
}

/// An act.
#[derive(Debug, Clone, Serialize)]
pub struct Act {
    /// When.
    pub at: UtcTime,
    /// What.
    pub event: &'static str,
    /// By whom; absent for what the gateway did by itself.
    pub caller: Option<Caller>,
    /// By which user of a machine, with a command on the ledger itself.
    pub operator: Option<String>,
    /// Of which key, stop or scope, and why.
    pub detail: String,
    /// The record.
    pub record: Uuid,
}

/// As many acts are told one by one, the newest: what ended an incident is not left out for what began it.
const ACTS_MAX: usize = 1_000;

impl Summary {
    /// Takes a record in.
    pub fn take(&mut self, record: &Record) {
        let count = |counts: &mut BTreeMap<String, u64>, name: Option<String>| {
            if let Some(name) = name {
                let count = counts.entry(name).or_default();
                *count = count.saturating_add(1);
            }
        };
        self.records = self.records.saturating_add(1);
        self.first = Some(self.first.map_or(record.at, |first| first.min(record.at)));
        self.last = self.last.max(Some(record.at));
        let event = self.events.entry(record.event.name()).or_default();
        // What was given again and only counted is as often told here.
        let times = record.facts.count.filter(|_| record.event == Event::Replayed).unwrap_or(1);
        *event = event.saturating_add(times);
        let (context, facts) = (&record.context, &record.facts);
        match record.event {
            Event::Committed => {
                count(&mut self.signed_by_partner, context.partner.as_ref().map(ToString::to_string));
                count(&mut self.signed_by_key, facts.kid.as_ref().map(ToString::to_string));
                count(&mut self.signed_by_caller, context.caller.as_ref().map(ToString::to_string));
            }
            Event::Refused => {
                // One that stands for several says how many.
                let stands_for = facts.count.unwrap_or(1);
                let reason = self.refused.entry(facts.reason.clone().unwrap_or_default()).or_default();
                *reason = reason.saturating_add(stands_for);
                if may_be_of_a_quote(record) {
                    self.quotes_refused = self.quotes_refused.saturating_add(stands_for);
                }
            }
            Event::OutcomeReported => {
                let said = facts.detail.as_deref().and_then(|detail| detail.split(';').next());
                count(&mut self.outcomes, said.map(str::to_owned));
            }
            Event::Reserved
            | Event::Rekeyed
            | Event::Voided
            | Event::Replayed
            | Event::Started
            | Event::Pruned
            | Event::Checkpointed
            | Event::TlsReloaded
            | Event::Read => {}
            _ => self.act(record),
        }
        let signed = self.events.get(Event::Committed.name()).copied().unwrap_or_default();
        let decided = signed.saturating_add(self.quotes_refused);
        #[expect(clippy::cast_precision_loss, reason = "a share to a tenth of a percent")]
        let percent = (decided > 0).then(|| (signed as f64 / decided as f64 * 1000.0).round() / 10.0);
        self.signed_percent = percent;
    }

    fn act(&mut self, record: &Record) {
        if self.acts.len() >= ACTS_MAX {
            self.acts.pop_front();
            self.acts_left_out = self.acts_left_out.saturating_add(1);
        }
        let facts = &record.facts;
        let what =
            facts.stop.clone().or_else(|| facts.kid.as_ref().map(ToString::to_string)).or_else(|| facts.scope.clone());
        let detail = what.into_iter().chain(facts.detail.clone()).collect::<Vec<_>>().join(": ");
        let (at, event, caller) = (record.at, record.event.name(), record.context.caller.clone());
        let operator = record.context.operator.clone();
        self.acts.push_back(Act { at, event, caller, operator, detail, record: record.id });
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let time = |at: Option<UtcTime>| at.map(|at| at.to_string()).unwrap_or_default();
        let mut lines = vec![format!("{} records, {} to {}", self.records, time(self.first), time(self.last))];
        let mut part = |title: &str, counts: Vec<(&str, u64)>| {
            if !counts.is_empty() {
                lines.push(format!("{title}:"));
                lines.extend(counts.into_iter().map(|(name, count)| format!("  {count:>10}  {name}")));
            }
        };
        let counts = |counts: &BTreeMap<String, u64>| -> Vec<(String, u64)> {
            counts.iter().map(|(name, count)| (name.clone(), *count)).collect()
        };
        part("events", self.events.iter().map(|(name, count)| (*name, *count)).collect());
        for (title, counted) in [
            ("refused, by reason", counts(&self.refused)),
            ("signed, by partner", counts(&self.signed_by_partner)),
            ("signed, by key", counts(&self.signed_by_key)),
            ("signed, by caller", counts(&self.signed_by_caller)),
            ("what the operator said", counts(&self.outcomes)),
        ] {
            part(title, counted.iter().map(|(name, count)| (name.as_str(), *count)).collect());
        }
        if let Some(percent) = self.signed_percent {
            lines.push(format!("signed: {percent} % of the calls to sign a new quote"));
        }
        if !self.acts.is_empty() {
            lines.push("acts:".to_owned());
        }
        if self.acts_left_out > 0 {
            lines.push(format!("  {} before these are left out; an earlier `--until` shows them", self.acts_left_out));
        }
        for Act { at, event, caller, operator, detail, .. } in &self.acts {
            let who = caller.as_ref().map(ToString::to_string).or_else(|| operator.clone());
            let who = who.unwrap_or_else(|| "the gateway itself".to_owned());
            lines.push(format!("  {at}  {event}  by {who}  {detail}"));
        }
        lines.join("\n") + "\n"
    }
}

/// Whether a refusal was of a call to sign a quote. One that only counts others may not say of which method they were; floods are of quotes.
fn may_be_of_a_quote(record: &Record) -> bool {
    let is_signing = |method: &str| matches!(method.rsplit('/').next(), Some("SignQuote" | "SignQuotes"));
    record.context.method.as_deref().map_or(record.facts.count.is_some(), is_signing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Context, Facts},
        domain::Environment,
    };

    fn record(event: Event, at: i64, facts: Facts) -> Record {
        let context = Context::new(CorrelationId::made(), Environment::Sandbox, String::new(), 1);
        let partner = Some("acme-remit".parse().unwrap());
        Record::new(event, UtcTime::from_millis(at), Context { partner, ..context }, facts)
    }

    #[test]
    fn refusals_that_were_only_counted_are_in_the_sum() {
        let reason = Some("POLICY_DENIED".to_owned());
        let mut summary = Summary::default();
        for (count, method) in [(None, Some("SignQuote")), (Some(940), None), (None, Some("VerifyQuote"))] {
            let mut refused = record(Event::Refused, 5, Facts { count, reason: reason.clone(), ..Facts::default() });
            refused.context.method = method.map(|method| format!("quotesign.v1.QuoteSigningService/{method}"));
            summary.take(&refused);
        }
        summary.take(&record(Event::Committed, 3, Facts { kid: Some("quote-a".parse().unwrap()), ..Facts::default() }));
        assert_eq!(summary.refused["POLICY_DENIED"], 942);
        assert_eq!(summary.quotes_refused, 941, "a read that was denied is no quote");
        assert_eq!((summary.signed_by_partner["acme-remit"], summary.signed_by_key["quote-a"]), (1, 1));
        assert_eq!((summary.first, summary.last), (Some(UtcTime::from_millis(3)), Some(UtcTime::from_millis(5))));
        assert_eq!(summary.signed_percent, Some(0.1));
    }

    #[test]
    fn the_newest_acts_are_told_one_by_one_and_how_many_were_left_out() {
        let mut summary = Summary::default();
        for at in 0..1_200 {
            summary.take(&record(Event::Halted, at, Facts { stop: Some("halted/all".to_owned()), ..Facts::default() }));
        }
        summary.take(&record(Event::Revoked, 1_200, Facts::default()));
        assert_eq!((summary.acts.len(), summary.acts_left_out), (1_000, 201));
        assert_eq!(summary.acts.back().map(|act| act.event), Some("key.revoked"));
        assert!(summary.text().contains("  201 before these are left out"), "{}", summary.text());
    }

    #[test]
    fn what_gateways_do_all_day_is_no_act() {
        let mut summary = Summary::default();
        for event in [Event::Checkpointed, Event::TlsReloaded, Event::Read, Event::Pruned, Event::Committed] {
            summary.take(&record(event, 1, Facts::default()));
        }
        assert!(summary.acts.is_empty(), "{:?}", summary.acts);
    }

    #[test]
    fn a_filter_finds_what_was_stopped_of_what_it_asks_for() {
        let (partner, kid, caller) = ("acme-remit".parse().ok(), "quote-a".parse().ok(), "dns:a.example".parse().ok());
        let of_partner = Wanted { partner, ..Wanted::default() };
        let of_kid = Wanted { kid, ..Wanted::default() };
        let of_caller = Wanted { caller, ..Wanted::default() };
        for (stop, finds) in [
            ("halted/partner/acme-remit", [true, false, false]),
            ("halted/partner/other", [false, false, false]),
            ("halted/kid/quote-a", [false, true, false]),
            ("revoked/quote-a", [false, true, false]),
            ("suspended/dns:a.example", [false, false, true]),
            ("halted/all", [false, false, false]),
        ] {
            let mut one = record(Event::Halted, 1, Facts { stop: Some(stop.to_owned()), ..Facts::default() });
            one.context.partner = None;
            assert_eq!([&of_partner, &of_kid, &of_caller].map(|wanted| wanted.is(&one)), finds, "{stop}");
        }
    }

    #[test]
    fn each_part_of_a_filter_must_hold() {
        let one = record(Event::Refused, 1_000, Facts::default());
        let (since, until) = (Some(UtcTime::from_millis(1_000)), Some(UtcTime::from_millis(1_001)));
        let fits = Wanted { partner: one.context.partner.clone(), since, until, ..Wanted::default() };
        assert!(fits.is(&one) && Wanted::default().is(&one));
        for other in [
            Wanted { partner: Some("other".parse().unwrap()), ..fits.clone() },
            Wanted { kid: Some("quote-a".parse().unwrap()), ..fits.clone() },
            Wanted { event: Some("quote.committed".to_owned()), ..fits.clone() },
            Wanted { until: since, ..fits.clone() },
            Wanted { since: until, ..fits },
        ] {
            assert!(!other.is(&one), "{other:?}");
        }
    }
}
