//! `quotesign doctor`: a healthy site is well in every respect, and whatever is broken is found by the check that is for it and
//! by no other, with the remedy.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use quotesign::{
    clock::{Clock as _, SystemClock},
    domain::{Environment, sha256},
    ledger::{anchor::Anchor, chain::Position},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rusqlite::Connection;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::{
    first_start::{Hands, Production, ROOT, SIGNING},
    harness::{DAY, Gateway, PARTNER, Quote, Site, client_certificate, done, failed, quotesign, seconds, toml},
    lifecycle::Cdn,
    room::Mounted,
    server::Cluster,
    stops::kid,
};

mod broken;

const STANDBY: &str = "quote-signing-standby";
/// What depends on the machine that the tests run on.
const OF_THE_MACHINE: [&str; 3] = ["clock.synchronised", "host.core_dumps", "host.open_files"];

/// What the checks came to.
struct Report {
    output: Output,
    checks: Vec<Value>,
}

impl Report {
    fn of(output: Output) -> Self {
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|fault| panic!("{fault}: {output:?}"));
        Self { checks: told["checks"].as_array().unwrap().clone(), output }
    }

    /// Each check that is not as it should be, with the worst it came to.
    fn turned(&self) -> BTreeMap<String, String> {
        let mut turned = BTreeMap::new();
        for found in &self.checks {
            let (check, verdict) = (text(found, "check"), text(found, "verdict"));
            if ["fault", "warning"].contains(&&*verdict) && turned.get(&check).is_none_or(|worst| worst != "fault") {
                turned.insert(check, verdict);
            }
        }
        turned.retain(|check, _| !OF_THE_MACHINE.contains(&&**check));
        turned
    }

    /// The checks that looked at something.
    fn made(&self) -> BTreeSet<String> {
        let made = self.checks.iter().filter(|found| found["verdict"] != "skipped");
        made.map(|found| text(found, "check")).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        self.checks.iter().map(|found| text(found, "check")).collect()
    }

    /// Evidence and remedy of the worst finding of a check.
    fn said(&self, check: &str) -> String {
        let of_check = self.checks.iter().filter(|found| found["check"] == check);
        let worst = of_check.max_by_key(|found| match text(found, "verdict").as_str() {
            "fault" => 3,
            "warning" => 2,
            "ok" => 1,
            _ => 0,
        });
        worst.map(|found| format!("{} -> {}", text(found, "evidence"), text(found, "remedy"))).unwrap()
    }
}

fn text(found: &Value, member: &str) -> String {
    found[member].as_str().unwrap().to_owned()
}

/// Runs it by the site's own config, in the site's environment.
fn doctor(site: &Site, args: &[&str]) -> Report {
    let mut command = quotesign();
    command.envs(&site.env).args(["doctor", "--format", "json", "--config"]).arg(site.config()).args(args);
    let output = command.output().unwrap();
    Report::of(output)
}

/// Nobody else reads what is secret.
fn keep_secrets(site: &Site) {
    let keys = fs::read_dir(site.path("tls")).unwrap().map(|entry| entry.unwrap().path());
    for key in keys.chain([site.path("pin")]) {
        let is_public = key.extension().is_some_and(|ending| ending != "key");
        chmod(&key, if is_public { 0o644 } else { 0o600 });
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Answers every request with this status, as a collector would that takes all or nothing.
fn collector(status: Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), mut request) = (stream, [0; 4096]) else { continue };
            let _read = stream.read(&mut request);
            let status = status.load(Ordering::Relaxed);
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            let _written = stream.write_all(answer.as_bytes());
        }
    });
    port
}

/// A site with everything that there is a check for.
struct Healthy {
    site: Site,
    cdn: Cdn,
    /// What the collector answers.
    collector: Arc<AtomicU16>,
}

