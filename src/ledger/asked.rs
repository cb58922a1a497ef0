//! What a person may ask of the ledger, by call and by command alike.

use crate::{clock::UtcTime, domain::SequenceNumber, json::is_hidden};

/// A floor beyond this would leave a sequence too little room ever to be raised again: 2^52.
const FLOOR_MAX: u64 = 1 << 52;
/// The longest reason that a person may give for an act.
const REASON_BYTES_MAX: usize = 500;
/// The longest name of a hold.
const HOLD_BYTES_MAX: usize = 64;

/// A floor that a person may give a sequence.
///
/// # Errors
/// What is wrong with it, to be put behind its name.
pub fn floor_of(number: u64) -> Result<SequenceNumber, String> {
    let floor = Some(number).filter(|number| *number <= FLOOR_MAX).and_then(|number| number.try_into().ok());
    floor.ok_or_else(|| format!("is above {FLOOR_MAX}, which would leave the sequence no room"))
}

/// Why a person acts, in words that fit a record.
///
/// # Errors
/// As for [`floor_of`].
pub fn reason_of(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.len() > REASON_BYTES_MAX || text.chars().any(is_hidden) {
        return Err("must say in 1 to 500 bytes of one line why");
    }
    Ok(text.to_owned())
}

/// Since when a hold keeps what there is. One that begins later keeps nothing until then, and whoever asks for it means another time.
///
/// # Errors
/// As for [`floor_of`].
pub fn since_of(since: UtcTime, now: UtcTime) -> Result<UtcTime, String> {
    if since <= now {
        Ok(since)
    } else {
        Err(format!("lies ahead of the time, {now}: until then nothing would be kept"))
    }
}

/// The name of a hold, such that it can be released by it.
///
/// # Errors
/// As for [`floor_of`].
pub fn hold_of(name: &str) -> Result<String, &'static str> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if (1..=HOLD_BYTES_MAX).contains(&name.len()) && name.chars().all(fits) {
        Ok(name.to_owned())
    } else {
        Err("must be 1 to 64 letters, digits, `.`, `_` or `-`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_has_a_name_that_can_be_typed() {
        assert!(hold_of("case-2026.4_a").is_ok());
        for name in ["", "a b", "a/b", &"a".repeat(65)] {
            assert!(hold_of(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_reason_is_a_line_that_says_something() {
        assert!(reason_of("Störung, OPS-7").is_ok() && reason_of(&"a".repeat(500)).is_ok());
        for reason in ["", "two\nlines", "\u{1b}[2J", &"a".repeat(501)] {
            assert!(reason_of(reason).is_err(), "{reason:?}");
        }
    }

    #[test]
    fn a_floor_leaves_room_above_it() {
        assert_eq!(floor_of(FLOOR_MAX).map(SequenceNumber::get), Ok(FLOOR_MAX));
        assert!(floor_of(FLOOR_MAX + 1).is_err() && floor_of(u64::MAX).is_err());
    }
}
