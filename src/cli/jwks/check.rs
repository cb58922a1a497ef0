//! `quotesign jwks check`.

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::json;

use crate::{
    client,
    clock::{Clock as _, SystemClock},
    domain::Kid,
    key_set::{self, Fetched, Finding, Severity},
};

use crate::cli::{Format, out::say};

use super::{Failure, block_on};

/// Exit codes: 0 verifiers will take it, 1 they will not, 2 it cannot be read, 3 it holds private key material.
#[derive(Debug, Args)]
pub(in crate::cli) struct Check {
    /// An https:// address, or a file.
    place: String,
    /// The kid that signs now, which must be in it.
    #[arg(long)]
    active: Option<String>,
    /// The CAs that the address is held against, PEM.
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    ca: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let active = self.active.as_deref().map(str::parse::<Kid>).transpose();
        let active = active.map_err(|fault| Failure::unfit(format!("--active: {fault}")))?;
        let (fetched, body) = self.got()?;
        let findings = key_set::inspect(&body, fetched.as_ref(), active.as_ref(), SystemClock.now());
        let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Passed);
        match self.format {
            Format::Json => say!("{:#}", json!({ "place": self.place, "worst": worst, "findings": findings })),
            Format::Text => {
                for Finding { check, severity, detail } in &findings {
                    say!(
                        "{severity:<9} {check}{}",
                        if detail.is_empty() { String::new() } else { format!(": {detail}") }
                    );
                }
            }
        }
        match worst {
            Severity::Passed | Severity::Warning => Ok(()),
            Severity::Failed => Err(Failure::failed("verifiers will not take all of this key set")),
            Severity::Critical => {
                Err(Failure { code: 3, text: "private key material is published: rotate now".to_owned() })
            }
        }
    }

    fn got(&self) -> Result<(Option<Fetched>, Vec<u8>), Failure> {
        if self.place.contains("://") {
            let (fetched, body) =
                block_on(async { client::look(&self.place, &self.ca).await.map_err(Failure::unfit) })?;
            return Ok((Some(fetched), body.to_vec()));
        }
        let body = fs::read(&self.place).map_err(|fault| Failure::unfit(format!("{}: {fault}", self.place)))?;
        Ok((None, body))
    }
}