impl Healthy {
    async fn new() -> Self {
        let site = Site::new();
        let cdn = Cdn::new(&site).await;
        let collector_answers = Arc::new(AtomicU16::new(200));
        let collector = collector(collector_answers.clone());
        site.edit_config(|config| {
            // Where nobody listens, until a gateway does.
            for (front, port) in [("grpc", 0), ("admin", 0), ("jwks", 0), ("operations", 1)] {
                config[front]["listen"] = toml(&format!("'127.0.0.1:{port}'"));
            }
            config["jwks"]["url_ca"] = toml("'tls/ca.pem'");
            config["ledger"]["anchor"] = toml("'anchor'");
            config["limits"]["connections_max"] = toml("16");
            config["otlp"] = toml(&format!(
                "{{ endpoint = 'http://127.0.0.1:{collector}', protocol = 'http/protobuf', metrics_interval_s = 0 }}"
            ));
        });
        let standby = ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER, "--kid", STANDBY];
        done(site.run(&standby));
        site.edit_policy(|policy| {
            let now = SystemClock.now();
            policy["partners"][0]["jwks_url"] = toml(&format!("'{}'", cdn.url));
            let mut standby = policy["keys"][0].clone();
            standby["kid"] = toml(&format!("'{STANDBY}'"));
            standby["locator"] = toml(&format!("'pkcs11:token=quotesign-dev;object={STANDBY};type=private'"));
            standby["standby"] = toml("true");
            policy["keys"].as_array_of_tables_mut().unwrap().push(standby.into_table().unwrap());
            for key in policy["keys"].as_array_of_tables_mut().unwrap().iter_mut() {
                for (time, at) in [("publish_at", now.minus(DAY * 2)), ("sign_from", now.minus(DAY * 2))] {
                    key[time] = toml(&seconds(at));
                }
                key["confirmed"] = toml(&format!("{{ at = {}, ref = 'OPS-4711' }}", seconds(now.minus(DAY * 2))));
            }
        });
        fs::create_dir(site.path("policy/cases")).unwrap();
        fs::write(site.path("policy/cases/settings.toml"), CASES).unwrap();
        let healthy = Self { site, cdn, collector: collector_answers };
        healthy.publish();
        healthy.write_client(["127.0.0.1:1"; 3].map(|address| address.parse().unwrap()));
        healthy.tidy();
        healthy
    }

    fn tidy(&self) {
        keep_secrets(&self.site);
    }

    /// Has the registered URL show what the bundle's directory holds.
    fn publish(&self) {
        let keys = fs::read_dir(self.site.path("policy/keys")).unwrap();
        let keys: Vec<Value> =
            keys.map(|entry| serde_json::from_slice(&fs::read(entry.unwrap().path()).unwrap()).unwrap()).collect();
        fs::write(&self.cdn.file, json!({ "keys": keys }).to_string()).unwrap();
    }

    fn write_client(&self, [grpc, admin, jwks]: [SocketAddr; 3]) {
        let identity = "certificate = 'tls/operator.pem'\nprivate_key = 'tls/operator.key'";
        let text = format!(
            "environment = 'development'\npartner = '{PARTNER}'\nca = 'tls/ca.pem'\njwks = 'https://{jwks}'\n\
             [grpc]\nurl = 'https://{grpc}'\n{identity}\n\
             [admin]\nurl = 'https://{admin}'\n{identity}\n"
        );
        fs::write(self.site.path("client.toml"), text).unwrap();
    }

    /// Starts a gateway whose operations listener the config names, on a port that nobody else has taken meanwhile.
    fn serve(&self) -> Gateway {
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            self.site.edit_config(|config| config["operations"]["listen"] = toml(&format!("'127.0.0.1:{port}'")));
            let mut command = quotesign();
            command.env("QUOTESIGN__LOG__FORMAT", "json").arg("serve").arg("--config").arg(self.site.config());
            match Gateway::try_spawn(command, &self.site) {
                Ok(gateway) => {
                    self.write_client(["grpc", "admin", "jwks"].map(|front| gateway.address(front)));
                    return gateway;
                }
                Err(log) => assert!(log.join("\n").contains("cannot be bound"), "{log:?}"),
            }
        }
        panic!("no port is free for long enough");
    }

    fn doctor(&self) -> Report {
        doctor(&self.site, &["--client", self.site.path("client.toml").to_str().unwrap()])
    }
}

const CASES: &str = r#"
[[case]]
name = "the pricing service verifies"
caller = "spiffe://dev.quotesign.example/pricing"
act = "Halt"
expect = { decision = "deny", rules = [] }
"#;

