//! A module with a fresh token, as `scripts/modules/<name>` sets it up, and the device that the gateway makes of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use quotesign::{
    jwk::PublicKey,
    signer::{
        Attributes, Device as _, Pinned, Signer,
        pkcs11::{Pin, Provisioner, Token, TokenConfig},
        provision::{NewKey, Provision as _},
    },
};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A module with a token of this test's own; what was started for it ends with it.
pub struct Backend {
    name: &'static str,
    dir: TempDir,
    told: BTreeMap<String, String>,
}

impl Backend {
    pub fn start(name: &'static str) -> Self {
        // An address has room for a short path alone.
        let dir = TempDir::with_prefix("qs-").unwrap();
        let mut backend = Self { name, dir, told: BTreeMap::new() };
        backend.script("start");
        let told = fs::read_to_string(backend.home().join("module.env")).unwrap();
        let told = told.lines().map(|line| line.split_once('=').unwrap());
        backend.told = told.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        fs::write(backend.dir.path().join("pin"), format!("{}\n", backend.told["PIN"])).unwrap();
        backend
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    fn run(&self, act: &str) -> Output {
        let script = format!("{ROOT}/scripts/modules/{}", self.name);
        Command::new(script).arg(act).arg(self.home()).output().unwrap()
    }

    /// `start`, `break` or `mend`.
    pub fn script(&self, act: &str) {
        let done = self.run(act);
        assert!(done.status.success(), "{act} {}: {}", self.name, String::from_utf8_lossy(&done.stderr));
    }

    pub fn config(&self) -> TokenConfig {
        let environment =
            self.told.iter().filter_map(|(name, value)| Some((name.strip_prefix("ENV_")?.to_owned(), value.clone())));
        // By this a host process is told from those of other tests.
        let own = ("CONTRACT_SUITE_HOME".to_owned(), self.home().display().to_string());
        TokenConfig {
            name: self.name.to_owned(),
            host: PathBuf::from(env!("CARGO_BIN_EXE_quotesign")),
            module: PathBuf::from(&self.told["MODULE"]),
            token_label: self.told["TOKEN"].clone(),
            token_serial: None,
            pin: Pin::File(self.dir.path().join("pin")),
            environment: environment.chain([own]).collect(),
            secret_variables: Vec::new(),
            sessions: self.told["SESSIONS"].parse().unwrap(),
            queue_max: 256,
            call_timeout: Duration::from_secs(5),
            probe_interval: Duration::from_millis(200),
        }
    }

    /// The same with the shim of tests/p11shim before the module, which does as [`Backend::rules`] says.
    pub fn disturbed(&self) -> TokenConfig {
        let mut config = self.config();
        let real = std::mem::replace(&mut config.module, shim());
        for (name, value) in [("P11SHIM_MODULE", &real), ("P11SHIM_CONTROL", &self.file("faults"))] {
            config.environment.insert(name.to_owned(), value.display().to_string());
        }
        config
    }

    /// Has these rules hold from now on, and no others. Renamed into place, so that none is read half.
    pub fn rules(&self, rules: &str) {
        fs::write(self.file("faults.new"), rules).unwrap();
        fs::rename(self.file("faults.new"), self.file("faults")).unwrap();
    }

    /// A file beside the token's, for a test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn provisioner(&self) -> Provisioner {
        Provisioner::new(self.config())
    }

    pub fn locator(&self, label: &str) -> String {
        format!("pkcs11:token={};object={label};type=private", self.told["TOKEN"])
    }

