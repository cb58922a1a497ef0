//! One token of the example bundle is misspelt, taken out or swapped with the next: the loader refuses what comes of it,
//! or a case comes out otherwise, or the bundle decides as before.

use std::{collections::BTreeMap, fs};

use quotesign::{
    config::LimitsSection,
    policy::{Bundle, files},
    review::{cases, diff::diff},
};

use super::Copy;
use crate::kills::{Dice, number_from, seed_from};

/// The files that are mutated, with what begins a comment there.
const FILES: [(&str, &str); 4] =
    [("policy.toml", "#"), ("authorize.cedar", "//"), ("quotesign.cedarschema", "//"), ("currencies.csv", "#")];
/// What is for readers alone, by what `policy diff` calls it.
const FOR_READERS: [&str; 4] = [".about", ".contacts.", ".confirmed.ref", "@reason"];

/// The tokens of a text outside its comments: words, numbers and single signs, as ranges of bytes.
fn tokens(text: &str, comment: &str) -> Vec<std::ops::Range<usize>> {
    let mut tokens = Vec::new();
    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        let code = comment_start(line, comment);
        let mut word: Option<usize> = None;
        for (at, sign) in code.char_indices().chain([(code.len(), ' ')]) {
            let is_word = sign.is_alphanumeric() || "_-.:/".contains(sign);
            if let Some(begun) = word.filter(|_| !is_word) {
                tokens.push(line_start + begun..line_start + at);
                word = None;
            }
            if is_word {
                word = word.or(Some(at));
            } else if !sign.is_whitespace() {
                tokens.push(line_start + at..line_start + at + sign.len_utf8());
            }
        }
        line_start += line.len();
    }
    tokens
}

/// The line up to its comment; a sign in a text begins none.
fn comment_start<'l>(line: &'l str, comment: &str) -> &'l str {
    let mut quoted = false;
    for (at, sign) in line.char_indices() {
        if sign == '"' {
            quoted = !quoted;
        }
        if !quoted && line[at..].starts_with(comment) {
            return &line[..at];
        }
    }
    line
}

fn misspelt(token: &str, dice: &mut Dice) -> String {
    let mut signs: Vec<char> = token.chars().collect();
    let at = usize::try_from(dice.throw(signs.len() as u64)).unwrap();
    signs[at] = match signs[at] {
        digit if digit.is_ascii_digit() => char::from(b'0' + (digit as u8 - b'0' + 1) % 10),
        'z' => 'y',
        'Z' => 'Y',
        letter if letter.is_ascii_alphabetic() => char::from(letter as u8 + 1),
        _ => 'x',
    };
    signs.into_iter().collect()
}

fn mutant(text: &str, comment: &str, dice: &mut Dice) -> (String, String) {
    let tokens = tokens(text, comment);
    let at = usize::try_from(dice.throw(tokens.len() as u64 - 1)).unwrap();
    let (token, next) = (tokens[at].clone(), tokens[at + 1].clone());
    let (here, there) = (&text[token.clone()], &text[next.clone()]);
    let line = text[..token.start].matches('\n').count() + 1;
    let (head, between, tail) = (&text[..token.start], &text[token.end..next.start], &text[next.end..]);
    match dice.throw(3) {
        0 => {
            let wrong = misspelt(here, dice);
            (format!("{head}{wrong}{between}{there}{tail}"), format!(":{line}: `{here}` is `{wrong}`"))
        }
        1 => (format!("{head}{between}{there}{tail}"), format!(":{line}: `{here}` is gone")),
        _ => (format!("{head}{there}{between}{here}{tail}"), format!(":{line}: `{here}` and `{there}` are swapped")),
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Fate {
    /// The loader refuses it.
    Refused,
    /// A case comes out otherwise.
    Caught,
    /// It decides as before, since it says the same, or says otherwise only what is for readers.
    Equivalent,
    Escaped,
}

#[test]
fn no_slip_of_one_token_goes_unnoticed() {
    let (trials, seed) = (number_from("TRIALS", 20).min(200) * 10, seed_from());
    println!("{trials} mutants, SEED={seed}");
    let bundle = Copy::new();
    let limits = LimitsSection::default().payload();
    let dir = bundle.path("");
    let good = (Bundle::load(&dir).unwrap(), files::read(&dir).unwrap());
    let (mut fates, mut escaped, mut dice) = (BTreeMap::new(), Vec::new(), Dice::new(seed));
    for _ in 0..trials {
        // Most of what decides is in the first two.
        let weighed = [0, 0, 0, 1, 1, 1, 1, 2, 3];
        let (file, comment) = FILES[weighed[usize::try_from(dice.throw(9)).unwrap()]];
        let text = fs::read_to_string(bundle.path(file)).unwrap();
        let (wrong, what) = mutant(&text, comment, &mut dice);
        fs::write(bundle.path(file), &wrong).unwrap();
        let fate = match Bundle::load(&dir) {
            Err(_) => Fate::Refused,
            Ok(loaded) => {
                let outcomes = cases::run(&dir, &loaded, &limits);
                let changes = diff((&good.0, &good.1), (&loaded, &files::read(&dir).unwrap()));
                let for_readers = |change: &quotesign::review::diff::Change| {
                    FOR_READERS.iter().any(|part| change.what().contains(part))
                };
                match outcomes {
                    Ok(outcomes) if outcomes.iter().all(|outcome| outcome.differs.is_empty()) => {
                        if changes.iter().all(for_readers) { Fate::Equivalent } else { Fate::Escaped }
                    }
                    _ => Fate::Caught,
                }
            }
        };
        *fates.entry(fate).or_insert(0_u32) += 1;
        if fate == Fate::Escaped {
            escaped.push(format!("{file}{what}"));
        }
        fs::write(bundle.path(file), text).unwrap();
    }
    println!("{fates:?}");
    escaped.sort();
    escaped.dedup();
    assert!(escaped.is_empty(), "escaped:\n{}", escaped.join("\n"));
}
