//! One key on the token: how it is found, what it must prove before it signs, and how it is asked to. Which jobs
//! are its, and what follows from its failing, is left to `worker` and to the gateway.

use cryptoki::{
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    super::{fault::Fault, wire},
    device::{self, Device, Rs256},
};
use crate::{domain::Kid, jwk::PublicKey, jws::SigningInput, signer::locator::Locator};

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

/// What a key lacks that cannot be used without somebody who types.
const ALWAYS_AUTHENTICATE: &str = "it wants its PIN for every signature (CKA_ALWAYS_AUTHENTICATE)";

/// A key that policy pins and that was tried out.
pub(super) struct Key {
    public: PublicKey,
    locator: Locator,
    attributes: wire::Attributes,
    how: Rs256,
}

impl Key {
    /// Finds the key that is asked for, compares it, and finds out by test signatures how it signs.
    pub(super) fn bind(device: &Device, session: &Session, ask: &wire::Bind) -> Result<(Self, wire::Bound), Fault> {
        let public = PublicKey::from_jwk(&ask.jwk).map_err(|fault| Fault::Unfit(fault.to_string()))?;
        let locator = Locator::parse(&ask.locator).map_err(|fault| Fault::Unfit(fault.to_string()))?;
        let mut key = Self { public, locator, attributes: ask.attributes(), how: Rs256::Whole };
        let (handle, warning) = key.find(device, session)?;
        key.how = try_mechanisms(device, session, handle, &key.public)?;
        let bound = wire::Bound { mechanism: key.how.name().to_owned(), warning };
        Ok((key, bound))
    }

    /// Finds the key, and compares it with what policy pins. Tells what it does not state, where it signs all the same.
    pub(super) fn find(&self, device: &Device, session: &Session) -> Result<(ObjectHandle, Option<String>), Fault> {
        let handle = find_one(device, session, &self.locator)?;
        let (modulus, exponent) = public_half(session, handle)?;
        if !self.public.same_key(&modulus, &exponent) {
            return Err(Fault::Unfit("it is not the key that policy pins".to_owned()));
        }
        let warning = judge_attributes(session, handle, self.attributes)?;
        Ok((handle, warning))
    }

    /// Signs by the mechanism that was found out.
    pub(super) fn sign(&self, session: &Session, handle: ObjectHandle, input: &SigningInput) -> Result<Vec<u8>, Fault> {
        device::sign(session, handle, self.how, input)
    }
}

/// Tries a key out whose public half is not known yet.
pub(super) fn try_out(device: &Device, session: &Session, ask: &wire::TryOut) -> Result<wire::TriedKey, Fault> {
    let locator =
        Locator::parse(&ask.locator).map_err(|fault| Fault::Invalid(format!("`{}`: {fault}", ask.locator)))?;
    let kid: Kid = ask.kid.parse().map_err(|fault| Fault::Invalid(format!("`{}`: {fault}", ask.kid)))?;
    let handle = find_one(device, session, &locator)?;
    judge_attributes(session, handle, ask.attributes())?;
    let (modulus, exponent) = public_half(session, handle)?;
    let public = PublicKey::new(kid, &modulus, &exponent).map_err(|error| Fault::Unfit(error.to_string()))?;
    try_mechanisms(device, session, handle, &public)?;
    Ok(wire::TriedKey { modulus, exponent, locator: ask.locator.clone() })
}

/// Tells what the token shows of a key, whatever that is, and has it sign.
pub(super) fn examine(device: &Device, session: &Session, locator: &str) -> Result<wire::ExaminedKey, Fault> {
    let locator = Locator::parse(locator).map_err(|fault| Fault::Invalid(format!("`{locator}`: {fault}")))?;
    let handle = find_one(device, session, &locator)?;
    let (modulus, exponent) = public_half(session, handle)?;
    let (lacks, remarks) = (lacking(session, handle)?, remarks(session, handle)?);
    let public = "examined".parse::<Kid>().map_err(|fault| fault.to_string());
    let public = public.and_then(|kid| PublicKey::new(kid, &modulus, &exponent).map_err(|fault| fault.to_string()));
    let tried =
        public.and_then(|public| try_mechanisms(device, session, handle, &public).map_err(|fault| fault.to_string()));
    let (mechanism, fault) = tried.map_or_else(|why| (None, why), |how| (Some(how.name().to_owned()), String::new()));
    Ok(wire::ExaminedKey { modulus, exponent, lacks, remarks, mechanism, fault })
}

