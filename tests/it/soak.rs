//! A soak: two gateways on one PostgreSQL database and one token, a real Collector, load at seven tenths of what they can; and while it
//! lasts, certificates, policy and the signing key are exchanged, the Collector is away, and the database crashes and comes back. What
//! clients were told is then held against the ledger, the journal and what the Collector got.
//!
//! `make test` runs it for half a minute. `make soak-short` and `make soak` give it `SOAK_SECONDS`, and `SOAK_OUT` for what it tells.

mod load;
mod proof;
mod tell;

use std::{
    env, fs,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use quotesign::{
    clock::{Clock as _, SystemClock, UtcTime},
    proto::ReloadPolicyRequest,
    transport::tls,
};
use rcgen::CertificateParams;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    collector::Collector,
    harness::{
        Authority, DAY, Gateway, PARTNER, Site, TRUST_DOMAIN, children, client_certificate, done, timed_key, toml,
    },
    kills::number_from,
    server::{Cluster, Database},
    shipping::{metric, ship_to},
};
use load::{Clients, Seen};
use tell::{Memory, Soak, Step};

const LANES: usize = 32;
const GATEWAYS: usize = 2;
/// Everything is done once in so much of a soak, and at least once.
const ROUND: Duration = Duration::from_mins(10);
/// Of what the gateways can.
const SHARE: f64 = 0.7;
/// The longest that anything may take to come about.
const LONGEST: Duration = Duration::from_mins(3);
const NEVER: &str = "never";

