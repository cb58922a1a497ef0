//! What one device can take, shared fairly. A quote first gets a *place*, or is told at once when to come again:
//! places are bounded, no flow can hold them all, and a flow whose turn would come too late gets none. Then it
//! waits for its *turn* at the device: waiting flows take turns one order each, so that one who floods waits
//! behind itself. A device that takes only so many orders a second has a *pace*: turns are handed out at it, so that
//! nobody who has a turn stands in another line. Nothing here knows what a device is.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::oneshot, time};

use super::{Flow, Order, SignError};

/// No room, or no room in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device is at its capacity; come again in {} ms", retry_after.as_millis())]
pub struct Busy {
    /// When there should be room for this flow.
    pub retry_after: Duration,
}

const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How much a new measurement moves the mean.
const MEAN_WEIGHT: f64 = 0.1;

/// How many orders a device takes in a time.
pub trait Pace: Send + Sync + std::fmt::Debug {
    /// When the next order may go; not before `now`.
    fn next(&self, now: Instant) -> Instant;
    /// How far apart orders are in the long run.
    fn spacing(&self) -> Duration;
    /// An order goes.
    fn take(&self, now: Instant);
}

/// The places and turns of one device.
#[derive(Debug)]
pub struct Turns {
    queue_max: usize,
    state: Mutex<State>,
    paced: Option<Paced>,
}

/// A pace, and who waits for its next moment.
#[derive(Debug)]
struct Paced {
    pace: Arc<dyn Pace>,
    runtime: Handle,
    /// Somebody waits for the next moment, to hand turns on.
    is_awaited: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// How many orders the device works at side by side.
    servers: usize,
    /// How many it may have: a few more where they wait in it for a moment.
    slots: usize,
    busy: usize,
    places: usize,
    flows: HashMap<Flow, Line>,
    /// Flows of which nobody waited before: they come first, and then last.
    fresh: VecDeque<Flow>,
    /// The other flows in the order of their turns. One of which nobody waits any more stays until its turn, so that
    /// asking one at a time does not make it fresh each time.
    ring: VecDeque<Flow>,
    waiting: usize,
    /// How long the device takes for an order; nothing while none was measured.
    service: Option<Duration>,
}

#[derive(Debug, Default)]
struct Line {
    places: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
    /// Whether it stands in `fresh` or `ring`.
    stands: bool,
}

/// A quote's place between admission and release; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    turns: Arc<Turns>,
    flow: Flow,
}

/// The right to give the device one order; dropping it hands it on.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
}

/// How a device is used at the moment, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Orders that it may have at once.
    pub slots: usize,
    /// Orders that it has.
    pub busy: usize,
    /// Orders that wait for a turn.
    pub waiting: usize,
    /// Places that are taken.
    pub places: usize,
}

impl Turns {
    /// A device that takes `slots` orders at once, with room for `queue_max` more to wait.
    #[must_use]
    pub fn new(slots: usize, queue_max: usize) -> Arc<Self> {
        let state = State { servers: slots, slots, ..State::default() };
        Arc::new(Self { queue_max, state: Mutex::new(state), paced: None })
    }

    /// The same for a device that takes orders at no more than a pace. Must be called within a tokio runtime.
    #[must_use]
    pub fn paced(slots: usize, queue_max: usize, pace: Arc<dyn Pace>) -> Arc<Self> {
        let state = State { servers: slots, slots, ..State::default() };
        let paced = Paced { pace, runtime: Handle::current(), is_awaited: AtomicBool::new(false) };
        Arc::new(Self { queue_max, state: Mutex::new(state), paced: Some(paced) })
    }

    /// From now on the device works at `servers` orders side by side and takes `ahead` more to wait in it.
    pub fn set_slots(self: &Arc<Self>, servers: usize, ahead: usize) {
        {
            let mut state = self.state.lock();
            (state.servers, state.slots) = (servers, servers + ahead);
        }
        self.hand_on();
    }

