//! The emulators as child processes. Each ends when its handle is dropped or the test process ends, since it is run by
//! a shell that waits for the end of its own input.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

const START_MAX: Duration = Duration::from_mins(1);
/// Ends the command when nobody holds the other end of the input any more.
const WITH_ITS_PARENT: &str = r#""$@" </dev/null & child=$!; cat; kill -TERM $child; wait $child"#;

/// One emulator.
pub struct Emulator {
    kind: Kind,
    address: SocketAddr,
    home: TempDir,
    child: Option<Child>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ministack,
    Moto,
}

/// A program of the tests' Python environment.
pub fn python(program: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/kms-py/bin").join(program);
    assert!(path.exists(), "{} is missing; run `scripts/setup test`", path.display());
    path
}

impl Emulator {
    /// The one `ministack` that the tests of this process share.
    pub fn shared() -> SocketAddr {
        static SHARED: OnceLock<Emulator> = OnceLock::new();
        SHARED.get_or_init(Self::ministack).address
    }

    /// The one `moto` that the tests of this process share.
    pub fn shared_moto() -> SocketAddr {
        static SHARED: OnceLock<Emulator> = OnceLock::new();
        SHARED.get_or_init(Self::moto).address
    }

    /// A `ministack` that keeps its keys over a restart.
    pub fn ministack() -> Self {
        Self::start(Kind::Ministack)
    }

    pub fn moto() -> Self {
        Self::start(Kind::Moto)
    }

    fn start(kind: Kind) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let home = TempDir::with_prefix("quotesign-kms-").unwrap();
        let mut emulator = Self { kind, address, home, child: None };
        emulator.run();
        emulator
    }

    /// Runs it, and returns when it answers.
    pub fn run(&mut self) {
        let port = self.address.port().to_string();
        let mut command = Command::new("sh");
        command.args(["-c", WITH_ITS_PARENT, "sh"]);
        match self.kind {
            Kind::Ministack => command.arg(python("ministack")),
            Kind::Moto => command.arg(python("moto_server")).args(["-H", "127.0.0.1", "-p", &port]),
        };
        let log = File::create(self.home.path().join("log")).unwrap();
        command
            .envs([("BIND_HOST", "127.0.0.1"), ("GATEWAY_PORT", port.as_str())])
            .envs([("IOT_MTLS_ENABLED", "0"), ("SFTP_ENABLED", "0"), ("PERSIST_STATE", "1")])
            .env("STATE_DIR", self.home.path().join("state"))
            .env("TMPDIR", self.home.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let since = Instant::now();
        let child = self.child.insert(command.spawn().unwrap());
        while TcpStream::connect(self.address).is_err() {
            let ended = child.try_wait().unwrap();
            if ended.is_some() || since.elapsed() > START_MAX {
                let said = std::fs::read_to_string(self.home.path().join("log")).unwrap();
                panic!("the emulator does not start: {ended:?}\n{said}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it, and waits until it has.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop();
    }
}
