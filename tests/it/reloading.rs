//! TLS files that change under a running gateway: what is in force, for whom, and what it costs those who are connected.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use quotesign::{ledger::step::Stage, transport::tls};
use rcgen::CertificateParams;
use rustix::process::Signal;
use rustls::{
    HandshakeKind,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::{Authority, Gateway, PATIENCE, Quote, Site, client_certificate, reason, until};

const PRICING: &str = "spiffe://dev.quotesign.example/pricing";

fn leaf_of(file: &Path) -> Vec<u8> {
    CertificateDer::pem_file_iter(file).unwrap().next().unwrap().unwrap().to_vec()
}

/// Puts another certificate and key of the same CA where a front's are.
fn renew(site: &Site, name: &str) -> Vec<u8> {
    let local = ["localhost", "127.0.0.1"].map(str::to_owned);
    site.authority.issue(&site.path("tls"), name, CertificateParams::new(local).unwrap());
    leaf_of(&site.path("tls").join(format!("{name}.pem")))
}

/// The certificate that a front shows.
async fn shown(site: &Site, gateway: &Gateway, front: &str) -> Option<Vec<u8>> {
    let dir = site.path("tls");
    let (certificate, key) = (dir.join("pricing.pem"), dir.join("pricing.key"));
    let files = (front != "jwks").then_some((certificate.as_path(), key.as_path()));
    let tls = tls::client(&dir.join("ca.pem"), files, if front == "jwks" { b"http/1.1" } else { b"h2" }).unwrap();
    let socket = TcpStream::connect(gateway.address(front)).await.ok()?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(tls).connect(name, socket).await.ok()?;
    Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
}

async fn until_shown(site: &Site, gateway: &Gateway, leaf: &[u8]) {
    for front in ["grpc", "admin", "jwks"] {
        until(&format!("{front} shows it"), async || {
            shown(site, gateway, front).await.is_some_and(|seen| seen == leaf)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served_and_no_call_is_dropped_for_it() {
    let site =
        Site::new().with("FAILPOINTS", "pipeline::before-sign=1*sleep(4000)->off").with("TOKIO_WORKER_THREADS", "4");
    let gateway = site.serve().await;
    let (pricing, quote) = (gateway.quotes("pricing").await, Quote::number(1));
    let call = tokio::spawn({
        let (pricing, quote) = (gateway.quotes("pricing").await, quote.clone());
        async move { pricing.sign(&quote).await }
    });
    site.until_stage(&quote, "it is reserved", |stage| *stage == Stage::Reserved).await;
    let leaf = renew(&site, "server");
    until_shown(&site, &gateway, &leaf).await;
    assert!(!call.is_finished(), "the call was to be under way at the reload");
    call.await.unwrap().unwrap();
    // Who was connected before goes on over the same connection.
    pricing.sign(&Quote::number(2)).await.unwrap();
    let records = site.journalled("tls.reloaded", 3).await;
    for front in ["grpc", "admin", "jwks"] {
        let of = format!("TLS of {front}: certificate {}", hex::encode(quotesign::domain::sha256(&leaf)));
        let told = |record: &&serde_json::Value| record["facts"]["detail"].as_str().unwrap().starts_with(&of);
        assert_eq!(records.iter().filter(told).count(), 1, "{of}: {records:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_change_nothing_until_they_are_mended() {
    let site = Site::new();
    let gateway = site.serve().await;
    let tls = site.path("tls");
    let good = leaf_of(&tls.join("server.pem"));
    let refused = |count: usize| {
        let gateway = &gateway;
        move || {
            let gauge = format!("quotesign_certificate_files_refused{{front=\"grpc\"}} {count}\n");
            async move { gateway.operations("/metrics").await.1.contains(&gauge) }
        }
    };
    let key = fs::read(tls.join("server.key")).unwrap();
    let pem = fs::read(tls.join("server.pem")).unwrap();
    for (file, text, why) in [
        ("server.key", b"-----BEGIN PRIVATE KEY-----\n".as_slice(), "server.key"),
        ("server.pem", b"", "server.pem"),
        ("ca.pem", b"garbage", "ca.pem"),
    ] {
        let before = fs::read(tls.join(file)).unwrap();
        let lines = gateway.log.lock().unwrap().len();
        fs::write(tls.join(file), text).unwrap();
        let wait = refused(1);
        until("it is told", async || wait().await).await;
        let told = || {
            let log = gateway.log.lock().unwrap();
            let is_it = |line: &&String| {
                line.contains("cannot be used") && line.contains(why) && line.contains("\"front\":\"grpc\"")
            };
            log[lines..].iter().filter(is_it).count()
        };
        until("it is told", async || told() == 1).await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(told(), 1, "{file} is told again and again");
        // The client reads ca.pem too: it has the good one.
        fs::write(tls.join(file), before).unwrap();
        assert_eq!(shown(&site, &gateway, "grpc").await.as_ref(), Some(&good));
        let wait = refused(0);
        until("it is mended", async || wait().await).await;
    }
    // A certificate whose key has not come yet: the old pair stays, and the new one is taken once it is whole.
    let leaf = renew(&site, "server");
    let (new_pem, new_key) = (fs::read(tls.join("server.pem")).unwrap(), fs::read(tls.join("server.key")).unwrap());
    fs::write(tls.join("server.pem"), &pem).unwrap();
    fs::write(tls.join("server.key"), &key).unwrap();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    fs::write(tls.join("server.pem"), &new_pem).unwrap();
    let wait = refused(1);
    until("it is told", async || wait().await).await;
    assert_eq!(shown(&site, &gateway, "grpc").await.as_ref(), Some(&good));
    fs::write(tls.join("server.key"), &new_key).unwrap();
    until_shown(&site, &gateway, &leaf).await;
    fs::remove_file(tls.join("server.key")).unwrap();
    gateway.logged("No such file").await;
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_takes_new_files_at_once() {
    let site = Site::new();
    let gateway = site.serve().await;
    let leaf = renew(&site, "server");
    gateway.signal(Signal::HUP);
    until_shown(&site, &gateway, &leaf).await;
}

/// A client of another CA, which the gateway accepts besides its own.
fn with_two_cas(site: &Site) -> Authority {
    let other = Authority::named("a CA that goes");
    fs::write(site.path("tls").join("clients.pem"), format!("{}{}", site.authority.pem, other.pem)).unwrap();
    other.issue(&site.path("tls"), "leaving", client_certificate(&[PRICING], &[]));
    site.edit_config(|config| {
        config["grpc"]["client_ca"] = toml_edit::value("tls/clients.pem");
        config["admin"]["client_ca"] = toml_edit::value("tls/clients.pem");
    });
    other
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_removed_ca_is_out_at_once_connected_or_not() {
    let site = Site::new();
    let other = with_two_cas(&site);
    let gateway = site.serve().await;
    let (leaving, staying) = (gateway.quotes("leaving").await, gateway.quotes("pricing").await);
    leaving.sign(&Quote::number(1)).await.unwrap();
    staying.sign(&Quote::number(2)).await.unwrap();
    // A stream that is open, and a client that would like to resume its session.
    let (_open, sent) = mpsc::channel(1);
    let mut stream = leaving.0.clone().sign_quotes(ReceiverStream::new(sent)).await.unwrap().into_inner();
    let dir = site.path("tls");
    let (certificate, key) = (dir.join("leaving.pem"), dir.join("leaving.key"));
    let mut resuming =
        (*tls::client(&dir.join("ca.pem"), Some((certificate.as_path(), key.as_path())), b"h2").unwrap()).clone();
    resuming.resumption = Resumption::in_memory_sessions(16);
    let resuming = TlsConnector::from(Arc::new(resuming));
    let connect = async || {
        let socket = TcpStream::connect(gateway.address("grpc")).await?;
        let mut tls = resuming.connect(ServerName::try_from("localhost").unwrap(), socket).await?;
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        tls.read_u8().await?;
        std::io::Result::Ok(tls)
    };
    let mut held = connect().await.unwrap();
    connect().await.unwrap();

    fs::write(dir.join("clients.pem"), &site.authority.pem).unwrap();
    until("the next handshake is refused", async || {
        connect().await.is_err_and(|refused| refused.to_string().contains("UnknownCA"))
    })
    .await;
    // The connection that was open is told why, or is gone already and cannot come back.
    leaving.sign(&Quote::number(3)).await.unwrap_err();
    assert!(timeout(PATIENCE, stream.message()).await.expect("the stream is kept").is_err());
    let mut rest = Vec::new();
    let _closed = timeout(PATIENCE, held.read_to_end(&mut rest)).await.expect("the connection is kept");
    staying.sign(&Quote::number(3)).await.unwrap();
    // The CA comes back: so do its clients.
    fs::write(dir.join("clients.pem"), format!("{}{}", site.authority.pem, other.pem)).unwrap();
    until("it is let in again", async || connect().await.is_ok()).await;
    let back = connect().await.unwrap();
    assert_ne!(back.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    gateway.quotes("leaving").await.sign(&Quote::number(4)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_call_over_an_open_connection_asks_the_cas_of_now() {
    let site =
        Site::new().with("FAILPOINTS", "pipeline::before-sign=1*sleep(4000)->off").with("TOKIO_WORKER_THREADS", "4");
    with_two_cas(&site);
    let gateway = site.serve().await;
    let leaving = gateway.quotes("leaving").await;
    // A call under way keeps the connection open; it was let in and is finished.
    let (quote, under_way) = (Quote::number(1), Arc::new(Mutex::new(None)));
    let call = tokio::spawn({
        let (leaving, quote, told) = (gateway.quotes("leaving").await, quote.clone(), under_way.clone());
        async move { *told.lock().unwrap() = Some(leaving.sign(&quote).await) }
    });
    site.until_stage(&quote, "it is reserved", |stage| *stage == Stage::Reserved).await;
    fs::write(site.path("tls").join("clients.pem"), &site.authority.pem).unwrap();
    gateway.logged("TLS files were reloaded").await;
    let refused = leaving.sign(&Quote::number(2)).await.unwrap_err();
    if refused.code() == Code::Unauthenticated {
        assert_eq!(reason(&refused), "CALLER_UNIDENTIFIED");
        assert!(refused.message().contains("not accepted any more"), "{refused}");
    }
    call.await.unwrap();
    let told = under_way.lock().unwrap().take().unwrap();
    assert_eq!(told.unwrap().sequence, 1, "a call that was let in is finished");
    assert_eq!(gateway.quotes("pricing").await.last().await, 1, "nothing was signed for a client of a removed CA");
}
