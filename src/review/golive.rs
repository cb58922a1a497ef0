//! What the operator asks to be shown before a partner goes live: each row of its checklists that a machine can show, with the
//! evidence, and those that people must answer. Nothing that must not be submitted is in it.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

mod page;
mod rows;

pub use page::html;
pub use rows::{ROWS, Row, Shown};

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Whether it is as it should be.
    pub holds: bool,
    /// What was seen, or why it is not so.
    pub evidence: String,
}

/// All that was looked at, by name.
pub type Facts = BTreeMap<&'static str, Fact>;

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was shown.
    Passed,
    /// It is not so.
    Failed,
    /// A machine could show it and was not let: what would have to be given is in the evidence.
    NotLooked,
    /// People answer it.
    People,
}

impl Outcome {
    /// In a word or two.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::NotLooked => "not looked at",
            Self::People => "for people",
        }
    }
}

/// A row with what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// Which checklist it is of.
    pub list: &'static str,
    /// What it asks.
    pub asks: &'static str,
    /// What became of it.
    pub outcome: Outcome,
    /// The evidence, or what is missing.
    pub evidence: String,
}

/// The whole of it.
#[derive(Debug, Clone, Serialize)]
pub struct Dossier {
    /// The environment.
    pub environment: String,
    /// The partner.
    pub partner: String,
    /// When it was made.
    pub made_at: String,
    /// The gateway's version.
    pub version: String,
    /// The bundle that was looked at.
    pub policy_digest: String,
    /// Its serial.
    pub policy_serial: u64,
    /// The URL at which the key set was looked at.
    pub jwks_url: String,
    /// The key that signs.
    pub active_kid: String,
    /// Whom to reach, by role.
    pub contacts: BTreeMap<String, String>,
    /// The rows.
    pub answers: Vec<Answer>,
}

/// Answers every row from what was looked at.
#[must_use]
pub fn answers(facts: &Facts) -> Vec<Answer> {
    let answer = |row: &Row| {
        let (outcome, evidence) = match row.shown {
            Shown::ByPeople(what) => (Outcome::People, what.to_owned()),
            Shown::ByFact(name, otherwise) => match facts.get(name) {
                Some(Fact { holds: true, evidence }) => (Outcome::Passed, evidence.clone()),
                Some(Fact { holds: false, evidence }) => (Outcome::Failed, evidence.clone()),
                None => (Outcome::NotLooked, otherwise.to_owned()),
            },
        };
        Answer { list: row.list, asks: row.asks, outcome, evidence }
    };
    ROWS.iter().map(answer).collect()
}

/// What of `text` must not be submitted: key material, credentials, whole tokens, numbers of payment instruments. What stands in
/// `known`, such as a quote's own id and number, is no such number.
#[must_use]
pub fn forbidden(text: &str, known: &[&str]) -> Vec<&'static str> {
    let mut found = Vec::new();
    let upper = text.to_uppercase();
    found.extend(upper.contains("PRIVATE KEY-----").then_some("the text of a private key"));
    found.extend(upper.contains("BEARER ").then_some("an access token"));
    let is_member = |part: &String| part.starts_with("the member");
    let has_member = crate::key_set::private_parts(text.as_bytes()).iter().any(is_member);
    found.extend(has_member.then_some("a member of a private key"));
    // A compact JWS or JWT begins with the base64url of `{"`, and has two more parts.
    let is_token = |word: &str| word.starts_with("eyJ") && word.matches('.').count() >= 2 && word.len() > 40;
    let is_part = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    found.extend(text.split(|character| !is_part(character)).any(is_token).then_some("a whole token"));
    let told = known.iter().fold(text.to_owned(), |text, known| text.replace(known, "known"));
    found.extend(has_card_number(&told).then_some("the number of a payment instrument"));
    found
}

