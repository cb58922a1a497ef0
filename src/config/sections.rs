//! The sections of a config: what each field means, its unit and its default.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::CheckpointSection;
use crate::{clock::ClockBounds, domain::Environment, json::Limits, signer::pkcs11::Pin, transport::live::Files};

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

impl GrpcListener {
    /// The files of its TLS.
    #[must_use]
    pub fn files(&self) -> Files {
        let Self { certificate, private_key, client_ca, .. } = self.clone();
        Files { certificate, private_key, client_ca: Some(client_ca) }
    }
}

impl JwksListener {
    /// The files of its TLS.
    #[must_use]
    pub fn files(&self) -> Files {
        let Self { certificate, private_key, .. } = self.clone();
        Files { certificate, private_key, client_ca: None }
    }
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
    /// The CAs that the certificates of registered URLs (policy's `jwks_url`) are held against, PEM.
    #[serde(default = "defaults::url_ca")]
    pub url_ca: PathBuf,
    /// The directory where each partner's set is also written, as `<partner>/jwks.json`, whenever it changes.
    pub export: Option<PathBuf>,
    /// The program, with its arguments, that has caches forget a set that changed. It is told `QUOTESIGN_PARTNER`,
    /// `QUOTESIGN_JWKS_URL` and `QUOTESIGN_JWKS_FILE`, and tried again until it ends with 0.
    #[serde(default)]
    pub purge: Vec<String>,
}

/// The operations listener.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationsListener {
    /// Where it listens.
    pub listen: SocketAddr,
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
    /// Variables for the environment of the module's process, such as where its own configuration is.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
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
    /// How old a connection may be before its client is asked to open another, in seconds; each ends up to a tenth earlier, so
    /// that those that began together do not end together.
    pub connection_age_s_max: u64,
    /// How many quotes of one stream may be under way.
    pub stream_window: usize,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            payload_bytes_max: 16 * 1024,
            payload_depth_max: 8,
            payload_nodes_max: 256,
            connections_max: 1024,
            connections_per_address_max: 512,
            streams_max: 128,
            handshake_timeout_ms: 5_000,
            deadline_ms_max: 10_000,
            connection_age_s_max: 3_600,
            stream_window: 64,
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

/// What audit records hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSection {
    /// The file of the key under which customers' references are hashed in records: 32 to 1024 random bytes, the same for all
    /// gateways of a ledger. Records hold nothing of customers where it is absent.
    pub reference_key: Option<PathBuf>,
    /// What signs checkpoints of the journal; none are made where it is absent.
    pub checkpoint: Option<CheckpointSection>,
    /// How many days records are kept after they were shipped; where absent, 7 in development, 90 in a sandbox, and for ever in
    /// production.
    pub keep_days: Option<u32>,
}

impl AuditSection {
    /// How long records are kept; nothing where that is for ever. How long is for whoever answers for production to say.
    #[must_use]
    pub fn keep(&self, environment: Environment) -> Option<Duration> {
        let days = self.keep_days.or(match environment {
            Environment::Development => Some(7),
            Environment::Sandbox => Some(90),
            Environment::Production => None,
        });
        days.map(|days| Duration::from_hours(24) * days)
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

mod defaults {
    pub(super) fn url_ca() -> std::path::PathBuf {
        "/etc/ssl/certs/ca-certificates.crt".into()
    }
    pub(super) fn sessions() -> usize {
        2
    }
    pub(super) fn signer_queue_max() -> usize {
        256
    }
    pub(super) fn call_timeout_ms() -> u64 {
        2_000
    }
    pub(super) fn probe_interval_ms() -> u64 {
        2_000
    }
}

impl SignerEntry {
    /// Where the user PIN comes from.
    #[must_use]
    pub fn pin(&self) -> Pin {
        match &self.pin_env {
            Some(variable) => Pin::Variable(variable.clone()),
            None => Pin::File(self.pin_file.clone().unwrap_or_default()),
        }
    }

    /// Whether the PIN is there.
    ///
    /// # Errors
    /// Where it is not. The text holds neither the PIN nor what stands in the config: that may be a PIN put in the
    /// wrong place.
    pub fn check_pin(&self) -> Result<(), String> {
        let name = &self.name;
        if let Some(variable) = &self.pin_env {
            let found = std::env::var(variable).map(SecretString::from);
            return found
                .map(|_| ())
                .map_err(|_| format!("the PIN of `{name}`: set the environment variable that `pin_env` names"));
        }
        let path = self.pin_file.as_deref().unwrap_or(Path::new(""));
        let text = fs::read_to_string(path).map(SecretString::from).map_err(|fault| {
            format!("the PIN of `{name}`: the file that `pin_file` names cannot be read: {fault}; write the PIN there")
        })?;
        if text.expose_secret().trim_end_matches(['\r', '\n']).is_empty() {
            return Err(format!("the PIN of `{name}`: the file that `pin_file` names is empty; write the PIN there"));
        }
        Ok(())
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

impl LimitsSection {
    /// How old a connection may be.
    #[must_use]
    pub fn age_max(&self) -> Duration {
        Duration::from_secs(self.connection_age_s_max)
    }
}

impl ClockSection {
    /// The guard's bounds.
    #[must_use]
    pub fn bounds(&self) -> ClockBounds {
        ClockBounds { step_max: Duration::from_millis(self.step_ms_max), settle: Duration::from_secs(self.settle_s) }
    }
}
