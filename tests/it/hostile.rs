//! A hostile network: what strangers and an authenticated caller can do to the sockets of a gateway, all at once and one
//! after another, while a good client has quotes signed and opens new connections. `TRIALS=200` does more of each.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use quotesign::transport::tls;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Gateway, PATIENCE, Quote, Site, toml, until};

const FRONTS: [&str; 4] = ["grpc", "admin", "jwks", "operations"];
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No call of the good client may take longer, however busy the machine is.
const BEARABLE: Duration = Duration::from_secs(9);

fn site() -> Site {
    let site = Site::new();
    site.edit_policy(|policy| {
        for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            policy["quotas"][quota] = toml("{ per_second = 100000, burst = 100000 }");
        }
    });
    site
}

/// A good client: signs one quote after another, each tenth over a new connection, and fails where one fails.
struct Good {
    over: Arc<AtomicBool>,
    signed: Arc<AtomicU64>,
    work: JoinHandle<Vec<Duration>>,
}

impl Good {
    fn begin(gateway: &Arc<Gateway>) -> Self {
        let (over, signed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let work = tokio::spawn({
            let (gateway, over, signed) = (gateway.clone(), over.clone(), signed.clone());
            async move {
                let mut took = Vec::new();
                let mut pricing = gateway.quotes("pricing").await;
                for number in 1.. {
                    if over.load(Ordering::Relaxed) {
                        return took;
                    }
                    let began = Instant::now();
                    if number % 10 == 0 {
                        pricing = gateway.quotes("pricing").await;
                    }
                    let answer = timeout(PATIENCE, pricing.sign(&Quote::number(number))).await;
                    answer.expect("a quote is not answered").expect("a good client's quote is refused");
                    took.push(began.elapsed());
                    signed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                took
            }
        });
        Self { over, signed, work }
    }

    /// That it has gone on: some more quotes are signed from here.
    async fn goes_on(&self, beside: &str) {
        let from = self.signed.load(Ordering::Relaxed);
        let began = Instant::now();
        while self.signed.load(Ordering::Relaxed) < from + 5 {
            assert!(!self.work.is_finished(), "the good client failed beside {beside}");
            assert!(began.elapsed() < PATIENCE, "the good client stands still beside {beside}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        let mut took = self.work.await.unwrap();
        took.sort();
        let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)].as_millis();
        println!(
            "{} quotes of the good client: p50 {} ms, p99 {} ms, slowest {} ms",
            took.len(),
            at(50),
            at(99),
            at(100)
        );
        assert!(*took.last().unwrap() < BEARABLE);
    }
}

/// A connection from one of many addresses of this machine.
async fn from_somewhere(to: SocketAddr, at: usize) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let [.., high, low] = u32::try_from(at % 60_000).unwrap().to_be_bytes();
    socket.bind((Ipv4Addr::new(127, 1 + high % 8, high, low.max(1)), 0).into())?;
    timeout(Duration::from_secs(5), socket.connect(to)).await?
}

/// A TLS connection of an authenticated caller that then speaks HTTP/2 as badly as it likes.
async fn hostile(site: &Site, gateway: &Gateway) -> TlsStream<TcpStream> {
    by_hand(site, gateway, "auditor").await
}

/// A connection of `caller` whose HTTP/2 is written by hand.
pub async fn by_hand(site: &Site, gateway: &Gateway, caller: &str) -> TlsStream<TcpStream> {
    over(site, TcpStream::connect(gateway.address("grpc")).await.unwrap(), caller).await
}

/// The same over a connection that was made already.
pub async fn over(site: &Site, socket: TcpStream, caller: &str) -> TlsStream<TcpStream> {
    let dir = site.path("tls");
    let (certificate, key) = (dir.join(format!("{caller}.pem")), dir.join(format!("{caller}.key")));
    let tls = tls::client(&dir.join("ca.pem"), Some((certificate.as_path(), key.as_path())), b"h2").unwrap();
    let mut stream = TlsConnector::from(tls).connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// An HTTP/2 frame (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a call (RFC 7541: indexed fields, and literals that are not indexed).
pub fn call_headers(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x87];
    let mut literal = |name: u8, value: &str| {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    };
    literal(0x04, path);
    literal(0x01, "localhost");
    block.extend([0x0f, 0x10, 16]);
    block.extend(b"application/grpc");
    block.extend([0x00, 2]);
    block.extend(b"te");
    block.extend([8]);
    block.extend(b"trailers");
    block
}

const GET_SEQUENCE: &str = "/quotesign.v1.QuoteSigningService/GetSequence";
pub const SIGN_QUOTE: &str = "/quotesign.v1.QuoteSigningService/SignQuote";

/// Writes until the gateway has had enough, or all is written; gives whether it ended the connection.
async fn insist(mut stream: TlsStream<TcpStream>, bytes: Vec<u8>) -> bool {
    let written = timeout(PATIENCE, async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    });
    let is_cut = !matches!(written.await, Ok(Ok(())));
    // What it answers is not looked at; that it ends is.
    let mut sink = vec![0; 16 * 1024];
    let read = async {
        loop {
            match stream.read(&mut sink).await {
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
            }
        }
    };
    is_cut || timeout(Duration::from_secs(2), read).await.unwrap_or(false)
}

