//! The cases of a bundle: who asks for what, when, and what must come of it. They lie in `cases/*.toml` and are no
//! part of the bundle's digest, since they decide nothing.

use std::{collections::BTreeMap, fmt, fs, path::Path, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    clock::UtcTime,
    domain::{Caller, Corridor, Kid, PartnerId, PolicyDigest},
    json::Limits,
    money::Minor,
    policy::{
        Bundle, Problem,
        authority::{Action, Resource, Verdict},
        files,
    },
    strict_toml,
    terms::Terms,
};

use super::{
    diff::settings,
    forecast::{Decision, Forecast, Question, forecast},
};

/// Where cases lie in a bundle's directory.
pub const FOLDER: &str = "cases";

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    #[serde(rename = "case", default)]
    cases: Vec<Case>,
    /// What fields of `policy.toml` say, where no case could show it: written twice, so that a slip in one place is seen.
    #[serde(default)]
    settings: BTreeMap<String, toml::Value>,
}

/// What lies in one file, with its name.
type Read = (String, CaseFile);

/// A case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows, in a sentence.
    pub name: String,
    caller: Caller,
    /// Whether `caller` or `partner` is one that `policy.toml` does not have, and is meant to be.
    #[serde(default)]
    stranger: bool,
    /// An act of the schema; signing where it is absent.
    act: Option<String>,
    /// Whose, for an act on a partner that is not signing.
    partner: Option<PartnerId>,
    at: Option<UtcTime>,
    /// A file in `cases/`.
    quote: Option<String>,
    /// The quote's id, where its contract names no claim for it.
    #[serde(default)]
    quote_id: String,
    /// When the values shown to the customer were fixed.
    values_fixed_at: Option<UtcTime>,
    /// Claims that are other than in that file.
    #[serde(default)]
    set: BTreeMap<String, toml::Value>,
    /// Claims that are left out.
    #[serde(default)]
    without: Vec<String>,
    /// What the rules alone are asked about: as the quote says, but for these. The contract is not asked, so that a rule
    /// behind it can be tried too.
    terms: Option<Otherwise>,
    /// How many others were signed at that moment.
    #[serde(default)]
    signed_before: u32,
    expect: Expected,
}

/// What is other than a quote says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Otherwise {
    corridor: Option<Corridor>,
    send_minor: Option<u64>,
    receive_minor: Option<u64>,
    validity_seconds: Option<u64>,
}

/// What must come of a case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    decision: Decision,
    /// The rules that decide, all of them.
    #[serde(default)]
    rules: Vec<String>,
    /// The stable reason of the refusal.
    reason: Option<String>,
    /// The key that signs.
    kid: Option<Kid>,
    /// The quota that is spent.
    quota: Option<String>,
    /// JSON Pointers of what breaks the contract, all of them.
    #[serde(default)]
    places: Vec<String>,
}

/// What came of a case.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The file.
    pub file: String,
    /// The case's name.
    pub name: String,
    /// What differs from what was expected; empty where nothing does.
    pub differs: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, name, differs } = self;
        if differs.is_empty() {
            return write!(f, "ok   {file}: {name}");
        }
        write!(f, "FAIL {file}: {name}: {}", differs.join("; "))
    }
}

/// Reads the cases of the bundle in `dir`. Everything that is wrong with them is told, a line each.
fn read(dir: &Path) -> Result<Vec<Read>, Vec<Problem>> {
    let folder = dir.join(FOLDER);
    let mut names: Vec<String> = match fs::read_dir(&folder) {
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(fault) => return Err(vec![Problem(format!("{FOLDER}/: cannot be read: {fault}"))]),
        Ok(entries) => entries
            .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect(),
    };
    names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == "toml"));
    names.sort_unstable();
    let (mut cases, mut problems) = (Vec::new(), Vec::new());
    for name in names {
        let file = format!("{FOLDER}/{name}");
        let read = fs::read_to_string(folder.join(&name)).map_err(|fault| format!("{file}: cannot be read: {fault}"));
        match read.and_then(|text| strict_toml::read::<CaseFile>(&text).map_err(|misfit| misfit.of_file(&file))) {
            Ok(read) => cases.push((file, read)),
            Err(why) => problems.push(Problem(why)),
        }
    }
    if problems.is_empty() { Ok(cases) } else { Err(problems) }
}

