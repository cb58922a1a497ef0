//! Who may call what: every RPC as every kind of caller on both listeners, against one written table.

use std::collections::BTreeSet;

use quotesign::{
    proto::{
        ActivateKeyRequest, GetJwksRequest, GetSequenceRequest, GetStatusRequest, HaltReach, HaltRequest,
        ListKeysRequest, ListSignedQuotesRequest, QuoteOutcome, ReinstateCallerRequest, ReleaseHoldRequest,
        ReloadPolicyRequest, ReportQuoteOutcomeRequest, ResumeRequest, RevokeKeyRequest, SeedSequenceRequest,
        SetHoldRequest, SignQuoteRequest, SignQuotesRequest, SuspendCallerRequest, VerifyQuoteRequest,
        admin_service_client::AdminServiceClient, key_directory_service_client::KeyDirectoryServiceClient,
        list_signed_quotes_request, quote_signing_service_client::QuoteSigningServiceClient,
        sign_quotes_response::Answer,
    },
    service::access::RPCS,
    transport::tls,
};
use rustls::pki_types::ServerName;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;
use tonic::{
    Code::{self, NotFound, Ok as Good, PermissionDenied, Unauthenticated, Unimplemented},
    Status,
    transport::Channel,
};

use crate::harness::{Authority, Gateway, PARTNER, Quote, Site, client_certificate, reason, refused, toml};
use crate::streams::status_of;

/// The first three stand in the shipped policy. `desk` is a DNS name that the test's policy gives the role of
/// pricing; `stranger` has a good SPIFFE id that policy does not know; `nameless` has two ids, and so none.
const CALLERS: [&str; 6] = ["pricing", "operator", "auditor", "desk", "stranger", "nameless"];

const OPERATOR_ALONE: [Code; CALLERS.len()] =
    [PermissionDenied, Good, PermissionDenied, PermissionDenied, PermissionDenied, Unauthenticated];

/// Which listener serves a method, and what each caller is answered there. On the other one it is not there; who
/// has no name learns neither.
const TABLE: [(&str, &str, [Code; CALLERS.len()]); 19] = [
    (
        "quotesign.v1.QuoteSigningService/SignQuote",
        "grpc",
        [Good, PermissionDenied, PermissionDenied, Good, PermissionDenied, Unauthenticated],
    ),
    (
        "quotesign.v1.QuoteSigningService/SignQuotes",
        "grpc",
        [Good, PermissionDenied, PermissionDenied, Good, PermissionDenied, Unauthenticated],
    ),
    ("quotesign.v1.QuoteSigningService/VerifyQuote", "grpc", [Good, NotFound, Good, Good, NotFound, Unauthenticated]),
    ("quotesign.v1.QuoteSigningService/GetSequence", "grpc", [Good, Good, NotFound, Good, NotFound, Unauthenticated]),
    ("quotesign.v1.KeyDirectoryService/GetJwks", "grpc", [Good, Good, Good, Good, NotFound, Unauthenticated]),
    ("quotesign.v1.KeyDirectoryService/ListKeys", "grpc", [Good, Good, Good, Good, NotFound, Unauthenticated]),
    (
        "quotesign.v1.AdminService/GetStatus",
        "admin",
        [PermissionDenied, Good, PermissionDenied, PermissionDenied, PermissionDenied, Unauthenticated],
    ),
    (
        "quotesign.v1.AdminService/SeedSequence",
        "admin",
        [NotFound, Good, NotFound, NotFound, NotFound, Unauthenticated],
    ),
    (
        "quotesign.v1.AdminService/ReloadPolicy",
        "admin",
        [PermissionDenied, Good, PermissionDenied, PermissionDenied, PermissionDenied, Unauthenticated],
    ),
    ("quotesign.v1.AdminService/RevokeKey", "admin", OPERATOR_ALONE),
    ("quotesign.v1.AdminService/Halt", "admin", OPERATOR_ALONE),
    ("quotesign.v1.AdminService/Resume", "admin", OPERATOR_ALONE),
    ("quotesign.v1.AdminService/SuspendCaller", "admin", OPERATOR_ALONE),
    ("quotesign.v1.AdminService/ReinstateCaller", "admin", OPERATOR_ALONE),
    ("quotesign.v1.AdminService/SetHold", "admin", OPERATOR_ALONE),
    ("quotesign.v1.AdminService/ReleaseHold", "admin", OPERATOR_ALONE),
    ("quotesign.v1.AdminService/ActivateKey", "admin", OPERATOR_ALONE),
    ("quotesign.v1.AdminService/ListSignedQuotes", "admin", OPERATOR_ALONE),
    (
        "quotesign.v1.QuoteSigningService/ReportQuoteOutcome",
        "grpc",
        [Good, NotFound, NotFound, Good, NotFound, Unauthenticated],
    ),
];

fn test() -> String {
    "a test".to_owned()
}

fn nobody() -> String {
    "dns:nobody.example".to_owned()
}

