//! Makes a site (token, key, certificates, policy, ledger) in a directory of its own, runs the real binary in
//! it, and calls it. Every process is ended by its own handle; every address is a free loopback port.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use hyper_util::rt::{TokioExecutor, TokioIo};
use quotesign::{
    client::{ClientFile, Remote},
    clock::{Clock as _, SystemClock, UtcTime},
    config::JwksListener,
    domain::{Environment, Identity},
    ledger::{sqlite::Reader, step::Stage},
    proto::{
        GetSequenceRequest, GetSequenceResponse, SignQuoteRequest, SignQuoteResponse,
        admin_service_client::AdminServiceClient, key_directory_service_client::KeyDirectoryServiceClient,
        quote_signing_service_client::QuoteSigningServiceClient,
    },
    transport::tls,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::{Code, Status, body::Body, client::GrpcService, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt as _;

/// How long anything may take to come about before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const PARTNER: &str = "acme-remit";
pub const TRUST_DOMAIN: &str = "dev.quotesign.example";

/// The binary under test.
pub fn quotesign() -> Command {
    Command::new(env!("CARGO_BIN_EXE_quotesign"))
}

/// Polls until `done`, and fails after [`PATIENCE`].
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < PATIENCE, "it never came about: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The processes that `parent` has started.
pub fn children(parent: u32) -> impl Iterator<Item = u32> {
    let of = move |process: u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(move |process| of(*process) == Some(parent))
}

/// A certificate authority of the test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        // A name of its own: openssl takes a certificate whose issuer bears its own name for self-signed.
        Self::named("quotesign test CA")
    }

    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes `<name>.pem` and `<name>.key`.
    pub fn issue(&self, dir: &Path, name: &str, params: CertificateParams) -> Remote {
        let key = KeyPair::generate().unwrap();
        let certificate = dir.join(format!("{name}.pem"));
        let private_key = dir.join(format!("{name}.key"));
        fs::write(&certificate, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&private_key, key.serialize_pem()).unwrap();
        Remote { url: String::new(), certificate, private_key }
    }
}

/// The parameters of a client certificate with these URI and DNS names, valid from yesterday for ten years.
pub fn client_certificate(uris: &[&str], dns: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
    let dns = dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
    params.subject_alt_names = uris.chain(dns).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::days(1), now + time::Duration::days(3650));
    params
}

/// Where a test serves a key set itself, as the gateway's public listener would: what takes connections, where, and the URL.
pub async fn public_place(identity: Remote) -> (TlsAcceptor, TcpListener, String) {
    let listener = JwksListener {
        url_ca: PathBuf::new(),
        export: None,
        purge: Vec::new(),
        listen: "127.0.0.1:0".parse().unwrap(),
        certificate: identity.certificate,
        private_key: identity.private_key,
    };
    let acceptor = TlsAcceptor::from(tls::public(&listener).unwrap().server);
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/jwks.json", socket.local_addr().unwrap());
    (acceptor, socket, url)
}

/// Everything a gateway needs, on disk, with none running.
pub struct Site {
    dir: TempDir,
    pub authority: Authority,
    /// Variables for the gateway's environment.
    pub env: HashMap<String, String>,
}

impl Site {
    /// A development environment as `quotesign dev --prepare` makes it, with certificates of the test's own CA.
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("quotesign-it-").unwrap();
        let made = quotesign().args(["dev", "--prepare", "--dir"]).arg(dir.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let site = Self { authority: Authority::new(), env: HashMap::new(), dir };
        let tls = site.path("tls");
        fs::write(tls.join("ca.pem"), &site.authority.pem).unwrap();
        let local = ["localhost", "127.0.0.1"].map(str::to_owned);
        site.authority.issue(&tls, "server", CertificateParams::new(local).unwrap());
        for caller in ["pricing", "operator", "auditor"] {
            let id = format!("spiffe://{TRUST_DOMAIN}/{caller}");
            site.authority.issue(&tls, caller, client_certificate(&[&id], &[]));
        }
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("quotesign.toml")
    }

