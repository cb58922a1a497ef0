//! Provisioning: a token's initialisation, for development, and the generation of a signing key. These run in
//! commands of the security team; the gateway calls none of them.

use std::path::Path;

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, ObjectClass, ObjectHandle},
    session::UserType,
};
use secrecy::SecretString;
use uuid::Uuid;

use super::{
    TokenConfig,
    device::{Access, Device, Session, trimmed},
    fault::Fault,
    key::{check_never_left, public_half},
    module::Module,
};
use crate::{
    domain::Kid,
    jwk::{MODULUS_BITS_MAX, MODULUS_BITS_MIN, PublicKey},
    jws::SigningInput,
};

const EXPONENT_65537: [u8; 3] = [1, 0, 1];
const TOKEN_LABEL_BYTES_MAX: usize = 32;

/// Why a token or key was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeygenError {
    /// The key's size is out of bounds.
    #[error("a key of {0} bits is not made; it needs 2048 to 8192")]
    Bits(u32),
    /// PKCS#11 has no room for the label.
    #[error("a token's label is 1 to 32 bytes")]
    TokenLabel,
    /// Something on the device has the label already.
    #[error("`{0}` exists already")]
    Exists(String),
    /// No slot holds an uninitialised token.
    #[error("the module has no free slot")]
    NoFreeSlot,
    /// The new key did not do what it should, and was destroyed.
    #[error("the new key is unfit and was destroyed: {0}")]
    Unfit(String),
    /// The device failed.
    #[error("{0}")]
    Device(String),
}

impl From<Fault> for KeygenError {
    fn from(fault: Fault) -> Self {
        Self::Device(fault.to_string())
    }
}

/// Initialises the module's first free slot (`SoftHSM` always has one) with a token of this label, and sets its
/// user PIN. A label that a token has already is refused.
///
/// # Errors
/// Says what the module refused.
pub fn init_token(module: &Path, so_pin: &SecretString, pin: &SecretString, label: &str) -> Result<(), KeygenError> {
    if !(1..=TOKEN_LABEL_BYTES_MAX).contains(&label.len()) {
        return Err(KeygenError::TokenLabel);
    }
    let lease = Module::load(module)?.enter()?;
    let pkcs11 = lease.pkcs11();
    let mut free = None;
    for slot in pkcs11.get_slots_with_token().map_err(Fault::from)? {
        let info = pkcs11.get_token_info(slot).map_err(Fault::from)?;
        if !info.token_initialized() {
            free = free.or(Some(slot));
        } else if trimmed(info.label()) == label {
            return Err(KeygenError::Exists(label.to_owned()));
        }
    }
    let slot = free.ok_or(KeygenError::NoFreeSlot)?;
    pkcs11.init_token(slot, so_pin, label).map_err(Fault::from)?;
    let session = pkcs11.open_rw_session(slot).map_err(Fault::from)?;
    session.login(UserType::So, Some(so_pin)).map_err(Fault::from)?;
    session.init_pin(pin).map_err(Fault::from)?;
    Ok(())
}

/// Makes an RSA key that cannot leave its token, and tries it: its public half is returned only after a test
/// signature verified. A label that anything on the token has already is refused.
///
/// # Errors
/// Says what the token refused or the new key failed.
pub fn generate(config: &TokenConfig, label: &Kid, bits: u32) -> Result<PublicKey, KeygenError> {
    if !usize::try_from(bits).is_ok_and(|bits| (MODULUS_BITS_MIN..=MODULUS_BITS_MAX).contains(&bits)) {
        return Err(KeygenError::Bits(bits));
    }
    let device = Device::reach(config)?;
    let session = device.session(Access::Write)?;
    let name = label.as_str().as_bytes().to_vec();
    if !Device::find(&session, &[Attribute::Label(name.clone())])?.is_empty() {
        return Err(KeygenError::Exists(label.to_string()));
    }
    let pair = session
        .generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public_template(&name, bits), &private_template(&name))
        .map_err(Fault::from)?;
    try_out(&device, &session, pair.1, label).map_err(|why| {
        for handle in [pair.0, pair.1] {
            if let Err(error) = session.destroy_object(handle) {
                tracing::error!(key = %label, why = %Fault::from(error), "the unfit key could not be destroyed");
            }
        }
        KeygenError::Unfit(why)
    })
}

/// The public half of a key that the token holds already, by the same trial as a new one's.
///
/// # Errors
/// Where the token holds no such key, or several, or the key fails the trial.
pub fn public_key(config: &TokenConfig, label: &Kid) -> Result<PublicKey, KeygenError> {
    let device = Device::reach(config)?;
    let session = device.session(Access::Read)?;
    let wanted = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(label.as_str().as_bytes().to_vec())];
    match Device::find(&session, &wanted)?.as_slice() {
        [private] => try_out(&device, &session, *private, label).map_err(KeygenError::Device),
        found => {
            Err(KeygenError::Device(format!("`{label}` names {} private keys on the token, not one", found.len())))
        }
    }
}

fn try_out(
    device: &Device<'_>,
    session: &Session<'_>,
    private: ObjectHandle,
    label: &Kid,
) -> Result<PublicKey, String> {
    let text = |fault: Fault| fault.to_string();
    check_never_left(session, private).map_err(text)?;
    let (modulus, exponent) = public_half(session, private).map_err(text)?;
    let key = PublicKey::new(label.clone(), &modulus, &exponent).map_err(|error| error.to_string())?;
    let input = SigningInput::probe(Uuid::now_v7().into_bytes());
    let signature = device.sign(session, private, &input).map_err(text)?;
    if key.verifies(input.bytes(), &signature) { Ok(key) } else { Err("its test signature does not verify".to_owned()) }
}

/// `CKA_VERIFY` is left out, since TPMs refuse it beside a false `CKA_DECRYPT`.
fn public_template(name: &[u8], bits: u32) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::ModulusBits(u64::from(bits).into()),
        Attribute::PublicExponent(EXPONENT_65537.to_vec()),
        Attribute::Label(name.to_vec()),
        Attribute::Id(name.to_vec()),
    ]
}

/// Everything is said, since modules differ in their defaults, some towards extractable.
fn private_template(name: &[u8]) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Label(name.to_vec()),
        Attribute::Id(name.to_vec()),
    ]
}
