//! The journal as a collector gets it: an independent decoder says what came, whatever was done to it and to the gateway.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use quotesign::{audit, domain::sha256};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use tonic::Code;

use crate::{
    collector::Collector,
    harness::{Gateway, Quote, Site, done, failed, refused, toml, until, wait},
    server::{Address, Cluster},
};

/// The sink of `tests/external/otlp_sink.py`.
pub struct Sink {
    process: Option<Child>,
    args: Vec<String>,
    out: PathBuf,
    pub ports: BTreeMap<String, u16>,
    /// Nobody listens there and nobody else is given these ports while the sink is away; it may take them all the same.
    _held: [TcpSocket; 2],
}

impl Sink {
    /// At addresses of its own, before it runs.
    pub fn absent(site: &Site, args: &[&str]) -> Self {
        let held = [(); 2].map(|()| {
            let held = TcpSocket::new_v4().unwrap();
            held.set_reuseaddr(true).unwrap();
            held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            held
        });
        let port = |held: &TcpSocket| held.local_addr().unwrap().port();
        let ports = ["grpc", "http"].map(str::to_owned).into_iter().zip(held.iter().map(port)).collect();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { process: None, args, out: site.path("shipped.jsonl"), ports, _held: held }
    }

    pub fn start(&mut self) {
        let here = env!("CARGO_MANIFEST_DIR");
        let mut process = Command::new(format!("{here}/.tools/py/bin/python"))
            .arg(format!("{here}/tests/external/otlp_sink.py"))
            .arg("--out")
            .arg(&self.out)
            .args(["--grpc", &self.ports["grpc"].to_string(), "--http", &self.ports["http"].to_string()])
            .args(&self.args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.ports = serde_json::from_str(&line).expect("the sink says where it is");
        self.process = Some(process);
    }

    pub fn running(site: &Site, args: &[&str]) -> Self {
        let mut sink = Self::absent(site, args);
        sink.start();
        sink
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.process.as_ref().unwrap()), signal).unwrap();
    }

    fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    async fn control(&self, request: &str, body: &str) -> String {
        let mut socket = TcpStream::connect(("127.0.0.1", self.ports["control"])).await.unwrap();
        let length = body.len();
        let request =
            format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    pub async fn fault(&self, fault: Value) {
        self.control("POST /fault", &fault.to_string()).await;
    }

    async fn stats(&self) -> Value {
        let stats: Value = serde_json::from_str(&self.control("GET /stats", "").await).unwrap();
        stats["logs"].clone()
    }

    /// Waits until it was called once more.
    async fn called(&self) {
        let before = self.stats().await["calls"].as_u64().unwrap();
        until("a call", async || self.stats().await["calls"].as_u64().unwrap() > before).await;
    }

    /// All lines of a signal.
    pub fn lines(&self, signal: &str) -> Vec<Value> {
        let text = fs::read_to_string(&self.out).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["signal"] == signal).collect()
    }

    /// What came, in the order in which it came first; what came twice was the same.
    fn records(&self) -> BTreeMap<String, Vec<Value>> {
        let mut lanes: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        let mut seen: BTreeMap<(String, u64), Value> = BTreeMap::new();
        for log in self.lines("log") {
            let lane = lanes.entry(log["attributes"]["quotesign.audit.lane"].as_str().unwrap().to_owned()).or_default();
            let index = |log: &Value| log["attributes"]["quotesign.audit.index"].as_u64().unwrap();
            let name = log["attributes"]["quotesign.audit.lane"].as_str().unwrap().to_owned();
            match seen.entry((name, index(&log))) {
                Entry::Occupied(first) => assert_eq!(*first.get(), log["raw_sha256"], "what came twice is the same"),
                Entry::Vacant(place) => {
                    place.insert(log["raw_sha256"].clone());
                    lane.push(log);
                }
            }
        }
        lanes
    }

    /// Waits until the whole journal of the ledger has come, but for `aside`; in order, with a chain that holds.
    async fn has_all(&self, site: &Site, aside: &[u64]) {
        let mut missing = String::new();
        until("everything has come", async || {
            let export = done(site.run(&["audit", "export"]));
            let came = self.records();
            missing = String::new();
            let (mut lane, mut count) = (String::new(), 0);
            for line in export.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
                if let Some(name) = line["lane"].as_str() {
                    (lane, count) = (name.to_owned(), 0);
                } else if let Some(index) = line["index"].as_u64() {
                    let log = came.get(&lane).and_then(|logs| logs.get(usize::try_from(count).unwrap()));
                    if aside.contains(&index) {
                        continue;
                    }
                    count += 1;
                    if log.is_none_or(|log| log["body"] != line["record"]) {
                        missing = format!("{lane}/{index}");
                        return false;
                    }
                }
            }
            came.get(&lane).map_or(0, Vec::len) == usize::try_from(count).unwrap()
        })
        .await;
        assert_eq!(missing, "");
        if aside.is_empty() {
            self.records().values().for_each(|logs| chain_holds(logs));
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// Whoever gets the records alone can recompute the chain.
fn chain_holds(logs: &[Value]) {
    let (mut link, mut first, mut leaves) = (audit::GENESIS, 0, Vec::new());
    for log in logs {
        let text = |name: &str| log["attributes"][name].as_str().map(str::to_owned);
        let leaf = sha256(&[&[1], log["body"].as_str().unwrap().as_bytes()].concat());
        assert_eq!(text("quotesign.audit.leaf").unwrap(), hex::encode(leaf));
        leaves.push(leaf);
        if let Some(told) = text("quotesign.audit.link") {
            link = audit::link(&link, first, &leaves);
            assert_eq!(told, hex::encode(link));
            first += leaves.len() as u64;
            leaves.clear();
        }
    }
    assert!(first > 0);
}

/// A site that ships to `sink`.
pub fn ship_to(site: &Site, endpoint: &str, rest: &str) {
    site.edit_config(|config| {
        config["otlp"] = toml(&format!("{{ endpoint = '{endpoint}', timeout_ms = 500, {rest} }}"));
    });
}

fn grpc(sink: &Sink) -> String {
    format!("http://127.0.0.1:{}", sink.ports["grpc"])
}

async fn sign(gateway: &Gateway, numbers: impl IntoIterator<Item = u64>) {
    let quotes = gateway.quotes("pricing").await;
    for number in numbers {
        quotes.sign(&Quote::number(number)).await.unwrap();
    }
}

pub async fn metric(gateway: &Gateway, name: &str) -> u64 {
    let text = gateway.operations("/metrics").await.1;
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    let value: f64 = value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole units will do")]
    let whole = value.ceil() as u64;
    whole
}

/// A look at the journal and a request cost as much as many records.
#[tokio::test(flavor = "multi_thread")]
async fn records_share_requests_whatever_the_pace_of_calls() {
    let site = Site::new();
    let sink = Sink::running(&site, &[]);
    ship_to(&site, &grpc(&sink), "");
    let gateway = site.serve().await;
    let began = Instant::now();
    sign(&gateway, 1..=100).await;
    let calls = sink.stats().await["calls"].as_u64().unwrap();
    // Half as long as the pause between two looks.
    let halves = began.elapsed().as_millis() / 125;
    assert!(u128::from(calls) <= halves + 3, "{calls} requests in {:?}", began.elapsed());
    assert!(gateway.stop().success());
    sink.has_all(&site, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_says_what_happened_and_where_it_stands_in_the_chain() {
    let site = Site::new();
    let sink = Sink::running(&site, &[]);
    ship_to(&site, &grpc(&sink), "");
    let gateway = site.serve().await;
    sign(&gateway, 1..=3).await;
    gateway.quotes("auditor").await.sign(&Quote::number(4)).await.unwrap_err();
    assert!(gateway.stop().success());
    sink.has_all(&site, &[]).await;
    let came = sink.records().remove("").unwrap();
    let of = |event: &str| came.iter().find(|log| log["event_name"] == format!("quotesign.{event}")).unwrap().clone();
    let committed = of("quote.committed");
    let body: Value = serde_json::from_str(committed["body"].as_str().unwrap()).unwrap();
    let attributes = &committed["attributes"];
    for (name, value) in [
        ("quotesign.audit.id", &body["id"]),
        ("quotesign.audit.schema", &body["schema"]),
        ("quotesign.correlation_id", &body["context"]["correlation_id"]),
        ("quotesign.environment", &body["context"]["environment"]),
        ("quotesign.gateway.version", &body["context"]["gateway_version"]),
        ("quotesign.caller", &body["context"]["caller"]),
        ("rpc.method", &body["context"]["method"]),
        ("quotesign.partner", &body["context"]["partner"]),
        ("quotesign.quote_id", &body["context"]["quote_id"]),
        ("quotesign.corridor", &body["context"]["corridor"]),
        ("quotesign.kid", &body["facts"]["kid"]),
        ("quotesign.sequence", &body["facts"]["sequence"]),
    ] {
        assert!(!value.is_null() && attributes[name] == *value, "{name}: {committed}");
    }
    assert_eq!((&committed["severity_text"], &committed["severity_number"]), (&"INFO".into(), &9.into()));
    let denied = of("quote.refused");
    assert_eq!(
        (&denied["severity_text"], &denied["attributes"]["quotesign.reason"]),
        (&"WARN".into(), &"POLICY_DENIED".into())
    );
    assert_eq!(committed["resource"]["service.name"], "quotesign");
    assert_eq!(committed["resource"]["deployment.environment.name"], "development");
    assert_eq!(committed["scope"]["name"], "quotesign.audit");
    // In nanoseconds, of a time in milliseconds.
    assert_eq!(committed["time_unix_nano"].as_u64().unwrap() % 1_000_000, 0);
    // The page names every attribute there is.
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/audit-record.md")).unwrap();
    for log in &came {
        for name in log["attributes"].as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{name}`")), "the page does not name {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_collector_answers_everything_arrives_in_order_and_nothing_is_missing() {
    let site = Site::new();
    let mut sink = Sink::absent(&site, &[]);
    ship_to(&site, &grpc(&sink), "");
    // Absent from the start.
    let gateway = site.serve().await;
    sign(&gateway, 1..=3).await;
    gateway.logged("the collector does not take the journal").await;
    until("it is told", async || metric(&gateway, "quotesign_audit_lag_seconds").await > 1).await;
    until("and how many", async || metric(&gateway, "quotesign_audit_lag_records").await >= 6).await;
    assert!(gateway.can_sign().await, "and stops nothing");
    sink.start();
    sink.has_all(&site, &[]).await;
    until("nothing waits", async || metric(&gateway, "quotesign_audit_lag_seconds").await == 0).await;
    let mut number = 3;
    let mut more = async |count: u64| {
        sign(&gateway, number + 1..=number + count).await;
        number += count;
    };
    for fault in [
        json!({ "status": "UNAVAILABLE", "count": 3 }),
        json!({ "status": "RESOURCE_EXHAUSTED", "retry_info_ms": 300, "count": 2 }),
        json!({ "status": "RESOURCE_EXHAUSTED", "count": 3 }),
        json!({ "status": "DEADLINE_EXCEEDED", "count": 2 }),
        json!({ "status": "INVALID_ARGUMENT", "count": 30 }),
        json!({ "status": "INTERNAL", "count": 5 }),
        json!({ "status": "UNAUTHENTICATED", "count": 2 }),
        json!({ "status": "UNIMPLEMENTED", "count": 2 }),
        json!({ "lose_answer": true, "count": 3 }),
        json!({ "slow_ms": 700, "count": 2 }),
        json!({ "hang": true, "count": 2 }),
        json!({ "reject": 1, "count": 1 }),
        json!({ "warn": "slow down", "count": 2 }),
        json!({ "max_bytes": 4000 }),
        json!({ "max_bytes": 4000, "oversize": "OUT_OF_RANGE" }),
    ] {
        println!("{fault}");
        sink.fault(fault).await;
        more(4).await;
        sink.called().await;
        sink.has_all(&site, &[]).await;
        sink.fault(json!({})).await;
    }
    assert_eq!(metric(&gateway, "quotesign_audit_quarantined_records").await, 0);
    // Paused, killed, and the gateway killed meanwhile.
    sink.signal(Signal::STOP);
    more(4).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    sink.signal(Signal::CONT);
    sink.has_all(&site, &[]).await;
    sink.kill();
    more(4).await;
    gateway.kill();
    let gateway = site.serve().await;
    sign(&gateway, number + 1..=number + 4).await;
    sink.start();
    sink.has_all(&site, &[]).await;
    assert!(metric(&gateway, "quotesign_audit_shipping_failures_total").await > 0);
    until("it is counted", async || metric(&gateway, "quotesign_audit_records_shipped_total").await > 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_never_taken_is_set_aside_with_an_alarm_and_the_rest_goes_on() {
    for refuses_all in [false, true] {
        let site = Site::new();
        let sink = Sink::running(&site, &[]);
        ship_to(&site, &grpc(&sink), "");
        let quote = Quote::number(2);
        let poison = json!({ "attribute": "quotesign.quote_id", "value": quote.0["quote_id"] });
        sink.fault(json!({ "poison": poison, "poison_all": refuses_all })).await;
        let gateway = site.serve().await;
        sign(&gateway, [1]).await;
        gateway.quotes("pricing").await.sign(&quote).await.unwrap();
        sign(&gateway, 3..=5).await;
        // Its reservation and its commit.
        until("both are set aside", async || metric(&gateway, "quotesign_audit_quarantined_records").await == 2).await;
        let listed = done(site.run(&["audit", "quarantine"]));
        let aside: Vec<u64> = listed.lines().map(|line| line.split('\t').nth(1).unwrap().parse().unwrap()).collect();
        assert_eq!(aside.len(), 2, "{listed}");
        sink.has_all(&site, &aside).await;
        gateway.logged("it is in quarantine").await;
        // Known after a restart, and refused once more.
        assert!(gateway.stop().success());
        let gateway = site.serve().await;
        until("it is known", async || metric(&gateway, "quotesign_audit_quarantined_records").await == 2).await;
        gateway.logged("refuses records that are in quarantine once more").await;
        let records = site.journal();
        let held = records.iter().filter(|record| record["context"]["quote_id"] == quote.0["quote_id"]).count();
        assert_eq!(held, 2, "they stay in the journal");
        // A mended collector is sent them by the next gateway at its start.
        sink.fault(json!({})).await;
        assert!(gateway.stop().success());
        let gateway = site.serve().await;
        until("it is empty", async || done(site.run(&["audit", "quarantine"])).is_empty()).await;
        let late = || {
            let logs = sink.lines("log").into_iter();
            let logs = logs.filter(|log| log["attributes"]["quotesign.quote_id"] == quote.0["quote_id"]);
            logs.map(|log| log["attributes"]["quotesign.audit.index"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(late(), aside);
        until("it is told", async || metric(&gateway, "quotesign_audit_quarantined_records").await == 0).await;
        gateway.logged("has taken records that were in quarantine").await;
    }
}

/// More than one look tries at once, and a gateway that ends among them: what it has not come to is the next one's.
#[tokio::test(flavor = "multi_thread")]
async fn many_records_leave_quarantine_and_a_gateway_may_end_meanwhile() {
    let site = Site::new();
    let sink = Sink::running(&site, &[]);
    ship_to(&site, &grpc(&sink), "");
    let bad: Vec<_> = (1..=15).map(|number| Quote::number(2 * number)).collect();
    let ids: Vec<_> = bad.iter().map(|quote| quote.0["quote_id"].clone()).collect();
    sink.fault(json!({ "poison": { "attribute": "quotesign.quote_id", "value": ids } })).await;
    let gateway = site.serve().await;
    for (number, quote) in (0..).zip(&bad) {
        sign(&gateway, [2 * number + 1]).await;
        gateway.quotes("pricing").await.sign(quote).await.unwrap();
    }
    sign(&gateway, [31]).await;
    until("all are set aside", async || metric(&gateway, "quotesign_audit_quarantined_records").await == 30).await;
    assert!(gateway.stop().success());

    // Mended, and so slow that it is among the trials when it ends.
    sink.fault(json!({ "slow_ms": 100 })).await;
    let gateway = site.serve().await;
    gateway.logged("has taken records that were in quarantine").await;
    let began = Instant::now();
    assert!(gateway.stop().success());
    assert!(began.elapsed() < Duration::from_secs(8), "it ended after {:?}", began.elapsed());
    let left = done(site.run(&["audit", "quarantine"])).lines().count();
    assert!((1..30).contains(&left), "{left} are left");
    let gateway = site.serve().await;
    until("none is left", async || done(site.run(&["audit", "quarantine"])).is_empty()).await;
    assert!(gateway.stop().success());
    let logs = sink.records().remove("").unwrap();
    let came = |id: &Value| logs.iter().filter(|log| log["attributes"]["quotesign.quote_id"] == *id).count();
    assert!(ids.iter().all(|id| came(id) == 2), "a reservation and a commit of each");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_headers_by_file_by_grpc_and_by_http() {
    for protocol in ["grpc", "http/protobuf"] {
        let site = Site::new();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        site.authority.issue(&site.path("tls"), "collector", params);
        let [cert, key] = ["pem", "key"].map(|end| site.path(&format!("tls/collector.{end}")).display().to_string());
        fs::copy(site.path("tls/ca.pem"), site.path("tls/collectors.pem")).unwrap();
        let args = ["--cert", &cert, "--key", &key, "--need-header", "authorization=Bearer not-a-real-one"];
        let mut sink = Sink::running(&site, &args);
        fs::write(site.path("headers"), "Authorization: Bearer not-a-real-one\n").unwrap();
        let port = sink.ports[if protocol == "grpc" { "grpc" } else { "http" }];
        let with = |rest: &str| {
            ship_to(
                &site,
                &format!("https://127.0.0.1:{port}"),
                &format!("protocol = '{protocol}', ca = 'tls/collectors.pem', {rest}"),
            );
        };
        with("");
        let gateway = site.serve().await;
        sign(&gateway, 1..=2).await;
        gateway.logged(if protocol == "grpc" { "Unauthenticated" } else { "401" }).await;
        assert!(gateway.stop().success());
        assert!(sink.records().is_empty());
        with("headers_file = 'headers'");
        let gateway = site.serve().await;
        sign(&gateway, 3..=4).await;
        sink.has_all(&site, &[]).await;
        // Every kind of trouble over HTTP, too.
        let faults = [
            json!({ "status": "RESOURCE_EXHAUSTED", "retry_info_ms": 900, "count": 1 }),
            json!({ "status": "UNAVAILABLE", "count": 1 }),
            json!({ "lose_answer": true, "count": 2 }),
            json!({ "max_bytes": 4000 }),
            json!({ "hang": true, "count": 1 }),
        ];
        for (number, fault) in (5..).zip(faults) {
            sink.fault(fault).await;
            sign(&gateway, [number]).await;
            sink.called().await;
            sink.has_all(&site, &[]).await;
        }
        // The collector comes back with a certificate of another CA and wants another token; both are exchanged in their files.
        sink.kill();
        let another = crate::harness::Authority::named("another");
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        another.issue(&site.path("tls"), "collector", params);
        fs::write(site.path("tls/collectors.pem"), &another.pem).unwrap();
        sink.args.last_mut().unwrap().push_str("-either");
        sink.start();
        sign(&gateway, [20]).await;
        gateway.logged(if protocol == "grpc" { "Unauthenticated" } else { "401" }).await;
        fs::write(site.path("headers"), "Authorization: Bearer not-a-real-one-either\n").unwrap();
        sink.has_all(&site, &[]).await;
        let log = gateway.log.lock().unwrap().concat();
        assert!(!log.contains("not-a-real-one"), "no header is told");
        assert!(gateway.stop().success());
        // A certificate of another CA is none.
        fs::write(site.path("tls/other.pem"), crate::harness::Authority::named("another").pem).unwrap();
        ship_to(&site, &format!("https://127.0.0.1:{port}"), &format!("protocol = '{protocol}', ca = 'tls/other.pem'"));
        let gateway = site.serve().await;
        gateway.logged("invalid peer certificate").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_collector_takes_the_journal_by_the_config_that_goes_with_it() {
    let collector = Collector::serve(|config| config).await;
    let site = Site::new();
    ship_to(&site, &collector.grpc, &collector.identity());
    let gateway = site.serve().await;
    sign(&gateway, 1..=20).await;
    assert!(gateway.stop().success());
    let mut bodies = Vec::new();
    collector.bodies(|body| bodies.push(body.to_owned()));
    let journal = done(site.run(&["audit", "tail", "-n", "1000"]));
    assert_eq!(bodies, journal.lines().map(str::to_owned).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_of_a_gateway_that_is_gone_is_shipped_by_another() {
    let cluster = Cluster::shared();
    let database = cluster.empty();
    let site = Site::new();
    let mut sink = Sink::absent(&site, &[]);
    site.keep_ledger_in(&database.address(), "");
    ship_to(&site, &grpc(&sink), "");
    let start = |name: &str| {
        let mut command = site.command();
        command.env("QUOTESIGN__LEDGER__POSTGRES__REPLICA", name);
        command.arg("serve").arg("--config").arg(site.config());
        Gateway::spawn(command, &site)
    };
    let (gone, stays) = (start("gw-a"), start("gw-b"));
    for (number, gateway) in [(1, &gone), (2, &stays)] {
        gateway.signing().await;
        sign(gateway, [number]).await;
    }
    gone.kill();
    sink.start();
    sink.has_all(&site, &[]).await;
    assert_eq!(sink.records().keys().collect::<Vec<_>>(), ["gw-a", "gw-b"]);
    let log = stays.log.clone();
    assert!(stays.stop().success());
    sink.has_all(&site, &[]).await;
    until("the end of its log", async || Arc::strong_count(&log) == 1).await;
    let panicked: Vec<_> = log.lock().unwrap().iter().filter(|line| line.contains("panicked")).cloned().collect();
    assert!(panicked.is_empty(), "{panicked:#?}");
}

/// The server of before lives on, and so does the connection by which the journal was read to be shipped.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_journal_is_shipped_from_where_it_is_written() {
    let cluster = Cluster::new(&[]);
    let (database, site) = (cluster.empty(), Site::new());
    let sink = Sink::running(&site, &[]);
    let address = Address::of(cluster.port);
    site.keep_ledger_in(&format!("postgresql://postgres@127.0.0.1:{}/{}", address.port, database.name), "");
    let standby = cluster.standby();
    ship_to(&site, &grpc(&sink), "");
    // So much shorter is the time that a server which takes over is left alone.
    let site = site.with("QUOTESIGN__LEDGER__POSTGRES__TIMEOUT_MS", "2000");
    let gateway = site.serve().await;
    sign(&gateway, [1]).await;
    sink.has_all(&site, &[]).await;
    database.fails_over_to(&standby, &address);
    let pricing = gateway.quotes("pricing").await;
    until("it signs again", async || pricing.sign(&Quote::number(2)).await.is_ok()).await;
    sink.has_all(&site, &[]).await;
    assert!(gateway.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_config_says_so_nothing_is_signed_beyond_a_lag_and_what_was_signed_is_given() {
    let site = Site::new();
    let mut sink = Sink::absent(&site, &[]);
    ship_to(&site, &grpc(&sink), "refuse_after_s = 10");
    let gateway = site.serve().await;
    let quotes = gateway.quotes("pricing").await;
    let first = Quote::number(1);
    let signed = quotes.sign(&first).await.unwrap();
    let mut number = 2;
    until("it is too far behind", async || {
        let answer = quotes.sign(&Quote::number(number)).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(300)).await;
        answer.is_err()
    })
    .await;
    let last = quotes.last().await;
    let lag = refused(quotes.sign(&Quote::number(last + 1)).await, Code::Unavailable, "AUDIT_LAG");
    assert!(wait(&lag) > Duration::ZERO);
    assert_eq!(quotes.last().await, last, "no number was taken");
    assert_eq!(quotes.sign(&first).await.unwrap().jws, signed.jws);
    // Whoever balances calls hears that this gateway signs nothing.
    until("health says so", async || gateway.operations("/readyz?for=signing").await.0 == 503).await;
    assert_eq!(gateway.operations("/readyz?for=jwks").await.0, 200);
    let status = gateway.operations("/metrics").await.1;
    assert!(status.contains("component_serving{component=\"signing\"} 0"), "{status}");
    sink.start();
    until("it signs again", async || quotes.sign(&Quote::number(last + 1)).await.is_ok()).await;
}

#[test]
fn a_collector_that_cannot_be_one_is_refused_with_the_remedy() {
    let site = Site::new();
    for (otlp, said) in [
        ("endpoint = 'collector:4317'", "`otlp.endpoint` is no http:// or https:// address"),
        (
            "endpoint = 'https://token@collector:4317', ca = 'tls/ca.pem'",
            "`otlp.endpoint` is no http:// or https:// address",
        ),
        ("endpoint = 'http://collector:4317/no/such'", "gRPC has no path"),
        (
            "endpoint = 'http://collector:4318/otlp/v1/logs', protocol = 'http/protobuf'",
            "leave `/v1/logs` and the like out",
        ),
        ("endpoint = 'https://collector:4317'", "`otlp.ca`: give the CA"),
        ("endpoint = 'https://collector:4317', ca = 'none.pem'", "[otlp]: "),
        ("endpoint = 'http://collector:4317', ca = 'tls/ca.pem'", "are for an https:// endpoint"),
        ("endpoint = 'http://collector:4317', protocol = 'http/json'", "`otlp.protocol`"),
        ("endpoint = 'http://collector:4317', timeout_ms = 10", "give 100 to 60000"),
        ("endpoint = 'http://collector:4317', refuse_after_s = 1", "give 10 to 86400"),
        ("endpoint = 'http://collector:4317', headers_file = 'pin'", "line 1 is no header"),
    ] {
        site.edit_config(|config| config["otlp"] = toml(&format!("{{ {otlp} }}")));
        let refused = failed(site.run(&["config", "check"]), 2);
        assert!(refused.contains(said) && !refused.contains("token@"), "{otlp}: {refused}");
    }
    site.edit_config(|config| {
        config["otlp"] = toml("{ endpoint = 'http://collector:4317' }");
        config["environment"] = toml("'production'");
        config["ledger"]["anchor"] = toml("'anchor'");
    });
    let refused = failed(site.run(&["config", "check"]), 2);
    assert!(refused.contains("production ships the journal over TLS alone"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_to_the_cursor_or_a_record_stops_no_shipping_in_silence() {
    let site = Site::new();
    let mut sink = Sink::absent(&site, &[]);
    ship_to(&site, &grpc(&sink), "");
    let gateway = site.serve().await;
    sign(&gateway, 1..=3).await;
    assert!(gateway.stop().success());
    let ledger = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
    for cursor in ["1000000", "-1"] {
        ledger
            .execute(
                &format!(
                    "INSERT INTO shipment VALUES ('', {cursor}) ON CONFLICT (lane) DO UPDATE SET next_idx = {cursor}"
                ),
                (),
            )
            .unwrap();
        let _absent = fs::remove_file(&sink.out);
        sink.start();
        let gateway = site.serve().await;
        sink.has_all(&site, &[]).await;
        assert!(gateway.stop().success());
        sink.kill();
    }
    // A record that is none is shipped as what it is, and the rest with it.
    ledger.execute("UPDATE audit SET record = x'7b7d' WHERE idx = 4", ()).unwrap();
    ledger.execute("DELETE FROM shipment", ()).unwrap();
    let _absent = fs::remove_file(&sink.out);
    sink.start();
    let gateway = site.serve().await;
    let last = |sink: &Sink| {
        sink.lines("log").iter().filter_map(|log| log["attributes"]["quotesign.audit.index"].as_u64()).max()
    };
    until("all has come", async || last(&sink) >= Some(10)).await;
    let unreadable =
        sink.lines("log").into_iter().find(|log| log["event_name"] == "quotesign.audit.unreadable").unwrap();
    assert_eq!((&unreadable["severity_text"], &unreadable["body"]["bytes"]), (&"ERROR".into(), &"7b7d".into()));
    // One that says "again in no time" is not asked all the time.
    sink.fault(json!({ "status": "RESOURCE_EXHAUSTED", "retry_info_ms": 0 })).await;
    sign(&gateway, 4..=5).await;
    let before = sink.stats().await["calls"].as_u64().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(sink.stats().await["calls"].as_u64().unwrap() - before < 12);
}

/// What is gone cannot be shipped. It is told, counts as waiting, and is in the way of nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_the_journal_or_out_of_it_is_told_and_the_rest_is_shipped() {
    let site = Site::new();
    // Its records would come behind the cut.
    site.edit_config(|config| drop(config["audit"].as_table_mut().unwrap().remove("checkpoint")));
    let mut sink = Sink::absent(&site, &[]);
    ship_to(&site, &grpc(&sink), "");
    let gateway = site.serve().await;
    sign(&gateway, 1..=3).await;
    let ledger = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
    let last: u32 = ledger.query_row("SELECT max(idx) FROM audit", (), |row| row.get(0)).unwrap();
    ledger.execute("DELETE FROM audit WHERE idx = ?1", [last]).unwrap();
    let last = u64::from(last);
    sink.start();
    gateway.logged("the journal is not shipped: lane").await;
    let newest = |sink: &Sink| {
        sink.lines("log").iter().filter_map(|log| log["attributes"]["quotesign.audit.index"].as_u64()).max()
    };
    assert_eq!(newest(&sink), Some(last - 1));
    until("what is gone waits", async || metric(&gateway, "quotesign_audit_lag_records").await == 1).await;
    until("and for how long", async || metric(&gateway, "quotesign_audit_lag_seconds").await >= 2).await;
    let failures = metric(&gateway, "quotesign_audit_shipping_failures_total").await;

    sign(&gateway, 4..=4).await;
    gateway.logged("records of the journal are gone").await;
    until("the rest has come", async || newest(&sink) == Some(last + 2)).await;
    until("it is counted", async || metric(&gateway, "quotesign_audit_gone_records_total").await == 1).await;
    until("nothing waits", async || metric(&gateway, "quotesign_audit_lag_records").await == 0).await;
    assert_eq!(
        metric(&gateway, "quotesign_audit_shipping_failures_total").await,
        failures,
        "the collector took it all"
    );
    for once in ["the journal is not shipped: lane", "records of the journal are gone"] {
        let log = gateway.log.lock().unwrap();
        let told: Vec<_> = log.iter().filter(|line| line.contains(once)).collect();
        assert_eq!(told.len(), 1, "{told:#?}");
    }
    assert!(gateway.stop().success());
}

/// More than the queue of any SDK holds, and more than goes into one request.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_backlog_arrives_whole() {
    let site = Site::new();
    site.edit_policy(|policy| {
        for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            policy["quotas"][quota] = toml("{ per_second = 1000000, burst = 1000000 }");
        }
    });
    let mut sink = Sink::absent(&site, &[]);
    ship_to(&site, &grpc(&sink), "");
    let gateway = site.serve().await;
    sign(&gateway, 1..=1_100).await;
    until("they wait", async || metric(&gateway, "quotesign_audit_lag_records").await > 2_048).await;
    sink.start();
    sink.has_all(&site, &[]).await;
    assert!(sink.stats().await["largest_records"].as_u64().unwrap() <= 512);
    assert!(gateway.stop().success());
}
