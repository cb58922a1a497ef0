//! What each rule would still need before it applied to a request: its scope and its conditions, one by one.

use cedar_policy::{Authorizer, Effect, Policy, PolicyId, PolicySet, Request};
use serde_json::{Value, json};

use super::{Action, Authority, slices};

/// A permit that does not apply, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// The rule's `@id`.
    pub rule: String,
    /// Its parts that do not hold, in Cedar.
    pub conditions: Vec<String>,
}

impl Authority {
    /// For each permit of `action` what does not hold of `request`, the nearest rule first.
    pub(super) fn unmet_by(&self, request: &Request, action: Action) -> Vec<Unmet> {
        let permits = self.policies.policies().filter(|policy| policy.effect() == Effect::Permit);
        let permits = permits.filter(|policy| slices::is_on_action(policy, action));
        let mut unmet: Vec<Unmet> = permits
            .filter_map(|policy| {
                let failing = |part: &Policy| !self.holds(part, request);
                let parts = parts_of(&policy.to_json().ok()?);
                let conditions: Vec<_> = parts.iter().filter(|part| failing(part)).map(text_of).collect();
                (!conditions.is_empty()).then(|| Unmet { rule: policy.id().to_string(), conditions })
            })
            .collect();
        unmet.sort_by(|a, b| (a.conditions.len(), &a.rule).cmp(&(b.conditions.len(), &b.rule)));
        unmet
    }

    fn holds(&self, part: &Policy, request: &Request) -> bool {
        let alone = PolicySet::from_policies([part.clone()]);
        alone.is_ok_and(|alone| {
            let response = Authorizer::new().is_authorized(request, &alone, &self.entities);
            response.decision() == cedar_policy::Decision::Allow
        })
    }
}

/// A rule for each part of `rule`, which permits where that part holds.
fn parts_of(rule: &Value) -> Vec<Policy> {
    let any = json!({"op": "All"});
    let alone = |scope: [&Value; 3], conditions: Value| {
        let [principal, action, resource] = scope;
        let rule = json!({
            "effect": "permit", "principal": principal, "action": action, "resource": resource, "conditions": conditions,
        });
        Policy::from_json(Some(PolicyId::new("part")), rule).ok()
    };
    let scope = |name: &str| rule.get(name).filter(|scope| **scope != any);
    let mut parts = vec![
        scope("principal").and_then(|principal| alone([principal, &any, &any], json!([]))),
        scope("action").and_then(|action| alone([&any, action, &any], json!([]))),
        scope("resource").and_then(|resource| alone([&any, &any, resource], json!([]))),
    ];
    for condition in rule.get("conditions").and_then(Value::as_array).into_iter().flatten() {
        let (kind, body) = (condition.get("kind"), condition.get("body"));
        let Some(body) = body else { continue };
        // Of an `unless` only the whole can be told.
        let bodies = if kind.is_some_and(|kind| kind == "when") { conjuncts(body) } else { vec![body] };
        parts.extend(bodies.into_iter().map(|body| {
            let condition = json!([{"kind": kind, "body": body}]);
            alone([&any, &any, &any], condition)
        }));
    }
    parts.into_iter().flatten().collect()
}

fn conjuncts(body: &Value) -> Vec<&Value> {
    match body.get("&&") {
        Some(both) => ["left", "right"].into_iter().filter_map(|side| both.get(side)).flat_map(conjuncts).collect(),
        None => vec![body],
    }
}

/// The one part of a rule that holds nothing else.
fn text_of(part: &Policy) -> String {
    let text = part.to_cedar().unwrap_or_default();
    let text = dotted(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    // Cedar writes an `unless` as a `when` of the contrary.
    if let Some((_, body)) = text.split_once("when {") {
        return body.trim_end_matches(';').trim_end().trim_end_matches('}').trim().to_owned();
    }
    let scope = text.trim_start_matches("permit").trim_start_matches([' ', '(']).trim_end_matches([';', ')']).trim();
    let said = scope.split(", ").find(|part| part.contains(' '));
    said.unwrap_or(scope).to_owned()
}

/// `context["a"]` as it is usually written.
fn dotted(text: &str) -> String {
    let mut pieces = text.split("context[\"");
    let mut dotted = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        dotted += "context.";
        dotted += &piece.replacen("\"]", "", 1);
    }
    dotted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_rule_is_told_as_it_is_written() {
        let rule = r#"permit (principal in Role::"a", action in [Action::"X", Action::"Y"], resource == Partner::"p")
            when { context.a == "b" && context.n <= 5 } unless { context.c like "*-KP" };"#;
        let policy = Policy::parse(None, rule).unwrap();
        let texts: Vec<_> = parts_of(&policy.to_json().unwrap()).iter().map(text_of).collect();
        assert_eq!(
            texts,
            [
                r#"principal in Role::"a""#,
                r#"action in [Action::"X",Action::"Y"]"#,
                r#"resource == Partner::"p""#,
                r#"context.a == "b""#,
                "context.n <= 5",
                r#"!(context.c like "*-KP")"#,
            ]
        );
    }
}