/// A number of 13 to 19 digits with a check digit: in one, or in groups of four as it is printed on a card.
fn has_card_number(text: &str) -> bool {
    let is_number =
        |word: &str| (13..=19).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_digit()) && luhn(word);
    let in_one = text.split(|character: char| !character.is_ascii_alphanumeric()).any(is_number);
    let words: Vec<&str> = text.split(|character: char| " -.\n\t\",;:()|".contains(character)).collect();
    let is_group = |word: &&str| word.len() == 4 && word.bytes().all(|byte| byte.is_ascii_digit());
    let grouped = words.windows(4).filter(|group| group.iter().all(is_group)).any(|group| is_number(&group.concat()));
    in_one || grouped
}

/// Whether the last digit is the check digit of the others, as card numbers have it.
fn luhn(digits: &str) -> bool {
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(place, byte)| {
            let digit = u32::from(byte.saturating_sub(b'0'));
            let digit = if place % 2 == 1 { digit * 2 } else { digit };
            digit / 10 + digit % 10
        })
        .sum();
    sum.is_multiple_of(10)
}

impl Dossier {
    /// How many rows came to `outcome`.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        self.answers.iter().filter(|answer| answer.outcome == outcome).count()
    }

    /// As Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# Go-live evidence: {} in {}\n\nMade at {} by quotesign {}, from the bundle with the serial {} and the digest\n`{}`.\n\n",
            self.partner, self.environment, self.made_at, self.version, self.policy_serial, self.policy_digest
        );
        // Writing to a String does not fail.
        let _written = write!(
            text,
            "- Key set: <{}>\n- Active kid: `{}`\n- Passed: {}, failed: {}, not looked at: {}, for people: {}\n",
            self.jwks_url,
            self.active_kid,
            self.count(Outcome::Passed),
            self.count(Outcome::Failed),
            self.count(Outcome::NotLooked),
            self.count(Outcome::People)
        );
        for (role, who) in &self.contacts {
            let _written = writeln!(text, "- Contact, {role}: {who}");
        }
        let mut list = "";
        for answer in &self.answers {
            if answer.list != list {
                list = answer.list;
                let _written = write!(text, "\n## {list}\n\n| asked | outcome | evidence |\n|---|---|---|\n");
            }
            let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
            let (asks, evidence) = (cell(answer.asks), cell(&answer.evidence));
            let _written = writeln!(text, "| {asks} | {} | {evidence} |", answer.outcome.as_str());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_must_not_be_submitted_is_found() {
        for (text, what) in [
            ("-----BEGIN PRIVATE KEY-----", "the text of a private key"),
            ("Authorization: Bearer abc", "an access token"),
            (r#"{"keys":[{"d":"AQAB"}]}"#, "a member of a private key"),
            ("text | {\"dq\": \"AQAB\"} |", "a member of a private key"),
            ("card 4111 1111 1111 1111.", "the number of a payment instrument"),
            ("jws eyJhbGciOiJSUzI1NiJ9.eyJhIjoxfQ.c2lnbmF0dXJlc2lnbmF0dXJl end", "a whole token"),
            ("card 4111111111111111.", "the number of a payment instrument"),
        ] {
            assert_eq!(forbidden(text, &[]), [what], "{text}");
        }
        for text in [
            "one-time passwords work | for people",
            "4111111111111112",
            "serial 20261128, digest b6891f01b8e09611deab5b74887bd4ed1a0a8b3dc99b1238d192fd6ae792102f",
            "record 01a223ab-05b9-7003-b9e1-c954fdca50b3",
        ] {
            assert_eq!(forbidden(text, &[]), Vec::<&str>::new(), "{text}");
        }
    }

    #[test]
    fn a_quotes_own_number_is_none_of_a_card() {
        assert!(forbidden("sequence: 4111111111111111", &["4111111111111111"]).is_empty());
    }

    #[test]
    fn every_row_is_answered_once() {
        let asked: BTreeSet<_> = ROWS.iter().map(|row| (row.list, row.asks)).collect();
        assert_eq!(asked.len(), ROWS.len());
        assert!(
            answers(&Facts::new()).iter().all(|answer| matches!(answer.outcome, Outcome::NotLooked | Outcome::People))
        );
        let shown = Fact { holds: true, evidence: "seen".to_owned() };
        let facts: Facts = [("jwks.https", shown)].into();
        assert!(answers(&facts).iter().any(|answer| answer.outcome == Outcome::Passed && answer.evidence == "seen"));
    }
}
