//! What is shown with SoftHSM alone: bounds, tokens that come late or stay away, keys that must not sign, and what a
//! reload keeps.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use quotesign::{
    jws::SigningInput,
    signer::{
        Attributes, Device, Flow, Health, Order, Pinned, SignError,
        keyring::{Binding, Keyring, KeyringError},
        pkcs11::{Token, TokenConfig},
        provision::{Provision as _, ProvisionError},
    },
};

use crate::{backend::Backend, contract};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once_and_loses_nothing() {
    let softhsm = Backend::start("softhsm");
    let public = softhsm.generate("quote-signing-a", 2048).await;
    let token = Token::start(TokenConfig { sessions: 1, queue_max: 1, ..softhsm.config() });
    let key = softhsm.bound(&token, &public, "quote-signing-a");
    contract::comes_to_serve(&*key).await;
    let orders: Vec<_> = (0..64)
        .map(|_| {
            let key = Arc::clone(&key);
            tokio::spawn(async move { contract::sign(&*key).await })
        })
        .collect();
    let (mut signed, mut full) = (0, 0);
    for order in orders {
        match order.await.unwrap() {
            Ok((input, signature)) => {
                assert!(public.verifies(input.bytes(), signature.bytes()));
                signed += 1;
            }
            Err(SignError::Full) => full += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(signed > 0 && full > 0, "{signed} signed, {full} refused");
    token.close().await;
}

/// The gateway looks at its keys with orders of its own, and those take no room that was given away.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_place_is_never_told_that_there_is_no_room_to_wait() {
    let softhsm = Backend::start("softhsm");
    let probe_interval = Duration::from_millis(1);
    // All are made before a look is taken at any: SoftHSM fails a login now and then while another process asks it
    // a thousand times a second.
    let mut publics = Vec::new();
    for kid in ["quote-signing-a", "quote-signing-b", "quote-signing-c", "quote-signing-d"] {
        publics.push((kid, softhsm.generate(kid, 3072).await));
    }
    let token = Token::start(TokenConfig { sessions: 1, queue_max: 2, probe_interval, ..softhsm.config() });
    let mut keys = Vec::new();
    for (kid, public) in &publics {
        keys.push(softhsm.bound(&token, public, kid));
        contract::comes_to_serve(&**keys.last().unwrap()).await;
    }
    let (begun, mut signed, mut probed) = (Instant::now(), 0, false);
    while begun.elapsed() < Duration::from_secs(3) {
        let order = Order::new(Flow(7), Instant::now() + Duration::from_secs(5));
        let Ok(_place) = keys[0].turns().place(order.flow, order.deadline) else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        probed |= keys[0].turns().usage().places > 1;
        keys[0].sign(&SigningInput::fresh_probe(), &order).await.unwrap();
        signed += 1;
    }
    assert!(signed > 10 && probed, "{signed} signed; keys were looked at meanwhile: {probed}");
    token.close().await;
}

/// The gateway may start before its token is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_late_is_found_and_a_missing_module_is_named() {
    let softhsm = Backend::start("softhsm");
    let public = softhsm.generate("quote-signing-a", 2048).await;
    softhsm.script("break");
    let token = Token::start(softhsm.config());
    let key = softhsm.bound(&token, &public, "quote-signing-a");
    contract::comes_not_to_serve(&*key, "configuration").await;
    softhsm.script("mend");
    contract::comes_to_serve(&*key).await;
    token.close().await;

    let module = PathBuf::from("/usr/lib/no-such-module.so");
    let token = Token::start(TokenConfig { module, ..softhsm.config() });
    let key = softhsm.bound(&token, &public, "quote-signing-a");
    contract::comes_not_to_serve(&*key, "/usr/lib/no-such-module.so").await;
    token.close().await;
    assert_eq!(token.health(), Health::NotServing("the token is closed".to_owned()));

    // The second is a process that says what is no answer.
    for (host, why) in [
        ("/nowhere/quotesign", "cannot start the module's host process"),
        ("yes", "the module's process wrote what is no answer"),
    ] {
        let token = Token::start(TokenConfig { host: PathBuf::from(host), ..softhsm.config() });
        let key = softhsm.bound(&token, &public, "quote-signing-a");
        contract::comes_not_to_serve(&*key, why).await;
        token.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_down_leaves_its_neighbour_alone() {
    let softhsm = Backend::start("softhsm");
    let public = softhsm.generate("quote-signing-a", 2048).await;
    let token = Token::start(softhsm.config());
    let key = softhsm.bound(&token, &public, "quote-signing-a");
    contract::comes_to_serve(&*key).await;
    let absent = Token::start(TokenConfig { token_label: "absent".to_owned(), ..softhsm.config() });
    let nowhere = softhsm.bound(&absent, &public, "quote-signing-a");
    contract::comes_not_to_serve(&*nowhere, "no token is labelled `absent`").await;
    let serial = Some("0000000000000000".to_owned());
    let other = Token::start(TokenConfig { token_serial: serial, ..softhsm.config() });
    let nowhere = softhsm.bound(&other, &public, "quote-signing-a");
    contract::comes_not_to_serve(&*nowhere, "with the serial number `0000000000000000`").await;
    assert_eq!(token.generation(), 1, "the token was disturbed");
    contract::a_signature_verifies_with_the_pinned_key(&*key).await;
    for token in [token, absent, other] {
        token.close().await;
    }
}

/// A key that was imported says so, and signs only where policy takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_could_have_left_its_token_is_unfit_unless_policy_relaxes() {
    let softhsm = Backend::start("softhsm");
    let pem = softhsm.make_pem("imported.pem");
    for label in ["quote-signing-x", "quote-signing-twin", "quote-signing-twin"] {
        softhsm.import(&pem, label);
    }
    let (kid, locator) = ("quote-signing-x".parse().unwrap(), softhsm.locator("quote-signing-x"));
    let commands = softhsm.provisioner();
    let refused = commands.try_out(&kid, &locator, Attributes::Require).await.unwrap_err();
    assert!(matches!(&refused, ProvisionError::Unfit(why) if why.contains("CKA_LOCAL")), "{refused}");
    let public = softhsm.public_of("quote-signing-x").await;
    let listed = commands.list().await.unwrap();
    assert!(listed.len() == 3 && listed.iter().all(|key| key.unfit.is_some()), "{listed:?}");

    let token = Token::start(softhsm.config());
    let bound = |locator: &str, attributes| {
        let (public, locator) = (Arc::clone(&public), locator.to_owned());
        token.key(Pinned { public, locator, attributes }).unwrap()
    };
    let key = bound(&locator, Attributes::Require);
    contract::comes_not_to_serve(&*key, "CKA_LOCAL").await;
    for attributes in [Attributes::Warn, Attributes::Off] {
        let key = bound(&locator, attributes);
        contract::comes_to_serve(&*key).await;
        contract::a_signature_verifies_with_the_pinned_key(&*key).await;
    }
    let twins = bound(&softhsm.locator("quote-signing-twin"), Attributes::Warn);
    contract::comes_not_to_serve(&*twins, "names 2 private keys").await;
    let elsewhere = bound("pkcs11:token=other;object=quote-signing-x", Attributes::Warn);
    contract::comes_not_to_serve(&*elsewhere, "`other`").await;
    token.close().await;
}

/// A key that was made on the token, and that the token gives out to whoever asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_generated_as_extractable_is_unfit() {
    let softhsm = Backend::start("softhsm");
    softhsm.generate_extractable("quote-signing-loose");
    let (kid, locator) = ("quote-signing-loose".parse().unwrap(), softhsm.locator("quote-signing-loose"));
    let commands = softhsm.provisioner();
    let refused = commands.try_out(&kid, &locator, Attributes::Require).await.unwrap_err().to_string();
    assert!(refused.contains("CKA_EXTRACTABLE") && !refused.contains("CKA_LOCAL"), "{refused}");
    let public = softhsm.public_of("quote-signing-loose").await;
    let token = Token::start(softhsm.config());
    let key = softhsm.bound(&token, &public, "quote-signing-loose");
    contract::comes_not_to_serve(&*key, "CKA_EXTRACTABLE").await;
    assert!(matches!(contract::sign(&*key).await, Err(SignError::Unfit(_))));
    token.close().await;
}

