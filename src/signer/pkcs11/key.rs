//! One pinned key: how it is found on the token, what it must prove before it signs, and how it stands.
//! Who asks it to sign, and when, is left to `worker` and `supervisor`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use parking_lot::Mutex;

use super::{
    AttributePolicy,
    device::{Device, Session, trimmed},
    fault::Fault,
};
use crate::{
    jwk::PublicKey,
    signer::{Health, locator::Locator},
};

/// What a key says of itself that was made on its device, never left it and cannot leave it. It is the
/// module's word, not proof; LOCAL is what betrays an imported key on a module that gets the others wrong.
const NEVER_LEFT: [Attribute; 7] = [
    Attribute::Local(true),
    Attribute::Sensitive(true),
    Attribute::AlwaysSensitive(true),
    Attribute::Extractable(false),
    Attribute::NeverExtractable(true),
    Attribute::Sign(true),
    Attribute::Token(true),
];

/// A key that policy pins.
pub(super) struct Key {
    /// Its number in this process, never given again: what workers cache its handle under.
    pub(super) number: u64,
    pub(super) public: Arc<PublicKey>,
    pub(super) locator: Locator,
    standing: Mutex<Standing>,
}

/// How the key fares within one generation of its token. What was found in an earlier one says nothing.
struct Standing {
    generation: u64,
    verdict: Option<Result<(), Fault>>,
    probe_at: Instant,
    warned: bool,
}

impl Key {
    pub(super) fn new(number: u64, public: Arc<PublicKey>, locator: Locator) -> Self {
        let standing = Standing { generation: 0, verdict: None, probe_at: Instant::now(), warned: false };
        Self { number, public, locator, standing: Mutex::new(standing) }
    }

    /// How it fares within `generation`.
    pub(super) fn health(&self, generation: u64) -> Health {
        match self.verdict(generation) {
            Some(Ok(())) => Health::Serving,
            Some(Err(fault)) => Health::NotServing(fault.to_string()),
            None => Health::NotServing("not probed yet".to_owned()),
        }
    }

    /// What was last found of it within `generation`.
    pub(super) fn verdict(&self, generation: u64) -> Option<Result<(), Fault>> {
        let standing = self.standing.lock();
        (standing.generation == generation).then(|| standing.verdict.clone()).flatten()
    }

    /// Takes down what a worker of `generation` found, and tells whether the key was known to sign until now.
    pub(super) fn judge(&self, generation: u64, verdict: Result<(), Fault>) -> bool {
        let mut standing = self.standing.lock();
        if !standing.begin(generation) {
            return false;
        }
        let before = standing.verdict.replace(verdict);
        if before != standing.verdict {
            self.tell(standing.verdict.as_ref());
        }
        before == Some(Ok(()))
    }

    /// Whether a probe is due; if so, the next one is after `pause`.
    pub(super) fn take_probe(&self, generation: u64, pause: Duration) -> bool {
        let mut standing = self.standing.lock();
        let now = Instant::now();
        let due = standing.begin(generation) && standing.probe_at <= now;
        if due {
            standing.probe_at = now + pause;
        }
        due
    }

    /// Has the next probe come at once: the one that was taken found no room in the queue.
    pub(super) fn return_probe(&self) {
        self.standing.lock().probe_at = Instant::now();
    }

    fn tell(&self, verdict: Option<&Result<(), Fault>>) {
        let kid = self.public.kid();
        match verdict {
            Some(Ok(())) => tracing::info!(%kid, "the key signs"),
            Some(Err(fault @ Fault::Unfit(_))) => tracing::error!(%kid, why = %fault, "the key is unfit"),
            Some(Err(fault)) => tracing::warn!(%kid, why = %fault, "the key does not sign"),
            None => {}
        }
    }

