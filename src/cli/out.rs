//! Standard output of the commands. A reader that has seen enough, such as `head`, closes it: the rest is then
//! written for nobody, and the command goes on to the exit code that it owes.

use std::{fmt, io, io::Write as _, sync::OnceLock};

use super::Failure;

/// The first fault that was none of a closed reader.
static FAULT: OnceLock<String> = OnceLock::new();

/// Writes to standard output.
pub(super) fn write(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    settle(out.write_fmt(text).and_then(|()| out.flush()));
}

/// Tells whoever reads standard error; where nobody does, the command still owes its exit code.
pub(super) fn warn(line: fmt::Arguments<'_>) {
    drop(writeln!(io::stderr(), "quotesign: {line}"));
}

/// Keeps a fault that is none of a closed reader.
fn settle(written: io::Result<()>) {
    match written {
        Err(fault) if fault.kind() != io::ErrorKind::BrokenPipe => {
            FAULT.get_or_init(|| fault.to_string());
        }
        _ => {}
    }
}

/// Standard output as a writer, for what is too long to be held as a text.
#[derive(Debug)]
pub(super) struct Out;

impl io::Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        settle(io::stdout().lock().write_all(bytes));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        settle(io::stdout().lock().flush());
        Ok(())
    }
}

/// Whether all that was written was written, or nobody wanted it.
pub(super) fn finish() -> Result<(), Failure> {
    let fault = FAULT.get().map(|fault| Failure::failed(format!("standard output cannot be written: {fault}")));
    fault.map_or(Ok(()), Err)
}

/// As `println!`, but for a closed reader.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::out::write(format_args!("{}\n", format_args!($($text)*))) };
}

pub(super) use say;