fn elsewhere() -> HaltReach {
    HaltReach { to: Some(quotesign::proto::halt_reach::To::Partner("nobody".to_owned())) }
}

/// Calls a method with a request that nothing but access can refuse.
async fn call(method: &str, channel: Channel, number: u64) -> Result<(), Status> {
    let partner = PARTNER.to_owned();
    let mut quotes = QuoteSigningServiceClient::new(channel.clone());
    let mut keys = KeyDirectoryServiceClient::new(channel.clone());
    let mut admin = AdminServiceClient::new(channel);
    match method.split_once('/').unwrap().1 {
        "SignQuote" => {
            let (environment, payload) = ("development".to_owned(), Quote::number(number).bytes());
            quotes.sign_quote(SignQuoteRequest { environment, payload, ..SignQuoteRequest::default() }).await.map(drop)
        }
        "SignQuotes" => {
            let (environment, payload) = ("development".to_owned(), Quote::number(number).bytes());
            let quote = Some(SignQuoteRequest { environment, payload, ..SignQuoteRequest::default() });
            let sent = tokio_stream::iter([SignQuotesRequest { tag: 1, quote }]);
            let answer = quotes.sign_quotes(sent).await?.into_inner().message().await?.unwrap().answer.unwrap();
            match answer {
                Answer::Signed(_) => Ok(()),
                Answer::Refused(refusal) => Err(status_of(refusal)),
            }
        }
        "VerifyQuote" => {
            let jws = "not.a.jws".to_owned();
            quotes.verify_quote(VerifyQuoteRequest { partner, jws }).await.map(drop)
        }
        "GetSequence" => quotes.get_sequence(GetSequenceRequest { partner, corridor: String::new() }).await.map(drop),
        "GetJwks" => keys.get_jwks(GetJwksRequest { partner }).await.map(drop),
        "ListKeys" => keys.list_keys(ListKeysRequest { partner }).await.map(drop),
        "GetStatus" => admin.get_status(GetStatusRequest {}).await.map(drop),
        "SeedSequence" => {
            let (corridor, reason) = (String::new(), "a test".to_owned());
            admin.seed_sequence(SeedSequenceRequest { partner, corridor, floor: number, reason }).await.map(drop)
        }
        "ReloadPolicy" => admin.reload_policy(ReloadPolicyRequest {}).await.map(drop),
        // A key and a partner that sign nothing here, so that the rows after it see what those before it saw.
        "ActivateKey" => {
            let kid = "quote-other".to_owned();
            match admin.activate_key(ActivateKeyRequest { kid, reason: test() }).await {
                Err(status) if status.message().starts_with("the bundle in force has no key") => Ok(()),
                answer => answer.map(drop),
            }
        }
        "ListSignedQuotes" => {
            let of = Some(list_signed_quotes_request::Of::Caller(nobody()));
            let since = Some(prost_types::Timestamp::default());
            let request = ListSignedQuotesRequest { of, since, ..ListSignedQuotesRequest::default() };
            admin.list_signed_quotes(request).await.map(drop)
        }
        // Whoever may report is told that there is no such quote; whoever may not, that there is no such partner.
        "ReportQuoteOutcome" => {
            let (quote_id, correlation_id) = ("nobodys".to_owned(), "c1".to_owned());
            let outcome = QuoteOutcome::Accepted.into();
            let request =
                ReportQuoteOutcomeRequest { partner, quote_id, correlation_id, outcome, ..Default::default() };
            match quotes.report_quote_outcome(request).await {
                Err(status) if status.message().starts_with("no quote of this id") => Ok(()),
                answer => answer.map(drop),
            }
        }
        "RevokeKey" => admin
            .revoke_key(RevokeKeyRequest { kid: "quote-other".to_owned(), reason: test(), cause: 0 })
            .await
            .map(drop),
        "Halt" => admin.halt(HaltRequest { reach: Some(elsewhere()), reason: test() }).await.map(drop),
        "Resume" => admin.resume(ResumeRequest { reach: Some(elsewhere()), reason: test() }).await.map(drop),
        "SuspendCaller" => {
            let request = SuspendCallerRequest { caller: nobody(), reason: test(), signed_since: None };
            admin.suspend_caller(request).await.map(drop)
        }
        "ReinstateCaller" => {
            admin.reinstate_caller(ReinstateCallerRequest { caller: nobody(), reason: test() }).await.map(drop)
        }
        "SetHold" => {
            let since = Some(prost_types::Timestamp::default());
            admin.set_hold(SetHoldRequest { hold: "case-1".to_owned(), since, reason: test() }).await.map(drop)
        }
        "ReleaseHold" => {
            admin.release_hold(ReleaseHoldRequest { hold: "case-1".to_owned(), reason: test() }).await.map(drop)
        }
        other => panic!("say here how `{other}` is called"),
    }
}

