//! The token against a real module, `SoftHSM`. It reads its configuration from the environment of its process,
//! so each of these tests runs once more in a process of its own, with a directory of tokens of its own.

use std::{env, fs, io, path::Path, process::Command};

use cryptoki::{mechanism::Mechanism, object::Attribute};

use super::{
    device::{Access, Device},
    keygen::{KeygenError, generate, init_token},
    *,
};
use crate::{
    domain::Kid,
    signer::keyring::{Keyring, KeyringError},
};

const MODULES: [&str; 2] = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"];
const HOME: &str = "QUOTESIGN_TEST_SOFTHSM_HOME";
const LABEL: &str = "quotes";
const PIN: &str = "4711-0815";
const SOON: Duration = Duration::from_secs(10);

/// Tests that have a token labelled `quotes` and a runtime.
macro_rules! with_softhsm {
    ($($(#[$doc:meta])* async fn $name:ident($hsm:ident) $body:block)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            let Some(home) = env::var_os(HOME) else {
                return run_in_own_process(concat!(module_path!(), "::", stringify!($name)));
            };
            let $hsm = SoftHsm::new(Path::new(&home));
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async $body);
        }
    )*};
}

fn run_in_own_process(test: &str) {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("softhsm2.conf");
    let tokens = home.path().join("tokens");
    fs::create_dir(&tokens).unwrap();
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    fs::write(&config, text).unwrap();
    let test = test.split_once("::").unwrap().1;
    let run = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("SOFTHSM2_CONF", config)
        .env(HOME, home.path())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && out.contains("1 passed"), "{}\n{out}\n{err}", run.status);
    assert!(!out.contains(PIN) && !err.contains(PIN), "a PIN was printed");
}

struct SoftHsm {
    home: PathBuf,
    module: PathBuf,
}

impl SoftHsm {
    fn new(home: &Path) -> Self {
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(io::stderr).init();
        let module = MODULES.iter().map(PathBuf::from).find(|path| path.exists()).expect("SoftHSM is installed");
        let hsm = Self { home: home.to_owned(), module };
        init_token(&hsm.module, &"so-12345".into(), &PIN.into(), LABEL).unwrap();
        hsm
    }

    fn config(&self) -> TokenConfig {
        TokenConfig {
            name: "softhsm".to_owned(),
            module: self.module.clone(),
            token_label: LABEL.to_owned(),
            token_serial: None,
            pin: PIN.into(),
            sessions: 2,
            queue_max: 256,
            call_timeout: Duration::from_secs(5),
            probe_interval: Duration::from_millis(200),
            attributes: AttributePolicy::Require,
        }
    }

    fn generate(&self, label: &str) -> Arc<PublicKey> {
        Arc::new(generate(&self.config(), &kid(label), 2048).unwrap())
    }

    /// Makes a key past [`generate`] and its refusals.
    fn make_key(&self, label: &str, extractable: bool) -> Arc<PublicKey> {
        let config = self.config();
        let device = Device::reach(&config).unwrap();
        let session = device.session(Access::Write).unwrap();
        let name = Attribute::Label(label.as_bytes().to_vec());
        let public = [Attribute::Token(true), Attribute::ModulusBits(2048.into()), name.clone()];
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(!extractable),
            Attribute::Extractable(extractable),
            Attribute::Sign(true),
            name,
        ];
        let made = session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private).unwrap();
        let (modulus, exponent) = key::public_half(&session, made.0).unwrap();
        Arc::new(PublicKey::new(kid(label), &modulus, &exponent).unwrap())
    }

    fn tokens(&self) -> PathBuf {
        self.home.join("tokens")
    }

    fn away(&self) -> PathBuf {
        self.home.join("away")
    }
}

fn kid(text: &str) -> Kid {
    text.parse().unwrap()
}

fn locator(label: &str) -> Locator {
    Locator::parse(&format!("pkcs11:token={LABEL};object={label};type=private")).unwrap()
}

fn input(number: u8) -> SigningInput {
    SigningInput::of_quote(&kid("quote-signing-a"), &[number])
}

