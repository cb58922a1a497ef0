//! Who may do what: the Cedar rules of `authorize.cedar`, checked against `quotesign.cedarschema`. Allowed
//! only where a rule permits, none forbids and none errored.

use std::collections::{BTreeSet, HashMap, HashSet};

use cedar_policy::{
    Authorizer, Context, Decision, Effect, Entities, Entity, EntityId, EntityTypeName, EntityUid, Policy, PolicyId,
    PolicySet, Request, RestrictedExpression, Schema, ValidationMode, Validator,
};

use crate::{
    domain::{Caller, PartnerId},
    terms::Terms,
};

mod literals;
mod slices;
mod unmet;

pub(super) use literals::Vocabulary;
use slices::Slices;
pub use unmet::Unmet;

/// The acts that policy decides on. One row of `service::access` leads to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Sign a quote of a partner.
    SignQuote,
    /// Verify a JWS with a partner's keys.
    VerifyQuote,
    /// Read where a partner's sequence stands.
    GetSequence,
    /// Read a partner's JWKS.
    GetJwks,
    /// Read a partner's key timeline.
    ListKeys,
    /// Read the gateway's state.
    GetStatus,
    /// Create a partner's sequence or raise its floor.
    SeedSequence,
    /// Read the policy bundle again.
    ReloadPolicy,
    /// Revoke a key.
    RevokeKey,
    /// Stop signing.
    Halt,
    /// End a halt.
    Resume,
    /// Refuse all that a caller asks for.
    SuspendCaller,
    /// Let a caller in again.
    ReinstateCaller,
    /// Keep the ledger from pruning.
    SetHold,
    /// Let it prune again.
    ReleaseHold,
    /// Let a key sign before its propagation time is over.
    ActivateKey,
    /// Read which quotes a key or a caller has had signed.
    ListSignedQuotes,
    /// Report what the operator's API said of a quote.
    ReportQuoteOutcome,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::SignQuote,
        Self::VerifyQuote,
        Self::GetSequence,
        Self::GetJwks,
        Self::ListKeys,
        Self::GetStatus,
        Self::SeedSequence,
        Self::ReloadPolicy,
        Self::RevokeKey,
        Self::Halt,
        Self::Resume,
        Self::SuspendCaller,
        Self::ReinstateCaller,
        Self::SetHold,
        Self::ReleaseHold,
        Self::ActivateKey,
        Self::ListSignedQuotes,
        Self::ReportQuoteOutcome,
    ];

    /// Whether it is done to a partner; otherwise to the gateway itself.
    #[must_use]
    pub fn is_of_partner(self) -> bool {
        matches!(
            self,
            Self::SignQuote
                | Self::VerifyQuote
                | Self::GetSequence
                | Self::GetJwks
                | Self::ListKeys
                | Self::SeedSequence
                | Self::ReportQuoteOutcome
        )
    }

    /// The name in the Cedar schema.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SignQuote => "SignQuote",
            Self::VerifyQuote => "VerifyQuote",
            Self::GetSequence => "GetSequence",
            Self::GetJwks => "GetJwks",
            Self::ListKeys => "ListKeys",
            Self::GetStatus => "GetStatus",
            Self::SeedSequence => "SeedSequence",
            Self::ReloadPolicy => "ReloadPolicy",
            Self::RevokeKey => "RevokeKey",
            Self::Halt => "Halt",
            Self::Resume => "Resume",
            Self::SuspendCaller => "SuspendCaller",
            Self::ReinstateCaller => "ReinstateCaller",
            Self::SetHold => "SetHold",
            Self::ReleaseHold => "ReleaseHold",
            Self::ActivateKey => "ActivateKey",
            Self::ListSignedQuotes => "ListSignedQuotes",
            Self::ReportQuoteOutcome => "ReportQuoteOutcome",
        }
    }
}

/// What an act is done to.
#[derive(Debug, Clone, Copy)]
pub enum Resource<'a> {
    /// One partner.
    Partner(&'a PartnerId),
    /// The gateway itself.
    Gateway,
}

/// What policy says of an act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may be done.
    pub allowed: bool,
    /// The rules that decided, by `@id`; of a denial the forbids, or those that errored. Empty where no rule
    /// speaks of the act, which denies it.
    pub rule_ids: Vec<String>,
}