    /// Sets a variable of the gateway's environment, such as an override of its config.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A site of the sandbox: keys must have been published for a while, and sequences are seeded by hand.
    pub fn sandbox() -> Self {
        let site = Self::new();
        site.edit_config(|config| config["environment"] = toml("'sandbox'"));
        site.edit_policy(|policy| {
            policy["environment"] = toml("'sandbox'");
            policy["publication"]["propagation_s"] = toml("300");
            policy["two_callers"]["acts"] = toml("[]");
            policy["keys"][0]["publish_at"] = toml(&seconds(SystemClock.now().minus(DAY)));
        });
        for file in ["ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"] {
            let _there_may_be_none = fs::remove_file(site.path(file));
        }
        done(site.run(&["ledger", "migrate"]));
        site
    }

    /// Issues `tls/<name>.pem` with these names.
    pub fn admit(&self, name: &str, uris: &[&str], dns: &[&str]) {
        self.authority.issue(&self.path("tls"), name, client_certificate(uris, dns));
    }

    /// Changes `quotesign.toml`.
    pub fn edit_config(&self, edit: impl FnOnce(&mut toml_edit::DocumentMut)) {
        let mut config: toml_edit::DocumentMut = fs::read_to_string(self.config()).unwrap().parse().unwrap();
        edit(&mut config);
        fs::write(self.config(), config.to_string()).unwrap();
    }

    /// Has the ledger in this PostgreSQL database, with these settings beside its address, and migrates it.
    pub fn keep_ledger_in(&self, address: &str, rest: &str) {
        self.edit_config(|config| {
            let ledger = config["ledger"].as_table_mut().unwrap();
            ledger.remove("sqlite");
            ledger["postgres"] = toml(&format!("{{ address = '{address}', {rest} }}"));
        });
        done(self.run(&["ledger", "migrate"]));
    }

    /// Sets a field of the one signer.
    pub fn edit_signer(&self, field: &str, value: toml_edit::Value) {
        self.edit_config(|config| config["signers"][0][field] = toml_edit::value(value));
    }

    /// Changes `policy.toml` and raises its serial.
    pub fn edit_policy(&self, edit: impl FnOnce(&mut toml_edit::DocumentMut)) {
        let path = self.path("policy/policy.toml");
        let mut policy: toml_edit::DocumentMut = fs::read_to_string(&path).unwrap().parse().unwrap();
        let serial = policy["serial"].as_integer().unwrap();
        policy["serial"] = toml_edit::value(serial + 1);
        edit(&mut policy);
        fs::write(path, policy.to_string()).unwrap();
    }

    /// The binary, in this site's environment.
    pub fn command(&self) -> Command {
        let mut command = quotesign();
        command
            .env("QUOTESIGN__LOG__FORMAT", "json")
            .envs(
                ["GRPC", "ADMIN", "JWKS", "OPERATIONS"]
                    .map(|front| (format!("QUOTESIGN__{front}__LISTEN"), "127.0.0.1:0")),
            )
            .envs(&self.env);
        command
    }

    /// Runs a command that reads the config, to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).arg("--config").arg(self.config()).output().unwrap()
    }

    /// The journal's records, oldest first, as `quotesign audit tail` prints them; without those of reads, since each look of a
    /// test leaves one, sooner or later.
    pub fn journal(&self) -> Vec<Value> {
        let mut records = self.whole_journal();
        records.retain(|record| record["event"] != "journal.read");
        records
    }

    /// The journal's records, oldest first.
    pub fn whole_journal(&self) -> Vec<Value> {
        let tail = done(self.run(&["audit", "tail", "-n", "100000"]));
        tail.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The journal's records of this event, once there are `count` of them.
    pub async fn journalled(&self, event: &str, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        until(&format!("{count} records of {event}"), async || {
            found = self.journal();
            found.retain(|record| record["event"] == event);
            found.len() >= count
        })
        .await;
        found
    }

    /// Starts the gateway and waits until it listens.
    pub fn start(&self) -> Gateway {
        let mut command = self.command();
        command.arg("serve").arg("--config").arg(self.config());
        Gateway::spawn(command, self)
    }

    /// Starts the gateway and waits until it can sign.
    pub async fn serve(&self) -> Gateway {
        let gateway = self.start();
        gateway.signing().await;
        gateway
    }
}

