//! The thread that keeps one token at work. It brings the token up, runs its workers for one *generation*,
//! has every key probed, and ends the generation when it is broken: queued jobs are refused, the workers leave
//! the module, and only when all have left is the token brought up anew. A worker stuck inside the module is
//! waited for, however long, since a module must not be finalised under it. A refused PIN ends it for good.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    AttributePolicy, Shared,
    device::{Access, Device},
    fault::Fault,
    key::Key,
    worker::{BusySince, Job, Worker},
};
use crate::signer::SignError;

const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause between two attempts to bring a token up.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(50);

/// The time from one bringing-up of a token to its end, as its workers see it.
pub(super) struct Generation<'d> {
    number: u64,
    device: &'d Device<'d>,
    attributes: AttributePolicy,
    over: AtomicBool,
    busy: Vec<BusySince>,
    report: flume::Sender<Fault>,
    reports: flume::Receiver<Fault>,
}

impl<'d> Generation<'d> {
    fn new(number: u64, device: &'d Device<'d>, attributes: AttributePolicy) -> Self {
        let (report, reports) = flume::bounded(1);
        let busy = (0..device.sessions()).map(|_| BusySince::default()).collect();
        Self { number, device, attributes, over: AtomicBool::new(false), busy, report, reports }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn device(&self) -> &'d Device<'d> {
        self.device
    }

    pub(super) fn attributes(&self) -> AttributePolicy {
        self.attributes
    }

    /// Whether no more jobs are to be done.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Tells the supervisor that the generation is broken. The first report is enough.
    pub(super) fn report(&self, fault: Fault) {
        let _ = self.report.try_send(fault);
    }
}

/// Keeps the token at work until it is closed, its handle is dropped, or its PIN is refused.
pub(super) fn run(shared: &Shared) {
    let name = &shared.config.name;
    let mut pause = PAUSE_MIN;
    for generation in 1.. {
        let began = Instant::now();
        let Err(fault) = Device::reach(&shared.config).and_then(|device| serve(shared, generation, &device)) else {
            break;
        };
        let news = shared.down(&fault.to_string());
        if let Fault::Pin(_) = fault {
            tracing::error!(signer = %name, why = %fault, "the token is given up; correct its PIN and restart");
            return;
        }
        if news {
            tracing::warn!(signer = %name, why = %fault, "the token is down; trying until it is back");
        }
        // A generation that lasted was no failed attempt.
        if began.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        if !shared.pause(jittered(pause)) {
            break;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    shared.down("the token is closed");
}

/// One generation. Ok when the token is to be closed.
fn serve(shared: &Shared, number: u64, device: &Device<'_>) -> Result<(), Fault> {
    // Held to the end, since a token logs out when its last session closes.
    let _keeper = device.session(Access::Read)?;
    let (sender, jobs) = flume::bounded(shared.config.queue_max.max(1));
    let generation = Generation::new(number, device, shared.config.attributes);
    thread::scope(|scope| {
        // Moved in, so that an early return leaves no sender for the workers to wait on.
        let sender = sender;
        let spawn = |busy_since| {
            let (worker, jobs) = (Worker::new(&generation, busy_since), jobs.clone());
            thread::Builder::new().name("pkcs11-worker".to_owned()).spawn_scoped(scope, move || worker.run(&jobs))
        };
        let workers = generation.busy.iter().map(spawn).collect::<io::Result<Vec<_>>>();
        let workers = workers.map_err(|error| Fault::Device(format!("cannot start a worker: {error}")))?;
        tracing::info!(signer = %shared.config.name, generation = number, sessions = workers.len(), "the token is up");
        shared.up(number, sender.clone());
        let ended = watch(shared, &generation, &sender, &workers);
        let why = ended.as_ref().map_or_else(Fault::to_string, |()| "the token is closing".to_owned());
        generation.over.store(true, Ordering::Release);
        if ended.is_err() {
            tracing::warn!(signer = %shared.config.name, generation = number, %why, "the token failed");
        }
        shared.down(&why);
        drop(sender);
        for job in jobs.drain() {
            job.refuse(SignError::Unavailable(why.clone()));
        }
        see_off(shared, workers);
        // A refused PIN outweighs whatever was reported before it.
        device.refusal().map_or(ended, Err)
    })
}

/// Has the keys probed, until the generation is broken (why) or the token is to be closed (Ok).
fn watch(
    shared: &Shared,
    generation: &Generation<'_>,
    jobs: &flume::Sender<Job>,
    workers: &[ScopedJoinHandle<'_, ()>],
) -> Result<(), Fault> {
    let limit = shared.config.call_timeout;
    while !shared.is_closing() {
        if workers.iter().any(ScopedJoinHandle::is_finished) {
            return Err(Fault::Device("a worker has ended by itself".to_owned()));
        }
        if generation.busy.iter().all(|since| since.lock().is_some_and(|since| since.elapsed() > limit)) {
            return Err(Fault::Device(format!("every session has been inside the module for more than {limit:?}")));
        }
        if let Some(fault) = probe(shared, generation.number, jobs) {
            return Err(fault);
        }
        if let Ok(fault) = generation.reports.recv_timeout(TICK) {
            return Err(fault);
        }
    }
    Ok(())
}

/// Has those keys probed that are due; gives the reason where nothing signs.
fn probe(shared: &Shared, generation: u64, jobs: &flume::Sender<Job>) -> Option<Fault> {
    let keys = shared.live_keys();
    for key in &keys {
        let due = key.take_probe(generation, jittered(shared.config.probe_interval));
        if due && jobs.try_send(Job::Probe { key: Arc::clone(key) }).is_err() {
            key.return_probe();
        }
    }
    nothing_signs(&keys, generation)
}

/// Where every key was tried, none signs, and one of them for a reason that may be the token's: that reason.
/// As long as one key signs, another's failure is its own, and no cause to disturb the token.
fn nothing_signs(keys: &[Arc<Key>], generation: u64) -> Option<Fault> {
    let mut cause = None;
    for key in keys {
        match key.verdict(generation)? {
            Ok(()) => return None,
            Err(fault @ Fault::Device(_)) => cause = Some(fault),
            Err(_) => {}
        }
    }
    cause
}

/// Waits until every worker has left the module, and says so if one does not.
fn see_off(shared: &Shared, workers: Vec<ScopedJoinHandle<'_, ()>>) {
    let since = Instant::now();
    let mut told = false;
    loop {
        let inside = workers.iter().filter(|worker| !worker.is_finished()).count();
        if inside == 0 {
            break;
        }
        if !told && since.elapsed() > shared.config.call_timeout {
            told = true;
            let why =
                format!("{inside} sessions are stuck inside the module, which cannot start anew before they leave");
            tracing::error!(signer = %shared.config.name, %why, "the token waits for the module");
            shared.down(&why);
        }
        thread::sleep(Duration::from_millis(5));
    }
    for worker in workers {
        if worker.join().is_err() {
            tracing::error!(signer = %shared.config.name, "a worker panicked");
        }
    }
}

/// `pause` give or take a tenth, so that replicas do not move in step.
fn jittered(pause: Duration) -> Duration {
    let [.., random] = Uuid::now_v7().into_bytes();
    pause.mul_f64(0.9 + 0.2 * f64::from(random) / 255.0)
}
