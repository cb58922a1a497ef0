//! The keys that policy names, each bound to the device that holds it. A reload binds anew and keeps what it
//! does not change; the path of a quote reads a snapshot and never waits. Which kid may sign is left to policy.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::{Health, Signer, locator::Locator, pkcs11::Token};
use crate::{domain::Kid, jwk::PublicKey};

/// Why keys cannot be bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// Policy names a signer that the gateway's config does not have.
    #[error("the key `{kid}` names the signer `{signer}`, which the gateway's config does not have")]
    UnknownSigner {
        /// The key.
        kid: Kid,
        /// The signer it names.
        signer: String,
    },
    /// Two keys have one kid.
    #[error("the key `{0}` is bound twice")]
    Repeated(Kid),
}

/// The devices of this gateway and the keys bound to them.
pub struct Keyring {
    tokens: BTreeMap<String, Token>,
    keys: ArcSwap<BTreeMap<Kid, Bound>>,
}

#[derive(Clone)]
struct Bound {
    signer: String,
    locator: Locator,
    key: Arc<dyn Signer>,
}

impl Bound {
    fn is(&self, signer: &str, locator: &Locator, public: &PublicKey) -> bool {
        self.signer == signer
            && self.locator == *locator
            && self.key.public_key().same_key(public.modulus(), public.exponent())
    }
}

impl Keyring {
    /// A keyring of these tokens, by signer name, with no keys yet.
    #[must_use]
    pub fn new(tokens: HashMap<String, Token>) -> Self {
        Self { tokens: tokens.into_iter().collect(), keys: ArcSwap::default() }
    }

    /// Binds exactly these keys. One that was bound alike before stays the same signer, with its health.
    ///
    /// # Errors
    /// Names the key whose signer is unknown or whose kid stands twice; then nothing has changed.
    pub fn bind(
        &self,
        keys: impl IntoIterator<Item = (Kid, String, Locator, Arc<PublicKey>)>,
    ) -> Result<(), KeyringError> {
        let before = self.keys.load();
        let mut bound = BTreeMap::new();
        for (kid, signer, locator, public) in keys {
            let Some(token) = self.tokens.get(&signer) else {
                return Err(KeyringError::UnknownSigner { kid, signer });
            };
            let entry = match before.get(&kid).filter(|old| old.is(&signer, &locator, &public)) {
                Some(old) => old.clone(),
                None => Bound { signer, key: token.key(public, locator.clone()), locator },
            };
            if bound.insert(kid.clone(), entry).is_some() {
                return Err(KeyringError::Repeated(kid));
            }
        }
        self.keys.store(Arc::new(bound));
        Ok(())
    }

    /// Whether the gateway's config has a signer of this name.
    #[must_use]
    pub fn has_signer(&self, name: &str) -> bool {
        self.tokens.contains_key(name)
    }

    /// The signer of this kid.
    #[must_use]
    pub fn get(&self, kid: &Kid) -> Option<Arc<dyn Signer>> {
        self.keys.load().get(kid).map(|bound| Arc::clone(&bound.key))
    }

    /// How this key fares.
    #[must_use]
    pub fn key_health(&self, kid: &Kid) -> Option<Health> {
        self.keys.load().get(kid).map(|bound| bound.key.health())
    }

    /// How every token (`signer/<name>`) and every key (`key/<kid>`) fares.
    #[must_use]
    pub fn health(&self) -> Vec<(String, Health)> {
        let tokens = self.tokens.iter().map(|(name, token)| (format!("signer/{name}"), token.health()));
        let keys = self.keys.load();
        let keys = keys.iter().map(|(kid, bound)| (format!("key/{kid}"), bound.key.health()));
        tokens.chain(keys).collect()
    }

    /// Ends the work of every token.
    pub async fn close(&self) {
        for token in self.tokens.values() {
            token.close().await;
        }
    }
}
