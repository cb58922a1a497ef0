//! The clients of `clients/` against the real gateway, and against one that answers as it is told to.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use http::{Request as HttpRequest, Response as HttpResponse};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use quotesign::{
    config::GrpcListener,
    pipeline::refusal::{answer, is_retryable, name},
    proto::{
        DESCRIPTORS, GetSequenceRequest, GetSequenceResponse, HaltReach, HaltRequest, Reason, Refusal, ResumeRequest,
        SignQuoteRequest, SignQuoteResponse, SignQuotesRequest, SignQuotesResponse, halt_reach::To,
        sign_quotes_response::Answer,
    },
    transport::tls,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Request, Response, Status, Streaming, body::Body, server::Grpc};
use tonic_prost::ProstCodec;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    harness::{Authority, Caller, Gateway, PARTNER, Site, TRUST_DOMAIN, client_certificate, public_place, toml, until},
    stages::repository,
};

/// How the program of a language is begun.
type Program = fn() -> Command;

fn in_tools(program: &str) -> Command {
    Command::new(repository(".tools").join(program))
}

fn python() -> Command {
    let mut command = in_tools("clients-python/bin/python");
    command.env("PYTHONPATH", repository(".tools/clients-python/gen")).env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(repository("clients/python/main.py"));
    command
}

fn node() -> Command {
    let mut command = Command::new("node");
    command.arg(repository(".tools/clients-node/main.mjs")).arg("--proto").arg(repository("proto"));
    command
}

fn go() -> Command {
    in_tools("clients-go/client")
}

fn java() -> Command {
    let mut command = Command::new("java");
    // It lives for seconds.
    command
        .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-jar"])
        .arg(repository(".tools/clients-java/source/target/quotesign-client.jar"));
    command
}

const PROGRAMS: [(&str, Program); 4] = [("python", python), ("node", node), ("go", go), ("java", java)];

/// A program under way, and what it has said.
struct Run {
    child: Child,
    steps: Lines,
    log: Lines,
}

/// The JSON lines of a stream, and whether it has ended.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<(Vec<Value>, bool)>>);

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let kept = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                kept.0.lock().unwrap().0.push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
            kept.0.lock().unwrap().1 = true;
        });
        lines
    }

    fn get(&self) -> Vec<Value> {
        self.0.lock().unwrap().0.clone()
    }

    fn any(&self, is: impl Fn(&Value) -> bool) -> bool {
        self.0.lock().unwrap().0.iter().any(is)
    }

    fn has_ended(&self) -> bool {
        self.0.lock().unwrap().1
    }
}

/// Where a client is sent.
struct Target<'a> {
    site: &'a Site,
    address: SocketAddr,
    jwks: String,
}

impl Target<'_> {
    fn run(&self, program: Program, more: &[&str]) -> Run {
        let mut command = program();
        let tls = |name: &str| self.site.path("tls").join(name);
        command.arg("--address").arg(self.address.to_string()).arg("--jwks").arg(&self.jwks);
        command
            .arg("--ca")
            .arg(tls("ca.pem"))
            .arg("--cert")
            .arg(tls("pricing.pem"))
            .arg("--key")
            .arg(tls("pricing.key"));
        command.arg("--payload").arg(repository("examples/quote.json"));
        if !more.contains(&"--service-config") {
            command.arg("--service-config").arg(repository("clients/service-config.json"));
        }
        let mut child = command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (steps, log) = (Lines::of(child.stdout.take().unwrap()), Lines::of(child.stderr.take().unwrap()));
        Run { child, steps, log }
    }
}

impl Run {
    /// Waits until it ends well; the steps it told.
    async fn done(mut self) -> Vec<Value> {
        until("the client ends", async || self.steps.has_ended() && self.log.has_ended()).await;
        assert!(self.child.wait().unwrap().success(), "{:#?}\n{:#?}", self.steps.get(), self.log.get());
        self.steps.get()
    }

    /// Waits until it has told of this many steps.
    async fn told(&self, steps: usize) {
        until("the client gets on", async || self.steps.get().len() >= steps).await;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _it_may_have_ended = self.child.wait();
    }
}

/// An address that stays while gateways come and go.
struct Front {
    address: SocketAddr,
    behind: Arc<Mutex<Option<SocketAddr>>>,
    /// How many connections came.
    came: Arc<AtomicUsize>,
    /// How many of them, from the first on, say nothing any more, and do not end either.
    silent: watch::Sender<usize>,
}

impl Front {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let behind = Arc::new(Mutex::new(None));
        let came = Arc::<AtomicUsize>::default();
        let (now, count) = (behind.clone(), came.clone());
        let (silent, told) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let target: Option<SocketAddr> = *now.lock().unwrap();
                let mut told = told.clone();
                tokio::spawn(async move {
                    if let Some(target) = target
                        && let Ok(mut to) = TcpStream::connect(target).await
                    {
                        let silence = async { drop(told.wait_for(|silent| number < *silent).await) };
                        tokio::select! {
                            _either_may_break = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                            () = silence => std::future::pending().await,
                        }
                    }
                });
            }
        });
        Self { address, behind, came, silent }
    }

    /// The connections that there are fall silent.
    fn silences(&self) {
        self.silent.send_replace(self.came());
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }

    fn shows(&self, gateway: &Gateway) {
        *self.behind.lock().unwrap() = Some(gateway.address("grpc"));
    }

    fn hides(&self) {
        *self.behind.lock().unwrap() = None;
    }
}

