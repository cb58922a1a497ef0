//! The contract of a device, against every module. What one of them cannot do is said where its test begins.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use quotesign::{
    jwk::PublicKey,
    jws::SigningInput,
    signer::{
        Attributes, Device, Flow, Health, Order, Signer,
        keyring::{Binding, Keyring},
        pkcs11::Token,
        provision::{Provision as _, ProvisionError},
    },
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;

use crate::{
    backend::{Backend, hosts_of, new_key},
    contract,
};

/// Within this a device that is back must sign again: far more than it takes, so that a busy machine fails nobody.
const BACK: Duration = Duration::from_secs(20);

/// What a module can do beside what all of them must.
struct Can {
    /// `break` and `mend` take the device away and bring it back.
    go_away: bool,
    /// A key that another process has made is seen by one that was there before.
    see_new_keys: bool,
    bits: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn softhsm() {
    suite("softhsm", Can { go_away: true, see_new_keys: true, bits: 3072 }).await;
}

/// Remoting: the module is a client of a server that holds the token.
#[tokio::test(flavor = "multi_thread")]
async fn p11_kit() {
    suite("p11-kit", Can { go_away: true, see_new_keys: true, bits: 3072 }).await;
}

/// There can be one such token on a machine, and it wants root: elsewhere it is not run, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn opencryptoki() {
    if !rustix::process::geteuid().is_root() {
        // Past the harness, which keeps to itself what a test prints that passes.
        writeln!(io::stderr(), "opencryptoki: not run, its token needs root").unwrap();
        return;
    }
    suite("opencryptoki", Can { go_away: false, see_new_keys: true, bits: 3072 }).await;
}

