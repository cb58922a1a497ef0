//! Ships the journal to a collector, beside everything: what is written waits for nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio_util::sync::CancellationToken;

use self::{
    again::Trials,
    page::{Cursors, Found, Page},
};
use super::lanes::OwnLanes;
use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    config::OtlpSection,
    ledger::{EngineError, Journal, Opening, Place, Quarantined, Shipment, Stretch},
    pipeline::Pipeline,
    signer::jittered,
    telemetry::otlp::{
        exporter::{Answer, Exporter},
        records::{self, LogRecords},
        shipper::{self, Collector, Shipped},
    },
};

mod again;
mod page;

/// How often it is looked whether there is anything new: as long as OpenTelemetry's own processors of log records wait by default.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is taken down how far the journal was shipped: what was shipped since is shipped again after a crash.
const SAVE: Duration = Duration::from_secs(5);
/// How often it tells how far it is behind.
const TELL: Duration = Duration::from_secs(1);
/// How long it waits after a failure at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How long a collector may have itself waited for.
const AFTER_MAX: Duration = Duration::from_mins(5);
/// How long it goes on when the gateway ends, and how long a page may take then: together less than what the end waits for.
const LAST: Duration = Duration::from_millis(2500);

/// What ships.
pub(super) struct Shipping {
    pipeline: Arc<Pipeline>,
    place: Place,
    own: Arc<OwnLanes>,
    to: ToCollector,
}

struct ToCollector {
    exporter: Exporter,
    resource: Resource,
}

impl Collector for ToCollector {
    async fn take(&self, records: &LogRecords) -> Answer {
        self.exporter.logs(records::request(&self.resource, records)).await
    }

    async fn pause(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
    }
}

/// How far each lane was shipped.
#[derive(Default)]
struct Lanes {
    next: BTreeMap<String, u64>,
    saved: BTreeMap<String, u64>,
    saved_at: Option<Instant>,
    journal: Option<Box<dyn Journal>>,
    /// As of when that counts.
    opened: Opening,
    /// Those that no collector would take.
    aside: BTreeSet<(String, u64)>,
    /// When it was last read which those are.
    aside_at: Option<Instant>,
    /// Since when the oldest record of each has waited.
    since: BTreeMap<String, UtcTime>,
    /// Those that lost their end.
    torn: BTreeSet<String>,
    /// Up to which index it was told what is gone.
    told: BTreeMap<String, u64>,
    /// The one whose page the collector would not take just now.
    behind: Option<String>,
    /// The room of the page before.
    room: Vec<u8>,
}

/// What a round came to.
enum Round {
    /// More waits than what was shipped.
    More,
    /// All that there was when it was looked is shipped.
    CaughtUp,
    /// There was nothing to ship.
    Idle,
    /// The collector takes nothing now; when to try again, where it said so.
    Stuck(Option<Duration>),
}

impl Shipping {
    pub(super) fn new(
        pipeline: Arc<Pipeline>,
        place: Place,
        own: Arc<OwnLanes>,
        section: &OtlpSection,
    ) -> Result<Self, String> {
        let resource = records::resource(pipeline.environment, &own.replica);
        Ok(Self { place, own, to: ToCollector { exporter: section.exporter()?, resource }, pipeline })
    }