/// The one line of this step.
#[track_caller]
fn step<'a>(steps: &'a [Value], name: &str) -> &'a Value {
    let [line] = &*steps.iter().filter(|line| line["step"] == name).collect::<Vec<_>>() else {
        panic!("{name}: {steps:#?}")
    };
    line
}

/// The rows of the table of `docs/clients.md` whose head begins with these cells.
fn table(head: &str) -> Vec<Vec<String>> {
    let page = fs::read_to_string(repository("docs/clients.md")).unwrap();
    let rows = page.split_once(head).unwrap().1.split_once("\n\n").unwrap().0.to_owned();
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
    rows.lines().skip(2).map(cells).collect()
}

/// What the document has a client do about each reason.
fn actions() -> BTreeMap<String, String> {
    table("| code | reason |").into_iter().map(|row| (row[2].clone(), row[3].clone())).collect()
}

fn reasons() -> impl Iterator<Item = Reason> {
    (1..1000).filter_map(|number| Reason::try_from(number).ok())
}

/// Everything that a client must do, in one language.
async fn keeps_the_contract(program: Program) {
    // At once, since each of them waits more than it works; on threads of their own, since each also blocks now and then.
    let handle = Handle::current();
    let trials = [
        begun(&handle, move || walks_through_every_kind_of_answer(program)),
        begun(&handle, move || waits_as_a_quota_asks(program)),
        begun(&handle, move || gets_over_what_is_away(program)),
        begun(&handle, move || decides_by_the_reason(program, "burst")),
        begun(&handle, move || decides_by_the_reason(program, "stream")),
        begun(&handle, move || goes_on_where_a_stream_ended(program)),
        begun(&handle, move || keeps_the_order_over_streams(program)),
        begun(&handle, move || takes_up_a_new_certificate(program)),
        begun(&handle, move || leaves_a_silent_connection(program)),
        begun(&handle, move || minds_its_time(program)),
        begun(&handle, move || tells_missing_keys_from_an_invalid_quote(program)),
    ];
    for trial in trials {
        trial.await.unwrap();
    }
}

fn begun<F: Future<Output = ()>>(handle: &Handle, trial: impl FnOnce() -> F + Send + 'static) -> JoinHandle<()> {
    let handle = handle.clone();
    tokio::task::spawn_blocking(move || handle.block_on(trial()))
}

async fn walks_through_every_kind_of_answer(program: Program) {
    let site = Site::new();
    let gateway = site.serve().await;
    let jwks = gateway.client("pricing").jwks_url(&PARTNER.parse().unwrap());
    let to = Target { site: &site, address: gateway.address("grpc"), jwks };
    let steps = to.run(program, &[]).done().await;
    assert_eq!(step(&steps, "resume")["last"], 0);
    let (signed, replay) = (step(&steps, "sign"), step(&steps, "replay"));
    assert_eq!((&signed["sequence"], &signed["replayed"]), (&json!(1), &json!(false)));
    assert_eq!((&replay["sequence"], &replay["replayed"]), (&json!(1), &json!(true)));
    assert_eq!((&signed["jws_sha256"], &signed["kid"]), (&replay["jws_sha256"], &replay["kid"]));
    for (name, code, reason) in [
        ("conflict", "ALREADY_EXISTS", "QUOTE_CONFLICT"),
        ("schema", "INVALID_ARGUMENT", "SCHEMA_VIOLATION"),
        ("sequence", "FAILED_PRECONDITION", "SEQUENCE_NOT_MONOTONIC"),
        ("denied", "PERMISSION_DENIED", "POLICY_DENIED"),
        ("expired", "FAILED_PRECONDITION", "QUOTE_EXPIRED"),
    ] {
        let refused = step(&steps, name);
        let is = (&refused["code"], &refused["reason"], &refused["action"], &refused["attempts"]);
        assert_eq!(is, (&json!(code), &json!(reason), &json!(actions()[reason]), &json!(1)), "{name}");
    }
    assert_eq!(step(&steps, "schema")["violations"], json!(["/corridor", "/total_customer_cost"]));
    let resumed = step(&steps, "sequence-resumed");
    assert_eq!((&resumed["sequence"], &resumed["replayed"]), (&json!(2), &json!(false)));
    assert_eq!(step(&steps, "verify")["valid"], true);
    for failed in ["verify-changed", "verify-expired"] {
        assert_eq!(step(&steps, failed)["valid"], false, "{failed}");
    }
    assert!(step(&steps, "verify-expired")["why"].as_str().unwrap().contains("expired"));
    for line in steps.iter().filter(|line| !line["correlation_id"].is_null()) {
        let id = line["correlation_id"].as_str().unwrap();
        gateway.logged(&format!("\"correlation_id\":\"{id}\"")).await;
    }
    // Begun anew, it goes on behind the last number taken.
    let again = to.run(program, &["--steps", "resume,sign"]).done().await;
    assert_eq!((&step(&again, "resume")["last"], &step(&again, "sign")["sequence"]), (&json!(2), &json!(3)));
    let (streamed, mut last) = (to.run(program, &["--steps", "stream", "--count", "20"]).done().await, 3);
    all_signed(&streamed, 20, &mut last);
    assert!(last == 23 && streamed.iter().all(|line| line["attempts"] == 1), "{streamed:#?}");
    let id = streamed[19]["correlation_id"].as_str().unwrap();
    gateway.logged(&format!("\"correlation_id\":\"{id}\"")).await;
}

