//! The development environment's `SoftHSM` token with an RSA-3072 key generated in it.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use uuid::Uuid;

use crate::{
    cli::{Failure, block_on},
    clock::{Clock as _, SystemClock},
    config::Config,
    domain::Kid,
    gateway,
    jwk::PublicKey,
    signer::{
        pkcs11::{self, Provisioner},
        provision::{NewKey, Provision as _},
    },
};

use super::files::{CONFIG, PARTNER, write};

pub(super) const LABEL: &str = "quotesign-dev";
pub(super) const BITS: u32 = 3072;
/// Where Debian and others put the module.
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
];

/// Where `SoftHSM`'s module is on this machine.
pub(super) fn module() -> Result<PathBuf, Failure> {
    let found = MODULES.iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| Failure::unfit("SoftHSM is not installed; on Debian: apt-get install softhsm2"))
}

/// The label of the key that signs checkpoints.
pub(super) const CHECKPOINT_KID: &str = "checkpoints-dev";
/// Checkpoints need no key that lasts here, and one of this length is soon made.
const CHECKPOINT_BITS: u32 = 2048;

/// Initialises the token with PINs of its own and generates the keys: of quotes, and of checkpoints.
pub(super) fn make(dir: &Path, bits: u32) -> Result<(PublicKey, PublicKey), Failure> {
    let (pin, so_pin) = (secret(), secret());
    write(&dir.join("pin"), format!("{pin}\n").as_bytes())?;
    write(&dir.join("so-pin"), format!("{so_pin}\n").as_bytes())?;
    let config = Config::load(&dir.join(CONFIG)).map_err(Failure::unfit)?;
    let signer = config.signers.first().ok_or_else(|| Failure::failed("the development config has no signer"))?;
    let token = gateway::token_config(&config, signer);
    let quotes = NewKey { kid: kid()?, partner: PARTNER.to_owned(), bits };
    let kid = CHECKPOINT_KID.parse().map_err(Failure::failed)?;
    let checkpoints = NewKey { kid, partner: PARTNER.to_owned(), bits: CHECKPOINT_BITS };
    block_on(async {
        pkcs11::init_token(&token, &SecretString::from(so_pin)).await.map_err(Failure::failed)?;
        let token = Provisioner::new(token);
        let quotes = token.generate(&quotes).await.map_err(Failure::failed)?.public;
        Ok((quotes, token.generate(&checkpoints).await.map_err(Failure::failed)?.public))
    })
}

/// Named after this month, as the contract's good examples are.
fn kid() -> Result<Kid, Failure> {
    let today = SystemClock.now().to_string();
    format!("quote-signing-{}", today.get(..7).unwrap_or_default()).parse().map_err(Failure::failed)
}

fn secret() -> String {
    Uuid::new_v4().simple().to_string()
}
