//! What would happen to a quote under a bundle: the stages of the path that need no device and no ledger, in their
//! order, and in words what those that do would ask for.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    audit,
    call::Call,
    clock::UtcTime,
    domain::{Caller, Environment, Kid, PartnerId, Scope},
    json::Limits,
    ledger::{
        LedgerError, Refusal as Spent,
        step::{Quotas, charge},
    },
    pipeline::{
        attempts::{self, Attempts},
        authorize::authorize,
        parse::{QuoteRequest, parse},
        refusal::{self, Refusal},
        reserve::charges,
        select::NoKey,
        validate::{Invalid, validate},
    },
    policy::{
        Bundle,
        authority::{Action, Resource, Unmet},
        timeline::Standing,
    },
    terms::Terms,
};

/// As many rules that were not met are told.
const NEAREST_MAX: usize = 3;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who calls.
    pub caller: Caller,
    /// The quote, as it would be sent.
    pub payload: Vec<u8>,
    /// Its id, where its contract has no claim for it.
    pub quote_id: String,
    /// When the values shown to the customer were fixed, where the caller says so.
    pub values_fixed_at: Option<UtcTime>,
    /// When.
    pub at: UtcTime,
    /// Whether it has its number already; a new quote is taken only where it is of use for a while.
    pub is_reserved: bool,
    /// How many others of the caller, partner and key were signed at that very moment.
    pub signed_before: u32,
}

/// What would come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It would be signed.
    Allow,
    /// Policy, its timeline or its quotas would not have it signed.
    Deny,
    /// It is no quote that could be decided on.
    Invalid,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Invalid => "invalid",
        })
    }
}

/// What would happen.
#[derive(Debug)]
pub struct Forecast {
    /// In a word.
    pub decision: Decision,
    /// The refusal.
    pub refusal: Option<Refusal>,
    /// The rules that decided.
    pub rules: Vec<String>,
    /// What the quote says, where it could be read.
    pub terms: Option<Terms>,
    /// The key that would sign.
    pub kid: Option<Kid>,
    /// The sequence that its number is of.
    pub scope: Option<Scope>,
    /// The quota that would be spent.
    pub quota: Option<String>,
    /// Of a quote that no rule permits, the rules that come nearest.
    pub nearest: Vec<Unmet>,
    /// What else would have to be true.
    pub provided: Vec<String>,
}

impl Forecast {
    /// The stable reason of the refusal.
    #[must_use]
    pub fn reason(&self) -> Option<&'static str> {
        self.refusal.as_ref().map(|refusal| refusal::name(refusal.reason()))
    }

    /// The places of the quote that break its contract, each with why.
    #[must_use]
    pub fn violations(&self) -> Vec<(&str, &str)> {
        match &self.refusal {
            Some(Refusal::Invalid(Invalid::Violations(violations))) => {
                violations.iter().map(|violation| (violation.pointer.as_str(), violation.reason.as_str())).collect()
            }
            _ => Vec::new(),
        }
    }

    fn refused(mut self, refusal: Refusal) -> Self {
        self.decision = match refusal {
            Refusal::Parse(_) | Refusal::Invalid(_) => Decision::Invalid,
            _ => Decision::Deny,
        };
        self.refusal = Some(refusal);
        self
    }
}

/// Says what would happen to a quote under `policy`.
#[must_use]
pub fn forecast(policy: &Bundle, limits: &Limits, question: &Question) -> Forecast {
    let mut told = Forecast {
        decision: Decision::Allow,
        refusal: None,
        rules: Vec::new(),
        terms: None,
        kid: None,
        scope: None,
        quota: None,
        nearest: Vec::new(),
        provided: Vec::new(),
    };
    match told.go_through(policy, limits, question) {
        Ok(()) => told,
        Err(refusal) => told.refused(refusal),
    }
}