    /// Imports a key pair that openssl has made, into SoftHSM: a device of its own would not take it.
    pub fn import(&self, pem: &Path, label: &str) {
        let config = self.config();
        let pin = fs::read_to_string(self.file("pin")).unwrap();
        let mut import = Command::new("softhsm2-util");
        import.arg("--import").arg(pem).args(["--token", &config.token_label, "--label", label, "--id", "01"]);
        // Several objects may have one id.
        import.args(["--force", "--pin", pin.trim()]).env("SOFTHSM2_CONF", &config.environment["SOFTHSM2_CONF"]);
        let done = import.output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    /// Has SoftHSM generate a key pair whose private half it gives out.
    pub fn generate_extractable(&self, label: &str) {
        let config = self.config();
        let pin = fs::read_to_string(self.file("pin")).unwrap();
        let mut generate = Command::new("pkcs11-tool");
        generate.arg("--module").arg(&config.module).args(["--token-label", &config.token_label, "--login"]);
        generate.args(["--pin", pin.trim(), "--keypairgen", "--key-type", "rsa:2048", "--extractable"]);
        generate.args(["--label", label, "--id", "02"]).env("SOFTHSM2_CONF", &config.environment["SOFTHSM2_CONF"]);
        let done = generate.output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    /// Gives the token in SoftHSM another PIN, and then writes it where the gateway reads it.
    pub fn change_pin(&self, new: &str) {
        let config = self.config();
        let pin = fs::read_to_string(self.file("pin")).unwrap();
        let mut change = Command::new("pkcs11-tool");
        change.arg("--module").arg(&config.module).args(["--token-label", &config.token_label, "--login"]);
        change.args(["--pin", pin.trim(), "--change-pin", "--new-pin", new]);
        let done = change.env("SOFTHSM2_CONF", &config.environment["SOFTHSM2_CONF"]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        fs::write(self.file("pin"), format!("{new}\n")).unwrap();
    }

    /// A key pair of openssl's, in a file of this name.
    pub fn make_pem(&self, name: &str) -> PathBuf {
        let pem = self.file(name);
        let mut openssl = Command::new("openssl");
        openssl.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"]).arg(&pem);
        assert!(openssl.output().unwrap().status.success());
        pem
    }

    /// The public half of a key that was imported.
    pub async fn public_of(&self, label: &str) -> Arc<PublicKey> {
        let (kid, locator) = (label.parse().unwrap(), self.locator(label));
        Arc::new(self.provisioner().try_out(&kid, &locator, Attributes::Warn).await.unwrap().public)
    }

    pub async fn generate(&self, kid: &str, bits: u32) -> Arc<PublicKey> {
        let made = self.provisioner().generate(&new_key(kid, bits)).await.unwrap();
        assert_eq!(made.locator, self.locator(kid));
        Arc::new(made.public)
    }

    pub fn pinned(&self, public: &Arc<PublicKey>, label: &str) -> Pinned {
        Pinned { public: Arc::clone(public), locator: self.locator(label), attributes: Attributes::Require }
    }

    /// The key of this label, pinned to this public half.
    pub fn bound(&self, token: &Token, public: &Arc<PublicKey>, label: &str) -> Arc<dyn Signer> {
        token.key(self.pinned(public, label)).unwrap()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let stopped = self.run("stop");
        if !stopped.status.success() {
            eprintln!("{}: {}", self.name, String::from_utf8_lossy(&stopped.stderr));
        }
    }
}

/// The shim, built by the cargo that runs the tests.
fn shim() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--package", "quotesign-p11shim"]);
    assert!(build.current_dir(ROOT).status().unwrap().success(), "the shim does not build");
    Path::new(env!("CARGO_BIN_EXE_quotesign")).with_file_name("libp11shim.so")
}

pub fn new_key(kid: &str, bits: u32) -> NewKey {
    NewKey { kid: kid.parse().unwrap(), partner: "acme-remit".to_owned(), bits }
}

/// The processes that host a module for this test's own process, for the token that lies here.
pub fn hosts_of(home: &Path) -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let children = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    let children = children.collect::<String>();
    let is_ours = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        holds(&command, "pkcs11-host") && holds(&environment, home.to_str().unwrap())
    };
    children.split_whitespace().map(|pid| pid.parse().unwrap()).filter(is_ours).collect()
}
