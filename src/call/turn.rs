//! The order among the quotes of a stream: they are worked at side by side, and each reserves after the one before it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What is told to the one behind: nothing more to wait for, or whom to wait for instead.
#[derive(Debug)]
struct Passed(Option<Ticket>);

type Ticket = oneshot::Receiver<Passed>;

/// One quote's turn. Dropping it passes it on: whatever became of this quote, the one behind it waits for those before it
/// and not for this one.
#[derive(Debug)]
pub struct Turn {
    before: tokio::sync::Mutex<Option<Ticket>>,
    behind: Mutex<Option<oneshot::Sender<Passed>>>,
    is_closed: Arc<AtomicBool>,
}

/// Gives turns to the quotes of one stream, in the order in which it is asked.
#[derive(Debug, Default)]
pub struct Line {
    last: Option<Ticket>,
    is_closed: Arc<AtomicBool>,
}

impl Line {
    /// The turn after all that were given before.
    pub fn turn(&mut self) -> Turn {
        let (behind, next) = oneshot::channel();
        let before = self.last.replace(next);
        let is_closed = self.is_closed.clone();
        Turn { before: tokio::sync::Mutex::new(before), behind: Mutex::new(Some(behind)), is_closed }
    }

    /// No turn comes any more. Quotes of a stream that is left end one by one, and one whose turn came by that would take its
    /// number before those that are sent again.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }
}

impl Turn {
    /// Waits until all turns before this one were passed on.
    pub async fn comes(&self) {
        let mut before = self.before.lock().await;
        while let Some(ticket) = before.as_mut() {
            *before = ticket.await.ok().and_then(|Passed(other)| other);
        }
        if self.is_closed.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
    }

    /// Lets the next one go on, once this turn has come.
    pub fn pass(&self) {
        self.tell(None);
    }

    fn tell(&self, other: Option<Ticket>) {
        let behind = self.behind.lock().take();
        if let Some(behind) = behind {
            let _nobody_may_be_behind = behind.send(Passed(other));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let before = self.before.get_mut().take();
        self.tell(before);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn turns_come_in_order_whether_those_before_pass_or_leave() {
        let mut line = Line::default();
        let [first, second, third] = [line.turn(), line.turn(), line.turn()];
        assert_eq!(first.comes().now_or_never(), Some(()));
        assert_eq!(second.comes().now_or_never(), None);
        first.pass();
        assert_eq!(second.comes().now_or_never(), Some(()));
        assert_eq!(third.comes().now_or_never(), None);
        drop(second);
        assert_eq!(third.comes().now_or_never(), Some(()));
    }

    #[test]
    fn no_turn_comes_in_a_line_that_is_closed() {
        let mut line = Line::default();
        let [first, second] = [line.turn(), line.turn()];
        assert_eq!(first.comes().now_or_never(), Some(()));
        line.close();
        drop(first);
        assert_eq!(second.comes().now_or_never(), None);
    }

    #[test]
    fn whoever_leaves_before_its_turn_lets_nobody_by() {
        let mut line = Line::default();
        let [first, second, third, fourth] = [line.turn(), line.turn(), line.turn(), line.turn()];
        drop(second);
        drop(third);
        assert_eq!(fourth.comes().now_or_never(), None, "the first has not passed");
        first.pass();
        assert_eq!(fourth.comes().now_or_never(), Some(()));
    }
}
