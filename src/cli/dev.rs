//! `quotesign dev`: a whole gateway in one directory, with nothing to configure: a SoftHSM token with a key
//! generated in it, a CA and certificates, the shipped policy bundle, a ledger, a config.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{config::Config, gateway::Gateway};

use super::ledger::migrate;
use super::{Failure, out::say, serve::serve};

mod certificates;
mod files;
mod token;

pub(super) use certificates::TRUST_DOMAIN;
pub(super) use files::{CONFIG, write as write_private, write_addresses};

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// Where the environment is kept.
    #[arg(long, default_value = ".dev", value_name = "DIR")]
    dir: PathBuf,
    /// Make the environment and do not serve.
    #[arg(long)]
    prepare: bool,
}

impl Dev {
    pub(super) fn run(self) -> Result<(), Failure> {
        let dir = make_dir(&self.dir)?;
        if !dir.join(files::COMPLETE).exists() {
            prepare(&dir, &[], token::BITS)?;
        }
        if self.prepare {
            say!("{} is ready; `quotesign dev --dir {}` serves it", self.dir.display(), self.dir.display());
            return Ok(());
        }
        write_addresses(&dir)?;
        let config = Config::load(&dir.join(CONFIG)).map_err(Failure::unfit)?;
        // An older version may have made it.
        migrate(&config)?;
        serve(config, |gateway| tell(&self.dir, gateway))
    }
}

fn make_dir(dir: &Path) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    let named = |fault: std::io::Error| Failure::failed(format!("{}: {fault}", dir.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(named)?;
    dir.canonicalize().map_err(named)
}

/// Makes everything anew, with a key of so many bits and certificates of these callers beside the bundle's own. What an
/// interrupted run has left goes first; the mark of completion is set last.
pub(super) fn prepare(dir: &Path, callers: &[String], bits: u32) -> Result<(), Failure> {
    files::clear(dir)?;
    files::write_softhsm(dir)?;
    certificates::make(&dir.join("tls"), callers)?;
    write_addresses(dir)?;
    let (quotes, checkpoints) = token::make(dir, bits)?;
    files::write_policy(&dir.join("policy"), &quotes)?;
    files::write_checkpoint_key(dir, &checkpoints)?;
    let config = Config::load(&dir.join(CONFIG)).map_err(Failure::unfit)?;
    migrate(&config)?;
    files::write(&dir.join(files::COMPLETE), b"the environment beside this file is complete\n")
}

fn tell(dir: &Path, gateway: &Gateway) {
    let dir = dir.display();
    say!("A development gateway, for this machine alone. Its keys and PINs are in {dir} and protect nothing.\n");
    for (front, address) in gateway.addresses().into_iter().flatten() {
        say!("  {front:<11} {address}");
    }
    say!(
        "\nIn another terminal:\n\n  \
         quotesign sign examples/quote.json --fill --save quote.json --client {dir}/client.toml > signed.jws\n  \
         quotesign verify signed.jws --client {dir}/client.toml\n  \
         quotesign sign quote.json --client {dir}/client.toml --format json    # the same again: the same JWS\n  \
         quotesign admin status --client {dir}/client.toml\n  \
         quotesign audit tail --config {dir}/quotesign.toml\n\n\
         Ctrl-C ends it; the environment stays. Policy is in {dir}/policy: change it, raise its serial, and\n  \
         quotesign admin reload-policy --client {dir}/client.toml\n"
    );
}
