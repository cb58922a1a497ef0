//! The task that keeps one token at work. It starts a host process for one *generation*, has every key bound and
//! then probed, replaces sessions that are stuck, and ends the generation when it is broken: what is with the host
//! gets a moment to come back, then the process goes, and the next one begins from nothing. A refused PIN ends it
//! until there is another.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use secrecy::SecretString;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinHandle},
    time,
};

use super::{
    Key, Shared, State,
    fault::Fault,
    link::Link,
    outage::Outage,
    wire::{self, Open, Opened, Request, Response},
};
use crate::{
    jws::SigningInput,
    signer::{Flow, Health, Order, SignError, jittered},
};

/// The pauses between two attempts to bring a token up: the first at once, then doubling.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(50);
/// How long jobs may take to come back when their generation has ended.
const SETTLE: Duration = Duration::from_millis(200);
/// How long a host process may take to leave its module.
const LEAVE: Duration = Duration::from_millis(800);
/// So much work waits in the host, so that no session idles while its next job is on the way: a busy machine takes about
/// as long to get it there. It is what a caller whose turn it is may have to wait for others' jobs.
const AHEAD: Duration = Duration::from_millis(2);
/// No session has more jobs ahead.
const AHEAD_MAX: usize = 4;
/// A module may take as many times the patience of a call to be loaded and to log in.
const OPEN_FACTOR: u32 = 5;
/// A token may take as many times the patience of a call to answer any job, where no session says that it is at one.
const SILENCE: u32 = 2;
/// How long a token whose keys are all missing or unfit is left alone before it is brought up anew.
const UNFIT_AGAIN: Duration = Duration::from_secs(5);
/// A token that was up for longer, and is lost, has not been away all the time before.
const STEADY: Duration = Duration::from_secs(1);

/// Keeps the token at work until it is closed or given up.
pub(super) async fn run(shared: Arc<Shared>, mut reports: mpsc::Receiver<(u64, Fault)>) {
    let name = &shared.config.name;
    let mut pause = Duration::ZERO;
    let mut outage = Outage::default();
    for number in 1.. {
        let began = Instant::now();
        let ended = Generation::run(&shared, number, &mut reports, &mut outage).await;
        let Err(fault) = ended else { break };
        if let Fault::Pin(_) = fault {
            shared.down(&fault.to_string());
            tracing::error!(signer = %name, why = %fault, "the token is given up; correct its PIN: a file is read again, a variable with a restart");
            // Nobody is shown an older reason while the next one is tried.
            (pause, outage) = (Duration::ZERO, Outage::default());
            tokio::select! {
                () = shared.closing.cancelled() => break,
                () = shared.given.another(&shared.config.pin) => continue,
            }
        }
        if let Some(lost) = shared.logins.too_many_lost() {
            shared.down(&format!("{lost} logins came to no known end, the last: {fault}; none is tried again"));
            tracing::error!(signer = %name, why = %fault, logins_lost = lost, "the token is given up; see to it and its PIN, and restart");
            return;
        }
        outage.tell(&shared, &fault.to_string());
        // A generation that lasted was no failed attempt.
        if began.elapsed() > PAUSE_MAX * 2 {
            pause = Duration::ZERO;
        }
        tokio::select! {
            () = shared.closing.cancelled() => break,
            () = outage.wait(&shared, jittered(shared.logins.pause().unwrap_or(pause))) => {}
        }
        pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
    }
    shared.down("the token is closed");
}

/// One host process and what has come of it.
struct Generation<'s> {
    shared: &'s Arc<Shared>,
    number: u64,
    link: Arc<Link>,
    opened: Opened,
    /// The keys that the host knows.
    bound: BTreeMap<u32, std::sync::Weak<Key>>,
    /// Sessions that stand in for stuck ones, ever.
    replaced: usize,
    began: Instant,
}