    /// Ships until `stop`, then what is left, for a short while.
    pub(super) async fn run(self, stop: CancellationToken, last: CancellationToken) {
        let (mut lanes, mut trials, mut backoff) = (Lanes::default(), Trials::default(), BACKOFF.0);
        while !stop.is_cancelled() {
            let Some(round) = self.in_time(&last, &mut lanes).await else { break };
            if matches!(round, Ok(Round::More | Round::CaughtUp | Round::Idle)) {
                backoff = BACKOFF.0;
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.try_again(&mut trials, &mut lanes) => {}
                }
            }
            let pause = match round {
                Ok(Round::More) => continue,
                // What comes meanwhile shares a request: a look costs as much as many records.
                Ok(Round::CaughtUp | Round::Idle) => LOOK,
                Ok(Round::Stuck(after)) => {
                    // A collector that says "at once" over and over is given time all the same.
                    let pause = after.map_or(backoff, |after| after.clamp(backoff, AFTER_MAX));
                    backoff = backoff.saturating_mul(2).min(BACKOFF.1);
                    pause
                }
                Err(fault) => {
                    self.fails(format!("the journal cannot be read to be shipped: {fault}"));
                    self.pipeline.backlog.is_unknown(SystemClock.now());
                    lanes.journal = None;
                    TELL
                }
            };
            let until = Instant::now() + jittered(pause);
            while !stop.is_cancelled() && Instant::now() < until {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(until.saturating_duration_since(Instant::now()).min(TELL)) => {}
                }
                // How far it is behind is told also while it waits.
                if pause > TELL
                    && let Ok(Some((page, _))) = self.next_page(&mut lanes).await
                {
                    lanes.room = page.records.into_room();
                }
            }
        }
        last.cancelled().await;
        let until = Instant::now() + LAST;
        while Instant::now() < until
            && let Some(Ok(Round::More | Round::CaughtUp)) = self.in_time(&last, &mut lanes).await
        {}
        self.save(&mut lanes, Vec::new(), true).await;
    }

    /// Ships one page; nothing where that takes too long once the gateway has ended: what is left is shipped by the next.
    async fn in_time(&self, last: &CancellationToken, lanes: &mut Lanes) -> Option<Result<Round, EngineError>> {
        let too_late = async {
            last.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            round = self.round(lanes) => Some(round),
            () = too_late => None,
        }
    }

    /// Ships one page.
    async fn round(&self, lanes: &mut Lanes) -> Result<Round, EngineError> {
        let Some((Page { lane, before, records, .. }, is_all)) = self.next_page(lanes).await? else {
            self.save(lanes, Vec::new(), false).await;
            return Ok(Round::Idle);
        };
        let Shipped { next_index, aside, stuck } = shipper::ship(&self.to, before, &records).await;
        let backlog = &self.pipeline.backlog;
        let settled = records.marks().iter().filter(|mark| mark.index < next_index).count();
        backlog.shipped(settled.saturating_sub(aside.len()) as u64);
        lanes.room = records.into_room();
        lanes.next.insert(lane.clone(), next_index);
        let quarantined: Vec<_> =
            aside.into_iter().map(|(index, why)| Quarantined { lane: lane.clone(), index, why }).collect();
        for Quarantined { lane, index, why } in &quarantined {
            tracing::error!(
                lane,
                index,
                why,
                "the collector will not take a record of the journal; it is in quarantine"
            );
        }
        self.save(lanes, quarantined, false).await;
        lanes.behind = None;
        let Some(answer) = stuck else {
            if let Some(lane) = lanes.torn.first() {
                backlog.is_torn(page::torn(lane));
            }
            if !is_all {
                return Ok(Round::More);
            }
            if lanes.torn.is_empty() {
                // What comes meanwhile is told by the next look.
                backlog.is(0, None, None);
            }
            return Ok(Round::CaughtUp);
        };
        let (after, why) = match answer {
            Answer::Later { after, why } => (after, why),
            Answer::Denied(why) => (None, why),
            Answer::Taken { why, .. } | Answer::TooLarge(why) | Answer::Bad(why) => {
                // It may be these records alone that it does not take.
                lanes.behind = Some(lane);
                (None, why)
            }
        };
        self.fails(format!("the collector does not take the journal: {why}"));
        Ok(Round::Stuck(after))
    }

    /// Tells it, once for each reason.
    fn fails(&self, why: String) {
        let backlog = &self.pipeline.backlog;
        if backlog.fault().as_ref() != Some(&why) {
            tracing::warn!(why, "the journal is not shipped");
        }
        backlog.failed(why);
    }

    /// What is to be shipped next, read beside everything, and whether that is all that waits where it can be shipped.
    async fn next_page(&self, lanes: &mut Lanes) -> Result<Option<(Page, bool)>, EngineError> {
        // Where the writer has opened the ledger anew, it can be another server's.
        let opened = self.pipeline.ledger.opening();
        let journal = lanes.journal.take().filter(|_| lanes.opened == opened);
        lanes.opened = opened;
        let (place, own) = (self.place.clone(), self.own.clone());
        let (mut next, mut aside) = (std::mem::take(&mut lanes.next), std::mem::take(&mut lanes.aside));
        let is_aside_old = lanes.aside_at.is_none_or(|at| at.elapsed() >= SAVE);
        let (mut room, behind) = (std::mem::take(&mut lanes.room), lanes.behind.clone());
        let look = move || {
            let (journal, is_new) = match journal {
                Some(journal) => (journal, false),
                None => (place.journal()?, true),
            };
            let saved = journal.shipped()?;
            if is_new || is_aside_old {
                // Whichever gateway set it aside, or has had it taken since.
                aside = journal.quarantined()?.into_iter().map(|record| (record.lane, record.index)).collect();
            }
            let lanes = journal.lanes()?;
            let mine = own.among(&lanes);
            let lanes: Vec<_> = lanes.into_iter().filter(|stretch| mine.contains(&stretch.lane)).collect();
            next = lanes.iter().map(|stretch| (stretch.lane.clone(), begin(stretch, &next, &saved, is_new))).collect();
            let scan = |lane: &str, from, count, take: &mut dyn FnMut(_) -> bool| journal.scan(lane, from, count, take);
            let cursors = Cursors { next: &next, aside: &aside, behind: behind.as_deref() };
            let found = page::find(&scan, &lanes, &cursors, &mut room)?;
            Ok::<_, EngineError>((journal, next, aside, found, room))
        };
        let looked = tokio::task::spawn_blocking(look).await;
        let (journal, next, aside, found, room) = looked.map_err(|fault| EngineError::Away(fault.to_string()))??;
        if is_aside_old {
            lanes.aside_at = Some(Instant::now());
        }
        self.pipeline.backlog.aside(aside.len() as u64);
        (lanes.journal, lanes.next, lanes.aside, lanes.room) = (Some(journal), next, aside, room);
        self.tell(lanes, &found);
        Ok(found.page.map(|page| {
            let count = page.records.marks().len() as u64;
            let mut whole = found.waiting.iter().filter(|lane| !lane.is_torn);
            // Some that came since its head was read may be among them.
            let is_all = whole.all(|lane| lane.name == page.lane && lane.records <= count);
            (page, is_all)
        }))
    }

    /// Tells how far it is behind; and once, of what is lost, which keeps nothing else from being shipped.
    fn tell(&self, lanes: &mut Lanes, found: &Found) {
        let (known, now) = (std::mem::take(&mut lanes.since), SystemClock.now());
        for lane in &found.waiting {
            let since = lane.oldest.or_else(|| known.get(&lane.name).copied()).unwrap_or(now);
            lanes.since.insert(lane.name.clone(), since);
        }
        let torn = found.waiting.iter().filter(|lane| lane.is_torn).map(|lane| lane.name.clone());
        let known = std::mem::replace(&mut lanes.torn, torn.collect());
        for lane in lanes.torn.difference(&known) {
            tracing::error!(lane, "the journal is not shipped: {}", page::torn(lane));
        }
        if let Some(Page { lane, gone, .. }) = &found.page {
            let told = lanes.told.entry(lane.clone()).or_default();
            for (from, to) in gone.iter().filter(|(from, _)| from >= told) {
                tracing::error!(lane, from, to, "records of the journal are gone: SOMEBODY CHANGED IT");
                self.pipeline.backlog.are_gone(to.saturating_sub(*from));
            }
            *told = gone.last().map_or(*told, |(_, to)| (*told).max(*to));
        }
        let records = found.waiting.iter().map(|lane| lane.records).sum();
        let backlog = &self.pipeline.backlog;
        backlog.is(records, lanes.since.values().min().copied(), lanes.since.get(&self.own.replica).copied());
        if let Some(lane) = lanes.torn.first() {
            backlog.is_torn(page::torn(lane));
        }
    }

    /// Takes down how far the journal was shipped, where that is due. Where it cannot be, it is shipped again.
    async fn save(&self, lanes: &mut Lanes, quarantined: Vec<Quarantined>, is_last: bool) {
        let is_due = is_last || !quarantined.is_empty() || lanes.saved_at.is_none_or(|at| at.elapsed() >= SAVE);
        if !is_due {
            return;
        }
        let moved = lanes.next.iter().filter(|(lane, next)| lanes.saved.get(*lane) != Some(next));
        for (lane, next) in moved.map(|(lane, next)| (lane.clone(), *next)).collect::<Vec<_>>() {
            let quarantined: Vec<_> = quarantined.iter().filter(|record| record.lane == lane).cloned().collect();
            let of_lane: Vec<_> = quarantined.iter().map(|record| (record.lane.clone(), record.index)).collect();
            let shipment = Shipment { lane: lane.clone(), next_index: next, quarantined, taken: Vec::new() };
            if let Err(fault) = self.pipeline.ledger.ship(shipment).await {
                tracing::debug!(%fault, lane, "how far the journal was shipped could not be taken down");
                if !of_lane.is_empty() {
                    // What is in quarantine must be known for good: it is tried again from there.
                    lanes.next.remove(&lane);
                }
                continue;
            }
            lanes.aside.extend(of_lane);
            lanes.saved.insert(lane, next);
        }
        lanes.saved_at = Some(Instant::now());
    }
}

/// Where the shipping of a lane goes on: where this gateway left it, or another one did. A cursor beyond the journal is nobody's.
fn begin(stretch: &Stretch, next: &BTreeMap<String, u64>, saved: &BTreeMap<String, u64>, is_new: bool) -> u64 {
    let Stretch { lane, first, head } = stretch;
    let of = |cursors: &BTreeMap<String, u64>| cursors.get(lane).copied().filter(|next| *next <= head.next_index);
    if is_new && saved.get(lane).is_some_and(|saved| *saved > head.next_index) {
        tracing::error!(
            lane,
            "the ledger says that more of the journal was shipped than there is: SOMEBODY CHANGED IT"
        );
    }
    of(next).max(of(saved)).unwrap_or_default().max(first.next_index)
}
