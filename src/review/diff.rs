//! What a change of a bundle changes, in lines that a reviewer reads: partners, callers, keys and limits field by field,
//! rules by their ids, schemas by their places.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use cedar_policy::SchemaFragment;
use serde::Serialize;

use crate::policy::{Bundle, Files, authority::Rule};

/// What became of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "change")]
pub enum Change {
    /// It is new.
    Added {
        /// What it is.
        what: String,
        /// What it says.
        is: String,
    },
    /// It is gone.
    Removed {
        /// What it was.
        what: String,
        /// What it said.
        was: String,
    },
    /// It says something else.
    Changed {
        /// What it is.
        what: String,
        /// What it said.
        was: String,
        /// What it says.
        is: String,
    },
}

impl Change {
    /// What it became of.
    #[must_use]
    pub fn what(&self) -> &str {
        match self {
            Self::Added { what, .. } | Self::Removed { what, .. } | Self::Changed { what, .. } => what,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { what, is } => write!(f, "+ {what}: {is}"),
            Self::Removed { what, was } => write!(f, "- {what}: {was}"),
            Self::Changed { what, was, is } => match (was.parse::<u64>(), is.parse::<u64>()) {
                (Ok(before), Ok(after)) if before < after => write!(f, "~ {what}: raised from {was} to {is}"),
                (Ok(_), Ok(_)) => write!(f, "~ {what}: lowered from {was} to {is}"),
                _ => write!(f, "~ {what}: {was} -> {is}"),
            },
        }
    }
}

/// What is in `new` and not, or otherwise, in `old`.
#[must_use]
pub fn diff(old: (&Bundle, &Files), new: (&Bundle, &Files)) -> Vec<Change> {
    let mut changes = compare(&settings(old.1), &settings(new.1));
    changes.extend(compare(&rules(old.0), &rules(new.0)));
    changes.extend(compare(&keys(old.0), &keys(new.0)));
    changes.extend(compare(&documents(old.1), &documents(new.1)));
    changes
}

fn compare(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<Change> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let change = |what: &String| match (old.get(what), new.get(what)) {
        (Some(was), Some(is)) if was != is => {
            Some(Change::Changed { what: what.clone(), was: was.clone(), is: is.clone() })
        }
        (Some(was), None) => Some(Change::Removed { what: what.clone(), was: was.clone() }),
        (None, Some(is)) => Some(Change::Added { what: what.clone(), is: is.clone() }),
        _ => None,
    };
    names.into_iter().filter_map(change).collect()
}

fn rules(bundle: &Bundle) -> BTreeMap<String, String> {
    let told = |rule: Rule| {
        let kind = if rule.permits { "permit" } else { "forbid" };
        let text = rule.text.split_whitespace().collect::<Vec<_>>().join(" ");
        [(format!("rule `{}` ({kind})", rule.id), text), (format!("rule `{}` @reason", rule.id), rule.reason)]
    };
    bundle.authority.rules().into_iter().flat_map(told).collect()
}

fn keys(bundle: &Bundle) -> BTreeMap<String, String> {
    let told = |key: &std::sync::Arc<crate::policy::timeline::TimedKey>| {
        (
            format!("public key of `{}`", key.kid),
            format!("RSA-{}, thumbprint {}", key.public.bits(), key.public.thumbprint()),
        )
    };
    bundle.timeline.all().map(told).collect()
}

/// The fields of `policy.toml`. What stands in a list is told by its id, so that its place in the file is of no matter.
pub(super) fn settings(files: &Files) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let text = files.get("policy.toml").and_then(|bytes| std::str::from_utf8(bytes).ok());
    if let Some(Ok(table)) = text.map(str::parse::<toml::Table>) {
        flatten(&toml::Value::Table(table), "", &mut found);
    }
    found
}

fn flatten(value: &toml::Value, path: &str, found: &mut BTreeMap<String, String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(name, value)| flatten(value, &below(name), found)),
        toml::Value::Array(entries) if entries.iter().any(toml::Value::is_table) => {
            for entry in entries {
                let id =
                    ["id", "kid", "name"].into_iter().find_map(|name| entry.get(name)?.as_str().map(str::to_owned));
                let mut entry = entry.clone();
                if let (Some(table), Some(_)) = (entry.as_table_mut(), &id) {
                    ["id", "kid", "name"].into_iter().find(|name| table.remove(*name).is_some());
                }
                flatten(&entry, &format!("{} `{}`", one_of(path), id.as_deref().unwrap_or("?")), found);
            }
        }
        other => {
            found.insert(path.to_owned(), other.to_string());
        }
    }
}

fn one_of(list: &str) -> &str {
    list.strip_suffix('s').unwrap_or(list)
}

/// What else the bundle holds: schemas by their places, and the currencies.
fn documents(files: &Files) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (path, bytes) in files {
        let text = String::from_utf8_lossy(bytes);
        if path.ends_with(".schema.json") {
            if let Ok(schema) = serde_json::from_slice(bytes) {
                places(&schema, &format!("{path} "), &mut found);
            }
        } else if path == "currencies.csv" {
            let lines = text.lines().skip(1).filter_map(|line| line.split_once(','));
            found.extend(lines.map(|(code, digits)| (format!("currency {code}"), format!("{digits} digits"))));
        } else if path == "quotesign.cedarschema" {
            let parsed = SchemaFragment::from_cedarschema_str(&text).ok();
            if let Some(schema) = parsed.and_then(|(schema, _)| schema.to_json_value().ok()) {
                places(&schema, &format!("{path} "), &mut found);
            }
        }
    }
    found
}

fn places(value: &serde_json::Value, path: &str, found: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(members) if !members.is_empty() => {
            members.iter().for_each(|(name, value)| places(value, &format!("{path}/{name}"), found));
        }
        serde_json::Value::Array(entries) if entries.iter().any(serde_json::Value::is_object) => {
            entries.iter().enumerate().for_each(|(at, value)| places(value, &format!("{path}/{at}"), found));
        }
        other => {
            found.insert(path.to_owned(), other.to_string());
        }
    }
}