impl<'s> Generation<'s> {
    /// Runs one generation to its end. Ok when the token is to be closed.
    async fn run(
        shared: &'s Arc<Shared>,
        number: u64,
        reports: &mut mpsc::Receiver<(u64, Fault)>,
        outage: &mut Outage,
    ) -> Result<(), Fault> {
        shared.generations.store(number, Ordering::Relaxed);
        let link = Arc::new(Link::start(&shared.config, Arc::clone(&shared.logins))?);
        let listening = Arc::clone(&link);
        let mut listener = tokio::spawn(async move { listening.listen().await });
        let _listener = AbortOnDrop(listener.abort_handle());
        let opened = tokio::select! {
            opened = outage.during(shared, Self::open(shared, number, &link)) => opened,
            fault = &mut listener => Err(unheard(fault)),
            () = shared.closing.cancelled() => {
                link.kill().await;
                return Ok(());
            }
        };
        let ended = match opened {
            Ok(generation) => {
                let began = Instant::now();
                let ended = generation.watch(reports, &mut listener).await;
                if began.elapsed() > STEADY {
                    *outage = Outage::default();
                }
                ended
            }
            Err(fault) => Err(fault),
        };
        let why = ended.as_ref().map_or_else(Fault::to_string, |()| "the token is closing".to_owned());
        if ended.is_err() && shared.is_up() {
            outage.since.get_or_insert_with(Instant::now);
            tracing::warn!(signer = %shared.config.name, generation = number, why, "the token failed");
            outage.tell(shared, &why);
        }
        link.settle(SETTLE).await;
        link.refuse_all(&why);
        link.close(LEAVE).await;
        link.hear_out();
        // A refused PIN outweighs whatever else ended the generation.
        link.refusal().map_or(ended, Err)
    }

    /// Brings the token up, with every key bound that can be.
    async fn open(shared: &'s Arc<Shared>, number: u64, link: &Arc<Link>) -> Result<Self, Fault> {
        let config = &shared.config;
        let open = Open {
            module: config.module.display().to_string(),
            token_label: config.token_label.clone(),
            token_serial: config.token_serial.clone(),
            sessions: u32::try_from(config.sessions).unwrap_or(u32::MAX),
        };
        let pin = config.pin.read()?;
        shared.given.note(&pin);
        let patience = config.call_timeout * OPEN_FACTOR;
        tokio::select! {
            answer = link.ask(Request::Open(open), &[], patience) => answer??,
            fault = link.ended() => return Err(fault),
        };
        let opened = Self::log_in(link, &pin, patience).await?;
        let (bound, began) = (BTreeMap::new(), Instant::now());
        let mut generation = Self { shared, number, link: Arc::clone(link), opened, bound, replaced: 0, began };
        generation.look_after_keys().await?;
        generation.keep_ahead();
        shared.state.store(Arc::new(State::Up { generation: number, link: Arc::clone(link) }));
        let (sessions, token) = (generation.opened.sessions, &generation.opened.token);
        tracing::info!(signer = %config.name, generation = number, sessions, token, "the token is up");
        generation.show_bound();
        Ok(generation)
    }

    async fn log_in(link: &Arc<Link>, pin: &SecretString, patience: Duration) -> Result<Opened, Fault> {
        let secrets = [pin];
        let answer = tokio::select! {
            answer = link.ask(Request::Login(wire::Nothing {}), &secrets, patience) => answer?,
            fault = link.ended() => return Err(fault),
        };
        match answer? {
            Response::Opened(opened) => Ok(opened),
            _ => Err(out_of_turn()),
        }
    }

    /// Has the keys probed, until the generation is broken (why) or the token is to be closed (Ok).
    async fn watch(
        mut self,
        reports: &mut mpsc::Receiver<(u64, Fault)>,
        listener: &mut JoinHandle<Fault>,
    ) -> Result<(), Fault> {
        let shared = self.shared;
        loop {
            tokio::select! {
                () = shared.closing.cancelled() => return Ok(()),
                fault = self.link.ended() => return Err(fault),
                fault = &mut *listener => return Err(unheard(fault)),
                Some((number, fault)) = reports.recv() => {
                    if number == self.number {
                        return Err(fault);
                    }
                }
                () = shared.wake.notified() => {}
                () = time::sleep(TICK) => {
                    self.replace_stuck().await?;
                    self.keep_ahead();
                }
            }
            self.look_after_keys().await?;
            self.show_bound();
        }
    }

    /// As many orders as there are sessions, and where they are quick a few more.
    fn keep_ahead(&self) {
        let (turns, sessions) = (&self.shared.turns, self.opened.sessions as usize);
        let ahead = turns.service().map_or(1, |service| {
            let work = AHEAD.as_micros() * u128::from(self.opened.sessions);
            usize::try_from(work / service.as_micros().max(1)).unwrap_or(usize::MAX).min(sessions * AHEAD_MAX)
        });
        turns.set_slots(sessions, ahead);
    }

