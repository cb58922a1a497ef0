//! Parses the arguments, matches once, and sets the exit code.

use std::process::ExitCode;

use clap::Parser as _;
use quotesign::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
