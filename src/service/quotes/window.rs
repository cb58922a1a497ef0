//! What all streams of a caller may have together: so many of them, and so many quotes under way. Whoever opens more streams has
//! no more for that.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{domain::Caller, signer::turns::Busy};

/// How many full streams' quotes of one caller may be under way; more streams share them.
const FULL_STREAMS: usize = 4;
/// How many streams one caller may have open.
const STREAMS_MAX: usize = 16;
/// When to come again: streams end with their connections, which is not soon.
const RETRY: Duration = Duration::from_secs(1);

/// What each caller with an open stream has.
#[derive(Debug)]
pub struct Windows {
    stream: usize,
    callers: Mutex<HashMap<Caller, Weak<Shared>>>,
}

#[derive(Debug)]
struct Shared {
    streams: Arc<Semaphore>,
    quotes: Arc<Semaphore>,
}

/// A stream's share, for as long as it is open.
#[derive(Debug)]
pub struct Open {
    shared: Arc<Shared>,
    _stream: OwnedSemaphorePermit,
}

impl Windows {
    /// With so many quotes of one stream.
    #[must_use]
    pub fn new(stream: usize) -> Self {
        Self { stream, callers: Mutex::default() }
    }

    /// How many quotes of one stream may be under way.
    #[must_use]
    pub fn stream(&self) -> usize {
        self.stream
    }

    /// Opens another stream of `caller`.
    ///
    /// # Errors
    /// Where it has as many as it may.
    pub fn open(&self, caller: &Caller) -> Result<Open, Busy> {
        let shared = self.shared(caller);
        let stream = shared.streams.clone().try_acquire_owned().map_err(|_| Busy { retry_after: RETRY })?;
        Ok(Open { shared, _stream: stream })
    }

    fn shared(&self, caller: &Caller) -> Arc<Shared> {
        let mut callers = self.callers.lock();
        if let Some(shared) = callers.get(caller).and_then(Weak::upgrade) {
            return shared;
        }
        callers.retain(|_, shared| shared.strong_count() > 0);
        let quotes = self.stream.saturating_mul(FULL_STREAMS).min(Semaphore::MAX_PERMITS);
        let [streams, quotes] = [STREAMS_MAX, quotes].map(|count| Arc::new(Semaphore::new(count)));
        let shared = Arc::new(Shared { streams, quotes });
        callers.insert(caller.clone(), Arc::downgrade(&shared));
        shared
    }
}

impl Open {
    /// Waits for a place for one quote.
    pub async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        self.shared.quotes.clone().acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn streams_of_one_caller_share_and_those_of_others_do_not() {
        let windows = Windows::new(2);
        let [one, other] = ["dns:a.example", "dns:b.example"].map(|caller| caller.parse::<Caller>().unwrap());
        let [first, second, third] = [&one, &one, &other].map(|caller| windows.open(caller).unwrap());
        let _held: Vec<_> = (0..8).map(|_| first.place().now_or_never().unwrap().unwrap()).collect();
        assert!(second.place().now_or_never().is_none() && third.place().now_or_never().is_some());
    }

    #[test]
    fn a_caller_has_so_many_streams_and_is_forgotten_with_the_last() {
        let windows = Windows::new(2);
        let [one, other] = ["dns:a.example", "dns:b.example"].map(|caller| caller.parse::<Caller>().unwrap());
        let mut open: Vec<_> = (0..STREAMS_MAX).map(|_| windows.open(&one).unwrap()).collect();
        assert!(windows.open(&one).is_err());
        open.pop();
        open.push(windows.open(&one).unwrap());
        drop(open);
        let _new = windows.open(&other).unwrap();
        assert_eq!(windows.callers.lock().len(), 1);
    }
}
