//! A PostgreSQL server of the tests' own: Debian's 15, a fresh cluster on a free port, gone with the process.

use std::{
    fs,
    io::{self, Read as _, Write as _, copy},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use quotesign::{
    domain::Environment,
    ledger::postgres::{Postgres, Server, Settings, WriterAt},
};

const BIN: &str = "/usr/lib/postgresql/15/bin";
/// Ends the server when this process is gone, however it went.
const SERVED: &str = r#""$@" </dev/null & child=$!; cat; kill -QUIT $child; wait $child"#;
/// Removes what it wrote, a moment after.
const KEPT: &str = r#"cat; sleep 1; rm -rf "$1""#;

pub struct Cluster {
    pub port: u16,
    home: PathBuf,
    /// Held open for as long as the server is to run, and for as long as its files are to stay.
    server: Option<Child>,
    files: Child,
}

fn keeper(script: &str) -> Command {
    let mut keeper = Command::new("sh");
    keeper
        .args(["-c", script, "sh"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/");
    keeper
}

fn let_go(mut keeper: Child) {
    drop(keeper.stdin.take());
    keeper.wait().unwrap();
}

/// PostgreSQL refuses to run as root.
fn as_postgres(program: &str) -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--", program]);
    command
}

fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Cluster {
    /// The one that tests share which do it no harm.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::new(&[]))
    }

    /// One whose server runs with these settings.
    pub fn new(settings: &[&str]) -> Self {
        let made = as_postgres("mktemp").args(["-d", "/tmp/quotesign-pg-XXXXXX"]).current_dir("/").output().unwrap();
        let home = PathBuf::from(done(made).trim());
        let mut initdb = as_postgres(&format!("{BIN}/initdb"));
        initdb.args(["--auth=trust", "--username=postgres", "--no-sync", "--data-checksums", "--pgdata"]);
        done(initdb.arg(home.join("data")).current_dir("/").output().unwrap());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let files = keeper(KEPT).arg(&home).spawn().unwrap();
        let mut cluster = Self { port, home, server: None, files };
        cluster.start(settings);
        cluster
    }

    /// A standby of this server, which follows it under the name `standby`.
    pub fn standby(&self) -> Self {
        let made = as_postgres("mktemp").args(["-d", "/tmp/quotesign-pg-XXXXXX"]).current_dir("/").output().unwrap();
        let home = PathBuf::from(done(made).trim());
        let mut copy = as_postgres(&format!("{BIN}/pg_basebackup"));
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--pgdata"]).arg(home.join("data"));
        let source = format!("host=127.0.0.1 port={} user=postgres application_name=standby", self.port);
        done(copy.args(["--dbname", &source]).current_dir("/").output().unwrap());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let files = keeper(KEPT).arg(&home).spawn().unwrap();
        let mut standby = Self { port, home, server: None, files };
        standby.start(&[]);
        standby
    }

    /// Writes a file beside the server's data, for nobody else to read, and says where.
    pub fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.join(name);
        let mut write = as_postgres("sh");
        write.args(["-c", "umask 077; cat > \"$1\"", "sh"]).arg(&path).current_dir("/").stdin(Stdio::piped());
        let mut write = write.spawn().unwrap();
        write.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(write.wait().unwrap().success());
        path
    }

    /// Starts the server, which must not run.
    pub fn start(&mut self, settings: &[&str]) {
        let mut keeper = keeper(SERVED);
        let postgres = as_postgres(&format!("{BIN}/postgres"));
        keeper.arg(postgres.get_program()).args(postgres.get_args()).arg("-D").arg(self.home.join("data"));
        let port = format!("port={}", self.port);
        let sockets = format!("unix_socket_directories={}", self.home.display());
        let own = ["listen_addresses=127.0.0.1", &port, &sockets, "max_connections=60", "log_min_messages=fatal"];
        for setting in own.iter().chain(settings) {
            keeper.args(["-c", setting]);
        }
        if let Some(before) = self.server.replace(keeper.spawn().unwrap()) {
            let_go(before);
        }
        self.until_it_answers();
    }

    pub fn until_it_answers(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        while !self.answers() {
            assert!(Instant::now() < until, "the server does not come up");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the server as a crash does, and returns when it is gone.
    pub fn crash(&self) {
        let pid = fs::read_to_string(self.home.join("data/postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().parse().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::QUIT)
            .unwrap();
        while self.answers() || self.home.join("data/postmaster.pid").exists() {
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn answers(&self) -> bool {
        let mut ready = Command::new(format!("{BIN}/pg_isready"));
        ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]).status().unwrap().success()
    }

    /// What `psql` prints.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        psql(self.port, database, sql)
    }

    /// An empty database, with the ledger's tables.
    pub fn database(&self) -> Database {
        let database = self.empty();
        Postgres::migrate(&database.server(), Environment::Sandbox).unwrap();
        database
    }

    /// An empty database.
    pub fn empty(&self) -> Database {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("ledger_{}", MADE.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        Database { port: self.port, name }
    }
}

/// What a statement answers. One that a server which recovers would not take, or gave up, is given again.
fn psql(port: u16, database: &str, sql: &str) -> String {
    let mut psql = Command::new(format!("{BIN}/psql"));
    psql.args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", "127.0.0.1"]);
    psql.args(["-p", &port.to_string(), "-d", database, "-c", sql]);
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let output = psql.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        let recovers = ["FATAL:  the database system is", "crash of another server process"];
        if Instant::now() < until && recovers.iter().any(|recovers| told.contains(recovers)) {
            thread::sleep(Duration::from_millis(50));
            continue;
        }
        return done(output).trim().to_owned();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            let_go(server);
        }
        drop(self.files.stdin.take());
    }
}

/// An address that leads to whichever server it is told; connections that there are stay where they are.
pub struct Address {
    pub port: u16,
    leads_to: Arc<AtomicU16>,
}

impl Address {
    pub fn of(port: u16) -> Self {
        let (listener, leads_to) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(AtomicU16::new(port)));
        let address = Self { port: listener.local_addr().unwrap().port(), leads_to: leads_to.clone() };
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(("127.0.0.1", leads_to.load(Ordering::SeqCst))) else { continue };
                let carry = |mut from: TcpStream, mut to: TcpStream| {
                    thread::spawn(move || {
                        let _ = copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                };
                carry(client.try_clone().unwrap(), server.try_clone().unwrap());
                carry(server, client);
            }
        });
        address
    }
}

