//! How a gateway ends, and how it goes on: signals, calls under way, and panics in the path.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use prost::Message as _;
use quotesign::{
    ledger::step::Stage,
    proto::{SignQuoteRequest, SignQuoteResponse},
    service::health::SIGNING,
};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::client::TlsStream;
use tonic::{Code, Status};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};
use tonic_types::StatusExt as _;

use crate::{
    harness::{Gateway, PARTNER, Quote, Site, reason, toml, until},
    hostile::{DATA, END_HEADERS, END_STREAM, HEADERS, SIGN_QUOTE, by_hand, call_headers, frame, over},
};

fn site(actions: &str) -> Site {
    Site::new().with("FAILPOINTS", actions).with("TOKIO_WORKER_THREADS", "4")
}

/// Follows the health of `service`: the call gives what it was at first, and each one after that what it became.
async fn watch(gateway: &Gateway, service: &str) -> impl AsyncFnMut() -> Option<i32> + use<> {
    let mut health = HealthClient::new(gateway.client("pricing").grpc().await.unwrap());
    let watched = health.watch(HealthCheckRequest { service: service.to_owned() }).await.unwrap();
    let mut watched = watched.into_inner();
    async move || watched.message().await.unwrap().map(|told| told.status)
}

/// A call for this quote that is under way, and has its number.
async fn reserved(site: &Site, gateway: &Gateway, quote: &Quote) -> JoinHandle<Result<SignQuoteResponse, Status>> {
    let (pricing, sent) = (gateway.quotes("pricing").await, quote.clone());
    let call = tokio::spawn(async move { pricing.sign(&sent).await });
    site.until_stage(quote, "it is reserved", |stage| *stage == Stage::Reserved).await;
    call
}

async fn until_all_refuse(gateway: &Gateway) {
    for front in ["grpc", "admin", "operations"] {
        let address = gateway.address(front);
        until("new connections are refused", async || TcpStream::connect(address).await.is_err()).await;
    }
}

