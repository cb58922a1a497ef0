//! `quotesign.toml`: how one gateway is run. Policy says what may be signed; this says where and with what.
//! Every field can be overridden by an environment variable, `QUOTESIGN__` and its path with `__` between the
//! parts, as in `QUOTESIGN__GRPC__LISTEN`. What is unknown or wrong is one line and exit code 2.

use std::{
    fs,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret as _, SecretSlice};
use serde::Deserialize;

use crate::{
    audit::customer::ReferenceKey,
    domain::{Environment, TrustDomains},
    jwk::PublicKey,
    signer::locator::{KeyArn, Locator},
    strict_toml, telemetry,
};

mod apart;
mod aws_kms;
mod checkpoint;
mod ledger;
mod otlp;
mod overrides;
mod sections;

pub use aws_kms::KmsEntry;
pub use checkpoint::CheckpointSection;
pub use ledger::{LedgerSection, PostgresSection};
pub use otlp::OtlpSection;
pub use sections::*;

/// The first thing that is wrong with a config: the field, its value where it is no secret, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {text}")]
pub struct ConfigError {
    file: String,
    text: String,
}

/// A gateway's config.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// development, sandbox or production; must be the bundle's own.
    pub environment: Environment,
    /// The directory of the policy bundle.
    pub policy: PathBuf,
    /// The public JWK of the key that must have signed the bundle; any bundle is taken where it is absent.
    pub policy_key: Option<PathBuf>,
    /// The gRPC listener for callers.
    pub grpc: GrpcListener,
    /// The gRPC listener for operators.
    pub admin: GrpcListener,
    /// The public HTTPS listener of the JWKS.
    pub jwks: JwksListener,
    /// The plain HTTP listener of `/livez`, `/readyz` and `/metrics`: loopback or the pod's network.
    pub operations: OperationsListener,
    /// The ledger.
    pub ledger: LedgerSection,
    /// The devices.
    #[serde(default)]
    pub signers: Vec<SignerEntry>,
    /// The regions of AWS KMS, which are devices too.
    #[serde(default)]
    pub aws_kms: Vec<KmsEntry>,
    /// Bounds on what is taken in.
    #[serde(default)]
    pub limits: LimitsSection,
    /// When the clock is trusted.
    #[serde(default)]
    pub clock: ClockSection,
    /// How the gateway ends.
    #[serde(default)]
    pub drain: DrainSection,
    /// What it says of itself.
    #[serde(default)]
    pub log: LogSection,
    /// What its audit records hold.
    #[serde(default)]
    pub audit: AuditSection,
    /// The collector that the journal is shipped to; it is not shipped where there is none.
    pub otlp: Option<OtlpSection>,
}

/// The largest quote: its signing input, a third longer, goes to a module's process in one datagram.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// No bound of a config is higher.
const BOUND_MAX: usize = 10_000_000;

