//! Several gateways on one database and one hot scope, while everything around them fails: connections are cut in
//! the midst of a commit, backends and the server killed, gateways stopped and killed. What clients were told is then
//! held against the ledger.

mod keys;
mod proxy;
mod rolling;

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quotesign::{
    ledger::{self, Place},
    proto::{
        GetJwksRequest, GetStatusRequest, ReinstateCallerRequest, ReloadPolicyRequest, RevokeKeyRequest,
        SuspendCallerRequest,
    },
};
use rustix::process::Signal;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{Caller, Gateway, PATIENCE, Quote, Site, done, failed, reason, until},
    history::{Answer, Store, Told, faults},
    kills::{Dice, number_from, seed_from},
    server::{Cluster, Database},
};
use proxy::{LAZY, Proxy};

/// What was told, when it was first asked for, and when it was told.
#[derive(Clone)]
struct Heard {
    told: Told,
    begun: Instant,
    ended: Instant,
}

/// A site whose ledger is `database`; every gateway has its own name and its own way there.
struct Replicas {
    site: Site,
    database: Database,
    proxies: Vec<Proxy>,
}

impl Replicas {
    async fn new(database: Database, count: usize, lies: &'static [(&'static str, &'static str)]) -> Self {
        let site = Site::new();
        site.edit_policy(|policy| {
            for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
                // A burst of many seconds: a gateway whose ledger kept it waiting asks with the time at which it began to.
                policy["quotas"][quota]["per_second"] = toml_edit::value(5_000);
                policy["quotas"][quota]["burst"] = toml_edit::value(100_000);
            }
        });
        site.keep_ledger_in(&database.address(), "timeout_ms = 2000");
        let mut proxies = Vec::new();
        for _ in 0..count {
            proxies.push(Proxy::new(database.port, lies).await);
        }
        Self { site, database, proxies }
    }

    fn command(&self, at: usize) -> Command {
        let mut command = self.site.command();
        let address = format!("postgresql://postgres@{}/{}", self.proxies[at].address, self.database.name);
        command.env("QUOTESIGN__LEDGER__POSTGRES__ADDRESS", address);
        command.env("QUOTESIGN__LEDGER__POSTGRES__REPLICA", format!("gw-{at}"));
        command.arg("serve").arg("--config").arg(self.site.config());
        command
    }

    /// A gateway whose ledger fails while it starts ends, and is started again, as whoever runs it would.
    fn start(&self, at: usize) -> Gateway {
        let starts = (0..5).map(|_| Gateway::try_spawn(self.command(at), &self.site));
        let mut last = Vec::new();
        for start in starts {
            match start {
                Ok(gateway) => return gateway,
                Err(log) => last = log,
            }
        }
        panic!("the gateway does not start: {last:#?}")
    }

    /// Waits until all is noted of the key that its start brings about.
    async fn key_is_known(&self) {
        let noted = "SELECT count(*) FROM audit WHERE event IN ('key.served', 'key.turned')";
        until("the key is known", async || self.database.sql(noted) == "2").await;
    }

    /// All that the ledger holds, read on a thread of its own, since reading waits.
    fn store(&self) -> Store {
        let store = ledger::Store::Postgres(Box::new(self.database.settings("checker")));
        let place = Place { store, anchor: None };
        std::thread::scope(|scope| scope.spawn(|| Store::shared(&self.site, &place)).join().unwrap())
    }
}