/// Whether the key set is served.
fn shows_its_keys(site: &Site, gateway: &Gateway) -> bool {
    let set = format!("https://{}/partners/{PARTNER}/.well-known/jwks.json", gateway.address("jwks"));
    let mut curl = Command::new("curl");
    let shown = curl.args(["-sS", "--fail", "--cacert"]).arg(site.path("tls/ca.pem")).arg(set).output().unwrap();
    shown.status.success() && String::from_utf8_lossy(&shown.stdout).contains("\"kid\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_ends_with_its_jws_while_nobody_new_is_let_in() {
    let site = site("pipeline::before-sign=1*sleep(1500)->off").with("QUOTESIGN__DRAIN__TIMEOUT_MS", "10000");
    for (signal, number) in [(Signal::TERM, 1), (Signal::INT, 2)] {
        let gateway = site.serve().await;
        let quote = Quote::number(number);
        let call = reserved(&site, &gateway, &quote).await;
        gateway.signal(signal);
        until_all_refuse(&gateway).await;
        assert!(shows_its_keys(&site, &gateway), "verifiers need them while calls are under way");
        let signed = call.await.unwrap().unwrap();
        assert!(gateway.wait().success());
        assert!(matches!(site.stage(&quote), Some(Stage::Signed { jws, .. }) if jws.as_str() == signed.jws));
    }
}

/// A Service sends verifiers to a pod until it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn key_sets_are_served_until_all_else_has_ended() {
    // What a collector is sent waits in its queue, and is never answered.
    let collector = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let site = Site::new().with("QUOTESIGN__DRAIN__GRACE_MS", "0");
    let endpoint = format!("{{ endpoint = 'http://{}' }}", collector.local_addr().unwrap());
    site.edit_config(|config| config["otlp"] = toml(&endpoint));
    let gateway = site.serve().await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    gateway.signal(Signal::TERM);
    until_all_refuse(&gateway).await;
    let is_sending = || !gateway.log.lock().unwrap().iter().any(|line| line.contains("the collector takes its time"));
    let mut shown = 0;
    while is_sending() {
        // The last one may have come when the gateway was about to end.
        assert!(shows_its_keys(&site, &gateway) || !is_sending(), "verifiers were refused after {shown} looks");
        shown += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(shown > 10, "{shown}");
    let jwks = gateway.address("jwks");
    assert!(gateway.wait().success());
    assert!(TcpStream::connect(jwks).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_turns_first_and_calls_are_taken_until_the_grace_is_over_or_cut_short() {
    let site = Site::new().with("QUOTESIGN__DRAIN__GRACE_MS", "600000").with("QUOTESIGN__DRAIN__TIMEOUT_MS", "200");
    for (number, first, second) in
        [(1, Signal::TERM, Signal::TERM), (2, Signal::INT, Signal::TERM), (3, Signal::TERM, Signal::INT)]
    {
        let gateway = site.serve().await;
        let services = ["", SIGNING, "quotesign.v1.QuoteSigningService/acme-remit", "quotesign.v1.KeyDirectoryService"];
        let mut watches = Vec::new();
        for service in services {
            let mut seen = watch(&gateway, service).await;
            assert_eq!(seen().await, Some(ServingStatus::Serving as i32), "{service}");
            watches.push(seen);
        }
        gateway.signal(first);
        for (service, mut seen) in services.into_iter().zip(watches) {
            let told = tokio::time::timeout(Duration::from_secs(10), seen()).await;
            assert_eq!(told, Ok(Some(ServingStatus::NotServing as i32)), "`{service}`");
        }
        until("probes are told", async || !gateway.can_sign().await).await;
        gateway.quotes("pricing").await.sign(&Quote::number(number)).await.unwrap();
        gateway.signal(second);
        assert!(gateway.wait().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_watches_health_for_ever_does_not_hold_the_end_up() {
    let site = Site::new().with("QUOTESIGN__DRAIN__TIMEOUT_MS", "600000");
    let gateway = site.serve().await;
    let mut seen = watch(&gateway, "").await;
    assert_eq!(seen().await, Some(ServingStatus::Serving as i32));
    gateway.signal(Signal::TERM);
    assert!(gateway.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlasts_the_timeout_is_finished_by_a_retry() {
    let mut site = site("pipeline::before-sign=1*sleep(2000)->off").with("QUOTESIGN__DRAIN__TIMEOUT_MS", "100");
    let gateway = site.serve().await;
    let quote = Quote::number(1);
    let call = reserved(&site, &gateway, &quote).await;
    gateway.signal(Signal::TERM);
    gateway.logged("calls under way were cut off").await;
    assert!(gateway.wait().success());
    let told = call.await.unwrap().ok();
    site.env.remove("FAILPOINTS");
    let gateway = site.serve().await;
    let retried = gateway.quotes("pricing").await.sign(&quote).await.unwrap();
    assert!(retried.replayed, "a signature that was begun was not kept");
    assert!(told.is_none_or(|told| told.jws == retried.jws));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_path_costs_one_call_and_nothing_else() {
    let mut site = site("");
    // Two places, of which one caller may hold one: the next call would find none if it were not given back.
    site.edit_signer("sessions", 1.into());
    site.edit_signer("queue_max", 1.into());
    for (at, (number, point)) in [(1, "pipeline::before-sign"), (3, "pipeline::before-commit")].into_iter().enumerate()
    {
        site.env.insert("FAILPOINTS".to_owned(), format!("{point}=3*panic->off"));
        let gateway = site.serve().await;
        let pricing = gateway.quotes("pricing").await;
        let quote = Quote::number(number);
        for _ in 0..3 {
            let torn = pricing.sign(&quote).await.unwrap_err();
            assert_eq!((torn.code(), reason(&torn)), (Code::Internal, "INTERNAL".to_owned()));
            assert!(torn.get_details_retry_info().is_some() && !torn.message().contains("panic"));
        }
        let refused = site.journalled("quote.refused", 3 * (at + 1)).await;
        let record = refused.last().unwrap();
        assert_eq!(record["facts"]["reason"], "INTERNAL", "what was torn is on record");
        let signed = pricing.sign(&quote).await.unwrap();
        assert!(!signed.replayed && signed.sequence == number);
        pricing.sign(&Quote::number(number + 1)).await.unwrap();
        assert!(gateway.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_ledger_is_not_noticed_by_the_caller() {
    let mut site = site("");
    for (number, point, before) in [(1, "ledger::before-commit", 5), (2, "ledger::after-commit", 2)] {
        // After the start's transaction, at the first start three about the key, and the reservation comes the commit.
        site.env.insert("FAILPOINTS".to_owned(), format!("{point}={before}*off->1*panic->off"));
        let gateway = site.serve().await;
        site.journalled("key.served", 1).await;
        site.journalled("key.turned", 1).await;
        let pricing = gateway.quotes("pricing").await;
        let quote = Quote::number(number);
        let signed = pricing.sign(&quote).await.unwrap();
        assert!(!signed.replayed);
        gateway.logged("panicked at").await;
        assert_eq!(pricing.sign(&quote).await.unwrap().jws, signed.jws);
        assert!(gateway.stop().success());
        assert!(site.run(&["audit", "verify"]).status.success());
    }
}

/// Sends a call for this quote with no word of the answers read so far, and reads until the connection is closed.
async fn sent_blindly(mut far: TlsStream<TcpStream>, quote: &Quote) -> Vec<u8> {
    let (environment, payload) = ("development".to_owned(), quote.bytes());
    let message = SignQuoteRequest { environment, payload, ..SignQuoteRequest::default() }.encode_to_vec();
    let body = [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat();
    let call = [frame(HEADERS, END_HEADERS, 1, &call_headers(SIGN_QUOTE)), frame(DATA, END_STREAM, 1, &body)].concat();
    let mut answer = Vec::new();
    if far.write_all(&call).await.is_ok() {
        let _closed_without_notice = far.read_to_end(&mut answer).await;
    }
    answer
}

/// That the quote was signed, and that its JWS is in the answer.
fn assert_answered(site: &Site, quote: &Quote, answer: &[u8]) {
    let Some(Stage::Signed { jws, .. }) = site.stage(quote) else { panic!("it was not signed") };
    let jws = jws.as_str().as_bytes();
    assert!(answer.windows(jws.len()).any(|part| part == jws), "it was not answered");
}

/// A client far away sends a call while it does not know yet that its connection ends: no frame of this one's answers that.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_on_its_way_when_the_drain_began_is_answered() {
    for _ in 0..10 {
        let site = site("pipeline::before-sign=1*sleep(2500)->off").with("QUOTESIGN__DRAIN__TIMEOUT_MS", "10000");
        let gateway = site.serve().await;
        let far = by_hand(&site, &gateway, "pricing").await;
        let quote = Quote::number(1);
        let begun = Instant::now();
        gateway.signal(Signal::TERM);
        until_all_refuse(&gateway).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        // A machine that stood still may have let the second pass in which such calls are taken: that says nothing.
        let in_time = begun.elapsed() < Duration::from_millis(900);
        let answer = sent_blindly(far, &quote).await;
        assert!(gateway.wait().success());
        if in_time {
            return assert_answered(&site, &quote, &answer);
        }
    }
    panic!("the gateway never stopped taking connections in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_at_the_handshake_when_the_drain_began_is_answered() {
    let site = site("pipeline::before-sign=1*sleep(2500)->off").with("QUOTESIGN__DRAIN__TIMEOUT_MS", "10000");
    let gateway = site.serve().await;
    let socket = TcpStream::connect(gateway.address("grpc")).await.unwrap();
    // Connections are accepted in turn: this call's came after that one.
    let call = reserved(&site, &gateway, &Quote::number(1)).await;
    gateway.signal(Signal::TERM);
    until_all_refuse(&gateway).await;
    let quote = Quote::number(2);
    let answer = sent_blindly(over(&site, socket, "pricing").await, &quote).await;
    call.await.unwrap().unwrap();
    assert!(gateway.wait().success());
    assert_answered(&site, &quote, &answer);
}

/// TLS files stand for all that is followed beside the calls: stops, bundles, keys, the lease.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_is_followed_until_the_last_call_has_ended() {
    let site = Site::new().with("QUOTESIGN__DRAIN__GRACE_MS", "600000");
    let gateway = site.serve().await;
    gateway.signal(Signal::TERM);
    gateway.logged("draining").await;
    let local = ["localhost", "127.0.0.1"].map(str::to_owned);
    site.authority.issue(&site.path("tls"), "server", rcgen::CertificateParams::new(local).unwrap());
    gateway.logged("TLS files were reloaded").await;
    gateway.signal(Signal::TERM);
    assert!(gateway.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_its_client_cancels_is_in_the_log_and_in_the_metrics() {
    let site = site("pipeline::before-sign=1*sleep(1500)->off");
    let gateway = site.serve().await;
    let quote = Quote::number(1);
    let call = reserved(&site, &gateway, &quote).await;
    call.abort();
    gateway.logged("\"status\":\"Cancelled\"").await;
    let (_, metrics) = gateway.operations("/metrics").await;
    assert!(metrics.contains("QuoteSigningService/SignQuote\",status=\"Cancelled\",reason=\"\"} 1"), "{metrics}");
}
