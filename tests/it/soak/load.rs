//! The soak's clients. Each lane has a sequence of its own and one quote under way, keeps to the contract (no answer, or one that says
//! to ask again: the very same quote again, at whichever gateway), and takes down what it was told for good. Quotes are due at an even
//! pace; a latency begins when its quote was due.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use quotesign::{domain::sha256, proto::SignQuoteResponse};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tonic::{Code, Status};

use crate::harness::{Caller, Quote, reason, wait};

/// How long one call may take, and how long a quote is asked for again before it counts as lost.
const CALL: Duration = Duration::from_secs(5);
const GIVE_UP: Duration = Duration::from_mins(3);
/// One quote in so many is asked for again once it was answered.
const REPLAY_EVERY: u64 = 50;
/// Of the answers so many of the newest are kept whole, to be asked for at the end.
const WHOLE_MAX: usize = 200;

/// What a client was told for good.
pub struct Told {
    pub corridor: String,
    pub number: u64,
    pub id: String,
    pub kid: String,
    pub jws_sha256: [u8; 32],
    pub record: String,
}

/// What all clients saw.
pub struct Seen {
    pub began: Instant,
    pub told: Vec<Told>,
    /// Latencies in microseconds by minute.
    pub minutes: Vec<Histogram<u64>>,
    /// How often a call was answered so, by the second it was in.
    pub trouble: BTreeMap<(u64, String), u64>,
    /// What must never be.
    pub faults: Vec<String>,
    pub replays: u64,
    /// Quotes with the JWS that was told.
    pub whole: Vec<(Quote, String)>,
    /// When each kid was first seen, in seconds.
    pub kids: BTreeMap<String, f64>,
}

impl Seen {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            told: Vec::new(),
            minutes: Vec::new(),
            trouble: BTreeMap::new(),
            faults: Vec::new(),
            replays: 0,
            whole: Vec::new(),
            kids: BTreeMap::new(),
        }
    }

    fn troubled(&mut self, what: String) {
        *self.trouble.entry((self.began.elapsed().as_secs(), what)).or_default() += 1;
    }

    fn answered(&mut self, quote: &Quote, due: Instant, answer: SignQuoteResponse) {
        let minute = usize::try_from(due.saturating_duration_since(self.began).as_secs() / 60).unwrap();
        while self.minutes.len() <= minute {
            self.minutes.push(Histogram::new_with_bounds(1, 600_000_000, 3).unwrap());
        }
        self.minutes[minute].saturating_record(u64::try_from(due.elapsed().as_micros()).unwrap());
        let text = |claim: &str| quote.0[claim].as_str().unwrap().to_owned();
        let number = quote.0["quote_sequence"].as_u64().unwrap();
        if answer.sequence != number {
            self.faults.push(format!("{number} was told as {}", answer.sequence));
        }
        let at = self.began.elapsed().as_secs_f64();
        self.kids.entry(answer.kid.clone()).or_insert(at);
        let jws_sha256 = sha256(answer.jws.as_bytes());
        let record = answer.audit_record_id;
        self.told.push(Told {
            corridor: text("corridor"),
            number,
            id: text("quote_id"),
            kid: answer.kid,
            jws_sha256,
            record,
        });
        if self.whole.len() == WHOLE_MAX {
            self.whole.remove(0);
        }
        self.whole.push((quote.clone(), answer.jws));
    }

    fn replayed(&mut self, quote: &Quote, jws: &str, again: &SignQuoteResponse) {
        self.replays += 1;
        if !again.replayed || again.jws != jws {
            self.faults.push(format!("{} was told another JWS the second time", quote.id()));
        }
    }
}

/// The clients, and where they call.
pub struct Clients {
    pub gateways: Vec<watch::Sender<Caller>>,
    pub seen: Arc<Mutex<Seen>>,
    pub lanes: Vec<Lane>,
    template: Value,
}

/// A sequence, and its next number.
pub struct Lane {
    corridor: String,
    next: u64,
}

impl Clients {
    pub fn new(callers: Vec<Caller>, lanes: usize) -> Self {
        let lanes = (0..lanes).map(|at| Lane { corridor: format!("GB-{at}"), next: 1 });
        Self {
            gateways: callers.into_iter().map(watch::Sender::new).collect(),
            seen: Arc::new(Mutex::new(Seen::new())),
            lanes: lanes.collect(),
            template: Quote::number(1).0,
        }
    }

