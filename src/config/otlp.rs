//! `[otlp]`: the collector that the journal is shipped to.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::Uri;
use serde::Deserialize;

use crate::{
    domain::Environment,
    outgoing::Outgoing,
    telemetry::otlp::{
        exporter::{Exporter, Protocol},
        headers::Headers,
    },
};

/// A collector.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtlpSection {
    /// As `https://collector.example:4317`, without a path; over HTTP with that before `/v1/logs`, if there is one. Production takes https:// alone.
    pub endpoint: String,
    /// `grpc` or `http/protobuf`.
    #[serde(default = "grpc")]
    pub protocol: OtlpProtocol,
    /// The CA of the collector's certificate, PEM.
    pub ca: Option<PathBuf>,
    /// The certificate that this gateway shows, PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub private_key: Option<PathBuf>,
    /// The file of headers that are sent along, `name: value` a line. They are secrets.
    pub headers_file: Option<PathBuf>,
    /// How long the collector may take to answer, in milliseconds: 100 to 60000.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
    /// The share of calls that are recorded as traces, 0 to 1, of those whose callers say nothing; a call that its caller records is
    /// recorded here, too, unless it is 0.
    #[serde(default = "trace_ratio")]
    pub trace_ratio: f64,
    /// How often metrics are sent, in seconds: 1 to 3600, or 0 for never.
    #[serde(default = "metrics_interval_s")]
    pub metrics_interval_s: u64,
    /// Nothing is signed while the oldest record has waited for so long to be shipped, in seconds; absent where that stops
    /// nothing.
    pub refuse_after_s: Option<u64>,
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum OtlpProtocol {
    /// OTLP/gRPC.
    #[serde(rename = "grpc")]
    Grpc,
    /// OTLP/HTTP with binary Protobuf.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

fn grpc() -> OtlpProtocol {
    OtlpProtocol::Grpc
}

fn trace_ratio() -> f64 {
    0.01
}

fn metrics_interval_s() -> u64 {
    60
}

fn timeout_ms() -> u64 {
    10_000
}

impl OtlpSection {
    /// The rules that types cannot hold; files are read later.
    pub(super) fn check(&self, environment: Environment) -> Result<(), String> {
        let uri = self.uri()?;
        self.check_path(uri.path().trim_end_matches('/'))?;
        let is_tls = uri.scheme_str() == Some("https");
        if !is_tls && environment == Environment::Production {
            return Err(
                "`otlp.endpoint`: production ships the journal over TLS alone; give an https:// address".to_owned()
            );
        }
        if is_tls && self.ca.is_none() {
            return Err("`otlp.ca`: give the CA of the collector's certificate".to_owned());
        }
        if !is_tls && (self.ca.is_some() || self.certificate.is_some()) {
            return Err("`otlp`: `ca` and `certificate` are for an https:// endpoint; leave them out".to_owned());
        }
        if self.certificate.is_some() != self.private_key.is_some() {
            return Err("`otlp`: give `certificate` and `private_key` together".to_owned());
        }
        if !(100..=60_000).contains(&self.timeout_ms) {
            return Err(format!("`otlp.timeout_ms` = `{}` is out of range; give 100 to 60000", self.timeout_ms));
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err(format!("`otlp.trace_ratio` = `{}` is no share; give 0 to 1", self.trace_ratio));
        }
        if self.metrics_interval_s > 3600 {
            return Err(format!(
                "`otlp.metrics_interval_s` = `{}` is out of range; give 0 to 3600",
                self.metrics_interval_s
            ));
        }
        if self.refuse_after_s.is_some_and(|most| !(10..=86_400).contains(&most)) {
            return Err("`otlp.refuse_after_s` is out of range; give 10 to 86400, or leave it out".to_owned());
        }
        Ok(())
    }

    /// What would be left out of the address, or asked for twice, is not what was meant. It is not told back either.
    fn check_path(&self, path: &str) -> Result<(), String> {
        let is_of_signal = ["/v1/logs", "/v1/traces", "/v1/metrics"].iter().any(|signal| path.ends_with(signal));
        match self.protocol {
            OtlpProtocol::Grpc if !path.is_empty() => Err(
                "`otlp.endpoint`: gRPC has no path; give the host and the port alone, or `protocol = \"http/protobuf\"`".to_owned()
            ),
            OtlpProtocol::HttpProtobuf if is_of_signal => Err(
                "`otlp.endpoint`: leave `/v1/logs` and the like out at its end; each signal's own is put behind it".to_owned()
            ),
            OtlpProtocol::Grpc | OtlpProtocol::HttpProtobuf => Ok(()),
        }
    }

    fn uri(&self) -> Result<Uri, String> {
        // It may hold a token by mistake, and is not told back.
        let fault =
            || "`otlp.endpoint` is no http:// or https:// address; write it as `https://collector:4317`".to_owned();
        let uri: Uri = self.endpoint.parse().map_err(|_| fault())?;
        let fits = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() && uri.query().is_none();
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if fits && !has_user { Ok(uri) } else { Err(fault()) }
    }

    /// The paths in it.
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let files = [&mut self.ca, &mut self.certificate, &mut self.private_key, &mut self.headers_file];
        files.into_iter().filter_map(Option::as_mut)
    }

    /// How often metrics are sent; nothing where they are not.
    #[must_use]
    pub fn metrics_interval(&self) -> Option<Duration> {
        (self.metrics_interval_s > 0).then(|| Duration::from_secs(self.metrics_interval_s))
    }

    /// How long the oldest record may wait before nothing is signed.
    #[must_use]
    pub fn refuse_after(&self) -> Option<Duration> {
        self.refuse_after_s.map(Duration::from_secs)
    }

    /// The collector.
    ///
    /// # Errors
    /// Where a file cannot be used.
    pub fn exporter(&self) -> Result<Exporter, String> {
        let protocol = match self.protocol {
            OtlpProtocol::Grpc => Protocol::Grpc,
            OtlpProtocol::HttpProtobuf => Protocol::HttpProtobuf,
        };
        let timeout = Duration::from_millis(self.timeout_ms);
        Ok(Exporter::new(protocol, &self.uri()?, self.tls()?, self.headers()?, timeout))
    }

    /// Whether its files can be used.
    ///
    /// # Errors
    /// Where one cannot.
    pub fn check_files(&self) -> Result<(), String> {
        self.tls().and_then(|_| self.headers()).map(drop)
    }

    fn tls(&self) -> Result<Option<Arc<Outgoing>>, String> {
        let alpn = match self.protocol {
            OtlpProtocol::Grpc => b"h2".as_slice(),
            OtlpProtocol::HttpProtobuf => b"http/1.1".as_slice(),
        };
        let identity = self.certificate.as_deref().zip(self.private_key.as_deref());
        let tls = self.ca.as_ref().map(|ca| Outgoing::read(ca, identity, alpn)).transpose();
        Ok(tls.map_err(|fault| format!("[otlp]: {fault}"))?.map(Arc::new))
    }

    fn headers(&self) -> Result<Headers, String> {
        Headers::read(self.headers_file.clone())
    }
}
