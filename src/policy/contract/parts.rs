//! What a schema must say of the claims that play a part: each is there, is one claim's alone, and is of the type
//! that the gateway reads. A part that may be absent, or of another type, would be a check that may be skipped.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::{domain::INTEGER_MAX, policy::file::Claims};

use super::VersionMark;

/// How far a reference is followed to the schema it stands for.
const REFERENCES_MAX: usize = 16;
/// What a schema may say at its top where the gateway gives the number. Anything else could look at a number that
/// is not known yet, and refuse the quote after its number was taken.
const TOP_WHERE_ASSIGNED: [&str; 10] = [
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "title",
    "description",
    "type",
    "required",
    "properties",
    "additionalProperties",
];
/// What a schema may say of a number that the gateway gives.
const NUMBER_WHERE_ASSIGNED: [&str; 6] = ["$comment", "title", "description", "type", "minimum", "maximum"];

/// Checks `schema` against the parts that `claims` and `version` give.
///
/// # Errors
/// The first rule that is broken, with the remedy.
pub(super) fn check(schema: &Value, claims: &Claims, version: &VersionMark, assigned: bool) -> Result<(), String> {
    let mut seen = HashSet::new();
    for claim in claims.all().chain([version.claim.as_str()]) {
        if !seen.insert(claim) {
            return Err(format!(
                "the claim `{claim}` plays two parts in policy.toml; give each part a claim of its own"
            ));
        }
        let required = schema.get("required").and_then(Value::as_array);
        if !required.is_some_and(|names| names.iter().any(|name| name.as_str() == Some(claim))) {
            return Err(format!("the claim `{claim}` plays a part in policy.toml: add it to `required`"));
        }
        let Some(property) = property(schema, claim) else {
            return Err(format!("the claim `{claim}` plays a part in policy.toml: add it to `properties`"));
        };
        let wanted = if claim == claims.sequence { "integer" } else { "string" };
        if !is_of_type(schema, property, wanted) {
            return Err(format!(
                "at `/properties/{claim}`: a claim of this part is always of the type {wanted}: say so"
            ));
        }
    }
    if schema.get("additionalProperties") != Some(&json!(false)) {
        return Err("set `additionalProperties` to false: a quote has no claims beyond its contract".to_owned());
    }
    if schema.get("patternProperties").is_some() {
        return Err("remove `patternProperties`: a quote has no claims but those listed in `properties`".to_owned());
    }
    if assigned { number_is_free(schema, &claims.sequence) } else { Ok(()) }
}

/// Where the gateway gives the number, a quote is held against its schema before the number is known. So the
/// schema must take every number.
fn number_is_free(schema: &Value, claim: &str) -> Result<(), String> {
    let remedy = "where the gateway gives the numbers (`sequence.mode` = \"assign\") the schema must take every number";
    let other = |object: Option<&Value>, known: &[&str]| {
        let keywords = object.and_then(Value::as_object).map(Map::keys);
        keywords.into_iter().flatten().find(|keyword| !known.contains(&keyword.as_str())).cloned()
    };
    if let Some(keyword) = other(Some(schema), &TOP_WHERE_ASSIGNED) {
        return Err(format!("remove `{keyword}`: {remedy}"));
    }
    let number = property(schema, claim);
    if let Some(keyword) = other(number, &NUMBER_WHERE_ASSIGNED) {
        return Err(format!("at `/properties/{claim}`: remove `{keyword}`: {remedy}"));
    }
    let bound = |keyword| number.and_then(|number| number.get(keyword));
    let lowest = bound("minimum").is_none_or(|least| least.as_f64().is_some_and(|least| least <= 1.0));
    let highest = bound("maximum").is_none_or(|most| most.as_u64().is_some_and(|most| most >= INTEGER_MAX));
    if lowest && highest { Ok(()) } else { Err(format!("at `/properties/{claim}`: {remedy}: 1 to {INTEGER_MAX}")) }
}

fn property<'s>(schema: &'s Value, claim: &str) -> Option<&'s Value> {
    schema.get("properties")?.get(claim)
}

