//! The runtime of one connection: whoever owns it waits for each answer.

use tokio::runtime::Runtime;

use super::closed;
use crate::ledger::EngineError;

/// A runtime of a connection's own. It waits where no tasks run, and is let go of anywhere: a [`Runtime`] that is dropped
/// where tasks run panics.
pub(super) struct Own(Option<Runtime>);

impl Own {
    pub fn new() -> Result<Self, EngineError> {
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let built =
            built.map_err(|error| EngineError::Unfit(format!("no runtime for the ledger's connection: {error}")));
        built.map(|runtime| Self(Some(runtime)))
    }

    pub fn block_on<T>(&self, answer: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
        self.0.as_ref().ok_or_else(closed)?.block_on(answer)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