/// Every file below `dir` with its bytes, but those of the token, where the device keeps its own account of log-ins, and of what
/// SQLite shares between processes.
fn all_files(dir: &Path) -> BTreeMap<PathBuf, [u8; 32]> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true if entry.file_name().is_some_and(|name| name == "tokens") => {}
                true => waiting.push(entry),
                false => {
                    let is_shared = entry.to_str().unwrap().ends_with("-shm");
                    let digest = if is_shared { [0; 32] } else { sha256(&fs::read(&entry).unwrap()) };
                    found.insert(entry, digest);
                }
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_site_is_well_and_looking_changes_nothing() {
    let healthy = Healthy::new().await;
    let site = &healthy.site;
    let same = |what: &str| {
        let before = all_files(&site.path(""));
        let report = healthy.doctor();
        assert_eq!(report.turned(), BTreeMap::new(), "{what}: {:#?}", report.checks);
        assert!(report.output.status.success());
        assert_eq!(all_files(&site.path("")), before, "{what}");
        report
    };
    let none_runs = same("before the first start");
    assert!(none_runs.said("gateway.live").contains("no gateway runs here"));
    let gateway = healthy.serve();
    gateway.signing().await;
    let quotes = gateway.quotes("pricing").await;
    quotes.sign(&Quote::number(1)).await.unwrap();
    site.journalled("key.turned", 1).await;
    let report = healthy.doctor();
    assert_eq!(report.turned(), BTreeMap::new(), "{:#?}", report.checks);
    // Nothing is left out but what there is no such thing of.
    let left_out: BTreeSet<String> = report.names().difference(&report.made()).cloned().collect();
    assert!(left_out.is_subset(&["clock.server", "clock.synchronised"].map(str::to_owned).into()), "{left_out:?}");
    assert!(report.said("gateway.version").starts_with(env!("CARGO_PKG_VERSION")));
    assert!(report.said("gateway.health").contains("SERVING, over mutual TLS"));
    assert!(report.said("jwks.published").contains("2 keys, as policy has it"));
    // Another bundle on disk than in force, and a halt, are told; without --client, what only a caller sees is left out.
    site.edit_policy(|_| {});
    let stale = healthy.doctor();
    assert_eq!(stale.turned(), [("gateway.policy".to_owned(), "warning".to_owned())].into());
    assert!(stale.said("gateway.policy").ends_with("`quotesign admin reload-policy`"));
    assert!(stale.output.status.success());
    let client = site.path("client.toml");
    let strict = doctor(site, &["--strict", "--client", client.to_str().unwrap()]);
    assert!(failed(strict.output, 1).contains("--strict takes none"));
    let alone = doctor(site, &[]);
    assert_eq!(alone.turned(), BTreeMap::new());
    assert!(alone.said("gateway.health").contains("give --client"));
    let words = quotesign().envs(&site.env).arg("doctor").arg("--config").arg(site.config()).output().unwrap();
    let words = done(words);
    assert!(words.lines().last().unwrap().contains(" ok, "), "{words}");
    let secrets = ["pin", "so-pin"].map(|name| fs::read_to_string(site.path(name)).unwrap().trim().to_owned());
    assert!(secrets.iter().all(|secret| !words.contains(secret)));
    // It reads no record, so that it leaves no note.
    assert!(site.whole_journal().iter().all(|record| record["facts"]["detail"] != "doctor"));
    // A gateway that was killed leaves its log beside the ledger; it is read and stays.
    gateway.kill();
    assert!(site.path("ledger.sqlite-wal").exists());
    site.edit_policy(|_| {});
    site.edit_config(|config| config["operations"]["listen"] = toml("'127.0.0.1:1'"));
    same("after a kill");
    let gateway = healthy.serve();
    gateway.signing().await;
    assert!(gateway.stop().success());
    assert!(!site.path("ledger.sqlite-wal").exists());
    site.edit_config(|config| config["operations"]["listen"] = toml("'127.0.0.1:1'"));
    same("after a stop");
}

