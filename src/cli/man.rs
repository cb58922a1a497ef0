//! `quotesign man`: the manual pages, made from the same definitions as `--help`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man as Page;

use super::{Cli, Failure, out::say};

const SOURCE: &str = concat!("quotesign ", env!("CARGO_PKG_VERSION"));
/// What every command ends with; `cli.rs` has it from there.
const EXIT_STATUS: &str = "\
.SH EXIT STATUS
.TP
0
It is done, or what was asked about is well.
.TP
1
It was refused or failed, or what was asked about is not well.
.TP
2
Arguments or configuration cannot be used.
.TP
3
\\fBquotesign jwks check\\fR alone: private key material is published.
";

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where they go; it is made where it is not there.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<(), Failure> {
        let named = |path: &Path, fault: std::io::Error| Failure::failed(format!("{}: {fault}", path.display()));
        fs::create_dir_all(&self.dir).map_err(|fault| named(&self.dir, fault))?;
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let mut waiting = vec![(command, String::new())];
        let mut count = 0_usize;
        while let Some((command, above)) = waiting.pop() {
            let name = if above.is_empty() {
                command.get_name().to_owned()
            } else {
                format!("{above}-{}", command.get_name())
            };
            let inner: Vec<Command> = command.get_subcommands().filter(|inner| !inner.is_hide_set()).cloned().collect();
            waiting.extend(inner.into_iter().map(|inner| (inner, name.clone())));
            let (mut text, path) = (Vec::new(), self.dir.join(format!("{name}.1")));
            let page =
                Page::new(command.display_name(&name)).title(name.to_uppercase()).source(SOURCE).manual("quotesign");
            page.render(&mut text).map_err(|fault| named(&path, fault))?;
            text.extend_from_slice(EXIT_STATUS.as_bytes());
            fs::write(&path, text).map_err(|fault| named(&path, fault))?;
            count += 1;
        }
        say!("{}: {count} pages", self.dir.display());
        Ok(())
    }
}