    /// Sessions that are stuck inside the module get a stand-in, while the token has sessions to spare.
    async fn replace_stuck(&mut self) -> Result<(), Fault> {
        let limit = self.shared.config.call_timeout;
        if !self.link.has_late_jobs(limit) {
            return Ok(());
        }
        let stuck = self.replaced.saturating_sub(self.link.returned());
        let most = self.opened.spare.saturating_sub(u32::try_from(stuck).unwrap_or(u32::MAX));
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let ask = Request::Replace(wire::Replace { limit_ms, most });
        let Response::Replaced(replaced) = self.link.ask(ask, &[], limit).await?? else {
            return Err(out_of_turn());
        };
        // One that has come back meanwhile is as good as another's stand-in.
        let new = replaced.jobs.into_iter().filter(|job| self.link.give_up(*job, limit)).count();
        self.replaced += new;
        let stuck = self.replaced.saturating_sub(self.link.returned());
        if replaced.without > 0 {
            return Err(Fault::Device(format!(
                "{stuck} calls have been inside the module for more than {limit_ms} ms"
            )));
        }
        let silence = limit * SILENCE;
        if new == 0 && self.link.is_silent(silence) {
            return Err(Fault::Device(format!("no job has come back for more than {} ms", silence.as_millis())));
        }
        if new > 0 {
            tracing::warn!(signer = %self.shared.config.name, stuck, "a session is stuck inside the module; another stands in for it");
        }
        Ok(())
    }

    /// Binds what is not bound, probes what is due, and forgets what nobody holds.
    async fn look_after_keys(&mut self) -> Result<(), Fault> {
        let keys = self.shared.live_keys();
        for key in &keys {
            if !key.take_probe(self.shared.config.probe_interval, self.number) {
                continue;
            }
            if key.is_bound(self.number) {
                tokio::spawn(probe(Arc::clone(self.shared), Arc::clone(key)));
            } else {
                self.bind(key).await?;
            }
        }
        let gone: Vec<_> = self.bound.iter().filter(|(_, key)| key.strong_count() == 0).map(|(at, _)| *at).collect();
        for number in gone {
            self.bound.remove(&number);
            self.link.ask(Request::Forget(number), &[], self.shared.config.call_timeout).await??;
        }
        self.nothing_signs(&keys).map_or(Ok(()), Err)
    }

    async fn bind(&mut self, key: &Arc<Key>) -> Result<(), Fault> {
        let ask = wire::Bind {
            number: key.number,
            locator: key.locator.clone(),
            jwk: key.standing.public().to_jwk().to_string().into_bytes(),
            attributes: wire::Attributes::from(key.attributes).into(),
        };
        let patience = self.shared.config.call_timeout;
        let asking = self.link.ask(Request::Bind(ask), &[], patience);
        let answer = tokio::select! {
            answer = asking => answer?,
            fault = self.link.ended() => return Err(fault),
        };
        match answer {
            Ok(Response::Bound(bound)) => {
                self.bound.insert(key.number, Arc::downgrade(key));
                key.was_bound(self.number, &bound);
                Ok(())
            }
            Ok(_) => Err(out_of_turn()),
            Err(fault @ (Fault::Pin(_) | Fault::Login(_))) => Err(fault),
            Err(fault) => {
                key.was_refused(self.number, &fault);
                Ok(())
            }
        }
    }

    /// Bound keys serve once the token is up.
    fn show_bound(&self) {
        for key in self.bound.values().filter_map(std::sync::Weak::upgrade) {
            let fresh = {
                let mut binding = key.binding.lock();
                binding.generation == self.number && std::mem::take(&mut binding.fresh)
            };
            if fresh {
                key.standing.set(Health::Serving);
            }
        }
    }

    /// Where every key was tried and none signs: why, if that may be the token's fault. As long as one key signs,
    /// another's failure is its own, and no cause to disturb the token. Keys that are missing or unfit may be so
    /// since the module does not see what has changed: then the token is brought up anew now and then.
    fn nothing_signs(&self, keys: &[Arc<Key>]) -> Option<Fault> {
        let mut cause = None;
        for key in keys {
            match key.refusal(self.number)? {
                fault @ (Fault::Device(_) | Fault::Login(_)) => cause = Some(fault),
                fault if self.began.elapsed() > UNFIT_AGAIN => cause = cause.or(Some(fault)),
                _ => {}
            }
        }
        cause.map(|fault| Fault::Device(fault.to_string()))
    }
}

