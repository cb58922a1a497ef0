//! Reading the policy bundle again: a good one comes into force, a bad one changes nothing and is told.

use std::fs;

use quotesign::proto::{GetStatusRequest, GetStatusResponse, ReloadPolicyRequest, ReloadPolicyResponse};
use serde_json::json;
use tonic::{Code, Status};

use crate::harness::{Gateway, Quote, Site, done, failed, refused, toml, until};

async fn reload(gateway: &Gateway) -> Result<ReloadPolicyResponse, Status> {
    let answer = gateway.admin("operator").await.reload_policy(ReloadPolicyRequest {}).await;
    answer.map(tonic::Response::into_inner)
}

async fn status(gateway: &Gateway) -> GetStatusResponse {
    gateway.admin("operator").await.get_status(GetStatusRequest {}).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_bundle_with_a_higher_serial_comes_into_force() {
    let site = Site::new();
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let before = status(&gateway).await;
    let signed = pricing.sign(&Quote::number(1)).await.unwrap();
    assert_eq!((&signed.policy_digest, before.policy_serial), (&before.policy_digest, 1));
    site.edit_policy(|policy| policy["partners"][0]["sequence"]["jump_max"] = toml("5"));
    refused(pricing.sign(&Quote::number(1003)).await, Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC");
    pricing.sign(&Quote::number(101)).await.unwrap();

    let loaded = reload(&gateway).await.unwrap();
    assert_eq!((&loaded.previous_digest, loaded.policy_serial), (&before.policy_digest, 2));
    let now = status(&gateway).await;
    assert_eq!((&now.policy_digest, now.policy_serial), (&loaded.policy_digest, 2));
    assert_ne!(now.policy_digest, before.policy_digest);
    refused(pricing.sign(&Quote::number(201)).await, Code::FailedPrecondition, "SEQUENCE_NOT_MONOTONIC");
    assert_eq!(pricing.sign(&Quote::number(106)).await.unwrap().policy_digest, now.policy_digest);
    let records = site.journalled("policy.loaded", 1).await;
    assert_eq!(records[0]["id"], json!(loaded.audit_record_id));
    assert_eq!(records[0]["context"]["caller"], "spiffe://dev.quotesign.example/operator");
    assert_eq!(records[0]["context"]["policy_digest"], json!(now.policy_digest));
    // The same bundle again changes nothing and is no fault.
    assert_eq!(reload(&gateway).await.unwrap().policy_digest, now.policy_digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_bundle_is_refused_by_name_and_the_last_good_one_goes_on_serving() {
    let site = Site::new();
    site.edit_policy(|policy| policy["serial"] = toml("7"));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let good = status(&gateway).await;
    let file = site.path("policy/policy.toml");
    let text = fs::read_to_string(&file).unwrap();
    for (number, (from, to, why)) in [
        ("jump_max = 1000", "jump_max = 999", "the bundle has changed and `serial` is still 7; raise it"),
        ("serial = 7", "serial = 6", "`serial` = 6 is below 7, which was in force; a serial never falls"),
        ("serial = 7", "serial = 8\nserials = 9", "unknown field `serials`"),
        ("serial = 7", "serial = ", "policy.toml:"),
        ("\"hsm-primary\"", "\"hsm-other\"", "no signer of the gateway's config is named `hsm-other`"),
        ("environment = \"development\"", "environment = \"production\"", "publication.propagation_s"),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(text.contains(from), "{from}");
        fs::write(&file, text.replacen(from, to, 1)).unwrap();
        let refusal = refused(reload(&gateway).await, Code::FailedPrecondition, "BUNDLE_REFUSED");
        assert!(refusal.message().contains(why), "{why}: {}", refusal.message());
        let now = status(&gateway).await;
        assert_eq!((&now.policy_digest, now.policy_serial), (&good.policy_digest, 7));
        assert!(now.last_reload_error.contains(why), "{}", now.last_reload_error);
        let signed = pricing.sign(&Quote::number(number as u64 + 1)).await.unwrap();
        assert_eq!(signed.policy_digest, good.policy_digest);
        let records = site.journalled("policy.refused", number + 1).await;
        assert!(records[number]["facts"]["detail"].as_str().unwrap().contains(why), "{}", records[number]);
        assert_eq!(records.len(), number + 1);
    }
    fs::write(&file, text.replacen("serial = 7", "serial = 8", 1)).unwrap();
    assert_eq!(reload(&gateway).await.unwrap().policy_serial, 8);
    assert_eq!(status(&gateway).await.last_reload_error, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reads_the_bundle_again() {
    let site = Site::new();
    let gateway = site.serve().await;
    site.edit_policy(|_| {});
    gateway.signal(rustix::process::Signal::HUP);
    until("serial 2 is in force", async || status(&gateway).await.policy_serial == 2).await;
    site.edit_policy(|policy| policy["serial"] = toml("1"));
    gateway.signal(rustix::process::Signal::HUP);
    gateway.logged("SIGHUP: the policy bundle was not reloaded").await;
    assert_eq!(status(&gateway).await.policy_serial, 2);
    assert_eq!(site.journalled("policy.loaded", 1).await[0]["context"]["caller"], json!(null));
    site.journalled("policy.refused", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_reloads_by_command_and_is_told_what_is_wrong() {
    let site = Site::new();
    let gateway = site.serve().await;
    site.edit_policy(|_| {});
    let said = done(super::client(&site, &gateway, &["admin", "reload-policy"]));
    assert!(said.starts_with("policy serial 2, digest ") && said.contains("\naudit record "), "{said}");
    fs::remove_file(site.path("policy/authorize.cedar")).unwrap();
    let said = failed(super::client(&site, &gateway, &["admin", "reload-policy"]), 1);
    assert!(said.starts_with("quotesign: BUNDLE_REFUSED: ") && said.contains("authorize.cedar"), "{said}");
    let said = done(super::client(&site, &gateway, &["admin", "status"]));
    assert!(said.contains("policy serial 2,") && said.contains("the newest reload was refused: "), "{said}");
}
