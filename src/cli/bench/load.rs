//! The load: lanes that each have one quote under way, over connections that several lanes share. Closed, a lane asks again as soon as
//! it was answered. Open, quotes are due at an even pace whatever the answers take, and a latency begins when its quote was due, not
//! when a lane came to send it: a gateway that stalls is not spared the quotes it kept from being sent.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tonic::{Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::check::{Checker, Sent};
use crate::{
    cli::sign::{Template, this_second},
    clock::UtcTime,
    proto::{SignQuoteRequest, quote_signing_service_client::QuoteSigningServiceClient},
};

/// Latencies from a microsecond to ten minutes, to three digits.
const MICROS_MAX: u64 = 600_000_000;
/// How many quotes may be due and not yet sent.
const DUE_MAX: usize = 1 << 16;
/// The longest that a refused lane waits before it asks again.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Where one quote after another is asked for.
pub(super) struct Lane {
    pub(super) client: QuoteSigningServiceClient<Channel>,
    pub(super) environment: String,
    pub(super) template: Template,
    /// What ids of its quotes begin with.
    pub(super) prefix: String,
    /// The sequence that its numbers belong to, and the greatest that was told of it.
    pub(super) scope: usize,
    pub(super) told: Arc<AtomicU64>,
    /// The next number, where the lane gives them.
    pub(super) next: Option<u64>,
    /// When its quotes say that they were issued, where that is not when they are sent.
    pub(super) issued: Option<UtcTime>,
    /// How many were made.
    pub(super) made: u64,
}

/// How quotes come to be due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// As soon as the one before was answered.
    Closed,
    /// So many a second.
    Open(f64),
}

/// How much, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) pace: Pace,
    pub(super) lasts: Duration,
    pub(super) quotes_max: u64,
    pub(super) deadline: Duration,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) signed: u64,
    /// From when a quote was due.
    pub(super) latency: Histogram<u64>,
    /// From when it was sent.
    pub(super) service: Histogram<u64>,
    /// Refusals by their reason.
    pub(super) refused: BTreeMap<String, u64>,
    /// What failed without a reason, by its code.
    pub(super) errors: BTreeMap<String, u64>,
    /// Quotes that were due and never sent, since all lanes were taken until the end.
    pub(super) unsent: u64,
    pub(super) took: Duration,
}

impl Outcome {
    fn new() -> Result<Self, String> {
        Ok(Self {
            signed: 0,
            latency: histogram()?,
            service: histogram()?,
            refused: BTreeMap::new(),
            errors: BTreeMap::new(),
            unsent: 0,
            took: Duration::ZERO,
        })
    }

    fn add(&mut self, other: &Self) -> Result<(), String> {
        self.signed += other.signed;
        self.unsent += other.unsent;
        for (all, more) in [(&mut self.refused, &other.refused), (&mut self.errors, &other.errors)] {
            for (reason, count) in more {
                *all.entry(reason.clone()).or_default() += count;
            }
        }
        self.latency.add(&other.latency).map_err(|fault| fault.to_string())?;
        self.service.add(&other.service).map_err(|fault| fault.to_string())
    }

    fn signed(&mut self, due: Instant, sent: Instant) {
        self.signed += 1;
        self.latency.saturating_record(micros(due.elapsed()));
        self.service.saturating_record(micros(sent.elapsed()));
    }

    fn failed(&mut self, status: &Status) {
        match status.get_details_error_info() {
            Some(info) => *self.refused.entry(info.reason).or_default() += 1,
            None => *self.errors.entry(format!("{:?}", status.code())).or_default() += 1,
        }
    }
}

/// Of microseconds.
pub(super) fn histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1, MICROS_MAX, 3).map_err(|fault| fault.to_string())
}

/// Microseconds.
pub(super) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// When each quote is due.
#[derive(Clone)]
enum Due {
    /// At once, until then, while there are tickets left.
    Closed { until: Instant, left: Arc<AtomicU64> },
    /// When the pacing thread says; none is sent after the instant.
    Open { due: flume::Receiver<Instant>, give_up: Instant },
}

impl Due {
    async fn next(&self, outcome: &mut Outcome) -> Option<Instant> {
        match self {
            Self::Closed { until, left } => {
                let now = Instant::now();
                let take = |left: u64| left.checked_sub(1);
                let has_ticket = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
                (now < *until && has_ticket).then_some(now)
            }
            Self::Open { due, give_up } => loop {
                let due = due.recv_async().await.ok()?;
                if Instant::now() < *give_up {
                    return Some(due);
                }
                outcome.unsent += 1;
            },
        }
    }
}