fn trials(few: usize) -> usize {
    env::var("TRIALS").map_or(few, |trials| few * trials.parse::<usize>().unwrap() / 20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_connections_do_not_keep_a_good_client_out() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    assert!(limit.maximum.is_none_or(|most| most > 12_000), "this test needs 12,000 open files: raise `ulimit -Hn`");
    let site = site();
    let gateway = Arc::new(site.serve().await);
    let good = Good::begin(&gateway);
    good.goes_on("nothing yet").await;
    // Half of them say nothing, half begin a handshake; on each listener, and all stay open on this side.
    let mut open = Vec::new();
    let mut unreached = 0;
    for at in 0..10_000 {
        match from_somewhere(gateway.address(FRONTS[at % 4]), at).await {
            Ok(mut socket) => {
                if at % 2 == 0 {
                    let _it_may_be_cut_already = socket.write_all(&[0x16, 0x03, 0x01, 0x02]).await;
                }
                open.push(socket);
            }
            Err(_) => unreached += 1,
        }
        if at % 2_500 == 0 {
            good.goes_on("connections that are opened").await;
        }
    }
    good.goes_on("ten thousand connections").await;
    assert!(open.len() > 9_000, "{unreached} of 10,000 could not be opened");
    println!("{} connections are open, the gateway holds {} KiB", open.len(), gateway.rss_kib());
    // They are gone after the handshake's time, and an address gets in as before.
    tokio::time::sleep(Duration::from_secs(6)).await;
    good.goes_on("connections that were given up").await;
    assert_eq!(gateway.operations("/livez").await.0, 200);
    good.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn garbage_and_old_tls_on_every_port_cost_a_good_client_nothing() {
    let site = site();
    let gateway = Arc::new(site.serve().await);
    let good = Good::begin(&gateway);
    let garbage: Vec<u8> = (0..64 * 1024_u32).map(|n| u8::try_from(n * 167 % 251).unwrap()).collect();
    let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n".as_slice();
    let endless: Vec<u8> = request.iter().copied().chain(b"x: y\r\n".repeat(100_000)).collect();
    for round in 0..trials(20) {
        for front in FRONTS {
            for said in [&garbage[round..], PREFACE, b"\0\0\0\0", &endless, b"\x15\x03\x03\0\x02\x02\x28"] {
                let mut socket = from_somewhere(gateway.address(front), round).await.unwrap();
                let _it_may_be_cut = timeout(Duration::from_secs(5), socket.write_all(said)).await;
            }
        }
    }
    good.goes_on("garbage").await;
    for front in ["grpc", "admin", "jwks"] {
        for version in ["-tls1", "-tls1_1"] {
            let mut openssl = Command::new("openssl");
            openssl.args(["s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-connect"]);
            let output = openssl.arg(gateway.address(front).to_string()).stdin(Stdio::null()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(!output.status.success() && text.contains("Cipher is (NONE)"), "{front} {version}: {text}");
        }
    }
    // A request that comes a byte at a time is given up.
    let mut slow = TcpStream::connect(gateway.address("operations")).await.unwrap();
    let began = Instant::now();
    let mut at = 0;
    while began.elapsed() < PATIENCE && slow.write_all(&request[at % request.len()..=at % request.len()]).await.is_ok()
    {
        at += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(15), "a request's head may take as long as it likes");
    good.goes_on("old TLS").await;
    good.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_an_authenticated_caller_does_to_http2_ends_its_own_connection() {
    let site = site();
    let gateway = Arc::new(site.serve().await);
    let good = Good::begin(&gateway);
    let memory = gateway.rss_kib();
    let headers = |stream: u32, path: &str| frame(HEADERS, END_HEADERS, stream, &call_headers(path));
    let odd = |n: u32| 2 * n + 1;
    let settings_flood = frame(SETTINGS, 0, 0, &[]).repeat(200_000);
    let rapid_reset: Vec<u8> = (0..20_000)
        .flat_map(|n| [headers(odd(n), GET_SEQUENCE), frame(RST_STREAM, 0, odd(n), &8_u32.to_be_bytes())].concat())
        .collect();
    let endless_headers: Vec<u8> = frame(HEADERS, 0, 1, &call_headers(GET_SEQUENCE))
        .into_iter()
        .chain(frame(CONTINUATION, 0, 1, &[&[0x00, 1, b'x', 126][..], &[b'y'; 126]].concat()).repeat(20_000))
        .collect();
    let huge_frame = [&[0xff, 0xff, 0xff, DATA, 0][..], &1_u32.to_be_bytes(), &vec![7; 32 * 1024]].concat();
    let oversized: Vec<u8> = [
        headers(1, SIGN_QUOTE),
        // A gRPC message of 4 GiB, as it says.
        frame(DATA, 0, 1, &[0, 0xff, 0xff, 0xff, 0xff]),
        frame(DATA, 0, 1, &vec![7; 16 * 1024]).repeat(64),
    ]
    .concat();
    let bad_windows = frame(WINDOW_UPDATE, 0, 0, &0_u32.to_be_bytes()).repeat(1_000);
    let garbage: Vec<u8> = (0..64 * 1024_u32).map(|n| u8::try_from(n * 31 % 256).unwrap()).collect();
    for round in 0..trials(20).div_ceil(10) {
        for (what, ends, bytes) in [
            ("rapid reset", true, &rapid_reset),
            ("headers without an end", true, &endless_headers),
            ("a frame beyond the bound", true, &huge_frame),
            ("windows of nothing", true, &bad_windows),
            ("garbage", true, &garbage),
            ("empty settings", false, &settings_flood),
            ("a message beyond the bound", false, &oversized),
        ] {
            let is_cut = insist(hostile(&site, &gateway).await, bytes.clone()).await;
            assert!(is_cut || !ends, "{what}: the connection was kept");
            good.goes_on(what).await;
            println!("{round}: {what}: {}", if is_cut { "cut" } else { "borne" });
        }
    }
    let grown = gateway.rss_kib().saturating_sub(memory);
    println!("memory +{grown} KiB");
    assert!(grown < 192 * 1024, "{grown} KiB");
    good.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_that_do_not_read_or_are_slow_to_write_hold_only_themselves_up() {
    let site = site();
    let gateway = Arc::new(site.serve().await);
    let good = Good::begin(&gateway);
    let memory = gateway.rss_kib();
    let body = [0, 0, 0, 0, 0];
    let mut held = Vec::new();
    for at in 0..trials(20) {
        let mut stream = hostile(&site, &gateway).await;
        // No answer of any stream may be sent: the windows are shut. Then as many calls as there may be.
        stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
        for n in 0..128_u32 {
            let id = 2 * n + 1;
            let _cut_is_fine = stream.write_all(&frame(HEADERS, END_HEADERS, id, &call_headers(GET_SEQUENCE))).await;
            let end = if at % 2 == 0 { END_STREAM } else { 0 };
            let _cut_is_fine = stream.write_all(&frame(DATA, end, id, &body[..if end == 0 { 3 } else { 5 }])).await;
        }
        held.push(stream);
        // And one that asks without ever reading what comes back.
        let mut deaf = hostile(&site, &gateway).await;
        let _it_may_stand_still =
            timeout(Duration::from_millis(200), deaf.write_all(&frame(PING, 0, 0, &[7; 8]).repeat(20_000))).await;
        held.push(deaf);
        if at % 5 == 0 {
            good.goes_on("clients that do not read").await;
        }
    }
    good.goes_on("clients that do not read").await;
    let grown = gateway.rss_kib().saturating_sub(memory);
    println!("{} such connections, memory +{grown} KiB", held.len());
    assert!(grown < 192 * 1024, "{grown} KiB");
    good.end().await;
    drop(held);
    let gateway = Arc::into_inner(gateway).unwrap();
    assert!(gateway.stop().success());
}

/// Whatever takes the log may be stuck.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_log_that_nobody_takes_holds_nobody_up() {
    let site = site().with("QUOTESIGN__LOG__FILTER", "trace");
    let gateway = site.serve().await;
    let (log, (stuck, is_stuck), (let_go, goes_on)) = (gateway.log.clone(), mpsc::channel(), mpsc::channel::<()>());
    let taker = std::thread::spawn(move || {
        let _held = log.lock().unwrap();
        stuck.send(()).unwrap();
        let _until = goes_on.recv();
    });
    is_stuck.recv().unwrap();
    let pricing = gateway.quotes("pricing").await;
    let lost = async || {
        let (_, metrics) = gateway.operations("/metrics").await;
        let line = metrics.lines().find(|line| line.starts_with("quotesign_log_lines_lost_total")).unwrap();
        line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
    };
    assert_eq!(lost().await, 0);
    for number in 1.. {
        timeout(PATIENCE, pricing.sign(&Quote::number(number))).await.expect("a call waits for the log").unwrap();
        if lost().await > 0 {
            break;
        }
        assert!(number < 5_000, "nothing was lost");
    }
    drop(let_go);
    taker.join().unwrap();
    assert_eq!(gateway.operations("/livez").await.0, 200);
    assert!(gateway.stop().success());
}

/// Anybody can connect and go away as often as he likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn strangers_that_are_turned_away_have_a_share_of_the_log() {
    let site = site();
    let gateway = site.serve().await;
    let count = 400;
    for _ in 0..count {
        drop(TcpStream::connect(gateway.address("jwks")).await.unwrap());
    }
    let told = || {
        let (mut own, mut together) = (0, 0);
        for line in gateway.log.lock().unwrap().iter() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            own += u64::from(line["message"] == "a connection was turned away");
            together += line["connections"].as_u64().unwrap_or_default();
        }
        (own, together)
    };
    until("all were told of", async || told().0 + told().1 == count).await;
    let (own, together) = told();
    assert!(own >= 20 && together > own, "{own} have a line of their own, {together} have one together");
}
