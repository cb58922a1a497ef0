//! One rule of the control file: which calls it is for, what it does to them, and to which of them.

use std::time::Duration;

use cryptoki_sys::{CK_RV, CK_ULONG};

use crate::code;

/// The functions that can be disturbed, and whether their first argument is a session.
const FUNCTIONS: &[(&str, bool)] = &[
    ("C_Initialize", false),
    ("C_Finalize", false),
    ("C_GetInfo", false),
    ("C_GetSlotList", false),
    ("C_GetSlotInfo", false),
    ("C_GetTokenInfo", false),
    ("C_GetMechanismList", false),
    ("C_GetMechanismInfo", false),
    ("C_OpenSession", false),
    ("C_CloseSession", true),
    ("C_CloseAllSessions", false),
    ("C_GetSessionInfo", true),
    ("C_Login", true),
    ("C_Logout", true),
    ("C_CreateObject", true),
    ("C_DestroyObject", true),
    ("C_GetAttributeValue", true),
    ("C_SetAttributeValue", true),
    ("C_FindObjectsInit", true),
    ("C_FindObjects", true),
    ("C_FindObjectsFinal", true),
    ("C_SignInit", true),
    ("C_Sign", true),
    ("C_SignUpdate", true),
    ("C_SignFinal", true),
    ("C_GenerateKeyPair", true),
    ("C_GenerateRandom", true),
];

/// What befalls a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is answered with this code.
    Answer(CK_RV),
    /// It waits.
    Delay(Duration),
    /// It waits for as long as the rule stands.
    Hang,
    /// It never returns.
    HangForever,
    /// One bit of the signature is another.
    Corrupt,
    /// The signature is all zero.
    Zero,
    /// The signature is said to be shorter by so many bytes.
    Truncate(CK_ULONG),
    /// The signature is that of the message before.
    Stale,
    /// The process aborts.
    Abort,
    /// The process touches memory that it has not.
    Segv,
    /// The process ends with this code.
    Exit(i32),
    /// Nothing is found.
    Empty,
    /// The session is logged out first.
    Logout,
    /// The session is closed first.
    Close,
    /// The signature is made once, and remembered.
    Cache,
    /// Not an event but a bound: a slot has no more than so many sessions.
    MaxSessions(CK_ULONG),
    /// Not an event but a state: the token says that one more wrong PIN locks it.
    PinFinalTry,
}

impl Action {
    /// Whether it holds always, and is of no call.
    pub fn is_state(self) -> bool {
        matches!(self, Self::MaxSessions(_) | Self::PinFinalTry)
    }

    /// Whether the call goes on after it, to the next rule and at last to the real module.
    pub fn lets_go_on(self) -> bool {
        matches!(self, Self::Delay(_) | Self::Hang | Self::Logout | Self::Close)
    }

    /// Whether it can act only on a call that has a session.
    pub fn needs_session(self) -> bool {
        matches!(self, Self::Logout | Self::Close)
    }

    fn fits(self, function: Option<(&'static str, bool)>) -> bool {
        match (self, function) {
            (Self::Corrupt | Self::Zero | Self::Truncate(_) | Self::Stale | Self::Cache, function) => {
                matches!(function, Some(("C_Sign", _)))
            }
            (Self::Empty, function) => matches!(function, Some(("C_FindObjects" | "C_GetSlotList", _))),
            (Self::MaxSessions(_) | Self::PinFinalTry, function) => function.is_none(),
            (Self::Logout | Self::Close, Some((_, session))) => session,
            _ => true,
        }
    }
}

/// A line of the control file that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The function it is for; none means all.
    pub function: Option<&'static str>,
    /// What it does.
    pub action: Action,
    /// Its action as it was written, for the log.
    pub spelling: String,
    /// Of the calls it is for, it acts on each so-many-th.
    pub every: u64,
    /// But not on the first so many.
    pub after: u64,
    /// And no more often than this.
    pub times: Option<u64>,
}

impl Rule {
    /// Reads a line. Blank lines and comments are no rules.
    pub fn parse(line: &str) -> Result<Option<Self>, String> {
        let said = line.split_once('#').map_or(line, |(said, _)| said);
        let words: Vec<&str> = said.split_whitespace().collect();
        let (function, rest) = match words.as_slice() {
            [] => return Ok(None),
            ["*", rest @ ..] => (None, rest),
            [name, rest @ ..] => {
                let known = FUNCTIONS.iter().find(|(known, _)| known == name);
                (Some(*known.ok_or_else(|| format!("`{name}` is not a function that can be disturbed"))?), rest)
            }
        };
        let (action, modifiers) = action(rest)?;
        let (spoken, _) = rest.split_at(rest.len() - modifiers.len());
        if !action.fits(function) {
            return Err(format!("`{}` does not fit that function", spoken.join(" ")));
        }
        if action.is_state() && !modifiers.is_empty() {
            return Err(format!("`{}` always holds", spoken.join(" ")));
        }
        let mut rule = Self {
            function: function.map(|(name, _)| name),
            action,
            spelling: spoken.join(" "),
            every: 1,
            after: 0,
            times: None,
        };
        rule.modify(modifiers)?;
        Ok(Some(rule))
    }

    /// Whether it is for calls of this function.
    pub fn is_for(&self, function: &str) -> bool {
        self.function.is_none_or(|own| own == function)
    }

