//! Who calls, from a client certificate whose chain was verified. Parsed once per connection. A certificate
//! that names no caller by the rules below names none at all: there is no falling back. Where the CAs have changed since, the
//! chain is verified again before the next call.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::{clock::UtcTime, domain::Caller};

use super::live::Live;

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
    /// Its CA counted when the connection began and counts no more, or it has expired since.
    #[error(
        "the client certificate is not accepted any more; connect again with one of a CA that the gateway accepts now"
    )]
    Distrusted,
}

/// The other end of a connection.
pub struct Peer {
    caller: Result<Caller, Unidentified>,
    /// When its certificate ends; the connection ends no later.
    pub not_after: UtcTime,
    chain: Vec<CertificateDer<'static>>,
    live: Arc<Live>,
    /// How many times the settings had been swapped when its chain was last found good.
    good_at: AtomicU64,
}

impl Peer {
    /// Reads the leaf of a chain that was verified when the settings had been swapped `swaps` times. `trust_domain` is that
    /// of SPIFFE ids; where it is absent, a URI is unfit.
    #[must_use]
    pub fn of(chain: &[CertificateDer<'_>], trust_domain: Option<&str>, live: Arc<Live>, swaps: u64) -> Option<Self> {
        let (caller, not_after) = read(chain.first()?, trust_domain);
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Some(Self { caller, not_after, chain, live, good_at: AtomicU64::new(swaps) })
    }

    /// Who it is; every call of an unidentified peer is refused with the reason.
    ///
    /// # Errors
    /// Where its certificate names no caller, or its chain is not accepted any more.
    pub fn caller(&self) -> Result<&Caller, Unidentified> {
        let swaps = self.live.swaps();
        if self.good_at.load(Ordering::Acquire) != swaps {
            if !self.live.lets_in(&self.chain) {
                return Err(Unidentified::Distrusted);
            }
            self.good_at.store(swaps, Ordering::Release);
        }
        self.caller.as_ref().map_err(Clone::clone)
    }

    /// Waits until its chain is not accepted any more.
    pub(super) async fn distrusted(&self) {
        let mut swapped = self.live.watch();
        while self.caller() != Err(Unidentified::Distrusted) {
            if swapped.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Who a leaf names, and when it ends.
fn read(leaf: &CertificateDer<'_>, trust_domain: Option<&str>) -> (Result<Caller, Unidentified>, UtcTime) {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
        return (Err(Unidentified::Unreadable), UtcTime::from_millis(0));
    };
    let not_after = certificate.validity().not_after.timestamp().saturating_mul(1000);
    (caller(&certificate, trust_domain), UtcTime::from_millis(not_after))
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
        read(certificate.der(), Some("a.example")).0
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
