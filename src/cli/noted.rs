//! A ledger that a command may read, since it is noted that it will: who, by which command, and what was asked for.

use std::fs;

use crate::{
    config::Config,
    ledger::{Journal, Place, Reading, Reads},
};

use super::Failure;

/// Where the machine names its users.
const USERS: &str = "/etc/passwd";

/// A ledger, and that reading it was noted.
pub(super) struct Noted(Place);

impl Noted {
    /// Leaves the note. `filters` are as `partner=acme-remit`, or the name alone where the value is nobody's to know.
    pub(super) fn open(config: &Config, command: &str, filters: Vec<String>) -> Result<Self, Failure> {
        let place = config.ledger.place().map_err(Failure::unfit)?;
        place.is_of(config.environment).map_err(Failure::failed)?;
        Self::at(place, command, filters)
    }

    /// The same of a ledger that is not the config's, of whatever environment.
    pub(super) fn at(place: Place, command: &str, filters: Vec<String>) -> Result<Self, Failure> {
        let noted = place.note(&Reading::new(user(), command, filters));
        noted.map_err(|fault| Failure::failed(format!("nothing was read, since that could not be noted: {fault}")))?;
        Ok(Self(place))
    }

    pub(super) fn journal(&self) -> Result<Box<dyn Journal>, Failure> {
        self.0.journal().map_err(Failure::failed)
    }

    pub(super) fn reads(&self) -> Result<Box<dyn Reads>, Failure> {
        self.0.reads().map_err(Failure::failed)
    }
}

/// What was asked for, where it was.
pub(super) fn filter(name: &str, value: Option<&impl ToString>) -> Option<String> {
    value.map(|value| format!("{name}={}", value.to_string()))
}

/// Who runs this process, by the machine's own word: the environment can say anything.
pub(super) fn user() -> String {
    let uid = rustix::process::getuid().as_raw();
    let users = fs::read_to_string(USERS).unwrap_or_default();
    name_of(&users, uid).map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}

fn name_of(users: &str, uid: u32) -> Option<&str> {
    let named = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?.parse::<u32>().ok()?))
    });
    let mut named = named.filter(|(name, number)| *number == uid && !name.is_empty());
    named.next().map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_as_the_machine_names_it() {
        let users = "root:x:0:0:root:/root:/bin/bash\nbroken\n:x:7:7::/:\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!((name_of(users, 0), name_of(users, 1000)), (Some("root"), Some("alice")));
        assert_eq!((name_of(users, 7), name_of(users, 8)), (None, None));
    }
}
