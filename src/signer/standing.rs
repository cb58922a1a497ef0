//! How one key on one device stands, as its last signatures say; told to the log when it changes.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Health;
use crate::jwk::PublicKey;

/// The standing of one key on one device.
#[derive(Debug)]
pub struct Standing {
    public: Arc<PublicKey>,
    signer: String,
    health: Mutex<Health>,
}

impl Standing {
    /// A key of which nothing is known yet.
    #[must_use]
    pub fn new(public: Arc<PublicKey>, signer: &str) -> Self {
        let health = Mutex::new(Health::NotServing("not probed yet".to_owned()));
        Self { public, signer: signer.to_owned(), health }
    }

    /// The key's public half.
    #[must_use]
    pub fn public(&self) -> &Arc<PublicKey> {
        &self.public
    }

    /// How it stands.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.lock().clone()
    }

    /// Takes down how it stands now; gives back how it stood.
    pub fn set(&self, now: Health) -> Health {
        let before = std::mem::replace(&mut *self.health.lock(), now.clone());
        if before != now {
            let (kid, signer) = (self.public.kid(), &self.signer);
            match &now {
                Health::Serving => tracing::info!(%kid, signer, "the key signs"),
                Health::Recovering(why) => tracing::warn!(%kid, signer, why, "the key's device is being brought back"),
                Health::NotServing(why) => tracing::warn!(%kid, signer, why, "the key does not sign"),
            }
        }
        before
    }
}
