//! What every signer and every device keeps, whichever kind it is. Each check takes a key that is bound and may serve,
//! and says by its name what must hold.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quotesign::{
    jwk::PublicKey,
    jws::SigningInput,
    signer::{Attributes, Device, Flow, Health, Order, Pinned, SignError, Signature, Signer},
};
use tokio::time::sleep;

/// How long anything may take that comes by itself.
const SOON: Duration = Duration::from_secs(30);
const CALLER: Flow = Flow(1);

pub fn order() -> Order {
    Order::new(CALLER, Instant::now() + Duration::from_secs(10))
}

pub async fn sign(signer: &dyn Signer) -> Result<(SigningInput, Signature), SignError> {
    let input = SigningInput::fresh_probe();
    let signature = signer.sign(&input, &order()).await?;
    Ok((input, signature))
}

/// Waits for a health that fits.
pub async fn wait_for(signer: &dyn Signer, fits: impl Fn(&Health) -> bool) -> Health {
    let since = Instant::now();
    loop {
        let health = signer.health();
        if fits(&health) {
            return health;
        }
        assert!(since.elapsed() < SOON, "still {health:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub async fn comes_to_serve(signer: &dyn Signer) {
    wait_for(signer, |health| *health == Health::Serving).await;
}

/// Waits until the key is not serving for this reason, and gives the whole text.
pub async fn comes_not_to_serve(signer: &dyn Signer, reason: &str) -> String {
    let fits = |health: &Health| matches!(health, Health::NotServing(why) if why.contains(reason));
    match wait_for(signer, fits).await {
        Health::NotServing(why) => why,
        health => panic!("{health:?}"),
    }
}

pub async fn a_signature_verifies_with_the_pinned_key(signer: &dyn Signer) {
    let (input, signature) = sign(signer).await.unwrap();
    let key = signer.public_key();
    assert_eq!(signature.bytes().len(), key.modulus().len());
    assert!(key.verifies(input.bytes(), signature.bytes()));
    assert!(!key.verifies(SigningInput::fresh_probe().bytes(), signature.bytes()));
}

pub async fn the_same_input_gets_the_same_signature(signer: &dyn Signer) {
    let input = SigningInput::fresh_probe();
    let first = signer.sign(&input, &order()).await.unwrap();
    assert_eq!(signer.sign(&input, &order()).await.unwrap(), first);
}

pub async fn an_order_that_is_late_or_taken_back_is_refused(signer: &dyn Signer) {
    let input = SigningInput::fresh_probe();
    let late = Order::new(CALLER, Instant::now());
    assert_eq!(signer.sign(&input, &late).await, Err(SignError::TimedOut));
    let taken_back = order();
    taken_back.gone.cancel();
    assert_eq!(signer.sign(&input, &taken_back).await, Err(SignError::Gone));
}

pub async fn many_orders_of_many_flows_are_done_side_by_side(signer: &Arc<dyn Signer>, count: u64) {
    let orders = (0..count).map(|at| {
        let signer = Arc::clone(signer);
        tokio::spawn(async move {
            let input = SigningInput::fresh_probe();
            let order = Order::new(Flow(1 + at % 5), Instant::now() + SOON);
            let signature = signer.sign(&input, &order).await.unwrap();
            assert!(signer.public_key().verifies(input.bytes(), signature.bytes()));
        })
    });
    for order in orders.collect::<Vec<_>>() {
        order.await.unwrap();
    }
    // A probe of the device's own may be under way.
    wait_for(&**signer, |_| (signer.turns().usage().busy, signer.turns().usage().waiting) == (0, 0)).await;
}

/// The key must be one whose test signatures verify at the time. A quick device may have given one before anybody
/// looks: then it is distrusted again, until it is seen out of service.
pub async fn distrust_takes_it_out_of_service_until_a_test_signature_verifies(signer: &dyn Signer) {
    let mut seen = false;
    for _ in 0..20 {
        signer.distrust("it does not verify");
        let health = signer.health();
        let signed = sign(signer).await;
        assert!(matches!(signed, Ok(_) | Err(SignError::Unavailable(_))), "{signed:?}");
        seen = signed.is_err() && matches!(health, Health::NotServing(why) if why.contains("it does not verify"));
        comes_to_serve(signer).await;
        if seen {
            break;
        }
    }
    assert!(seen, "it stays in service");
    a_signature_verifies_with_the_pinned_key(signer).await;
}

/// `locator` is that of a key that would serve if it were pinned.
pub async fn a_key_pinned_to_another_public_half_is_unfit(device: &dyn Device, locator: &str, other: Arc<PublicKey>) {
    let pinned = Pinned { public: other, locator: locator.to_owned(), attributes: Attributes::Require };
    let signer = device.key(pinned).unwrap();
    comes_not_to_serve(&*signer, "it is not the key that policy pins").await;
    assert!(matches!(sign(&*signer).await, Err(SignError::Unfit(_))));
}

pub fn a_locator_of_another_kind_is_refused(device: &dyn Device, public: &Arc<PublicKey>, locator: &str) -> String {
    let pinned = Pinned { public: Arc::clone(public), locator: locator.to_owned(), attributes: Attributes::Require };
    let said = device.key(pinned).err().unwrap();
    // What a right one looks like, or what to do with this one.
    let remedies = ["as in `pkcs11:", "write it as `arn:", "write the key's own ARN", "name the signer of that region"];
    assert!(remedies.iter().any(|remedy| said.contains(remedy)), "{said}");
    assert!(!said.contains('\n') && !said.ends_with('.'), "{said}");
    said
}

/// The last check, since the device is closed after it.
pub async fn a_closed_device_refuses_and_says_so(device: &dyn Device, signer: &dyn Signer) {
    device.close().await;
    assert!(matches!(sign(signer).await, Err(SignError::Unavailable(_))));
    assert!(!signer.health().takes_orders() && !device.health().takes_orders());
}
