//! What one device can take, shared fairly. A quote first gets a *place*, or is told at once when to come again:
//! places are bounded, no flow can hold them all, and a flow whose turn would come too late gets none. Then it
//! waits for its *turn* at the device: waiting flows take turns one order each, so that one who floods waits
//! behind itself. Nothing here knows what a device is.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time};

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

/// The places and turns of one device.
#[derive(Debug)]
pub struct Turns {
    queue_max: usize,
    state: Mutex<State>,
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
    began: Instant,
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
        Arc::new(Self { queue_max, state: Mutex::new(state) })
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
        let left = deadline.saturating_duration_since(Instant::now());
        let mut state = self.state.lock();
        let free = (state.servers + self.queue_max).saturating_sub(state.places);
        let held = state.flows.get(&flow).map_or(0, |line| line.places);
        let wait = state.wait(flow);
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
    /// Where too many wait, the deadline passes, or the order is taken back.
    pub async fn turn(self: &Arc<Self>, order: &Order) -> Result<Turn, SignError> {
        if order.gone.is_cancelled() {
            return Err(SignError::Gone);
        }
        if order.deadline <= Instant::now() {
            return Err(SignError::TimedOut);
        }
        let line = {
            let mut state = self.state.lock();
            if state.waiting == 0 && state.busy < state.slots {
                state.busy += 1;
                return Ok(self.begin());
            }
            if state.waiting >= self.queue_max && !state.forget_leavers() {
                return Err(SignError::Full);
            }
            let (turn, line) = oneshot::channel();
            state.join(order.flow, turn);
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

    fn begin(self: &Arc<Self>) -> Turn {
        Turn { turns: Arc::clone(self), began: Instant::now() }
    }

    /// Gives free slots to those who wait.
    fn hand_on(self: &Arc<Self>) {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                if state.busy >= state.slots {
                    return;
                }
                let Some(waiter) = state.next() else { return };
                state.busy += 1;
                waiter
            };
            // One who has left gives the turn back by dropping it, which hands it on from here.
            let _left = waiter.send(self.begin());
        }
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

    /// How long one more order of `flow` would wait, if all who hold a place took turns from now on.
    fn wait(&self, flow: Flow) -> Duration {
        let own = self.flows.get(&flow).map_or(0, |line| line.places);
        let others = self.flows.iter().filter(|(other, _)| **other != flow);
        let ahead = own + others.map(|(_, line)| line.places.min(own + 1)).sum::<usize>();
        let rounds = (ahead + 1).saturating_sub(self.servers);
        let servers = u32::try_from(self.servers.max(1)).unwrap_or(u32::MAX);
        self.service.unwrap_or_default() * u32::try_from(rounds).unwrap_or(u32::MAX) / servers
    }
}

impl Turn {
    /// The device has answered: what it took counts towards the estimate of what it takes.
    pub fn answered(self) {
        let took = self.began.elapsed();
        self.answered_after(took);
    }

    /// The same, where the device itself says what it took.
    pub fn answered_after(self, took: Duration) {
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
        other.await.unwrap().unwrap().answered();
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
}
