//! The devices of a config: each of which kind it is, and what it needs to know.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    config::{Config, SignerEntry},
    signer::{
        Device,
        pkcs11::{Provisioner, Token, TokenConfig},
        provision::Provision,
    },
};

#[cfg(feature = "kms")]
use crate::signer::kms::{Kms, KmsConfig};

/// The devices of a config, each at work.
pub(super) fn all(config: &Config) -> BTreeMap<String, Arc<dyn Device>> {
    let token = |entry: &SignerEntry| {
        let device: Arc<dyn Device> = Arc::new(Token::start(token_config(config, entry)));
        (entry.name.clone(), device)
    };
    config.signers.iter().map(token).chain(kms(config)).collect()
}

#[cfg(feature = "kms")]
fn kms(config: &Config) -> impl Iterator<Item = (String, Arc<dyn Device>)> {
    config.aws_kms.iter().map(|entry| {
        let device: Arc<dyn Device> = Arc::new(Kms::start(entry.kms()));
        (entry.name.clone(), device)
    })
}

/// A build without it refuses a config that has any.
#[cfg(not(feature = "kms"))]
fn kms(_config: &Config) -> impl Iterator<Item = (String, Arc<dyn Device>)> {
    std::iter::empty()
}

/// The device of this name, at work, for a command that has it sign.
#[must_use]
pub fn device(config: &Config, name: &str) -> Option<Arc<dyn Device>> {
    let alone = Config {
        signers: config.signers.iter().filter(|entry| entry.name == name).cloned().collect(),
        aws_kms: config.aws_kms.iter().filter(|entry| entry.name == name).cloned().collect(),
        ..config.clone()
    };
    all(&alone).remove(name)
}

/// The signer of this name, as commands see it.
#[must_use]
pub fn provisioner(config: &Config, name: &str) -> Option<Box<dyn Provision>> {
    #[cfg(feature = "kms")]
    if let Some(entry) = config.aws_kms.iter().find(|entry| entry.name == name) {
        let kms = KmsConfig { environment: Some(config.environment), ..entry.kms() };
        return Some(Box::new(Kms::provisioner(kms)));
    }
    let entry = config.signers.iter().find(|entry| entry.name == name)?;
    Some(Box::new(Provisioner::new(token_config(config, entry))))
}

/// What the signer needs to know of a config's entry.
#[must_use]
pub fn token_config(config: &Config, entry: &SignerEntry) -> TokenConfig {
    TokenConfig {
        name: entry.name.clone(),
        // This very executable, also where another has been put in its place since it was started.
        host: PathBuf::from("/proc/self/exe"),
        module: entry.module.clone(),
        token_label: entry.token.clone(),
        token_serial: entry.serial.clone(),
        pin: entry.pin(),
        environment: entry.environment.clone(),
        secret_variables: config.signers.iter().filter_map(|signer| signer.pin_env.clone()).collect(),
        sessions: entry.sessions,
        queue_max: entry.queue_max,
        call_timeout: Duration::from_millis(entry.call_timeout_ms),
        probe_interval: Duration::from_millis(entry.probe_interval_ms),
    }
}
