//! What the gateway says of itself: log lines and metrics. No value of a quote ever gets here but the named few.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogFormat, LogSection};

mod metrics;
pub mod otlp;
mod tracer;

pub use metrics::Metrics;
pub use tracer::Tracer;

/// Starts logging to standard error.
///
/// # Errors
/// Where the filter cannot be read.
pub fn start_logging(log: &LogSection) -> Result<(), String> {
    let filter = filter(log)?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Text => lines.with_target(false).try_init(),
    };
    started.map_err(|fault| fault.to_string())
}

/// The filter of a config.
///
/// # Errors
/// Where it cannot be read.
pub fn filter(log: &LogSection) -> Result<EnvFilter, String> {
    let remedy = "write it as `info` or `quotesign=debug,info`";
    EnvFilter::try_new(&log.filter).map_err(|fault| format!("`log.filter` = `{}`: {fault}; {remedy}", log.filter))
}
