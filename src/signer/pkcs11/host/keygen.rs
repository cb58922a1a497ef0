//! Provisioning: a token's initialisation, for development, and the generation of a signing key. The gateway asks
//! for none of it; commands do.

use cryptoki::{
    context::Pkcs11,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, ObjectClass},
    session::{Session, UserType},
};
use secrecy::SecretString;

use super::{
    super::{fault::Fault, wire},
    device::{Access, Device, trimmed},
    key::{check_never_left, private_rsa, public_half, try_mechanisms},
};
use crate::{
    domain::Kid,
    jwk::{MODULUS_BITS_MAX, MODULUS_BITS_MIN, PublicKey},
    signer::locator::Locator,
};

const EXPONENT_65537: [u8; 3] = [1, 0, 1];
const TOKEN_LABEL_BYTES_MAX: usize = 32;
/// A token that lists more keys than this is told to be searched by other means.
const LISTED_MAX: usize = 1000;

/// Initialises the module's first free slot (`SoftHSM` always has one) with a token of this label, and sets its
/// user PIN. A label that a token has already is refused.
pub(super) fn init_token(pkcs11: &Pkcs11, label: &str, pin: &SecretString, so_pin: &SecretString) -> Result<(), Fault> {
    if !(1..=TOKEN_LABEL_BYTES_MAX).contains(&label.len()) {
        return Err(Fault::Invalid(format!("`{label}`: a token's label is 1 to {TOKEN_LABEL_BYTES_MAX} bytes")));
    }
    let mut free = None;
    for slot in pkcs11.get_slots_with_token()? {
        let info = pkcs11.get_token_info(slot)?;
        if !info.token_initialized() {
            free = free.or(Some(slot));
        } else if trimmed(info.label()) == label {
            return Err(Fault::Exists(label.to_owned()));
        }
    }
    let slot = free.ok_or_else(|| Fault::Device("the module has no free slot".to_owned()))?;
    pkcs11.init_token(slot, so_pin, label)?;
    let session = pkcs11.open_rw_session(slot)?;
    session.login(UserType::So, Some(so_pin))?;
    session.init_pin(pin)?;
    Ok(())
}

/// Makes an RSA key that cannot leave its token, and tries it: its public half is told only after a test
/// signature verified. A label that a private key on the token has already is refused.
pub(super) fn generate(device: &Device, ask: &wire::Generate) -> Result<wire::TriedKey, Fault> {
    if !usize::try_from(ask.bits).is_ok_and(|bits| (MODULUS_BITS_MIN..=MODULUS_BITS_MAX).contains(&bits)) {
        let bits = ask.bits;
        return Err(Fault::Invalid(format!("a key of {bits} bits is not made; it needs 2048 to 8192")));
    }
    let kid: Kid = ask.kid.parse().map_err(|fault| Fault::Invalid(format!("`{}`: {fault}", ask.kid)))?;
    let session = device.session(Access::Write)?;
    let name = kid.as_str().as_bytes().to_vec();
    let private = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(name.clone())];
    if !Device::find(&session, &private)?.is_empty() {
        return Err(Fault::Exists(kid.to_string()));
    }
    clear_leftovers(&session, &name)?;
    let (public, private) = (public_template(&name, ask.bits), private_template(&name));
    let pair = session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)?;
    try_new(device, &session, pair.1, &kid).map_err(|why| {
        let destroyed = [pair.0, pair.1].into_iter().all(|handle| session.destroy_object(handle).is_ok());
        let end = if destroyed { "and was destroyed" } else { "and could not be destroyed; destroy it by hand" };
        Fault::Unfit(format!("the new key is unfit {end}: {why}"))
    })
}

/// A generation that was killed half-way can leave a public key without its private key, which signs nothing. It
/// would stand in the way of the next. It is known by having the label for its id too.
fn clear_leftovers(session: &Session, name: &[u8]) -> Result<(), Fault> {
    let (label, id) = (Attribute::Label(name.to_vec()), Attribute::Id(name.to_vec()));
    let public = [Attribute::Class(ObjectClass::PUBLIC_KEY), label, id];
    for handle in Device::find(session, &public)? {
        session.destroy_object(handle)?;
    }
    Ok(())
}

fn try_new(
    device: &Device,
    session: &Session,
    private: cryptoki::object::ObjectHandle,
    kid: &Kid,
) -> Result<wire::TriedKey, Fault> {
    check_never_left(session, private)?;
    let (modulus, exponent) = public_half(session, private)?;
    let key = PublicKey::new(kid.clone(), &modulus, &exponent).map_err(|error| Fault::Unfit(error.to_string()))?;
    try_mechanisms(device, session, private, &key)?;
    let locator = Locator::uri_of(&device.facts().label, kid.as_str());
    Ok(wire::TriedKey { modulus, exponent, locator })
}

/// The private RSA keys that the token holds.
pub(super) fn list(device: &Device) -> Result<wire::Keys, Fault> {
    let session = device.session(Access::Read)?;
    let found = Device::find(&session, &private_rsa())?;
    if found.len() > LISTED_MAX {
        return Err(Fault::Invalid(format!("the token holds {} keys, too many to list", found.len())));
    }
    let token = &device.facts().label;
    let mut keys = Vec::new();
    for handle in found {
        let (mut name, mut id) = (None, None);
        for attribute in session.get_attributes(handle, &[AttributeType::Label, AttributeType::Id])? {
            match attribute {
                Attribute::Label(label) => name = String::from_utf8(label).ok().filter(|label| !label.is_empty()),
                Attribute::Id(bytes) if !bytes.is_empty() => id = Some(bytes),
                _ => {}
            }
        }
        let (modulus, exponent) = public_half(&session, handle)?;
        let unfit = check_never_left(&session, handle).err().map(|fault| fault.to_string());
        let locator = match (&name, &id) {
            (Some(label), _) => Locator::uri_of(token, label),
            (None, Some(id)) => Locator::uri_of_id(token, id),
            (None, None) => String::new(),
        };
        keys.push(wire::ListedKey { name, locator, modulus, exponent, unfit });
    }
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(wire::Keys { keys })
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
