//! `[audit.checkpoint]`: the key that binds the journal together, and how often it does.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;

use crate::{
    domain::Environment,
    jwk::PublicKey,
    signer::{Attributes, keyring::Binding},
};

/// What signs checkpoints of the journal.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSection {
    /// The signer that holds the key.
    pub signer: String,
    /// Where it is on it: an RFC 7512 URI, or a key ARN.
    pub locator: String,
    /// Its public JWK, as `quotesign keys jwk` writes it. It signs nothing else and stands in no key set.
    pub public_key: PathBuf,
    /// The public JWKs of the keys that signed checkpoints of this ledger before, so that the new key's go on from theirs.
    #[serde(default)]
    pub earlier_keys: Vec<PathBuf>,
    /// The longest time between two checkpoints while there is something to bind, in seconds: 4 to 3600.
    #[serde(default = "interval_s")]
    pub interval_s: u64,
    /// What checkpoints call this ledger; `quotesign/<environment>` where absent. Give one where an environment has several.
    pub origin: Option<String>,
}

fn interval_s() -> u64 {
    60
}

fn read(field: &str, file: &Path) -> Result<PublicKey, String> {
    let fault = |fault: &dyn std::fmt::Display| format!("`audit.checkpoint.{field}` = `{}`: {fault}", file.display());
    let bytes = fs::read(file).map_err(|error| fault(&error))?;
    PublicKey::from_jwk(&bytes).map_err(|error| fault(&error))
}

impl CheckpointSection {
    /// The rules that types cannot hold.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(4..=3600).contains(&self.interval_s) {
            return Err(format!(
                "`audit.checkpoint.interval_s` = `{}` is out of range; give 4 to 3600",
                self.interval_s
            ));
        }
        let fits =
            |origin: &String| (1..=120).contains(&origin.len()) && origin.bytes().all(|byte| byte.is_ascii_graphic());
        match &self.origin {
            Some(origin) if !fits(origin) => {
                Err("`audit.checkpoint.origin` is none; give 1 to 120 visible ASCII characters".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// What checkpoints call the ledger.
    #[must_use]
    pub fn origin(&self, environment: Environment) -> String {
        self.origin.clone().unwrap_or_else(|| format!("quotesign/{environment}"))
    }

    /// The longest time between two checkpoints.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_s)
    }

    /// The key.
    ///
    /// # Errors
    /// Where its file cannot be read or holds none.
    pub fn key(&self) -> Result<PublicKey, String> {
        read("public_key", &self.public_key)
    }

    /// The key, and those before it.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn keys(&self) -> Result<Vec<PublicKey>, String> {
        let earlier = self.earlier_keys.iter().map(|file| read("earlier_keys", file));
        let keys: Vec<PublicKey> = std::iter::once(self.key()).chain(earlier).collect::<Result<_, _>>()?;
        let mut kids: Vec<_> = keys.iter().map(PublicKey::kid).collect();
        kids.sort();
        kids.dedup();
        if kids.len() < keys.len() {
            return Err("`audit.checkpoint.earlier_keys`: two keys have one kid; a kid is one key".to_owned());
        }
        Ok(keys)
    }

    /// The paths in it.
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        std::iter::once(&mut self.public_key).chain(&mut self.earlier_keys)
    }

    /// The key with where it is, for a keyring.
    ///
    /// # Errors
    /// As for [`CheckpointSection::key`].
    pub fn binding(&self) -> Result<Binding, String> {
        Ok(Binding {
            public: Arc::new(self.key()?),
            places: vec![(self.signer.clone(), self.locator.clone())],
            attributes: Attributes::Require,
        })
    }
}
