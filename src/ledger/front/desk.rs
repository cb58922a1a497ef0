//! The one thread that reads, on a connection of its own: what is asked of the ledger waits for no batch.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, SyncSender, TrySendError},
    },
    thread::{self, JoinHandle},
};

use parking_lot::Mutex;

use super::{
    openings::{Opening, Openings},
    queue::CLOSED,
};
use crate::ledger::{EngineError, LedgerError, OpenReads, Reads};

/// How often a question is put anew where its connection was lost meanwhile, or does not count any more.
const TRIES: usize = 3;

type Question = Box<dyn FnOnce(&mut Reader) + Send>;

/// Where questions are handed in.
#[derive(Debug)]
pub(super) struct Desk {
    questions: Mutex<Option<SyncSender<Question>>>,
    /// Why the last question was not answered.
    fault: Arc<Mutex<Option<String>>>,
}

/// A connection, opened when it is needed, and anew where the writer opens its own.
pub(super) struct Reader {
    open: OpenReads,
    reads: Option<Box<dyn Reads>>,
    openings: Openings,
    /// As of when the connection counts.
    opened: Opening,
    fault: Arc<Mutex<Option<String>>>,
}

impl Desk {
    /// Starts the thread; it ends when the desk is closed.
    pub(super) fn start(open: OpenReads, openings: Openings, waiting_max: usize) -> (Self, Option<JoinHandle<()>>) {
        let (questions, asked) = mpsc::sync_channel::<Question>(waiting_max.max(1));
        let fault = Arc::new(Mutex::new(None));
        let opened = openings.now();
        let mut reader = Reader { open, reads: None, openings, opened, fault: Arc::clone(&fault) };
        let answer = move || {
            for question in asked {
                // Its caller learns of a panic from the answer that never comes.
                if catch_unwind(AssertUnwindSafe(|| question(&mut reader))).is_err() {
                    reader.reads = None;
                }
            }
        };
        // Where no thread can be started, nobody takes questions, and every caller is told.
        let thread = thread::Builder::new().name("ledger-reader".to_owned()).spawn(answer);
        (Self { questions: Mutex::new(Some(questions)), fault }, thread.ok())
    }

    pub(super) fn ask(&self, question: Question) -> Result<(), LedgerError> {
        let questions = self.questions.lock();
        let unavailable = || LedgerError::Unavailable(CLOSED.to_owned());
        questions.as_ref().ok_or_else(unavailable)?.try_send(question).map_err(|refused| match refused {
            TrySendError::Full(_) => LedgerError::Full,
            TrySendError::Disconnected(_) => unavailable(),
        })
    }

    pub(super) fn health(&self) -> Result<(), String> {
        self.fault.lock().clone().map_or(Ok(()), Err)
    }

    /// Takes no more questions. The thread ends with those that wait.
    pub(super) fn close(&self) {
        self.questions.lock().take();
    }
}

impl Reader {
    /// Reads, and says as of when that counts; again on a new connection where the one there is was lost meanwhile, or the writer
    /// has opened its own anew.
    pub(super) fn read<T>(
        &mut self,
        mut read: impl FnMut(&mut dyn Reads) -> Result<T, EngineError>,
    ) -> Result<(T, Opening), EngineError> {
        let mut answer = Err(EngineError::Unknown("the ledger was opened anew while it was read".to_owned()));
        for _ in 0..TRIES {
            let was_open = self.follow();
            let found = self.try_read(&mut read);
            let counts = self.openings.now() == self.opened;
            match found {
                Ok(found) if counts => {
                    answer = Ok((found, self.opened));
                    break;
                }
                Ok(_) => {}
                Err(error) => {
                    answer = Err(error);
                    if counts && !was_open {
                        break;
                    }
                }
            }
        }
        *self.fault.lock() = answer.as_ref().err().map(ToString::to_string);
        answer
    }

    /// Lets go of a connection that does not count any more; says whether there is one.
    fn follow(&mut self) -> bool {
        let now = self.openings.now();
        if self.opened != now {
            (self.reads, self.opened) = (None, now);
        }
        self.reads.is_some()
    }

    fn try_read<T>(
        &mut self,
        read: &mut impl FnMut(&mut dyn Reads) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut reads = match self.reads.take() {
            Some(reads) => reads,
            None => (self.open)()?,
        };
        let answer = read(&mut *reads);
        if answer.is_ok() {
            self.reads = Some(reads);
        }
        answer
    }
}
