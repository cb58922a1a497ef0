//! How many quotes of all its streams a caller may have under way: whoever opens many streams has no more for that.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::domain::Caller;

/// How many full streams of one caller there may be at once; more of them share what these have.
const FULL_STREAMS: usize = 4;

/// What each caller with an open stream has.
#[derive(Debug)]
pub struct Windows {
    stream: usize,
    callers: Mutex<HashMap<Caller, Weak<Semaphore>>>,
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

    /// What all streams of `caller` share, for as long as one of them is open.
    #[must_use]
    pub fn of(&self, caller: &Caller) -> Arc<Semaphore> {
        let mut callers = self.callers.lock();
        if let Some(shared) = callers.get(caller).and_then(Weak::upgrade) {
            return shared;
        }
        callers.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::new(Semaphore::new(self.stream.saturating_mul(FULL_STREAMS).min(Semaphore::MAX_PERMITS)));
        callers.insert(caller.clone(), Arc::downgrade(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_one_caller_share_and_those_of_others_do_not() {
        let windows = Windows::new(2);
        let [one, other] = ["dns:a.example", "dns:b.example"].map(|caller| caller.parse::<Caller>().unwrap());
        let (first, second, third) = (windows.of(&one), windows.of(&one), windows.of(&other));
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &third));
        let _held: Vec<_> = (0..8).map(|_| first.clone().try_acquire_owned().unwrap()).collect();
        assert!(second.try_acquire().is_err() && third.try_acquire().is_ok());
        drop((second, third));
        let _new = windows.of(&"dns:c.example".parse().unwrap());
        assert_eq!(windows.callers.lock().len(), 2, "who has no stream is forgotten");
    }
}
