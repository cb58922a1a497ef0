//! The share of the account's quota, as the proxy counts what comes.

use std::time::{Duration, Instant};

use quotesign::{
    jws::SigningInput,
    signer::{
        Device as _, Flow, Order, SignError,
        kms::{Kms, KmsConfig},
    },
};

use crate::{
    contract::comes_to_serve,
    harness::with_kms,
    proxy::{Fault, Rule},
};

const PER_SECOND: usize = 20;
/// What the network may push together that was sent apart.
const JITTER: usize = 2;

fn most_in_a_second(times: &[Instant]) -> usize {
    let within = |first: &Instant| {
        let second = *first..*first + Duration::from_secs(1);
        times.iter().filter(|time| second.contains::<Instant>(time)).count()
    };
    times.iter().map(within).max().unwrap_or_default()
}

with_kms! {
    async fn orders_beyond_the_share_wait_or_are_refused_at_once_and_none_goes_beyond(site) {
        let kms = Kms::start(KmsConfig { requests_per_second: 20, ..site.config() });
        let arn = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &arn).await;
        comes_to_serve(&*signer).await;
        let since = Instant::now();
        let orders: Vec<_> = (0..120).map(|at| {
            let signer = std::sync::Arc::clone(&signer);
            tokio::spawn(async move {
                let order = Order::new(Flow(1 + at % 3), since + Duration::from_secs(3));
                let answer = signer.sign(&SigningInput::fresh_probe(), &order).await;
                (answer, since.elapsed())
            })
        }).collect();
        let (mut signed, mut refused, mut late) = (0, 0, 0);
        for order in orders {
            match order.await.unwrap() {
                (Ok(_), _) => signed += 1,
                (Err(SignError::Full), after) => {
                    assert!(after < Duration::from_secs(3), "a refusal comes before the deadline, not at it");
                    refused += 1;
                }
                (Err(SignError::TimedOut), _) => late += 1,
                (Err(error), _) => panic!("{error}"),
            }
        }
        let times: Vec<_> = site.proxy.seen("Sign").iter().map(|seen| seen.at).collect();
        let most = most_in_a_second(&times);
        println!("  120 orders: {signed} signed, {refused} refused, {late} late; at most {most} in a second");
        assert!(most <= PER_SECOND + JITTER, "{most}");
        assert!((30..=3 * PER_SECOND + JITTER).contains(&signed), "{signed}");
        assert!(refused + late > 0);
    }

    async fn a_token_that_would_come_after_the_deadline_is_not_waited_for(site) {
        let kms = Kms::start(KmsConfig { requests_per_second: 1, ..site.config() });
        let arn = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &arn).await;
        comes_to_serve(&*signer).await;
        let mut refused = 0;
        for _ in 0..5 {
            let since = Instant::now();
            let order = Order::new(Flow(1), since + Duration::from_millis(400));
            if signer.sign(&SigningInput::fresh_probe(), &order).await == Err(SignError::Full) {
                assert!(since.elapsed() < Duration::from_millis(200));
                refused += 1;
            }
        }
        assert!(refused >= 3, "{refused}");
        assert!(kms.turns().usage().busy == 0 && signer.health().takes_orders(), "and nothing is held against the key");
    }

    /// A flood beside a caller at a tenth of the share. The ratio is told; what is held is how many orders of the flood
    /// an order of the other is behind: the one that has the next moment of the share, and one of those under way.
    async fn a_flood_keeps_nobody_waiting_behind_it(site) {
        let kms = Kms::start(KmsConfig { requests_per_second: 100, concurrency: 16, ..site.config() });
        let arn = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &arn).await;
        comes_to_serve(&*signer).await;
        // The emulator is next door; this is about what a signature takes from another machine.
        site.proxy.rules([Rule::always("Sign", Fault::Delay(Duration::from_millis(20)))]);
        let light = async |count: usize| {
            let (mut took, mut behind) = (Vec::new(), Vec::new());
            for _ in 0..count {
                let (since, before) = (Instant::now(), site.proxy.seen("Sign").len());
                let order = Order::new(Flow(2), since + Duration::from_secs(3));
                signer.sign(&SigningInput::fresh_probe(), &order).await.unwrap();
                took.push(since.elapsed());
                let gone = site.proxy.seen("Sign");
                behind.push(gone.iter().skip(before).filter(|seen| seen.at < since + took[took.len() - 1]).count());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            took.sort();
            behind.sort_unstable();
            (took[count / 2], took[count * 99 / 100], behind[count * 9 / 10])
        };
        let alone = light(40).await;
        let over = tokio_util::sync::CancellationToken::new();
        let flood: Vec<_> = (0..64).map(|_| {
            let (signer, over) = (std::sync::Arc::clone(&signer), over.clone());
            tokio::spawn(async move {
                while !over.is_cancelled() {
                    let order = Order::new(Flow(1), Instant::now() + Duration::from_secs(3));
                    drop(signer.sign(&SigningInput::fresh_probe(), &order).await);
                }
            })
        }).collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let beside = light(40).await;
        over.cancel();
        for order in flood {
            order.await.unwrap();
        }
        let ratio = |beside: Duration, alone: Duration| beside.as_secs_f64() / alone.as_secs_f64();
        println!(
            "  beside a flood: p50 {:.1} ms, {:.2} times that alone; p99 {:.1} ms, {:.2} times; 9 of 10 behind {} orders",
            beside.0.as_secs_f64() * 1e3, ratio(beside.0, alone.0),
            beside.1.as_secs_f64() * 1e3, ratio(beside.1, alone.1), beside.2,
        );
        // Its own request is counted too, and those that go while it is under way.
        assert!(beside.2 <= 8, "{}", beside.2);
    }

    /// Admission goes by what KMS takes for a signature; a request that hung says nothing of that.
    async fn a_request_that_hung_is_not_what_a_signature_takes(site) {
        let patience = Duration::from_millis(500);
        let kms = Kms::start(KmsConfig { attempt_timeout: patience, ..site.config() });
        let arn = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &arn).await;
        comes_to_serve(&*signer).await;
        site.proxy.rules([Rule::always("Sign", Fault::Hang).of(1, 2)]);
        let (since, before) = (Instant::now(), site.proxy.seen("Sign").len());
        for _ in 0..6 {
            let order = Order::new(Flow(1), Instant::now() + Duration::from_secs(4));
            signer.sign(&SigningInput::fresh_probe(), &order).await.unwrap();
        }
        assert!(site.proxy.seen("Sign").len() >= before + 12 && since.elapsed() >= 6 * patience, "each hung once");
        let service = kms.turns().service().unwrap();
        println!("  6 orders took {:?}, a signature {service:?}", since.elapsed());
        assert!(service < patience / 2, "{service:?}");
    }

    async fn what_the_sdk_sends_again_counts_too(site) {
        let kms = Kms::start(KmsConfig { requests_per_second: 20, ..site.config() });
        let arn = site.rsa_key(2048).await;
        let signer = site.bound(&kms, &arn).await;
        comes_to_serve(&*signer).await;
        site.proxy.rules([Rule::always("Sign", Fault::Error(400, "ThrottlingException")).of(1, 2)]);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(4) {
            let order = Order::new(Flow(1), Instant::now() + Duration::from_secs(2));
            signer.sign(&SigningInput::fresh_probe(), &order).await.unwrap();
        }
        let times: Vec<_> = site.proxy.seen("Sign").iter().map(|seen| seen.at).collect();
        let most = most_in_a_second(&times);
        println!("  with every other request throttled: at most {most} in a second");
        // A retry is booked when it has gone, so each of those under way may come on top.
        assert!(most <= PER_SECOND + JITTER + 8, "{most}");
    }
}
