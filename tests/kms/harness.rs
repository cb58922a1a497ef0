//! A test's surroundings: credentials that an emulator takes, a proxy before it, keys made past the gateway. The SDK
//! reads credentials from the environment of its process, so each test runs once more in a process of its own.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use aws_sdk_kms::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    types::{KeySpec, KeyUsageType, OriginType},
};
use quotesign::{
    jwk::PublicKey,
    signer::{
        Attributes, Device as _, Pinned, Signer,
        kms::{Kms, KmsConfig},
    },
};
use tempfile::TempDir;

use crate::{emulator::Emulator, proxy::Proxy};

pub const REGION: &str = "eu-west-1";
/// Set in the process of a test's own: where its emulator is.
const EMULATOR: &str = "QUOTESIGN_TEST_KMS";
/// The same: a directory of its own.
const HOME: &str = "QUOTESIGN_TEST_KMS_HOME";

/// Tests that have an emulator behind a proxy, credentials and a runtime.
macro_rules! with_kms {
    ($($(#[$doc:meta])* async fn $name:ident($site:ident) $body:block)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            $crate::harness::run(concat!(module_path!(), "::", stringify!($name)), async |$site| $body);
        }
    )*};
}
pub(crate) use with_kms;

/// What a test has.
pub struct Site {
    pub emulator: SocketAddr,
    pub proxy: Proxy,
    /// Asks the emulator past proxy and gateway.
    pub aws: Client,
}

/// Runs the test in a process of its own, or is that process.
pub fn run(test: &str, body: impl AsyncFnOnce(Site)) {
    run_as(test, |_, _| credentials().to_vec(), body);
}

/// The same with an environment that is made of the emulator's address and a directory of the test's own.
pub fn run_as(
    test: &str,
    environment: impl FnOnce(SocketAddr, &Path) -> Vec<(&'static str, String)>,
    body: impl AsyncFnOnce(Site),
) {
    let Ok(emulator) = env::var(EMULATOR) else {
        let home = TempDir::with_prefix("quotesign-kms-").unwrap();
        let emulator = Emulator::shared();
        return passed(own_process(test, emulator, home.path(), &environment(emulator, home.path())));
    };
    tracing_subscriber::fmt().with_env_filter("quotesign=debug").with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { body(Site::new(emulator.parse().unwrap()).await).await });
}

/// What the emulators take, as they take anything.
fn credentials() -> [(&'static str, String); 2] {
    [("AWS_ACCESS_KEY_ID", "AKIDTEST".to_owned()), ("AWS_SECRET_ACCESS_KEY", "verysecret".to_owned())]
}

/// This test once more, in a process whose environment has nothing that the SDK heeds but this.
fn own_process(test: &str, emulator: SocketAddr, home: &Path, environment: &[(&'static str, String)]) -> Output {
    let name = test.split_once("::").unwrap().1;
    let mut command = Command::new(env::current_exe().unwrap());
    let is_heeded = |name: &str| name.starts_with("AWS_") || name.to_lowercase().ends_with("_proxy");
    for (variable, _) in env::vars_os().filter(|(name, _)| is_heeded(&name.to_string_lossy())) {
        command.env_remove(variable);
    }
    command.args(["--exact", name, "--nocapture"]).env(EMULATOR, emulator.to_string()).env(HOME, home);
    command.envs([("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")]);
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command.envs(environment.iter().map(|(name, value)| (name, value))).output().unwrap()
}

/// The process ran this test well, and told no secret.
fn passed(run: Output) {
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && out.contains("1 passed"), "{}\n{out}\n{err}", run.status);
    assert!(!out.contains("verysecret") && !err.contains("verysecret"), "a secret was printed");
    print!("{}", out.lines().filter(|line| line.starts_with("  ")).fold(String::new(), |all, line| all + line + "\n"));
}

/// A file of the test's own directory.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env::var_os(HOME).unwrap()).join(name)
}

impl Site {
    async fn new(emulator: SocketAddr) -> Self {
        let (proxy, aws) = (Proxy::start(emulator).await, aws(emulator));
        Self { emulator, proxy, aws }
    }

    pub fn config(&self) -> KmsConfig {
        config(&self.proxy.endpoint())
    }

    pub fn kms(&self) -> Kms {
        Kms::start(self.config())
    }

    pub async fn rsa_key(&self, bits: u32) -> String {
        self.key(KeySpec::from(format!("RSA_{bits}").as_str()), KeyUsageType::SignVerify).await
    }

    /// Makes a key past the gateway; gives its ARN.
    pub async fn key(&self, spec: KeySpec, usage: KeyUsageType) -> String {
        create(&self.aws, spec, usage).await
    }

    pub async fn imported(&self) -> String {
        let call = self.aws.create_key().key_spec(KeySpec::Rsa2048).key_usage(KeyUsageType::SignVerify);
        let made = call.origin(OriginType::External).send().await.unwrap();
        made.key_metadata.unwrap().arn.unwrap()
    }

    pub async fn pinned(&self, arn: &str) -> Pinned {
        pinned(&self.aws, arn).await
    }

    /// The key bound to this KMS.
    pub async fn bound(&self, kms: &Kms, arn: &str) -> Arc<dyn Signer> {
        kms.key(self.pinned(arn).await).unwrap()
    }
}

pub fn aws(emulator: SocketAddr) -> Client {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(Credentials::new("AKIDTEST", "verysecret", None, None, "test"))
        .endpoint_url(format!("http://{emulator}"))
        .build();
    Client::from_conf(config)
}

pub async fn create(aws: &Client, spec: KeySpec, usage: KeyUsageType) -> String {
    let made = aws.create_key().key_spec(spec).key_usage(usage).send().await.unwrap();
    made.key_metadata.unwrap().arn.unwrap()
}

/// A key's public half as policy would pin it, read with openssl and not with what is tested.
pub async fn pinned(aws: &Client, arn: &str) -> Pinned {
    let half = aws.get_public_key().key_id(arn).send().await.unwrap();
    let der = half.public_key.unwrap().into_inner();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("public.der");
    std::fs::write(&file, der).unwrap();
    let args = ["rsa", "-pubin", "-inform", "DER", "-noout", "-modulus", "-in"];
    let mut read = Command::new("openssl").args(args).arg(&file).output().unwrap().stdout;
    read.retain(|byte| *byte != b'\n');
    let modulus = String::from_utf8(read).unwrap();
    let modulus = hex::decode(modulus.strip_prefix("Modulus=").unwrap()).unwrap();
    let public = PublicKey::new("quote-signing-kms".parse().unwrap(), &modulus, &[1, 0, 1]).unwrap();
    Pinned { public: Arc::new(public), locator: arn.to_owned(), attributes: Attributes::Require }
}

pub fn config(endpoint: &str) -> KmsConfig {
    KmsConfig {
        name: "kms-eu".to_owned(),
        region: REGION.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        concurrency: 8,
        requests_per_second: 1_000,
        queue_max: 256,
        connect_timeout: Duration::from_secs(1),
        attempt_timeout: Duration::from_secs(2),
        call_timeout: Duration::from_secs(5),
        check_interval: Duration::from_secs(1),
        probe_interval: Duration::from_secs(1),
        environment: None,
    }
}