/// As a `ConfigMap` is in a pod: root's, for anybody to write, on a mount by which nobody can.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_mounted_read_only_is_written_by_nobody_whatever_its_mode() {
    let site = Site::new();
    keep_secrets(&site);
    let Some(map) = Mounted::try_new(site.path("map"), "size=16m") else {
        println!("no file system can be mounted here: this is not tried");
        return;
    };
    done(Command::new("cp").arg("-rT").args([&site.path("policy"), &map.0]).output().unwrap());
    fs::copy(site.path("tls/ca.pem"), map.0.join("keys/ca.pem")).unwrap();
    site.edit_config(|config| {
        config["policy"] = toml("'map'");
        config["grpc"]["client_ca"] = toml("'map/keys/ca.pem'");
    });
    for folder in ["map", "map/keys"] {
        chmod(&site.path(folder), 0o777);
    }
    let of_files = || doctor(&site, &[]).turned().into_keys().filter(|check| check.starts_with("files.")).collect();
    let turned: Vec<String> = of_files();
    assert_eq!(turned, ["files.directory", "files.policy"]);
    done(Command::new("mount").args(["-o", "remount,ro"]).arg(&map.0).output().unwrap());
    let turned: Vec<String> = of_files();
    assert_eq!(turned, [""; 0]);
    let checks = doctor(&site, &[]).checks;
    let of_map = checks.iter().find(|found| text(found, "evidence").contains("/map/keys: mode 0777")).unwrap();
    assert!(text(of_map, "evidence").ends_with(", on a read-only mount"), "{of_map}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_cannot_sign_and_one_that_is_none_are_told() {
    let healthy = Healthy::new().await;
    let pin = fs::read(healthy.site.path("pin")).unwrap();
    fs::write(healthy.site.path("pin"), "not the pin\n").unwrap();
    let gateway = healthy.serve();
    gateway.logged("PinIncorrect").await;
    fs::write(healthy.site.path("pin"), pin).unwrap();
    let report = healthy.doctor();
    let turned: Vec<_> = report.turned().into_iter().collect();
    let fault = |check: &str| (check.to_owned(), "fault".to_owned());
    assert_eq!(turned, [fault("gateway.health"), fault("gateway.ready")], "{:#?}", report.checks);
    assert!(report.said("gateway.ready").contains("signer/hsm-primary: "), "{}", report.said("gateway.ready"));
    drop(gateway);
    // Something else has the port.
    let other = collector(Arc::new(AtomicU16::new(404)));
    healthy.site.edit_config(|config| config["operations"]["listen"] = toml(&format!("'127.0.0.1:{other}'")));
    let report = healthy.doctor();
    assert_eq!(report.turned(), [fault("gateway.live")].into(), "{:#?}", report.checks);
    assert!(report.said("gateway.live").contains("find out who listens there"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_looked_at_as_a_ledger_is() {
    let mut healthy = Healthy::new().await;
    let database = Cluster::shared().empty();
    let name = |port| format!("'postgresql://postgres@127.0.0.1:{port}/{}'", database.name);
    let hands = Hands::of(&mut healthy.site);
    let site = &healthy.site;
    site.edit_config(|config| {
        let ledger = config["ledger"].as_table_mut().unwrap();
        ledger.remove("sqlite");
        ledger["postgres"] = toml(&format!("{{ address = {}, timeout_ms = 2000 }}", name(database.port)));
    });
    let fault = |check: &str| BTreeMap::from([(check.to_owned(), "fault".to_owned())]);
    let never = healthy.doctor();
    assert_eq!(never.turned(), fault("ledger.opens"));
    assert!(never.said("ledger.opens").contains("run `quotesign ledger migrate`"), "{}", never.said("ledger.opens"));
    done(site.run(&["ledger", "migrate"]));
    let well = healthy.doctor();
    assert_eq!(well.turned(), BTreeMap::new(), "{:#?}", well.checks);
    assert!(well.said("ledger.opens").contains("PostgreSQL 15"), "{}", well.said("ledger.opens"));
    assert!(well.said("clock.server").contains("from the ledger's server, of 1s"), "{}", well.said("clock.server"));
    hands.turn(3600);
    assert_eq!(healthy.doctor().turned(), fault("clock.server"));
    hands.turn(0);
    site.edit_config(|config| config["ledger"]["postgres"]["address"] = toml(&name(1)));
    let away = healthy.doctor();
    assert_eq!(away.turned(), fault("ledger.opens"));
    assert!(away.said("ledger.opens").contains("cannot be reached"));
    let careless = Cluster::new(&["fsync=off"]);
    site.edit_config(|config| {
        config["ledger"]["postgres"]["address"] = toml(&name(careless.port).replace(&database.name, "postgres"));
    });
    let careless = healthy.doctor();
    assert_eq!(careless.turned(), fault("ledger.opens"));
    assert!(careless.said("ledger.opens").contains("fsync = off"), "{}", careless.said("ledger.opens"));
}

/// As `docs/first-start.md` has it: nothing is a fault, and what it leaves for afterwards is warned of.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_leads_to_a_site_with_what_is_left_to_do_alone() {
    let production = Production::signing().await;
    let gateway = production.serve(SIGNING);
    gateway.signing().await;
    keep_secrets(&production.site);
    let report = Report::of(production.line("quotesign doctor --format json --client operator.toml"));
    let left = ["audit.checkpoints", "policy.ahead", "policy.cases"];
    let left = left.map(|check| (check.to_owned(), "warning".to_owned()));
    assert_eq!(report.turned(), left.into(), "{:#?}", report.checks);
    assert!(gateway.stop().success());
    // Before its last steps no key signs, and that is what is told.
    let early = Production::new().with_key();
    keep_secrets(&early.site);
    let report = Report::of(early.line("quotesign doctor --format json"));
    assert_eq!(report.turned().get("policy.signing").map(String::as_str), Some("fault"));
    assert!(report.said("policy.signing").contains("no key of the timeline signs now"));
    let faults: Vec<_> = report.turned().into_iter().filter(|(_, verdict)| verdict == "fault").collect();
    assert_eq!(faults.len(), 1, "{faults:?}");
}

/// What KMS says of a key counts as what a token says.
#[cfg(feature = "kms")]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_kms_is_looked_at_as_one_on_a_token_is() {
    let emulator = crate::emulator::Emulator::shared();
    let mut healthy = Healthy::new().await;
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
        ("AWS_SECRET_ACCESS_KEY", "verysecret"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
    ] {
        healthy.site.env.insert(name.to_owned(), value.to_owned());
    }
    let (site, kid) = (&healthy.site, "quote-signing-in-kms");
    site.edit_config(|config| {
        // The emulator takes its time to make a key of 3072 bits.
        let times = "attempt_timeout_ms = 40000, call_timeout_ms = 60000";
        let kms = format!("{{ name = 'kms-eu', region = 'eu-west-1', endpoint = 'http://{emulator}', {times} }}");
        config["aws_kms"] = toml(&format!("[{kms}]"));
    });
    let generate = ["keys", "generate", "--kid", kid, "--signer", "kms-eu", "--partner", PARTNER];
    let entry: toml_edit::DocumentMut = done(site.run(&generate)).parse().unwrap();
    let locator = entry["keys"][0]["locator"].as_str().unwrap().to_owned();
    site.edit_policy(|policy| {
        let mut key = policy["keys"][1].clone();
        key["kid"] = toml(&format!("'{kid}'"));
        key["signer"] = toml("'kms-eu'");
        key["locator"] = toml(&format!("'{locator}'"));
        policy["keys"].as_array_of_tables_mut().unwrap().push(key.into_table().unwrap());
    });
    healthy.publish();
    let well = healthy.doctor();
    assert_eq!(well.turned(), BTreeMap::new(), "{:#?}", well.checks);
    let of_key: BTreeSet<String> = well
        .checks
        .iter()
        .filter(|found| found["of"] == format!("{kid} on kms-eu") && found["verdict"] == "ok")
        .map(|found| text(found, "check"))
        .collect();
    assert_eq!(
        of_key,
        ["key.attributes", "key.found", "key.pinned", "key.signs", "key.size"].map(str::to_owned).into()
    );
    let disable = Command::new("curl")
        .args(["-sf", "--aws-sigv4", "aws:amz:eu-west-1:kms", "--user", "AKIDTEST:verysecret"])
        .args(["-H", "X-Amz-Target: TrentService.DisableKey", "-H", "Content-Type: application/x-amz-json-1.1"])
        .args(["-d", &json!({ "KeyId": locator }).to_string(), &format!("http://{emulator}/")])
        .output()
        .unwrap();
    done(disable);
    let disabled = healthy.doctor();
    let turned: Vec<_> = disabled.turned().into_keys().collect();
    assert_eq!(turned, ["key.attributes", "key.signs"], "{:#?}", disabled.checks);
    assert!(disabled.said("key.attributes").contains("the key is disabled; enable it"));
    assert!(!String::from_utf8_lossy(&disabled.output.stdout).contains("verysecret"));
    healthy.site.env.remove("AWS_SECRET_ACCESS_KEY");
    let nobody = healthy.doctor();
    assert_eq!(nobody.turned().into_keys().collect::<Vec<_>>(), ["signer.reached"], "{:#?}", nobody.checks);
}

#[test]
fn the_page_explains_every_check_and_no_other() {
    let page = fs::read_to_string(format!("{ROOT}/docs/doctor.md")).unwrap();
    let rows: BTreeSet<String> = page
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .filter(|name| name.contains('.'))
        .collect();
    let site = Site::new();
    assert_eq!(doctor(&site, &[]).names(), rows);
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        assert!(cells.len() == 3 && cells.iter().all(|cell| cell.trim().len() > 3), "{row}");
    }
}