/// Whether `property` lets nothing pass that is not of the type: by its `type`, its `const`, or a reference to a
/// schema in the same file that does.
fn is_of_type(schema: &Value, property: &Value, wanted: &str) -> bool {
    let mut property = property;
    for _ in 0..REFERENCES_MAX {
        if let Some(named) = property.get("type") {
            return named.as_str() == Some(wanted);
        }
        if let Some(constant) = property.get("const") {
            return if wanted == "string" { constant.is_string() } else { constant.is_u64() };
        }
        let target = property.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix('#'));
        let Some(referred) = target.and_then(|pointer| schema.pointer(pointer)) else { return false };
        property = referred;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        money::Currencies,
        policy::{
            contract::Contract,
            file::{ContractEntry, PolicyFile},
            shipped,
        },
        strict_toml,
    };

    fn schema() -> Value {
        let (_, text) = shipped::FILES.into_iter().find(|(path, _)| path.ends_with("quote-v1.schema.json")).unwrap();
        serde_json::from_str(text).unwrap()
    }

    fn entry() -> ContractEntry {
        let file: PolicyFile = strict_toml::read(shipped::POLICY).unwrap();
        file.contracts[0].clone()
    }

    fn refusal(assigned: bool, change: impl FnOnce(&mut Value)) -> Option<String> {
        let mut schema = schema();
        change(&mut schema);
        let entry = entry();
        check(&schema, &entry.claims, &entry.version, assigned).err()
    }

    fn compiled(change: impl FnOnce(&mut Value)) -> String {
        let mut schema = schema();
        change(&mut schema);
        let (_, text) = shipped::FILES.into_iter().find(|(path, _)| *path == "currencies.csv").unwrap();
        let currencies = Currencies::read(text).unwrap().into();
        let compiled = Contract::compile(&entry(), schema.to_string().as_bytes(), &currencies, false);
        compiled.map(|_| ()).unwrap_err()
    }

    #[test]
    fn a_part_is_required_and_of_its_type() {
        assert_eq!(refusal(false, |_| ()), None);
        let absent = refusal(false, |schema| drop(schema["required"].as_array_mut().unwrap().remove(0)));
        assert!(absent.unwrap().contains("`subscription_id` plays a part in policy.toml: add it to `required`"));
        for (claim, rule) in [
            ("subscription_id", json!({"type": ["string", "null"]})),
            ("subscription_id", json!({"minLength": 1})),
            ("subscription_id", json!(true)),
            ("send_amount", json!({"type": "number"})),
            ("send_amount", json!({"$ref": "#/$defs/none"})),
            ("send_amount", json!({"$ref": "#/properties/send_amount"})),
            ("quote_sequence", json!({"type": "string"})),
            ("quote_sequence", json!({"type": "number"})),
            ("issued_at", json!({"anyOf": [{"type": "string"}]})),
        ] {
            let fault = refusal(false, |schema| schema["properties"][claim] = rule.clone());
            assert!(
                fault.as_ref().is_some_and(|fault| fault.contains(&format!("/properties/{claim}"))),
                "{rule}: {fault:?}"
            );
        }
    }

    #[test]
    fn nothing_passes_beside_the_claims_that_are_listed() {
        let open = refusal(false, |schema| schema["patternProperties"] = json!({"^x-": true}));
        assert!(open.unwrap().starts_with("remove `patternProperties`"));
        let open = refusal(false, |schema| schema["additionalProperties"] = json!({"type": "string"}));
        assert!(open.unwrap().starts_with("set `additionalProperties` to false"));
    }

    #[test]
    fn two_parts_are_two_claims() {
        let ContractEntry { mut claims, version, .. } = entry();
        claims.receive_amount.clone_from(&claims.send_amount);
        let fault = check(&schema(), &claims, &version, false).unwrap_err();
        assert!(fault.starts_with("the claim `send_amount` plays two parts"), "{fault}");
        let ContractEntry { mut claims, version, .. } = entry();
        claims.corridor.clone_from(&version.claim);
        assert!(check(&schema(), &claims, &version, false).unwrap_err().contains("plays two parts"));
    }

    #[test]
    fn a_schema_takes_every_number_that_the_gateway_may_give() {
        assert_eq!(refusal(true, |_| ()), None);
        for (keyword, value) in [
            ("maximum", json!(1000)),
            ("minimum", json!(2)),
            ("multipleOf", json!(2)),
            ("enum", json!([1])),
            ("not", json!({})),
        ] {
            let fault = refusal(true, |schema| schema["properties"]["quote_sequence"][keyword] = value);
            assert!(fault.unwrap().contains("the schema must take every number"), "{keyword}");
        }
        for keyword in ["if", "allOf", "anyOf", "not", "dependentSchemas", "const", "propertyNames"] {
            let fault = refusal(true, |schema| schema[keyword] = json!({}));
            assert!(fault.unwrap().starts_with(&format!("remove `{keyword}`")), "{keyword}");
        }
        assert_eq!(refusal(false, |schema| schema["properties"]["quote_sequence"]["multipleOf"] = json!(2)), None);
    }

    #[test]
    fn nothing_is_fetched_and_no_unknown_format_is_taken() {
        for place in
            ["http://schemas.example/amount", "https://schemas.example/amount", "file:///etc/passwd", "other.json"]
        {
            let fault = compiled(|schema| schema["properties"]["quote_id"]["$ref"] = json!(place));
            assert!(fault.starts_with("not a usable JSON Schema 2020-12"), "{place}: {fault}");
        }
        let fault = compiled(|schema| schema["properties"]["quote_id"]["format"] = json!("x-amuont"));
        assert!(fault.contains("x-amuont"), "{fault}");
    }
}
