//! One caller floods, another asks for a tenth of what the device gives: the second is never refused, and the first is
//! told when to come again. Prints what the second waits alone and beside the flood; the ratio is a figure and no
//! assertion, since a busy machine would make it one of luck. `TRIALS=200` measures for longer.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    faults::shim::Shim,
    harness::{Caller, Quote, Site, TRUST_DOMAIN, reason, toml, wait},
};

/// The device: four sessions, 40 ms for a signature, so 100 in a second: slow enough that a debug build is not what is measured.
const SESSIONS: u32 = 4;
const SERVICE: Duration = Duration::from_millis(40);
pub const CAPACITY: u32 = 100;

/// A site with this device, no quotas to speak of, and these callers beside those of every site.
pub fn site_with(callers: &[String]) -> (Site, Shim) {
    let site = Site::new();
    site.edit_signer("sessions", i64::from(SESSIONS).into());
    site.edit_signer("queue_max", 36.into());
    let id = |caller: &str| format!("spiffe://{TRUST_DOMAIN}/{caller}");
    site.edit_policy(|policy| {
        policy["partners"][0]["sequence"]["mode"] = toml_edit::value("assign");
        for quota in ["attempts_per_caller", "signed_per_partner", "signed_per_caller", "signed_per_key"] {
            policy["quotas"][quota] = toml("{ per_second = 100000, burst = 100000 }");
        }
        for caller in callers {
            let mut other = policy["callers"][0].clone();
            other["id"] = toml_edit::value(id(caller));
            policy["callers"].as_array_of_tables_mut().unwrap().push(other.into_table().unwrap());
        }
    });
    for caller in callers {
        site.admit(caller, &[&id(caller)], &[]);
    }
    let shim = Shim::before(&site);
    shim.rules(&format!("C_Sign delay {}", SERVICE.as_millis()));
    (site, shim)
}

/// Asks at an even pace, whatever the answers take; gives what each took, sorted.
async fn light(pricing: &Caller, asks: u32) -> Vec<Duration> {
    let mut pace = tokio::time::interval(Duration::from_secs(1) * 10 / CAPACITY);
    let mut calls = JoinSet::new();
    for _ in 0..asks {
        pace.tick().await;
        let pricing = pricing.clone();
        calls.spawn(async move {
            let began = Instant::now();
            pricing.sign(&Quote::number(1).without("quote_sequence")).await.unwrap();
            began.elapsed()
        });
    }
    let mut took = calls.join_all().await;
    took.sort();
    took
}

fn percentile(took: &[Duration], percent: usize) -> Duration {
    took[(took.len() * percent / 100).min(took.len() - 1)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_waits_behind_itself_and_leaves_another_caller_its_turn() {
    let trials: u32 = env::var("TRIALS").map_or(4, |trials| trials.parse().unwrap());
    let asks = (trials * 10).clamp(40, 600);
    let (site, _shim) = site_with(&["flood".to_owned()]);
    let gateway = site.serve().await;
    let pricing = gateway.quotes("pricing").await;
    light(&pricing, 20).await;
    let alone = light(&pricing, asks).await;

    let over = Arc::new(AtomicBool::new(false));
    let [signed, refused] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let mut flood = JoinSet::new();
    for _ in 0..48 {
        let caller = gateway.quotes("flood").await;
        let (over, signed, refused) = (over.clone(), signed.clone(), refused.clone());
        flood.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                match caller.sign(&Quote::number(1).without("quote_sequence")).await {
                    Ok(_) => drop(signed.fetch_add(1, Ordering::Relaxed)),
                    Err(status) => {
                        assert_eq!(reason(&status), "OVERLOADED");
                        assert!(!wait(&status).is_zero());
                        refused.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(wait(&status)).await;
                    }
                }
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    signed.store(0, Ordering::Relaxed);
    let began = Instant::now();
    let beside = light(&pricing, asks).await;
    let rate = signed.load(Ordering::Relaxed) as u128 * 1000 / began.elapsed().as_millis();
    over.store(true, Ordering::Relaxed);
    flood.join_all().await;
    assert!(refused.load(Ordering::Relaxed) > 0, "the flood was never told to come again");
    let told = |took: &[Duration]| (percentile(took, 50).as_millis(), percentile(took, 99).as_millis());
    let ratio = percentile(&beside, 99).as_secs_f64() / percentile(&alone, 99).as_secs_f64();
    println!(
        "{asks} asks, p50 and p99 in ms: alone {:?}, beside the flood {:?}; p99 ratio {ratio:.2}",
        told(&alone),
        told(&beside)
    );
    println!("the flood got {rate}/s of {CAPACITY}/s");
    assert!(gateway.stop().success());
}
