//! A key that two tokens hold: the first is asked, the second where the first is away, and the first again when it is
//! back; no caller sees the change. A token that holds another key under the label never signs for it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use quotesign::{
    jwk::PublicKey,
    jws::SigningInput,
    signer::{
        Attributes, Device, Flow, Health, Order,
        keyring::{Binding, BoundKey, Keyring},
        pkcs11::{Token, TokenConfig},
    },
};
use tokio::task::JoinSet;

use crate::backend::Backend;

const KID: &str = "quote-signing-shared";

fn keyring(tokens: [&Backend; 2], configs: [TokenConfig; 2], public: &Arc<PublicKey>) -> Keyring {
    let devices = ["first", "second"].into_iter().zip(configs).map(|(name, config)| {
        let device: Arc<dyn Device> = Arc::new(Token::start(config));
        (name.to_owned(), device)
    });
    let keyring = Keyring::new(devices.collect::<BTreeMap<_, _>>());
    let places = ["first", "second"].into_iter().zip(tokens);
    let places = places.map(|(name, backend)| (name.to_owned(), backend.locator(KID))).collect();
    keyring.bind([Binding { public: Arc::clone(public), places, attributes: Attributes::Warn }]).unwrap();
    keyring
}

async fn health_of(keyring: &Keyring, part: &str, fits: impl Fn(&Health) -> bool) -> Health {
    let since = Instant::now();
    loop {
        let health = keyring.health().into_iter().find(|(name, _)| name == part).unwrap().1;
        if fits(&health) {
            return health;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{part} stays {health:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Which replica signs now.
async fn replica(key: &BoundKey) -> usize {
    let input = SigningInput::fresh_probe();
    let order = Order::new(Flow(1), Instant::now() + Duration::from_secs(5));
    let (first, _place) = key.place(order.flow, order.deadline).unwrap();
    let given = key.sign(&input, &order, first).await.unwrap();
    assert_eq!(given.replica, first, "it has its place at one and is signed by another");
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_move_to_a_healthy_replica_and_come_back() {
    let tokens = [Backend::start("softhsm"), Backend::start("softhsm")];
    let pem = tokens[0].make_pem("shared.pem");
    for token in &tokens {
        token.import(&pem, KID);
    }
    let public = tokens[0].public_of(KID).await;
    let configs = [tokens[0].config(), tokens[1].config()];
    let keyring = keyring([&tokens[0], &tokens[1]], configs, &public);
    let [first, second] = ["first", "second"].map(|name| format!("key/{KID}/{name}"));
    for part in [&first, &second] {
        health_of(&keyring, part, |health| *health == Health::Serving).await;
    }
    let key = keyring.get(public.kid()).unwrap();
    assert_eq!(replica(&key).await, 0);

    let over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for flow in 1..=4 {
        let (key, public, over) = (Arc::clone(&key), Arc::clone(&public), Arc::clone(&over));
        callers.spawn(async move {
            let mut signed = [0; 2];
            while !over.load(Ordering::Relaxed) {
                let input = SigningInput::fresh_probe();
                let order = Order::new(Flow(flow), Instant::now() + Duration::from_secs(5));
                let (first, _place) = key.place(order.flow, order.deadline).expect("a caller found no place");
                let given = key.sign(&input, &order, first).await.expect("a caller saw the change");
                assert!(public.verifies(input.bytes(), given.signature.bytes()));
                signed[given.replica] += 1;
            }
            signed
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    tokens[0].script("break");
    health_of(&keyring, &first, |health| matches!(health, Health::NotServing(_))).await;
    assert_eq!(replica(&key).await, 1);
    assert_eq!(keyring.key_health(public.kid()), Some(Health::Serving), "the key serves as long as one replica does");
    tokens[0].script("mend");
    health_of(&keyring, &first, |health| *health == Health::Serving).await;
    assert_eq!(replica(&key).await, 0, "requests come back");
    over.store(true, Ordering::Relaxed);
    let signed = callers.join_all().await;
    assert!(signed.iter().all(|[first, second]| *first > 0 && *second > 0), "{signed:?}");
    keyring.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_holds_another_key_is_refused_there_alone() {
    let tokens = [Backend::start("softhsm"), Backend::start("softhsm")];
    for token in &tokens {
        token.import(&token.make_pem("own.pem"), KID);
    }
    let public = tokens[0].public_of(KID).await;
    let configs = [tokens[0].config(), tokens[1].config()];
    let keyring = keyring([&tokens[0], &tokens[1]], configs, &public);
    let unfit =
        |health: &Health| matches!(health, Health::NotServing(why) if why.contains("not the key that policy pins"));
    health_of(&keyring, &format!("key/{KID}/second"), unfit).await;
    health_of(&keyring, &format!("key/{KID}"), |health| *health == Health::Serving).await;
    assert_eq!(replica(&keyring.get(public.kid()).unwrap()).await, 0);
    keyring.close().await;
}

/// A module in which every call hangs holds the sessions that stand in too, as they are opened: that is seen, and no
/// order waits there for longer than a call may take.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_module_hangs_in_every_call_is_left_for_the_other() {
    let tokens = [Backend::start("softhsm"), Backend::start("softhsm")];
    let pem = tokens[0].make_pem("shared.pem");
    for token in &tokens {
        token.import(&pem, KID);
    }
    let public = tokens[0].public_of(KID).await;
    let call_timeout = Duration::from_millis(400);
    let hanging = TokenConfig { sessions: 2, call_timeout, ..tokens[0].disturbed() };
    let keyring = keyring([&tokens[0], &tokens[1]], [hanging, tokens[1].config()], &public);
    let [first, second] = ["first", "second"].map(|name| format!("key/{KID}/{name}"));
    for part in [&first, &second] {
        health_of(&keyring, part, |health| *health == Health::Serving).await;
    }
    let key = keyring.get(public.kid()).unwrap();
    assert_eq!(replica(&key).await, 0);

    tokens[0].rules("C_Sign hang-forever\nC_OpenSession hang-forever");
    let since = Instant::now();
    let serves = || keyring.health().into_iter().any(|(name, health)| name == first && health == Health::Serving);
    while serves() {
        assert!(since.elapsed() < Duration::from_secs(30), "it stays in service");
        let input = SigningInput::fresh_probe();
        let order = Order::new(Flow(1), Instant::now() + Duration::from_secs(5));
        let given = key.sign(&input, &order, 0).await.unwrap();
        assert!(public.verifies(input.bytes(), given.signature.bytes()));
    }
    assert_eq!(replica(&key).await, 1);
    tokens[0].rules("");
    health_of(&keyring, &first, |health| *health == Health::Serving).await;
    assert_eq!(replica(&key).await, 0);
    keyring.close().await;
}