async fn sign(key: &dyn Signer, input: &SigningInput) -> Result<Signature, SignError> {
    key.sign(input, Instant::now() + SOON).await
}

async fn assert_signs(key: &dyn Signer) {
    let input = input(1);
    let Signature(signature) = sign(key, &input).await.unwrap();
    assert!(key.public_key().verifies(input.bytes(), &signature));
}

fn generation(token: &Token) -> u64 {
    match &**token.shared.state.load() {
        State::Up { generation, .. } => *generation,
        State::Down(why) => panic!("{why}"),
    }
}

/// Waits for a health that fits.
async fn until(health: impl Fn() -> Health, fits: impl Fn(&Health) -> bool) -> Health {
    let deadline = Instant::now() + SOON;
    loop {
        let now = health();
        if fits(&now) {
            return now;
        }
        assert!(Instant::now() < deadline, "it stays {now:?}");
        time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_serving(health: impl Fn() -> Health) {
    until(health, |health| *health == Health::Serving).await;
}

async fn until_down_with(text: &str, health: impl Fn() -> Health) {
    until(health, |health| matches!(health, Health::NotServing(why) if why.contains(text))).await;
}

with_softhsm! {
    async fn a_generated_key_signs_and_its_label_is_not_given_twice(hsm) {
        let public = hsm.generate("quote-signing-a");
        assert_eq!(public.bits(), 2048);
        let again = generate(&hsm.config(), public.kid(), 2048);
        assert_eq!(again.err(), Some(KeygenError::Exists("quote-signing-a".to_owned())));
        assert_eq!(generate(&hsm.config(), &kid("quote-signing-b"), 1024).err(), Some(KeygenError::Bits(1024)));
        let second = init_token(&hsm.module, &"so-12345".into(), &PIN.into(), LABEL);
        assert_eq!(second.err(), Some(KeygenError::Exists(LABEL.to_owned())));

        let token = Token::start(hsm.config());
        let key = token.key(public, locator("quote-signing-a"));
        until_serving(|| key.health()).await;
        assert_eq!(token.health(), Health::Serving);
        assert_signs(&*key).await;
        assert!(matches!(key.sign(&input(1), Instant::now()).await, Err(SignError::TimedOut)));
        token.close().await;
        assert!(matches!(sign(&*key, &input(1)).await, Err(SignError::Unavailable(_))));
        assert!(token.ended.is_disconnected());
    }

    async fn a_module_that_cannot_hash_signs_the_digest(hsm) {
        let public = hsm.generate("quote-signing-a");
        let config = hsm.config();
        let device = Device::reach(&config).unwrap().without_hashing();
        let session = device.session(Access::Read).unwrap();
        let key = Key::new(0, Arc::clone(&public), locator("quote-signing-a"));
        let handle = key.find(&device, &session, AttributePolicy::Require).unwrap();
        let signature = device.sign(&session, handle, &input(1)).unwrap();
        assert!(public.verifies(input(1).bytes(), &signature));
    }

    async fn sixty_four_at_once_all_verify(hsm) {
        let token = Token::start(hsm.config());
        let key = token.key(hsm.generate("quote-signing-a"), locator("quote-signing-a"));
        until_serving(|| key.health()).await;
        let tasks: Vec<_> = (0..64).map(|number| {
            let key = Arc::clone(&key);
            tokio::spawn(async move { sign(&*key, &input(number)).await })
        }).collect();
        for (number, task) in (0..).zip(tasks) {
            let Signature(signature) = task.await.unwrap().unwrap();
            assert!(key.public_key().verifies(input(number).bytes(), &signature));
        }
        token.close().await;
    }

    async fn a_full_queue_refuses_at_once(hsm) {
        let token = Token::start(TokenConfig { sessions: 1, queue_max: 1, ..hsm.config() });
        let key = token.key(hsm.generate("quote-signing-a"), locator("quote-signing-a"));
        until_serving(|| key.health()).await;
        let tasks: Vec<_> = (0..64).map(|number| {
            let key = Arc::clone(&key);
            tokio::spawn(async move { sign(&*key, &input(number)).await })
        }).collect();
        let (mut signed, mut full) = (0, 0);
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => signed += 1,
                Err(SignError::Full) => full += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(signed > 0 && full > 0, "{signed} signed, {full} refused");
        token.close().await;
    }

    async fn a_refused_pin_is_tried_once(hsm) {
        // Before the token, since a process that has logged in is not asked for the PIN again.
        let public = hsm.generate("quote-signing-a");
        let token = Token::start(TokenConfig { pin: "0000-0000".into(), ..hsm.config() });
        let key = token.key(public, locator("quote-signing-a"));
        until_down_with("C_Login: PinIncorrect", || token.health()).await;
        assert!(matches!(sign(&*key, &input(1)).await, Err(SignError::Unavailable(why)) if why.contains("PIN")));
        // Were it tried again, it would now be right.
        {
            let config = hsm.config();
            let device = Device::reach(&config).unwrap();
            let session = device.session(Access::Write).unwrap();
            session.set_pin(&PIN.into(), &"0000-0000".into()).unwrap();
        }
        time::sleep(3 * supervisor::PAUSE_MAX).await;
        until_down_with("C_Login: PinIncorrect", || key.health()).await;
        assert!(token.ended.is_disconnected());
        token.close().await;
    }

    async fn one_key_that_is_unfit_harms_no_other(hsm) {
        let (a, b) = (hsm.generate("quote-signing-a"), hsm.generate("quote-signing-b"));
        let twin = hsm.make_key("quote-signing-twin", false);
        hsm.make_key("quote-signing-twin", false);
        let token = Token::start(hsm.config());
        let good = token.key(Arc::clone(&a), locator("quote-signing-a"));
        let swapped = token.key(Arc::clone(&a), locator("quote-signing-b"));
        let twins = token.key(twin, locator("quote-signing-twin"));
        let missing = token.key(Arc::clone(&b), locator("quote-signing-c"));
        let elsewhere = Locator::parse("pkcs11:token=other;object=quote-signing-b").unwrap();
        let elsewhere = token.key(b, elsewhere);
        until_serving(|| good.health()).await;
        for (key, text) in [(&swapped, "not the key that policy pins"), (&twins, "names 2"), (&elsewhere, "`other`")] {
            assert!(matches!(sign(&**key, &input(1)).await, Err(SignError::Unfit(why)) if why.contains(text)), "{text}");
            until_down_with(text, || key.health()).await;
        }
        assert!(matches!(sign(&*missing, &input(1)).await, Err(SignError::Unavailable(why)) if why.contains("object=quote-signing-c")));
        until_down_with("object=quote-signing-c", || missing.health()).await;
        assert_eq!(generation(&token), 1, "the token was disturbed");
        assert_signs(&*good).await;
        hsm.generate("quote-signing-c");
        until_down_with("not the key that policy pins", || missing.health()).await;
        token.close().await;
    }

    async fn a_key_that_could_leave_its_token_is_refused_unless_policy_relaxes(hsm) {
        let public = hsm.make_key("quote-signing-x", true);
        let token = Token::start(hsm.config());
        let key = token.key(Arc::clone(&public), locator("quote-signing-x"));
        until_down_with("CKA_EXTRACTABLE", || key.health()).await;
        assert!(matches!(sign(&*key, &input(1)).await, Err(SignError::Unfit(why)) if why.contains("CKA_SENSITIVE")));
        token.close().await;
        for attributes in [AttributePolicy::Warn, AttributePolicy::Off] {
            let token = Token::start(TokenConfig { attributes, ..hsm.config() });
            let key = token.key(Arc::clone(&public), locator("quote-signing-x"));
            until_serving(|| key.health()).await;
            assert_signs(&*key).await;
            token.close().await;
        }
    }

    async fn a_token_that_was_away_serves_again_by_itself(hsm) {
        let token = Token::start(hsm.config());
        let key = token.key(hsm.generate("quote-signing-a"), locator("quote-signing-a"));
        for _ in 0..2 {
            until_serving(|| key.health()).await;
            assert_signs(&*key).await;
            fs::rename(hsm.tokens(), hsm.away()).unwrap();
            until(|| key.health(), |health| *health != Health::Serving).await;
            until(|| token.health(), |health| *health != Health::Serving).await;
            assert!(matches!(sign(&*key, &input(1)).await, Err(SignError::Unavailable(_))));
            time::sleep(Duration::from_millis(500)).await;
            fs::rename(hsm.away(), hsm.tokens()).unwrap();
        }
        until_serving(|| key.health()).await;
        assert_signs(&*key).await;
        token.close().await;
    }

    /// The gateway may start before its token is there, and a session may be taken from it at any time.
    async fn a_late_token_and_a_lost_login_are_no_matter(hsm) {
        fs::rename(hsm.tokens(), hsm.away()).unwrap();
        let token = Token::start(hsm.config());
        until_down_with("configuration", || token.health()).await;
        fs::rename(hsm.away(), hsm.tokens()).unwrap();
        until_serving(|| token.health()).await;
        let key = token.key(hsm.generate("quote-signing-a"), locator("quote-signing-a"));
        until_serving(|| key.health()).await;
        let before = generation(&token);
        {
            let config = hsm.config();
            let device = Device::reach(&config).unwrap();
            device.session(Access::Read).unwrap().logout().unwrap();
        }
        assert_signs(&*key).await;
        assert_eq!(generation(&token), before, "the token was disturbed");
        token.close().await;
    }

    async fn a_module_that_is_missing_is_named(hsm) {
        let module = PathBuf::from("/usr/lib/no-such-module.so");
        let token = Token::start(TokenConfig { module, ..hsm.config() });
        until_down_with("/usr/lib/no-such-module.so", || token.health()).await;
        token.close().await;
        assert_eq!(token.health(), Health::NotServing("the token is closed".to_owned()));
    }

    /// Two tokens of one module: the one that is down does not take the other with it.
    async fn a_token_that_is_down_leaves_its_neighbour_alone(hsm) {
        let token = Token::start(hsm.config());
        let key = token.key(hsm.generate("quote-signing-a"), locator("quote-signing-a"));
        until_serving(|| key.health()).await;
        let absent = Token::start(TokenConfig { token_label: "absent".to_owned(), ..hsm.config() });
        until_down_with("`absent`", || absent.health()).await;
        time::sleep(supervisor::PAUSE_MAX).await;
        assert_eq!(generation(&token), 1, "the token was disturbed");
        assert_signs(&*key).await;
        absent.close().await;
        assert_signs(&*key).await;
        token.close().await;
    }

    async fn a_keyring_keeps_what_a_reload_does_not_change(hsm) {
        let (a, b) = (hsm.generate("quote-signing-a"), hsm.generate("quote-signing-b"));
        let token = Token::start(hsm.config());
        let shared = Arc::clone(&token.shared);
        let ring = Keyring::new([("softhsm".to_owned(), token)].into());
        let of = |public: &Arc<PublicKey>| {
            let kid = public.kid().clone();
            (kid.clone(), "softhsm".to_owned(), locator(kid.as_str()), Arc::clone(public))
        };
        ring.bind([of(&a), of(&b)]).unwrap();
        let first = ring.get(a.kid()).unwrap();
        until_serving(|| ring.key_health(a.kid()).unwrap()).await;
        ring.bind([of(&a)]).unwrap();
        assert!(Arc::ptr_eq(&first, &ring.get(a.kid()).unwrap()));
        assert!(ring.get(b.kid()).is_none());
        let forgotten = async {
            while shared.live_keys().len() > 1 {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        time::timeout(SOON, forgotten).await.unwrap();
        let (kid, _, place, public) = of(&b);
        let error = ring.bind([(kid.clone(), "other".to_owned(), place, public)]).unwrap_err();
        assert_eq!(error, KeyringError::UnknownSigner { kid, signer: "other".to_owned() });
        assert_eq!(ring.bind([of(&b), of(&b)]).unwrap_err(), KeyringError::Repeated(b.kid().clone()));
        let serving = |name: &str| (name.to_owned(), Health::Serving);
        assert_eq!(ring.health(), [serving("signer/softhsm"), serving("key/quote-signing-a")]);
        ring.close().await;
    }
}