/// The rules with the entities they speak of.
pub struct Authority {
    policies: PolicySet,
    slices: Slices,
    schema: Schema,
    entities: Entities,
}

/// A rule as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its `@id`.
    pub id: String,
    /// Its `@reason`.
    pub reason: String,
    /// Whether it permits; otherwise it forbids.
    pub permits: bool,
    /// Its text in Cedar's own layout, without its annotations.
    pub text: String,
}

/// A caller with its roles.
pub(super) type Roles<'a> = (&'a Caller, &'a [String]);

impl Authority {
    /// Compiles the rules. All that is wrong is told at once.
    pub(super) fn compile<'a>(
        rules: &str,
        schema: &str,
        callers: impl Iterator<Item = Roles<'a>>,
        partners: impl Iterator<Item = &'a PartnerId>,
        vocabulary: &Vocabulary<'_>,
    ) -> Result<Self, Vec<String>> {
        let callers: Vec<Roles<'a>> = callers.collect();
        let (schema, warnings) = schema_of(schema)?;
        let policies = named_rules(rules)?;
        let entities = entities(callers.iter().copied(), partners, &schema).map_err(|fault| vec![fault])?;
        let mut faults = warnings;
        faults.extend(invalid(&policies, &schema, rules));
        faults.extend(unknown_entities(&policies, &entities));
        faults.extend(literals::unsayable(&policies, vocabulary));
        faults.extend(idle_roles(&policies, &callers));
        let slices = Slices::of(&policies);
        let authority = Self { policies, slices, schema, entities };
        if faults.is_empty() {
            faults.extend(authority.nobody_may_stop(&callers));
        }
        if faults.is_empty() { Ok(authority) } else { Err(faults) }
    }

    /// Whoever finds a key lost must be able to revoke it, and there must be somebody who can.
    fn nobody_may_stop(&self, callers: &[Roles<'_>]) -> Option<String> {
        let may = |(caller, _): &Roles<'_>| self.decide(caller, Action::RevokeKey, Resource::Gateway, None).allowed;
        (!callers.iter().any(may)).then(|| {
            "authorize.cedar: no caller of policy.toml may `RevokeKey`, so that no key could be revoked; permit it to one"
                .to_owned()
        })
    }

    /// The rules, by `@id`.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let note = |policy: &Policy, name| policy.annotation(name).unwrap_or_default().to_owned();
        let mut rules: Vec<Rule> = self
            .policies
            .policies()
            .map(|policy| Rule {
                id: policy.id().to_string(),
                reason: note(policy, "reason"),
                permits: policy.effect() == Effect::Permit,
                text: text_of(policy),
            })
            .collect();
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        rules
    }

    /// What each permit would still need before it let `caller` do `action`, the nearest first.
    #[must_use]
    pub fn unmet(&self, caller: &Caller, action: Action, resource: Resource<'_>, terms: Option<&Terms>) -> Vec<Unmet> {
        let request = self.request(caller, action, resource, terms);
        request.map(|request| self.unmet_by(&request, action)).unwrap_or_default()
    }

    /// What policy says of `caller` doing `action` to `resource`; `terms` where the act is to sign a quote.
    #[must_use]
    pub fn decide(&self, caller: &Caller, action: Action, resource: Resource<'_>, terms: Option<&Terms>) -> Verdict {
        let denied = Verdict { allowed: false, rule_ids: Vec::new() };
        let Some(request) = self.request(caller, action, resource, terms) else {
            return denied;
        };
        let response = Authorizer::new().is_authorized(&request, self.slices.of_act(action, resource), &self.entities);
        let errored: Vec<String> = response.diagnostics().errors().map(rule_of_error).collect();
        if !errored.is_empty() {
            return Verdict { allowed: false, rule_ids: errored };
        }
        let mut rule_ids: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        rule_ids.sort_unstable();
        Verdict { allowed: response.decision() == Decision::Allow, rule_ids }
    }

    fn request(
        &self,
        caller: &Caller,
        action: Action,
        resource: Resource<'_>,
        terms: Option<&Terms>,
    ) -> Option<Request> {
        let resource = match resource {
            Resource::Partner(partner) => uid("Partner", partner.as_str())?,
            Resource::Gateway => uid("Gateway", GATEWAY)?,
        };
        let context = terms.map_or_else(|| Some(Context::empty()), context)?;
        let (caller, action) = (uid("Caller", &caller.to_string())?, uid("Action", action.name())?);
        Request::new(caller, action, resource, context, Some(&self.schema)).ok()
    }
}

