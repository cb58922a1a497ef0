//! Keys and certificates: whether they belong together, whether peers will take them, and for how long.

use std::{path::Path, time::Duration};

use rustls::{
    CertificateError, Error, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};

use crate::{
    client::ClientFile,
    clock::UtcTime,
    domain::Environment,
    transport::{
        certificate::{self, Facts},
        tls,
    },
};

use super::{
    Site,
    files::Named,
    report::{Check, Report},
};

/// When it is time to renew a certificate, and when it is late.
const SOON: Duration = Duration::from_hours(24 * 30);
const LATE: Duration = Duration::from_hours(24 * 7);
const OF_A_CHAIN: [Check; 6] =
    [Check::TlsKey, Check::TlsChain, Check::TlsNames, Check::TlsUsage, Check::TlsStrength, Check::TlsExpiry];
/// Sections that hold an identity, and whether it is a server's.
const IDENTITIES: [(&str, bool); 5] =
    [("grpc", true), ("admin", true), ("jwks", true), ("otlp", false), ("ledger.postgres", false)];

/// A chain, and who shows it.
struct Shown<'s> {
    of: &'s str,
    is_server: bool,
    file: &'s Path,
    ders: Vec<CertificateDer<'static>>,
    facts: Vec<Facts>,
}

pub(super) fn look(named: &Named, client: Option<&ClientFile>, now: UtcTime, report: &mut Report) {
    for (of, is_server) in IDENTITIES {
        let field = |name: &str| named.of(&format!("{of}.{name}"));
        let Some((file, key)) = field("certificate").zip(field("private_key")) else { continue };
        let (ders, facts) = match certificate::read(file) {
            Ok(read) => read,
            Err(why) => {
                report.fault(Check::TlsKey, of, why, "give the certificate and those between it and its CA, in PEM");
                report.all_skipped(OF_A_CHAIN.get(1..).unwrap_or_default(), of, "its certificate cannot be read");
                continue;
            }
        };
        let shown = Shown { of, is_server, file, ders, facts };
        shown.look_at_key(key, report);
        shown.look_at_chain(named, client, now, report);
        shown.look_at_names(client, now, report);
        shown.look_at_usage(report);
        look_at_strength(of, &shown.facts, report);
        look_at_expiry(Check::TlsExpiry, of, &shown.facts, now, report);
    }
    for of in ["grpc", "admin"] {
        if let Some(file) = named.of(&format!("{of}.client_ca")) {
            look_at_authorities(of, file, now, report);
        }
    }
}