    /// Has the lanes ask for `lasts`: at this pace, or one quote after another. Says how many were answered in a second.
    pub async fn ask(&mut self, rate: Option<f64>, lasts: Duration) -> f64 {
        let began = Instant::now();
        let before = self.seen.lock().unwrap().told.len();
        let (say, due) = flume::bounded(1 << 16);
        let over = Arc::new(AtomicBool::new(false));
        let pacing = rate.map(|rate| {
            std::thread::spawn(move || {
                for number in 0_u32.. {
                    let after = Duration::from_secs_f64(f64::from(number) / rate);
                    if after >= lasts {
                        return;
                    }
                    std::thread::sleep((began + after).saturating_duration_since(Instant::now()));
                    say.send(began + after).unwrap();
                }
            })
        });
        let mut asking = JoinSet::new();
        for (at, mut lane) in std::mem::take(&mut self.lanes).into_iter().enumerate() {
            let (due, over) = (due.clone(), over.clone());
            let client = Client {
                gateways: self.gateways.iter().map(watch::Sender::subscribe).collect(),
                first: at,
                seen: self.seen.clone(),
                asked: AtomicU64::new(0),
            };
            let template = self.template.clone();
            asking.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let due = match rate {
                        Some(_) => match due.recv_async().await {
                            Ok(due) => due,
                            Err(_) => break,
                        },
                        None => Instant::now(),
                    };
                    client.ask_for(&lane.quote(&template), due).await;
                }
                lane
            });
        }
        drop(due);
        if rate.is_none() {
            tokio::time::sleep(lasts).await;
            over.store(true, Ordering::Relaxed);
        }
        self.lanes = asking.join_all().await;
        self.lanes.sort_by(|one, other| one.corridor.cmp(&other.corridor));
        if let Some(pacing) = pacing {
            pacing.join().unwrap();
        }
        let answered = self.seen.lock().unwrap().told.len() - before;
        f64::from(u32::try_from(answered).unwrap()) / began.elapsed().as_secs_f64()
    }

    /// Forgets what was seen of times, and begins the run's clock.
    pub fn begin(&self) {
        let mut seen = self.seen.lock().unwrap();
        seen.began = Instant::now();
        seen.minutes.clear();
        seen.trouble.clear();
        seen.kids.clear();
    }

    /// Asks for the newest quotes again, at every gateway.
    pub async fn replay(&self) {
        let whole = std::mem::take(&mut self.seen.lock().unwrap().whole);
        for gateway in &self.gateways {
            for (quote, jws) in &whole {
                let caller = gateway.borrow().clone();
                let again = caller.sign(quote).await.unwrap();
                self.seen.lock().unwrap().replayed(quote, jws, &again);
            }
        }
    }
}

impl Lane {
    fn quote(&mut self, template: &Value) -> Quote {
        let times = Quote(template.clone()).valid(0, 600);
        let id = json!(uuid::Uuid::now_v7().to_string());
        let quote = times.with("quote_id", id).with("quote_sequence", json!(self.next));
        self.next += 1;
        quote.with("corridor", json!(self.corridor))
    }
}

struct Client {
    gateways: Vec<watch::Receiver<Caller>>,
    first: usize,
    seen: Arc<Mutex<Seen>>,
    asked: AtomicU64,
}

impl Client {
    /// Asks until it is told something for good.
    async fn ask_for(&self, quote: &Quote, due: Instant) {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let mut pause = Duration::from_millis(20);
        for attempt in self.first.. {
            let answer = timeout(CALL, self.caller(attempt).sign(quote)).await;
            let status = match answer {
                Ok(Ok(answer)) => {
                    let jws = answer.jws.clone();
                    self.seen.lock().unwrap().answered(quote, due, answer);
                    if asked.is_multiple_of(REPLAY_EVERY) {
                        self.ask_again(quote, &jws, attempt + 1).await;
                    }
                    return;
                }
                Ok(Err(status)) => status,
                Err(_) => Status::new(Code::Cancelled, "no answer in time"),
            };
            if !self.goes_on(quote, &status, begun) {
                return;
            }
            tokio::time::sleep(pause.max(wait(&status)).min(Duration::from_secs(1))).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Whether a quote that was answered so is asked for again.
    fn goes_on(&self, quote: &Quote, status: &Status, begun: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap();
        seen.troubled(name(status));
        let goes_on = is_retryable(status) && begun.elapsed() < GIVE_UP;
        if !goes_on {
            seen.faults.push(format!("{} was given up: {}", quote.id(), name(status)));
        }
        goes_on
    }

    /// A quote that was answered, once more; not where the gateway is in trouble, which the retries show.
    async fn ask_again(&self, quote: &Quote, jws: &str, attempt: usize) {
        match timeout(CALL, self.caller(attempt).sign(quote)).await {
            Ok(Ok(again)) => self.seen.lock().unwrap().replayed(quote, jws, &again),
            Ok(Err(status)) => self.seen.lock().unwrap().troubled(name(&status)),
            Err(_) => {}
        }
    }

    fn caller(&self, attempt: usize) -> Caller {
        self.gateways[attempt % self.gateways.len()].borrow().clone()
    }
}

/// The reason, or the code where there is none.
fn name(status: &Status) -> String {
    let reason = reason(status);
    if reason.is_empty() { format!("{:?}", status.code()) } else { reason }
}

/// By the contract.
fn is_retryable(status: &Status) -> bool {
    matches!(
        name(status).as_str(),
        "SIGNER_UNAVAILABLE" | "LEDGER_UNAVAILABLE" | "OVERLOADED" | "DEADLINE_EXCEEDED" | "NO_ACTIVE_KEY"
    ) || matches!(status.code(), Code::Unavailable | Code::Cancelled)
}