/// A running gateway.
pub struct Gateway {
    child: Child,
    addresses: HashMap<String, SocketAddr>,
    tls: PathBuf,
    /// What it has logged so far, a JSON line each.
    pub log: Arc<Mutex<Vec<String>>>,
}

impl Gateway {
    pub fn spawn(command: Command, site: &Site) -> Self {
        Self::try_spawn(command, site).unwrap_or_else(|log| panic!("the gateway did not start: {log:#?}"))
    }

    /// The same, where it may not start: what it said then.
    pub fn try_spawn(mut command: Command, site: &Site) -> Result<Self, Vec<String>> {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (tell, told) = mpsc::channel();
        let lines = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _nobody_may_listen = tell.send(line.clone());
                lines.lock().unwrap().push(line);
            }
        });
        let mut addresses = HashMap::new();
        while addresses.len() < 4 {
            let Ok(line) = told.recv_timeout(PATIENCE) else {
                let _it_may_have_ended = child.kill();
                let _reaped = child.wait();
                return Err(log.lock().unwrap().clone());
            };
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            if let (Some(front), Some(address)) = (line["front"].as_str(), line["address"].as_str()) {
                addresses.insert(front.to_owned(), address.parse().unwrap());
            }
        }
        Ok(Self { child, addresses, tls: site.path("tls"), log })
    }

    pub fn address(&self, front: &str) -> SocketAddr {
        self.addresses[front]
    }

    /// How `caller` reaches this gateway, with the certificate of that name in the site's `tls/`.
    pub fn client(&self, caller: &str) -> ClientFile {
        let remote = |front| Remote {
            url: format!("https://{}", self.address(front)),
            certificate: self.tls.join(format!("{caller}.pem")),
            private_key: self.tls.join(format!("{caller}.key")),
        };
        ClientFile {
            environment: Environment::Development,
            partner: Some(PARTNER.parse().unwrap()),
            ca: self.tls.join("ca.pem"),
            grpc: remote("grpc"),
            admin: Some(remote("admin")),
            jwks: format!("https://{}", self.address("jwks")),
        }
    }

    pub async fn quotes(&self, caller: &str) -> Caller {
        Caller(QuoteSigningServiceClient::new(self.client(caller).grpc().await.unwrap()))
    }

    /// A client that tells its deadline and does not keep it itself, so that the gateway's own answer is seen.
    pub async fn quotes_without_a_timer(
        &self,
        caller: &str,
    ) -> QuoteSigningServiceClient<impl GrpcService<Body, ResponseBody = hyper::body::Incoming> + use<>> {
        self.quotes_within_a_window(caller, 2 * 1024 * 1024).await
    }

    /// The same, of whose answers so many bytes may be unread in each stream.
    pub async fn quotes_within_a_window(
        &self,
        caller: &str,
        unread_bytes_max: u32,
    ) -> QuoteSigningServiceClient<impl GrpcService<Body, ResponseBody = hyper::body::Incoming> + use<>> {
        let ClientFile { ca, grpc, .. } = self.client(caller);
        let tls = tls::client(&ca, Some((&grpc.certificate, &grpc.private_key)), b"h2").unwrap();
        let socket = TcpStream::connect(self.address("grpc")).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(tls).connect(name, socket).await.unwrap();
        let mut http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let handshake = http2.initial_stream_window_size(unread_bytes_max).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let send = tower::service_fn(move |request: http::Request<Body>| sender.clone().send_request(request));
        QuoteSigningServiceClient::with_origin(send, grpc.url.parse().unwrap())
    }

    pub async fn keys(&self, caller: &str) -> KeyDirectoryServiceClient<Channel> {
        KeyDirectoryServiceClient::new(self.client(caller).grpc().await.unwrap())
    }

    pub async fn admin(&self, caller: &str) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.client(caller).admin().await.unwrap())
    }

    /// Status and body of a GET on the operations front.
    pub async fn operations(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut socket = TcpStream::connect(self.address("operations")).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub async fn can_sign(&self) -> bool {
        self.operations("/readyz?for=signing").await.0 == 200
    }

    /// Waits until it can sign.
    pub async fn signing(&self) {
        let start = Instant::now();
        loop {
            let (status, body) = self.operations("/readyz?for=signing").await;
            if status == 200 {
                return;
            }
            if start.elapsed() > PATIENCE {
                let log = self.log.lock().unwrap();
                panic!("the gateway cannot sign: {body}\n{}", log[log.len().saturating_sub(40)..].join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for a log line that holds `text`.
    pub async fn logged(&self, text: &str) {
        until(text, async || self.log.lock().unwrap().iter().any(|line| line.contains(text))).await;
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How much memory it holds, in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Sends this very process a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the gateway does not end: {:#?}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _it_may_have_ended = self.child.wait();
    }
}

/// A client of the signing service.
#[derive(Clone)]
pub struct Caller(pub QuoteSigningServiceClient<Channel>);

impl Caller {
    pub async fn sign(&self, quote: &Quote) -> Result<SignQuoteResponse, Status> {
        self.sign_bytes(quote.bytes()).await
    }

    pub async fn sign_bytes(&self, payload: Vec<u8>) -> Result<SignQuoteResponse, Status> {
        self.sign_in("development", payload).await
    }

    pub async fn sign_in(&self, environment: &str, payload: Vec<u8>) -> Result<SignQuoteResponse, Status> {
        let request = SignQuoteRequest { environment: environment.to_owned(), payload, ..SignQuoteRequest::default() };
        self.0.clone().sign_quote(request).await.map(tonic::Response::into_inner)
    }

    /// Where a sequence stands.
    pub async fn sequence(&self, corridor: &str) -> Result<GetSequenceResponse, Status> {
        let request = GetSequenceRequest { partner: PARTNER.to_owned(), corridor: corridor.to_owned() };
        self.0.clone().get_sequence(request).await.map(tonic::Response::into_inner)
    }

    /// The last number taken.
    pub async fn last(&self) -> u64 {
        self.sequence("").await.unwrap().last
    }
}

/// A quote that keeps the shipped contract, until a test changes it.
#[derive(Clone)]
pub struct Quote(pub Value);

impl Quote {
    /// `examples/quote.json` with a fresh id, times from now and this number.
    pub fn number(sequence: u64) -> Self {
        let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/quote.json")).unwrap();
        let now = SystemClock.now();
        Self(serde_json::from_str(&text).unwrap())
            .with("quote_id", json!(uuid::Uuid::new_v4().to_string()))
            .with("quote_sequence", json!(sequence))
            .with("issued_at", json!(seconds(now)))
            .with("expires_at", json!(seconds(now.plus(Duration::from_mins(10)))))
    }

    pub fn with(mut self, claim: &str, value: Value) -> Self {
        self.0[claim] = value;
        self
    }

    pub fn without(mut self, claim: &str) -> Self {
        self.0.as_object_mut().unwrap().remove(claim);
        self
    }

    /// Sends this many pence, two for one, with sums that hold.
    pub fn sending(self, pence: u64) -> Self {
        let amount = |minor: u64| json!(format!("{}.{:02}", minor / 100, minor % 100));
        self.with("send_amount", amount(pence))
            .with("fx_rate", json!("2.0"))
            .with("receive_amount", amount(2 * pence))
            .with("total_customer_cost", amount(pence + 199))
    }

    /// Issued and expiring this many seconds from now.
    pub fn valid(self, issued_s: i64, expires_s: i64) -> Self {
        let at = |from_now_s: i64| json!(seconds(UtcTime::from_millis(SystemClock.now().millis() + from_now_s * 1000)));
        self.with("issued_at", at(issued_s)).with("expires_at", at(expires_s))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }
}

/// The instant in whole seconds, as the contract spells it.
pub fn seconds(at: UtcTime) -> String {
    UtcTime::from_millis(at.millis() - at.millis().rem_euclid(1000)).to_string()
}

/// A day.
pub const DAY: Duration = Duration::from_hours(24);

/// A TOML value.
pub fn toml(text: &str) -> toml_edit::Item {
    toml_edit::value(text.parse::<toml_edit::Value>().unwrap())
}

/// The entry of policy that `keys generate` printed, with these times: to publish, to sign from and until, and to retire.
pub fn timed_key(printed: &str, times: [UtcTime; 4]) -> toml_edit::Table {
    let printed: toml_edit::DocumentMut = printed.parse().unwrap();
    let mut key = printed["keys"].as_array_of_tables().unwrap().get(0).unwrap().clone();
    for (field, at) in ["publish_at", "sign_from", "sign_until", "retire_at"].into_iter().zip(times) {
        key.insert(field, toml(&seconds(at)));
    }
    key
}

/// What a command printed, which must have succeeded.
#[track_caller]
pub fn done(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command said on stderr, which must have ended with this exit code.
#[track_caller]
pub fn failed(output: Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The refusal, which must have this code, this reason and the domain of all reasons.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, reason: &str) -> Status {
    let status = answer.unwrap_err();
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    let (is, expected) = ((status.code(), &*info.reason, &*info.domain), (code, reason, "quotesign.v1"));
    assert_eq!(is, expected, "{}", status.message());
    status
}

/// The metadata of a refusal's ErrorInfo.
pub fn metadata(status: &Status, key: &str) -> String {
    status.get_details_error_info().unwrap().metadata[key].clone()
}

/// How long a refusal asks to wait.
pub fn wait(status: &Status) -> Duration {
    status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default()
}

/// The quotas that a refusal names.
pub fn quotas(status: &Status) -> Vec<String> {
    let failure = status.get_details_quota_failure().map(|failure| failure.violations).unwrap_or_default();
    failure.into_iter().map(|violation| violation.subject).collect()
}

/// The preconditions that a refusal names, by type and subject.
pub fn preconditions(status: &Status) -> Vec<(String, String)> {
    let failure = status.get_details_precondition_failure().map(|failure| failure.violations).unwrap_or_default();
    failure.into_iter().map(|violation| (violation.r#type, violation.subject)).collect()
}

/// The stable reason of a refusal.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The pointers of a refusal's field violations.
pub fn pointers(status: &Status) -> Vec<String> {
    let request = status.get_details_bad_request().map(|request| request.field_violations).unwrap_or_default();
    request.into_iter().map(|violation| violation.field).collect()
}

impl Site {
    /// Issues a client certificate of this name, for [`Gateway::client`].
    pub fn issue(&self, name: &str, params: CertificateParams) {
        self.authority.issue(&self.path("tls"), name, params);
    }

    /// The ledger, read beside the gateway.
    pub fn ledger(&self) -> Reader {
        Reader::open(&self.path("ledger.sqlite")).unwrap()
    }

    /// How far the ledger says a quote came.
    pub fn stage(&self, quote: &Quote) -> Option<Stage> {
        let identity = Identity::new(Environment::Development, &PARTNER.parse().unwrap(), &quote.id().parse().unwrap());
        self.ledger().quote(&identity).unwrap().map(|quote| quote.stage)
    }

    /// Waits until the ledger holds the quote at this stage.
    pub async fn until_stage(&self, quote: &Quote, what: &str, is: fn(&Stage) -> bool) {
        until(what, async || self.stage(quote).as_ref().is_some_and(is)).await;
    }
}

impl Gateway {
    /// Asks `grpc.health.v1`, as `caller`, how `service` fares; the code where it has no answer.
    pub async fn health(&self, caller: &str, service: &str) -> Result<ServingStatus, Code> {
        let mut health = HealthClient::new(self.client(caller).grpc().await.unwrap());
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await;
        answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
    }
}

impl Quote {
    pub fn id(&self) -> &str {
        self.0["quote_id"].as_str().unwrap()
    }
}