impl Config {
    /// Reads and checks a config. Paths in it are relative to its own directory.
    ///
    /// # Errors
    /// The first thing that is wrong, with field, value and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let fault = |text: String| ConfigError { file: file.clone(), text };
        let text = overridden(path).map_err(&fault)?;
        let mut config: Self = strict_toml::read(&text).map_err(|misfit| fault(told(&text, &misfit)))?;
        config.anchor(path.parent().unwrap_or(Path::new("")));
        config.check().map_err(fault)?;
        Ok(config)
    }

    /// The document of a config as it stands, with every override applied, whether or not it makes a config.
    ///
    /// # Errors
    /// Where it cannot be read, or is no TOML.
    pub fn document(path: &Path) -> Result<toml::Table, ConfigError> {
        let fault = |text: String| ConfigError { file: path.display().to_string(), text };
        overridden(path).and_then(|text| text.parse().map_err(|_| "is no TOML".to_owned())).map_err(fault)
    }

    /// Whether a key could lie at `locator` on the signer of this name; nothing where there is no such signer.
    #[must_use]
    pub fn accepts(&self, signer: &str, locator: &str) -> Option<Result<(), String>> {
        if self.token_of(signer).is_some() {
            return Some(Locator::parse(locator).map(drop).map_err(|fault| format!("the locator: {fault}")));
        }
        let kms = self.aws_kms.iter().find(|entry| entry.name == signer)?;
        Some(KeyArn::parse(locator, &kms.region).map(drop).map_err(|fault| fault.to_string()))
    }

    /// Whom the two gRPC listeners let in.
    #[must_use]
    pub fn trust_domains(&self) -> TrustDomains {
        TrustDomains { grpc: self.grpc.trust_domain.clone(), admin: self.admin.trust_domain.clone() }
    }

    /// The key that must have signed the bundle.
    ///
    /// # Errors
    /// Where there is one to be and it cannot be read.
    pub fn policy_key(&self) -> Result<Option<PublicKey>, String> {
        let Some(path) = &self.policy_key else { return Ok(None) };
        let fault = |fault: &dyn std::fmt::Display| format!("`policy_key` = `{}`: {fault}", path.display());
        let bytes = fs::read(path).map_err(|error| fault(&error))?;
        PublicKey::from_jwk(&bytes).map(Some).map_err(|error| fault(&error))
    }

    /// The key under which customers stand in records, where there is to be one.
    ///
    /// # Errors
    /// Where the file cannot be read or holds no key.
    pub fn reference_key(&self) -> Result<Option<ReferenceKey>, String> {
        let Some(path) = &self.audit.reference_key else { return Ok(None) };
        reference_key(path).map(Some).map_err(|fault| format!("`audit.reference_key` = `{}`: {fault}", path.display()))
    }

    /// The signers by name.
    pub fn signer_names(&self) -> impl Iterator<Item = &str> {
        let tokens = self.signers.iter().map(|signer| signer.name.as_str());
        tokens.chain(self.aws_kms.iter().map(|signer| signer.name.as_str()))
    }

    /// The label of the token that this signer is, if it is one.
    #[must_use]
    pub fn token_of(&self, name: &str) -> Option<&str> {
        self.signers.iter().find(|signer| signer.name == name).map(|signer| signer.token.as_str())
    }

    /// That records are to be pruned and never will be, since they are exported nowhere.
    #[must_use]
    pub fn keeps_for_nothing(&self) -> Option<&'static str> {
        (self.audit.keep_days.is_some() && self.otlp.is_none()).then_some(
            "`audit.keep_days` prunes nothing without `[otlp]`: a record goes only once a collector has it; name one, or leave it out",
        )
    }

    /// Makes every path absolute to the config's own directory.
    fn anchor(&mut self, base: &Path) {
        let signers =
            self.signers.iter_mut().flat_map(|signer| [Some(&mut signer.module), signer.pin_file.as_mut()]).flatten();
        let own = [
            &mut self.policy,
            &mut self.grpc.certificate,
            &mut self.grpc.private_key,
            &mut self.grpc.client_ca,
            &mut self.admin.certificate,
            &mut self.admin.private_key,
            &mut self.admin.client_ca,
            &mut self.jwks.certificate,
            &mut self.jwks.private_key,
            &mut self.jwks.url_ca,
        ];
        for path in own
            .into_iter()
            .chain(&mut self.policy_key)
            .chain(&mut self.audit.reference_key)
            .chain(self.otlp.as_mut().into_iter().flat_map(OtlpSection::paths))
            .chain(self.audit.checkpoint.as_mut().into_iter().flat_map(CheckpointSection::paths))
            .chain(&mut self.jwks.export)
            .chain(signers)
            .chain(self.ledger.paths())
        {
            *path = base.join(&*path);
        }
    }

    /// The rules that types cannot hold.
    fn check(&self) -> Result<(), String> {
        telemetry::filter(&self.log)?;
        let listeners = [
            ("grpc.listen", self.grpc.listen),
            ("admin.listen", self.admin.listen),
            ("jwks.listen", self.jwks.listen),
            ("operations.listen", self.operations.listen),
        ];
        for (at, (field, address)) in listeners.iter().enumerate() {
            if let Some((other, _)) =
                listeners.iter().skip(at + 1).find(|(_, other)| other == address && address.port() != 0)
            {
                return Err(format!(
                    "`{field}` = `{address}` is also `{other}`; give each listener an address of its own"
                ));
            }
        }
        let limits = &self.limits;
        for (field, value) in [
            ("limits.payload_bytes_max", limits.payload_bytes_max),
            ("limits.payload_depth_max", limits.payload_depth_max),
            ("limits.payload_nodes_max", limits.payload_nodes_max),
            ("limits.connections_max", limits.connections_max),
            ("limits.connections_per_address_max", limits.connections_per_address_max),
            ("limits.streams_max", limits.streams_max as usize),
            ("limits.handshake_timeout_ms", usize::try_from(limits.handshake_timeout_ms).unwrap_or(usize::MAX)),
            ("limits.deadline_ms_max", usize::try_from(limits.deadline_ms_max).unwrap_or(usize::MAX)),
            ("limits.connection_age_s_max", usize::try_from(limits.connection_age_s_max).unwrap_or(usize::MAX)),
            ("limits.stream_window", limits.stream_window),
            ("ledger.queue_max", self.ledger.queue_max),
            ("ledger.batch_max", self.ledger.batch_max),
        ] {
            if value == 0 {
                return Err(format!("`{field}` = `0` lets nothing through; raise it"));
            }
            if value > BOUND_MAX {
                return Err(format!("`{field}` = `{value}` is no bound; give at most {BOUND_MAX}"));
            }
        }
        if limits.payload_bytes_max > PAYLOAD_BYTES_MAX {
            let value = limits.payload_bytes_max;
            return Err(format!(
                "`limits.payload_bytes_max` = `{value}` is above {PAYLOAD_BYTES_MAX}; a quote is small, lower it"
            ));
        }
        for (field, domain) in
            [("grpc.trust_domain", &self.grpc.trust_domain), ("admin.trust_domain", &self.admin.trust_domain)]
        {
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
            if let Some(domain) = domain.as_ref().filter(|name| name.is_empty() || !name.bytes().all(fits)) {
                return Err(format!("`{field}` = `{domain}` is no SPIFFE trust domain; write it as `prod.example`"));
            }
        }
        if !(1..=60_000).contains(&self.clock.step_ms_max) || self.clock.settle_s == 0 {
            let clock = self.clock;
            return Err(format!(
                "`clock` = `{{ step_ms_max = {}, settle_s = {} }}` guards nothing; give a step of 1 to 60000 and settle for at least 1",
                clock.step_ms_max, clock.settle_s
            ));
        }
        self.otlp.as_ref().map_or(Ok(()), |otlp| otlp.check(self.environment))?;
        self.audit.checkpoint.as_ref().map_or(Ok(()), CheckpointSection::check)?;
        self.ledger.check(self.environment)?;
        aws_kms::check(&self.aws_kms, self.signers.iter().map(|signer| signer.name.as_str()), self.environment)?;
        self.check_signers()
    }

    fn check_signers(&self) -> Result<(), String> {
        for (at, signer) in self.signers.iter().enumerate() {
            let name = &signer.name;
            let others = || self.signers.iter().skip(at + 1);
            if others().any(|other| other.name == *name) {
                return Err(format!(
                    "`signers[{at}].name` = `{name}` stands there twice; give each signer a name of its own"
                ));
            }
            let is_same = |other: &&SignerEntry| {
                (&other.module, &other.token, &other.serial) == (&signer.module, &signer.token, &signer.serial)
                    && other.environment == signer.environment
            };
            if let Some(other) = others().find(is_same) {
                return Err(format!(
                    "`signers[{at}]`: `{name}` and `{}` are one token; name it once, and raise its `sessions`",
                    other.name
                ));
            }
            if signer.pin_file.is_some() == signer.pin_env.is_some() {
                return Err(format!(
                    "`signers[{at}]`: give the PIN of `{name}` by `pin_file` or by `pin_env`, one of them"
                ));
            }
            let fits = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
            if let Some(variable) = signer.environment.keys().find(|name| !fits(name)) {
                return Err(format!(
                    "`signers[{at}].environment` of `{name}`: `{variable}` cannot be the name of a variable; mend it"
                ));
            }
            for (field, is_zero) in [
                ("sessions", signer.sessions == 0),
                ("queue_max", signer.queue_max == 0),
                ("call_timeout_ms", signer.call_timeout_ms == 0),
                ("probe_interval_ms", signer.probe_interval_ms == 0),
            ] {
                if is_zero {
                    return Err(format!("`signers[{at}].{field}` of `{name}` = `0` lets nothing through; raise it"));
                }
            }
        }
        Ok(())
    }
}