/// A key set that cannot be had says nothing of a quote. It is asked for once, however many quotes are checked with it; so one that had
/// no such key a moment ago says nothing of a quote that came since.
async fn tells_missing_keys_from_an_invalid_quote(program: Program) {
    let site = Site::new();
    let gateway = site.serve().await;
    let other = Authority::new();
    // It never ends, one way or another; and one that another CA vouches for is not taken.
    let too_slow = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n{\"keys\":[";
    let endless = format!("{too_slow}{}", " ".repeat(2 << 20));
    let short = |head: &str, body: &str| {
        format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let at_the_gateway = gateway.client("pricing").jwks_url(&PARTNER.parse().unwrap());
    for (what, authority, answer) in [
        ("another CA", &other, too_slow),
        ("not now", &site.authority, &short("503 Service Unavailable", "")),
        ("elsewhere", &site.authority, &short(&format!("302 Found\r\nlocation: {at_the_gateway}"), "")),
        ("too large", &site.authority, &endless),
        ("too slow", &site.authority, too_slow),
        ("the only key is revoked: the set is empty", &site.authority, &short("200 OK", "{\"keys\":[]}")),
    ] {
        let certificate = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let (acceptor, socket, jwks) = public_place(authority.issue(&site.path(""), "place", certificate)).await;
        let (asked, answer) = (Arc::<AtomicUsize>::default(), answer.to_owned());
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut more = answer.as_bytes();
                    while stream.write_all(more).await.is_ok() {
                        more = b" ";
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                });
            }
        });
        let to = Target { site: &site, address: gateway.address("grpc"), jwks };
        let steps = to.run(program, &["--steps", "sign,verify"]).done().await;
        for name in ["verify", "verify-changed", "verify-expired"] {
            let said = step(&steps, name);
            if name == "verify" && what.contains("empty") {
                assert!(
                    said["valid"] == false && said["why"].as_str().unwrap().contains("has no key"),
                    "{what}: {said}"
                );
            } else {
                assert!(said["valid"].is_null() && said["keys_unavailable"].is_string(), "{what}: {said}");
            }
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1, "{what}");
    }
}

async fn waits_as_a_quota_asks(program: Program) {
    let site = Site::new();
    site.edit_policy(|policy| policy["quotas"]["attempts_per_caller"] = toml("{ per_second = 2, burst = 2 }"));
    let gateway = site.serve().await;
    let to = Target { site: &site, address: gateway.address("grpc"), jwks: "https://127.0.0.1:9/".to_owned() };
    // Without a service config: with one, Java's library itself waits as `grpc-retry-pushback-ms` says.
    let none = site.path("none.json");
    fs::write(&none, "{}").unwrap();
    let run = to.run(program, &["--steps", "burst", "--count", "3", "--service-config", none.to_str().unwrap()]);
    // However slow it is, somebody else of its name leaves nothing of the quota until it has met that.
    let other = gateway.quotes("pricing").await;
    until("it meets a spent quota", async || {
        other.sign_bytes(b"no JSON".to_vec()).await.unwrap_err();
        run.log.any(|line| line["reason"] == "RATE_LIMITED")
    })
    .await;
    let log = run.log.clone();
    let steps = run.done().await;
    assert_eq!(steps.iter().filter(|line| line["replayed"] == false).count(), 3, "{steps:#?}");
    // How long it waits is held by `decides_by_the_reason`, to the millisecond.
    let waited = log.get().into_iter().filter(|line| line["reason"] == "RATE_LIMITED").collect::<Vec<_>>();
    assert!(waited.iter().all(|line| line["wait_s"].as_f64() > Some(0.0)), "{waited:#?}");
}