/// A site that knows all of [`CALLERS`].
fn site() -> Site {
    let site = Site::new();
    site.edit_policy(|policy| {
        let desk = toml("{ id = 'dns:desk.example', roles = ['pricing'], about = 'A caller with a DNS name.' }");
        let desk = desk.into_table().unwrap();
        policy["callers"].as_array_of_tables_mut().unwrap().push(desk);
    });
    site.admit("desk", &[], &["desk.example"]);
    site.admit("stranger", &["spiffe://dev.quotesign.example/stranger"], &[]);
    let two = ["spiffe://dev.quotesign.example/pricing", "spiffe://dev.quotesign.example/operator"];
    site.admit("nameless", &two, &[]);
    site
}

async fn channel(gateway: &Gateway, caller: &str, listener: &str) -> Channel {
    let client = gateway.client(caller);
    if listener == "grpc" { client.grpc().await.unwrap() } else { client.admin().await.unwrap() }
}

#[test]
fn every_rpc_has_its_row_and_every_row_its_rpc() {
    let rows: BTreeSet<&str> = TABLE.iter().map(|(method, ..)| *method).collect();
    let rpcs: BTreeSet<&str> = RPCS.iter().map(|rpc| rpc.method).collect();
    assert_eq!((rows.len(), rows), (TABLE.len(), rpcs));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_caller_gets_what_the_table_says_on_both_listeners() {
    let site = site();
    let gateway = site.serve().await;
    let mut number = 0;
    for (at, caller) in CALLERS.iter().enumerate() {
        for listener in ["grpc", "admin"] {
            let channel = channel(&gateway, caller, listener).await;
            for (method, own, expected) in TABLE {
                number += 1;
                let answer = call(method, channel.clone(), number).await;
                let is_there = listener == own || expected[at] == Unauthenticated;
                let expected = if is_there { expected[at] } else { Unimplemented };
                let code = answer.as_ref().err().map_or(Good, Status::code);
                assert_eq!(code, expected, "{caller} calls {method} on {listener}: {answer:?}");
                let reason = match expected {
                    NotFound => "NOT_FOUND",
                    PermissionDenied => "POLICY_DENIED",
                    Unauthenticated => "CALLER_UNIDENTIFIED",
                    _ => continue,
                };
                refused(answer, expected, reason);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_and_what_is_not_ones_own_look_the_same() {
    let site = site();
    let gateway = site.serve().await;
    let ask = async |method: &str, caller: &str, partner: &str| {
        let partner = partner.to_owned();
        let listener = if method == "SeedSequence" { "admin" } else { "grpc" };
        let channel = channel(&gateway, caller, listener).await;
        let mut quotes = QuoteSigningServiceClient::new(channel.clone());
        let mut keys = KeyDirectoryServiceClient::new(channel.clone());
        let answer = match method {
            "VerifyQuote" => quotes.verify_quote(VerifyQuoteRequest { partner, jws: String::new() }).await.map(drop),
            "GetSequence" => {
                quotes.get_sequence(GetSequenceRequest { partner, corridor: String::new() }).await.map(drop)
            }
            "GetJwks" => keys.get_jwks(GetJwksRequest { partner }).await.map(drop),
            "ListKeys" => keys.list_keys(ListKeysRequest { partner }).await.map(drop),
            _ => {
                let (corridor, reason) = (String::new(), "a test".to_owned());
                let request = SeedSequenceRequest { partner, corridor, floor: 1, reason };
                AdminServiceClient::new(channel).seed_sequence(request).await.map(drop)
            }
        };
        let refusal = refused(answer, NotFound, "NOT_FOUND");
        (refusal.message().to_owned(), refusal.details().to_vec())
    };
    for (method, allowed) in [
        ("VerifyQuote", "pricing"),
        ("GetSequence", "pricing"),
        ("GetJwks", "pricing"),
        ("ListKeys", "pricing"),
        ("SeedSequence", "operator"),
    ] {
        let forbidden = ask(method, "stranger", PARTNER).await;
        assert_eq!(forbidden, ask(method, "stranger", "nobody").await, "{method}");
        assert_eq!(forbidden, ask(method, allowed, "nobody").await, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_certificate_of_the_ca_ends_in_the_handshake() {
    let site = site();
    let names = client_certificate(&["spiffe://dev.quotesign.example/pricing"], &[]);
    Authority::new().issue(&site.path("tls"), "forged", names);
    let gateway = site.start();
    let forged = gateway.client("forged");
    for channel in [forged.grpc().await, forged.admin().await].into_iter().flatten() {
        let answer = AdminServiceClient::new(channel).get_status(GetStatusRequest {}).await;
        assert_eq!(reason(&answer.unwrap_err()), "");
    }
    for front in ["grpc", "admin"] {
        let tls = TlsConnector::from(tls::client(&forged.ca, None, b"h2").unwrap());
        let socket = TcpStream::connect(gateway.address(front)).await.unwrap();
        let mut nameless = tls.connect(ServerName::try_from("127.0.0.1").unwrap(), socket).await.unwrap();
        let alert = nameless.read(&mut [0; 9]).await.unwrap_err();
        assert!(alert.to_string().contains("CertificateRequired"), "{alert}");
    }
}
