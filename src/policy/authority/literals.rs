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

    /// Why no quote has an `attribute` that is like `pattern`. A corridor need not be one that a contract names: a rule may forbid
    /// what nobody sells yet.
    fn is_unlike(&self, attribute: &str, pattern: &Pattern) -> Option<String> {
        if let [text] = &pattern.0[..] {
            return self.misses(attribute, text);
        }
        let (any, why) = match attribute {
            "contract" => {
                (self.contracts.iter().any(|name| pattern.is_like(name)), "no contract of policy.toml is like it")
            }
            "mode" => (["verify", "assign"].iter().any(|mode| pattern.is_like(mode)), "a mode is `verify` or `assign`"),
            "send_currency" | "receive_currency" => {
                (self.currencies?.codes().any(|code| pattern.is_like(code)), "currencies.csv holds none like it")
            }
            // What is between the stars is part of some corridor, or of none.
            "corridor" => {
                let letters = pattern.0.concat();
                (letters.is_empty() || letters.parse::<Corridor>().is_ok(), "a corridor is 1 to 32 of A-Z, 0-9 and `-`")
            }
            _ => return None,
        };
        (!any).then(|| why.to_owned())
    }
}

/// What an attribute is compared with.
enum Said {
    Text(String),
    Pattern(Pattern),
}

/// What `like` takes: the texts between its stars, of which there is one less.
struct Pattern(Vec<String>);

impl Pattern {
    fn read(node: &Value) -> Option<Self> {
        let mut texts = vec![String::new()];
        for part in node.as_array()? {
            match (part.get("Literal").and_then(Value::as_str), texts.last_mut()) {
                (Some(literal), Some(text)) => text.push_str(literal),
                _ => texts.push(String::new()),
            }
        }
        Some(Self(texts))
    }

    fn is_like(&self, word: &str) -> bool {
        let [first, between @ .., last] = &self.0[..] else { return self.0.concat() == word };
        let Some(mut rest) = word.strip_prefix(first.as_str()) else { return false };
        for text in between {
            let Some((_, after)) = rest.split_once(text.as_str()) else { return false };
            rest = after;
        }
        rest.ends_with(last.as_str())
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
        faults.extend(compared.into_iter().filter_map(|(attribute, said)| {
            let (how, why, text) = match said {
                Said::Text(text) => (" with", vocabulary.misses(&attribute, &text)?, text),
                Said::Pattern(pattern) => (", by `like`, with", vocabulary.is_unlike(&attribute, &pattern)?, pattern.0.join("*")),
            };
            Some(format!(
                "authorize.cedar: the rule `{}` compares `context.{attribute}`{how} \"{text}\", and {why}; mend the text",
                policy.id()
            ))
        }));
    }
    faults
}

/// Each attribute of the context with each text or pattern that it is compared with.
fn comparisons(node: &Value, found: &mut Vec<(String, Said)>) {
    match node {
        Value::Object(members) => {
            for operator in ["==", "!=", "contains"] {
                let Some(sides) = members.get(operator) else { continue };
                let (left, right) = (sides.get("left"), sides.get("right"));
                for (attribute, constant) in [(left, right), (right, left)] {
                    let Some(attribute) = attribute.and_then(attribute_of) else { continue };
                    texts(constant, &mut |text| found.push((attribute.to_owned(), Said::Text(text.to_owned()))));
                }
            }
            if let Some(like) = members.get("like")
                && let Some(attribute) = like.get("left").and_then(attribute_of)
                && let Some(pattern) = like.get("pattern").and_then(Pattern::read)
            {
                found.push((attribute.to_owned(), Said::Pattern(pattern)));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern(text.split('*').map(str::to_owned).collect())
    }

    #[test]
    fn a_pattern_is_like_what_cedar_says_it_is_like() {
        for (like, word, is) in [
            ("*-KP", "GB-KP", true),
            ("*-KP", "KP-GB", false),
            ("G*-*", "GB-IN", true),
            ("GB-IN", "GB-IN", true),
            ("GB-IN", "GB-INX", false),
            ("*", "", true),
            ("A*A", "A", false),
        ] {
            assert_eq!(pattern(like).is_like(word), is, "{like} {word}");
        }
    }

    #[test]
    fn patterns_are_read_as_cedar_writes_them_and_each_must_be_sayable() {
        let rule = |like: &str| format!("@id(\"a\") forbid (principal, action, resource) when {{ context.{like} }};");
        let currencies = Currencies::read("code,exponent\nGBP,2\nINR,2\n").unwrap();
        let vocabulary =
            Vocabulary { contracts: ["quote-v1"].into(), corridors: ["GB-IN"].into(), currencies: Some(&currencies) };
        let faults = |like: &str| unsayable(&rule(like).parse().unwrap(), &vocabulary);
        for good in [
            "corridor like \"*-KP\"",
            "corridor like \"*\"",
            "corridor like \"GB-IN\"",
            "contract like \"quote-*\"",
            "send_currency like \"G*\"",
        ] {
            assert_eq!(faults(good), Vec::<String>::new(), "{good}");
        }
        for bad in [
            "corridor like \"*-kp\"",
            "corridor like \"GB-I\"",
            "contract like \"quote-v2\"",
            "contract like \"quotes-*\"",
            "send_currency like \"GBp\"",
            "send_currency like \"g*\"",
            "corridor like \"GB_*\"",
        ] {
            assert_eq!(faults(bad).len(), 1, "{bad}");
        }
    }
}