async fn gets_over_what_is_away(program: Program) {
    const COUNT: usize = 100;
    let site = Site::new().with("QUOTESIGN__DRAIN__GRACE_MS", "0");
    let front = Front::new().await;
    let mut gateway = site.serve().await;
    front.shows(&gateway);
    let to = Target { site: &site, address: front.address, jwks: "https://127.0.0.1:9/".to_owned() };
    let mut expected = 0;

    // A restart, and then a crash, while quotes are on their way.
    let count = COUNT.to_string();
    let run = to.run(program, &["--steps", "burst", "--count", &count]);
    run.told(10).await;
    let begun = Instant::now();
    assert!(gateway.stop().success());
    gateway = site.serve().await;
    front.shows(&gateway);
    let away = begun.elapsed();
    let before = run.steps.get().len();
    run.told(before + 5).await;
    let unseen = run.steps.get().iter().all(|line| line["attempts"] == 1);
    // Within one attempt's deadline nobody notices.
    assert!(unseen || away > Duration::from_secs(3), "{away:?}: {:#?}", run.log.get());
    gateway.kill();
    gateway = site.serve().await;
    front.shows(&gateway);
    assert!(before < COUNT, "it was over before the restart was");
    all_signed(&run.done().await, COUNT, &mut expected);

    // The same while they are on their way over a stream. Whoever looks on is there before, lest it be over by then.
    let quotes = gateway.quotes("pricing").await;
    let run = to.run(program, &["--steps", "stream", "--count", "300"]);
    let on_its_way = async |quotes: &Caller, number| {
        until("quotes are signed", async || quotes.last().await > number).await;
        quotes.last().await
    };
    let last = on_its_way(&quotes, expected + 10).await;
    assert!(gateway.stop().success());
    gateway = site.serve().await;
    let quotes = gateway.quotes("pricing").await;
    front.shows(&gateway);
    let last = on_its_way(&quotes, last + 75).await;
    gateway.kill();
    gateway = site.serve().await;
    front.shows(&gateway);
    assert!(last < expected + 300, "it was over before the crash was");
    let steps = run.done().await;
    all_signed(&steps, 300, &mut expected);
    assert!(steps.iter().any(|line| line["attempts"].as_u64() > Some(1)), "{steps:#?}");

    // The operators halt signing, and go on once the client has met that.
    let admin = gateway.admin("operator").await;
    let (reach, reason) = (|| Some(HaltReach { to: Some(To::All(true)) }), || "a test".to_owned());
    admin.clone().halt(HaltRequest { reach: reach(), reason: reason() }).await.unwrap();
    let run = to.run(program, &["--steps", "burst", "--count", "2"]);
    until("it is refused", async || run.log.any(|line| line["reason"] == "SIGNING_HALTED")).await;
    admin.clone().resume(ResumeRequest { reach: reach(), reason: reason() }).await.unwrap();
    all_signed(&run.done().await, 2, &mut expected);

    // The same over streams, for more of them than are sent in vain.
    admin.clone().halt(HaltRequest { reach: reach(), reason: reason() }).await.unwrap();
    let run = to.run(program, &["--steps", "stream", "--count", "2"]);
    until("it comes again", async || run.log.any(|line| line["attempt"].as_u64() > Some(9))).await;
    admin.clone().resume(ResumeRequest { reach: reach(), reason: reason() }).await.unwrap();
    all_signed(&run.done().await, 2, &mut expected);

    // Somebody else writes to the ledger's file for longer than the gateway waits.
    let other = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let run = to.run(program, &["--steps", "burst", "--count", "2"]);
    until("it gets no answer", async || run.log.any(|line| line["action"] == "retry")).await;
    other.execute_batch("ROLLBACK").unwrap();
    all_signed(&run.done().await, 2, &mut expected);
}

/// Its certificate is exchanged on disk, and the old one ends with the connection that began with it.
async fn takes_up_a_new_certificate(program: Program) {
    let site = Site::new();
    // Few at a time, for it takes a while until the certificate has ended.
    site.edit_policy(|policy| policy["quotas"]["attempts_per_caller"] = toml("{ per_second = 1, burst = 1 }"));
    let gateway = site.serve().await;
    let id = format!("spiffe://{TRUST_DOMAIN}/pricing");
    let mut brief = client_certificate(&[&id], &[]);
    let ends = OffsetDateTime::now_utc() + time::Duration::seconds(30);
    brief.not_after = ends;
    site.authority.issue(&site.path("tls"), "pricing", brief);
    let to = Target { site: &site, address: gateway.address("grpc"), jwks: "https://127.0.0.1:9/".to_owned() };
    // Without a service config, for Java waits for a quota by itself with one.
    let none = site.path("none.json");
    fs::write(&none, "{}").unwrap();
    let run = to.run(program, &["--steps", "burst", "--count", "1000", "--service-config", none.to_str().unwrap()]);
    run.told(1).await;
    // Not in one step: the key is half written, does not fit, and the certificate is empty, and full at the time at which it was empty.
    let new = site.authority.issue(&site.path(""), "new", client_certificate(&[&id], &[]));
    let (certificate, key) = (fs::read(new.certificate).unwrap(), fs::read_to_string(new.private_key).unwrap());
    let half = &key[..=key.find('\n').unwrap() + 61];
    let written = OffsetDateTime::now_utc();
    for (file, text) in [
        ("pricing.key", half.as_bytes()),
        ("pricing.key", key.as_bytes()),
        ("pricing.pem", b""),
        ("pricing.pem", &certificate),
    ] {
        let place = site.path("tls").join("new");
        fs::write(&place, text).unwrap();
        if file == "pricing.pem" {
            File::options().append(true).open(&place).unwrap().set_modified(written.into()).unwrap();
        }
        fs::rename(place, site.path("tls").join(file)).unwrap();
        run.told(run.steps.get().len() + 2).await;
    }
    assert!(OffsetDateTime::now_utc() < ends, "the old certificate ended before the new one was there");
    until("the old certificate has ended", async || OffsetDateTime::now_utc() > ends + time::Duration::SECOND).await;
    run.told(run.steps.get().len() + 3).await;
    let steps = run.steps.get();
    all_signed(&steps, steps.len(), &mut 0);
}

/// A connection whose other end says nothing any more is noticed while the quote that waits has time left.
async fn leaves_a_silent_connection(program: Program) {
    let site = Site::new();
    let front = Front::new().await;
    let gateway = site.serve().await;
    front.shows(&gateway);
    let to = Target { site: &site, address: front.address, jwks: "https://127.0.0.1:9/".to_owned() };
    // More than are waited for.
    let run = to.run(program, &["--steps", "burst", "--count", "10000"]);
    run.told(5).await;
    front.silences();
    run.told(run.steps.get().len() + 5).await;
    let steps = run.steps.get();
    all_signed(&steps, steps.len(), &mut 0);
}