impl Shown<'_> {
    fn look_at_key(&self, key: &Path, report: &mut Report) {
        match tls::belong_together(self.file, key) {
            Ok(()) => {
                report.ok(Check::TlsKey, self.of, format!("{} is the key of {}", key.display(), self.file.display()));
            }
            Err(fault) => {
                report.fault(Check::TlsKey, self.of, fault.to_string(), "give certificate and key of one another");
            }
        }
    }

    /// What a caller that trusts the client file's CA makes of it; nothing where there is no such file.
    fn taken(&self, client: Option<&ClientFile>, now: UtcTime) -> Option<Result<(), Error>> {
        let client = client?;
        let url = match self.of {
            "grpc" => &client.grpc.url,
            "admin" => &client.admin.as_ref()?.url,
            "jwks" => &client.jwks,
            _ => return None,
        };
        Some(taken(&self.ders, tls::roots(&client.ca).ok()?, &name_in(url)?, now))
    }

    fn look_at_chain(&self, named: &Named, client: Option<&ClientFile>, now: UtcTime, report: &mut Report) {
        const REMEDY: &str =
            "put every certificate between this one and the CA into the file, each followed by its issuer's";
        let (check, of) = (Check::TlsChain, self.of);
        if let Some(astray) = certificate::out_of_order(&self.facts) {
            let evidence = format!("{} is not followed by its issuer `{}`", astray, astray.issuer);
            return report.warning(check, of, evidence, REMEDY);
        }
        if let Some(Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))) = self.taken(client, now) {
            let evidence = "a caller with the client file's CA does not come from this certificate to that CA";
            return report.fault(check, of, evidence, REMEDY);
        }
        let Some(last) = self.facts.last() else { return };
        let authorities = ["grpc.client_ca", "admin.client_ca", "jwks.url_ca", "otlp.ca", "ledger.postgres.ca"];
        let files =
            authorities.iter().filter_map(|field| named.of(field)).chain(client.map(|client| client.ca.as_path()));
        let mut known = files.filter_map(|file| certificate::read(file).ok()).flat_map(|(_, facts)| facts);
        let count = self.facts.len();
        match () {
            () if last.is_self_signed => {
                report.ok(check, of, format!("{count} certificates, up to `{}`", last.subject));
            }
            () if known.any(|authority| authority.subject == last.issuer) => {
                report.ok(check, of, format!("{count} certificates, the last issued by `{}`", last.issuer));
            }
            () => {
                let evidence =
                    format!("the last is issued by `{}`, which is none of the CAs that are known here", last.issuer);
                report.warning(
                    check,
                    of,
                    evidence,
                    format!("{REMEDY}; nothing is missing where peers trust that issuer itself"),
                );
            }
        }
    }

    fn look_at_names(&self, client: Option<&ClientFile>, now: UtcTime, report: &mut Report) {
        let Some(leaf) = self.facts.first() else { return };
        let (check, of, names) = (Check::TlsNames, self.of, leaf.names.join(", "));
        if !self.is_server {
            let told = if names.is_empty() {
                format!("none beside `{}`, and a client needs none", leaf.subject)
            } else {
                names
            };
            return report.ok(check, of, told);
        }
        if names.is_empty() {
            let evidence =
                format!("`{}` has no alternative name, and the common name counts for nothing", leaf.subject);
            return report.fault(check, of, evidence, "issue it with the DNS names and addresses that peers use");
        }
        match self.taken(client, now) {
            Some(Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ))) => {
                let evidence = format!("it is for {names}, and the client file reaches it by another name");
                report.fault(check, of, evidence, "issue it with the name that callers use, or mend the client file");
            }
            _ => report.ok(check, of, names),
        }
    }

    fn look_at_usage(&self, report: &mut Report) {
        let Some(leaf) = self.facts.first() else { return };
        let (role, is_allowed) = match (self.is_server, leaf.purposes) {
            (true, Some((server, _))) => ("serverAuth", server),
            (false, Some((_, client))) => ("clientAuth", client),
            (true, None) => ("serverAuth", true),
            (false, None) => ("clientAuth", true),
        };
        let wrong = match () {
            () if leaf.is_ca => Some("it is a CA's, which peers refuse as anybody's own".to_owned()),
            () if leaf.signs == Some(false) => Some("its key usage lacks digitalSignature".to_owned()),
            () if !is_allowed => Some(format!("its extended key usage lacks {role}")),
            () => None,
        };
        match wrong {
            Some(why) => {
                let remedy = format!("issue one with the key usage digitalSignature and the extended key usage {role}");
                report.fault(Check::TlsUsage, self.of, why, remedy);
            }
            None if leaf.purposes.is_none() => {
                report.ok(
                    Check::TlsUsage,
                    self.of,
                    format!("it names no extended key usage, so that {role} is allowed"),
                );
            }
            None => report.ok(Check::TlsUsage, self.of, role),
        }
    }
}

/// The host of a URL as a server's name.
fn name_in(url: &str) -> Option<ServerName<'static>> {
    let uri: http::Uri = url.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(host).ok()
}