impl Address {
    /// New connections reach this server from now on.
    pub fn leads_to(&self, server: &Cluster) {
        self.leads_to.store(server.port, Ordering::SeqCst);
    }
}

/// What stands between a client and its server: it counts how often the server was ready for more, and cuts off what is sent after so
/// many times.
pub struct Cutter {
    pub port: u16,
    ready: Arc<AtomicU32>,
    left: Arc<AtomicU32>,
}

impl Cutter {
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (ready, left) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(u32::MAX)));
        let cutter = Self { port: listener.local_addr().unwrap().port(), ready: ready.clone(), left: left.clone() };
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server)).unwrap());
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let (ready, left) = (ready.clone(), left.clone());
                thread::spawn(move || {
                    let _ = Self::carry(&server, &client, &ready, &left);
                    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
                });
            }
        });
        cutter
    }

    /// Message by message: a letter, and a length that counts itself.
    fn carry(mut server: &TcpStream, mut client: &TcpStream, ready: &AtomicU32, left: &AtomicU32) -> io::Result<()> {
        loop {
            let mut message = vec![0; 5];
            server.read_exact(&mut message)?;
            let length = u32::from_be_bytes(message[1..].try_into().unwrap()) as usize;
            message.resize(1 + length, 0);
            server.read_exact(&mut message[5..])?;
            if left.load(Ordering::SeqCst) == 0 {
                return Ok(());
            }
            client.write_all(&message)?;
            if message[0] == b'Z' {
                ready.fetch_add(1, Ordering::SeqCst);
                left.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// How often the server has been ready since this was asked before.
    pub fn ready(&self) -> u32 {
        self.ready.swap(0, Ordering::SeqCst)
    }

    /// Once the server was ready so many times, nothing more reaches the client.
    pub fn cut_after(&self, times: u32) {
        self.left.store(times, Ordering::SeqCst);
    }
}

/// One database of a cluster.
pub struct Database {
    pub port: u16,
    pub name: String,
}

impl Database {
    pub fn server(&self) -> Server {
        let address = format!("host=127.0.0.1 port={} user=postgres dbname={}", self.port, self.name);
        Server {
            address: address.parse().unwrap(),
            password_file: None,
            tls: None,
            high_availability: false,
            timeout: Duration::from_secs(5),
            writer: WriterAt::default(),
        }
    }

    /// As a gateway's config has it.
    pub fn address(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{}", self.port, self.name)
    }

    pub fn settings(&self, replica: &str) -> Settings {
        Settings { server: self.server(), replica: replica.to_owned(), clock_offset_max: Duration::from_secs(1) }
    }

    pub fn open(&self, replica: &str) -> Postgres {
        Postgres::open(self.settings(replica), Environment::Sandbox).unwrap()
    }

    pub fn sql(&self, sql: &str) -> String {
        psql(self.port, &self.name, &format!("SET search_path = quotesign; {sql}"))
    }

    /// Makes `standby`, which follows this server, the one that `address` leads to. This one lives on, and so do connections to it
    /// but the oldest, which is the one that writes.
    pub fn fails_over_to(&self, standby: &Cluster, address: &Address) -> Self {
        let new = Self { port: standby.port, name: self.name.clone() };
        address.leads_to.store(0, Ordering::SeqCst);
        let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                   WHERE application_name = 'quotesign' AND datname = current_database() ORDER BY backend_start LIMIT 1";
        assert_eq!(self.sql(end), "t");
        let written = self.sql("SELECT pg_current_wal_flush_lsn()");
        let until = Instant::now() + Duration::from_secs(30);
        while new.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")) != "t" {
            assert!(Instant::now() < until, "the standby does not follow");
            thread::sleep(Duration::from_millis(20));
        }
        new.sql("SELECT pg_promote()");
        address.leads_to.store(standby.port, Ordering::SeqCst);
        new
    }
}