/// The key of customers' references that a file holds.
///
/// # Errors
/// Where the file cannot be read or holds no key.
pub(crate) fn reference_key(path: &Path) -> Result<ReferenceKey, String> {
    let bytes = SecretSlice::from(fs::read(path).map_err(|fault| fault.to_string())?);
    ReferenceKey::new(bytes.expose_secret()).map_err(|fault| fault.to_string())
}

/// The text of a config, with every override applied.
fn overridden(path: &Path) -> Result<String, String> {
    let text =
        fs::read_to_string(path).map_err(|cause| format!("cannot be read: {cause}; name the file with --config"))?;
    overrides::apply(&text, std::env::vars())
}

/// Whether a PIN may have been put there by mistake.
fn may_be_secret(field: &str) -> bool {
    field.starts_with("signers[") && ["pin_file", "pin_env"].iter().any(|name| field.ends_with(name))
        || field.starts_with("signers[") && field.contains(".environment")
}

/// A misfit with the value that stands there. Secrets never stand in a config, so a value may be shown.
fn told(text: &str, misfit: &strict_toml::Misfit) -> String {
    let variable = overrides::variable(&misfit.field);
    let line = match misfit.line {
        // The line is that of a document which nobody wrote.
        _ if std::env::var_os(&variable).is_some() => format!("the environment variable `{variable}`: "),
        Some(line) => format!("line {line}: "),
        None => String::new(),
    };
    let value = misfit
        .line
        .and_then(|line| text.lines().nth(line - 1))
        .and_then(|line| line.split_once('='))
        .map(|(_, value)| value.trim());
    if may_be_secret(&misfit.field) {
        return format!("{line}`{}`: is of the wrong type; give a text, and no PIN", misfit.field);
    }
    match (misfit.field.as_str(), value) {
        ("", _) => format!("{line}{}", misfit.why),
        (field, Some(value))
            if !misfit.why.starts_with("unknown field") && !misfit.why.starts_with("missing field") =>
        {
            format!("{line}`{field}` = `{value}`: {}", misfit.why)
        }
        (field, _) => format!("{line}`{field}`: {}", misfit.why),
    }
}
