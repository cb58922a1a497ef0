//! TLS settings. Callers: mutual TLS 1.3, no resumption. The public: TLS 1.2 and 1.3, no client certificate.
//! No setting turns validation off.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};

use super::certificate::{Facts, Unread};
use crate::{
    clock::UtcTime,
    config::{GrpcListener, JwksListener},
};

/// Why TLS cannot be set up: which file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("`{file}`: {why}")]
pub struct TlsError {
    file: String,
    why: String,
}

impl TlsError {
    fn new(file: &Path, why: impl std::fmt::Display) -> Self {
        Self { file: file.display().to_string(), why: why.to_string() }
    }
}

/// The crypto provider, named wherever one is needed so that no default can be another.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Mutual TLS 1.3 for gRPC. Resumption is off: a resumed session would skip the check of the client's
/// certificate.
///
/// # Errors
/// Names the file that cannot be used.
pub fn mutual(listener: &GrpcListener) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = identity(&listener.certificate, &listener.private_key)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&listener.client_ca)?), provider())
        .build()
        .map_err(|fault| TlsError::new(&listener.client_ca, fault))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|fault| TlsError::new(&listener.certificate, fault))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|fault| misfit(&listener.certificate, &listener.private_key, &fault))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// TLS for the public JWKS.
///
/// # Errors
/// Names the file that cannot be used.
pub fn public(listener: &JwksListener) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = identity(&listener.certificate, &listener.private_key)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|fault| TlsError::new(&listener.certificate, fault))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|fault| misfit(&listener.certificate, &listener.private_key, &fault))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Why verifiers would not take the certificate of the public listener at `now`: it is self-signed, or its time is not now.
///
/// # Errors
/// Where it cannot be read, or they would not.
pub fn is_fit_for_the_public(listener: &JwksListener, now: UtcTime) -> Result<(), TlsError> {
    let file = &listener.certificate;
    let Facts { is_self_signed, from, until, .. } = leaf(file)?;
    match () {
        () if is_self_signed => {
            Err(TlsError::new(file, "is self-signed, which the operator's fetcher refuses; have a public CA issue one"))
        }
        () if until <= now => Err(TlsError::new(file, format!("has expired at {until}; renew it"))),
        () if from > now => Err(TlsError::new(file, format!("is valid from {from} on; give one that is valid now"))),
        () => Ok(()),
    }
}

/// When the certificate of this file ends.
///
/// # Errors
/// Where it cannot be read.
pub fn ends(file: &Path) -> Result<UtcTime, TlsError> {
    leaf(file).map(|leaf| leaf.until)
}

/// What the first certificate of a chain says.
fn leaf(file: &Path) -> Result<Facts, TlsError> {
    let chain = certificates(file)?;
    let first = chain.first().ok_or(Unread).and_then(Facts::of);
    first.map_err(|fault| TlsError::new(file, fault))
}

/// TLS for the project's own client commands.
///
/// # Errors
/// Names the file that cannot be used.
pub fn client(ca: &Path, identity_files: Option<(&Path, &Path)>, alpn: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    // Only gateways ask for a certificate; what is public may be served by older software.
    let versions: &[_] = if identity_files.is_some() { &[&TLS13] } else { &[&TLS13, &TLS12] };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|fault| TlsError::new(ca, fault))?
        .with_root_certificates(roots(ca)?);
    let mut config = match identity_files {
        None => builder.with_no_client_auth(),
        Some((certificate, key_file)) => {
            let (chain, key) = identity(certificate, key_file)?;
            builder.with_client_auth_cert(chain, key).map_err(|fault| misfit(certificate, key_file, &fault))?
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// Whether this is the private key of this certificate.
///
/// # Errors
/// Which of the files cannot be used, or that they do not belong together.
pub fn belong_together(certificate: &Path, key: &Path) -> Result<(), TlsError> {
    let (chain, secret) = identity(certificate, key)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|fault| TlsError::new(certificate, fault))?;
    let taken = builder.with_no_client_auth().with_single_cert(chain, secret);
    taken.map(drop).map_err(|fault| misfit(certificate, key, &fault))
}

fn identity(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|fault| TlsError::new(key, unread(&fault, "a private key")))?;
    Ok((chain, key))
}

fn unread(fault: &pem::Error, what: &str) -> String {
    match fault {
        pem::Error::Io(fault) => format!("cannot be read: {fault}; give a file with {what} in PEM"),
        pem::Error::NoItemsFound => format!("holds none; give a file with {what} in PEM"),
        fault => format!("cannot be read: {fault}; give a file with {what} in PEM"),
    }
}

/// Why a certificate and a key are not used together.
fn misfit(certificate: &Path, key: &Path, fault: &rustls::Error) -> TlsError {
    let certificate_file = certificate.display();
    match fault {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::new(key, format!("is not the key of `{certificate_file}`; give the one that belongs to it"))
        }
        rustls::Error::General(_) => TlsError::new(key, "is no private key that can be used; give an ECDSA or RSA one"),
        fault => TlsError::new(certificate, fault),
    }
}

/// The certificates of a PEM file; at least one.
///
/// # Errors
/// Where there is none, or the file cannot be read.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|fault| TlsError::new(file, unread(&fault, "certificates")))?;
    let none = || TlsError::new(file, unread(&pem::Error::NoItemsFound, "certificates"));
    if chain.is_empty() { Err(none()) } else { Ok(chain) }
}

/// The CAs of a file.
///
/// # Errors
/// Where one cannot be used.
pub fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(file)? {
        store.add(certificate).map_err(|fault| TlsError::new(file, fault))?;
    }
    Ok(store)
}
