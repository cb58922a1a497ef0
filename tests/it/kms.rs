//! A quote signed with a key in AWS KMS, by the real gateway, from the key's making to openssl's opinion. What KMS may do to
//! a gateway is tested in `tests/kms/`.

use std::{fs, process::Command};

use toml_edit::value;

use crate::{
    emulator::Emulator,
    harness::{PARTNER, Quote, Site, done, toml},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_is_signed_by_kms_and_verified_by_openssl() {
    let emulator = Emulator::shared();
    let site = Site::new()
        .with("AWS_ACCESS_KEY_ID", "AKIDTEST")
        .with("AWS_SECRET_ACCESS_KEY", "verysecret")
        .with("AWS_EC2_METADATA_DISABLED", "true")
        .with("AWS_CONFIG_FILE", "/dev/null")
        .with("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    site.edit_config(|config| {
        let kms = format!("{{ name = 'kms-eu', region = 'eu-west-1', endpoint = 'http://{emulator}' }}");
        config["aws_kms"] = toml(&format!("[{kms}]"));
    });
    let kid = "quote-signing-kms";
    let generate = ["keys", "generate", "--kid", kid, "--signer", "kms-eu", "--partner", PARTNER, "--bits", "2048"];
    let entry: toml_edit::DocumentMut = done(site.run(&generate)).parse().unwrap();
    let locator = entry["keys"][0]["locator"].as_str().unwrap().to_owned();
    assert!(locator.starts_with("arn:"), "{locator}");
    site.edit_policy(|policy| {
        let key = &mut policy["keys"][0];
        let old = key["kid"].as_str().unwrap().to_owned();
        fs::remove_file(site.path(&format!("policy/keys/{old}.jwk.json"))).unwrap();
        (key["kid"], key["signer"], key["locator"]) = (value(kid), value("kms-eu"), value(locator.as_str()));
    });

    let gateway = site.serve().await;
    let signed = gateway.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    assert_eq!(signed.kid, kid);
    let (jws, jwks) = (site.path("signed.jws"), site.path("jwks.json"));
    fs::write(&jws, &signed.jws).unwrap();
    fs::write(&jwks, gateway.client("pricing").jwks(&PARTNER.parse().unwrap()).await.unwrap()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/verify-jws-openssl.sh");
    assert_eq!(done(Command::new(script).args([jws, jwks]).output().unwrap()), "Verified OK\n");
    assert!(!gateway.log.lock().unwrap().iter().any(|line| line.contains("verysecret")));
}