/// Who waits for others, or for a gateway that is away.
async fn minds_its_time(program: Program) {
    let site = Site::new();
    let front = Front::new().await;
    let to = Target { site: &site, address: front.address, jwks: "https://127.0.0.1:9/".to_owned() };
    let steps = to.run(program, &["--steps", "crowd", "--count", "3", "--deadline", "6"]).done().await;
    let [first, others @ ..] = &*steps else { panic!("{steps:#?}") };
    assert!(first["action"] == "retry" && first["attempts"].as_u64() > Some(0), "{steps:#?}");
    for other in others {
        let is = (&other["code"], &other["action"], &other["attempts"]);
        assert_eq!(is, (&json!("DEADLINE_EXCEEDED"), &json!("retry"), &json!(0)), "{steps:#?}");
    }
    assert_eq!(others.len(), 2);
    // A gateway is looked for often, however long it is away.
    let before = front.came();
    let run = to.run(program, &["--steps", "sign", "--deadline", "60"]);
    until("it looks again", async || front.came() >= before + 10).await;
    // Where nothing has a reason, the log has what the library says.
    assert!(run.log.any(|line| line["reason"] == "" && line["message"].is_string()), "{:#?}", run.log.get());
}

/// All quotes of a burst were signed, each under a greater number than the one before.
#[track_caller]
fn all_signed(steps: &[Value], count: usize, last: &mut u64) {
    assert_eq!(steps.len(), count, "{steps:#?}");
    for line in steps {
        let number = line["sequence"].as_u64().unwrap_or_else(|| panic!("{line}"));
        assert!(number > *last, "{line}");
        *last = number;
    }
}

/// A gateway that answers the first call of each quote as it is told to, and signs at the second unless told otherwise.
#[derive(Clone, Default)]
struct Scripted {
    /// What the first call of each quote is answered with; none where it is signed.
    answers: Arc<Mutex<VecDeque<Option<Status>>>>,
    /// What later calls are answered with, in the order in which they come.
    later: Arc<Mutex<VecDeque<Option<Status>>>>,
    /// The calls of each quote, by its id: when, with which payload and correlation id.
    calls: Arc<Mutex<HashMap<String, Vec<Sent>>>>,
    /// The ids, in the order in which they came.
    order: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Debug)]
struct Sent {
    at: Instant,
    payload: Vec<u8>,
    correlation_id: String,
}

type Answers = BoxStream<'static, Result<SignQuotesResponse, Status>>;

/// An answer among some that say nothing of its quote, and before one that takes back what was signed.
fn among_odd_ones(answer: Result<(u64, Answer), Status>) -> Vec<Result<SignQuotesResponse, Status>> {
    let (tag, answer) = match answer {
        Ok(answer) => answer,
        Err(status) => return vec![Err(status)],
    };
    let refused = Answer::Refused(refusal_of(&refusal(Code::Internal, "quotesign.v1", "SIGNATURE_MISMATCH", false)));
    let back = matches!(answer, Answer::Signed(_)).then(|| (tag, Some(refused.clone())));
    let all = [(1 << 40, Some(refused)), (tag, None), (tag, Some(answer))].into_iter().chain(back);
    all.map(|(tag, answer)| Ok(SignQuotesResponse { tag, answer })).collect()
}

fn refusal_of(status: &Status) -> Refusal {
    // Without details it has none to be read from.
    let told = Refusal::decode(status.details()).unwrap();
    Refusal { code: status.code().into(), message: status.message().to_owned(), ..told }
}

/// The message of a status that ends the whole stream.
const ENDS: &str = "it ends";

/// Each call has its correlation id and its deadline.
fn sent_id<T>(request: &Request<T>) -> String {
    assert!(request.metadata().contains_key("grpc-timeout"), "a call without a deadline");
    request.metadata().get("x-correlation-id").unwrap().to_str().unwrap().to_owned()
}

/// The number that its sequence is said to be at.
const SCRIPTED_LAST: u64 = 100;

impl Scripted {
    fn sign(&self, correlation_id: &str, payload: Vec<u8>) -> Result<SignQuoteResponse, Status> {
        let quote: Value = serde_json::from_slice(&payload).unwrap();
        let id = quote["quote_id"].as_str().unwrap().to_owned();
        let mut calls = self.calls.lock().unwrap();
        let sent = calls.entry(id.clone()).or_default();
        sent.push(Sent { at: Instant::now(), payload, correlation_id: correlation_id.to_owned() });
        if sent.len() == 1 {
            self.order.lock().unwrap().push(id);
        }
        let told = if sent.len() == 1 { &self.answers } else { &self.later };
        if let Some(status) = told.lock().unwrap().pop_front().flatten() {
            return Err(status);
        }
        let sequence = quote["quote_sequence"].as_u64().unwrap();
        Ok(SignQuoteResponse { jws: "a.b.c".to_owned(), sequence, ..SignQuoteResponse::default() })
    }

    fn sign_one(&self, request: Request<SignQuoteRequest>) -> Result<Response<SignQuoteResponse>, Status> {
        let id = sent_id(&request);
        self.sign(&id, request.into_inner().payload).map(Response::new)
    }

