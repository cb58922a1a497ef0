//! SIGKILL between every two steps of the path, and at random: no number has two payloads, no quote two JWS,
//! nothing that was acknowledged is lost, and whoever asks again is served.

use std::{
    env,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quotesign::{
    clock::{Clock as _, SystemClock},
    ledger::step::Stage,
};
use serde_json::json;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{Caller, PATIENCE, Quote, Site, reason, until},
    history::{Store, Told, faults},
};

/// A site whose gateway has `actions` at its failpoints. Threads that wait there must not stop the others.
fn site(actions: &str) -> Site {
    Site::new().with("FAILPOINTS", actions).with("TOKIO_WORKER_THREADS", "4")
}

/// How many ask at once while the gateway is killed.
pub const CALLERS: usize = 64;

fn is_reserved(stage: &Stage) -> bool {
    *stage == Stage::Reserved
}

fn is_signed(stage: &Stage) -> bool {
    matches!(stage, Stage::Signed { .. })
}

/// Serves again without failpoints, asks for every quote again, and holds all that was ever told against the
/// ledger. The quotes are all that were sent.
async fn recovers(mut site: Site, quotes: &[Quote], mut told: Vec<Told>) {
    let before: Vec<_> = quotes.iter().map(|quote| site.stage(quote)).collect();
    site.env.remove("FAILPOINTS");
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    for (quote, before) in quotes.iter().zip(before) {
        let signed = pricing.sign(quote).await.unwrap();
        assert_eq!(signed.replayed, before.as_ref().is_some_and(is_signed), "it was {before:?}");
        let again = pricing.sign(quote).await.unwrap();
        assert!(again.replayed && again.jws == signed.jws);
        told.extend([Told::signed(quote, &signed), Told::signed(quote, &again)]);
        let changed = quote.clone().with("subscription_id", json!("sub_other"));
        assert_eq!(reason(&pricing.sign(&changed).await.unwrap_err()), "QUOTE_CONFLICT");
        let rival = Quote::number(signed.sequence);
        assert_eq!(reason(&pricing.sign(&rival).await.unwrap_err()), "SEQUENCE_NOT_MONOTONIC");
    }
    let next = Quote::number(told.iter().map(|told| told.sequence).max().unwrap() + 1);
    told.push(Told::signed(&next, &pricing.sign(&next).await.unwrap()));
    assert!(gateway.stop().success());
    holds(&site, &told);
}

