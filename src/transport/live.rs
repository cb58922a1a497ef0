//! A front's TLS settings in force, and the files they come from. Changed files are read and swapped in without ending a
//! connection: each handshake takes the settings of its moment. Whoever was let in by a CA that counts no more is asked again
//! before its next call.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{Context, SHA256};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use secrecy::{ExposeSecret as _, SecretSlice};
use tokio::sync::watch;

use crate::clock::{Clock as _, SystemClock, UtcTime};

use super::tls::{self, TlsError};

/// The files of a front's TLS, all PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// The server's certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub private_key: PathBuf,
    /// The CAs of client certificates; absent where clients show none.
    pub client_ca: Option<PathBuf>,
}

/// What the files hold at one moment.
pub struct Material {
    pub(super) files: Files,
    pub(super) certificate: Vec<u8>,
    pub(super) private_key: SecretSlice<u8>,
    pub(super) client_ca: Option<Vec<u8>>,
}

/// Whether two looks at the files have found the same; says nothing of what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// What a front's handshakes are held to.
pub struct Settings {
    /// What a handshake takes.
    pub server: Arc<ServerConfig>,
    /// Who is let in; absent where clients show no certificate.
    pub(super) clients: Option<Arc<dyn ClientCertVerifier>>,
    /// When the certificate that is served ends.
    pub ends: UtcTime,
    /// The SHA-256 of that certificate, for records.
    pub certificate: [u8; 32],
    /// Of what they were made.
    pub fingerprint: Fingerprint,
}

/// The settings in force, which can be swapped.
pub struct Live {
    settings: ArcSwap<Settings>,
    swapped: watch::Sender<u64>,
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn read(&self) -> Result<Material, TlsError> {
        let read = |file: &Path, what| fs::read(file).map_err(|fault| unreadable(file, &fault, what));
        Ok(Material {
            certificate: read(&self.certificate, "certificates")?,
            private_key: SecretSlice::from(read(&self.private_key, "a private key")?),
            client_ca: self.client_ca.as_deref().map(|file| read(file, "certificates")).transpose()?,
            files: self.clone(),
        })
    }
}

fn unreadable(file: &Path, fault: &io::Error, what: &str) -> TlsError {
    TlsError::new(file, format!("cannot be read: {fault}; give a file with {what} in PEM"))
}

impl Material {
    /// What it is compared by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut digest = Context::new(&SHA256);
        for part in
            [&*self.certificate, self.private_key.expose_secret(), self.client_ca.as_deref().unwrap_or_default()]
        {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest.finish().as_ref());
        Fingerprint(fingerprint)
    }
}

impl Live {
    /// A front that begins with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self { settings: ArcSwap::from_pointee(settings), swapped: watch::Sender::new(0) })
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Puts others in force: for the next handshake, and for the next call of everyone who is connected.
    pub fn swap(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
        self.swapped.send_modify(|times| *times += 1);
    }

    /// How many times they were swapped.
    #[must_use]
    pub fn swaps(&self) -> u64 {
        *self.swapped.borrow()
    }

    /// Tells when they are.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.swapped.subscribe()
    }

    /// Whether a client with this chain would be let in now.
    #[must_use]
    pub fn lets_in(&self, chain: &[CertificateDer<'_>]) -> bool {
        let settings = self.settings.load();
        let (Some(verifier), Some((leaf, intermediates))) = (&settings.clients, chain.split_first()) else {
            return false;
        };
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(
            u64::try_from(SystemClock.now().millis()).unwrap_or_default(),
        ));
        verifier.verify_client_cert(leaf, intermediates, now).is_ok()
    }
}

impl Settings {
    /// Mutual TLS 1.3 or, without CAs of clients, TLS for the public.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn of(material: &Material) -> Result<Self, TlsError> {
        tls::settings(material)
    }
}