/// Runs the cases of the bundle in `dir`.
///
/// # Errors
/// Where a case cannot be read or run, a line each.
pub fn run(dir: &Path, policy: &Bundle, limits: &Limits) -> Result<Vec<Outcome>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut outcomes = Vec::new();
    let files = files::read(dir)?;
    let mut said = settings(&files);
    // Of the other files each can be named as a whole.
    let digests =
        files.iter().map(|(path, bytes)| (format!("sha256 of {path}"), format!("\"{}\"", PolicyDigest::of(bytes))));
    said.extend(digests);
    for (file, CaseFile { cases, settings }) in read(dir)? {
        for case in cases {
            match case.differs(dir, policy, limits) {
                Ok(differs) => outcomes.push(Outcome { file: file.clone(), name: case.name, differs }),
                Err(why) => problems.push(Problem(format!("{file}: `{}`: {why}", case.name))),
            }
        }
        for (name, expected) in settings {
            let mut differs = Vec::new();
            let found = said.get(&name).map_or("not there", String::as_str);
            compare(&mut differs, "it", &expected.to_string(), found);
            outcomes.push(Outcome { file: file.clone(), name, differs });
        }
    }
    if problems.is_empty() { Ok(outcomes) } else { Err(problems) }
}

impl Case {
    fn differs(&self, dir: &Path, policy: &Bundle, limits: &Limits) -> Result<Vec<String>, String> {
        self.are_known(policy)?;
        match self.act.as_deref() {
            None | Some("SignQuote") => self.signing(dir, policy, limits),
            Some(name) => self.acting(name, policy),
        }
    }

