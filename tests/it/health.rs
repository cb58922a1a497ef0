//! Health tells the truth: what serves, what does not and why, to gRPC clients, probes and metrics alike; and it
//! comes back by itself.

use std::{fs, path::Path};

use quotesign::{
    ledger::step::Stage,
    proto::{GetStatusRequest, ListKeysRequest},
    service::health::{DIRECTORY, SIGNING},
};
use serde_json::json;
use tonic::{Code, Request, client::Grpc, transport::Channel};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt as _;

use crate::{
    faults::shim::Shim,
    harness::{Gateway, PARTNER, Quote, Site, client_certificate, reason, until},
};

const SERVING: Result<i32, Code> = Ok(ServingStatus::Serving as i32);
const NOT_SERVING: Result<i32, Code> = Ok(ServingStatus::NotServing as i32);

/// Health of: everything, signing, the partner's signing.
async fn signing(gateway: &Gateway) -> [Result<i32, Code>; 3] {
    let mut told = [Ok(0); 3];
    for (told, service) in told.iter_mut().zip([String::new(), SIGNING.to_owned(), format!("{SIGNING}/{PARTNER}")]) {
        *told = gateway.health("pricing", &service).await.map(i32::from);
    }
    told
}

/// What serves as long as the process does.
async fn keys_are_served(gateway: &Gateway) {
    assert_eq!(gateway.health("pricing", DIRECTORY).await.map(i32::from), SERVING);
    assert_eq!(gateway.operations("/readyz?for=jwks").await.0, 200);
    assert_eq!(gateway.operations("/livez").await.0, 200);
    let set = gateway.client("pricing").jwks(&PARTNER.parse().unwrap()).await.unwrap();
    assert!(String::from_utf8_lossy(&set).contains("\"kid\""));
    let request = ListKeysRequest { partner: PARTNER.to_owned() };
    assert_eq!(gateway.keys("pricing").await.list_keys(request).await.unwrap().into_inner().keys.len(), 1);
}

async fn serves(gateway: &Gateway) {
    until("all of signing serves", async || signing(gateway).await == [SERVING; 3]).await;
    assert_eq!(gateway.operations("/readyz?for=signing").await.0, 200);
    keys_are_served(gateway).await;
}

async fn serves_keys_alone(gateway: &Gateway) {
    until("none of signing serves", async || signing(gateway).await == [NOT_SERVING; 3]).await;
    assert_eq!(gateway.operations("/readyz?for=signing").await.0, 503);
    let status = gateway.admin("operator").await.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    for part in status.components.iter().filter(|part| part.name.starts_with("signing")) {
        assert!(!part.serving && !part.detail.is_empty(), "{part:?}");
    }
    keys_are_served(gateway).await;
}

async fn gauge(gateway: &Gateway, component: &str) -> Option<String> {
    let line = format!("quotesign_component_serving{{component=\"{component}\"}} ");
    let (_, text) = gateway.operations("/metrics").await;
    text.lines().find_map(|text| text.strip_prefix(&line)).map(str::to_owned)
}