    /// Takes a place for an order of `flow` that must be done by `deadline`.
    ///
    /// # Errors
    /// Where no place is free, where the flow holds as many as are left over (so that however much one asks for,
    /// there is room for another), or where its turn would come too late.
    pub fn place(self: &Arc<Self>, flow: Flow, deadline: Instant) -> Result<Place, Busy> {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let mut state = self.state.lock();
        let free = (state.servers + self.queue_max).saturating_sub(state.places);
        let held = state.flows.get(&flow).map_or(0, |line| line.places);
        let ahead = state.ahead(flow, |line| line.places);
        // Those who have a turn are in the pace already.
        let paced = self.paced_wait(now, ahead.saturating_sub(state.busy));
        let wait = state.wait(ahead).max(paced);
        if free == 0 || (held >= free && held > 0) || wait + state.service.unwrap_or_default() > left {
            return Err(Busy { retry_after: wait.clamp(RETRY_MIN, RETRY_MAX) });
        }
        state.places += 1;
        state.flows.entry(flow).or_default().places += 1;
        Ok(Place { turns: Arc::clone(self), flow })
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// Where too many wait, the pace has no moment before the deadline, the deadline passes, or the order is taken back.
    pub async fn turn(self: &Arc<Self>, order: &Order) -> Result<Turn, SignError> {
        if order.gone.is_cancelled() {
            return Err(SignError::Gone);
        }
        let now = Instant::now();
        if order.deadline <= now {
            return Err(SignError::TimedOut);
        }
        let line = {
            let mut state = self.state.lock();
            let moment = self.moment(now);
            if state.waiting == 0 && state.busy < state.slots && moment <= now {
                return Ok(self.begin(&mut state, now));
            }
            let ahead = state.ahead(order.flow, |line| line.waiting.len());
            if now + self.paced_wait(now, ahead) > order.deadline {
                return Err(SignError::Full);
            }
            if state.waiting >= self.queue_max && !state.forget_leavers() {
                return Err(SignError::Full);
            }
            let (turn, line) = oneshot::channel();
            state.join(order.flow, turn);
            if state.busy < state.slots {
                self.await_moment(moment);
            }
            line
        };
        tokio::select! {
            biased;
            turn = line => turn.map_err(|_| SignError::Full),
            () = order.gone.cancelled() => Err(SignError::Gone),
            () = time::sleep_until(order.deadline.into()) => Err(SignError::TimedOut),
        }
    }

    /// How the device is used at the moment.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.state.lock();
        Usage { slots: state.slots, busy: state.busy, waiting: state.waiting, places: state.places }
    }

    /// How long the device has taken for an order of late; nothing while none was measured.
    #[must_use]
    pub fn service(&self) -> Option<Duration> {
        self.state.lock().service
    }

    fn begin(self: &Arc<Self>, state: &mut State, now: Instant) -> Turn {
        state.busy += 1;
        if let Some(paced) = &self.paced {
            paced.pace.take(now);
        }
        Turn { turns: Arc::clone(self) }
    }

    /// Gives free slots to those who wait, at the pace.
    fn hand_on(self: &Arc<Self>) {
        loop {
            let now = Instant::now();
            let (waiter, turn) = {
                let mut state = self.state.lock();
                if state.busy >= state.slots {
                    return;
                }
                let moment = self.moment(now);
                if moment > now && state.waiting > 0 {
                    self.await_moment(moment);
                    return;
                }
                let Some(waiter) = state.next() else { return };
                (waiter, self.begin(&mut state, now))
            };
            // One who has left gives the turn back by dropping it, which hands it on from here.
            let _left = waiter.send(turn);
        }
    }

    /// When the next turn may be handed out, as far as the pace goes.
    fn moment(&self, now: Instant) -> Instant {
        self.paced.as_ref().map_or(now, |paced| paced.pace.next(now))
    }

