//! `quotesign golive`: what of the operator's checklists a machine can show, with the evidence, and what people must answer.

use std::{fs, path::PathBuf};

use clap::{Args, ValueEnum};

use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    config::Config,
    domain::Environment,
    policy::{Bundle, Partner},
    review::{
        calendar::{self, Window},
        golive::{Dossier, Facts, Outcome, answers, forbidden, html},
    },
};

use super::{
    ClientPath, ConfigPath, Failure, PublicUrl, block_on,
    dev::write_private,
    noted::Noted,
    out,
    policy::{bundle_in, partner_in},
};

mod ledger;
mod offline;
mod online;
mod probes;

/// Exit codes: 0 nothing that was looked at has failed, 1 something has, 2 not understood.
#[derive(Debug, Args)]
pub(super) struct GoLive {
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    client: ClientPath,
    /// The partner.
    #[arg(long)]
    partner: String,
    #[command(flatten)]
    public: PublicUrl,
    /// A quote of the partner's contract, whose id, number and times are replaced: have quotes signed, refused and retried
    /// through the gateway of --client. Not in production, which is only read.
    #[arg(long, value_name = "FILE")]
    quote: Option<PathBuf>,
    /// The config of the other environment's gateway, with which nothing may be shared.
    #[arg(long, value_name = "FILE")]
    apart_from: Option<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value = "markdown")]
    format: Format,
    /// Write it here; to standard output where it is not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Markdown,
    Json,
    Html,
}

/// What is looked at.
struct Here<'h> {
    config: &'h Config,
    ledger: &'h Noted,
    bundle: &'h Bundle,
    partner: &'h Partner,
    now: UtcTime,
}

impl GoLive {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.config.load()?;
        let bundle = bundle_in(&config.policy)?;
        let partner = partner_in(&bundle, &self.partner)?;
        if self.quote.is_some() && config.environment == Environment::Production {
            return Err(Failure::unfit("--quote: production is only read; have probes signed in sandbox"));
        }
        let ledger = &Noted::open(&config, "golive", vec![format!("partner={}", partner.id)])?;
        let here = Here { config: &config, ledger, bundle: &bundle, partner, now: SystemClock.now() };
        let (dossier, calendar) = self.look(&here)?;
        let text = match self.format {
            Format::Markdown => dossier.markdown(),
            Format::Json => serde_json::to_string_pretty(&dossier).map_err(Failure::failed)? + "\n",
            Format::Html => html(&dossier, &calendar),
        };
        let bad = forbidden(&text, &[]);
        if !bad.is_empty() {
            return Err(Failure::failed(format!("nothing was written: it would hold {}", bad.join(", "))));
        }
        match &self.out {
            Some(path) => write_private(path, text.as_bytes())?,
            None => out::write(format_args!("{text}")),
        }
        match dossier.count(Outcome::Failed) {
            0 => Ok(()),
            failed => Err(Failure::failed(format!("{failed} of {} rows have failed", dossier.answers.len()))),
        }
    }

    fn look(&self, here: &Here<'_>) -> Result<(Dossier, String), Failure> {
        let Here { config, bundle, partner, now, .. } = *here;
        let mut facts = Facts::new();
        let book = ledger::read(here)?;
        let active = book.active(here);
        offline::look(here, &mut facts);
        book.look(here, active, &mut facts)?;
        if let Some(other) = &self.apart_from {
            offline::apart(here, other, &mut facts)?;
        }
        let (url, ca) = self.public.of(config, partner);
        block_on(async {
            if let Some(url) = url {
                online::look(url, ca, active.map(|key| &*key.public), now, &mut facts).await;
            }
            if let Some((key, client)) = active.zip(self.client.load().ok()) {
                online::protected(&client, key, &mut facts).await;
            }
            Ok(())
        })?;
        if let Some(file) = &self.quote {
            let template = fs::read(file).map_err(|fault| Failure::unfit(format!("{}: {fault}", file.display())))?;
            let client = self.client.load()?;
            block_on(probes::run(here, &client, &template, active.map(|key| &key.kid), &mut facts))?;
        }
        let dossier = Dossier {
            environment: config.environment.to_string(),
            partner: partner.id.to_string(),
            made_at: now.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policy_digest: bundle.digest.to_string(),
            policy_serial: bundle.serial,
            jwks_url: url.unwrap_or_default().to_owned(),
            active_kid: active.map(|key| key.kid.to_string()).unwrap_or_default(),
            contacts: partner.contacts.clone(),
            answers: answers(&facts),
        };
        Ok((dossier, calendar::svg(bundle, Some(&partner.id), Window::of(bundle, now))))
    }
}
