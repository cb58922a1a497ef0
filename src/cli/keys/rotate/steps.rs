//! The six steps of a planned rotation, each held against what is: the device, the bundle, the gateways and the public URL.
//! None is taken for done before the one before it.

use std::{fmt, path::Path};

use crate::{
    client::{self, ClientFile},
    clock::UtcTime,
    config::Config,
    control,
    domain::PartnerId,
    key_set::{self, Severity},
    policy::timeline::TimedKey,
    proto::{Key, KeyState, ListKeysRequest, instant, key_directory_service_client::KeyDirectoryServiceClient},
};

use super::super::{Failure, device};

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Done(String),
    Waiting(String),
    Failed(String),
    /// The step before it is not done.
    Later,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(what) => write!(f, "done     {what}"),
            Self::Waiting(what) => write!(f, "WAITING  {what}"),
            Self::Failed(what) => write!(f, "FAILED   {what}"),
            Self::Later => f.write_str("later"),
        }
    }
}

/// The names of the steps, in order.
pub(super) const NAMES: [&str; 6] = ["generate", "publish", "confirm", "start", "overlap", "retire"];

/// What is known of a rotation.
pub(super) struct Rotation<'r> {
    pub config: &'r Config,
    pub client: &'r ClientFile,
    pub partner: &'r PartnerId,
    /// Where verifiers fetch the keys.
    pub url: String,
    pub url_ca: &'r Path,
    pub new: &'r TimedKey,
    pub old: Option<&'r TimedKey>,
    pub now: UtcTime,
}