/// A TPM in software.
#[tokio::test(flavor = "multi_thread")]
async fn tpm2() {
    suite("tpm2", Can { go_away: true, see_new_keys: false, bits: 3072 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kryoptic() {
    suite("kryoptic", Can { go_away: false, see_new_keys: true, bits: 3072 }).await;
}

async fn suite(name: &'static str, can: Can) {
    let backend = Backend::start(name);
    let (first, second) = (provisions(&backend, &can).await, backend.generate("quote-signing-b", 2048).await);
    let token = Arc::new(Token::start(backend.config()));
    let key = backend.bound(&token, &first, "quote-signing-a");
    contract::comes_to_serve(&*key).await;
    contract::a_signature_verifies_with_the_pinned_key(&*key).await;
    contract::the_same_input_gets_the_same_signature(&*key).await;
    contract::an_order_that_is_late_or_taken_back_is_refused(&*key).await;
    contract::many_orders_of_many_flows_are_done_side_by_side(&key, 64).await;
    contract::distrust_takes_it_out_of_service_until_a_test_signature_verifies(&*key).await;
    openssl_agrees(&backend, &*key).await;
    let other = Arc::clone(&second);
    contract::a_key_pinned_to_another_public_half_is_unfit(&*token, &backend.locator("quote-signing-a"), other).await;
    contract::a_locator_of_another_kind_is_refused(
        &*token,
        &first,
        "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    );
    let twin = backend.bound(&token, &second, "quote-signing-b");
    contract::comes_to_serve(&*twin).await;
    contract::a_signature_verifies_with_the_pinned_key(&*twin).await;
    missing(&backend, &token, can.see_new_keys).await;
    assert_eq!(token.generation(), 1, "one key's faults disturbed the others");

    killed(&backend, &token, &key).await;
    if can.go_away {
        away_and_back(&backend, &token, &*key).await;
    }
    contract::a_closed_device_refuses_and_says_so(&*token, &*key).await;
    assert_eq!(hosts_of(&backend.home()), Vec::<i32>::new(), "a process is left behind");
    wrong_pin(&backend, &first).await;
}

/// What commands ask of it.
async fn provisions(backend: &Backend, can: &Can) -> Arc<PublicKey> {
    let commands = backend.provisioner();
    let public = backend.generate("quote-signing-a", can.bits).await;
    assert_eq!(public.bits(), usize::try_from(can.bits).unwrap());
    let again = commands.generate(&new_key("quote-signing-a", 2048)).await;
    assert_eq!(again.unwrap_err(), ProvisionError::Exists("quote-signing-a".to_owned()));
    let small = commands.generate(&new_key("quote-signing-small", 1024)).await.unwrap_err();
    assert!(matches!(&small, ProvisionError::Invalid(why) if why.contains("2048 to 8192")), "{small}");
    let listed = commands.list().await.unwrap();
    let [only] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((only.name.as_deref(), only.bits), (Some("quote-signing-a"), Some(can.bits)));
    assert_eq!((only.thumbprint.clone(), only.unfit.clone()), (Some(public.thumbprint()), None));
    let tried = commands.try_out(public.kid(), &only.locator, Attributes::Require).await.unwrap();
    assert!(tried.public.same_key(public.modulus(), public.exponent()));
    let nowhere = commands.try_out(public.kid(), &backend.locator("nowhere"), Attributes::Require).await;
    assert!(matches!(nowhere.unwrap_err(), ProvisionError::Missing(_)));
    public
}

async fn missing(backend: &Backend, token: &Token, see_new_keys: bool) {
    let elsewhere = backend.generate("quote-signing-elsewhere", 2048).await;
    let key = backend.bound(token, &elsewhere, "quote-signing-later");
    contract::comes_not_to_serve(&*key, "object=quote-signing-later").await;
    if see_new_keys {
        backend.generate("quote-signing-later", 2048).await;
        contract::comes_not_to_serve(&*key, "it is not the key that policy pins").await;
    }
}

/// openssl, which knows nothing of this code, takes a signature for good, and none over other bytes.
async fn openssl_agrees(backend: &Backend, key: &dyn Signer) {
    let (input, signature) = contract::sign(key).await.unwrap();
    let [pem, data, other, sig] = ["key.pem", "data", "other", "sig"].map(|name| backend.file(name));
    fs::write(&pem, pem_of(key.public_key())).unwrap();
    fs::write(&data, input.bytes()).unwrap();
    fs::write(&other, [input.bytes(), b"x"].concat()).unwrap();
    fs::write(&sig, signature.bytes()).unwrap();
    for (data, verifies) in [(&data, true), (&other, false)] {
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-verify"]).arg(&pem).arg("-signature").arg(&sig).arg(data);
        assert_eq!(openssl.output().unwrap().status.success(), verifies);
    }
}

/// The key as `SubjectPublicKeyInfo` (RFC 8017 appendix A.1.1, RFC 3279 section 2.3.1).
fn pem_of(key: &PublicKey) -> String {
    let tagged = |tag: u8, body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[tag, 0x82, length[0], length[1]], body].concat()
    };
    let integer = |bytes: &[u8]| tagged(0x02, &[&[0], bytes].concat());
    let rsa = tagged(0x30, &[integer(key.modulus()), integer(key.exponent())].concat());
    let algorithm = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00".as_slice();
    let spki = tagged(0x30, &[algorithm, &tagged(0x03, &[&[0], &rsa[..]].concat())].concat());
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(spki))
}

/// The process of the module is killed while orders are with it: a key that was lost under an order signs it all the
/// same, by the process that comes next.
async fn killed(backend: &Backend, token: &Arc<Token>, key: &Arc<dyn Signer>) {
    let device: Arc<dyn Device> = Arc::<Token>::clone(token);
    let ring = Keyring::new(BTreeMap::from([("token".to_owned(), device)]));
    let (public, attributes) = (Arc::clone(key.public_key()), Attributes::Require);
    let places = vec![("token".to_owned(), backend.locator("quote-signing-a"))];
    ring.bind([Binding { public: Arc::clone(&public), places, attributes }]).unwrap();
    let bound = ring.get(public.kid()).unwrap();
    contract::wait_for(&**key, |_| bound.health() == Health::Serving).await;

    let over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for flow in 1..=4 {
        let (bound, public, over) = (Arc::clone(&bound), Arc::clone(&public), Arc::clone(&over));
        callers.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let input = SigningInput::fresh_probe();
                let order = Order::new(Flow(flow), Instant::now() + BACK);
                let given = bound.sign(&input, &order, 0).await.expect("an order was lost with the process");
                assert!(public.verifies(input.bytes(), given.signature.bytes()));
            }
        });
    }
    contract::wait_for(&**key, |_| token.turns().usage().busy > 0).await;
    let before = token.generation();
    let [host] = hosts_of(&backend.home())[..] else { panic!("not one host process") };
    kill_process(Pid::from_raw(host).unwrap(), Signal::KILL).unwrap();
    let killed = Instant::now();
    contract::wait_for(&**key, |_| token.generation() > before).await;
    contract::comes_to_serve(&**key).await;
    contract::a_signature_verifies_with_the_pinned_key(&**key).await;
    println!("{}: {} ms after its process was killed", backend.config().name, killed.elapsed().as_millis());
    over.store(true, Ordering::Relaxed);
    callers.join_all().await;
}

async fn away_and_back(backend: &Backend, token: &Token, key: &dyn Signer) {
    backend.script("break");
    contract::wait_for(key, |health| matches!(health, Health::NotServing(_))).await;
    assert!(contract::sign(key).await.is_err());
    contract::wait_for(key, |_| matches!(token.health(), Health::NotServing(_))).await;
    let Health::NotServing(why) = token.health() else { panic!("the token is well without its device") };
    tokio::time::sleep(Duration::from_millis(500)).await;
    backend.script("mend");
    let mended = Instant::now();
    contract::comes_to_serve(key).await;
    contract::a_signature_verifies_with_the_pinned_key(key).await;
    assert!(mended.elapsed() < BACK, "it took {:?} to sign again", mended.elapsed());
    println!("{}: {} ms after its return; away it said: {why}", backend.config().name, mended.elapsed().as_millis());
}

async fn wrong_pin(backend: &Backend, public: &Arc<PublicKey>) {
    let config = backend.config();
    fs::write(backend.file("wrong-pin"), "11112222\n").unwrap();
    let pin = quotesign::signer::pkcs11::Pin::File(backend.file("wrong-pin"));
    let token = Token::start(quotesign::signer::pkcs11::TokenConfig { pin, ..config });
    let key = backend.bound(&token, public, "quote-signing-a");
    contract::comes_not_to_serve(&*key, "refuses the PIN").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(token.generation(), 1, "a refused PIN was tried again");
    contract::comes_not_to_serve(&*key, "refuses the PIN").await;
    token.close().await;
}
