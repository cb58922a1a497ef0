//! `quotesign completions`.

use std::io;

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::Cli;

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) {
        generate(self.shell, &mut Cli::command(), "quotesign", &mut io::stdout());
    }
}
