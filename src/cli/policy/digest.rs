//! `quotesign policy digest`.

use clap::Args;
use serde_json::json;

use crate::{cli::out::say, disk, policy::DIGEST_FILE};

use super::{Dir, Failure, Format};

#[derive(Debug, Args)]
pub(in crate::cli) struct Digest {
    #[command(flatten)]
    dir: Dir,
    /// Write it to `bundle.digest` as well: a gateway that watches the directory takes the bundle over when that file says
    /// its digest, so write it last.
    #[arg(long)]
    write: bool,
}

impl Digest {
    pub(super) fn run(self) -> Result<(), Failure> {
        let digest = self.dir.load()?.digest;
        if self.write {
            let path = self.dir.dir.join(DIGEST_FILE);
            disk::put(&path, format!("{digest}\n").as_bytes())
                .map_err(|fault| Failure::failed(format!("{}: {fault}", path.display())))?;
        }
        match self.dir.format {
            Format::Text => say!("{digest}"),
            Format::Json => say!("{:#}", json!({ "digest": digest.to_string() })),
        }
        Ok(())
    }
}
