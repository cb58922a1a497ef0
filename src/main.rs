//! Parses the arguments, matches once, and sets the exit code.

use std::process::ExitCode;

use clap::Parser as _;
use mimalloc::MiMalloc;
use quotesign::cli::Cli;

/// A sixth of what a quote costs went into allocating; `docs/decisions.md` tells why this one.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
