//! A real OpenTelemetry Collector, by the config that goes with the gateway.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    dashboards::{read, tool},
    harness::{Authority, client_certificate, done, until},
};

/// A Collector that runs by the config, or by what `edit` makes of it.
pub struct Collector {
    process: Child,
    pub dir: TempDir,
    health: String,
    http: String,
    pub grpc: String,
}

impl Collector {
    pub fn start(edit: &impl Fn(String) -> String) -> Self {
        let dir = TempDir::with_prefix("quotesign-it-").unwrap();
        for name in ["audit", "tls"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let path = |name: &str| dir.path().join(name);
        let authority = Authority::new();
        fs::write(path("tls/ca.pem"), &authority.pem).unwrap();
        let mut params = client_certificate(&[], &["localhost"]);
        params.subject_alt_names.push(SanType::IpAddress("127.0.0.1".parse().unwrap()));
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        authority.issue(&path("tls"), "collector", params);
        authority.issue(&path("tls"), "sender", client_certificate(&[], &["gateway"]));
        fs::write(path("config.yaml"), edit(read("deploy/observability/collector.yaml"))).unwrap();
        // Held until all are chosen, so that they differ.
        let places = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [grpc, http, health, metrics] = places.map(|place| place.local_addr().unwrap());
        let process = tool("otelcol")
            .arg("--config")
            .arg(path("config.yaml"))
            .env("OTELCOL_DIR", dir.path())
            .env("OTELCOL_TLS_CERT", path("tls/collector.pem"))
            .env("OTELCOL_TLS_KEY", path("tls/collector.key"))
            .env("OTELCOL_TLS_CLIENT_CA", path("tls/ca.pem"))
            .env("OTELCOL_BACKEND_CA", path("tls/ca.pem"))
            .env("OTELCOL_BACKEND", "https://127.0.0.1:1")
            .env("OTELCOL_GRPC", grpc.to_string())
            .env("OTELCOL_HTTP", http.to_string())
            .env("OTELCOL_HEALTH", health.to_string())
            .env("OTELCOL_METRICS_PORT", metrics.port().to_string())
            .stderr(Stdio::from(fs::File::create(path("log")).unwrap()))
            .spawn()
            .unwrap();
        Self {
            process,
            dir,
            health: format!("http://{health}"),
            http: format!("https://{http}/v1/logs"),
            grpc: format!("https://{grpc}"),
        }
    }

    pub async fn serve(edit: impl Fn(String) -> String) -> Self {
        let mut collector = Self::start(&edit);
        until("the collector serves", async || {
            // Somebody may have taken a port between its choice and its use.
            if collector.process.try_wait().unwrap().is_some() {
                eprintln!("{}", fs::read_to_string(collector.dir.path().join("log")).unwrap());
                collector = Self::start(&edit);
            }
            Command::new("curl").args(["-sf", &collector.health]).output().unwrap().status.success()
        })
        .await;
        collector
    }

    /// Sends a record, and gives the status of the answer.
    pub fn sent(&self, text: &str) -> String {
        let tls = self.dir.path().join("tls");
        let body =
            json!({ "resourceLogs": [{ "scopeLogs": [{ "logRecords": [{ "body": { "stringValue": text } }] }] }] });
        let output = Command::new("curl")
            .current_dir(tls)
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10"])
            .args(["--cacert", "ca.pem", "--cert", "sender.pem", "--key", "sender.key"])
            .args(["-H", "content-type: application/json", "-d", &body.to_string(), &self.http])
            .output()
            .unwrap();
        done(output)
    }

    /// Kills it, and tells whether its files or its queue hold this text.
    pub fn killed_with(mut self, text: &str) -> bool {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let found = Command::new("grep").args(["-rqF", text, "--exclude=log"]).arg(self.dir.path()).status().unwrap();
        found.success()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
