//! `quotesign.toml`: how one gateway is run. Policy says what may be signed; this says where and with what.
//! Every field can be overridden by an environment variable, `QUOTESIGN_` and its path with `__` between the
//! parts, as in `QUOTESIGN_GRPC__LISTEN`. What is unknown or wrong is one line and exit code 2.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::SecretString;
use serde::Deserialize;

use crate::{clock::ClockBounds, domain::Environment, json::Limits, ledger::LedgerConfig, strict_toml, telemetry};

mod overrides;

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
    /// The gRPC listener for callers.
    pub grpc: GrpcListener,
    /// The gRPC listener for operators.
    pub admin: GrpcListener,
    /// The public HTTPS listener of the JWKS.
    pub jwks: JwksListener,
    /// The plain HTTP listener of `/livez`, `/readyz` and `/metrics`: loopback or the pod's network.
    pub operations: OperationsListener,
    /// The ledger.
    pub ledger: LedgerFile,
    /// The devices.
    #[serde(default)]
    pub signers: Vec<SignerEntry>,
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
}

/// A listener with mutual TLS 1.3.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcListener {
    /// Where it listens, as `127.0.0.1:8443`.
    pub listen: SocketAddr,
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
    /// The CAs whose client certificates are accepted, PEM.
    pub client_ca: PathBuf,
    /// The SPIFFE trust domain of its callers; absent where callers have DNS names alone.
    pub trust_domain: Option<String>,
    /// Whether gRPC reflection answers.
    #[serde(default)]
    pub reflection: bool,
}

/// The public listener.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwksListener {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
}

/// The operations listener.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationsListener {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// Where the ledger is kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerFile {
    /// The SQLite file.
    pub sqlite: PathBuf,
    /// How many operations may wait for the writer.
    #[serde(default = "defaults::queue_max")]
    pub queue_max: usize,
    /// How many are committed together at most.
    #[serde(default = "defaults::batch_max")]
    pub batch_max: usize,
    /// How often expired reservations are voided, in seconds.
    #[serde(default = "defaults::sweep_s")]
    pub sweep_s: u64,
}

/// A device.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignerEntry {
    /// The name that policy's keys give.
    pub name: String,
    /// The PKCS#11 module.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// The token's serial, where labels are not unique.
    pub serial: Option<String>,
    /// The file that holds the user PIN; its one line.
    pub pin_file: Option<PathBuf>,
    /// The environment variable that holds the user PIN.
    pub pin_env: Option<String>,
    /// How many sessions sign at once.
    #[serde(default = "defaults::sessions")]
    pub sessions: usize,
    /// How many quotes may wait for a session.
    #[serde(default = "defaults::signer_queue_max")]
    pub queue_max: usize,
    /// How long one call into the module may take before its thread counts as stuck, in milliseconds.
    #[serde(default = "defaults::call_timeout_ms")]
    pub call_timeout_ms: u64,
    /// How often each key proves itself by a test signature, in milliseconds.
    #[serde(default = "defaults::probe_interval_ms")]
    pub probe_interval_ms: u64,
    /// What is done about a key whose attributes do not show that it was generated inside and cannot leave.
    #[serde(default)]
    pub attributes: AttributesRule,
}

/// What is done about a key whose attributes do not show that it was generated inside and cannot leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttributesRule {
    /// It does not sign. The only value but in development.
    #[default]
    Require,
    /// It signs, and the log says so.
    Warn,
    /// It signs.
    Off,
}

/// Bounds on what is taken in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// The size of a quote.
    pub payload_bytes_max: usize,
    /// How deep a quote may nest.
    pub payload_depth_max: usize,
    /// How many values a quote may hold.
    pub payload_nodes_max: usize,
    /// How many quotes may be between admission and release at once.
    pub in_flight_max: usize,
    /// How many connections a listener holds.
    pub connections_max: usize,
    /// How many connections a listener holds from one address.
    pub connections_per_address_max: usize,
    /// How many calls one connection may have under way.
    pub streams_max: u32,
    /// How long a handshake may take, and after it the first bytes of a request.
    pub handshake_timeout_ms: u64,
    /// The longest a call may take, and what a call without a deadline gets.
    pub deadline_ms_max: u64,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            payload_bytes_max: 16 * 1024,
            payload_depth_max: 8,
            payload_nodes_max: 256,
            in_flight_max: 256,
            connections_max: 1024,
            connections_per_address_max: 512,
            streams_max: 128,
            handshake_timeout_ms: 5_000,
            deadline_ms_max: 10_000,
        }
    }
}

/// When the clock is trusted.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClockSection {
    /// The largest step against the steady clock, and the largest distance behind the journal.
    pub step_ms_max: u64,
    /// How long a stepped clock must run evenly before it is trusted again, in seconds.
    pub settle_s: u64,
}

impl Default for ClockSection {
    fn default() -> Self {
        Self { step_ms_max: 1_000, settle_s: 60 }
    }
}

/// How the gateway ends.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrainSection {
    /// How long it goes on taking calls after its health has turned, so that clients go elsewhere.
    pub grace_ms: u64,
    /// How long calls under way may take to end.
    pub timeout_ms: u64,
}

