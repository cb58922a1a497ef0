//! The rules that the code keeps, held by reading it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::done;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Lines of a file of `src`, its tests aside.
const LINES_MAX: usize = 500;

/// Every file of `src`: its path from there, and its text without comments and tests.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(ROOT).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push((name, code(&fs::read_to_string(path).unwrap())));
            }
        }
    }
    assert!(found.len() > 50, "the sources are not where they were");
    found
}

fn code(text: &str) -> String {
    let own = text.lines().take_while(|line| *line != "#[cfg(test)]");
    own.map(|line| if line.trim_start().starts_with("//") { "" } else { line }.to_owned() + "\n").collect()
}

fn source(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join("src").join(name)).unwrap()
}

/// The files among those that `chosen` picks that name one of `words`, with the word.
fn that_name(words: &[&str], chosen: impl Fn(&str) -> bool) -> Vec<String> {
    let named = sources().into_iter().filter(|(name, _)| chosen(name)).flat_map(|(name, text)| {
        let found = words.iter().filter(move |word| text.contains(**word)).map(move |word| format!("{name}: {word}"));
        found.collect::<Vec<_>>()
    });
    named.collect()
}

#[test]
fn a_stage_knows_only_the_stages_before_it() {
    let pipeline = source("pipeline.rs");
    let stages: Vec<&str> =
        pipeline.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(stages.first(), Some(&"attempts"));
    assert!(stages.len() > 10 && stages.contains(&"refusal"), "{stages:?}");
    for (at, stage) in stages.iter().enumerate() {
        let text = code(&source(&format!("pipeline/{stage}.rs")));
        for later in &stages[at + 1..] {
            assert!(!names_module(&text, later), "pipeline/{stage}.rs names the later stage `{later}`");
        }
        assert!(!text.contains("pipeline::") && !text.contains("super::*"), "pipeline/{stage}.rs imports sideways");
    }
    assert!(
        names_module("use super::{admit::Place, sign::Signed};", "sign") && !names_module("a.parse::<B>()", "parse")
    );
}

/// Whether the code has a path through this module.
fn names_module(text: &str, module: &str) -> bool {
    let is_path = |at: usize| !text[..at].ends_with(|before: char| before.is_alphanumeric() || "_.".contains(before));
    text.match_indices(&format!("{module}::")).any(|(at, _)| is_path(at))
}

#[test]
fn files_are_named_for_what_they_hold_begin_with_it_and_stay_short() {
    for (name, text) in sources() {
        let stem = PathBuf::from(&name).file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(!["utils", "util", "helpers", "common", "misc", "mod"].contains(&&*stem), "{name}");
        assert!(source(&name).starts_with("//! "), "{name} does not say what it is");
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines");
    }
}

#[test]
fn serde_json_is_built_without_what_would_make_it_lenient() {
    let args = ["tree", "-e", "normal,features", "-i", "serde_json", "--locked", "--offline"];
    let tree = done(Command::new(env!("CARGO")).args(args).current_dir(ROOT).output().unwrap());
    assert!(tree.starts_with("serde_json v1"), "{tree}");
    assert!(tree.contains("serde_json feature \"std\""), "{tree}");
    for feature in ["raw_value", "arbitrary_precision", "unbounded_depth"] {
        assert!(!tree.contains(&format!("serde_json feature \"{feature}\"")), "{feature} is on:\n{tree}");
    }
}

#[test]
fn only_the_service_layer_and_the_edges_name_tonic() {
    let may = ["service", "transport", "gateway", "client.rs", "cli", "proto.rs", "telemetry"];
    let named = that_name(&["tonic::"], |name| !may.iter().any(|prefix| name.starts_with(prefix)));
    assert!(named.is_empty(), "{named:?}");
    assert!(!that_name(&["tonic::"], |name| name.starts_with("service/")).is_empty());
}

#[test]
fn the_path_of_a_quote_and_policy_read_no_files() {
    let words = ["std::fs", "fs::", "File::open"];
    let pure = |name: &str| name.starts_with("pipeline") || name.starts_with("policy");
    assert_eq!(that_name(&["fs::"], |name| name == "policy/files.rs").len(), 1);
    let named = that_name(&words, |name| pure(name) && name != "policy/files.rs");
    assert!(named.is_empty(), "{named:?}");
}

#[test]
fn signers_do_not_know_policy_and_the_ledger_knows_neither_signers_nor_the_path() {
    let named = that_name(&["crate::policy", "policy::"], |name| name.starts_with("signer"));
    assert!(named.is_empty(), "{named:?}");
    let named =
        that_name(&["crate::signer", "signer::", "crate::pipeline", "pipeline::"], |name| name.starts_with("ledger"));
    assert!(named.is_empty(), "{named:?}");
}

#[test]
fn a_command_reads_the_journal_where_that_was_noted() {
    // What has other ways is no read of the journal: key sets alone, a copy of the whole, an act with a record of its own.
    let others = [
        "cli/jwks/export.rs: place.reads()",
        "cli/ledger/act.rs: place.journal()",
        "cli/ledger/backup.rs: Reader::open(",
    ];
    let mut named = that_name(&["place.journal()", "place.reads()", "Reader::open("], |name| name.starts_with("cli"));
    named.sort();
    assert_eq!(named, others);
}
