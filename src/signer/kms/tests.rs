//! KMS without a KMS: what an order meets on its way, and what opens and closes a key, with a client of our own below.
//! Over the wire it is tested in `tests/kms/`.

use tokio::{task::JoinHandle, time::sleep};

use super::{
    client::Signed,
    fake::{ARN, Fake, REGION},
    fault::{Fault, Kind},
    *,
};
use crate::{
    jws::SigningInput,
    signer::{Attributes, Flow, Order, Signature},
};

const SOON: Duration = Duration::from_secs(20);

struct Site {
    fake: Arc<Fake>,
    kms: Kms,
    signer: Arc<dyn Signer>,
}

fn site(change: impl FnOnce(&mut KmsConfig, &Fake)) -> Site {
    let mut config = KmsConfig {
        name: "kms-eu".to_owned(),
        region: REGION.to_owned(),
        endpoint: None,
        concurrency: 2,
        requests_per_second: 10_000,
        queue_max: 4,
        connect_timeout: Duration::from_millis(100),
        attempt_timeout: Duration::from_millis(100),
        call_timeout: Duration::from_millis(300),
        check_interval: Duration::from_mins(5),
        probe_interval: Duration::from_mins(5),
        environment: None,
    };
    let fake = Arc::new(Fake::new());
    change(&mut config, &fake);
    let share = Arc::new(Share::new(config.requests_per_second));
    let kms = Kms::start_with(config, share, Arc::clone(&fake) as Arc<dyn Client>);
    let public = Arc::new(fake.public());
    let signer = kms.key(Pinned { public, locator: ARN.to_owned(), attributes: Attributes::Require }).unwrap();
    Site { fake, kms, signer }
}

impl Site {
    async fn serving(self) -> Self {
        self.becomes(|health| *health == Health::Serving).await;
        self
    }

    async fn becomes(&self, fits: impl Fn(&Health) -> bool) {
        let since = Instant::now();
        while !fits(&self.signer.health()) {
            assert!(since.elapsed() < SOON, "{:?}", self.signer.health());
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn order(&self, time: Duration) -> (JoinHandle<Result<Signature, SignError>>, CancellationToken) {
        let order = Order::new(Flow(1), Instant::now() + time);
        let (signer, gone) = (Arc::clone(&self.signer), order.gone.clone());
        (tokio::spawn(async move { signer.sign(&SigningInput::fresh_probe(), &order).await }), gone)
    }

    async fn signs(&self) -> Result<Signature, SignError> {
        self.order(SOON).0.await.unwrap()
    }

    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !holds(self) {
            assert!(since.elapsed() < SOON);
            sleep(Duration::from_millis(1)).await;
        }
    }
}

fn failed(_: Signed) -> Result<Signed, Fault> {
    Err(Fault::new(Kind::Failed, "no luck"))
}

#[tokio::test]
async fn an_order_taken_back_before_it_begins_is_dropped_and_a_call_that_has_begun_is_not_torn() {
    let site = site(|_, _| ()).serving().await;
    let gate = site.fake.gate();
    let before = site.fake.signs();
    let begun: Vec<_> = (0..2).map(|_| site.order(SOON)).collect();
    site.until(|site| site.fake.signs() == before + 2).await;
    let (waits, gone) = site.order(SOON);
    site.until(|site| site.kms.turns().usage().waiting == 1).await;
    gone.cancel();
    assert_eq!(waits.await.unwrap(), Err(SignError::Gone));
    for (call, gone) in begun {
        gone.cancel();
        call.abort();
        gate.notify_one();
    }
    site.until(|site| site.kms.turns().usage().busy == 0).await;
    assert_eq!(site.fake.signs(), before + 2);
    assert_eq!(site.signer.health(), Health::Serving);
}

#[tokio::test]
async fn no_more_orders_wait_than_may() {
    let site = site(|_, _| ()).serving().await;
    let gate = site.fake.gate();
    let orders: Vec<_> = (0..7).map(|_| site.order(Duration::from_secs(2)).0).collect();
    site.until(|_| orders.iter().any(JoinHandle::is_finished)).await;
    for _ in 0..100 {
        gate.notify_waiters();
        sleep(Duration::from_millis(2)).await;
    }
    let mut outcomes = Vec::new();
    for order in orders {
        outcomes.push(order.await.unwrap());
    }
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 6);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Err(SignError::Full)).count(), 1);
}

#[tokio::test]
async fn orders_with_too_little_time_do_not_take_the_key_from_others() {
    let site = site(|_, _| ()).serving().await;
    let _gate = site.fake.gate();
    for _ in 0..2 * breaker::FAULTS_MAX {
        assert_eq!(site.order(Duration::from_millis(20)).0.await.unwrap(), Err(SignError::TimedOut));
    }
    assert_eq!(site.signer.health(), Health::Serving);
    for _ in 0..breaker::FAULTS_MAX {
        assert_eq!(site.order(Duration::from_millis(150)).0.await.unwrap(), Err(SignError::TimedOut));
    }
    site.becomes(|health| matches!(health, Health::NotServing(why) if why.contains("did not answer `Sign`"))).await;
}

