//! Three times what the device can take: how much of its best is still signed, what the refused are told, and what it costs.
//! The ratio is a figure and no assertion, since a busy machine would make it one of luck. `TRIALS=200` measures for longer.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    fairness::{CAPACITY, site_with},
    harness::{Caller, Gateway, Quote, reason, wait},
};

/// How many callers there are; each is offered an equal part of the load.
const CALLERS: u32 = 6;

/// What became of a load.
#[derive(Default)]
struct Load {
    signed: AtomicU32,
    refused: AtomicU32,
}

/// Offers `rate` new quotes a second for a time, whatever becomes of them. Gives what became of them, and how many were signed
/// in a second.
async fn offer(callers: &[Caller], rate: u32, lasts: Duration) -> (Arc<Load>, f64) {
    let (load, began) = (Arc::new(Load::default()), Instant::now());
    let mut pace = tokio::time::interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut calls = JoinSet::new();
    for caller in callers.iter().cycle() {
        pace.tick().await;
        if began.elapsed() > lasts {
            break;
        }
        let (caller, load) = (caller.clone(), load.clone());
        calls.spawn(async move {
            match caller.sign(&Quote::number(1).without("quote_sequence")).await {
                Ok(_) => load.signed.fetch_add(1, Ordering::Relaxed),
                Err(status) => {
                    assert_eq!(reason(&status), "OVERLOADED", "{status}");
                    assert!(!wait(&status).is_zero(), "the refused are told when to come again");
                    load.refused.fetch_add(1, Ordering::Relaxed)
                }
            };
        });
        while calls.try_join_next().is_some() {}
    }
    calls.join_all().await;
    let signed = f64::from(load.signed.load(Ordering::Relaxed));
    (load, signed / began.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_times_what_the_device_takes_is_refused_honestly_and_costs_little_of_its_best() {
    let lasts = Duration::from_millis(env::var("TRIALS").map_or(3_000, |trials| trials.parse::<u64>().unwrap() * 150));
    let names: Vec<_> = (0..CALLERS).map(|at| format!("load-{at}")).collect();
    let (site, _shim) = site_with(&names);
    let gateway = site.serve().await;
    let mut callers = Vec::new();
    for name in &names {
        callers.push(gateway.quotes(name).await);
    }
    offer(&callers, CAPACITY / 2, Duration::from_secs(1)).await;
    let before = last(&gateway).await;
    let (kept, best) = offer(&callers, CAPACITY * 19 / 20, lasts).await;
    let memory_before = gateway.rss_kib();
    let (load, goodput) = offer(&callers, CAPACITY * 3, lasts).await;
    let grown = gateway.rss_kib().saturating_sub(memory_before);
    let count = |load: &Load| load.signed.load(Ordering::Relaxed);
    let refused = load.refused.load(Ordering::Relaxed);
    println!(
        "best {best:.1}/s; at three times {goodput:.1}/s ({:.2} of it), {refused} of {} refused; memory +{grown} KiB",
        goodput / best,
        refused + count(&load)
    );
    assert!(refused > count(&load), "the load was to be more than the device takes");
    // A number is taken for each signature and for nothing else.
    assert_eq!(last(&gateway).await - before, u64::from(count(&kept) + count(&load)));
    assert!(grown < 128 * 1024, "{grown} KiB");

    // Honest: whoever comes again when told, once the flood is over, is served.
    let mut flood = JoinSet::new();
    for caller in callers.iter().cycle().take(120) {
        let caller = caller.clone();
        flood.spawn(async move {
            let quote = Quote::number(1).without("quote_sequence");
            let mut told = Vec::new();
            // Refused ones come again at their time, not all at once: each is let in after a few times at most.
            while let Err(status) = caller.sign(&quote).await {
                assert_eq!(reason(&status), "OVERLOADED", "{status}");
                told.push(wait(&status));
                tokio::time::sleep(wait(&status)).await;
            }
            told
        });
    }
    let told: Vec<_> = flood.join_all().await.into_iter().filter(|told| !told.is_empty()).collect();
    let mut times: Vec<_> = told.iter().map(Vec::len).collect();
    times.sort_unstable();
    println!(
        "{} of 120 at once were told to come again, the median {:?} times",
        told.len(),
        times.get(times.len() / 2)
    );
    assert!(!told.is_empty() && *times.last().unwrap() <= 12, "{times:?}");
}

/// The last number taken; the callers' own calls count on nothing else.
async fn last(gateway: &Gateway) -> u64 {
    gateway.quotes("operator").await.last().await
}
