//! Texts that rules compare with a quote's values. Cedar takes any text; here each must be something that a quote can
//! say, so that a misspelt corridor does not make a rule that never fires.

use std::collections::BTreeSet;

use cedar_policy::PolicySet;
use serde_json::Value;

use crate::{domain::Corridor, money::Currencies};

/// What quotes under a bundle can say.
pub struct Vocabulary<'a> {
    /// The names of its contracts.
    pub contracts: BTreeSet<&'a str>,
    /// The corridors that its contracts name; where they name none, any is one.
    pub corridors: BTreeSet<&'a str>,
    /// Its currencies, where they could be read.
    pub currencies: Option<&'a Currencies>,
}

impl Vocabulary<'_> {
    /// Why no quote has `text` as its `attribute`.
    fn misses(&self, attribute: &str, text: &str) -> Option<String> {
        match attribute {
            "contract" if !self.contracts.contains(text) => Some("no contract of policy.toml has this name".to_owned()),
            "mode" if !["verify", "assign"].contains(&text) => Some("a mode is `verify` or `assign`".to_owned()),
            "send_currency" | "receive_currency" if self.currencies?.get(text).is_none() => {
                Some("currencies.csv does not hold it".to_owned())
            }
            "corridor" if self.corridors.is_empty() => text.parse::<Corridor>().err().map(|fault| fault.to_string()),
            "corridor" if !self.corridors.contains(text) => {
                Some("`money.corridors` of no contract names it".to_owned())
            }
            _ => None,
        }
    }
}

/// A line for each text that no quote can say.
pub(super) fn unsayable(policies: &PolicySet, vocabulary: &Vocabulary<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    for policy in policies.policies() {
        let mut compared = Vec::new();
        if let Ok(rule) = policy.to_json() {
            comparisons(&rule, &mut compared);
        }
        faults.extend(compared.into_iter().filter_map(|(attribute, text)| {
            let why = vocabulary.misses(&attribute, &text)?;
            Some(format!(
                "authorize.cedar: the rule `{}` compares `context.{attribute}` with \"{text}\", and {why}; mend the text",
                policy.id()
            ))
        }));
    }
    faults
}

/// Each attribute of the context with each text that it is compared with.
fn comparisons(node: &Value, found: &mut Vec<(String, String)>) {
    match node {
        Value::Object(members) => {
            for operator in ["==", "!=", "contains"] {
                let Some(sides) = members.get(operator) else { continue };
                let (left, right) = (sides.get("left"), sides.get("right"));
                for (attribute, constant) in [(left, right), (right, left)] {
                    let Some(attribute) = attribute.and_then(attribute_of) else { continue };
                    texts(constant, &mut |text| found.push((attribute.to_owned(), text.to_owned())));
                }
            }
            members.values().for_each(|member| comparisons(member, found));
        }
        Value::Array(elements) => elements.iter().for_each(|element| comparisons(element, found)),
        _ => {}
    }
}

fn attribute_of(node: &Value) -> Option<&str> {
    let access = node.get(".")?;
    (access.pointer("/left/Var")? == "context").then_some(access.get("attr")?.as_str()?)
}

/// A text, or each of a set of texts.
fn texts(node: Option<&Value>, tell: &mut impl FnMut(&str)) {
    let Some(node) = node else { return };
    if let Some(text) = node.get("Value").and_then(Value::as_str) {
        tell(text);
    }
    for element in node.get("Set").and_then(Value::as_array).into_iter().flatten() {
        texts(Some(element), tell);
    }
}
