//! TLS settings. Callers: mutual TLS 1.3, no resumption. The public: TLS 1.2 and 1.3, no client certificate.
//! No setting turns validation off.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};

use secrecy::ExposeSecret as _;

use super::certificate::{Facts, Unread};
use crate::{
    clock::UtcTime,
    config::{GrpcListener, JwksListener},
    domain::sha256,
};

use super::live::{Files, Material, Settings};

/// Why TLS cannot be set up: which file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("`{file}`: {why}")]
pub struct TlsError {
    file: String,
    why: String,
}

impl TlsError {
    pub(super) fn new(file: &Path, why: impl std::fmt::Display) -> Self {
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
pub fn mutual(listener: &GrpcListener) -> Result<Settings, TlsError> {
    settings(&listener.files().read()?)
}

/// TLS for the public JWKS.
///
/// # Errors
/// Names the file that cannot be used.
pub fn public(listener: &JwksListener) -> Result<Settings, TlsError> {
    settings(&listener.files().read()?)
}

/// Settings of what the files of a front hold.
pub(super) fn settings(material: &Material) -> Result<Settings, TlsError> {
    let Files { certificate, private_key, client_ca } = &material.files;
    let chain = certificates_in(&material.certificate, certificate)?;
    let key = PrivateKeyDer::from_pem_slice(material.private_key.expose_secret())
        .map_err(|fault| TlsError::new(private_key, unread(&fault, "a private key")))?;
    let clients = match (client_ca, &material.client_ca) {
        (Some(file), Some(pem)) => Some(clients(pem, file)?),
        _ => None,
    };
    let Facts { until: ends, .. } = leaf_of(&chain, certificate)?;
    let leaf = chain.first().map(|leaf| sha256(leaf)).unwrap_or_default();
    let versions: &[_] = if clients.is_some() { &[&TLS13] } else { &[&TLS13, &TLS12] };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|fault| TlsError::new(certificate, fault))?;
    let builder = match &clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_single_cert(chain, key).map_err(|fault| misfit(certificate, private_key, &fault))?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    if clients.is_some() {
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    } else {
        server.alpn_protocols.push(b"http/1.1".to_vec());
    }
    Ok(Settings { server: Arc::new(server), clients, ends, certificate: leaf, fingerprint: material.fingerprint() })
}

fn clients(pem: &[u8], file: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(roots_in(&certificates_in(pem, file)?, file)?);
    WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(|fault| TlsError::new(file, fault))
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

/// What the first certificate of a chain says.
fn leaf(file: &Path) -> Result<Facts, TlsError> {
    leaf_of(&certificates(file)?, file)
}

fn leaf_of(chain: &[CertificateDer<'_>], file: &Path) -> Result<Facts, TlsError> {
    let first = chain.first().ok_or(Unread).and_then(Facts::of);
    first.map_err(|fault| TlsError::new(file, fault))
}

/// TLS towards a server: of the project's own client commands, and of a gateway towards its ledger and its collector.
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
    let pem = fs::read(file).map_err(|fault| TlsError::new(file, unread(&pem::Error::Io(fault), "certificates")))?;
    certificates_in(&pem, file)
}

fn certificates_in(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fault = |fault: &pem::Error| TlsError::new(file, unread(fault, "certificates"));
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|found| fault(&found))?;
    if chain.is_empty() { Err(fault(&pem::Error::NoItemsFound)) } else { Ok(chain) }
}

/// The CAs of a file.
///
/// # Errors
/// Where one cannot be used.
pub fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    roots_in(&certificates(file)?, file)
}

fn roots_in(certificates: &[CertificateDer<'static>], file: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate.clone()).map_err(|fault| TlsError::new(file, fault))?;
    }
    Ok(store)
}
