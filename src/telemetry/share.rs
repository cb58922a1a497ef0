//! The share of the log that strangers have: no flood of theirs fills a disk, and what has no line of its own is told as a count.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// So many lines are written in a window; the rest of it is told in one.
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// What was written of late of one kind.
#[derive(Debug)]
pub struct Share(Mutex<Written>);

#[derive(Debug)]
struct Written {
    since: Instant,
    lines: u32,
    left_out: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Entered {
    /// It is to be written.
    Written,
    /// It is counted; the first one sees to it that the count is told.
    LeftOut { first: bool },
}

impl Default for Share {
    fn default() -> Self {
        Self(Mutex::new(Written { since: Instant::now(), lines: 0, left_out: 0 }))
    }
}

impl Share {
    /// Has a line written, or counts it. How many have none is told at the end of a window, whether or not another one comes. Must be
    /// called within a tokio runtime.
    pub fn tell(self: &Arc<Self>, line: impl FnOnce(), left_out: impl FnOnce(u64) + Send + 'static) {
        let entered = self.0.lock().enter(Instant::now());
        match entered {
            Entered::Written => line(),
            Entered::LeftOut { first: true } => {
                let share = Arc::clone(self);
                tokio::spawn(async move {
                    tokio::time::sleep(WINDOW).await;
                    let count = std::mem::take(&mut share.0.lock().left_out);
                    left_out(count);
                });
            }
            Entered::LeftOut { first: false } => {}
        }
    }
}

impl Written {
    fn enter(&mut self, now: Instant) -> Entered {
        if now.saturating_duration_since(self.since) >= WINDOW {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines < LINES_MAX {
            self.lines += 1;
            return Entered::Written;
        }
        self.left_out = self.left_out.saturating_add(1);
        Entered::LeftOut { first: self.left_out == 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_has_its_lines_and_one_that_tells_of_the_rest() {
        let start = Instant::now();
        let mut share = Written { since: start, lines: 0, left_out: 0 };
        let entered: Vec<_> = (0..1000).map(|_| share.enter(start)).collect();
        assert!(entered[..20].iter().all(|entered| *entered == Entered::Written));
        assert_eq!(entered[20], Entered::LeftOut { first: true });
        assert!(entered[21..].iter().all(|entered| *entered == Entered::LeftOut { first: false }));
        // What is still to be told is told once, also where the next window has begun.
        let next = start + WINDOW;
        let entered: Vec<_> = (0..21).map(|_| share.enter(next)).collect();
        assert_eq!((&entered[19], &entered[20]), (&Entered::Written, &Entered::LeftOut { first: false }));
        assert_eq!(share.left_out, 981);
    }
}
