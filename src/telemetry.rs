//! What the gateway says of itself: log lines and metrics. No value of a quote ever gets here but the named few.

use std::{
    io::{IsTerminal as _, stderr},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogFormat, LogSection};

mod metrics;
pub mod otlp;
mod share;
mod tracer;

pub use metrics::{Metrics, OpenStream};
pub use share::Share;
pub use tracer::{Recorded, Tracer};

/// So many lines wait for whoever takes them from standard error, some megabytes; what comes after that is counted and lost.
const LINES_WAITING_MAX: usize = 8_192;

static LOST_LINES: OnceLock<ErrorCounter> = OnceLock::new();

/// Starts logging to standard error, from a thread of its own: nobody waits for whoever takes the lines. What is returned has
/// them all written when it is dropped, within a second.
///
/// # Errors
/// Where the filter cannot be read.
pub fn start_logging(log: &LogSection) -> Result<WorkerGuard, String> {
    let filter = filter(log)?;
    let builder = NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING_MAX).thread_name("log");
    let (writer, written) = builder.finish(stderr());
    let lost = writer.error_counter();
    let lines = fmt().with_env_filter(filter).with_writer(writer).with_ansi(stderr().is_terminal());
    let started = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Text => lines.with_target(false).try_init(),
    };
    started.map_err(|fault| fault.to_string())?;
    LOST_LINES.get_or_init(|| lost);
    Ok(written)
}

/// How many lines nobody took in time.
fn lost_lines() -> u64 {
    LOST_LINES.get().map_or(0, |lost| u64::try_from(lost.dropped_lines()).unwrap_or(u64::MAX))
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Has a panic counted and told by its place alone: what it says may hold a value.
pub fn count_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a task of the gateway panicked at this place; it is a fault to report");
    }));
}

/// How many there were.
fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// The filter of a config.
///
/// # Errors
/// Where it cannot be read.
pub fn filter(log: &LogSection) -> Result<EnvFilter, String> {
    let remedy = "write it as `info` or `quotesign=debug,info`";
    EnvFilter::try_new(&log.filter).map_err(|fault| format!("`log.filter` = `{}`: {fault}; {remedy}", log.filter))
}
