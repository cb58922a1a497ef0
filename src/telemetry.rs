//! What the gateway says of itself: log lines and metrics. No value of a quote ever gets here but the named few.

use std::{
    io::IsTerminal as _,
    sync::atomic::{AtomicU64, Ordering},
};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogFormat, LogSection};

mod metrics;
pub mod otlp;
mod tracer;

pub use metrics::{Metrics, OpenStream};
pub use tracer::{Recorded, Tracer};

/// Starts logging to standard error.
///
/// # Errors
/// Where the filter cannot be read.
pub fn start_logging(log: &LogSection) -> Result<(), String> {
    let filter = filter(log)?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Text => lines.with_target(false).try_init(),
    };
    started.map_err(|fault| fault.to_string())
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