    fn sign_all(&self, request: Request<Streaming<SignQuotesRequest>>) -> Response<Answers> {
        let (id, scripted) = (sent_id(&request), self.clone());
        let answers = request.into_inner().map(move |message| {
            let SignQuotesRequest { tag, quote } = message?;
            let answer = match scripted.sign(&id, quote.unwrap().payload) {
                Ok(signed) => Answer::Signed(signed),
                Err(status) if status.message() == ENDS => return Err(status),
                Err(status) => Answer::Refused(refusal_of(&status)),
            };
            Ok((tag, answer))
        });
        Response::new(Box::pin(answers.flat_map(|answer| stream::iter(among_odd_ones(answer)))))
    }

    async fn serve(&self, site: &Site) -> SocketAddr {
        let tls = |name: &str| site.path("tls").join(name);
        let listener = GrpcListener {
            listen: "127.0.0.1:0".parse().unwrap(),
            certificate: tls("server.pem"),
            private_key: tls("server.key"),
            client_ca: tls("ca.pem"),
            trust_domain: None,
            reflection: false,
        };
        let acceptor = TlsAcceptor::from(tls::mutual(&listener).unwrap().server);
        let socket = TcpListener::bind(listener.listen).await.unwrap();
        let address = socket.local_addr().unwrap();
        let scripted = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let (acceptor, scripted) = (acceptor.clone(), scripted.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| answered(scripted.clone(), request));
                    let server = http2::Builder::new(TokioExecutor::new());
                    let _the_client_ends_it = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        address
    }
}

/// By hand, not by the generated trait: it stays as it is when the service gets another method.
async fn answered(scripted: Scripted, request: HttpRequest<Incoming>) -> Result<HttpResponse<Body>, Infallible> {
    let request = request.map(Body::new);
    Ok(match request.uri().path() {
        "/quotesign.v1.QuoteSigningService/SignQuote" => {
            let mut grpc = Grpc::new(ProstCodec::<SignQuoteResponse, SignQuoteRequest>::default());
            let sign = move |request| -> BoxFuture<'static, _> {
                let answer = scripted.sign_one(request);
                Box::pin(async move { answer })
            };
            grpc.unary(tower::service_fn(sign), request).await
        }
        "/quotesign.v1.QuoteSigningService/SignQuotes" => {
            let mut grpc = Grpc::new(ProstCodec::<SignQuotesResponse, SignQuotesRequest>::default());
            let sign = move |request| -> BoxFuture<'static, Result<_, Status>> {
                let answers = scripted.sign_all(request);
                Box::pin(async move { Ok(answers) })
            };
            grpc.streaming(tower::service_fn(sign), request).await
        }
        "/quotesign.v1.QuoteSigningService/GetSequence" => {
            let mut grpc = Grpc::new(ProstCodec::<GetSequenceResponse, GetSequenceRequest>::default());
            let sequence = |_: Request<GetSequenceRequest>| -> BoxFuture<'static, Result<_, Status>> {
                let answer = GetSequenceResponse { last: SCRIPTED_LAST, ..GetSequenceResponse::default() };
                Box::pin(async move { Ok(Response::new(answer)) })
            };
            grpc.unary(tower::service_fn(sequence), request).await
        }
        path => Status::unimplemented(path.to_owned()).into_http(),
    })
}

/// What a refusal tells to wait.
const TOLD_TO_WAIT: Duration = Duration::from_millis(300);

fn refusal(code: Code, domain: &str, reason: &str, wait: bool) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, domain, HashMap::new());
    if wait {
        details.set_retry_info(Some(TOLD_TO_WAIT));
    }
    Status::with_error_details(code, "as it was told", details)
}

/// A status, and what a client must do about it.
struct Case {
    what: String,
    action: String,
    status: Status,
}

/// Every reason there is, one that there is not yet, and answers that are not the gateway's own.
fn cases() -> Vec<Case> {
    let actions = actions();
    let case = |what: &str, action: &str, status: Status| {
        let (what, action) = (what.to_owned(), action.to_owned());
        Case { what, action, status }
    };
    let mut cases: Vec<_> = reasons()
        .map(|reason| {
            let (code, name) = (Code::from_i32(answer(reason).number()), name(reason));
            // Where there is none, the reason's name decides alone.
            let wait = [Reason::RateLimited, Reason::Overloaded].contains(&reason);
            case(name, &actions[name], refusal(code, "quotesign.v1", name, wait))
        })
        .collect();
    cases.extend([
        case("unknown, with RetryInfo", "retry", refusal(Code::Aborted, "quotesign.v1", "OF_A_LATER_ONE", true)),
        case("unknown", "ask", refusal(Code::Unavailable, "quotesign.v1", "OF_A_LATER_ONE", false)),
        case("a proxy", "retry", Status::unknown("502")),
        case("a broken stream", "retry", Status::internal("reset")),
        case("another's reason", "retry", refusal(Code::Unavailable, "example.org", "POLICY_DENIED", false)),
        case("too large for the client", "ask", Status::resource_exhausted("too large")),
        case("no such method", "ask", Status::unimplemented("no")),
    ]);
    cases
}

