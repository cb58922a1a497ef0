//! How a gateway reaches its database: with TLS, a certificate and a password; and one that has a standby.

use std::{fs, path::PathBuf, sync::Arc, thread, time::Duration};

use quotesign::{
    domain::Environment,
    ledger::{
        Done, Engine, EngineError, Op,
        postgres::{Postgres, Server},
    },
    outgoing::Outgoing,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;

use crate::{
    ops::{commit, one, pending, reserve, seed},
    server::{Cluster, Database},
};

/// A CA, and what it has signed.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    home: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "quotesign test CA");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let home = TempDir::new().unwrap();
        fs::write(home.path().join("ca.pem"), &pem).unwrap();
        Self { issuer: Issuer::new(params, key), pem, home }
    }

    /// A certificate for 127.0.0.1 under this name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

fn opened(server: Server) -> Result<Postgres, EngineError> {
    let settings = quotesign::ledger::postgres::Settings {
        server,
        replica: "gw-1".to_owned(),
        clock_offset_max: Duration::from_secs(1),
    };
    Postgres::open(settings, Environment::Sandbox)
}

/// The server wants TLS, a certificate of its CA and a password, and has a certificate itself.
#[test]
fn a_server_is_reached_with_tls_a_certificate_and_a_password() {
    let ours = Authority::new();
    let mut cluster = Cluster::new(&[]);
    let database = cluster.database();
    cluster.sql("postgres", "CREATE ROLE gateway LOGIN PASSWORD 'not-a-real-one'");
    cluster.sql("postgres", &format!("ALTER DATABASE {} OWNER TO gateway", database.name));
    for object in ["SCHEMA quotesign", "ALL TABLES IN SCHEMA quotesign", "ALL FUNCTIONS IN SCHEMA quotesign"] {
        cluster.sql(&database.name, &format!("GRANT ALL ON {object} TO gateway"));
    }
    let shows = |cluster: &Cluster, (certificate, key): &(String, String)| {
        (cluster.put("server.pem", certificate), cluster.put("server.key", key))
    };
    let first = ours.issue("127.0.0.1");
    let (certificate, key) = shows(&cluster, &first);
    let ca = cluster.put("ca.pem", &ours.pem);
    let hba = cluster.put(
        "hba",
        "hostssl all gateway 127.0.0.1/32 scram-sha-256 clientcert=verify-full\nhost all postgres 127.0.0.1/32 trust\n",
    );
    cluster.crash();
    let setting = |name: &str, path: &PathBuf| format!("{name}={}", path.display());
    let settings = [
        "ssl=on".to_owned(),
        setting("ssl_cert_file", &certificate),
        setting("ssl_key_file", &key),
        setting("ssl_ca_file", &ca),
        setting("hba_file", &hba),
    ];
    cluster.start(&settings.each_ref().map(String::as_str));

    let writes = |(certificate, key): &(String, String)| {
        (ours.write("gateway.pem", certificate), ours.write("gateway.key", key))
    };
    let first_own = ours.issue("gateway");
    let (certificate, key) = writes(&first_own);
    let password = ours.write("password", "not-a-real-one\n");
    let other = Authority::new();
    let server = |ca: &Authority, with_certificate: bool, password: Option<&PathBuf>| {
        let address = format!("host=127.0.0.1 port={} user=gateway dbname={}", database.port, database.name);
        let identity = with_certificate.then_some((certificate.as_path(), key.as_path()));
        let tls = Outgoing::read(&ca.home.path().join("ca.pem"), identity, b"postgresql").unwrap();
        Server {
            address: address.parse().unwrap(),
            password_file: password.cloned(),
            tls: Some(Arc::new(tls)),
            ..database.server()
        }
    };
    let mut engine = opened(server(&ours, true, Some(&password))).unwrap();
    assert!(matches!(one(&mut engine, Op::Seed(seed("GB-IN", 0))), Ok(Done::Seeded(None, _))));
    let is_encrypted = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'gateway'";
    assert_eq!(cluster.sql("postgres", is_encrypted), "t");

    // Another CA on both sides, a certificate of it and another password, in the same files: the next connection has them, and
    // the one before is ended.
    shows(&cluster, &other.issue("127.0.0.1"));
    cluster.put("ca.pem", &other.pem);
    ours.write("ca.pem", &other.pem);
    writes(&other.issue("gateway"));
    cluster.sql("postgres", "ALTER ROLE gateway PASSWORD 'not-a-real-one-either'");
    ours.write("password", "not-a-real-one-either\n");
    cluster.sql("postgres", "SELECT pg_reload_conf()");
    thread::sleep(Duration::from_secs(1));
    cluster.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'gateway'");
    assert!(matches!(engine.apply(&[Op::Seed(seed("GB-IN", 1))]), Err(EngineError::Unknown(_) | EngineError::Away(_))));
    engine.reopen().unwrap();
    assert!(matches!(one(&mut engine, Op::Seed(seed("GB-IN", 2))), Ok(Done::Seeded(..))));
    // Files that are being written leave what was there: a CA of which a part is missing, a certificate before its key.
    ours.write("ca.pem", "-----BEGIN");
    engine.reopen().unwrap();
    ours.write("ca.pem", &other.pem);
    ours.write("gateway.pem", &first_own.0);
    engine.reopen().unwrap();
    drop(engine);
    cluster.put("ca.pem", &ours.pem);
    ours.write("ca.pem", &ours.pem);
    writes(&first_own);
    ours.write("password", "not-a-real-one\n");
    cluster.sql("postgres", "ALTER ROLE gateway PASSWORD 'not-a-real-one'");
    shows(&cluster, &first);
    cluster.sql("postgres", "SELECT pg_reload_conf()");
    thread::sleep(Duration::from_secs(1));

    let wrong = ours.write("wrong", "something-else\n");
    let plain = Server { tls: None, ..server(&ours, true, Some(&password)) };
    for (what, server) in [
        ("a server of another CA", server(&other, true, Some(&password))),
        ("no certificate", server(&ours, false, Some(&password))),
        ("no password", server(&ours, true, None)),
        ("a wrong password", server(&ours, true, Some(&wrong))),
        ("a password file that is not there", server(&ours, true, Some(&ours.home.path().join("nowhere")))),
        ("no TLS", plain),
    ] {
        let told = opened(server).err().unwrap_or_else(|| panic!("{what}: it opens")).to_string();
        println!("{what}: {told}");
        assert!(!told.contains("not-a-real-one") && !told.contains("something-else"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

/// A standby that a commit waits for: refused where there is none, and where the server is one itself; and a commit whose
/// standby is away is not told until it is back.
#[test]
fn with_high_availability_a_commit_waits_for_the_standby() {
    let cluster = Cluster::new(&[]);
    let database = cluster.database();
    let server = |port: u16, timeout_ms: u64| Server {
        address: format!("host=127.0.0.1 port={port} user=postgres dbname={}", database.name).parse().unwrap(),
        high_availability: true,
        timeout: Duration::from_millis(timeout_ms),
        ..database.server()
    };
    let none = opened(server(cluster.port, 2_000)).err().unwrap().to_string();
    assert!(none.contains("names no synchronous standby") && none.contains("synchronous_standby_names"), "{none}");
    let mut standby = cluster.standby();
    cluster.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'standby'");
    cluster.sql("postgres", "SELECT pg_reload_conf()");
    let follows = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    while cluster.sql("postgres", follows) != "1" {
        thread::sleep(Duration::from_millis(50));
    }
    let itself = opened(server(standby.port, 2_000)).err().unwrap().to_string();
    assert!(itself.contains("recovery"), "{itself}");

    let mut engine = opened(server(cluster.port, 2_000)).unwrap();
    one(&mut engine, Op::Seed(seed("GB-IN", 0))).unwrap();
    let held = pending(one(&mut engine, Op::Reserve(reserve("q1", 1))));
    let there = |database: &Database| database.sql("SELECT count(*) FROM quote WHERE state = 2");
    let seen = Database { port: standby.port, name: database.name.clone() };
    one(&mut engine, Op::Commit(commit(&held, "e30.e30.x"))).unwrap();
    while there(&seen) != "1" {
        thread::sleep(Duration::from_millis(20));
    }

    standby.crash();
    let op = || [Op::Reserve(reserve("q2", 2))];
    let lost = engine.apply(&op());
    assert!(matches!(lost, Err(EngineError::Unknown(_))), "it is not told: {lost:?}");
    assert!(engine.reopen().is_err(), "taking the lane over waits for the standby too");
    standby.start(&[]);
    let mut replies = None;
    for _ in 0..20 {
        match engine.reopen() {
            Ok(found) => {
                replies = Some(found);
                break;
            }
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
    // Whether or not it had been applied, it is known now, and asking again gives the same reservation.
    let found = replies.expect("it opens again");
    let again = pending(one(&mut engine, op()[0].clone()));
    if let Some(found) = found {
        assert_eq!(pending(found[0].clone()), again);
    }
    assert_eq!(again.sequence().get(), 2);
}