    fn modify(&mut self, mut words: &[&str]) -> Result<(), String> {
        while let [word, rest @ ..] = words {
            let (value, rest) = argument(word, rest)?;
            match (*word, value) {
                ("every" | "times", 0) => return Err(format!("`{word} 0` would never act")),
                ("every", value) => self.every = value,
                ("after", value) => self.after = value,
                ("times", value) => self.times = Some(value),
                _ => return Err(format!("`{word}` is not known")),
            }
            words = rest;
        }
        Ok(())
    }
}

/// The action that the words begin with, and the words behind it.
fn action<'a, 'w>(words: &'a [&'w str]) -> Result<(Action, &'a [&'w str]), String> {
    let [word, rest @ ..] = words else { return Err("there is no action".into()) };
    let plain = match *word {
        "hang" => Action::Hang,
        "hang-forever" => Action::HangForever,
        "corrupt" => Action::Corrupt,
        "zero" => Action::Zero,
        "short" => Action::Truncate(1),
        "stale" => Action::Stale,
        "abort" => Action::Abort,
        "segv" => Action::Segv,
        "empty" => Action::Empty,
        "logout" => Action::Logout,
        "close" => Action::Close,
        "cache" => Action::Cache,
        "pin-final-try" => Action::PinFinalTry,
        "truncate" if rest.first().and_then(|next| code::number(next)).is_none() => Action::Truncate(1),
        _ => return action_with_argument(word, rest),
    };
    Ok((plain, rest))
}

fn action_with_argument<'a, 'w>(word: &str, rest: &'a [&'w str]) -> Result<(Action, &'a [&'w str]), String> {
    if word == "err" {
        let [name, rest @ ..] = rest else { return Err("`err` needs a code".into()) };
        let code = code::return_value(name).ok_or_else(|| format!("`{name}` is not a return value"))?;
        return Ok((Action::Answer(code), rest));
    }
    if !matches!(word, "delay" | "truncate" | "exit" | "max-sessions") {
        return Err(format!("`{word}` is not an action"));
    }
    let (value, rest) = argument(word, rest)?;
    let action = match word {
        "delay" => Action::Delay(Duration::from_millis(value)),
        "truncate" => Action::Truncate(value),
        "exit" => Action::Exit(value.try_into().map_err(|_| format!("`{value}` is not an exit code"))?),
        // PKCS#11 reads 0 as "without a bound".
        _ if value == 0 => return Err("`max-sessions` needs at least 1".into()),
        _ => Action::MaxSessions(value),
    };
    Ok((action, rest))
}

fn argument<'a, 'w>(word: &str, rest: &'a [&'w str]) -> Result<(u64, &'a [&'w str]), String> {
    let [value, rest @ ..] = rest else { return Err(format!("`{word}` needs a number")) };
    let value = code::number(value).ok_or_else(|| format!("`{value}` is not a number"))?;
    Ok((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action_of(line: &str) -> Action {
        Rule::parse(line).unwrap().unwrap().action
    }

    #[test]
    fn every_action_is_read() {
        assert_eq!(action_of("C_Sign err 0x30"), Action::Answer(0x30));
        assert_eq!(action_of("C_Login err 48"), Action::Answer(48));
        assert_eq!(action_of("* err CKR_DEVICE_REMOVED"), Action::Answer(0x32));
        assert_eq!(action_of("C_Sign delay 5"), Action::Delay(Duration::from_millis(5)));
        assert_eq!(action_of("C_Sign truncate"), Action::Truncate(1));
        assert_eq!(action_of("C_Sign truncate every 2"), Action::Truncate(1));
        assert_eq!(action_of("C_Sign truncate 7 every 2"), Action::Truncate(7));
        assert_eq!(action_of("C_Sign short"), Action::Truncate(1));
        assert_eq!(action_of("* exit 3"), Action::Exit(3));
        assert_eq!(action_of("* max-sessions 4"), Action::MaxSessions(4));
        for (word, action) in [
            ("hang", Action::Hang),
            ("hang-forever", Action::HangForever),
            ("corrupt", Action::Corrupt),
            ("zero", Action::Zero),
            ("stale", Action::Stale),
            ("abort", Action::Abort),
            ("segv", Action::Segv),
            ("logout", Action::Logout),
            ("close", Action::Close),
            ("cache", Action::Cache),
        ] {
            assert_eq!(action_of(&format!("C_Sign {word}")), action);
        }
        assert_eq!(action_of("C_FindObjects empty"), Action::Empty);
        assert_eq!(action_of("C_GetSlotList empty"), Action::Empty);
    }

    #[test]
    fn modifiers_come_in_any_order_and_a_comment_is_no_part_of_the_rule() {
        let rule = Rule::parse("  C_Sign  err 0x30 times 2 after 10 every 5 # again").unwrap().unwrap();
        assert_eq!((rule.every, rule.after, rule.times), (5, 10, Some(2)));
        assert_eq!(rule.spelling, "err 0x30");
        assert!(rule.is_for("C_Sign") && !rule.is_for("C_SignInit"));
        assert_eq!(Rule::parse("  # nothing"), Ok(None));
        assert_eq!(Rule::parse(""), Ok(None));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "C_Sing err 5",
            "C_Sign",
            "C_Sign err",
            "C_Sign err CKR_NONE_SUCH",
            "C_Sign delay",
            "C_Sign delay soon",
            "C_Sign explode",
            "C_Sign err 5 sometimes 3",
            "C_Sign err 5 every 0",
            "C_Sign err 5 every",
            "C_Login corrupt",
            "* cache",
            "C_Sign empty",
            "C_OpenSession logout",
            "C_Sign max-sessions 3",
            "* max-sessions 0",
            "* max-sessions 3 every 2",
            "* exit 99999999999",
        ] {
            assert!(Rule::parse(line).is_err(), "{line}");
        }
    }
}