    /// Finds the key, and compares it with what policy pins before it may sign.
    pub(super) fn find(
        &self,
        device: &Device<'_>,
        session: &Session<'_>,
        policy: AttributePolicy,
    ) -> Result<ObjectHandle, Fault> {
        self.check_token(device)?;
        let found = Device::find(session, &self.template())?;
        let handle = match found.as_slice() {
            [handle] => *handle,
            [] if device.is_present() => return Err(Fault::Missing(self.locator.to_string())),
            [] => return Err(Fault::Device("the token no longer answers".to_owned())),
            several => return Err(Fault::Unfit(format!("`{}` names {} private keys", self.locator, several.len()))),
        };
        let (modulus, exponent) = public_half(session, handle)?;
        if !self.public.same_key(&modulus, &exponent) {
            return Err(Fault::Unfit("it is not the key that policy pins".to_owned()));
        }
        self.check_attributes(session, handle, policy)?;
        Ok(handle)
    }

    fn check_token(&self, device: &Device<'_>) -> Result<(), Fault> {
        let (info, locator) = (device.info(), &self.locator);
        for (attribute, wanted, is) in [
            ("token", locator.token(), info.label()),
            ("serial", locator.serial(), info.serial_number()),
            ("manufacturer", locator.manufacturer(), info.manufacturer_id()),
            ("model", locator.model(), info.model()),
        ] {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != trimmed(is)) {
                let is = trimmed(is);
                return Err(Fault::Unfit(format!("its locator wants the {attribute} `{wanted}`, and this is `{is}`")));
            }
        }
        Ok(())
    }

    fn template(&self) -> Vec<Attribute> {
        let class = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::RSA)];
        let label = self.locator.object().map(|label| Attribute::Label(label.as_bytes().to_vec()));
        let id = self.locator.id().map(|id| Attribute::Id(id.to_vec()));
        class.into_iter().chain(label).chain(id).collect()
    }

    fn check_attributes(
        &self,
        session: &Session<'_>,
        handle: ObjectHandle,
        policy: AttributePolicy,
    ) -> Result<(), Fault> {
        if policy == AttributePolicy::Off {
            return Ok(());
        }
        match (check_never_left(session, handle), policy) {
            (Err(Fault::Unfit(why)), AttributePolicy::Warn) => {
                if !std::mem::replace(&mut self.standing.lock().warned, true) {
                    tracing::warn!(kid = %self.public.kid(), %why, "the key signs only since `attributes` says `warn`");
                }
                Ok(())
            }
            (result, _) => result,
        }
    }
}

impl Standing {
    /// Turns to `generation` if it is a newer one; false if it is an older one, of which nothing is heard any more.
    fn begin(&mut self, generation: u64) -> bool {
        if self.generation < generation {
            (self.generation, self.verdict, self.probe_at) = (generation, None, Instant::now());
        }
        self.generation == generation
    }
}

/// Refuses a private key that does not state all of [`NEVER_LEFT`]. What the token does not say is not proven.
pub(super) fn check_never_left(session: &Session<'_>, handle: ObjectHandle) -> Result<(), Fault> {
    let types: Vec<_> = NEVER_LEFT.iter().map(Attribute::attribute_type).collect();
    let stated = session.get_attributes(handle, &types)?;
    let lacking = NEVER_LEFT.iter().filter(|wanted| !stated.contains(wanted));
    let lacking: Vec<_> = lacking.map(|wanted| wanted.attribute_type().to_string()).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(Fault::Unfit(format!("the token does not show that it never left it: {}", lacking.join(", "))))
}

/// Modulus and public exponent of a key, which its private object states too.
pub(super) fn public_half(session: &Session<'_>, handle: ObjectHandle) -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let (mut modulus, mut exponent) = (None, None);
    for attribute in session.get_attributes(handle, &[AttributeType::Modulus, AttributeType::PublicExponent])? {
        match attribute {
            Attribute::Modulus(integer) => modulus = Some(integer),
            Attribute::PublicExponent(integer) => exponent = Some(integer),
            _ => {}
        }
    }
    modulus.zip(exponent).ok_or_else(|| Fault::Unfit("the token does not state its public half".to_owned()))
}