impl Rotation<'_> {
    /// Looks at each step until one is not done.
    pub async fn look(&self) -> Result<[Step; 6], Failure> {
        let keys = self.listed().await?;
        let mut steps = [const { Step::Later }; 6];
        for at in 0..steps.len() {
            let step = match at {
                0 => self.generated().await,
                1 => self.published(&keys),
                2 => self.confirmed(&keys).await,
                3 => self.started(&keys),
                4 => self.overlaps(&keys).await,
                _ => self.retired(&keys).await,
            };
            let is_done = matches!(step, Step::Done(_));
            if let Some(place) = steps.get_mut(at) {
                *place = step;
            }
            if !is_done {
                break;
            }
        }
        Ok(steps)
    }

    async fn listed(&self) -> Result<Vec<Key>, Failure> {
        let mut directory = KeyDirectoryServiceClient::new(self.client.grpc().await.map_err(Failure::failed)?);
        let request = ListKeysRequest { partner: self.partner.to_string() };
        let listed = directory.list_keys(request).await.map_err(|status| Failure::refused(&status))?;
        Ok(listed.into_inner().keys)
    }

    /// On every device that is to hold it, and strong enough.
    async fn generated(&self) -> Step {
        if self.new.public.bits() < 2048 {
            return Step::Failed(format!(
                "`{}` has {} bits; make another of 3072",
                self.new.kid,
                self.new.public.bits()
            ));
        }
        for (signer, locator) in &self.new.places {
            let device = match device(self.config, signer) {
                Ok(device) => device,
                Err(failure) => return Step::Failed(failure.text),
            };
            match device.try_out(&self.new.kid, locator, control::attributes_of(self.new)).await {
                Ok(tried) if tried.public.same_key(self.new.public.modulus(), self.new.public.exponent()) => {}
                Ok(_) => return Step::Failed(format!("`{signer}` holds another key at {locator}")),
                Err(fault) => return Step::Failed(format!("`{signer}`: {fault}")),
            }
        }
        let places: Vec<_> = self.new.places.iter().map(|(signer, _)| signer.as_str()).collect();
        Step::Done(format!("RSA-{}, signs on {}", self.new.public.bits(), places.join(", ")))
    }

    fn published(&self, keys: &[Key]) -> Step {
        let Some(key) = keys.iter().find(|key| key.kid == self.new.kid.as_str()) else {
            return Step::Waiting("the bundle in force has no such key; put the change in place and reload".to_owned());
        };
        if key.thumbprint != self.new.public.thumbprint() {
            return Step::Failed("the bundle in force pins another key under this kid".to_owned());
        }
        match (key.state(), key.served_since.and_then(instant)) {
            (KeyState::Planned, _) => Step::Waiting(format!("enters the key set at {}", self.new.publish_at)),
            (KeyState::Revoked, _) => Step::Failed("it was revoked; rotate to another".to_owned()),
            (_, None) => Step::Waiting(
                "not every gateway, nor the registered URL where policy names one, was seen to serve it".to_owned(),
            ),
            (_, Some(since)) => Step::Done(format!("every gateway serves it, seen since {since}")),
        }
    }

    /// The five checks before the first signature.
    async fn confirmed(&self, keys: &[Key]) -> Step {
        let (fetched, body) = match client::look(&self.url, self.url_ca).await {
            Ok(got) => got,
            Err(fault) => return Step::Failed(fault.to_string()),
        };
        let findings = key_set::inspect(&body, Some(&fetched), Some(&self.new.kid), self.now);
        let bad: Vec<_> = findings.iter().filter(|finding| finding.severity >= Severity::Failed).collect();
        if let Some(first) = bad.first() {
            return Step::Failed(format!("{}: {}: {}", self.url, first.check, first.detail));
        }
        if !key_set::shown(&body).is_some_and(|shown| shown.has(&self.new.public)) {
            return Step::Failed(format!("{} shows another key under `{}`", self.url, self.new.kid));
        }
        let key = keys.iter().find(|key| key.kid == self.new.kid.as_str());
        if !key.is_some_and(|key| key.confirmed) {
            return Step::Waiting(format!(
                "{} answers 200 with valid JSON that holds it and nothing private; the operator has not confirmed it: `keys rotate --confirmed REF`",
                self.url
            ));
        }
        Step::Done(format!(
            "{} answers 200 with valid JSON that holds it and nothing private; the operator has confirmed it",
            self.url
        ))
    }

    fn started(&self, keys: &[Key]) -> Step {
        let key = keys.iter().find(|key| key.kid == self.new.kid.as_str());
        match key {
            Some(key) if key.current => Step::Done(format!("new quotes bear `{}`", self.new.kid)),
            Some(key) if !key.waits_for.is_empty() => Step::Waiting(key.waits_for.clone()),
            Some(key) if key.state() == KeyState::Prepared => {
                Step::Waiting(format!("signs from {} on", self.new.sign_from))
            }
            Some(key) if matches!(key.state(), KeyState::Retiring | KeyState::Retired) => {
                Step::Done("its own time has passed".to_owned())
            }
            _ => Step::Failed("another key signs in its window".to_owned()),
        }
    }

    async fn overlaps(&self, keys: &[Key]) -> Step {
        let Some(old) = self.old else { return Step::Done("there was no key before it".to_owned()) };
        let state = keys.iter().find(|key| key.kid == old.kid.as_str()).map(Key::state);
        match state {
            None => Step::Failed(format!("`{}` is gone from the bundle in force", old.kid)),
            Some(KeyState::Revoked) => Step::Done(format!("`{}` was revoked", old.kid)),
            Some(KeyState::Retired) => Step::Done(format!("`{}` was kept until {}", old.kid, old.retire_at)),
            Some(_) => match self.is_shown(old).await {
                Ok(true) => Step::Waiting(format!("`{}` stays in the key set until {}", old.kid, old.retire_at)),
                Ok(false) => {
                    Step::Failed(format!("{} no longer shows `{}`, whose quotes still count", self.url, old.kid))
                }
                Err(fault) => Step::Failed(fault),
            },
        }
    }

    async fn retired(&self, _: &[Key]) -> Step {
        let Some(old) = self.old else { return Step::Done("nothing to retire".to_owned()) };
        match self.is_shown(old).await {
            Ok(false) => {
                Step::Done(format!("{} no longer shows `{}`; its entry may leave the bundle", self.url, old.kid))
            }
            Ok(true) => Step::Waiting(format!("{} still shows `{}`", self.url, old.kid)),
            Err(fault) => Step::Failed(fault),
        }
    }

    async fn is_shown(&self, key: &TimedKey) -> Result<bool, String> {
        let body = client::fetch(&self.url, self.url_ca).await.map_err(|fault| fault.to_string())?;
        let shown = key_set::shown(&body).ok_or_else(|| format!("{}: it is no key set", self.url))?;
        Ok(shown.has(&key.public))
    }
}
