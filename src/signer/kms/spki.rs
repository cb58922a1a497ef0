//! The public half of a key as `GetPublicKey` gives it: a DER `SubjectPublicKeyInfo`.

use x509_parser::prelude::FromDer as _;
use x509_parser::{public_key::PublicKey, x509::SubjectPublicKeyInfo};

/// Modulus and exponent of an RSA key, big-endian; nothing where the DER holds anything else, or more.
pub(super) fn rsa(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
    match info.parsed().ok()? {
        PublicKey::RSA(key) if rest.is_empty() => Some((key.modulus.to_vec(), key.exponent.to_vec())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::AsDer as _,
        rsa::{KeyPair, KeySize},
        signature::KeyPair as _,
    };

    use super::*;
    use crate::jwk::PublicKey as Pin;

    #[test]
    fn modulus_and_exponent_are_those_of_the_key() {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = pair.public_key().as_der().unwrap();
        let (modulus, exponent) = rsa(der.as_ref()).unwrap();
        let pin = Pin::new("quote-signing".parse().unwrap(), &modulus, &exponent).unwrap();
        assert!(pin.same_key(pair.public_key().modulus().big_endian_without_leading_zero(), &[1, 0, 1]));
        let longer = [der.as_ref(), &[0]].concat();
        assert!(rsa(&longer).is_none() && rsa(&der.as_ref()[1..]).is_none() && rsa(b"").is_none());
    }
}