#[tokio::test]
async fn faults_one_after_another_open_it_and_what_was_let_in_before_cannot_close_it() {
    let site = site(|_, _| ()).serving().await;
    site.fake.answers(failed);
    for _ in 0..breaker::FAULTS_MAX {
        assert_eq!(site.signs().await, Err(SignError::Lost("no luck".to_owned())));
    }
    assert_eq!(site.signs().await, Err(SignError::Unavailable("no luck".to_owned())));
    // The key has to be enabled and a signature has to verify, both.
    site.fake
        .answers(|signed| Ok(Signed { signature: signed.signature.iter().map(|byte| byte ^ 1).collect(), ..signed }));
    site.becomes(|health| matches!(health, Health::NotServing(why) if why.contains("does not verify"))).await;
    assert!(matches!(site.signs().await, Err(SignError::Unfit(_))));
    site.fake.is_in_state("Disabled");
    site.fake.answers(Ok);
    site.becomes(|health| matches!(health, Health::NotServing(why) if why.contains("is disabled"))).await;
    site.fake.is_in_state("Enabled");
    site.serving().await.signs().await.unwrap();
}

#[tokio::test]
async fn it_waits_for_credentials_and_says_so() {
    let none = Fault::new(Kind::Credentials, "no AWS credentials");
    let site = site(|_, fake| fake.has_credentials(Err(none.clone())));
    site.becomes(|health| *health == Health::NotServing("no AWS credentials".to_owned())).await;
    assert_eq!(site.kms.health(), site.signer.health());
    assert_eq!(site.signs().await, Err(SignError::Unavailable("no AWS credentials".to_owned())));
    assert_eq!(site.fake.signs(), 0);
    site.fake.has_credentials(Ok(()));
    site.serving().await.signs().await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_let_go_is_looked_after_no_more_and_a_closed_kms_asks_nothing() {
    let Site { fake, kms, signer } =
        site(|config, _| config.probe_interval = Duration::from_millis(20)).serving().await;
    drop(signer);
    // A call under way may come yet.
    sleep(Duration::from_millis(100)).await;
    let before = fake.signs();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(fake.signs(), before);
    let public = Arc::new(fake.public());
    let signer = kms.key(Pinned { public, locator: ARN.to_owned(), attributes: Attributes::Require }).unwrap();
    kms.close().await;
    let before = fake.signs();
    assert_eq!(signer.health(), Health::NotServing(CLOSED.to_owned()));
    let order = Order::new(Flow(1), Instant::now() + SOON);
    let refused = signer.sign(&SigningInput::fresh_probe(), &order).await;
    assert_eq!(refused, Err(SignError::Unavailable(CLOSED.to_owned())));
    assert_eq!(fake.signs(), before);
}

/// The gateway looks at its keys with orders of its own, and those take no room that was given away.
#[tokio::test]
async fn a_key_is_not_looked_at_while_all_places_are_given_away() {
    let site = site(|config, _| {
        (config.concurrency, config.queue_max, config.probe_interval) = (1, 1, Duration::from_millis(1));
    });
    let site = site.serving().await;
    let before = site.fake.signs();
    site.until(|site| site.fake.signs() > before).await;
    let mut places = Vec::new();
    for flow in [Flow(1), Flow(2)] {
        let since = Instant::now();
        places.push(loop {
            match site.signer.turns().place(flow, Instant::now() + SOON) {
                Ok(place) => break place,
                Err(busy) => assert!(since.elapsed() < SOON, "{busy:?}"),
            }
            sleep(Duration::from_millis(1)).await;
        });
    }
    let before = site.fake.signs();
    sleep(PAUSE_MIN).await;
    assert_eq!(site.fake.signs(), before, "no test signature");
    for order in [site.order(SOON).0, site.order(SOON).0] {
        order.await.unwrap().unwrap();
    }
    drop(places);
    site.until(|site| site.fake.signs() > before + 2).await;
}

/// What waits for the share stands there in line by time. So only few may: the others wait for their turn, by caller.
#[tokio::test]
async fn a_flood_does_not_take_the_share_ahead_of_another_caller() {
    let site = site(|config, _| (config.concurrency, config.requests_per_second, config.queue_max) = (32, 100, 64));
    let site = site.serving().await;
    let flood: Vec<_> = (0..60).map(|_| site.order(SOON).0).collect();
    site.until(|site| site.fake.signs() > 10).await;
    let before = site.fake.signs();
    let order = Order::new(Flow(2), Instant::now() + SOON);
    site.signer.sign(&SigningInput::fresh_probe(), &order).await.unwrap();
    let ahead = site.fake.signs() - before;
    assert!(ahead <= 8, "{ahead} of the flood went first");
    for order in flood {
        order.await.unwrap().unwrap();
    }
}
