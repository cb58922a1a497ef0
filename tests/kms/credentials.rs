//! Who the gateway is to AWS: found at the start as the platform gives it, waited for while there is nobody, and told
//! clearly meanwhile.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use quotesign::signer::{Device as _, Health, SignError};
use tokio::time::sleep;

use crate::{
    contract::{self, comes_not_to_serve, comes_to_serve},
    emulator::Emulator,
    harness::{Site, path, run_as},
    proxy::{Fault, Rule},
};

type Variables = Vec<(&'static str, String)>;

macro_rules! name {
    ($test:ident) => {
        concat!(module_path!(), "::", stringify!($test))
    };
}

fn file(home: &Path, name: &str, text: &str) -> String {
    let path = home.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A key comes to serve, and whoever signed the requests has an access key that begins so.
async fn serves_as(site: Site, access_key: &str) {
    let kms = site.kms();
    let arn = site.rsa_key(2048).await;
    let signer = site.bound(&kms, &arn).await;
    comes_to_serve(&*signer).await;
    contract::a_signature_verifies_with_the_pinned_key(&*signer).await;
    assert_eq!(kms.health(), Health::Serving);
    let sent = site.proxy.seen("Sign");
    assert!(sent.iter().all(|sent| sent.access_key.starts_with(access_key)), "{}", sent[0].access_key);
}

fn web_identity(sts: SocketAddr, home: &Path) -> Variables {
    vec![
        ("AWS_ENDPOINT_URL_STS", format!("http://{sts}")),
        ("AWS_ROLE_ARN", "arn:aws:iam::000000000000:role/quotesign".to_owned()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file(home, "token", "e30.e30.e30")),
        ("AWS_ROLE_SESSION_NAME", "quotesign".to_owned()),
    ]
}

#[test]
fn without_credentials_the_remedy_is_named_and_nothing_is_sent() {
    run_as(
        name!(without_credentials_the_remedy_is_named_and_nothing_is_sent),
        |_, _| Vec::new(),
        async |site| {
            let kms = site.kms();
            let arn = site.rsa_key(2048).await;
            let signer = site.bound(&kms, &arn).await;
            let said = comes_not_to_serve(&*signer, "no AWS credentials: there are none; give the process").await;
            println!("  {said}");
            assert!(said.contains("AWS_WEB_IDENTITY_TOKEN_FILE") && said.contains("AWS_PROFILE"), "{said}");
            assert!(matches!(kms.health(), Health::NotServing(why) if why == said));
            assert!(matches!(contract::sign(&*signer).await, Err(SignError::Unavailable(why)) if why == said));
            sleep(Duration::from_secs(1)).await;
            assert!(site.proxy.seen("Sign").is_empty() && site.proxy.seen("DescribeKey").is_empty());
            kms.close().await;
        },
    );
}

#[test]
fn credentials_that_come_later_are_found() {
    run_as(
        name!(credentials_that_come_later_are_found),
        |_, home| {
            vec![
                ("AWS_SHARED_CREDENTIALS_FILE", home.join("credentials").display().to_string()),
                ("AWS_PROFILE", "quotes".to_owned()),
            ]
        },
        async |site| {
            let kms = site.kms();
            let arn = site.rsa_key(2048).await;
            let signer = site.bound(&kms, &arn).await;
            let said = comes_not_to_serve(&*signer, "no AWS credentials").await;
            println!("  {said}");
            let text = "[quotes]\naws_access_key_id = AKIDLATER\naws_secret_access_key = verysecret\n";
            fs::write(path("credentials"), text).unwrap();
            comes_to_serve(&*signer).await;
            assert_eq!(site.proxy.seen("Sign")[0].access_key, "AKIDLATER");
        },
    );
}

#[test]
fn credentials_that_are_refused_are_read_anew() {
    let profile = |key: &str| format!("[quotes]\naws_access_key_id = {key}\naws_secret_access_key = verysecret\n");
    run_as(
        name!(credentials_that_are_refused_are_read_anew),
        |_, home| {
            vec![
                ("AWS_SHARED_CREDENTIALS_FILE", file(home, "credentials", &profile("AKIDOLD"))),
                ("AWS_PROFILE", "quotes".to_owned()),
            ]
        },
        async |site| {
            let kms = site.kms();
            let arn = site.rsa_key(2048).await;
            let signer = site.bound(&kms, &arn).await;
            comes_to_serve(&*signer).await;
            site.proxy.rules([Rule::always("*", Fault::Error(400, "UnrecognizedClientException"))]);
            comes_not_to_serve(&*signer, "AWS refuses the credentials").await;
            fs::write(path("credentials"), profile("AKIDNEW")).unwrap();
            while site.proxy.seen("DescribeKey").last().unwrap().access_key != "AKIDNEW" {
                sleep(Duration::from_millis(50)).await;
            }
            site.proxy.rules([]);
            comes_to_serve(&*signer).await;
            assert_eq!(kms.health(), Health::Serving);
        },
    );
}

#[test]
fn a_profile_is_taken() {
    let profile = "[quotes]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = verysecret\n";
    run_as(
        name!(a_profile_is_taken),
        |_, home| {
            vec![
                ("AWS_SHARED_CREDENTIALS_FILE", file(home, "credentials", profile)),
                ("AWS_PROFILE", "quotes".to_owned()),
            ]
        },
        async |site| serves_as(site, "AKIDPROFILE").await,
    );
}

#[test]
fn a_web_identity_is_taken_from_ministack() {
    run_as(name!(a_web_identity_is_taken_from_ministack), web_identity, async |site| serves_as(site, "ASIA").await);
}

#[test]
fn a_web_identity_is_taken_from_moto() {
    run_as(
        name!(a_web_identity_is_taken_from_moto),
        |_, home| web_identity(Emulator::shared_moto(), home),
        async |site| serves_as(site, "ASIA").await,
    );
}

#[test]
fn a_web_identity_without_its_token_is_told() {
    run_as(
        name!(a_web_identity_without_its_token_is_told),
        |sts, home| {
            let mut variables = web_identity(sts, home);
            fs::remove_file(home.join("token")).unwrap();
            variables.rotate_left(1);
            variables
        },
        async |site| {
            let kms = site.kms();
            let arn = site.rsa_key(2048).await;
            let signer = site.bound(&kms, &arn).await;
            let said = comes_not_to_serve(&*signer, "no AWS credentials: ").await;
            println!("  {said}");
            assert!(said.contains("No such file or directory"), "{said}");
        },
    );
}

#[test]
fn a_role_of_the_instance_is_taken() {
    run_as(
        name!(a_role_of_the_instance_is_taken),
        |imds, _| {
            vec![
                ("AWS_EC2_METADATA_DISABLED", "false".to_owned()),
                ("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{imds}")),
            ]
        },
        async |site| serves_as(site, "ASIA").await,
    );
}

/// Where requests go and how often is the config's to say, whatever the environment names.
#[test]
fn the_environment_changes_neither_the_endpoint_nor_the_retries() {
    run_as(
        name!(the_environment_changes_neither_the_endpoint_nor_the_retries),
        |_, _| {
            vec![
                ("AWS_ENDPOINT_URL", "http://127.0.0.1:9".to_owned()),
                ("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9".to_owned()),
                ("AWS_REGION", "us-east-1".to_owned()),
                ("AWS_ACCESS_KEY_ID", "AKIDTEST".to_owned()),
                ("AWS_SECRET_ACCESS_KEY", "verysecret".to_owned()),
                ("AWS_RETRY_MODE", "adaptive".to_owned()),
                ("AWS_MAX_ATTEMPTS", "9".to_owned()),
            ]
        },
        async |site| {
            let kms = site.kms();
            let arn = site.rsa_key(2048).await;
            let signer = site.bound(&kms, &arn).await;
            comes_to_serve(&*signer).await;
            let before = site.proxy.seen("Sign").len();
            site.proxy.rules([Rule::always("Sign", Fault::Error(400, "ThrottlingException")).times(9)]);
            assert_eq!(contract::sign(&*signer).await.unwrap_err(), SignError::Full);
            assert_eq!(site.proxy.seen("Sign").len(), before + 3);
        },
    );
}
