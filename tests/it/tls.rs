//! Who gets in, and as whom: real handshakes with the listeners of callers and of operators.

use std::{
    io,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use quotesign::{
    clock::{Clock as _, SystemClock},
    service::access::RPCS,
    transport::tls,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose};
use rustls::{
    ClientConfig, HandshakeKind, NamedGroup,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    },
    pki_types::ServerName,
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::harness::{Authority, Gateway, PATIENCE, Quote, Site, client_certificate, reason, until};

const FRONTS: [&str; 2] = ["grpc", "admin"];
const PRICING: &str = "spiffe://dev.quotesign.example/pricing";
/// What an HTTP/2 client says first: the preface and empty settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// TLS as a client that shows the site's certificate of this name, or none.
fn client(site: &Site, certificate: Option<&str>, alpn: &[u8]) -> ClientConfig {
    let tls = site.path("tls");
    let files = certificate.map(|name| (tls.join(format!("{name}.pem")), tls.join(format!("{name}.key"))));
    let files = files.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    (*tls::client(&tls.join("ca.pem"), files, alpn).unwrap()).clone()
}

/// Shakes hands, says `hello`, and waits for the first byte that comes back.
async fn talk(gateway: &Gateway, front: &str, config: ClientConfig, hello: &[u8]) -> io::Result<TlsStream<TcpStream>> {
    let talking = async {
        let socket = TcpStream::connect(gateway.address(front)).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        stream.write_all(hello).await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    timeout(PATIENCE, talking).await.expect("the gateway neither answers nor refuses")
}

async fn channel(gateway: &Gateway, front: &str, caller: &str) -> Channel {
    let client = gateway.client(caller);
    if front == "grpc" { client.grpc().await.unwrap() } else { client.admin().await.unwrap() }
}

/// Calls a method with an empty request.
async fn call(gateway: &Gateway, front: &str, caller: &str, method: &str) -> Status {
    let mut grpc = Grpc::new(channel(gateway, front, caller).await);
    grpc.ready().await.unwrap();
    let path = format!("/{method}").parse().unwrap();
    grpc.unary(Request::new(()), path, ProstCodec::<(), ()>::default()).await.map(|_| ()).unwrap_err()
}

fn valid_for(days_from: i64, days_to: i64) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = client_certificate(&[PRICING], &[]);
    (params.not_before, params.not_after) =
        (now + time::Duration::days(days_from), now + time::Duration::days(days_to));
    params
}

#[tokio::test(flavor = "multi_thread")]
async fn no_frame_is_answered_to_whoever_has_no_valid_certificate() {
    let site = Site::new();
    Authority::new().issue(&site.path("tls"), "impostor", client_certificate(&[PRICING], &[]));
    Authority::named("another CA").issue(&site.path("tls"), "stranger", client_certificate(&[PRICING], &[]));
    site.issue("expired", valid_for(-2, -1));
    site.issue("early", valid_for(1, 2));
    let mut server = client_certificate(&[PRICING], &[]);
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    site.issue("a-server", server);
    let gateway = site.start();
    for front in FRONTS {
        for (certificate, alert, why) in [
            (None, "CertificateRequired", "peer sent no certificates"),
            (Some("stranger"), "UnknownCA", "UnknownIssuer"),
            (Some("impostor"), "DecryptError", "BadSignature"),
            (Some("expired"), "CertificateExpired", "certificate expired"),
            (Some("early"), "CertificateExpired", "not valid yet"),
            (Some("a-server"), "UnsupportedCertificate", "certificate does not allow extended key usage"),
        ] {
            let refused = talk(&gateway, front, client(&site, certificate, b"h2"), HELLO).await.unwrap_err();
            assert!(refused.to_string().contains(alert), "{certificate:?}: {refused}");
            gateway.logged(why).await;
        }
        talk(&gateway, front, client(&site, Some("pricing"), b"h2"), HELLO).await.unwrap();
        // They are in no count of calls.
        let metrics = gateway.operations("/metrics").await.1;
        for (why, count) in [("no_certificate", 1), ("bad_certificate", 5)] {
            let row = format!("quotesign_connections_refused_total{{front=\"{front}\",why=\"{why}\"}} {count}\n");
            assert!(metrics.contains(&row), "{row}{metrics}");
        }
    }
}

fn s_client(site: &Site, gateway: &Gateway, front: &str, version: &str) -> (bool, String) {
    let tls = site.path("tls");
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", version, "-alpn", "h2", "-verify_return_error", "-connect"]);
    openssl.arg(gateway.address(front).to_string());
    for (option, file) in [("-CAfile", "ca.pem"), ("-cert", "pricing.pem"), ("-key", "pricing.key")] {
        openssl.arg(option).arg(tls.join(file));
    }
    let output = openssl.stdin(Stdio::null()).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_and_operators_need_tls_1_3() {
    let site = Site::new();
    let gateway = site.start();
    for front in FRONTS {
        let (done, text) = s_client(&site, &gateway, front, "-tls1_3");
        assert!(done && text.contains("Cipher is TLS_"), "{text}");
        let (done, text) = s_client(&site, &gateway, front, "-tls1_2");
        assert!(!done && text.contains("alert protocol version"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_tls_gets_an_alert_at_most() {
    let site = Site::new();
    let gateway = site.start();
    let garbage: Vec<u8> = (0..4096_u32).map(|n| u8::try_from(n * 167 % 251).unwrap()).collect();
    let huge_record = [0x16, 0x03, 0x01, 0xff, 0xff].repeat(64);
    for front in FRONTS {
        for said in [b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n", HELLO, &garbage, &huge_record] {
            let mut socket = TcpStream::connect(gateway.address(front)).await.unwrap();
            socket.write_all(said).await.unwrap();
            let mut answer = Vec::new();
            let read = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("the connection is kept");
            // A reset is what a socket closed with bytes unread comes to.
            assert!(read.is_ok() || read.is_err_and(|fault| fault.kind() == io::ErrorKind::ConnectionReset));
            assert!(answer.is_empty() || (answer[0] == 0x15 && answer.len() == 7), "{answer:?}");
        }
        talk(&gateway, front, client(&site, Some("pricing"), b"h2"), HELLO).await.unwrap();
    }
}

fn named(common_name: Option<&str>, uris: &[&str], dns: &[&str]) -> CertificateParams {
    let mut params = client_certificate(uris, dns);
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valid_chain_whose_name_is_unfit_is_told_so_by_every_rpc() {
    let site = Site::new();
    site.edit_policy(|policy| declare(policy, "dns:pricing.example"));
    let gateway = site.serve().await;
    let operator = "spiffe://dev.quotesign.example/operator";
    let (uri, dns, any) = ("exactly one URI name", "exactly one DNS name", "give it one SPIFFE URI or one DNS name");
    for (name, params, remedy) in [
        ("two-uris", named(None, &[PRICING, operator], &[]), uri),
        ("other-domain", named(None, &["spiffe://other.example/pricing"], &["pricing.example"]), uri),
        ("https", named(None, &["https://dev.quotesign.example/pricing"], &["pricing.example"]), uri),
        ("no-path", named(None, &["spiffe://dev.quotesign.example"], &["pricing.example"]), uri),
        ("dns-as-uri", named(None, &["dns:pricing.example"], &[]), uri),
        ("wildcard", named(None, &[], &["*.example"]), dns),
        ("two-names", named(None, &[], &["pricing.example", "other.example"]), dns),
        ("twice", named(None, &[], &["pricing.example", "pricing.example"]), dns),
        ("spiffe-as-dns", named(None, &[], &[PRICING]), dns),
        ("common-name", named(Some("pricing.example"), &[], &[]), any),
        ("nameless", named(None, &[], &[]), any),
    ] {
        site.issue(name, params);
        let wanted = (Code::Unauthenticated, "CALLER_UNIDENTIFIED".to_owned(), true);
        let rpcs = RPCS.map(|rpc| (if rpc.method.contains("Admin") { "admin" } else { "grpc" }, rpc.method));
        for (front, method) in rpcs.into_iter().chain(OTHERS) {
            let refused = call(&gateway, front, name, method).await;
            let told = (refused.code(), reason(&refused), refused.message().contains(remedy));
            assert_eq!(told, wanted, "{name}: {method}: {refused}");
        }
    }
}

/// Nobody gets not even these.
const OTHERS: [(&str, &str); 4] = [
    ("grpc", "grpc.health.v1.Health/Check"),
    ("admin", "grpc.health.v1.Health/Check"),
    ("grpc", "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    ("grpc", "quotesign.v1.NoSuchService/NoSuchMethod"),
];

fn declare(policy: &mut toml_edit::DocumentMut, caller: &str) {
    let mut entry = toml_edit::Table::new();
    entry.insert("id", toml_edit::value(caller));
    entry.insert("roles", toml_edit::value(toml_edit::Array::from_iter(["pricing"])));
    entry.insert("about", toml_edit::value("Of this test."));
    policy["callers"].as_array_of_tables_mut().unwrap().push(entry);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_dns_name_is_a_caller_and_no_spiffe_id_of_that_name_is() {
    let site = Site::new();
    site.edit_policy(|policy| declare(policy, "dns:pricing.example"));
    site.issue("by-dns", client_certificate(&[], &["Pricing.example"]));
    site.issue("by-path", client_certificate(&["spiffe://dev.quotesign.example/pricing.example"], &[]));
    site.issue("by-domain", client_certificate(&[], &["dev.quotesign.example"]));
    let gateway = site.serve().await;
    gateway.quotes("by-dns").await.sign(&Quote::number(1)).await.unwrap();
    for other in ["by-path", "by-domain"] {
        let refused = gateway.quotes(other).await.sign(&Quote::number(2)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::PermissionDenied, "POLICY_DENIED".to_owned()), "{other}");
    }
}

/// Keeps sessions as any client would, and counts the tickets it was given.
#[derive(Debug)]
struct Sessions {
    kept: ClientSessionMemoryCache,
    tickets: AtomicUsize,
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.kept.set_kx_hint(server, group);
    }
    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept.kx_hint(server)
    }
    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.kept.set_tls12_session(server, session);
    }
    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept.tls12_session(server)
    }
    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.kept.remove_tls12_session(server);
    }
    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.tickets.fetch_add(1, Ordering::Relaxed);
        self.kept.insert_tls13_ticket(server, ticket);
    }
    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept.take_tls13_ticket(server)
    }
}

/// Connects twice as a client that would like to resume: the tickets it got, and how the second handshake went.
async fn again(gateway: &Gateway, front: &str, mut config: ClientConfig, hello: &[u8]) -> (usize, HandshakeKind) {
    let sessions = Arc::new(Sessions { kept: ClientSessionMemoryCache::new(8), tickets: AtomicUsize::new(0) });
    config.resumption = Resumption::store(sessions.clone());
    talk(gateway, front, config.clone(), hello).await.unwrap();
    let second = talk(gateway, front, config, hello).await.unwrap();
    (sessions.tickets.load(Ordering::Relaxed), second.get_ref().1.handshake_kind().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_is_ever_resumed_so_every_handshake_checks_the_certificate() {
    let site = Site::new();
    let gateway = site.start();
    for front in FRONTS {
        let (tickets, kind) = again(&gateway, front, client(&site, Some("pricing"), b"h2"), HELLO).await;
        assert!(tickets == 0 && kind != HandshakeKind::Resumed, "{front}: {tickets} tickets, {kind:?}");
    }
    // The public listener has no client certificates to check; it shows that this client does resume where it can.
    let get = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let (tickets, kind) = again(&gateway, "jwks", client(&site, None, b"http/1.1"), get).await;
    assert!(tickets > 0 && kind == HandshakeKind::Resumed, "{tickets} tickets, {kind:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_when_its_certificate_does() {
    let site = Site::new();
    let gateway = site.serve().await;
    let mut params = client_certificate(&[PRICING], &[]);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(4);
    let ends_ms = params.not_after.unix_timestamp() * 1000;
    site.issue("brief", params);

    let mut idle = talk(&gateway, "grpc", client(&site, Some("brief"), b"h2"), HELLO).await.unwrap();
    let active = gateway.quotes("brief").await;
    let lasting = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    active.sign(&quote).await.unwrap();
    // It is told a while before, so that its client makes another one; a call that crosses that was not begun, and is sent again.
    let told = |status: &Status| format!("{status:?}").contains(r#"GoAway(b"", NO_ERROR, Remote)"#);
    let mut ended = None;
    until("the active connection has ended", async || {
        ended = active.sign(&quote).await.err().filter(|status| !told(status));
        ended.is_some()
    })
    .await;
    let now_ms = SystemClock.now().millis();
    assert!(now_ms >= ends_ms, "it ended {} ms before its certificate: {ended:?}", ends_ms - now_ms);
    let mut rest = Vec::new();
    let _a_close_without_notice_is_a_close = timeout(PATIENCE, idle.read_to_end(&mut rest)).await.expect("it is kept");
    // A certificate is valid to the end of its last second.
    until("the certificate is refused", async || {
        let refused = talk(&gateway, "grpc", client(&site, Some("brief"), b"h2"), HELLO).await;
        refused.is_err_and(|refused| refused.to_string().contains("CertificateExpired"))
    })
    .await;
    lasting.sign(&quote).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_end_are_dropped_and_hold_nobody_up() {
    let site = Site::new().with("QUOTESIGN__LIMITS__HANDSHAKE_TIMEOUT_MS", "2000");
    let gateway = site.serve().await;
    for front in FRONTS {
        let mut stalled = Vec::new();
        for _ in 0..32 {
            let mut socket = TcpStream::connect(gateway.address(front)).await.unwrap();
            socket.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
            stalled.push(socket);
        }
        talk(&gateway, front, client(&site, Some("pricing"), b"h2"), HELLO).await.unwrap();
        let waits = |fault: io::Error| fault.kind() == io::ErrorKind::WouldBlock;
        assert!(stalled.iter().all(|socket| socket.try_read(&mut [0]).is_err_and(waits)), "they waited for each other");
        for mut socket in stalled {
            assert_eq!(timeout(PATIENCE, socket.read(&mut [0])).await.expect("it is kept").unwrap(), 0);
        }
    }
    gateway.logged("a handshake took too long").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_holds_no_more_connections_than_it_may() {
    let site = Site::new().with("QUOTESIGN__LIMITS__CONNECTIONS_MAX", "2");
    let gateway = site.start();
    let connect = || talk(&gateway, "grpc", client(&site, Some("pricing"), b"h2"), HELLO);
    let first = connect().await.unwrap();
    let _second = connect().await.unwrap();
    assert!(connect().await.is_err(), "a third connection was taken");
    gateway.logged("the listener holds as many connections as it may").await;
    drop(first);
    until("there is room again", async || connect().await.is_ok()).await;
    talk(&gateway, "admin", client(&site, Some("pricing"), b"h2"), HELLO).await.unwrap();
}