    /// How long the pace has an order wait with so many before it.
    fn paced_wait(&self, now: Instant, ahead: usize) -> Duration {
        let Some(Paced { pace, .. }) = &self.paced else { return Duration::ZERO };
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        pace.next(now).saturating_duration_since(now) + pace.spacing().saturating_mul(ahead)
    }

    /// Has turns handed on at this moment, unless that is seen to already.
    fn await_moment(self: &Arc<Self>, moment: Instant) {
        let Some(paced) = &self.paced else { return };
        if paced.is_awaited.swap(true, Ordering::AcqRel) {
            return;
        }
        let turns = Arc::downgrade(self);
        paced.runtime.spawn(async move {
            time::sleep_until(moment.into()).await;
            let Some(turns) = turns.upgrade() else { return };
            if let Some(paced) = &turns.paced {
                paced.is_awaited.store(false, Ordering::Release);
            }
            turns.hand_on();
        });
    }
}

impl State {
    fn join(&mut self, flow: Flow, turn: oneshot::Sender<Turn>) {
        let line = self.flows.entry(flow).or_default();
        if !std::mem::replace(&mut line.stands, true) {
            self.fresh.push_back(flow);
        }
        line.waiting.push_back(turn);
        self.waiting += 1;
    }

    /// Whose turn it is. Those who have left are passed over.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        while let Some(flow) = self.fresh.pop_front().or_else(|| self.ring.pop_front()) {
            let Some(line) = self.flows.get_mut(&flow) else { continue };
            let Some(waiter) = line.waiting.pop_front() else {
                line.stands = false;
                self.forget_idle(flow);
                continue;
            };
            self.ring.push_back(flow);
            self.waiting -= 1;
            if !waiter.is_closed() {
                return Some(waiter);
            }
        }
        None
    }

    /// Makes room by dropping those who wait no more; tells whether there was one.
    fn forget_leavers(&mut self) -> bool {
        let before = self.waiting;
        self.waiting = 0;
        for line in self.flows.values_mut() {
            line.waiting.retain(|waiter| !waiter.is_closed());
            self.waiting += line.waiting.len();
        }
        self.waiting < before
    }

    /// Forgets a flow that holds nothing and waits for nothing.
    fn forget_idle(&mut self, flow: Flow) {
        if self.flows.get(&flow).is_some_and(|line| line.places == 0 && !line.stands) {
            self.flows.remove(&flow);
        }
    }

    /// How many orders would go before one more of `flow`, if flows took turns from now on with as many orders as `count`
    /// says.
    fn ahead(&self, flow: Flow, count: impl Fn(&Line) -> usize) -> usize {
        let own = self.flows.get(&flow).map_or(0, &count);
        let others = self.flows.iter().filter(|(other, _)| **other != flow);
        own + others.map(|(_, line)| count(line).min(own + 1)).sum::<usize>()
    }

    /// How long the device takes to get to an order with so many before it.
    fn wait(&self, ahead: usize) -> Duration {
        let rounds = (ahead + 1).saturating_sub(self.servers);
        let servers = u32::try_from(self.servers.max(1)).unwrap_or(u32::MAX);
        self.service.unwrap_or_default() * u32::try_from(rounds).unwrap_or(u32::MAX) / servers
    }
}