/// One after the other (`burst`), or all over one stream.
async fn decides_by_the_reason(program: Program, way: &str) {
    let site = Site::new();
    let scripted = Scripted::default();
    let cases = cases();
    scripted.answers.lock().unwrap().extend(cases.iter().map(|case| Some(case.status.clone())));
    let to = Target { site: &site, address: scripted.serve(&site).await, jwks: "https://127.0.0.1:9/".to_owned() };
    // Without a service config, or the transport would see to UNAVAILABLE.
    let (none, count) = (site.path("none.json"), cases.len().to_string());
    fs::write(&none, "{}").unwrap();
    let more = ["--steps", way, "--count", &count, "--service-config", none.to_str().unwrap()];
    let steps = to.run(program, &more).done().await;
    let (order, calls) = (scripted.order.lock().unwrap().clone(), scripted.calls.lock().unwrap().clone());
    assert_eq!((steps.len(), order.len()), (cases.len(), cases.len()));
    for ((case, line), id) in cases.iter().zip(&steps).zip(&order) {
        let (what, sent) = (&case.what, &calls[id]);
        match &*case.action {
            "retry" => {
                assert!(line["sequence"].is_u64() && sent.len() == 2, "{what}: {line} {sent:?}");
                assert_eq!(sent[0].payload, sent[1].payload, "{what}: other bytes");
                assert_eq!(sent[0].correlation_id, sent[1].correlation_id, "{what}");
                assert_eq!(line["attempts"], 2, "{what}");
                let is_told = case.status.get_details_retry_info().is_some();
                assert!(!is_told || sent[1].at - sent[0].at >= TOLD_TO_WAIT, "{what}: it did not wait");
            }
            "renumber" => {
                // Over a stream, behind those that are sent again as they were.
                let kept = cases.iter().rposition(|case| case.action == "retry").unwrap() as u64 + 1;
                let number = SCRIPTED_LAST + 1 + if way == "stream" { kept } else { 0 };
                assert!(sent.len() == 2 && line["sequence"] == number, "{what}: {line} {sent:?}");
            }
            action => {
                assert_eq!((sent.len(), &line["attempts"]), (1, &json!(1)), "{what}: {line}");
                assert_eq!(line["action"], action, "{what}");
            }
        }
    }
}

/// What ends a whole stream for this reason.
fn ends(reason: &str) -> Status {
    let code = answer(reasons().find(|one| name(*one) == reason).unwrap());
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "quotesign.v1", HashMap::new());
    Status::with_error_details(Code::from_i32(code.number()), ENDS, details)
}