/// The first mechanism whose test signature verifies.
pub(super) fn try_mechanisms(
    device: &Device,
    session: &Session,
    handle: ObjectHandle,
    public: &PublicKey,
) -> Result<Rs256, Fault> {
    let mut first = None;
    for how in device.mechanisms() {
        let input = SigningInput::fresh_probe();
        let fault = match device::sign(session, handle, *how, &input) {
            Ok(signature) if public.verifies(input.bytes(), &signature) => return Ok(*how),
            Ok(_) => Fault::Device(format!("its test signature by {} does not verify", how.name())),
            Err(fault) => fault,
        };
        first = first.or(Some(fault));
    }
    Err(first.unwrap_or_else(|| Fault::Device("the token has no mechanism for it".to_owned())))
}

fn find_one(device: &Device, session: &Session, locator: &Locator) -> Result<ObjectHandle, Fault> {
    check_token(device, locator)?;
    match Device::find(session, &template(locator))?.as_slice() {
        [handle] => Ok(*handle),
        [] if device.is_present() => Err(Fault::Missing(locator.to_string())),
        [] => Err(Fault::Device("the token no longer answers".to_owned())),
        several => Err(Fault::Unfit(format!("`{locator}` names {} private keys", several.len()))),
    }
}

fn check_token(device: &Device, locator: &Locator) -> Result<(), Fault> {
    let facts = device.facts();
    for (attribute, wanted, is) in [
        ("token", locator.token(), &facts.label),
        ("serial", locator.serial(), &facts.serial),
        ("manufacturer", locator.manufacturer(), &facts.manufacturer),
        ("model", locator.model(), &facts.model),
    ] {
        if let Some(wanted) = wanted.filter(|wanted| wanted != is) {
            return Err(Fault::Unfit(format!("its locator wants the {attribute} `{wanted}`, and this is `{is}`")));
        }
    }
    Ok(())
}

fn template(locator: &Locator) -> Vec<Attribute> {
    let label = locator.object().map(|label| Attribute::Label(label.as_bytes().to_vec()));
    let id = locator.id().map(|id| Attribute::Id(id.to_vec()));
    private_rsa().into_iter().chain(label).chain(id).collect()
}

/// What every signing key is.
pub(super) fn private_rsa() -> [Attribute; 2] {
    [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::RSA)]
}

/// Refuses a private key that does not state all of [`NEVER_LEFT`], or that wants its PIN for every signature.
/// What the token does not say is not proven.
pub(super) fn check_never_left(session: &Session, handle: ObjectHandle) -> Result<(), Fault> {
    let lacking = lacking(session, handle)?;
    match lacking.first().map(String::as_str) {
        None => Ok(()),
        Some(ALWAYS_AUTHENTICATE) => Err(Fault::Unfit(ALWAYS_AUTHENTICATE.to_owned())),
        Some(_) => Err(Fault::Unfit(format!("the token does not show that it never left it: {}", lacking.join(", ")))),
    }
}

/// What of [`NEVER_LEFT`] a private key does not state; that it wants its PIN for every signature comes first.
fn lacking(session: &Session, handle: ObjectHandle) -> Result<Vec<String>, Fault> {
    let mut types: Vec<_> = NEVER_LEFT.iter().map(Attribute::attribute_type).collect();
    types.push(AttributeType::AlwaysAuthenticate);
    let stated = session.get_attributes(handle, &types)?;
    let asks = stated.contains(&Attribute::AlwaysAuthenticate(true)).then(|| ALWAYS_AUTHENTICATE.to_owned());
    let lacking = NEVER_LEFT.iter().filter(|wanted| !stated.contains(wanted));
    Ok(asks.into_iter().chain(lacking.map(|wanted| wanted.attribute_type().to_string())).collect())
}

/// What a key may do beside signing, which is worth a remark.
fn remarks(session: &Session, handle: ObjectHandle) -> Result<Vec<String>, Fault> {
    let more = session.get_attributes(handle, &[AttributeType::Decrypt, AttributeType::Unwrap])?;
    let may_more = [Attribute::Decrypt(true), Attribute::Unwrap(true)].iter().any(|use_| more.contains(use_));
    let told = may_more.then(|| "it may also decrypt or unwrap; a signing key should only sign".to_owned());
    Ok(told.into_iter().collect())
}

/// What policy makes of the attributes; with `warn`, what they lack. A key that may do more than sign is warned of.
fn judge_attributes(
    session: &Session,
    handle: ObjectHandle,
    policy: wire::Attributes,
) -> Result<Option<String>, Fault> {
    if policy == wire::Attributes::Off {
        return Ok(None);
    }
    match (check_never_left(session, handle), policy) {
        (Err(Fault::Unfit(why)), wire::Attributes::Warn) => Ok(Some(why)),
        (Err(fault), _) => Err(fault),
        (Ok(()), _) => Ok(remarks(session, handle)?.pop()),
    }
}

/// Modulus and public exponent of a key, which its private object states too.
pub(super) fn public_half(session: &Session, handle: ObjectHandle) -> Result<(Vec<u8>, Vec<u8>), Fault> {
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
