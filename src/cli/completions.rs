//! `quotesign completions`.

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::{Cli, out};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "quotesign", &mut script);
        out::write(format_args!("{}", String::from_utf8_lossy(&script)));
    }
}
