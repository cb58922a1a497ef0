//! What a certificate says of itself, and whether a chain leads to a CA: for those who tell of it before a peer does.

use std::{fmt, path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{ExtendedKeyUsage, GeneralName, KeyUsage},
    public_key::PublicKey,
    time::ASN1Time,
};

use super::tls::provider;
use crate::clock::UtcTime;

/// The weakest keys that are still taken, by bits.
const RSA_BITS_MIN: usize = 2048;
const EC_BITS_MIN: usize = 256;
/// Signatures over SHA-1 or MD5, which can be forged.
const WEAK: [&str; 4] = ["1.2.840.113549.1.1.4", "1.2.840.113549.1.1.5", "1.2.840.10045.4.1", "1.2.840.10040.4.3"];

/// What a certificate says of itself.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Whose it is.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// Whether that is the same.
    pub is_self_signed: bool,
    /// From when on it is valid.
    pub from: UtcTime,
    /// Until when.
    pub until: UtcTime,
    /// Its alternative names: DNS names, addresses and URIs.
    pub names: Vec<String>,
    /// Whether it may issue others.
    pub is_ca: bool,
    /// That it may sign what a handshake holds, where it says what its key is for.
    pub signs: Option<bool>,
    /// That it may sign certificates, where it says what its key is for.
    pub issues: Option<bool>,
    /// That it may be a server's and a client's, where it says whose.
    pub purposes: Option<(bool, bool)>,
    /// Its key, as `EC 256`.
    pub key: String,
    /// What of it is weaker than may be.
    pub weakness: Option<String>,
}

/// That it is no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot be read as X.509; issue it anew")]
pub struct Unread;

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Where it is none.
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, Unread> {
        let (_, read) = x509_parser::parse_x509_certificate(der).map_err(|_| Unread)?;
        let at = |at: ASN1Time| UtcTime::from_millis(at.timestamp().saturating_mul(1000));
        let (key, is_weak) = key_of(&read);
        let signature = read.signature_algorithm.algorithm.to_id_string();
        let weakness = if WEAK.contains(&signature.as_str()) {
            Some(format!("its signature is over SHA-1 or MD5 ({signature})"))
        } else {
            is_weak.then(|| format!("its key is {key}"))
        };
        let usage: Option<&KeyUsage> = read.key_usage().ok().flatten().map(|extension| extension.value);
        let purposes: Option<&ExtendedKeyUsage<'_>> =
            read.extended_key_usage().ok().flatten().map(|extension| extension.value);
        Ok(Self {
            subject: read.subject().to_string(),
            issuer: read.issuer().to_string(),
            is_self_signed: read.issuer() == read.subject(),
            from: at(read.validity().not_before),
            until: at(read.validity().not_after),
            names: names_of(&read),
            is_ca: read.is_ca(),
            signs: usage.map(KeyUsage::digital_signature),
            issues: usage.map(KeyUsage::key_cert_sign),
            purposes: purposes.map(|of| (of.any || of.server_auth, of.any || of.client_auth)),
            key,
            weakness,
        })
    }
}

impl fmt::Display for Facts {
    /// Who it is, for people: its first name or its subject.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.first() {
            Some(name) => write!(f, "`{name}`"),
            None => write!(f, "`{}`", self.subject),
        }
    }
}

fn key_of(read: &X509Certificate<'_>) -> (String, bool) {
    match read.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => (format!("RSA {}", key.key_size()), key.key_size() < RSA_BITS_MIN),
        Ok(PublicKey::EC(key)) => (format!("EC {}", key.key_size()), key.key_size() < EC_BITS_MIN),
        // Ed25519 and what comes after it; what TLS does not take, the listener refuses.
        _ => (read.public_key().algorithm.algorithm.to_id_string(), false),
    }
}

fn names_of(read: &X509Certificate<'_>) -> Vec<String> {
    let names = read.subject_alternative_name().ok().flatten().map(|extension| &extension.value.general_names);
    let told = names.into_iter().flatten().filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(four) => Some(std::net::Ipv4Addr::from(four).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|sixteen| std::net::Ipv6Addr::from(sixteen).to_string()),
        },
        _ => None,
    });
    told.collect()
}

/// The first certificate of a chain whose issuer is not the next one.
#[must_use]
pub fn out_of_order(chain: &[Facts]) -> Option<&Facts> {
    let pairs = chain.iter().zip(chain.iter().skip(1));
    pairs.into_iter().find(|(one, next)| one.issuer != next.subject).map(|(one, _)| one)
}

/// Whether a verifier that trusts `roots` takes the chain of a server of this name at `now`.
///
/// # Errors
/// Why not.
pub fn verifies(
    chain: &[CertificateDer<'_>],
    roots: RootCertStore,
    name: &ServerName<'_>,
    now: UtcTime,
) -> Result<(), rustls::Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let verifier = verifier.map_err(|fault| rustls::Error::General(fault.to_string()))?;
    let none = || rustls::Error::General("there is no certificate".to_owned());
    let (leaf, others) = chain.split_first().ok_or_else(none)?;
    let now = UnixTime::since_unix_epoch(now.since(UtcTime::from_millis(0)));
    verifier.verify_server_cert(leaf, others, name, &[], now).map(drop)
}

/// The facts of every certificate of a file, the file's first one first.
///
/// # Errors
/// Which cannot be read, and why.
pub fn read(file: &Path) -> Result<(Vec<CertificateDer<'static>>, Vec<Facts>), String> {
    let chain = super::tls::certificates(file).map_err(|fault| fault.to_string())?;
    let facts = chain.iter().map(Facts::of).collect::<Result<Vec<_>, _>>();
    facts.map(|facts| (chain, facts)).map_err(|fault| format!("`{}`: {fault}", file.display()))
}