/// What is sent again goes in the order of its numbers, whatever was numbered anew before a stream ended.
async fn keeps_the_order_over_streams(program: Program) {
    let site = Site::new();
    let scripted = Scripted::default();
    let refused = |code, reason| Some(refusal(code, "quotesign.v1", reason, false));
    let overloaded = || refused(Code::ResourceExhausted, "OVERLOADED");
    let first = [refused(Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC"), overloaded(), overloaded()];
    scripted.answers.lock().unwrap().extend(first);
    scripted.later.lock().unwrap().push_back(Some(ends("STREAM_ENDED")));
    let to = Target { site: &site, address: scripted.serve(&site).await, jwks: "https://127.0.0.1:9/".to_owned() };
    let steps = to.run(program, &["--steps", "stream", "--count", "3"]).done().await;
    let signed: Vec<_> = steps.iter().map(|line| line["sequence"].as_u64().unwrap() - SCRIPTED_LAST).collect();
    assert_eq!(signed, [4, 2, 3], "{steps:#?}");
    let mut sent: Vec<_> = scripted.calls.lock().unwrap().values().flatten().cloned().collect();
    sent.sort_by_key(|sent| sent.at);
    let number = |sent: &Sent| serde_json::from_slice::<Value>(&sent.payload).unwrap()["quote_sequence"].as_u64();
    let numbers: Vec<_> = sent.iter().map(|sent| number(sent).unwrap() - SCRIPTED_LAST).collect();
    assert_eq!(numbers, [1, 2, 3, 2, 2, 3, 4], "the second stream ended at its first quote");
}

async fn goes_on_where_a_stream_ended(program: Program) {
    for (reason, expected) in [
        // The one that could not be read is not sent again.
        ("INVALID_REQUEST", [(json!(null), 1), (json!("mend"), 1), (json!(null), 2)]),
        ("STREAM_ENDED", [(json!(null), 1), (json!(null), 2), (json!(null), 2)]),
        ("CALLER_SUSPENDED", [(json!(null), 1), (json!("ask"), 1), (json!("ask"), 1)]),
    ] {
        let site = Site::new();
        let scripted = Scripted::default();
        let ends = ends(reason);
        scripted.answers.lock().unwrap().extend([None, Some(ends)]);
        let to = Target { site: &site, address: scripted.serve(&site).await, jwks: "https://127.0.0.1:9/".to_owned() };
        let steps = to.run(program, &["--steps", "stream", "--count", "3"]).done().await;
        let came: Vec<_> =
            steps.iter().map(|line| (line["action"].clone(), line["attempts"].as_u64().unwrap())).collect();
        assert_eq!(came, expected, "{reason}: {steps:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_in_python_keeps_the_contract() {
    keeps_the_contract(python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_in_node_keeps_the_contract() {
    keeps_the_contract(node).await;
}

/// What a caller got wrong is told to that caller; those behind have their turns, and may have all the time that there is.
#[test]
fn the_client_in_node_goes_on_after_a_caller_s_mistake() {
    let client = repository(".tools/clients-node/quotesign-client.mjs");
    let script = format!(
        r#"
        import {{ setTimeout as sleep }} from "node:timers/promises";
        import {{ Sequence }} from {client:?};
        const sequence = new Sequence({{ lastNumber: async () => 0, sign: (payload) => sleep(50, payload) }}, "a partner");
        const same = (number) => number;
        const all = [sequence.issue(same), sequence.issueAll(new Set()), sequence.issue(same, Infinity)];
        const [before, wrong, behind] = await Promise.allSettled(all);
        console.log(before.value, wrong.reason instanceof TypeError, behind.value);
        "#
    );
    let output = Command::new("node").args(["--input-type=module", "--eval", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1 true 2", "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_in_go_keeps_the_contract() {
    keeps_the_contract(go).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_in_java_keeps_the_contract() {
    keeps_the_contract(java).await;
}

/// The page on clients says of every reason what the gateway and the contract's page say of it.
#[test]
fn the_page_on_clients_has_every_reason_with_its_code_and_what_to_do() {
    let rows: BTreeMap<_, _> = table("| code | reason |")
        .into_iter()
        .map(|row| (row[2].clone(), (row[1].clone(), row[3] == "retry")))
        .collect();
    let expected: BTreeMap<_, _> = reasons()
        .map(|reason| (name(reason).to_owned(), (answer(reason).name().to_owned(), is_retryable(reason))))
        .collect();
    assert_eq!(rows, expected);
    let known: Vec<_> = table("| action |").into_iter().map(|row| row[1].clone()).collect();
    assert!(actions().values().all(|action| known.contains(action)));
    let contract = fs::read_to_string(repository("docs/quote-contract.md")).unwrap();
    let contract = contract.split_once("| reason |").unwrap().1.split_once("\n\n").unwrap().0;
    for row in contract.lines().skip(2) {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        assert_eq!(cells[5] != "no", rows[cells[1]].1, "{row}");
    }
}

/// Each library takes the service config as it is shipped: it is the transport that sends again, and a call waits for a gateway
/// that is not there yet.
#[tokio::test(flavor = "multi_thread")]
async fn the_service_config_retries_what_is_safe_and_waits_for_the_gateway() {
    let text = fs::read_to_string(repository("clients/service-config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let [method] = &**config["methodConfig"].as_array().unwrap() else { panic!("{config}") };
    let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
    let services = files.iter().flat_map(|file| &file.service);
    let [service] = &*services.filter(|service| service.name() == "QuoteSigningService").collect::<Vec<_>>() else {
        panic!()
    };
    for name in method["name"].as_array().unwrap() {
        assert_eq!(name["service"], "quotesign.v1.QuoteSigningService");
        let method = name["method"].as_str().unwrap();
        assert!(service.method.iter().any(|served| served.name() == method), "{method}");
        assert_ne!(method, "ReportQuoteOutcome", "twice leaves two records");
    }
    let policy = &method["retryPolicy"];
    assert!((2..=5).contains(&policy["maxAttempts"].as_u64().unwrap()) && method["hedgingPolicy"].is_null());
    for code in policy["retryableStatusCodes"].as_array().unwrap() {
        let of: Vec<_> = reasons().filter(|reason| answer(*reason).name() == code.as_str().unwrap()).collect();
        assert!(!of.is_empty() && of.iter().all(|reason| is_retryable(*reason)), "{code}: {of:?}");
    }

    let site = Site::new();
    fs::write(site.path("none.json"), "{}").unwrap();
    let none = site.path("none.json");
    for (language, program) in PROGRAMS {
        let away = || refusal(Code::Unavailable, "quotesign.v1", "SIGNER_UNAVAILABLE", true);
        for (config, attempts) in [(repository("clients/service-config.json"), 1), (none.clone(), 2)] {
            let scripted = Scripted::default();
            scripted.answers.lock().unwrap().push_back(Some(away()));
            let to =
                Target { site: &site, address: scripted.serve(&site).await, jwks: "https://127.0.0.1:9/".to_owned() };
            let config = config.to_str().unwrap();
            let steps = to.run(program, &["--steps", "sign", "--service-config", config]).done().await;
            assert_eq!(step(&steps, "sign")["attempts"], attempts, "{language} with {config}");
            assert_eq!(scripted.calls.lock().unwrap().values().map(Vec::len).collect::<Vec<_>>(), [2], "{language}");
        }
    }

    let front = Front::new().await;
    let to = Target { site: &site, address: front.address, jwks: "https://127.0.0.1:9/".to_owned() };
    let gateway = site.serve().await;
    for (language, program) in PROGRAMS {
        let shipped = repository("clients/service-config.json");
        for (config, is_seen) in [(&shipped, false), (&none, true)] {
            front.hides();
            let before = front.came();
            let run = to.run(program, &["--steps", "sign", "--service-config", config.to_str().unwrap()]);
            until("it looks for the gateway", async || front.came() > before).await;
            front.shows(&gateway);
            let log = run.log.clone();
            let steps = run.done().await;
            assert!(step(&steps, "sign")["sequence"].is_u64(), "{language}: {steps:#?}");
            // The client in Node asks for it at each call, since its library does not read it from the config.
            let seen = log.any(|line| line["attempt"].as_u64() > Some(1));
            assert_eq!(seen, is_seen && language != "node", "{language} with {config:?}: {:#?}", log.get());
        }
    }
}
