//! A real OpenTelemetry Collector, by the config that goes with the gateway.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    dashboards::{read, tool},
    harness::{Authority, client_certificate, done, until},
};

/// A Collector that runs by the config, or by what `edit` makes of it.
pub struct Collector {
    process: Child,
    command: Command,
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
        let mut command = tool("otelcol");
        command
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
            .stderr(Stdio::from(fs::File::create(path("log")).unwrap()));
        Self {
            process: command.spawn().unwrap(),
            command,
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

    /// Ends it as a crash does. What it has written stays.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again, in the same place.
    pub fn start_again(&mut self) {
        self.process = self.command.spawn().unwrap();
    }

    /// The bodies of all records that it has written, one after another.
    pub fn bodies(&self, mut each: impl FnMut(&str)) {
        for file in fs::read_dir(self.dir.path().join("audit")).unwrap() {
            for line in BufReader::new(fs::File::open(file.unwrap().path()).unwrap()).lines() {
                let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
                let resources = request["resourceLogs"].as_array().unwrap().iter();
                let scopes = resources.flat_map(|resource| resource["scopeLogs"].as_array().unwrap());
                for log in scopes.flat_map(|scope| scope["logRecords"].as_array().unwrap()) {
                    each(log["body"]["stringValue"].as_str().unwrap());
                }
            }
        }
    }

    /// What the config of a gateway needs to send to it, beside its address.
    pub fn identity(&self) -> String {
        let file = |name: &str| self.dir.path().join("tls").join(name).display().to_string();
        let (ca, certificate, key) = (file("ca.pem"), file("sender.pem"), file("sender.key"));
        format!("ca = '{ca}', certificate = '{certificate}', private_key = '{key}'")
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
        self.kill();
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
