//! How the logins to one token end, across its host processes. The host tells when a login begins and how it ended;
//! one whose end is not told was inside the module when the process was given up. Such a login, and one that ended
//! with a code that does not say whether the PIN was taken, may have been counted by the token as a wrong PIN, and
//! tokens lock after as few as three.

use std::time::Duration;

use parking_lot::Mutex;

use super::wire::Login;

/// So many logins in a row may come to no known end.
const LOST_MAX: u32 = 2;
/// The pauses after logins that failed for what was the device's fault, as far as its code can be trusted.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_FACTOR: u32 = 4;
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What has become of the logins since the last that succeeded.
#[derive(Debug, Default)]
pub(super) struct Logins(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    lost: u32,
    failed: u32,
}

impl Logins {
    /// Takes down what the host told.
    pub(super) fn heard(&self, login: Login) {
        let mut count = self.0.lock();
        match login {
            Login::Begins => count.lost += 1,
            Login::Succeeded => *count = Count::default(),
            Login::Failed => {
                count.lost = count.lost.saturating_sub(1);
                count.failed += 1;
            }
            Login::Unclear => {}
        }
    }

    /// How many came to no known end, if that is as many as may.
    pub(super) fn too_many_lost(&self) -> Option<u32> {
        let lost = self.0.lock().lost;
        (lost >= LOST_MAX).then_some(lost)
    }

    /// How long no other is to be tried; nothing where none has failed.
    pub(super) fn pause(&self) -> Option<Duration> {
        let failed = self.0.lock().failed.checked_sub(1)?;
        Some(PAUSE_MIN.saturating_mul(PAUSE_FACTOR.saturating_pow(failed)).min(PAUSE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(told: &[Login]) -> Logins {
        let logins = Logins::default();
        for login in told {
            logins.heard(*login);
        }
        logins
    }

    #[test]
    fn a_login_is_lost_until_its_end_is_known() {
        use Login::{Begins, Failed, Succeeded, Unclear};
        for (told, lost) in [
            (&[Begins][..], None),
            (&[Begins, Begins], Some(2)),
            (&[Begins, Unclear, Begins], Some(2)),
            (&[Begins, Unclear, Begins, Succeeded], None),
            (&[Begins, Failed, Begins, Failed, Begins, Failed, Begins], None),
            (&[Begins, Begins, Failed, Begins, Unclear], Some(2)),
        ] {
            assert_eq!(after(told).too_many_lost(), lost, "{told:?}");
        }
    }

    #[test]
    fn failed_logins_are_further_and_further_apart() {
        let logins = after(&[Login::Begins]);
        let mut pauses = vec![logins.pause()];
        for _ in 0..4 {
            logins.heard(Login::Failed);
            pauses.push(logins.pause());
        }
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(pauses, [None, ms(500), ms(2_000), ms(5_000), ms(5_000)]);
        logins.heard(Login::Succeeded);
        assert_eq!(logins.pause(), None);
    }
}