/// Has the lanes carry the load to its end, and gives them back.
pub(super) async fn carry(
    lanes: Vec<Lane>,
    load: Load,
    checker: &Arc<Checker>,
    progress: &ProgressBar,
) -> Result<(Vec<Lane>, Outcome), String> {
    let began = Instant::now();
    let missed = Arc::new(AtomicU64::new(0));
    let due = match load.pace {
        Pace::Closed => Due::Closed { until: began + load.lasts, left: Arc::new(AtomicU64::new(load.quotes_max)) },
        Pace::Open(rate) => {
            let (say, due) = flume::bounded(DUE_MAX);
            let missed = Arc::clone(&missed);
            thread::spawn(move || keep_pace(rate, load, &say, &missed));
            Due::Open { due, give_up: began + load.lasts + load.deadline }
        }
    };
    let mut running = JoinSet::new();
    for lane in lanes {
        let (due, checker, progress) = (due.clone(), Arc::clone(checker), progress.clone());
        running.spawn(lane.carry(due, load, checker, progress));
    }
    let (mut back, mut all) = (Vec::new(), Outcome::new()?);
    while let Some(ended) = running.join_next().await {
        let (lane, outcome) = ended.map_err(|fault| fault.to_string())??;
        all.add(&outcome)?;
        back.push(lane);
    }
    all.took = began.elapsed();
    all.unsent += missed.load(Ordering::Relaxed);
    Ok((back, all))
}

/// Says when quotes are due, from a thread of its own: the runtime's timers go by the millisecond.
fn keep_pace(rate: f64, load: Load, say: &flume::Sender<Instant>, missed: &AtomicU64) {
    let began = Instant::now();
    for number in 0..load.quotes_max {
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 quotes")]
        let after = Duration::from_secs_f64(number as f64 / rate);
        if after >= load.lasts {
            return;
        }
        let due = began + after;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        match say.try_send(due) {
            Ok(()) => {}
            Err(flume::TrySendError::Full(_)) => drop(missed.fetch_add(1, Ordering::Relaxed)),
            Err(flume::TrySendError::Disconnected(_)) => return,
        }
    }
}

impl Lane {
    async fn carry(
        mut self,
        due: Due,
        load: Load,
        checker: Arc<Checker>,
        progress: ProgressBar,
    ) -> Result<(Self, Outcome), String> {
        let mut outcome = Outcome::new()?;
        while let Some(due) = due.next(&mut outcome).await {
            let wait = self.ask(due, load.deadline, &checker, &mut outcome).await?;
            progress.inc(1);
            // An open load goes on whatever it is told.
            if load.pace == Pace::Closed && !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
        Ok((self, outcome))
    }

    /// Asks for one quote, and says how long to wait where it was refused.
    async fn ask(
        &mut self,
        due: Instant,
        deadline: Duration,
        checker: &Checker,
        outcome: &mut Outcome,
    ) -> Result<Duration, String> {
        self.made += 1;
        let id = format!("{}-{}", self.prefix, self.made);
        let quote = self.template.fill(&id, self.next, self.issued.unwrap_or_else(this_second));
        let payload = serde_jcs::to_vec(&quote).map_err(|fault| fault.to_string())?;
        let above = self.told.load(Ordering::SeqCst);
        let environment = self.environment.clone();
        let mut request =
            Request::new(SignQuoteRequest { environment, payload: payload.clone(), ..SignQuoteRequest::default() });
        request.set_timeout(deadline);
        let sent = Instant::now();
        match self.client.sign_quote(request).await {
            Ok(answer) => {
                outcome.signed(due, sent);
                let answer = answer.into_inner();
                let sent = Sent { scope: self.scope, id: &id, number: self.next, above, payload: &payload };
                checker.take(&sent, &answer);
                self.told.fetch_max(answer.sequence, Ordering::SeqCst);
                self.next = self.next.map(|number| number + 1);
                Ok(Duration::ZERO)
            }
            Err(status) => {
                outcome.failed(&status);
                let details = status.get_error_details();
                let reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
                // What is refused before its number is bound leaves the number to the next.
                if !matches!(reason, "RATE_LIMITED" | "OVERLOADED") {
                    self.next = self.next.map(|number| number + 1);
                }
                let told = details.retry_info().and_then(|info| info.retry_delay);
                Ok(told.unwrap_or(Duration::from_millis(10)).min(WAIT_MAX))
            }
        }
    }
}