const GATEWAY: &str = "this";

fn context(terms: &Terms) -> Option<Context> {
    let long = |minor: u64| i64::try_from(minor).ok().map(RestrictedExpression::new_long);
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let validity_s = terms.expires_at.since(terms.issued_at).as_millis().div_ceil(1000);
    Context::from_pairs([
        ("contract".to_owned(), text(&terms.contract)),
        ("corridor".to_owned(), text(terms.corridor.as_str())),
        ("send_currency".to_owned(), text(terms.send_currency.code())),
        ("receive_currency".to_owned(), text(terms.receive_currency.code())),
        ("send_minor".to_owned(), long(terms.send.get())?),
        ("receive_minor".to_owned(), long(terms.receive.get())?),
        ("partner_fee_minor".to_owned(), long(terms.partner_fee.get())?),
        ("principal_fee_minor".to_owned(), long(terms.principal_fee.get())?),
        ("total_minor".to_owned(), long(terms.total.get())?),
        ("validity_seconds".to_owned(), long(u64::try_from(validity_s).ok()?)?),
        ("mode".to_owned(), text(if terms.sequence.is_some() { "verify" } else { "assign" })),
    ])
    .ok()
}

/// Built from parts, never by parsing text that holds the id: an id is data.
fn uid(kind: &str, id: &str) -> Option<EntityUid> {
    let kind: EntityTypeName = kind.parse().ok()?;
    Some(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

/// Parses the rules and names each by its `@id`, which must be there once, beside a `@reason`.
fn named_rules(rules: &str) -> Result<PolicySet, Vec<String>> {
    let parsed: PolicySet = rules.parse().map_err(|fault| vec![placed(RULES, rules, &fault)])?;
    let mut named = PolicySet::new();
    let mut faults = Vec::new();
    for policy in parsed.policies() {
        if let Err(fault) = named_rule(policy).and_then(|rule| named.add(rule).map_err(|fault| one_line(&fault))) {
            faults.push(format!("authorize.cedar: {fault}"));
        }
    }
    if parsed.templates().next().is_some() {
        faults.push("authorize.cedar: it holds a template, which is never linked; write the rule out".to_owned());
    }
    if named.is_empty() && faults.is_empty() {
        faults.push("authorize.cedar: it holds no rule, so nobody may do anything; write at least one".to_owned());
    }
    if faults.is_empty() { Ok(named) } else { Err(faults) }
}

fn named_rule(policy: &Policy) -> Result<Policy, String> {
    let place = || policy.to_cedar().unwrap_or_default().split_whitespace().take(12).collect::<Vec<_>>().join(" ");
    let note = |name| policy.annotation(name).filter(|text| !text.is_empty());
    let id = note("id").ok_or_else(|| format!("a rule has no @id; add one to the rule `{}…`", place()))?;
    if note("reason").is_none() {
        return Err(format!("the rule `{id}` has no @reason; say in a sentence why it stands"));
    }
    Ok(policy.new_id(PolicyId::new(id)))
}

fn entities<'a>(
    callers: impl Iterator<Item = Roles<'a>>,
    partners: impl Iterator<Item = &'a PartnerId>,
    schema: &Schema,
) -> Result<Entities, String> {
    let mut all = Vec::new();
    let mut roles = BTreeSet::new();
    let named = |kind, id: &str| uid(kind, id).ok_or_else(|| format!("`{kind}` is not an entity type"));
    let mut seen = HashSet::new();
    for (caller, its_roles) in callers.filter(|(caller, _)| seen.insert(*caller)) {
        let parents = its_roles.iter().map(|role| named("Role", role)).collect::<Result<HashSet<_>, _>>()?;
        roles.extend(its_roles);
        all.push(entity(named("Caller", &caller.to_string())?, parents)?);
    }
    for role in roles {
        all.push(entity(named("Role", role)?, HashSet::new())?);
    }
    for partner in partners {
        all.push(entity(named("Partner", partner.as_str())?, HashSet::new())?);
    }
    all.push(entity(named("Gateway", GATEWAY)?, HashSet::new())?);
    Entities::from_entities(all, Some(schema)).map_err(|fault| one_line(&fault))
}

fn entity(uid: EntityUid, parents: HashSet<EntityUid>) -> Result<Entity, String> {
    Entity::new(uid, HashMap::new(), parents).map_err(|fault| one_line(&fault))
}

/// A rule that names a caller, role or partner that the bundle does not declare can never fire as meant.
fn unknown_entities(policies: &PolicySet, entities: &Entities) -> Vec<String> {
    let unknown = |literal: &EntityUid| literal.type_name().basename() != "Action" && entities.get(literal).is_none();
    policies
        .policies()
        .flat_map(|policy| policy.entity_literals().into_iter().map(move |literal| (policy.id(), literal)))
        .filter(|(_, literal)| unknown(literal))
        .map(|(id, literal)| {
            format!("authorize.cedar: the rule `{id}` names `{literal}`, which policy.toml does not declare; declare it or mend the name")
        })
        .collect()
}

/// A role that no rule speaks of gives nothing: it is misspelt, or left over.
fn idle_roles(policies: &PolicySet, callers: &[Roles<'_>]) -> Vec<String> {
    let named: BTreeSet<String> = policies
        .policies()
        .flat_map(Policy::entity_literals)
        .filter(|literal| literal.type_name().basename() == "Role")
        .map(|literal| literal.id().unescaped().to_owned())
        .collect();
    let roles: BTreeSet<(&String, &Caller)> =
        callers.iter().flat_map(|(caller, roles)| roles.iter().map(move |role| (role, *caller))).collect();
    let idle = roles.into_iter().filter(|(role, _)| !named.contains(*role));
    idle.map(|(role, caller)| {
        format!("policy.toml: the caller `{caller}` has the role `{role}`, which no rule of authorize.cedar names; mend or remove it")
    })
    .collect()
}

/// A rule as Cedar lays it out.
fn text_of(policy: &Policy) -> String {
    let rule = policy.to_json().map(|mut rule| {
        rule.as_object_mut().map(|rule| rule.remove("annotations"));
        rule
    });
    let bare = rule.ok().and_then(|rule| Policy::from_json(None, rule).ok());
    bare.as_ref().unwrap_or(policy).to_cedar().unwrap_or_default()
}

fn rule_of_error(error: &cedar_policy::AuthorizationError) -> String {
    match error {
        cedar_policy::AuthorizationError::PolicyEvaluationError(fault) => fault.policy_id().to_string(),
    }
}

/// What is wrong with the rules and their schema, whatever `policy.toml` says.
pub(super) fn faults_alone(rules: &str, schema: &str) -> Vec<String> {
    match (schema_of(schema), named_rules(rules)) {
        (Ok((schema, warnings)), Ok(policies)) => [warnings, invalid(&policies, &schema, rules)].concat(),
        (schema, rules) => [schema.err(), rules.err()].into_iter().flatten().flatten().collect(),
    }
}

/// The schema, and what it is warned of.
fn schema_of(text: &str) -> Result<(Schema, Vec<String>), Vec<String>> {
    let (schema, warnings) = Schema::from_cedarschema_str(text).map_err(|fault| vec![placed(SCHEMA, text, &fault)])?;
    Ok((schema, warnings.map(|warning| placed(SCHEMA, text, &warning)).collect()))
}

/// What the rules break of their schema.
fn invalid(policies: &PolicySet, schema: &Schema, text: &str) -> Vec<String> {
    let verdict = Validator::new(schema.clone()).validate(policies, ValidationMode::Strict);
    let mut faults: Vec<String> = verdict.validation_errors().map(|fault| placed(RULES, text, fault)).collect();
    if faults.is_empty() {
        // A rule with an error in it is often impossible too, which helps nobody.
        faults.extend(verdict.validation_warnings().map(|fault| placed(RULES, text, fault)));
    }
    // What follows from another fault: no act fits a scope that names none.
    let follows = |fault: &String| fault.contains("unable to find an applicable action");
    if !faults.iter().all(follows) {
        faults.retain(|fault| !follows(fault));
    }
    faults
}

const SCHEMA: &str = "quotesign.cedarschema";
const RULES: &str = "authorize.cedar";

/// A fault in a file of this name and text: with its line, and with what Cedar advises.
fn placed<F: std::error::Error + miette::Diagnostic>(file: &str, text: &str, fault: &F) -> String {
    let label = fault.labels().and_then(|mut labels| labels.next());
    let before = label.and_then(|label| text.get(..label.offset()));
    let line = before.map(|before| format!(":{}", before.matches('\n').count() + 1)).unwrap_or_default();
    let help = fault.help().map(|help| format!("; {}", one_line(&help))).unwrap_or_default();
    format!("{file}{line}: {}{help}", one_line(fault))
}

fn one_line(text: &impl ToString) -> String {
    text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::Bundle;

    impl Authority {
        /// As [`Authority::decide`], by all the rules.
        fn decide_by_all(&self, request: &Request) -> Verdict {
            let whole = Authorizer::new().is_authorized(request, &self.policies, &self.entities);
            let mut rule_ids: Vec<String> = whole.diagnostics().reason().map(ToString::to_string).collect();
            rule_ids.sort_unstable();
            Verdict { allowed: whole.decision() == Decision::Allow, rule_ids }
        }
    }

    /// Whoever asks for whatever: the rules that were left out would not have mattered.
    #[test]
    fn a_slice_decides_as_the_whole() {
        let mut asked = 0;
        for dir in ["policy", "examples/policy-development"] {
            let bundle = Bundle::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).unwrap();
            let stranger = "dns:stranger.example".parse().unwrap();
            let nobody = "nobody".parse().unwrap();
            let partners: Vec<&PartnerId> = bundle.partners().map(|partner| &partner.id).chain([&nobody]).collect();
            for caller in bundle.callers().chain([&stranger]) {
                for action in Action::ALL {
                    let on = partners.iter().map(|partner| Resource::Partner(partner)).chain([Resource::Gateway]);
                    for resource in on.filter(|_| action != Action::SignQuote) {
                        let Some(request) = bundle.authority.request(caller, action, resource, None) else { continue };
                        let verdict = bundle.authority.decide(caller, action, resource, None);
                        assert_eq!(
                            verdict,
                            bundle.authority.decide_by_all(&request),
                            "{caller} {action:?} {resource:?}"
                        );
                        asked += 1;
                    }
                }
            }
        }
        assert!(asked > 100, "{asked}");
    }

    /// Signing, over values on both sides of every bound.
    #[test]
    fn a_slice_decides_on_quotes_as_the_whole() {
        let bundle = Bundle::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("policy")).unwrap();
        let (mut allowed, mut denied) = (0, 0);
        for caller in bundle.callers() {
            for partner in bundle.partners() {
                for (corridor, send, receive) in
                    [("GB-IN", "GBP", "INR"), ("CA-PH", "CAD", "PHP"), ("GB-KP", "GBP", "NGN")]
                {
                    for (amount, seconds) in [(0, 60), (1, 900), (300_000, 901), (500_000, 60), (500_001, 60)] {
                        let issued_at = crate::clock::UtcTime::from_millis(1_780_000_000_000);
                        let minor = |units| crate::money::Minor::new(units).unwrap();
                        let terms = Terms {
                            contract: "quote-v1".to_owned(),
                            partner: partner.id.clone(),
                            quote_id: "q-1".parse().unwrap(),
                            sequence: None,
                            corridor: corridor.parse().unwrap(),
                            send: minor(amount),
                            send_currency: bundle.currencies.get(send).unwrap(),
                            receive: minor(amount),
                            receive_currency: bundle.currencies.get(receive).unwrap(),
                            partner_fee: minor(1),
                            principal_fee: minor(1),
                            total: minor(amount + 2),
                            issued_at,
                            expires_at: issued_at.plus(std::time::Duration::from_secs(seconds)),
                        };
                        let resource = Resource::Partner(&partner.id);
                        let request = bundle.authority.request(caller, Action::SignQuote, resource, Some(&terms));
                        let verdict = bundle.authority.decide(caller, Action::SignQuote, resource, Some(&terms));
                        assert_eq!(verdict, bundle.authority.decide_by_all(&request.unwrap()), "{caller} {terms:?}");
                        if verdict.allowed { allowed += 1 } else { denied += 1 }
                    }
                }
            }
        }
        assert!(allowed >= 3 && denied > 50, "{allowed} {denied}");
    }
}
