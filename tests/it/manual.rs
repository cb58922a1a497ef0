//! The manual pages and the completions, which are made from the commands' definitions.

use std::{collections::BTreeMap, fs};

use clap::{Command, CommandFactory as _};
use quotesign::cli::Cli;
use tempfile::TempDir;

use crate::harness::{done, quotesign};

/// Every command that is shown, by the name of its page.
fn commands() -> BTreeMap<String, Command> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let (mut found, mut waiting) = (BTreeMap::new(), vec![(String::new(), command)]);
    while let Some((above, command)) = waiting.pop() {
        let name = [above.as_str(), command.get_name()].join(if above.is_empty() { "" } else { "-" });
        let inner = command.get_subcommands().filter(|inner| !inner.is_hide_set());
        waiting.extend(inner.map(|inner| (name.clone(), inner.clone())));
        found.insert(name, command);
    }
    assert!(found.len() > 50, "{}", found.len());
    found
}

/// Whether it is a command of a command of a command.
fn is_deep(name: &str) -> bool {
    let top = Cli::command();
    let mut inner = top.get_subcommands().flat_map(|outer| outer.get_subcommands().map(move |inner| (outer, inner)));
    inner.any(|(outer, inner)| {
        let above = format!("quotesign-{}-{}", outer.get_name(), inner.get_name());
        inner.get_subcommands().any(|deep| format!("{above}-{}", deep.get_name()) == name)
    })
}

#[test]
fn every_command_has_a_page_and_every_option_its_words() {
    let dir = TempDir::new().unwrap();
    let told = done(quotesign().args(["man", "--dir"]).arg(dir.path().join("man1")).output().unwrap());
    let commands = commands();
    assert!(told.ends_with(&format!(": {} pages\n", commands.len())), "{told}");
    let pages: Vec<String> = fs::read_dir(dir.path().join("man1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(pages.len(), commands.len());
    for (name, command) in &commands {
        let page = fs::read_to_string(dir.path().join(format!("man1/{name}.1"))).unwrap();
        assert!(page.contains(&format!("\n.TH {} 1 ", name.to_uppercase())), "{name}: {page}");
        for section in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"] {
            assert_eq!(page.matches(&format!("\n{section}\n")).count(), 1, "{name}: {section}");
        }
        // What is no macro of man(7) that is in use here would be dropped in silence.
        let macros = ["TH", "SH", "TP", "PP", "RS", "RE", "IP", "br", "ie", "el", "nf", "fi"];
        for line in page.lines().filter(|line| line.starts_with('.')) {
            let word = line.trim_start_matches('.').split([' ', '\\']).next().unwrap();
            assert!(macros.contains(&word), "{name}: {line}");
        }
        // Fonts end where they begin, and indents are closed.
        assert_eq!(page.matches("\n.RS").count(), page.matches("\n.RE").count(), "{name}");
        let fonts = page.matches("\\fB").count() + page.matches("\\fI").count();
        assert_eq!(fonts, page.matches("\\fR").count(), "{name}");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.len() > 4, "{name}: `{}` has no words", argument.get_id());
            if let Some(long) = argument.get_long() {
                let spelt = format!("\\-\\-{}", long.replace('-', "\\-"));
                assert!(page.contains(&spelt), "{name}: --{long}");
            }
        }
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            let named = format!("{name}-{}", inner.get_name()).replace('-', "\\-");
            assert!(page.contains(&format!("{named}(1)")), "{name}: {named} is not named\n{page}");
        }
    }
    let doctor = fs::read_to_string(dir.path().join("man1/quotesign-doctor.1")).unwrap();
    assert!(doctor.contains(".SH EXIT STATUS"), "{doctor}");
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = done(quotesign().args(["completions", shell]).output().unwrap());
        for name in commands().keys() {
            // The last word of the page's name need not be the command's own: some have a `-` in them.
            let command = &commands()[name];
            assert!(script.contains(command.get_name()), "{shell}: {name}");
            // What is generated for fish knows options no deeper than those of `quotesign ledger anchor`.
            if shell == "fish" && is_deep(name) {
                continue;
            }
            for argument in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(script.contains(argument), "{shell}: {name} --{argument}");
            }
        }
    }
}
