//! `quotesign policy explain`.

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::{
    cli::out::say,
    clock::UtcTime,
    domain::Caller,
    policy::Bundle,
    review::forecast::{Decision, Forecast, Question, forecast},
};

use super::{At, Dir, Failure, Format, limits};

/// Exit codes: 0 it would be signed, 1 it would be refused, 2 it is no quote that could be decided on, or the bundle
/// is no good.
#[derive(Debug, Args)]
pub(in crate::cli) struct Explain {
    #[command(flatten)]
    dir: Dir,
    /// Who calls, as `spiffe://trust-domain/path` or `dns:name`.
    #[arg(long, value_name = "CALLER")]
    caller: String,
    /// The quote: a JSON file.
    #[arg(long, value_name = "FILE")]
    quote: PathBuf,
    /// Its id, where its contract has no claim for it.
    #[arg(long, default_value = "", value_name = "ID")]
    quote_id: String,
    /// When the values shown to the customer were fixed.
    #[arg(long, value_name = "TIME")]
    values_fixed_at: Option<String>,
    #[command(flatten)]
    at: At,
}

impl Explain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let bundle = self.dir.load()?;
        let question = self.question()?;
        let found = forecast(&bundle, &limits(), &question);
        match self.dir.format {
            Format::Text => show(&bundle, &question, &found),
            Format::Json => say!("{:#}", told(&bundle, &question, &found)),
        }
        match found.decision {
            Decision::Allow => Ok(()),
            Decision::Deny => Err(Failure::failed("it would be refused")),
            Decision::Invalid => Err(Failure::unfit("it is no quote that could be decided on")),
        }
    }

    fn question(&self) -> Result<Question, Failure> {
        let caller: Caller = self.caller.parse().map_err(|fault| Failure::unfit(format!("--caller: {fault}")))?;
        let payload =
            fs::read(&self.quote).map_err(|fault| Failure::unfit(format!("{}: {fault}", self.quote.display())))?;
        let fixed = self.values_fixed_at.as_deref().map(UtcTime::parse).transpose();
        let values_fixed_at = fixed.map_err(|fault| Failure::unfit(format!("--values-fixed-at: {fault}")))?;
        let at = self.at.time()?;
        Ok(Question {
            caller,
            payload,
            quote_id: self.quote_id.clone(),
            values_fixed_at,
            at,
            is_reserved: false,
            signed_before: 0,
        })
    }
}

fn show(bundle: &Bundle, question: &Question, found: &Forecast) {
    say!("{}: {} at {}", found.decision, question.caller, question.at);
    if let Some(terms) = &found.terms {
        let scope = found.scope.as_ref().map(|scope| format!(", sequence {scope}")).unwrap_or_default();
        say!(
            "  quote   {} of {}, corridor {}, contract {}{scope}",
            terms.quote_id,
            terms.partner,
            terms.corridor,
            terms.contract
        );
    }
    for (rule, reason) in reasons(bundle, found) {
        say!("  rule    {rule}: {reason}");
    }
    if let Some(kid) = &found.kid {
        say!("  key     {kid}");
    }
    if let Some(refusal) = &found.refusal {
        say!("  why     {}: {refusal}", found.reason().unwrap_or_default());
    }
    for (place, why) in found.violations() {
        say!("  at      {}: {why}", if place.is_empty() { "the quote" } else { place });
    }
    for unmet in &found.nearest {
        say!("  nearest {}: it would have to be true that", unmet.rule);
        unmet.conditions.iter().for_each(|condition| say!("            {condition}"));
    }
    for provided in &found.provided {
        say!("  if      {provided}");
    }
}

fn reasons<'a>(bundle: &Bundle, found: &'a Forecast) -> Vec<(&'a str, String)> {
    let rules = bundle.authority.rules();
    let reason = |id: &str| rules.iter().find(|rule| rule.id == id).map(|rule| rule.reason.clone());
    found.rules.iter().map(|id| (id.as_str(), reason(id).unwrap_or_default())).collect()
}

fn told(bundle: &Bundle, question: &Question, found: &Forecast) -> Value {
    let rules = reasons(bundle, found).into_iter().map(|(id, reason)| json!({ "id": id, "reason": reason }));
    let places = found.violations().into_iter().map(|(place, why)| json!({ "place": place, "why": why }));
    let nearest = found.nearest.iter().map(|unmet| json!({ "rule": unmet.rule, "unmet": unmet.conditions }));
    json!({
        "decision": found.decision,
        "caller": question.caller.to_string(),
        "at": question.at.to_string(),
        "policy_digest": bundle.digest.to_string(),
        "quote_id": found.terms.as_ref().map(|terms| terms.quote_id.to_string()),
        "partner": found.terms.as_ref().map(|terms| terms.partner.to_string()),
        "corridor": found.terms.as_ref().map(|terms| terms.corridor.to_string()),
        "contract": found.terms.as_ref().map(|terms| terms.contract.clone()),
        "sequence": found.scope.as_ref().map(ToString::to_string),
        "rules": rules.collect::<Vec<_>>(),
        "kid": found.kid.as_ref().map(ToString::to_string),
        "reason": found.reason(),
        "why": found.refusal.as_ref().map(ToString::to_string),
        "places": places.collect::<Vec<_>>(),
        "nearest": nearest.collect::<Vec<_>>(),
        "provided": found.provided,
    })
}
