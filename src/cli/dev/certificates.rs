//! The development environment's CA and certificates. They name this machine's loopback and nothing else.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

use crate::cli::Failure;

use super::files::write;

/// The SPIFFE trust domain of the shipped bundle's callers.
pub(in crate::cli) const TRUST_DOMAIN: &str = "dev.quotesign.example";
/// The shipped bundle's callers.
const CALLERS: [&str; 3] = ["pricing", "operator", "auditor"];
const VALID_DAYS: i64 = 3650;

/// Makes a CA, the server's certificate, and one for each caller, of the bundle or beside it.
pub(super) fn make(dir: &Path, more: &[String]) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|fault| Failure::failed(format!("{}: {fault}", dir.display())))?;
    let (ca, ca_key) = (authority(), key()?);
    let certificate = ca.self_signed(&ca_key).map_err(Failure::failed)?;
    write(&dir.join("ca.pem"), certificate.pem().as_bytes())?;
    let issuer = Issuer::new(ca, ca_key);
    let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let server = CertificateParams::new(local).map_err(Failure::failed)?;
    issue(dir, "server", server, ExtendedKeyUsagePurpose::ServerAuth, &issuer)?;
    for caller in CALLERS.into_iter().chain(more.iter().map(String::as_str)) {
        let mut params = CertificateParams::default();
        let id = format!("spiffe://{TRUST_DOMAIN}/{caller}");
        params.subject_alt_names = vec![SanType::URI(id.try_into().map_err(Failure::failed)?)];
        issue(dir, caller, params, ExtendedKeyUsagePurpose::ClientAuth, &issuer)?;
    }
    Ok(())
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dated(params, "quotesign development CA")
}

fn issue(
    dir: &Path,
    name: &str,
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<(), Failure> {
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = key()?;
    let certificate = dated(params, name).signed_by(&key, issuer).map_err(Failure::failed)?;
    write(&dir.join(format!("{name}.pem")), certificate.pem().as_bytes())?;
    write(&dir.join(format!("{name}.key")), key.serialize_pem().as_bytes())
}

fn dated(mut params: CertificateParams, name: &str) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (now - Duration::days(1), now + Duration::days(VALID_DAYS));
    params
}

fn key() -> Result<KeyPair, Failure> {
    KeyPair::generate().map_err(Failure::failed)
}
