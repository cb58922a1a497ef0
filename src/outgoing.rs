//! TLS towards the ledger's server and the collector. Its files are read again for each connection, so that what replaces a
//! CA or a certificate there needs no restart here.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ClientConfig;

use crate::transport::tls::{self, TlsError};

/// The files, and what they last held that can be used.
#[derive(Debug)]
pub struct Outgoing {
    ca: PathBuf,
    identity: Option<(PathBuf, PathBuf)>,
    alpn: &'static [u8],
    kept: ArcSwap<ClientConfig>,
    /// Why they could not be used at the last look, which is told once.
    fault: Mutex<Option<String>>,
}

impl Outgoing {
    /// Servers of this `ca` alone are taken; `identity` is the certificate and the private key that are shown to them.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn read(ca: &Path, identity: Option<(&Path, &Path)>, alpn: &'static [u8]) -> Result<Self, TlsError> {
        let kept = ArcSwap::new(tls::client(ca, identity, alpn)?);
        let identity = identity.map(|(certificate, key)| (certificate.to_owned(), key.to_owned()));
        Ok(Self { ca: ca.to_owned(), identity, alpn, kept, fault: Mutex::default() })
    }

    /// The settings of the next connection, by files that are read now. Files that cannot be used now, as while they are being replaced, leave them what they were.
    pub fn now(&self) -> Arc<ClientConfig> {
        let identity = self.identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        let fault = match tls::client(&self.ca, identity, self.alpn) {
            Ok(settings) => {
                self.kept.store(settings);
                None
            }
            Err(fault) => Some(fault.to_string()),
        };
        let mut told = self.fault.lock();
        if let Some(why) = fault.as_ref().filter(|why| told.as_ref() != Some(why)) {
            tracing::error!(why, "connections are made with the TLS files of before: the new ones cannot be used");
        }
        *told = fault;
        self.kept.load_full()
    }
}