impl Turn {
    /// The device has answered, and this is what it took: it counts towards the estimate of what it takes.
    pub fn answered(self, took: Duration) {
        let mut state = self.turns.state.lock();
        let mean = state.service.map_or(took, |mean| mean.mul_f64(1.0 - MEAN_WEIGHT) + took.mul_f64(MEAN_WEIGHT));
        state.service = Some(mean);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.state.lock().busy -= 1;
        self.turns.hand_on();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        state.places -= 1;
        if let Some(line) = state.flows.get_mut(&self.flow) {
            line.places -= 1;
            state.forget_idle(self.flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOD: Flow = Flow(1);
    const LIGHT: Flow = Flow(2);

    fn order(flow: Flow) -> Order {
        Order::new(flow, Instant::now() + Duration::from_mins(1))
    }

    /// Starts to wait for a turn, and is in line when this returns.
    async fn wait(turns: &Arc<Turns>, order: Order) -> tokio::task::JoinHandle<Result<Turn, SignError>> {
        let before = turns.usage().waiting;
        let (line, began) = (Arc::clone(turns), Instant::now());
        let waiting = tokio::spawn(async move { line.turn(&order).await });
        while turns.usage().waiting == before {
            assert!(!waiting.is_finished(), "it did not have to wait");
            time::sleep(Duration::from_millis(1)).await;
            assert!(began.elapsed() < Duration::from_secs(10), "it does not wait");
        }
        waiting
    }

    async fn is_called(waiting: &tokio::task::JoinHandle<Result<Turn, SignError>>) -> bool {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        waiting.is_finished()
    }

    #[tokio::test]
    async fn one_who_floods_waits_behind_itself() {
        let turns = Turns::new(1, 256);
        let first = turns.turn(&order(FLOOD)).await.unwrap();
        let mut flood = Vec::new();
        for _ in 0..100 {
            flood.push(wait(&turns, order(FLOOD)).await);
        }
        drop(first);
        assert!(is_called(&flood[0]).await && !is_called(&flood[1]).await);
        let first = flood.remove(0).await.unwrap();
        let light = wait(&turns, order(LIGHT)).await;
        let second_light = wait(&turns, order(LIGHT)).await;
        drop(first);
        // Who was not there before comes first, and then takes turns like everybody.
        assert!(is_called(&light).await && !is_called(&flood[0]).await);
        drop(light.await.unwrap());
        assert!(is_called(&flood[0]).await && !is_called(&second_light).await);
        drop(flood.remove(0).await.unwrap());
        assert!(is_called(&second_light).await && !is_called(&flood[0]).await);
        // One that asks anew each time it was served is no newcomer each time.
        let third_light = wait(&turns, order(LIGHT)).await;
        drop(second_light.await.unwrap());
        assert!(is_called(&flood[0]).await && !is_called(&third_light).await);
    }

    #[tokio::test]
    async fn no_flow_takes_all_places() {
        let turns = Turns::new(2, 98);
        let soon = Instant::now() + Duration::from_mins(1);
        let mut held = Vec::new();
        while let Ok(place) = turns.place(FLOOD, soon) {
            held.push(place);
        }
        assert_eq!(held.len(), 50, "half of all places");
        let others: Vec<_> = (10..30).map(|flow| turns.place(Flow(flow), soon).unwrap()).collect();
        assert_eq!(turns.usage().places, 70);
        drop(held);
        drop(others);
        assert!(turns.state.lock().flows.is_empty());
        assert_eq!(turns.usage(), Usage { slots: 2, busy: 0, waiting: 0, places: 0 });
        assert!(turns.state.lock().flows.is_empty());
    }

    #[tokio::test]
    async fn what_cannot_be_in_time_gets_no_place_and_is_told_when_to_come() {
        let turns = Turns::new(1, 100);
        turns.state.lock().service = Some(Duration::from_millis(100));
        let in_ms = |ms| Instant::now() + Duration::from_millis(ms);
        let _first = turns.place(FLOOD, in_ms(1000)).unwrap();
        let _second = turns.place(FLOOD, in_ms(1000)).unwrap();
        let late = turns.place(FLOOD, in_ms(250)).unwrap_err();
        assert_eq!(late.retry_after, Duration::from_millis(200));
        // Another flow would wait for one order of the flood, not for both.
        assert!(turns.place(LIGHT, in_ms(250)).is_ok());
        assert!(turns.place(LIGHT, in_ms(150)).is_err());
    }

    #[tokio::test]
    async fn who_leaves_is_passed_over_and_keeps_nothing() {
        let turns = Turns::new(1, 2);
        let first = turns.turn(&order(FLOOD)).await.unwrap();
        let taken_back = order(FLOOD);
        let leaver = wait(&turns, taken_back.clone()).await;
        let late = turns.turn(&Order::new(FLOOD, Instant::now() + Duration::from_millis(20))).await;
        assert_eq!(late.err(), Some(SignError::TimedOut));
        let too_late = turns.turn(&Order::new(FLOOD, Instant::now())).await;
        assert_eq!(too_late.err(), Some(SignError::TimedOut));
        taken_back.gone.cancel();
        assert_eq!(leaver.await.unwrap().err(), Some(SignError::Gone));
        // Both have left, so there is room again.
        let stays = wait(&turns, order(LIGHT)).await;
        let other = wait(&turns, order(FLOOD)).await;
        assert_eq!(turns.turn(&order(FLOOD)).await.err(), Some(SignError::Full));
        drop(first);
        // The flow of the one who left is still in line, and its turn is another order's.
        other.await.unwrap().unwrap().answered(Duration::from_millis(1));
        drop(stays.await.unwrap().unwrap());
        assert_eq!(turns.usage(), Usage { slots: 1, busy: 0, waiting: 0, places: 0 });
        assert!(turns.state.lock().flows.is_empty());
    }

    #[tokio::test]
    async fn more_slots_call_those_who_wait() {
        let turns = Turns::new(0, 8);
        let waiting = wait(&turns, order(FLOOD)).await;
        turns.set_slots(1, 0);
        assert!(waiting.await.unwrap().is_ok());
    }

    /// Twenty a second, one at a time.
    #[derive(Debug, Default)]
    struct Slow(Mutex<Option<Instant>>);

    impl Pace for Slow {
        fn next(&self, now: Instant) -> Instant {
            self.0.lock().map_or(now, |next| next.max(now))
        }

        fn spacing(&self) -> Duration {
            Duration::from_millis(50)
        }

        fn take(&self, now: Instant) {
            let next = self.next(now) + self.spacing();
            *self.0.lock() = Some(next);
        }
    }

    #[tokio::test]
    async fn turns_come_at_the_pace_and_by_flow_however_many_slots_are_free() {
        let turns = Turns::paced(100, 100, Arc::new(Slow::default()));
        let began = Instant::now();
        let first = turns.turn(&order(FLOOD)).await.unwrap();
        let mut flood = Vec::new();
        for _ in 0..8 {
            flood.push(wait(&turns, order(FLOOD)).await);
        }
        let light = wait(&turns, order(LIGHT)).await;
        let light = light.await.unwrap().unwrap();
        assert!(flood.iter().filter(|waiting| waiting.is_finished()).count() <= 1, "only one can have been before it");
        assert!(began.elapsed() >= Duration::from_millis(49));
        for waiting in flood {
            drop(waiting.await.unwrap().unwrap());
        }
        assert!(began.elapsed() >= Duration::from_millis(9 * 50 - 1));
        drop((first, light));
        assert_eq!(turns.usage(), Usage { slots: 100, busy: 0, waiting: 0, places: 0 });
    }

    #[tokio::test]
    async fn the_pace_is_known_before_a_place_is_given() {
        let turns = Turns::paced(100, 100, Arc::new(Slow::default()));
        let in_ms = |ms| Instant::now() + Duration::from_millis(ms);
        let places: Vec<_> = std::iter::from_fn(|| turns.place(FLOOD, in_ms(225)).ok()).take(50).collect();
        assert_eq!(places.len(), 5, "at 0, 50, 100, 150 and 200 ms");
        assert!(turns.place(LIGHT, in_ms(225)).is_ok(), "another's turn comes before those");
        let late = turns.turn(&Order::new(LIGHT, in_ms(1_000))).await;
        let late = (late, turns.turn(&Order::new(LIGHT, in_ms(20))).await);
        assert!(late.0.is_ok() && matches!(late.1, Err(SignError::Full)), "told at once");
    }
}