    /// A misspelt name is denied everything, and would prove nothing.
    fn are_known(&self, policy: &Bundle) -> Result<(), String> {
        let caller = (!policy.knows(&self.caller)).then(|| format!("caller `{}`", self.caller));
        let partner = self.partner.as_ref().filter(|partner| policy.partner(partner).is_none());
        let unknown = caller.or_else(|| partner.map(|partner| format!("partner `{partner}`")));
        match (unknown, self.stranger) {
            (Some(unknown), false) => Err(format!(
                "policy.toml has no {unknown}, which is denied whatever the rules say; mend the name, or say `stranger = true` where that is meant"
            )),
            (None, true) => {
                Err("`stranger` is for a caller or partner that policy.toml does not have; remove it".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn signing(&self, dir: &Path, policy: &Bundle, limits: &Limits) -> Result<Vec<String>, String> {
        let at = self.at.ok_or("`at` is missing: signing depends on the time")?;
        if self.partner.is_some() {
            return Err("`partner` is the quote's own where it is to be signed; remove it".to_owned());
        }
        if self.terms.is_none()
            && self.expect.decision == Decision::Allow
            && (self.expect.kid.is_none() || self.expect.rules.is_empty())
        {
            return Err("`expect` must name `rules` and `kid` where a quote is signed".to_owned());
        }
        let question = Question {
            caller: self.caller.clone(),
            payload: self.payload(dir)?,
            quote_id: self.quote_id.clone(),
            values_fixed_at: self.values_fixed_at,
            at,
            is_reserved: false,
            signed_before: self.signed_before,
        };
        let found = forecast(policy, limits, &question);
        let Some(otherwise) = &self.terms else { return Ok(self.expect.differs(&found)) };
        let terms = found.terms.ok_or("`terms` needs a quote that keeps its contract")?;
        let terms = otherwise.of(terms).ok_or("`terms` has an amount or a time that no quote has")?;
        let resource = Resource::Partner(&terms.partner);
        Ok(self.expect.of_rules(&policy.authority.decide(&self.caller, Action::SignQuote, resource, Some(&terms))))
    }

    fn payload(&self, dir: &Path) -> Result<Vec<u8>, String> {
        let name = self.quote.as_ref().ok_or("`quote` is missing: name a file in cases/")?;
        let bytes =
            fs::read(dir.join(FOLDER).join(name)).map_err(|fault| format!("`{name}` cannot be read: {fault}"))?;
        if self.set.is_empty() && self.without.is_empty() {
            return Ok(bytes);
        }
        let mut quote: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|fault| format!("`{name}` is no JSON object: {fault}"))?;
        for claim in &self.without {
            quote.remove(claim).ok_or_else(|| format!("`{name}` has no `{claim}` to leave out"))?;
        }
        for (claim, value) in &self.set {
            let value = serde_json::to_value(value).map_err(|fault| format!("`set.{claim}`: {fault}"))?;
            quote.insert(claim.clone(), value);
        }
        serde_json::to_vec(&quote).map_err(|fault| fault.to_string())
    }

    fn acting(&self, name: &str, policy: &Bundle) -> Result<Vec<String>, String> {
        let action = Action::ALL.into_iter().find(|action| action.name() == name);
        let action = action.ok_or_else(|| format!("no act is named `{name}`; quotesign.cedarschema has them"))?;
        let resource = match (&self.partner, action.is_of_partner()) {
            (Some(partner), true) => Resource::Partner(partner),
            (None, false) => Resource::Gateway,
            (None, true) => return Err(format!("`{name}` is done to a partner; give `partner`")),
            (Some(_), false) => return Err(format!("`{name}` is done to the gateway; remove `partner`")),
        };
        let verdict = policy.authority.decide(&self.caller, action, resource, None);
        Ok(self.expect.of_rules(&verdict))
    }
}

impl Otherwise {
    fn of(&self, terms: Terms) -> Option<Terms> {
        let amount = |ours: Option<u64>, theirs| ours.map_or(Some(theirs), Minor::new);
        let valid_for = self.validity_seconds.map(Duration::from_secs);
        Some(Terms {
            corridor: self.corridor.clone().unwrap_or(terms.corridor),
            send: amount(self.send_minor, terms.send)?,
            receive: amount(self.receive_minor, terms.receive)?,
            expires_at: valid_for.map_or(terms.expires_at, |valid_for| terms.issued_at.plus(valid_for)),
            ..terms
        })
    }
}

impl Expected {
    fn of_rules(&self, verdict: &Verdict) -> Vec<String> {
        let decision = if verdict.allowed { Decision::Allow } else { Decision::Deny };
        let mut differs = Vec::new();
        compare(&mut differs, "decision", &self.decision.to_string(), &decision.to_string());
        compare(&mut differs, "rules", &listed(&self.rules), &listed(&verdict.rule_ids));
        differs
    }

    fn differs(&self, found: &Forecast) -> Vec<String> {
        let mut differs = Vec::new();
        compare(&mut differs, "decision", &self.decision.to_string(), &found.decision.to_string());
        compare(&mut differs, "rules", &listed(&self.rules), &listed(&found.rules));
        if let Some(kid) = &self.kid {
            let found = found.kid.as_ref().map(ToString::to_string).unwrap_or_default();
            compare(&mut differs, "kid", &kid.to_string(), &found);
        }
        if let Some(reason) = &self.reason {
            compare(&mut differs, "reason", reason, found.reason().unwrap_or_default());
        }
        if let Some(quota) = &self.quota {
            compare(&mut differs, "quota", quota, found.quota.as_deref().unwrap_or_default());
        }
        let places: Vec<String> = found.violations().iter().map(|(place, _)| (*place).to_owned()).collect();
        if !self.places.is_empty() {
            compare(&mut differs, "places", &listed(&self.places), &listed(&places));
        }
        differs
    }
}

fn compare(differs: &mut Vec<String>, what: &str, expected: &str, found: &str) {
    if expected != found {
        differs.push(format!("{what}: expected {expected}, and it is {found}"));
    }
}

fn listed(texts: &[String]) -> String {
    let mut texts = texts.to_vec();
    texts.sort_unstable();
    format!("[{}]", texts.join(", "))
}