/// Whoever has so much signed at once is refused there, once, and disturbs nobody.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_for_a_token_is_refused_and_no_loss_of_the_token() {
    let softhsm = Backend::start("softhsm");
    let public = softhsm.generate("quote-signing-a", 2048).await;
    let probe_interval = Duration::from_mins(5);
    let token = Token::start(TokenConfig { probe_interval, ..softhsm.disturbed() });
    let key = softhsm.bound(&token, &public, "quote-signing-a");
    contract::comes_to_serve(&*key).await;
    softhsm.rules("C_Sign err CKR_DATA_LEN_RANGE times 1");
    let refused = contract::sign(&*key).await.unwrap_err();
    assert!(matches!(&refused, SignError::Unfit(why) if why.contains("DataLenRange")), "{refused}");
    assert_eq!(key.health(), Health::Serving);
    contract::a_signature_verifies_with_the_pinned_key(&*key).await;
    assert_eq!(token.generation(), 1, "it was taken for a loss of the token");
    token.close().await;
}

/// What somebody put into a locator by mistake is not told to whoever reads logs.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_in_a_locator_is_refused_and_not_told_back() {
    let softhsm = Backend::start("softhsm");
    let token = Token::start(softhsm.config());
    for attribute in ["pin-value", "pin-source", "module-path"] {
        let locator = format!("pkcs11:token=quotes;object=quote-signing-a?{attribute}=not-a-real-pin");
        let said = token.accepts(&locator).unwrap_err();
        assert!(said.contains(attribute) && !said.contains("not-a-real-pin"), "{said}");
        assert!(said.contains("belong to the gateway's config"), "{said}");
    }
    token.close().await;
}