/// Asks until it is told something for good.
async fn ask(
    quote: &Quote,
    gateways: &[watch::Receiver<Caller>],
    first: usize,
    stop: &CancellationToken,
) -> Option<Heard> {
    let begun = Instant::now();
    for attempt in first.. {
        let caller = gateways[attempt % gateways.len()].borrow().clone();
        let heard = |told| Some(Heard { told, begun, ended: Instant::now() });
        let status = match timeout(Duration::from_secs(4), caller.sign(quote)).await {
            // A gateway that was stopped: another one may know more.
            Err(_) => continue,
            Ok(Ok(answer)) => return heard(Told::signed(quote, &answer)),
            Ok(Err(status)) => status,
        };
        match reason(&status).as_str() {
            "SEQUENCE_NOT_MONOTONIC" => return heard(Told::refused(quote)),
            "" | "SIGNER_UNAVAILABLE" | "LEDGER_UNAVAILABLE" | "OVERLOADED" | "DEADLINE_EXCEEDED" => {}
            _ => panic!("{status:?}"),
        }
        if stop.is_cancelled() && begun.elapsed() > PATIENCE {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}

/// Asks for quote after quote with rising numbers: the same quote through two gateways at once, or two that want the
/// same number.
async fn keep_asking(
    next: Arc<AtomicU64>,
    gateways: Vec<watch::Receiver<Caller>>,
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let quote = Quote::number(number);
        let rival = if number.is_multiple_of(2) { Quote::number(number) } else { quote.clone() };
        let at = usize::try_from(number).unwrap();
        let (first, second) = tokio::join!(ask(&quote, &gateways, at, &stop), ask(&rival, &gateways, at + 1, &stop));
        heard.lock().unwrap().extend(first.into_iter().chain(second));
    }
}

/// A number that was first asked for after a greater one had been told cannot have been signed.
fn out_of_real_time(heard: &[Heard]) -> Vec<String> {
    let mut signed: Vec<&Heard> =
        heard.iter().filter(|heard| matches!(heard.told.answer, Answer::Signed { .. })).collect();
    signed.sort_by_key(|heard| heard.ended);
    // The greatest number told until then; the quote's own earlier answers do not count against it.
    let mut faults = Vec::new();
    for late in &signed {
        let told_before = signed.iter().take_while(|other| other.ended < late.begun);
        if let Some(other) =
            told_before.filter(|other| other.told.sequence > late.told.sequence).max_by_key(|other| other.told.sequence)
        {
            faults.push(format!("{} was begun after {} was told, and signed", late.told.sequence, other.told.sequence));
        }
    }
    faults
}

/// What is done to them, and how often it was.
#[derive(Debug, Default)]
struct Harm {
    backends_ended: u32,
    backends_killed: u32,
    servers_crashed: u32,
    answers_cut: u32,
    gateways_stopped: u32,
    gateways_killed: u32,
}

const BACKENDS: &str = "FROM pg_stat_activity WHERE application_name = 'quotesign' ORDER BY random() LIMIT 1";

async fn harm(
    replicas: &Replicas,
    cluster: &mut Cluster,
    gateways: &mut [Option<Gateway>],
    publish: &[watch::Sender<Caller>],
    dice: &mut Dice,
    done: &mut Harm,
) {
    let at = usize::try_from(dice.throw(gateways.len() as u64)).unwrap();
    match dice.throw(12) {
        0..2 => {
            cluster.sql("postgres", &format!("SELECT pg_terminate_backend(pid) {BACKENDS}"));
            done.backends_ended += 1;
        }
        2 => {
            let pid = cluster.sql("postgres", &format!("SELECT pid {BACKENDS}"));
            if let Ok(pid) = pid.parse() {
                // It may have ended by itself meanwhile.
                let killed = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL);
                done.backends_killed += u32::from(killed.is_ok());
                cluster.until_it_answers();
            }
        }
        3 => {
            cluster.crash();
            tokio::time::sleep(Duration::from_millis(dice.throw(300))).await;
            cluster.start(&[]);
            done.servers_crashed += 1;
        }
        4..8 => {
            replicas.proxies[at].cut();
            done.answers_cut += 1;
        }
        8..10 => {
            let gateway = gateways[at].as_ref().unwrap();
            gateway.signal(Signal::STOP);
            tokio::time::sleep(Duration::from_millis(700)).await;
            gateway.signal(Signal::CONT);
            done.gateways_stopped += 1;
        }
        _ => {
            gateways[at].take().unwrap().kill();
            let gateway = replicas.start(at);
            publish[at].send_replace(gateway.quotes("pricing").await);
            gateways[at] = Some(gateway);
            done.gateways_killed += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_no_number_and_no_quote_is_two() {
    let (trials, seed) = (number_from("TRIALS", 12).min(200), seed_from());
    for count in [2, 3] {
        let mut cluster = Cluster::new(&[]);
        let replicas = Replicas::new(cluster.empty(), count, &[]).await;
        println!("{count} gateways, TRIALS={trials} SEED={seed}");
        let mut dice = Dice::new(seed);
        let mut gateways: Vec<_> = (0..count).map(|at| Some(replicas.start(at))).collect();
        let mut publish = Vec::new();
        for gateway in gateways.iter().flatten() {
            gateway.signing().await;
            publish.push(watch::Sender::new(gateway.quotes("pricing").await));
        }
        let (next, heard, stop) =
            (Arc::new(AtomicU64::new(1)), Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let mut callers = JoinSet::new();
        for _ in 0..12 {
            let ways = publish.iter().map(watch::Sender::subscribe).collect();
            callers.spawn(keep_asking(next.clone(), ways, heard.clone(), stop.clone()));
        }
        let mut harmed = Harm::default();
        for _ in 0..trials {
            tokio::time::sleep(Duration::from_millis(100 + dice.throw(300))).await;
            harm(&replicas, &mut cluster, &mut gateways, &publish, &mut dice, &mut harmed).await;
        }
        for gateway in gateways.iter().flatten() {
            gateway.signing().await;
        }
        stop.cancel();
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        for gateway in gateways.into_iter().flatten() {
            assert!(gateway.stop().success());
        }
        let heard = heard.lock().unwrap();
        let told: Vec<Told> = heard.iter().map(|heard| heard.told.clone()).collect();
        let swallowed: u64 = replicas.proxies.iter().map(|proxy| proxy.swallowed.load(Ordering::SeqCst)).sum();
        let store = replicas.store();
        let mut found = faults(&told, &store);
        found.extend(out_of_real_time(&heard));
        println!(
            "{} answers for good, {} quotes, {} records in {} lanes; {harmed:?}, {swallowed} answers lost; {} faults",
            told.len(),
            store.quotes.len(),
            store.lanes.iter().map(|(journal, _)| journal.len()).sum::<usize>(),
            store.lanes.len(),
            found.len(),
        );
        assert_eq!(found, Vec::<String>::new());
        assert!(told.len() > usize::try_from(trials).unwrap(), "too little happened to say anything");
        let verified = replicas.site.run(&["audit", "verify"]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    }
}

/// The negative control: the same trial on a server that acknowledges what it has not written must be found out.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_what_it_acknowledged_is_found_out() {
    for attempt in 0..20 {
        let mut cluster = Cluster::new(&["wal_writer_delay=10s", "wal_writer_flush_after=1GB"]);
        let replicas = Replicas::new(cluster.empty(), 2, LAZY).await;
        let gateways: Vec<_> = (0..2).map(|at| replicas.start(at)).collect();
        let mut publish = Vec::new();
        for gateway in &gateways {
            gateway.signing().await;
            publish.push(watch::Sender::new(gateway.quotes("pricing").await));
        }
        let (next, heard, stop) =
            (Arc::new(AtomicU64::new(1)), Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let mut callers = JoinSet::new();
        for _ in 0..8 {
            let ways = publish.iter().map(watch::Sender::subscribe).collect();
            callers.spawn(keep_asking(next.clone(), ways, heard.clone(), stop.clone()));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.crash();
        callers.shutdown().await;
        cluster.start(&[]);
        let heard = heard.lock().unwrap().clone();
        let told: Vec<Told> = heard.iter().map(|heard| heard.told.clone()).collect();
        drop(gateways);
        let found = faults(&told, &replicas.store());
        println!("attempt {attempt}: {} answers, {} faults found", told.len(), found.len());
        if !found.is_empty() {
            return;
        }
    }
    panic!("what was lost was not found to be missing");
}

/// One gateway is killed at each point between two steps; the other finishes, or gives again, what it had begun.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_gateway_had_begun_another_finishes() {
    let cluster = Cluster::shared();
    // That it started is the one transaction before: the other gateway has made the kid known. Then what the ledger holds
    // when the gateway waits there.
    for (point, state) in [
        ("ledger::before-commit=1*off->pause", ""),
        ("ledger::after-commit=1*off->pause", "1"),
        ("pipeline::before-sign=pause", "1"),
        ("pipeline::before-commit=pause", "1"),
        ("ledger::before-commit=2*off->pause", "1"),
        ("ledger::after-commit=2*off->pause", "2"),
    ] {
        let replicas = Replicas::new(cluster.empty(), 2, &[]).await;
        let mut command = replicas.command(0);
        command.env("FAILPOINTS", point).env("TOKIO_WORKER_THREADS", "4");
        let other = replicas.start(1);
        replicas.key_is_known().await;
        let doomed = Gateway::spawn(command, &replicas.site);
        for gateway in [&doomed, &other] {
            gateway.signing().await;
        }
        let (pricing, quote) = (doomed.quotes("pricing").await, Quote::number(1));
        let call = tokio::spawn({
            let quote = quote.clone();
            async move { pricing.sign(&quote).await }
        });
        let stands = || replicas.database.sql("SELECT state FROM quote");
        until(point, async || stands() == state).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(stands(), state, "{point}: it did not wait");
        doomed.kill();
        assert!(call.await.unwrap().is_err(), "{point}");
        let pricing = other.quotes("pricing").await;
        let signed = pricing.sign(&quote).await.unwrap();
        assert_eq!(signed.replayed, state == "2", "{point}");
        let again = pricing.sign(&quote).await.unwrap();
        assert!(again.replayed && again.jws == signed.jws);
        let mut told = vec![Told::signed(&quote, &signed), Told::signed(&quote, &again)];
        // The one that was killed comes back on its own lane.
        let back = replicas.start(0);
        back.signing().await;
        let next = Quote::number(2);
        told.push(Told::signed(&next, &back.quotes("pricing").await.sign(&next).await.unwrap()));
        for gateway in [back, other] {
            assert!(gateway.stop().success());
        }
        assert_eq!(faults(&told, &replicas.store()), Vec::<String>::new(), "{point}");
    }
}

/// The answer to a commit is lost, and the connections on which its fate is asked are lost as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_fate_is_asked_more_than_once_does_not_stop_the_gateway() {
    let cluster = Cluster::shared();
    for lost in 1..=2 {
        let replicas = Replicas::new(cluster.empty(), 1, &[]).await;
        let mut command = replicas.command(0);
        let points = format!("ledger::after-commit=4*off->1*panic->off;ledger::reopening={lost}*return->off");
        command.env("FAILPOINTS", points).env("TOKIO_WORKER_THREADS", "4");
        let gateway = Gateway::spawn(command, &replicas.site);
        gateway.signing().await;
        replicas.key_is_known().await;
        let (pricing, quote) = (gateway.quotes("pricing").await, Quote::number(1));
        let mut signed = None;
        until("the ledger is written again", async || {
            match pricing.sign(&quote).await {
                Ok(answer) => signed = Some(answer),
                Err(status) => assert_eq!(reason(&status), "LEDGER_UNAVAILABLE", "{status:?}"),
            }
            signed.is_some()
        })
        .await;
        let signed = signed.unwrap();
        assert!(!signed.replayed, "what was reserved is finished");
        assert!(gateway.stop().success());
        assert_eq!(faults(&[Told::signed(&quote, &signed)], &replicas.store()), Vec::<String>::new());
    }
}

/// Once the act has been answered by one gateway, the other signs nothing for the caller, and gives nothing again.
/// The newest record of all is of a gateway that has not taken the new bundle yet.
#[tokio::test(flavor = "multi_thread")]
async fn no_gateway_starts_with_a_bundle_older_than_one_that_any_of_them_has_taken() {
    let cluster = Cluster::shared();
    let replicas = Replicas::new(cluster.empty(), 3, &[]).await;
    let (first, second) = (replicas.start(0), replicas.start(1));
    first.signing().await;
    second.signing().await;
    replicas.key_is_known().await;
    let policy = replicas.site.path("policy/policy.toml");
    let older = std::fs::read_to_string(&policy).unwrap();
    replicas.site.edit_policy(|_| {});
    let taken = first.admin("operator").await.reload_policy(ReloadPolicyRequest {}).await.unwrap().into_inner();
    assert!(first.stop().success());
    second.quotes("pricing").await.sign(&Quote::number(1)).await.unwrap();
    std::fs::write(&policy, older).unwrap();
    // Its own lane tells the one that was there before, and the other's one that is new.
    for at in [0, 2] {
        let log =
            Gateway::try_spawn(replicas.command(at), &replicas.site).err().expect("it starts with an older bundle");
        let told = format!("is below {}, which was in force; a serial never falls", taken.policy_serial);
        assert!(log.iter().any(|line| line.contains(&told)), "{log:#?}");
    }
    second.quotes("pricing").await.sign(&Quote::number(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_suspended_on_every_gateway_once_that_is_answered() {
    let cluster = Cluster::shared();
    let replicas = Replicas::new(cluster.empty(), 2, &[]).await;
    let gateways: Vec<_> = (0..2).map(|at| replicas.start(at)).collect();
    let mut callers = Vec::new();
    for gateway in &gateways {
        gateway.signing().await;
        callers.push(gateway.quotes("pricing").await);
    }
    let first = Quote::number(1);
    callers[0].sign(&first).await.unwrap();
    for round in 0..10 {
        let mut admin = gateways[round % 2].admin("operator").await;
        let caller = "spiffe://dev.quotesign.example/pricing".to_owned();
        let (stop, go) = (caller.clone(), caller);
        let suspend = SuspendCallerRequest { caller: stop, reason: "a test".to_owned(), signed_since: None };
        admin.suspend_caller(suspend).await.unwrap();
        let other = &callers[1 - round % 2];
        for quote in [&first, &Quote::number(2 + u64::try_from(round).unwrap())] {
            let told = other.sign(quote).await;
            assert_eq!(reason(&told.unwrap_err()), "CALLER_SUSPENDED", "round {round}");
        }
        admin.reinstate_caller(ReinstateCallerRequest { caller: go, reason: "a test".to_owned() }).await.unwrap();
        until("it may call again everywhere", async || {
            let mut both = Vec::new();
            for caller in &callers {
                both.push(caller.sign(&first).await.is_ok());
            }
            both == [true, true]
        })
        .await;
    }
    for gateway in gateways {
        assert!(gateway.stop().success());
    }
}

/// Once one gateway has answered that a key is revoked, no call to any of them is given anything of that key: neither what
/// is asked for then, nor what was signed before.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_revoked_under_load_on_three_gateways_signs_nothing_more_on_any() {
    const CALLERS: usize = 64;
    let cluster = Cluster::shared();
    let replicas = Replicas::new(cluster.empty(), 3, &[]).await;
    let gateways: Vec<_> = (0..3).map(|at| replicas.start(at)).collect();
    for gateway in &gateways {
        gateway.signing().await;
    }
    let (next, revoked) = (Arc::new(AtomicU64::new(1)), Arc::new(std::sync::OnceLock::<Instant>::new()));
    let over = CancellationToken::new();
    let mut callers = JoinSet::new();
    for at in 0..CALLERS {
        let pricing = gateways[at % 3].quotes("pricing").await;
        let (next, revoked, over) = (next.clone(), revoked.clone(), over.clone());
        callers.spawn(async move {
            let (mut before, mut refused, mut late) = (Vec::new(), 0_u32, Vec::new());
            while !over.is_cancelled() {
                // Now and then what was signed is asked for again.
                let number = next.fetch_add(1, Ordering::Relaxed);
                let quote = match before.last() {
                    Some(signed) if number.is_multiple_of(4) => Quote::clone(signed),
                    _ => Quote::number(number),
                };
                let begun = Instant::now();
                match pricing.sign(&quote).await {
                    Ok(_) if revoked.get().is_some_and(|at| *at < begun) => late.push(number),
                    Ok(answer) if !answer.replayed => before.push(quote),
                    Ok(_) => {}
                    Err(status)
                        if ["NO_ACTIVE_KEY", "KEY_REVOKED", "SIGNER_UNAVAILABLE"].contains(&&*reason(&status)) =>
                    {
                        refused += 1;
                    }
                    // Numbers race, and a quote of a revoked key may have passed its number.
                    Err(status) => assert_eq!(reason(&status), "SEQUENCE_NOT_MONOTONIC", "{status:?}"),
                }
            }
            (before.len(), refused, late)
        });
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let kids = std::fs::read_dir(replicas.site.path("policy/keys")).unwrap();
    let file = kids.map(|entry| entry.unwrap().file_name().into_string().unwrap()).next().unwrap();
    let kid = file.strip_suffix(".jwk.json").unwrap().to_owned();
    let request = RevokeKeyRequest { kid, reason: "a test".to_owned(), cause: 0 };
    gateways[0].admin("operator").await.revoke_key(request).await.unwrap();
    revoked.set(Instant::now()).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    over.cancel();
    let told = callers.join_all().await;
    let (signed, refused): (usize, u32) = told.iter().fold((0, 0), |sum, told| (sum.0 + told.0, sum.1 + told.1));
    let late: Vec<u64> = told.into_iter().flat_map(|told| told.2).collect();
    println!("{signed} signed, {refused} refused as revoked, {} released after the answer", late.len());
    assert_eq!(late, Vec::<u64>::new());
    assert!(signed > 10 && refused > 10, "too little happened to say anything: {signed} signed, {refused} refused");
    for gateway in gateways {
        assert!(gateway.stop().success());
    }
}

/// A gateway that starts while its server is away serves keys as soon as it is known what was revoked, and signs once the
/// server is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_while_its_ledger_is_away() {
    let mut cluster = Cluster::new(&[]);
    let replicas = Replicas::new(cluster.empty(), 1, &[]).await;
    let anchor = replicas.site.path("anchor");
    let start = |anchored: bool| {
        let mut command = replicas.command(0);
        if anchored {
            command.env("QUOTESIGN__LEDGER__ANCHOR", &anchor);
        }
        Gateway::spawn(command, &replicas.site)
    };
    let ready = async |gateway: &Gateway, what: &str| gateway.operations(&format!("/readyz?for={what}")).await.0;
    let kids = async |gateway: &Gateway| {
        let partner = crate::harness::PARTNER.parse().unwrap();
        let set = gateway.client("pricing").jwks(&partner).await.map_err(|fault| fault.to_string())?;
        let set: serde_json::Value = serde_json::from_slice(&set).unwrap();
        Ok::<_, String>(set["keys"].as_array().unwrap().len())
    };

    // Nobody knows what was revoked: no file, no ledger.
    cluster.crash();
    let gateway = start(false);
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    assert_eq!(reason(&pricing.sign(&quote).await.unwrap_err()), "LEDGER_UNAVAILABLE");
    assert!(kids(&gateway).await.unwrap_err().contains("503"));
    assert_eq!((ready(&gateway, "jwks").await, ready(&gateway, "signing").await), (503, 503));
    let directory = gateway.keys("pricing").await.get_jwks(GetJwksRequest { partner: "acme-remit".to_owned() }).await;
    assert_eq!(reason(&directory.unwrap_err()), "LEDGER_UNAVAILABLE");
    let held =
        async || gateway.admin("operator").await.get_status(GetStatusRequest {}).await.unwrap().into_inner().holds;
    assert_eq!(held().await, None, "of what the ledger has nobody knows");
    cluster.start(&[]);
    gateway.signing().await;
    assert_eq!(held().await.unwrap().holds, []);
    // One that hangs is not waited for.
    let database = Database { port: replicas.database.port, name: replicas.database.name.clone() };
    let locked =
        tokio::task::spawn_blocking(move || database.sql("BEGIN; LOCK TABLE meta; SELECT pg_sleep(4); COMMIT"));
    tokio::time::sleep(Duration::from_millis(700)).await;
    let began = Instant::now();
    assert_eq!(held().await, None);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    locked.await.unwrap();
    gateway.signing().await;
    assert_eq!((kids(&gateway).await, ready(&gateway, "jwks").await), (Ok(1), 200));
    assert!(!pricing.sign(&quote).await.unwrap().replayed);
    // What acts on the ledger itself leaves it to who is there, and what is refused takes no lane.
    let offline = |replica: &str, floor: &str| {
        let mut seed = replicas.site.command();
        seed.env("QUOTESIGN__LEDGER__POSTGRES__REPLICA", replica).args(["ledger", "seed", "--partner", "acme-remit"]);
        seed.args(["--reason", "a test", "--floor", floor, "--config"]).arg(replicas.site.config()).output().unwrap()
    };
    let lives = "SELECT count(*) FROM replica WHERE replica = 'gw-0'";
    until("it has a lease", async || replicas.database.sql(lives) == "1").await;
    let refused = failed(offline("gw-0", "90"), 1);
    assert!(refused.contains("the gateway `gw-0` is at the ledger") && refused.contains("try again in"), "{refused}");
    assert!(failed(offline("gw-9", "0"), 1).contains("is not above"));
    assert_eq!(replicas.database.sql("SELECT count(*) FROM lane WHERE lane = 'gw-9'"), "0");
    assert!(pricing.sign(&Quote::number(2)).await.is_ok());
    assert!(gateway.stop().success());

    // The file beside the anchor says that nothing was revoked.
    let mut adopt = replicas.site.command();
    adopt.env("QUOTESIGN__LEDGER__ANCHOR", &anchor).args(["ledger", "anchor", "adopt", "--reason", "a test"]);
    done(adopt.arg("--config").arg(replicas.site.config()).output().unwrap());
    let gateway = start(true);
    gateway.signing().await;
    assert!(gateway.stop().success());
    cluster.crash();
    let gateway = start(true);
    assert_eq!((kids(&gateway).await, ready(&gateway, "jwks").await), (Ok(1), 200));
    assert_eq!(reason(&gateway.quotes("pricing").await.sign(&quote).await.unwrap_err()), "LEDGER_UNAVAILABLE");
    cluster.start(&[]);
    gateway.signing().await;
    assert!(gateway.quotes("pricing").await.sign(&quote).await.unwrap().replayed);
    let file = std::fs::read_dir(replicas.site.path("policy/keys")).unwrap().next().unwrap().unwrap().file_name();
    let kid = file.into_string().unwrap().strip_suffix(".jwk.json").unwrap().to_owned();
    let request = RevokeKeyRequest { kid, reason: "a test".to_owned(), cause: 0 };
    gateway.admin("operator").await.revoke_key(request).await.unwrap();
    assert!(gateway.stop().success());

    // And that this key was, which no set shows from the first moment on.
    cluster.crash();
    let gateway = start(true);
    assert_eq!(kids(&gateway).await, Ok(0));
    cluster.start(&[]);
    let pricing = gateway.quotes("pricing").await;
    until("it has joined", async || {
        let status = pricing.sign(&Quote::number(3)).await.unwrap_err();
        assert!(["LEDGER_UNAVAILABLE", "NO_ACTIVE_KEY"].contains(&reason(&status).as_str()), "{status:?}");
        reason(&status) == "NO_ACTIVE_KEY"
    })
    .await;
    assert_eq!(kids(&gateway).await, Ok(0));
    assert!(gateway.stop().success());
    done(replicas.site.run(&["audit", "verify"]));
}
