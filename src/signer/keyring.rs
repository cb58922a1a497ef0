//! The keys that policy names, each bound to the devices that hold it. A reload binds anew and keeps what it does
//! not change; the path of a quote reads a snapshot and never waits. Which kid may sign is left to policy.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::time;

use super::{
    Attributes, Device, Flow, Health, Order, Pinned, SignError, Signature, Signer,
    turns::{Busy, Place},
};
use crate::{domain::Kid, jwk::PublicKey, jws::SigningInput};

/// How long an order waits for a device that was lost a moment ago.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often one order may be given to devices that are lost under it: it may be the order that does it.
const LOST_MAX: usize = 3;

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
    /// The locator is not of the signer's kind.
    #[error("the key `{kid}` cannot be on the signer `{signer}`: {why}")]
    Locator {
        /// The key.
        kid: Kid,
        /// The signer it names.
        signer: String,
        /// What is wrong with its locator.
        why: String,
    },
    /// Two keys have one kid.
    #[error("the key `{0}` is bound twice")]
    Repeated(Kid),
}

/// What is to be bound: one key, and the devices that hold it, the preferred one first.
#[derive(Debug, Clone)]
pub struct Binding {
    /// Its public half, and its kid.
    pub public: Arc<PublicKey>,
    /// The signers of the gateway's config, each with where the key is found there.
    pub places: Vec<(String, String)>,
    /// What it must state of itself.
    pub attributes: Attributes,
}

/// The devices of this gateway and the keys bound to them.
pub struct Keyring {
    devices: BTreeMap<String, Arc<dyn Device>>,
    /// Bound whatever policy names.
    own: Vec<Binding>,
    keys: ArcSwap<BTreeMap<Kid, Arc<BoundKey>>>,
}

/// One key and the devices that hold it. Each device compares its own with the pin, so that all are equal.
pub struct BoundKey {
    binding: Binding,
    replicas: Vec<Replica>,
}

struct Replica {
    signer: String,
    key: Arc<dyn Signer>,
}

impl Keyring {
    /// A keyring of these devices, by signer name, with no keys yet.
    #[must_use]
    pub fn new(devices: BTreeMap<String, Arc<dyn Device>>) -> Self {
        Self { devices, own: Vec::new(), keys: ArcSwap::default() }
    }

    /// With keys of the gateway's own, which sign no quotes.
    #[must_use]
    pub fn with_own(self, own: Vec<Binding>) -> Self {
        Self { own, ..self }
    }

    /// Binds exactly these keys, and the gateway's own. One that was bound alike before stays the same signer, with its
    /// health, and so does a key on each device that held it before, where devices come or go.
    ///
    /// # Errors
    /// Names the key whose signer is unknown or whose kid stands twice; then nothing has changed.
    pub fn bind(&self, keys: impl IntoIterator<Item = Binding>) -> Result<(), KeyringError> {
        let before = self.keys.load();
        let mut bound = BTreeMap::new();
        for binding in self.own.iter().cloned().chain(keys) {
            let kid = binding.public.kid().clone();
            let key = match before.get(&kid).filter(|old| old.binding.asks_alike(&binding)) {
                Some(old) if old.binding.places == binding.places => Arc::clone(old),
                old => Arc::new(self.bind_one(binding, old)?),
            };
            if bound.insert(kid.clone(), key).is_some() {
                return Err(KeyringError::Repeated(kid));
            }
        }
        self.keys.store(Arc::new(bound));
        Ok(())
    }

    /// `before` is the same key, on other devices in part.
    fn bind_one(&self, binding: Binding, before: Option<&Arc<BoundKey>>) -> Result<BoundKey, KeyringError> {
        let kid = binding.public.kid();
        let mut replicas = Vec::new();
        for place in &binding.places {
            if let Some(key) = before.and_then(|old| old.at(place)) {
                replicas.push(Replica { signer: place.0.clone(), key });
                continue;
            }
            let (signer, locator) = place;
            let unknown = || KeyringError::UnknownSigner { kid: kid.clone(), signer: signer.clone() };
            let device = self.devices.get(signer).ok_or_else(unknown)?;
            let (public, attributes) = (Arc::clone(&binding.public), binding.attributes);
            let key = device.key(Pinned { public, locator: locator.clone(), attributes });
            let key = key.map_err(|why| KeyringError::Locator { kid: kid.clone(), signer: signer.clone(), why })?;
            replicas.push(Replica { signer: signer.clone(), key });
        }
        Ok(BoundKey { binding, replicas })
    }

    /// Whether a key could lie at `locator` on the signer of this name; nothing where the config has no such signer.
    #[must_use]
    pub fn accepts(&self, signer: &str, locator: &str) -> Option<Result<(), String>> {
        self.devices.get(signer).map(|device| device.accepts(locator))
    }

    /// The key of this kid.
    #[must_use]
    pub fn get(&self, kid: &Kid) -> Option<Arc<BoundKey>> {
        self.keys.load().get(kid).cloned()
    }

    /// How this key fares.
    #[must_use]
    pub fn key_health(&self, kid: &Kid) -> Option<Health> {
        self.keys.load().get(kid).map(|key| key.health())
    }

    /// How every signer (`signer/<name>`), every key (`key/<kid>`) and, where several devices hold it, each of them
    /// (`key/<kid>/<name>`) fares.
    #[must_use]
    pub fn health(&self) -> Vec<(String, Health)> {
        let mut told: Vec<_> =
            self.devices.iter().map(|(name, device)| (format!("signer/{name}"), device.health())).collect();
        for (kid, key) in self.keys.load().iter() {
            told.push((format!("key/{kid}"), key.health()));
            if let [_, _, ..] = key.replicas.as_slice() {
                let of = |replica: &Replica| (format!("key/{kid}/{}", replica.signer), replica.key.health());
                told.extend(key.replicas.iter().map(of));
            }
        }
        told
    }