/// A key that is not there yet serves once it is, whether or not another signs meanwhile, and disturbs nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_comes_late_serves_by_itself() {
    // Elsewhere first, so that its public half is known before it is on the token.
    let (elsewhere, softhsm) = (Backend::start("softhsm"), Backend::start("softhsm"));
    let pem = elsewhere.make_pem("late.pem");
    elsewhere.import(&pem, "quote-signing-late");
    let late = elsewhere.public_of("quote-signing-late").await;
    let other = softhsm.generate("quote-signing-a", 2048).await;
    for labels in [["quote-signing-first", "quote-signing-a"].as_slice(), &["quote-signing-second"]] {
        let token = Token::start(softhsm.config());
        let good = labels.get(1).map(|label| softhsm.bound(&token, &other, label));
        let key = token.key(Pinned { attributes: Attributes::Warn, ..softhsm.pinned(&late, labels[0]) }).unwrap();
        let why = contract::comes_not_to_serve(&*key, &format!("object={}", labels[0])).await;
        assert!(matches!(contract::sign(&*key).await, Err(SignError::Unavailable(said)) if said == why));
        softhsm.import(&pem, labels[0]);
        contract::comes_to_serve(&*key).await;
        contract::a_signature_verifies_with_the_pinned_key(&*key).await;
        if let Some(good) = good {
            contract::a_signature_verifies_with_the_pinned_key(&*good).await;
            assert_eq!(token.generation(), 1, "a missing key disturbed the others");
        }
        token.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyring_keeps_what_a_reload_does_not_change() {
    let softhsm = Backend::start("softhsm");
    let (a, b) = (softhsm.generate("quote-signing-a", 2048).await, softhsm.generate("quote-signing-b", 2048).await);
    let absent = TokenConfig { token_label: "absent".to_owned(), ..softhsm.config() };
    let devices = [("softhsm", softhsm.config()), ("absent", absent)].map(|(name, config)| {
        let device: Arc<dyn Device> = Arc::new(Token::start(config));
        (name.to_owned(), device)
    });
    let ring = Keyring::new(BTreeMap::from(devices));
    let of = |public: &Arc<quotesign::jwk::PublicKey>, signer: &str| Binding {
        public: Arc::clone(public),
        places: vec![(signer.to_owned(), softhsm.locator(public.kid().as_str()))],
        attributes: Attributes::Require,
    };
    ring.bind([of(&a, "softhsm"), of(&b, "softhsm")]).unwrap();
    let first = ring.get(a.kid()).unwrap();
    let since = Instant::now();
    while ring.key_health(a.kid()) != Some(Health::Serving) {
        assert!(since.elapsed() < Duration::from_secs(30), "{:?}", ring.health());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ring.bind([of(&a, "softhsm")]).unwrap();
    assert!(Arc::ptr_eq(&first, &ring.get(a.kid()).unwrap()), "the same signer, with its health");
    assert!(ring.get(b.kid()).is_none());
    // Its device goes on while another comes, and goes.
    let mut two = of(&a, "softhsm");
    two.places.insert(0, ("absent".to_owned(), softhsm.locator(a.kid().as_str())));
    for binding in [two, of(&a, "softhsm")] {
        ring.bind([binding.clone()]).unwrap();
        assert_eq!(ring.key_health(a.kid()), Some(Health::Serving), "{:?}", binding.places);
    }
    let first = ring.get(a.kid()).unwrap();
    let (kid, signer) = (b.kid().clone(), "other".to_owned());
    assert_eq!(ring.bind([of(&b, "other")]).unwrap_err(), KeyringError::UnknownSigner { kid, signer });
    assert_eq!(ring.bind([of(&b, "softhsm"), of(&b, "softhsm")]).unwrap_err(), KeyringError::Repeated(b.kid().clone()));
    let relaxed = Binding { attributes: Attributes::Warn, ..of(&a, "softhsm") };
    ring.bind([relaxed]).unwrap();
    assert!(!Arc::ptr_eq(&first, &ring.get(a.kid()).unwrap()), "what is asked of the key has changed");
    let input = SigningInput::fresh_probe();
    let order = Order::new(Flow(1), Instant::now() + Duration::from_secs(5));
    assert!(first.sign(&input, &order, 0).await.is_ok(), "who still holds the old one goes on");
    ring.close().await;
}

/// Only a test signature that began after a key was distrusted brings it back: one that was under way says nothing of
/// what came after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_from_before_does_not_undo_distrust() {
    const SLOW: Duration = Duration::from_millis(800);
    let softhsm = Backend::start("softhsm");
    let public = softhsm.generate("quote-signing-a", 2048).await;
    let token = Token::start(softhsm.disturbed());
    let key = softhsm.bound(&token, &public, "quote-signing-a");
    contract::comes_to_serve(&*key).await;
    softhsm.rules(&format!("C_Sign delay {}", SLOW.as_millis()));
    // The first that is seen may be one that is quick still; one that lasts is slow.
    let mut since = Instant::now();
    while since.elapsed() < SLOW / 4 {
        if token.turns().usage().busy == 0 {
            since = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let distrusted = Instant::now();
    key.distrust("it does not verify");
    contract::comes_to_serve(&*key).await;
    let after = distrusted.elapsed();
    assert!(after >= SLOW, "it serves after {after:?}, and no test signature since can have taken less than {SLOW:?}");
    token.close().await;
}

/// The token has another PIN, and is lost before the gateway's file has it: the old one is tried once, and the new one
/// when it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_was_changed_is_taken_up_without_a_restart() {
    let softhsm = Backend::start("softhsm");
    let public = softhsm.generate("quote-signing-a", 2048).await;
    let token = Token::start(softhsm.disturbed());
    let key = softhsm.bound(&token, &public, "quote-signing-a");
    contract::comes_to_serve(&*key).await;
    softhsm.rules("C_Login err CKR_PIN_INCORRECT\nC_SignInit logout times 1");
    contract::comes_not_to_serve(&*key, "refuses the PIN").await;
    softhsm.rules("");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(token.generation(), 1, "the same PIN was tried again");
    contract::comes_not_to_serve(&*key, "refuses the PIN").await;
    softhsm.change_pin("another-pin");
    contract::comes_to_serve(&*key).await;
    contract::a_signature_verifies_with_the_pinned_key(&*key).await;
    assert_eq!(token.generation(), 2);
    token.close().await;
}