/// A site whose device is asked often how it fares.
fn site() -> Site {
    let site = Site::new();
    site.edit_signer("probe_interval_ms", 100.into());
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn what_serves_says_so_and_what_is_not_there_is_not_found() {
    let site = site();
    let gateway = site.start();
    serves(&gateway).await;
    for unknown in ["quotesign.v1.NoSuchService", &format!("{SIGNING}/nobody"), "acme-remit"] {
        assert_eq!(gateway.health("pricing", unknown).await.map(i32::from), Err(Code::NotFound), "{unknown}");
    }
    for vague in ["/readyz", "/readyz?for=anything"] {
        assert_eq!(gateway.operations(vague).await.0, 400, "{vague}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_away_stops_signing_alone_and_burns_no_number() {
    let site = site();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    pricing.sign(&Quote::number(1)).await.unwrap();
    let mut health = HealthClient::new(gateway.client("pricing").grpc().await.unwrap());
    let mut watch = health.watch(HealthCheckRequest { service: SIGNING.to_owned() }).await.unwrap().into_inner();
    let mut seen = async || watch.message().await.unwrap().map(|told| told.status);
    assert_eq!(seen().await, Some(ServingStatus::Serving as i32));

    fs::rename(site.path("tokens"), site.path("tokens.away")).unwrap();
    serves_keys_alone(&gateway).await;
    assert_eq!(seen().await, Some(ServingStatus::NotServing as i32));
    until("the gauge falls", async || gauge(&gateway, "signing").await.as_deref() == Some("0")).await;
    assert_eq!(gauge(&gateway, "ledger").await.as_deref(), Some("1"));
    let quote = Quote::number(2);
    let refused = pricing.sign(&quote).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "SIGNER_UNAVAILABLE".to_owned()));
    assert!(refused.get_details_retry_info().is_some());
    assert!(site.stage(&quote).is_none_or(|stage| stage == Stage::Reserved));

    fs::rename(site.path("tokens.away"), site.path("tokens")).unwrap();
    serves(&gateway).await;
    assert_eq!(seen().await, Some(ServingStatus::Serving as i32));
    let signed = pricing.sign(&quote).await.unwrap();
    assert!(!signed.replayed && signed.sequence == 2);
}

/// Whether this gateway has a process for a module.
fn has_host(gateway: &Gateway) -> bool {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", gateway.pid())).unwrap();
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    let of_threads = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
    of_threads.chain([children]).any(|children| !children.trim().is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_is_tried_once_and_told_loudly() {
    let found = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path().join("pkcs11-spy.so"));
    let spy =
        found.into_iter().find(|path| path.exists()).expect("no pkcs11-spy; on Debian: apt-get install opensc-pkcs11");
    let site = site();
    let config: toml_edit::DocumentMut = fs::read_to_string(site.config()).unwrap().parse().unwrap();
    let module = config["signers"][0]["module"].as_str().unwrap().to_owned();
    let calls = site.path("calls");
    site.edit_signer("module", spy.to_str().unwrap().into());
    let site = site.with("PKCS11SPY", &module).with("PKCS11SPY_OUTPUT", calls.to_str().unwrap());
    let logins = |calls: &Path| fs::read_to_string(calls).unwrap().matches("C_Login\n").count();
    site.serve().await.stop();
    assert!(logins(&calls) > 0, "the spy sees no login");

    fs::remove_file(&calls).unwrap();
    fs::write(site.path("pin"), "not the pin\n").unwrap();
    let gateway = site.start();
    gateway.logged("the token is given up; correct its PIN").await;
    serves_keys_alone(&gateway).await;
    let is_error = |line: &String| line.contains("\"ERROR\"") && line.contains("hsm-primary");
    assert!(gateway.log.lock().unwrap().iter().any(is_error));
    let refused = gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap_err();
    assert_eq!(reason(&refused), "SIGNER_UNAVAILABLE");
    until("nobody is left who could log in", async || !has_host(&gateway)).await;
    assert_eq!(logins(&calls), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_under_the_same_label_signs_nothing() {
    let (site, other) = (site(), Site::new());
    fs::rename(site.path("tokens"), site.path("tokens.own")).unwrap();
    fs::rename(other.path("tokens"), site.path("tokens")).unwrap();
    fs::copy(site.path("pin"), site.path("pin.own")).unwrap();
    fs::copy(other.path("pin"), site.path("pin")).unwrap();
    let gateway = site.start();
    gateway.logged("it is not the key that policy pins").await;
    serves_keys_alone(&gateway).await;
    until("the signer is up", async || gauge(&gateway, "signer/hsm-primary").await.as_deref() == Some("1")).await;
    let kid = format!("key/{}", kid(&site));
    assert_eq!(gauge(&gateway, &kid).await.as_deref(), Some("0"));
    let quote = Quote::number(1);
    let refused = gateway.quotes("pricing").await.sign(&quote).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "SIGNER_UNAVAILABLE".to_owned()));
    assert!(site.stage(&quote).is_none_or(|stage| stage == Stage::Reserved));
    assert!(gateway.stop().success());

    fs::remove_dir_all(site.path("tokens")).unwrap();
    fs::rename(site.path("tokens.own"), site.path("tokens")).unwrap();
    fs::rename(site.path("pin.own"), site.path("pin")).unwrap();
    site.serve().await.quotes("pricing").await.sign(&quote).await.unwrap();
}

fn kid(site: &Site) -> String {
    let file = fs::read_dir(site.path("policy/keys")).unwrap().next().unwrap().unwrap().file_name();
    file.to_str().unwrap().strip_suffix(".jwk.json").unwrap().to_owned()
}

/// Calls a method that may not be there.
async fn call(channel: &Channel, method: &'static str) -> Code {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(method);
    grpc.unary(Request::new(()), path, ProstCodec::<(), ()>::default())
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_by_reason_and_hold_no_text_of_a_caller() {
    let site = site();
    let gateway = site.serve().await;
    let quote = Quote::number(1).with("subscription_id", json!("sub_SECRET"));
    gateway.quotes("pricing").await.sign(&quote).await.unwrap();
    gateway.quotes("auditor").await.sign(&Quote::number(2)).await.unwrap_err();
    site.issue("nobody", client_certificate(&[], &[]));
    let channel = gateway.client("pricing").grpc().await.unwrap();
    let nobody = gateway.client("nobody").grpc().await.unwrap();
    for method in [
        "/chosen.Service/Chosen",
        "/quotesign.v1.QuoteSigningService/Chosen",
        "/quotesign.v1.QuoteSigningService/SignQuote/Chosen",
        "/Chosen",
        "/",
    ] {
        assert_eq!(call(&channel, method).await, Code::Unimplemented, "{method}");
        assert_eq!(call(&nobody, method).await, Code::Unauthenticated, "{method}");
    }
    let (status, text) = gateway.operations("/metrics").await;
    assert_eq!(status, 200);
    let sign = "method=\"quotesign.v1.QuoteSigningService/SignQuote\"";
    for line in [
        &format!("quotesign_calls_total{{{sign},status=\"Ok\",reason=\"\"}} 1"),
        &format!("quotesign_calls_total{{{sign},status=\"PermissionDenied\",reason=\"POLICY_DENIED\"}} 1"),
        "quotesign_calls_total{method=\"unknown\",status=\"Unimplemented\",reason=\"\"} 5",
        "quotesign_calls_total{method=\"unknown\",status=\"Unauthenticated\",reason=\"CALLER_UNIDENTIFIED\"} 5",
        &format!("quotesign_call_duration_seconds_count{{{sign}}} 2"),
        "quotesign_audit_refusals_not_journalled_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "`{line}` is not in {text}");
    }
    for component in
        ["clock", "ledger", "signing", "signing/acme-remit", "signer/hsm-primary", &format!("key/{}", kid(&site))]
    {
        assert_eq!(gauge(&gateway, component).await.as_deref(), Some("1"), "{component}");
    }
    // The gateway's own test signatures have places, too.
    for at in ["places", "waiting"] {
        let line = format!("quotesign_signer_orders{{signer=\"hsm-primary\",at=\"{at}\"}} 0");
        let stands = async || gateway.operations("/metrics").await.1.lines().any(|found| found == line);
        until("the device has nothing to do", stands).await;
    }
    assert!(text.contains("quotesign_signer_service_seconds{signer=\"hsm-primary\"} 0."));
    for service in ["signer/hsm-primary".to_owned(), format!("key/{}", kid(&site))] {
        assert_eq!(gateway.health("pricing", &service).await.map(i32::from), SERVING, "{service}");
    }
    for chosen in ["hosen", "SECRET", quote.id(), "spiffe"] {
        assert!(!text.contains(chosen), "`{chosen}` is in {text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

/// The services that reflection lists, in both its versions.
macro_rules! reflected {
    ($version:ident, $channel:expr) => {{
        use $version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { host: String::new(), message_request };
        let asked = tokio_stream::once(request);
        match ServerReflectionClient::new($channel).server_reflection_info(asked).await {
            Err(status) => Err(status.code()),
            Ok(answers) => match answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
                    names.sort();
                    Ok(names)
                }
                other => panic!("{other:?}"),
            },
        }
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_answers_where_the_config_says_so_and_nowhere_else() {
    let site = site();
    let gateway = site.start();
    let client = gateway.client("operator");
    let grpc = client.grpc().await.unwrap();
    for services in [reflected!(v1, grpc.clone()), reflected!(v1alpha, grpc.clone())] {
        let services = services.unwrap();
        for name in [SIGNING, DIRECTORY, "grpc.health.v1.Health"] {
            assert!(services.iter().any(|service| service == name), "{name} is not in {services:?}");
        }
    }
    let admin = client.admin().await.unwrap();
    assert_eq!(reflected!(v1, admin.clone()), Err(Code::Unimplemented));
    assert_eq!(reflected!(v1alpha, admin), Err(Code::Unimplemented));
}

/// A login that is lost with its process may have been counted by the token, as far as anybody knows.
#[tokio::test(flavor = "multi_thread")]
async fn logins_that_come_to_no_known_end_are_tried_twice_and_no_more() {
    for fault in ["C_Login abort", "C_Login err CKR_GENERAL_ERROR", "C_Login hang-forever"] {
        let site = site();
        let shim = Shim::before(&site);
        site.edit_signer("call_timeout_ms", 200.into());
        shim.rules(fault);
        let gateway = site.start();
        gateway.logged("the token is given up; see to it and its PIN, and restart").await;
        until("nobody is left who could log in", async || !has_host(&gateway)).await;
        assert_eq!(shim.faults("C_Login"), 2, "{fault}");
        let refused = gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap_err();
        assert_eq!(reason(&refused), "SIGNER_UNAVAILABLE");
    }
    // A device that says that it is away is asked for as long as it takes.
    let site = site();
    let shim = Shim::before(&site);
    shim.rules("C_Login err CKR_DEVICE_ERROR");
    let gateway = site.start();
    until("more than two logins", async || shim.faults("C_Login") > 2).await;
    shim.rules("");
    gateway.signing().await;
    // One that comes to no known end in a session of a token that is up: none is tried in that process any more.
    shim.once("C_Login err CKR_GENERAL_ERROR times 1\nC_SignInit close times 1");
    let before = shim.faults("C_Login");
    gateway.logged("the token failed").await;
    gateway.signing().await;
    assert_eq!(shim.faults("C_Login"), before);
    gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
}

/// A device that hangs before it is given a PIN has counted none, however often.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_hangs_outside_its_login_is_asked_until_it_is_back() {
    // The session before the login, and those after it.
    for hangs in ["C_OpenSession hang-forever", "C_OpenSession hang-forever after 1"] {
        let site = site();
        let shim = Shim::before(&site);
        site.edit_signer("call_timeout_ms", 100.into());
        shim.rules(hangs);
        let gateway = site.start();
        until("it was asked more than twice", async || shim.faults("C_OpenSession hang") > 3).await;
        shim.rules("");
        gateway.signing().await;
        gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    }
}

/// Stuck is what a session has been at for too long, and not what waits for a session; and a token has no more
/// sessions to stand in than it says.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_stuck_get_as_many_stand_ins_as_the_token_has() {
    let site = site();
    let shim = Shim::before(&site);
    site.edit_signer("call_timeout_ms", 400.into());
    site.edit_signer("sessions", 2.into());
    // One keeps the login, two sign, one may stand in.
    shim.rules("* max-sessions 4");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let sign = async |numbers: std::ops::Range<u64>| {
        let calls: Vec<_> = numbers
            .map(|number| {
                let pricing = pricing.clone();
                tokio::spawn(async move { pricing.sign(&Quote::number(number)).await })
            })
            .collect();
        for call in calls {
            // Numbers overtake each other: what is told of them is of no matter here.
            drop(call.await.unwrap());
        }
    };
    let told = |text: &str| gateway.log.lock().unwrap().iter().filter(|line| line.contains(text)).count();
    sign(1..40).await;
    shim.rules("* max-sessions 4\nC_Sign delay 300");
    sign(40..52).await;
    assert_eq!((told("another stands in for it"), told("the token failed")), (0, 0));
    shim.rules("* max-sessions 4\nC_Sign hang-forever times 1");
    sign(52..56).await;
    gateway.logged("another stands in for it").await;
    assert_eq!(told("the token failed"), 0);
    // One is still stuck, and of two more the token can make good none.
    shim.rules("* max-sessions 4\nC_Sign hang-forever times 2 # more");
    sign(56..60).await;
    gateway.logged("the token failed").await;
    shim.rules("* max-sessions 4");
    gateway.signing().await;
}

/// A token may give fewer sessions than it says it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_short_of_sessions_signs_with_those_it_gives() {
    let site = site();
    let shim = Shim::before(&site);
    site.edit_signer("sessions", 6.into());
    shim.rules("C_OpenSession err CKR_SESSION_COUNT after 3");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    for number in 1..40 {
        pricing.sign(&Quote::number(number)).await.unwrap();
    }
    let log = gateway.log.lock().unwrap();
    let ups: Vec<_> = log.iter().filter(|line| line.contains("the token is up")).collect();
    assert!(ups.len() == 1 && ups[0].contains("\"sessions\":2"), "{ups:?}");
}

/// Nobody is asked for his name before a question about health or the services is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_health_or_the_services_is_as_long_as_a_name() {
    let site = site();
    let gateway = site.start();
    let long = "x".repeat(5_000);
    assert_eq!(gateway.health("operator", &long).await, Err(Code::InvalidArgument));
    assert_eq!(gateway.health("operator", &long[..3_000]).await, Err(Code::NotFound));
    let grpc = gateway.client("operator").grpc().await.unwrap();
    for (host, is_answered) in [(&long[..3_000], true), (&long, false)] {
        let message_request = Some(v1::server_reflection_request::MessageRequest::ListServices(String::new()));
        let asked = tokio_stream::once(v1::ServerReflectionRequest { host: host.to_owned(), message_request });
        let mut reflection = v1::server_reflection_client::ServerReflectionClient::new(grpc.clone());
        let answer = reflection.server_reflection_info(asked).await.unwrap().into_inner().message().await;
        assert_eq!(answer.ok().flatten().is_some(), is_answered);
    }
}