impl Default for DrainSection {
    fn default() -> Self {
        Self { grace_ms: 2_000, timeout_ms: 20_000 }
    }
}

/// What the gateway says of itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// `json` or `text`.
    pub format: LogFormat,
    /// A filter, as `info` or `quotesign=debug,info`.
    pub filter: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: "info".to_owned() }
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// No bound of a config is higher.
const BOUND_MAX: usize = 10_000_000;

mod defaults {
    pub(super) fn queue_max() -> usize {
        4096
    }
    pub(super) fn batch_max() -> usize {
        512
    }
    pub(super) fn sweep_s() -> u64 {
        10
    }
    pub(super) fn sessions() -> usize {
        2
    }
    pub(super) fn signer_queue_max() -> usize {
        256
    }
    pub(super) fn call_timeout_ms() -> u64 {
        5_000
    }
    pub(super) fn probe_interval_ms() -> u64 {
        2_000
    }
}

impl Config {
    /// Reads and checks a config. Paths in it are relative to its own directory.
    ///
    /// # Errors
    /// The first thing that is wrong, with field, value and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let fault = |text: String| ConfigError { file: file.clone(), text };
        let text = fs::read_to_string(path)
            .map_err(|cause| fault(format!("cannot be read: {cause}; name the file with --config")))?;
        let text = overrides::apply(&text, std::env::vars()).map_err(&fault)?;
        let mut config: Self = strict_toml::read(&text).map_err(|misfit| fault(told(&text, &misfit)))?;
        config.anchor(path.parent().unwrap_or(Path::new("")));
        config.check().map_err(fault)?;
        Ok(config)
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
            &mut self.ledger.sqlite,
        ];
        for path in own.into_iter().chain(signers) {
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
            ("limits.in_flight_max", limits.in_flight_max),
            ("limits.connections_max", limits.connections_max),
            ("limits.connections_per_address_max", limits.connections_per_address_max),
            ("limits.streams_max", limits.streams_max as usize),
            ("limits.handshake_timeout_ms", usize::try_from(limits.handshake_timeout_ms).unwrap_or(usize::MAX)),
            ("limits.deadline_ms_max", usize::try_from(limits.deadline_ms_max).unwrap_or(usize::MAX)),
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
        if limits.payload_bytes_max > 1 << 20 {
            let value = limits.payload_bytes_max;
            return Err(format!("`limits.payload_bytes_max` = `{value}` is above 1048576; a quote is small, lower it"));
        }
        for (field, domain) in
            [("grpc.trust_domain", &self.grpc.trust_domain), ("admin.trust_domain", &self.admin.trust_domain)]
        {
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
            if let Some(domain) = domain.as_ref().filter(|name| name.is_empty() || !name.bytes().all(fits)) {
                return Err(format!("`{field}` = `{domain}` is no SPIFFE trust domain; write it as `prod.example`"));
            }
        }
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
            if signer.pin_file.is_some() == signer.pin_env.is_some() {
                return Err(format!(
                    "`signers[{at}]`: give the PIN of `{name}` by `pin_file` or by `pin_env`, one of them"
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
            if self.environment != Environment::Development && signer.attributes != AttributesRule::Require {
                let environment = self.environment;
                return Err(format!("`signers[{at}].attributes` of `{name}` must be `require` in {environment}"));
            }
        }
        Ok(())
    }
}

impl SignerEntry {
    /// The user PIN.
    ///
    /// # Errors
    /// Where the file or the variable is not there; the PIN itself is never in the text.
    pub fn pin(&self) -> Result<SecretString, String> {
        let name = &self.name;
        if let Some(variable) = &self.pin_env {
            return std::env::var(variable)
                .map(SecretString::from)
                .map_err(|_| format!("the PIN of `{name}`: set the environment variable `{variable}`"));
        }
        let path = self.pin_file.as_deref().unwrap_or(Path::new(""));
        let file = path.display();
        let text = fs::read_to_string(path)
            .map_err(|fault| format!("the PIN of `{name}`: `{file}` cannot be read: {fault}; write the PIN there"))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(format!("the PIN of `{name}`: `{file}` is empty; write the PIN there")),
            pin => Ok(SecretString::from(pin)),
        }
    }
}

impl LimitsSection {
    /// Bounds on payloads.
    #[must_use]
    pub fn payload(&self) -> Limits {
        Limits {
            payload_bytes_max: self.payload_bytes_max,
            depth_max: self.payload_depth_max,
            nodes_max: self.payload_nodes_max,
        }
    }

    /// The longest a call may take.
    #[must_use]
    pub fn deadline_max(&self) -> Duration {
        Duration::from_millis(self.deadline_ms_max)
    }
}

impl ClockSection {
    /// The guard's bounds.
    #[must_use]
    pub fn bounds(&self) -> ClockBounds {
        ClockBounds { step_max: Duration::from_millis(self.step_ms_max), settle: Duration::from_secs(self.settle_s) }
    }
}

impl LedgerFile {
    /// The writer's bounds.
    #[must_use]
    pub fn front(&self) -> LedgerConfig {
        LedgerConfig { queue_max: self.queue_max, batch_max: self.batch_max }
    }
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