impl Forecast {
    /// The stages of the path in their order, as far as they need no device and no ledger.
    fn go_through(&mut self, policy: &Bundle, limits: &Limits, question: &Question) -> Result<(), Refusal> {
        let call = call_of(question);
        let environment = policy.environment;
        let mut trail =
            audit::Context::new(call.correlation_id.clone(), environment, policy.digest.to_string(), policy.serial);
        let request = QuoteRequest {
            environment: environment.to_string(),
            payload: question.payload.clone(),
            quote_id: question.quote_id.clone(),
            values_fixed_at: question.values_fixed_at,
        };
        let counted = attempts::count(&Attempts::default(), policy, &call)?;
        let parsed = parse(counted, request, environment, limits)?;
        let valid = validate(parsed, policy, question.at, &mut trail)?;
        let terms = self.terms.insert(valid.terms().clone());
        self.scope = policy.partner(&terms.partner).map(|partner| policy.scope(partner, Some(&terms.corridor)));
        let decided = authorize(valid, policy, &call, &mut trail);
        self.rules = std::mem::take(&mut trail.rule_ids);
        if let Err(denied) = decided {
            if denied.rule_ids.is_empty() {
                let resource = Resource::Partner(&terms.partner);
                self.nearest = policy.authority.unmet(&question.caller, Action::SignQuote, resource, Some(terms));
                self.nearest.truncate(NEAREST_MAX);
            }
            return Err(denied.into());
        }
        let key = policy.timeline.current(&terms.partner, question.at, |_| Standing::PLANNED);
        let kid = key.map(|key| key.kid.clone()).ok_or_else(|| NoKey::NoneActive(terms.partner.clone()))?;
        if !question.is_reserved && terms.expires_at <= question.at.plus(policy.validity.useful()) {
            return Err(LedgerError::Refused(Spent::Expired).into());
        }
        let spent = spent(policy, &terms.partner, question, &kid);
        if let Err(Spent::QuotaSpent { quota, .. }) = &spent {
            self.quota = Some(quota.clone());
        }
        self.provided = provided(policy, terms, &kid, &spent.map_err(LedgerError::Refused)?);
        self.kid = Some(kid);
        Ok(())
    }
}

fn call_of(question: &Question) -> Call {
    Call::new(question.caller.clone(), "quotesign.v1.QuoteSigningService/SignQuote", Duration::from_mins(1))
}

/// Charges what was signed before and then this quote: the names of the quotas, or the one that is spent.
fn spent(policy: &Bundle, partner: &PartnerId, question: &Question, kid: &Kid) -> Result<Vec<String>, Spent> {
    let charges = charges(&policy.quotas, partner.as_str(), &question.caller.to_string(), kid.as_str());
    let mut held = Quotas::new();
    for _ in 0..=question.signed_before {
        held.extend(charge(&held, &charges, question.at)?);
    }
    Ok(charges.into_iter().map(|charge| charge.quota).collect())
}

/// What the stages that need a device or the ledger would ask for.
fn provided(policy: &Bundle, terms: &Terms, kid: &Kid, quotas: &[String]) -> Vec<String> {
    let Some((partner, key)) = policy.partner(&terms.partner).zip(policy.key(kid)) else {
        return Vec::new();
    };
    let scope = policy.scope(partner, Some(&terms.corridor));
    let jump = partner.sequence.jump_max;
    let number = terms.sequence.map_or_else(
        || format!("the sequence {scope} exists, and gives it its number"),
        |number| format!("the last number taken in {scope} is below {} and at most {jump} below it", number.get()),
    );
    let signers: Vec<_> = key.places.iter().map(|(signer, _)| format!("`{signer}`")).collect();
    let mut all = vec![
        number,
        format!("no other payload was bound to the quote id before (partner `{}`)", partner.id),
        format!("`{}` was not revoked, and neither it nor the partner nor all signing is halted", key.kid),
        format!("{} can sign with `{}` in time", signers.join(" or "), key.kid),
        format!("the caller is not suspended, and nothing else has spent {}", quotas.join(", ")),
    ];
    if policy.environment != Environment::Development {
        all.push("the sequence was seeded".to_owned());
    }
    all
}
