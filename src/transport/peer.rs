//! Who calls, from a client certificate whose chain was verified. Parsed once per connection. A certificate
//! that names no caller by the rules below names none at all: there is no falling back.

use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::{clock::UtcTime, domain::Caller};

/// Why a certificate names no caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// It cannot be read.
    #[error("the client certificate cannot be read")]
    Unreadable,
    /// It has no subject alternative name.
    #[error("the client certificate has no subject alternative name; give it one SPIFFE URI or one DNS name")]
    NoName,
    /// It has URIs, and they are not exactly one SPIFFE id of the trust domain.
    #[error("the client certificate must have exactly one URI name, a SPIFFE id of the trust domain `{0}`")]
    UnfitUri(String),
    /// It has no URI, and its DNS names are not exactly one plain name.
    #[error("the client certificate must have exactly one DNS name, without a wildcard")]
    UnfitDns,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Who it is; every call of an unidentified peer is refused with the reason.
    pub caller: Result<Caller, Unidentified>,
    /// When its certificate ends; the connection ends no later.
    pub not_after: UtcTime,
}

impl Peer {
    /// Reads the leaf of a verified chain. `trust_domain` is that of SPIFFE ids; where it is absent, a URI is unfit.
    #[must_use]
    pub fn of(leaf: &CertificateDer<'_>, trust_domain: Option<&str>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
            return Self { caller: Err(Unidentified::Unreadable), not_after: UtcTime::from_millis(0) };
        };
        let not_after = certificate.validity().not_after.timestamp().saturating_mul(1000);
        Self { caller: caller(&certificate, trust_domain), not_after: UtcTime::from_millis(not_after) }
    }
}

/// The common name is never looked at.
fn caller(certificate: &X509Certificate<'_>, trust_domain: Option<&str>) -> Result<Caller, Unidentified> {
    let extension = certificate.subject_alternative_name().map_err(|_| Unidentified::Unreadable)?;
    let names = &extension.ok_or(Unidentified::NoName)?.value.general_names;
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(name) => dns.push(*name),
            GeneralName::Invalid(..) => return Err(Unidentified::Unreadable),
            _ => {}
        }
    }
    match (uris.as_slice(), dns.as_slice()) {
        ([], [name]) => format!("dns:{}", name.to_ascii_lowercase()).parse().map_err(|_| Unidentified::UnfitDns),
        ([], []) => Err(Unidentified::NoName),
        ([], _) => Err(Unidentified::UnfitDns),
        (uris, _) => spiffe(uris, trust_domain.unwrap_or_default()),
    }
}

fn spiffe(uris: &[&str], trust_domain: &str) -> Result<Caller, Unidentified> {
    let unfit = || Unidentified::UnfitUri(trust_domain.to_owned());
    let [uri] = uris else { return Err(unfit()) };
    let domain = uri.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map(|(domain, _)| domain);
    if trust_domain.is_empty() || domain != Some(trust_domain) {
        return Err(unfit());
    }
    uri.parse().map_err(|_| unfit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn named(uris: &[&str], dns: &[&str]) -> Result<Caller, Unidentified> {
        let mut params = CertificateParams::default();
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        let dns = dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
        params.subject_alt_names = uris.chain(dns).collect();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Peer::of(certificate.der(), Some("a.example")).caller
    }

    #[test]
    fn one_fit_name_is_a_caller() {
        assert_eq!(named(&["spiffe://a.example/x"], &[]).unwrap().to_string(), "spiffe://a.example/x");
        assert_eq!(named(&["spiffe://a.example/x"], &["y.example"]).unwrap().to_string(), "spiffe://a.example/x");
        assert_eq!(named(&[], &["Y.example"]).unwrap().to_string(), "dns:y.example");
    }

    #[test]
    fn an_unfit_uri_never_falls_back_to_dns() {
        for uris in [
            &["spiffe://b.example/x"][..],
            &["spiffe://a.example"],
            &["https://a.example/x"],
            &["spiffe://a.example/x", "spiffe://a.example/y"],
            &["spiffe://a.example.evil/x"],
        ] {
            assert!(matches!(named(uris, &["y.example"]), Err(Unidentified::UnfitUri(_))), "{uris:?}");
        }
    }

    #[test]
    fn dns_names_must_be_one_and_plain() {
        assert_eq!(named(&[], &[]), Err(Unidentified::NoName));
        assert_eq!(named(&[], &["a.example", "b.example"]), Err(Unidentified::UnfitDns));
        assert_eq!(named(&[], &["*.a.example"]), Err(Unidentified::UnfitDns));
    }
}
