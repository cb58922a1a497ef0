//! Journals the notes of reads that commands left beside the ledger.

use super::{Ledger, answered};
use crate::{
    audit::Context,
    clock::{Clock as _, SystemClock},
    domain::sha256,
    ledger::{Engine, LedgerError, Op, reading::Reading},
};

/// So many are journalled at once, so that calls need not wait behind them.
const TOGETHER_MAX: usize = 64;

impl Ledger {
    /// Journals what waits and has it forgotten, each note once whenever a gateway dies; says how many. What no command has
    /// written is told in the log and dropped.
    ///
    /// # Errors
    /// Where the notes cannot be taken, or not all of them can be made durable: all are kept then.
    pub async fn journal_readings(&self, context: &Context) -> Result<usize, LedgerError> {
        let waiting = self.read(Engine::take_readings).await?;
        if waiting.is_empty() {
            return Ok(0);
        }
        let now = SystemClock.now();
        let (mut records, mut bad) = (Vec::new(), Vec::new());
        for (_, line) in &waiting {
            match Reading::read(line, now) {
                Ok(reading) => records.push(reading.record(context, now)),
                Err(why) => bad.push((why, line)),
            }
        }
        if let Some((why, line)) = bad.first() {
            let sha256 = hex::encode(sha256(line.as_bytes()));
            let (notes, bytes) = (bad.len(), line.len());
            tracing::error!(
                notes,
                why,
                bytes,
                sha256,
                "notes of reads were tampered with, and dropped; the first is told"
            );
        }
        let journalled = records.len();
        let mut records = records.into_iter().map(Op::Record).peekable();
        while records.peek().is_some() {
            let begun: Result<Vec<_>, _> = records.by_ref().take(TOGETHER_MAX).map(|op| self.begin(op)).collect();
            for answer in begun? {
                answered(answer).await?;
            }
        }
        fail::fail_point!("ledger::readings-journalled");
        let places: Vec<i64> = waiting.into_iter().map(|(place, _)| place).collect();
        self.read(move |engine| engine.drop_readings(&places)).await?;
        Ok(journalled)
    }
}