/// Has a bound key sign a probe; its standing is what comes of it.
async fn probe(shared: Arc<Shared>, key: Arc<Key>) {
    let input = SigningInput::fresh_probe();
    let order = Order::new(Flow::OWN, Instant::now() + shared.config.call_timeout * 2);
    // A place of its own: without one it would take the room of somebody who was given a place.
    let signed = match shared.turns.place(order.flow, order.deadline) {
        Ok(_place) => shared.sign(&key, &input, &order).await,
        Err(_) => Err(SignError::Full),
    };
    match signed {
        Ok(signature) if key.standing.public().verifies(input.bytes(), &signature.0) => {
            // A key that was distrusted meanwhile is to be probed at once, and this probe began before that.
            let binding = key.binding.lock();
            if binding.probe_at.is_some() {
                key.standing.set(Health::Serving);
            }
        }
        Ok(_) => {
            let fault = Fault::Device("its test signature does not verify".to_owned());
            let generation = key.binding.lock().generation;
            if key.standing.health() == Health::Serving {
                let _told = shared.report.try_send((generation, fault.clone()));
            }
            key.was_refused(generation, &fault);
        }
        // One that was refused for it is bound no more; else it is the order that was, and no probe is too long.
        Err(SignError::Unfit(why)) => {
            let generation = key.binding.lock().generation;
            if generation != 0 {
                key.was_refused(generation, &Fault::Unfit(why));
            }
        }
        // What a fault means was judged where it came up; a device with too much to do is no worse for it.
        Err(
            SignError::Gone | SignError::Full | SignError::TimedOut | SignError::Lost(_) | SignError::Unavailable(_),
        ) => {}
    }
    key.binding.lock().probing = false;
}

impl Key {
    /// Whether the key is to be looked at; if so, the next time is after about `pause`.
    fn take_probe(&self, pause: Duration, generation: u64) -> bool {
        let mut binding = self.binding.lock();
        let now = Instant::now();
        let is_new = binding.tried != generation;
        let due = is_new || (binding.probe_at.is_none_or(|at| at <= now) && !binding.probing);
        if due {
            binding.probe_at = Some(now + jittered(pause));
            binding.probing = binding.generation == generation;
        }
        due
    }

    fn is_bound(&self, generation: u64) -> bool {
        self.binding.lock().generation == generation
    }

    fn was_bound(&self, generation: u64, bound: &wire::Bound) {
        let mut binding = self.binding.lock();
        (binding.generation, binding.tried, binding.refusal) = (generation, generation, None);
        (binding.fresh, binding.probing) = (true, false);
        let news = binding.warned != bound.warning;
        binding.warned.clone_from(&bound.warning);
        drop(binding);
        let (kid, mechanism) = (self.standing.public().kid(), &bound.mechanism);
        tracing::debug!(%kid, mechanism, "the key was found and tried");
        if let Some(why) = bound.warning.as_ref().filter(|_| news) {
            tracing::warn!(%kid, why, "the key signs, and should not be kept like this");
        }
    }

    /// The key is not bound, or not any more: it is to be found and tried again.
    pub(super) fn was_refused(&self, generation: u64, fault: &Fault) {
        let mut binding = self.binding.lock();
        (binding.generation, binding.tried, binding.refusal) = (0, generation, Some(fault.clone()));
        binding.probing = false;
        drop(binding);
        self.standing.set(Health::NotServing(fault.to_string()));
    }

    /// Why the key could not be bound in this generation; nothing where it could, or was not tried yet.
    fn refusal(&self, generation: u64) -> Option<Fault> {
        let binding = self.binding.lock();
        binding.refusal.clone().filter(|_| binding.tried == generation)
    }
}

impl Shared {
    pub(super) fn is_up(&self) -> bool {
        matches!(&**self.state.load(), State::Up { .. })
    }

    pub(super) fn recovering(&self, why: &str) {
        self.state.store(Arc::new(State::Recovering(why.to_owned())));
        for key in self.live_keys() {
            if key.standing.health() == Health::Serving {
                key.standing.set(Health::Recovering(why.to_owned()));
            }
        }
    }

    pub(super) fn down(&self, why: &str) {
        self.state.store(Arc::new(State::Down(why.to_owned())));
        for key in self.live_keys() {
            // A key that was refused keeps saying why.
            if key.standing.health().takes_orders() || key.binding.lock().refusal.is_none() {
                key.standing.set(Health::NotServing(why.to_owned()));
            }
        }
    }
}

/// Ends a task with the generation that it belongs to.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Nothing of what the host says is heard any more: why.
fn unheard(listened: Result<Fault, JoinError>) -> Fault {
    listened.unwrap_or_else(|error| Fault::Device(format!("nobody listens to the module's process: {error}")))
}

fn out_of_turn() -> Fault {
    Fault::Device("the host process answered out of turn".to_owned())
}
