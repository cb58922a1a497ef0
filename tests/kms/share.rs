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