fn taken(chain: &[CertificateDer<'_>], roots: RootCertStore, name: &ServerName<'_>, now: UtcTime) -> Result<(), Error> {
    certificate::verifies(chain, roots, name, now)
}

fn look_at_strength(of: &str, facts: &[Facts], report: &mut Report) {
    // Nobody verifies the signature of a CA upon itself.
    let weak = facts.iter().find_map(|one| Some((one, one.weakness.as_ref().filter(|_| !one.is_self_signed)?)));
    if let Some((one, weakness)) = weak {
        let remedy = "issue it with a key of RSA 2048 or EC 256 bits at least, signed over SHA-256";
        return report.fault(Check::TlsStrength, of, format!("{one}: {weakness}"), remedy);
    }
    let keys: Vec<&str> = facts.iter().map(|one| one.key.as_str()).collect();
    report.ok(Check::TlsStrength, of, keys.join(", "));
}

fn look_at_expiry(check: Check, of: &str, facts: &[Facts], now: UtcTime, report: &mut Report) {
    let Some(first) = facts.iter().min_by_key(|one| one.until) else { return };
    if let Some(early) = facts.iter().find(|one| one.from > now) {
        let evidence = format!("{early} is valid from {} on", early.from);
        return report.fault(check, of, evidence, "give one that is valid now, and look at this machine's clock");
    }
    let days = first.until.since(now).as_secs() / 86_400;
    let evidence = format!("{first} ends at {}, in {days} days", first.until);
    match () {
        () if first.until <= now => {
            report.fault(check, of, format!("{first} has expired at {}", first.until), "renew it; peers refuse it");
        }
        () if first.until <= now.plus(LATE) => {
            report.warning(check, of, evidence, "renew it now: within 7 days it ends");
        }
        () if first.until <= now.plus(SOON) => report.warning(check, of, evidence, "renew it: within 30 days it ends"),
        () => report.ok(check, of, evidence),
    }
}

/// The CAs of callers.
fn look_at_authorities(of: &str, file: &Path, now: UtcTime, report: &mut Report) {
    let check = Check::TlsClientCa;
    let facts = match certificate::read(file) {
        Ok((_, facts)) => facts,
        Err(why) => return report.fault(check, of, why, "give the CAs of the callers' certificates, in PEM"),
    };
    for one in &facts {
        let wrong = match () {
            () if !one.is_ca => Some("it is no CA (basic constraints)"),
            () if one.issues == Some(false) => Some("its key usage lacks keyCertSign"),
            () => None,
        };
        if let Some(why) = wrong {
            let remedy = "name the CA that issues the callers' certificates, not one of those";
            return report.fault(check, of, format!("{one}: {why}"), remedy);
        }
        if let Some(weakness) = one.weakness.as_ref().filter(|_| !one.is_self_signed || one.key.starts_with("RSA")) {
            return report.fault(check, of, format!("{one}: {weakness}"), "take a CA with a stronger key");
        }
    }
    look_at_expiry(check, of, &facts, now, report);
}

/// The certificate of the key sets, against the names and the CAs by which verifiers reach them.
pub(super) fn look_at_the_public(site: &Site<'_>, report: &mut Report) {
    let (check, jwks) = (Check::TlsPublic, &site.config.jwks);
    let Ok((ders, _)) = certificate::read(&jwks.certificate) else {
        return report.skipped(check, "jwks", "its certificate cannot be read");
    };
    if site.config.environment == Environment::Production
        && let Err(fault) = tls::is_fit_for_the_public(jwks, site.now)
    {
        return report.fault(check, "jwks", fault.to_string(), "have a public CA issue one that is valid now");
    }
    let partners = site.bundle.into_iter().flat_map(crate::policy::Bundle::partners);
    let mut has_any = false;
    for (partner, url) in partners.filter_map(|partner| Some((partner, partner.jwks_url.as_deref()?))) {
        has_any = true;
        let of = partner.id.as_str();
        if jwks.export.is_some() {
            report.skipped(check, of, "the sets are exported, so that another server shows its certificate at the URL");
            continue;
        }
        let Some(name) = name_in(url) else {
            report.skipped(check, of, format!("{url} has no host that a certificate could name"));
            continue;
        };
        let roots = match tls::roots(&jwks.url_ca) {
            Ok(roots) => roots,
            Err(fault) => {
                report.fault(check, of, fault.to_string(), "give the CAs of the registered URLs in `jwks.url_ca`");
                continue;
            }
        };
        match taken(&ders, roots, &name, site.now) {
            Ok(()) => report.ok(check, of, format!("verifiers with the CAs of `jwks.url_ca` take it for {url}")),
            Err(Error::InvalidCertificate(
                CertificateError::UnknownIssuer
                | CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. },
            )) => {
                let evidence = format!("its names or its issuer do not fit {url} and the CAs of `jwks.url_ca`");
                let remedy = "issue it for that host by one of these CAs; nothing is wrong where a proxy or a CDN ends TLS there";
                report.warning(check, of, evidence, remedy);
            }
            Err(fault) => report.skipped(check, of, format!("it is told of by another check: {fault}")),
        }
    }
    if !has_any {
        report.skipped(check, "jwks", "policy names no `jwks_url`");
    }
}