fn holds(site: &Site, told: &[Told]) {
    assert_eq!(faults(told, &Store::read(site)), Vec::<String>::new());
    let verified = site.run(&["audit", "verify"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}

/// Kills the gateway while one quote waits at `point` and another has gone past it.
async fn killed_in_the_path(point: &str) {
    let site = site(&format!("{point}=1*pause->off"));
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    let quotes = [Quote::number(1), Quote::number(2)];
    let call = |quote: &Quote| {
        let (pricing, quote) = (pricing.clone(), quote.clone());
        tokio::spawn(async move { pricing.sign(&quote).await })
    };
    let mut first = call(&quotes[0]);
    site.until_stage(&quotes[0], "the first quote is reserved", |_| true).await;
    let mut second = call(&quotes[1]);
    // Whichever came to the point first waits there.
    let (passed, answer) = tokio::select! {
        answer = &mut first => (0, answer),
        answer = &mut second => (1, answer),
    };
    let told = Told::signed(&quotes[passed], &answer.unwrap().unwrap());
    assert_eq!(site.stage(&quotes[1 - passed]), Some(Stage::Reserved), "it did not wait");
    gateway.kill();
    let lost = if passed == 0 { second } else { first }.await.unwrap().unwrap_err();
    assert!(reason(&lost).is_empty(), "{lost}");
    recovers(site, &quotes, vec![told]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_reserve_and_sign() {
    killed_in_the_path("pipeline::before-sign").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_sign_and_commit() {
    killed_in_the_path("pipeline::before-commit").await;
}

/// Whether somebody is in the midst of a transaction.
fn is_being_written(site: &Site) -> bool {
    let db = rusqlite::Connection::open(site.path("ledger.sqlite")).unwrap();
    db.busy_timeout(Duration::ZERO).unwrap();
    db.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_err()
}

/// Kills the gateway at the `nth` transaction after the four of its start (the kid, that it started, that the key is served and
/// that it is active), the first being the reservation and the second the commit, when `reached`; the quote is then at `stage`.
async fn killed_in_the_ledger(
    point: &str,
    nth: u32,
    reached: fn(&Site, &Quote) -> bool,
    stage: fn(Option<&Stage>) -> bool,
) {
    let site = site(&format!("{point}={}*off->pause", nth + 3));
    let gateway = site.serve().await;
    site.journalled("key.served", 1).await;
    site.journalled("key.turned", 1).await;
    let pricing = gateway.quotes("pricing").await;
    let quote = Quote::number(1);
    let call = tokio::spawn({
        let quote = quote.clone();
        async move { pricing.sign(&quote).await }
    });
    until("the gateway waits in its ledger", async || reached(&site, &quote)).await;
    gateway.kill();
    assert!(call.await.unwrap().is_err(), "an answer came before its commit");
    assert!(stage(site.stage(&quote).as_ref()), "{:?}", site.stage(&quote));
    recovers(site, &[quote], Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_reservation_is_committed() {
    killed_in_the_ledger("ledger::before-commit", 1, |site, _| is_being_written(site), |stage| stage.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_reservation_is_committed() {
    let reached = |site: &Site, quote: &Quote| site.stage(quote).is_some();
    killed_in_the_ledger("ledger::after-commit", 1, reached, |stage| stage.is_some_and(is_reserved)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_signature_is_committed() {
    let reached = |site: &Site, quote: &Quote| site.stage(quote).is_some() && is_being_written(site);
    killed_in_the_ledger("ledger::before-commit", 2, reached, |stage| stage.is_some_and(is_reserved)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_signature_is_committed_and_before_it_is_told() {
    let reached = |site: &Site, quote: &Quote| site.stage(quote).as_ref().is_some_and(is_signed);
    killed_in_the_ledger("ledger::after-commit", 2, reached, |stage| stage.is_some_and(is_signed)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_cancelled_with_its_device_is_signed_all_the_same_and_before_that_not_at_all() {
    for (point, is_kept) in [("pipeline::before-sign", false), ("pipeline::before-commit", true)] {
        let site = site(&format!("{point}=1*sleep(300)->off"));
        let gateway = site.serve().await;
        let pricing = gateway.quotes("pricing").await;
        let quote = Quote::number(1);
        let call = tokio::spawn({
            let (pricing, quote) = (pricing.clone(), quote.clone());
            async move { pricing.sign(&quote).await }
        });
        site.until_stage(&quote, "it is reserved", is_reserved).await;
        // Time to reach the point, where it stands for longer.
        tokio::time::sleep(Duration::from_millis(100)).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled(), "it was answered before it was cancelled");
        if is_kept {
            site.until_stage(&quote, "it is signed", is_signed).await;
        } else {
            site.journalled("quote.refused", 1).await;
            assert!(site.stage(&quote).as_ref().is_some_and(is_reserved), "it was signed for nobody");
        }
        let again = pricing.sign(&quote).await.unwrap();
        assert_eq!((again.replayed, again.sequence), (is_kept, 1), "{point}");
        assert!(gateway.stop().success());
        holds(&site, &[Told::signed(&quote, &again)]);
    }
}

/// `SplitMix64`: enough to choose moments by, and the same ones for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

pub fn number_from(variable: &str, otherwise: u64) -> u64 {
    env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// The seed that is given, or one of this moment.
pub fn seed_from() -> u64 {
    number_from("SEED", u64::try_from(SystemClock.now().millis()).unwrap())
}

/// Asks for a quote until it is told something for good.
async fn ask(quote: &Quote, gateway: &watch::Receiver<Caller>) -> Told {
    loop {
        let caller = gateway.borrow().clone();
        let status = match timeout(PATIENCE, caller.sign(quote)).await.expect("a call was never answered") {
            Ok(answer) => return Told::signed(quote, &answer),
            Err(status) => status,
        };
        match reason(&status).as_str() {
            "SEQUENCE_NOT_MONOTONIC" => return Told::refused(quote),
            // No reason at all: the gateway was killed.
            "" | "SIGNER_UNAVAILABLE" | "LEDGER_UNAVAILABLE" | "OVERLOADED" => {}
            _ => panic!("{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks for quote after quote with rising numbers: for the same quote twice at once, or for two that want the same
/// number.
async fn keep_asking(
    next: Arc<AtomicU64>,
    gateway: watch::Receiver<Caller>,
    told: Arc<Mutex<Vec<Told>>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let quote = Quote::number(number);
        let rival = if number.is_multiple_of(2) { Quote::number(number) } else { quote.clone() };
        let (first, second) = tokio::join!(ask(&quote, &gateway), ask(&rival, &gateway));
        told.lock().unwrap().extend([first, second]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_under_load_nothing_told_is_lost_and_no_number_is_used_twice() {
    let trials = number_from("TRIALS", 6).min(200);
    let seed = seed_from();
    println!("TRIALS={trials} SEED={seed}");
    let mut dice = Dice(seed);
    let points = ["pipeline::before-sign", "pipeline::before-commit", "ledger::before-commit", "ledger::after-commit"];
    let site = site(&points.map(|point| format!("{point}=5%sleep(10)")).join(";"));
    site.edit_policy(|policy| {
        for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            policy["quotas"][quota]["per_second"] = toml_edit::value(100_000);
            policy["quotas"][quota]["burst"] = toml_edit::value(100_000);
        }
    });
    let mut gateway = site.serve().await;
    let (publish, current) = watch::channel(gateway.quotes("pricing").await);
    let (next, told, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(keep_asking(next.clone(), current.clone(), told.clone(), stop.clone()));
    }
    for _ in 0..trials {
        tokio::time::sleep(Duration::from_millis(20 + dice.throw(400))).await;
        gateway.kill();
        if dice.throw(4) == 0 {
            let mut starting = site.command();
            starting.arg("serve").arg("--config").arg(site.config()).stderr(Stdio::null());
            let mut starting = starting.spawn().unwrap();
            tokio::time::sleep(Duration::from_millis(dice.throw(150))).await;
            starting.kill().unwrap();
            starting.wait().unwrap();
        }
        gateway = site.start();
        publish.send_replace(gateway.quotes("pricing").await);
    }
    gateway.signing().await;
    stop.cancel();
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    assert!(gateway.stop().success());
    let told = told.lock().unwrap();
    println!("{} answers for good, {} numbers", told.len(), next.load(Ordering::Relaxed) - 1);
    assert!(told.len() as u64 > trials, "too little happened to say anything");
    holds(&site, &told);
}
