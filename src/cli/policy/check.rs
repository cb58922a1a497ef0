//! `quotesign policy check`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::{
    cli::out::say,
    clock::UtcTime,
    policy::{Bundle, Problem, timeline::Standing},
    review::{apart, cases},
};

use super::{At, Dir, Failure, Format, bundle_in, limits};

#[derive(Debug, Args)]
pub(in crate::cli) struct Check {
    #[command(flatten)]
    dir: Dir,
    #[command(flatten)]
    at: At,
    /// Another environment's bundle, with which this one may share no kid, key, place of a key or caller.
    #[arg(long, value_name = "DIR")]
    apart_from: Option<PathBuf>,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let now = self.at.time()?;
        let bundle = self.dir.load()?;
        let outcomes = cases::run(&self.dir.dir, &bundle, &limits()).map_err(|problems| self.dir.unfit(&problems))?;
        let mut problems: Vec<Problem> = outcomes
            .iter()
            .filter(|outcome| !outcome.differs.is_empty())
            .map(|outcome| Problem(format!("{}: `{}`: {}", outcome.file, outcome.name, outcome.differs.join("; "))))
            .collect();
        if let Some(other) = &self.apart_from {
            problems.extend(apart::shared(&bundle, &bundle_in(other)?));
        }
        if !problems.is_empty() {
            return Err(self.dir.unfit(&problems));
        }
        match self.dir.format {
            Format::Text => show(&bundle, now, outcomes.len()),
            Format::Json => say!("{:#}", told(&bundle, now, outcomes.len())),
        }
        Ok(())
    }
}

fn show(bundle: &Bundle, now: UtcTime, cases: usize) {
    say!("good: {} serial {}, digest {}, {cases} cases", bundle.environment, bundle.serial, bundle.digest);
    for partner in bundle.partners() {
        let current = bundle.timeline.current(&partner.id, now, |_| Standing::PLANNED).map(|key| &key.kid);
        for key in bundle.timeline.of(&partner.id) {
            let mark = if current == Some(&key.kid) { "signs now" } else { "" };
            let (state, from, until) = (format!("{:?}", key.state(now)), key.sign_from, key.sign_until);
            say!("{:<20} {:<28} {state:<9} signs {from} to {until}  {mark}", partner.id, key.kid);
        }
        if current.is_none() {
            say!("{:<20} no key may sign now", partner.id);
        }
    }
    for notice in bundle.ahead(now, |_| false) {
        say!("warning: {} {}: {}", notice.partner, notice.at, notice.text);
    }
}

fn told(bundle: &Bundle, now: UtcTime, cases: usize) -> Value {
    let partners = bundle.partners().map(|partner| {
        let current = bundle.timeline.current(&partner.id, now, |_| Standing::PLANNED).map(|key| key.kid.to_string());
        json!({ "partner": partner.id, "signs_now": current })
    });
    let notices = bundle
        .ahead(now, |_| false)
        .into_iter()
        .map(|notice| json!({ "partner": notice.partner, "at": notice.at.to_string(), "text": notice.text }));
    json!({
        "good": true,
        "environment": bundle.environment,
        "serial": bundle.serial,
        "digest": bundle.digest.to_string(),
        "cases": cases,
        "partners": partners.collect::<Vec<_>>(),
        "warnings": notices.collect::<Vec<_>>(),
    })
}