    /// Every device by signer name.
    pub fn devices(&self) -> impl Iterator<Item = (&str, &Arc<dyn Device>)> {
        self.devices.iter().map(|(name, device)| (name.as_str(), device))
    }

    /// Ends the work of every device.
    pub async fn close(&self) {
        let closing = self.devices.values().map(|device| device.close());
        futures_util::future::join_all(closing).await;
    }
}

impl std::fmt::Debug for BoundKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BoundKey({})", self.binding.public.kid())
    }
}

impl BoundKey {
    /// The signer that it is at this place.
    fn at(&self, place: &(String, String)) -> Option<Arc<dyn Signer>> {
        let mut replicas = self.binding.places.iter().zip(&self.replicas);
        replicas.find(|(own, _)| *own == place).map(|(_, replica)| Arc::clone(&replica.key))
    }

    /// Its public half.
    #[must_use]
    pub fn public_key(&self) -> &Arc<PublicKey> {
        &self.binding.public
    }

    /// How the key fares: as the replica that fares best.
    #[must_use]
    pub fn health(&self) -> Health {
        let healths = || self.replicas.iter().map(|replica| replica.key.health());
        let rank = |health: &Health| match health {
            Health::Serving => 0,
            Health::Recovering(_) => 1,
            Health::NotServing(_) => 2,
        };
        let best = healths().min_by_key(rank);
        best.unwrap_or_else(|| Health::NotServing("no signer is bound to it".to_owned()))
    }

    /// Takes a place at the first replica that has one, for an order of `flow` that must be done by `deadline`; tells
    /// which it is, so that it is asked first. One that is only about to be back comes behind those that serve: until then its orders
    /// would go to them, where they have no place.
    ///
    /// # Errors
    /// Where none has; when the first should have one.
    pub fn place(&self, flow: Flow, deadline: Instant) -> Result<(usize, Place), Busy> {
        let mut busy = Busy { retry_after: PATIENCE };
        let that = |fits: fn(&Health) -> bool| {
            self.replicas.iter().enumerate().filter(move |(_, replica)| fits(&replica.key.health()))
        };
        for (at, replica) in that(|health| *health == Health::Serving).chain(that(Health::takes_orders)) {
            match replica.key.turns().place(flow, deadline) {
                Ok(place) => return Ok((at, place)),
                Err(refused) => busy.retry_after = busy.retry_after.min(refused.retry_after),
            }
        }
        Err(busy)
    }

    /// Signs with RS256 on the replica `first` where it serves, and goes on to the others in their order where it fails. An order whose
    /// device was lost under it waits a moment for a device, and is given once more: the same bytes are signed, and
    /// RS256 gives the same signature. Tells which signer it was. The caller verifies.
    ///
    /// # Errors
    /// The last replica's, or that none serves.
    pub async fn sign(&self, input: &SigningInput, order: &Order, first: usize) -> Result<Given, SignError> {
        let mut lost = 0;
        let mut waits_until = Instant::now() + PATIENCE;
        loop {
            let mut failure = None;
            let mut replicas: Vec<_> = self.replicas.iter().enumerate().collect();
            replicas.sort_by_key(|(at, _)| *at != first);
            for (at, replica) in replicas {
                if replica.key.health() != Health::Serving {
                    continue;
                }
                match replica.key.sign(input, order).await {
                    Ok(signature) => return Ok(Given { signature, replica: at }),
                    Err(error @ (SignError::Gone | SignError::TimedOut)) => return Err(error),
                    Err(error) => failure = Some(error),
                }
            }
            let may_come = match &failure {
                Some(SignError::Lost(_)) => {
                    // The wait begins anew with each loss, since a device was there until then.
                    lost += 1;
                    waits_until = Instant::now() + PATIENCE;
                    lost < LOST_MAX
                }
                Some(SignError::Full | SignError::Unfit(_)) => false,
                _ => self.health().takes_orders(),
            };
            if !may_come || Instant::now() >= waits_until.min(order.deadline) {
                return Err(failure.unwrap_or_else(|| unavailable(self.health())));
            }
            tokio::select! {
                () = time::sleep(LOOK_AGAIN) => {}
                () = order.gone.cancelled() => return Err(SignError::Gone),
            }
        }
    }

    /// Takes the replica that gave this out of service until a test signature of it verifies.
    pub fn distrust(&self, given: usize, why: &str) {
        if let Some(replica) = self.replicas.get(given) {
            tracing::error!(kid = %self.binding.public.kid(), signer = replica.signer, why, "a signature does not verify; the key does not sign there until a test signature does");
            replica.key.distrust(why);
        }
    }
}

/// A signature, and which replica it is from.
#[derive(Debug, Clone)]
pub struct Given {
    /// Not yet verified.
    pub signature: Signature,
    /// For [`BoundKey::distrust`].
    pub replica: usize,
}

impl Binding {
    /// Whether it is the same key, of which the same is asked, wherever it is.
    fn asks_alike(&self, other: &Self) -> bool {
        let (public, theirs) = (&self.public, &other.public);
        public.same_key(theirs.modulus(), theirs.exponent()) && self.attributes == other.attributes
    }
}

fn unavailable(health: Health) -> SignError {
    match health {
        Health::NotServing(why) | Health::Recovering(why) => SignError::Unavailable(why),
        Health::Serving => SignError::Unavailable("the device was lost again and again".to_owned()),
    }
}
