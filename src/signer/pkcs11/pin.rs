//! A token's PIN: read whenever it is handed over, and after it was refused watched until it is another. For that a
//! mark of it is kept and not the PIN.

use std::{
    env, fs,
    hash::{BuildHasher as _, RandomState},
    io,
    time::Duration,
};

use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};
use tokio::time;

use super::{Pin, fault::Fault};

/// How often a PIN that was refused is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Which PIN was handed over last.
#[derive(Default)]
pub(super) struct Given {
    marks: RandomState,
    last: Mutex<Option<u64>>,
}

impl Given {
    /// This one is handed over.
    pub(super) fn note(&self, pin: &SecretString) {
        *self.last.lock() = Some(self.mark(pin));
    }

    /// Waits until the PIN is another than the one that was handed over last. One that is being written is waited for:
    /// it must read alike twice, since half of it would be counted as a wrong one.
    pub(super) async fn another(&self, pin: &Pin) {
        let last = *self.last.lock();
        let mut before = None;
        loop {
            time::sleep(LOOK).await;
            let now = pin.read().ok().map(|pin| self.mark(&pin)).filter(|now| Some(*now) != last);
            if now.is_some() && now == before {
                return;
            }
            before = now;
        }
    }

    fn mark(&self, pin: &SecretString) -> u64 {
        self.marks.hash_one(pin.expose_secret())
    }
}

impl Pin {
    /// What was read is wiped. The PIN is copied out of it at its own length, since cutting the text to that could leave
    /// a copy behind.
    pub(super) fn read(&self) -> Result<SecretString, Fault> {
        let text = match self {
            Self::File(path) => fs::read_to_string(path),
            Self::Variable(name) => env::var(name).map_err(io::Error::other),
        };
        let text = match text {
            Ok(text) => Zeroizing::new(text),
            // Neither path nor name is told: a PIN may have been put in their place.
            Err(error) => return Err(Fault::Device(format!("its PIN cannot be read: {:?}", error.kind()))),
        };
        let pin = match self {
            Self::File(_) => text.trim_end_matches(['\r', '\n']),
            Self::Variable(_) => text.as_str(),
        };
        if pin.is_empty() {
            return Err(Fault::Device("its PIN is empty".to_owned()));
        }
        Ok(SecretString::from(pin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_pin_is_one_that_was_not_handed_over_last() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pin");
        let (given, pin) = (Given::default(), Pin::File(file.clone()));
        fs::write(&file, "1234\n").unwrap();
        given.note(&pin.read().unwrap());
        for none in ["1234\r\n", ""] {
            fs::write(&file, none).unwrap();
            assert!(time::timeout(LOOK * 3, given.another(&pin)).await.is_err(), "{none:?}");
        }
        fs::write(&file, "5678").unwrap();
        given.another(&pin).await;
    }
}