/// Waits until it comes about, and says after how many seconds; or that it did not.
async fn comes_about(mut done: impl AsyncFnMut() -> bool) -> String {
    let began = Instant::now();
    while !done().await {
        if began.elapsed() > LONGEST {
            return NEVER.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    format!("after {:.1} s", began.elapsed().as_secs_f64())
}

/// What is run, and what was done to it.
struct World {
    site: Site,
    cluster: Cluster,
    database: Database,
    collector: Collector,
    gateways: Vec<Gateway>,
    began: Instant,
    steps: Vec<Step>,
    certificates_reload: bool,
    keys: usize,
}

impl World {
    async fn new() -> Self {
        let cluster = Cluster::new(&[]);
        let database = cluster.empty();
        let collector = Collector::serve(|config| config).await;
        let site = Site::new();
        site.edit_policy(|policy| {
            for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
                policy["quotas"][quota] = toml("{ per_second = 1000000, burst = 1000000 }");
            }
            policy["partners"][0]["sequence"]["scope"] = toml("['partner', 'corridor']");
        });
        let rules = site.path("policy/authorize.cedar");
        let text = fs::read_to_string(&rules).unwrap();
        fs::write(rules, text.replace(r#"context.corridor == "GB-IN""#, r#"context.corridor like "GB-*""#)).unwrap();
        site.keep_ledger_in(&database.address(), "timeout_ms = 2000");
        ship_to(&site, &collector.grpc, &collector.identity());
        let start = |at: usize| {
            let mut command = site.command();
            command.env("QUOTESIGN__LEDGER__POSTGRES__REPLICA", format!("gw-{at}"));
            command.arg("serve").arg("--config").arg(site.config());
            Gateway::spawn(command, &site)
        };
        let gateways: Vec<_> = (0..GATEWAYS).map(start).collect();
        for gateway in &gateways {
            gateway.signing().await;
        }
        let (began, steps, certificates_reload) = (Instant::now(), Vec::new(), true);
        Self { site, cluster, database, collector, gateways, began, steps, certificates_reload, keys: 0 }
    }

    fn did(&mut self, at: Instant, what: &str, showed: impl Into<String>) {
        let at_s = at.duration_since(self.began).as_secs_f64();
        println!("{at_s:>7.1} s  {what}");
        self.steps.push(Step { at_s, what: what.to_owned(), showed: showed.into() });
    }

    /// Every gateway reads the bundle again.
    async fn reload(&self) {
        for gateway in &self.gateways {
            gateway.admin("operator").await.reload_policy(ReloadPolicyRequest {}).await.unwrap();
        }
    }

    async fn change_policy(&mut self) {
        let at = Instant::now();
        self.site.edit_policy(|policy| {
            let jump = policy["partners"][0]["sequence"]["jump_max"].as_integer().unwrap();
            policy["partners"][0]["sequence"]["jump_max"] = toml_edit::value(jump + 1);
        });
        self.reload().await;
        self.did(at, "the policy bundle was changed and loaded", "loaded by every gateway");
    }

    /// A new certificate for the servers, and one more CA for clients; each file is replaced as a whole.
    async fn change_certificates(&mut self) {
        let (at, tls) = (Instant::now(), self.site.path("tls"));
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        self.site.authority.issue(&tls, "server-next", CertificateParams::new(names).unwrap());
        let other = Authority::named("quotesign test CA, the next");
        let id = format!("spiffe://{TRUST_DOMAIN}/pricing");
        other.issue(&tls, "pricing-next", client_certificate(&[&id], &[]));
        fs::write(tls.join("clients-next.pem"), format!("{}{}", self.site.authority.pem, other.pem)).unwrap();
        for (next, name) in
            [("server-next.pem", "server.pem"), ("server-next.key", "server.key"), ("clients-next.pem", "ca.pem")]
        {
            fs::rename(tls.join(next), tls.join(name)).unwrap();
        }
        let wanted = pem_body(&fs::read_to_string(tls.join("server.pem")).unwrap());
        let mut shown = vec![false; self.gateways.len()];
        while shown.contains(&false) && at.elapsed() < Duration::from_secs(10) {
            for (gateway, shown) in self.gateways.iter().zip(&mut shown) {
                *shown = *shown || served(gateway).await == wanted && accepts(gateway, "pricing-next").await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let reloaded = !shown.contains(&false);
        self.certificates_reload &= reloaded;
        let showed =
            format!("a new connection sees the new ones: {reloaded}, after {:.1} s", at.elapsed().as_secs_f64());
        self.did(at, "the server's certificate was replaced, a CA of clients added", showed);
    }

    /// A second key is published, and signing moves to it when its time has come.
    async fn change_key(&mut self, seen: &Mutex<Seen>) {
        let at = Instant::now();
        self.keys += 1;
        let kid = format!("quote-signing-soak-{}", self.keys);
        let args =
            ["keys", "generate", "--signer", "hsm-primary", "--partner", PARTNER, "--kid", &kid, "--bits", "3072"];
        let entry = done(self.site.run(&args));
        let now = SystemClock.now();
        let from = UtcTime::from_millis(now.millis() - now.millis().rem_euclid(1000)).plus(Duration::from_secs(3));
        self.site.edit_policy(|policy| {
            let published = SystemClock.now().minus(Duration::from_secs(1));
            let key = timed_key(&entry, [published, from, from.plus(DAY * 30), from.plus(DAY * 40)]);
            policy["keys"].as_array_of_tables_mut().unwrap().push(key);
        });
        self.reload().await;
        let signs = comes_about(async || seen.lock().unwrap().kids.contains_key(&kid)).await;
        let late = SystemClock.now().since(from).as_secs_f64();
        let showed = format!("`{kid}` signs {signs}, at most {late:.1} s after its time");
        self.did(at, "a key was published, and signing moved to it", showed);
    }

    async fn collector_away(&mut self, lasts: Duration) {
        let at = Instant::now();
        self.collector.kill();
        tokio::time::sleep(lasts).await;
        let mut waiting = 0;
        for gateway in &self.gateways {
            waiting += metric(gateway, "quotesign_audit_lag_records").await;
        }
        self.collector.start_again();
        let shipped = self.have_shipped().await;
        let showed = format!("{waiting} records waited; shipped {shipped}");
        self.did(at, "the Collector was killed, and started again", showed);
    }

    /// Waits until every gateway has shipped all but what it has just written.
    async fn have_shipped(&self) -> String {
        let all_shipped = async || {
            for gateway in &self.gateways {
                if metric(gateway, "quotesign_audit_lag_seconds").await > 2 {
                    return false;
                }
            }
            true
        };
        comes_about(all_shipped).await
    }

    async fn database_crashes(&mut self) {
        let at = Instant::now();
        self.cluster.crash();
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.cluster.start(&[]);
        let all_sign = async || {
            for gateway in &self.gateways {
                if !gateway.can_sign().await {
                    return false;
                }
            }
            true
        };
        let showed = format!("every gateway can sign {}", comes_about(all_sign).await);
        self.did(at, "PostgreSQL crashed, and was started again", showed);
    }

    /// Does all of it, spread over `lasts`.
    async fn be_harmed(&mut self, seen: &Mutex<Seen>, lasts: Duration) {
        let began = Instant::now();
        let mut step = 0;
        let mut pause = async || {
            step += 1;
            let due = began + lasts.mul_f64(f64::from(step) / 7.0);
            tokio::time::sleep_until(due.into()).await;
        };
        pause().await;
        self.change_policy().await;
        pause().await;
        self.change_certificates().await;
        pause().await;
        self.change_key(seen).await;
        pause().await;
        self.collector_away((lasts / 30).clamp(Duration::from_secs(1), Duration::from_secs(20))).await;
        pause().await;
        self.database_crashes().await;
        pause().await;
        self.change_policy().await;
    }

    /// The gateways and the processes that hold their modules.
    fn processes(&self) -> Vec<(String, u32)> {
        let mut all = Vec::new();
        for (at, gateway) in self.gateways.iter().enumerate() {
            all.push((format!("gw-{at}"), gateway.pid()));
            all.extend(children(gateway.pid()).map(|pid| (format!("gw-{at}, PKCS#11 process"), pid)));
        }
        all
    }
}

/// The base64 of a PEM file's first block.
fn pem_body(pem: &str) -> String {
    let body = pem.split("-----").nth(2).unwrap();
    body.split_whitespace().collect()
}

/// The certificate that a new connection is shown, as [`pem_body`] has it.
async fn served(gateway: &Gateway) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let client = gateway.client("pricing");
    let tls = tls::client(&client.ca, Some((&client.grpc.certificate, &client.grpc.private_key)), b"h2").unwrap();
    let socket = TcpStream::connect(gateway.address("grpc")).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let Ok(stream) = TlsConnector::from(tls).connect(name, socket).await else { return String::new() };
    STANDARD.encode(&stream.get_ref().1.peer_certificates().unwrap()[0])
}

/// Whether a call with this certificate is answered.
async fn accepts(gateway: &Gateway, caller: &str) -> bool {
    match gateway.client(caller).grpc().await {
        Ok(channel) => {
            let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
            client.check(tonic_health::pb::HealthCheckRequest { service: String::new() }).await.is_ok()
        }
        Err(_) => false,
    }
}

async fn soak(lasts: Duration) -> Soak {
    let mut world = World::new().await;
    let mut callers = Vec::new();
    for gateway in &world.gateways {
        callers.push(gateway.quotes("pricing").await);
    }
    let mut clients = Clients::new(callers, LANES);
    clients.ask(None, lasts.mul_f64(0.05).clamp(Duration::from_secs(2), Duration::from_secs(10))).await;
    let trial = lasts.mul_f64(0.1).clamp(Duration::from_secs(3), Duration::from_secs(20));
    let capacity = clients.ask(None, trial).await;
    let rate =
        (capacity * SHARE).min(f64::from(u32::try_from(number_from("SOAK_RATE_MAX", 100_000)).unwrap())).max(1.0);
    println!("{capacity:.0}/s are reached; {rate:.0}/s from now on, for {} s", lasts.as_secs());
    let memory = Memory::of(world.processes());
    clients.begin();
    world.began = Instant::now();
    let rounds = u32::try_from((lasts.as_secs() / ROUND.as_secs()).max(1)).unwrap();
    // What is done to it reads what the clients see, while these ask.
    let seen = clients.seen.clone();
    let (answered, world) = tokio::join!(clients.ask(Some(rate), lasts), async {
        for _ in 0..rounds {
            world.be_harmed(&seen, lasts / rounds).await;
        }
        world
    });
    let memory = memory.end(lasts.as_secs_f64() * 0.2);
    clients.replay().await;
    finish(world, &clients, memory, (lasts, capacity, rate, answered)).await
}

async fn finish(
    mut world: World,
    clients: &Clients,
    memory: std::collections::BTreeMap<String, tell::Growth>,
    (lasts, capacity_per_s, rate_per_s, answered_per_s): (Duration, f64, f64, f64),
) -> Soak {
    world.have_shipped().await;
    for gateway in world.gateways.drain(..) {
        assert!(gateway.stop().success());
    }
    let seen = clients.seen.lock().unwrap();
    let proof = proof::proof(&world.site, &world.database, &world.collector, &seen.told);
    let (overall, minutes, troubles) = Soak::times(&seen);
    Soak {
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        seconds: lasts.as_secs(),
        gateways: GATEWAYS,
        capacity_per_s,
        rate_per_s,
        answered_per_s,
        overall,
        minutes,
        memory,
        steps: world.steps,
        certificates_reload: world.certificates_reload,
        troubles,
        kids: seen.kids.clone(),
        replays: seen.replays,
        faults: seen.faults.clone(),
        proof,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_is_twice_while_everything_is_exchanged() {
    let lasts = Duration::from_secs(number_from("SOAK_SECONDS", 25).clamp(20, 4 * 3600));
    let soak = soak(lasts).await;
    let summary = soak.markdown();
    println!("{summary}");
    if let Some(out) = env::var_os("SOAK_OUT").map(PathBuf::from) {
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("soak.json"), serde_json::to_string_pretty(&soak).unwrap()).unwrap();
        fs::write(out.join("soak.md"), &summary).unwrap();
    }
    assert_eq!(soak.faults, Vec::<String>::new());
    assert!(soak.certificates_reload, "certificates were not followed: {:?}", soak.steps);
    assert!(soak.proof.is_clean(), "{:?}", soak.proof);
    assert!(soak.proof.answers > lasts.as_secs() && soak.replays > 0, "too little happened to say anything");
    assert!(soak.steps.len() >= 6 && soak.kids.len() >= 2, "{:?}", soak.steps);
    assert!(soak.steps.iter().all(|step| !step.showed.contains(NEVER)), "{:?}", soak.steps);
    assert!(soak.memory.values().all(|growth| growth.samples > 5), "{:?}", soak.memory);
}
