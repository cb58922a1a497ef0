//! A year of rotations in minutes, with the clock as a parameter: the real bundle loader, timeline, votes, key sets and ledger,
//! and real signatures, on three gateways of which some hang, lag and restart at bad moments, before verifiers that keep the
//! key set for as long as they like. Every quote is presented right away, once more in between, and just before it expires.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use quotesign::{
    audit::Context,
    clock::UtcTime,
    domain::{Environment, Identity, InputDigest, KeyState, Kid, PartnerId, PayloadDigest, Scope, sha256},
    jwk::{PublicKey, read_jwks},
    jws::CompactJws,
    ledger::{
        Commit, Done, Engine, Holding, Kept, Lease, Note, Noted, Numbering, Op, Propose, Publish, Refusal, Reserve,
        Reserved, Seed, Stop, StopAct, sqlite::Sqlite,
    },
    policy::{Bundle, Files, files, timeline::TimedKey},
    published::{Published, Standings, count},
    service::jwks::set_of,
    stopped::Stopped,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{DAY, PARTNER, toml},
    kills::number_from,
};

const HERE: Environment = Environment::Production;
const PROPAGATION: Duration = Duration::from_hours(1);
const VALID: Duration = Duration::from_mins(10);

fn start() -> UtcTime {
    UtcTime::parse("2026-01-01T00:00:00Z").unwrap()
}

fn day(days: f64) -> UtcTime {
    start().plus(Duration::from_secs_f64(days * 86_400.0))
}

/// What a bundle says of a key.
#[derive(Clone)]
struct Planned {
    kid: &'static str,
    publish_at: f64,
    sign_from: f64,
    sign_until: f64,
    standby: bool,
    emergency: bool,
}

fn key(kid: &'static str, publish_at: f64, sign_from: f64, sign_until: f64) -> Planned {
    Planned { kid, publish_at, sign_from, sign_until, standby: false, emergency: false }
}

/// The bundles of the year: when each is put in place, and its keys. Five planned rotations; in July a key is revoked that has a
/// standby, in October one that has none.
fn bundles() -> Vec<(f64, Vec<Planned>)> {
    let standby = Planned { standby: true, ..key("quote-standby", 20.0, 22.0, 260.0) };
    let lost = Planned { emergency: true, ..key("quote-emergency", 300.01, 300.01, 340.0) };
    let keys = [
        key("quote-signing-1", 0.0, 1.0, 399.0),
        key("quote-signing-2", 57.0, 60.0, 399.0),
        key("quote-signing-3", 117.0, 120.0, 399.0),
        key("quote-signing-4", 197.0, 200.0, 399.0),
        key("quote-signing-5", 267.0, 270.0, 399.0),
        key("quote-signing-6", 327.0, 330.0, 399.0),
    ];
    let mut bundles: Vec<(f64, Vec<Planned>)> = vec![(0.0, vec![keys[0].clone()])];
    let mut next = |at: f64, new: &Planned| {
        let mut all = bundles.last().unwrap().1.clone();
        // The one before ends a day after the new one has begun, instead of somewhere in the next year.
        if let Some(old) = all.iter_mut().rfind(|old| !old.standby && !new.standby && old.sign_until > 390.0) {
            old.sign_until = new.sign_from + 1.0;
        }
        all.push(new.clone());
        bundles.push((at, all));
    };
    next(18.0, &standby);
    for (at, new) in
        [(55.0, &keys[1]), (115.0, &keys[2]), (195.0, &keys[3]), (265.0, &keys[4]), (300.01, &lost), (325.0, &keys[5])]
    {
        next(at, new);
    }
    bundles
}

struct Keys(BTreeMap<&'static str, RsaKeyPair>);

impl Keys {
    fn made(bundles: &[(f64, Vec<Planned>)]) -> Self {
        let kids: BTreeSet<_> = bundles.iter().flat_map(|(_, keys)| keys).map(|key| key.kid).collect();
        Self(kids.into_iter().map(|kid| (kid, RsaKeyPair::generate(KeySize::Rsa2048).unwrap())).collect())
    }

    fn public(&self, kid: &str) -> PublicKey {
        let public = self.0[kid].public_key();
        let bytes = |big: &[u8]| big.to_vec();
        PublicKey::new(
            kid.parse().unwrap(),
            &bytes(public.modulus().big_endian_without_leading_zero()),
            &bytes(public.exponent().big_endian_without_leading_zero()),
        )
        .unwrap()
    }

    fn signs(&self, kid: &Kid, input: &[u8]) -> Vec<u8> {
        let pair = &self.0[kid.as_str()];
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input, &mut signature).unwrap();
        signature
    }
}

/// A bundle as the loader takes it; what it refuses no gateway has.
fn loaded(base: &Files, serial: i64, keys: &[Planned], pairs: &Keys, propagation: Duration) -> Bundle {
    let mut files = base.clone();
    files.retain(|name, _| !name.starts_with("keys/"));
    let mut policy: toml_edit::DocumentMut = std::str::from_utf8(&base["policy.toml"]).unwrap().parse().unwrap();
    policy["environment"] = toml("'production'");
    policy["serial"] = toml_edit::value(serial);
    policy["publication"]["propagation_s"] = toml_edit::value(i64::try_from(propagation.as_secs()).unwrap());
    policy.remove("keys");
    let mut entries = toml_edit::ArrayOfTables::new();
    for key in keys {
        let at = |days: f64| toml(&day(days).to_string());
        let mut entry = toml_edit::Table::new();
        entry["kid"] = toml(&format!("'{}'", key.kid));
        entry["partner"] = toml(&format!("'{PARTNER}'"));
        entry["signer"] = toml("'hsm'");
        entry["locator"] = toml("'pkcs11:token=quotes;object=any;type=private'");
        entry["publish_at"] = at(key.publish_at);
        entry["sign_from"] = at(key.sign_from);
        entry["sign_until"] = at(key.sign_until);
        entry["retire_at"] = at(key.sign_until + 1.5);
        if key.standby {
            entry["standby"] = toml("true");
        }
        if key.emergency {
            entry["emergency"] = toml("'INC-7'");
        } else {
            entry["confirmed"] = toml(&format!("{{ at = {}, ref = 'OPS-1' }}", day(key.publish_at + 0.5)));
        }
        entries.push(entry);
        files
            .insert(format!("keys/{}.jwk.json", key.kid), format!("{:#}", pairs.public(key.kid).to_jwk()).into_bytes());
    }
    policy["keys"] = toml_edit::Item::ArrayOfTables(entries);
    files.insert("policy.toml".to_owned(), policy.to_string().into_bytes());
    Bundle::check(&files).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// One of the gateways.
struct Gateway {
    name: &'static str,
    bundle: usize,
    bundle_since: UtcTime,
    seen_at: Option<UtcTime>,
    /// How many bundles it has made known.
    told: usize,
    stopped: Stopped,
    published: Published,
}

/// What keeps a gateway from following a bundle, or from running, and when.
enum Trouble {
    /// It runs and does not take the bundle of this number on until then.
    Lags {
        bundle: usize,
        until: f64,
    },
    Down {
        from: f64,
        until: f64,
    },
}

fn troubles() -> [Vec<Trouble>; 3] {
    [
        vec![Trouble::Down { from: 120.0, until: 120.01 }, Trouble::Down { from: 264.9, until: 267.2 }],
        vec![
            Trouble::Lags { bundle: 2, until: 63.5 },
            Trouble::Down { from: 199.9, until: 200.2 },
            Trouble::Lags { bundle: 7, until: 333.0 },
        ],
        vec![
            Trouble::Down { from: 56.9, until: 60.3 },
            Trouble::Lags { bundle: 3, until: 124.0 },
            Trouble::Down { from: 149.99, until: 150.3 },
            Trouble::Lags { bundle: 6, until: 300.4 },
        ],
    ]
}

/// A verifier that keeps the key set for a while.
struct Verifier {
    keeps: Duration,
    fetched_at: Option<UtcTime>,
    keys: Vec<PublicKey>,
}

/// A quote that was signed, and how it was presented.
struct Presented {
    jws: CompactJws,
    kid: Kid,
    signed_at: UtcTime,
    expires_at: UtcTime,
}

struct World {
    now: UtcTime,
    bundles: Vec<(UtcTime, Bundle)>,
    gateways: Vec<Gateway>,
    troubles: [Vec<Trouble>; 3],
    verifiers: Vec<Verifier>,
    ledger: Sqlite,
    pairs: Keys,
    partner: PartnerId,
    revoked: BTreeMap<Kid, UtcTime>,
    activated: BTreeMap<Kid, UtcTime>,
    number: u64,
    /// Presented later, by when.
    waiting: BTreeMap<(i64, usize), usize>,
    quotes: Vec<Presented>,
    told: Told,
    _home: TempDir,
}

#[derive(Debug, Default)]
struct Told {
    signed: usize,
    not_signed: usize,
    presented: usize,
    by_kid: BTreeMap<String, usize>,
    /// What was valid and was refused, though it was promised.
    broken: Vec<String>,
    /// Of a revoked key, refused; and taken from a cache that was not renewed yet.
    revoked_refused: usize,
    revoked_cached: usize,
    /// Of a key that was activated before verifiers could know it.
    early_refused: usize,
}

impl World {
    fn new(propagation: Duration, keeps: &[Duration]) -> Self {
        let base = files::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/policy-development"))).unwrap();
        let plans = bundles();
        let pairs = Keys::made(&plans);
        let bundles = plans
            .iter()
            .zip(1..)
            .map(|((at, keys), serial)| (day(*at), loaded(&base, serial, keys, &pairs, propagation)));
        let home = TempDir::new_in("/dev/shm").unwrap();
        let path = home.path().join("ledger.sqlite");
        Sqlite::migrate(&path, HERE).unwrap();
        let gateway = |name| Gateway {
            name,
            bundle: 0,
            bundle_since: start(),
            seen_at: None,
            told: 0,
            stopped: Stopped::default(),
            published: Published::default(),
        };
        let mut world = Self {
            now: start(),
            bundles: bundles.collect(),
            gateways: ["gw-0", "gw-1", "gw-2"].map(gateway).into(),
            troubles: troubles(),
            verifiers: keeps
                .iter()
                .map(|keeps| Verifier { keeps: *keeps, fetched_at: None, keys: Vec::new() })
                .collect(),
            ledger: Sqlite::open(&path, HERE).unwrap(),
            pairs,
            partner: PARTNER.parse().unwrap(),
            revoked: BTreeMap::new(),
            activated: BTreeMap::new(),
            number: 0,
            waiting: BTreeMap::new(),
            quotes: Vec::new(),
            told: Told::default(),
            _home: home,
        };
        let scope = world.scope();
        let (context, now) = (context(), world.now);
        world
            .put(Op::Seed(Seed { scope, floor: 0.try_into().unwrap(), reason: "a year".to_owned(), context, now }))
            .unwrap();
        world
    }

    fn scope(&self) -> Scope {
        Scope::new(HERE, &self.partner, None)
    }

    fn put(&mut self, op: Op) -> Result<Done, Refusal> {
        self.ledger.apply(&[op]).unwrap().remove(0)
    }

    fn is_down(&self, at: usize) -> bool {
        self.troubles[at].iter().any(|trouble| {
            matches!(trouble, Trouble::Down { from, until } if day(*from) <= self.now && self.now < day(*until))
        })
    }

    /// What each gateway does every two seconds: follows its bundle, renews its lease, counts, and notes.
    fn tick(&mut self) {
        let now = self.now;
        for at in 0..self.gateways.len() {
            if self.is_down(at) {
                continue;
            }
            let lags = |number: usize| {
                self.troubles[at].iter().any(|trouble| {
                    matches!(trouble, Trouble::Lags { bundle, until } if *bundle <= number && now < day(*until))
                })
            };
            let newest = self.bundles.iter().rposition(|(from, _)| *from <= now).unwrap_or(0);
            let reached = (0..=newest).rev().find(|number| !lags(*number)).unwrap_or(0);
            let gateway = &mut self.gateways[at];
            if reached > gateway.bundle {
                (gateway.bundle, gateway.bundle_since) = (reached, now);
            }
            gateway.seen_at = Some(now);
            if gateway.told < gateway.bundle + 1 {
                gateway.told = gateway.bundle + 1;
                for key in self.bundles[gateway.bundle].1.timeline.all() {
                    let jwk = key.public.to_jwk().to_string();
                    let kept = Kept::new(jwk, key.partner.clone(), "quote", key.publish_at);
                    let publish = Publish { kid: key.kid.clone(), kept, context: context(), now };
                    self.ledger.apply(&[Op::Publish(publish)]).unwrap().remove(0).unwrap();
                }
            }
            gateway.stopped.learn(quotesign::ledger::Reads::stops(&mut self.ledger).unwrap()).unwrap();
            gateway.published.learn(quotesign::ledger::Reads::kids(&mut self.ledger).unwrap());
        }
        let leases: Vec<Lease> = self
            .gateways
            .iter()
            .filter_map(|gateway| {
                let bundle = &self.bundles[gateway.bundle].1;
                let standings = Standings::of_now(&gateway.stopped, &gateway.published);
                let shown = bundle.timeline.published(&self.partner, gateway.seen_at?, |kid| standings.of(kid));
                Some(Lease {
                    replica: gateway.name.to_owned(),
                    age: now.since(gateway.seen_at?),
                    bundle_age: now.since(gateway.bundle_since),
                    holding: Holding { serial: bundle.serial, shown: shown.map(|key| key.kid.clone()).collect() },
                })
            })
            .collect();
        for at in 0..self.gateways.len() {
            if self.is_down(at) {
                continue;
            }
            let count = self.gateways[at].published.meet(self.gateways[at].name, leases.clone());
            let kids = quotesign::ledger::Reads::kids(&mut self.ledger).unwrap();
            let bundle = &self.bundles[self.gateways[at].bundle].1;
            let news = count.news(bundle, &kids, |_, _| true, now).into_iter();
            let note = |(key, noted): (&TimedKey, Noted)| {
                Op::Note(Note { kid: key.kid.clone(), noted, context: context(), now })
            };
            let notes: Vec<_> = news.map(note).collect();
            if !notes.is_empty() {
                self.ledger.apply(&notes).unwrap();
                self.gateways[at].published.learn(quotesign::ledger::Reads::kids(&mut self.ledger).unwrap());
            }
        }
    }

    /// A quote by whichever gateway a balancer chooses; signed in the way of the path.
    fn quote(&mut self, dice: usize) {
        let at = (0..3).map(|step| (dice + step) % 3).find(|at| !self.is_down(*at)).unwrap();
        let (now, gateway) = (self.now, &self.gateways[at]);
        let standings = Standings::of_now(&gateway.stopped, &gateway.published);
        let timeline = &self.bundles[gateway.bundle].1.timeline;
        let Some(key) = timeline.current(&self.partner, now, |kid| standings.of(kid)) else {
            self.told.not_signed += 1;
            return;
        };
        let (kid, expires_at) = (key.kid.clone(), now.plus(VALID));
        self.number += 1;
        let payload =
            json!({ "partner_id": PARTNER, "quote_sequence": self.number, "expires_at": expires_at.to_string() });
        let payload = serde_jcs::to_vec(&payload).unwrap();
        let header = format!(r#"{{"alg":"RS256","kid":"{kid}","typ":"JWT"}}"#);
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(&payload));
        let reserve = Reserve {
            identity: Identity::new(HERE, &self.partner, &format!("q{}", self.number).parse().unwrap()),
            scope: self.scope(),
            numbering: Numbering::Given {
                sequence: self.number.try_into().unwrap(),
                input: InputDigest(sha256(input.as_bytes())),
            },
            jump_max: 1000,
            stays: false,
            seed_if_unknown: false,
            payload: PayloadDigest(sha256(&payload)),
            kid: kid.clone(),
            expires_at,
            useful: Duration::from_secs(5),
            charges: Vec::new(),
            context: context(),
            now,
        };
        let reservation = match self.put(Op::Reserve(reserve)) {
            Ok(Done::Reserved(Reserved::Pending(reservation))) => reservation,
            Err(Refusal::KidWithdrawn { .. }) => {
                self.number -= 1;
                self.told.not_signed += 1;
                return;
            }
            other => panic!("{other:?}"),
        };
        let signature = URL_SAFE_NO_PAD.encode(self.pairs.signs(&kid, input.as_bytes()));
        let jws = CompactJws::from_text(format!("{input}.{signature}"));
        let commit = Commit { reservation, jws: jws.clone(), context: context(), now };
        let Ok(Done::Committed { first: true, .. }) = self.put(Op::Commit(commit)) else { panic!("not committed") };
        self.told.signed += 1;
        *self.told.by_kid.entry(kid.to_string()).or_default() += 1;
        let place = self.quotes.len();
        self.quotes.push(Presented { jws, kid, signed_at: now, expires_at });
        for (nth, after) in [0, 300, VALID.as_secs() - 1].into_iter().enumerate() {
            self.waiting.insert((now.plus(Duration::from_secs(after)).millis(), place * 3 + nth), place);
        }
    }

    /// Everything that is presented until `now`, at its own time.
    fn present(&mut self) {
        while let Some(((at, _), place)) = self.waiting.first_key_value().map(|(key, place)| (*key, *place)) {
            if at > self.now.millis() {
                return;
            }
            self.waiting.pop_first();
            let at = UtcTime::from_millis(at);
            for verifier in 0..self.verifiers.len() {
                self.verify(verifier, place, at);
            }
        }
    }

    fn verify(&mut self, verifier: usize, place: usize, at: UtcTime) {
        let keeps = self.verifiers[verifier].keeps;
        if self.verifiers[verifier].fetched_at.is_none_or(|fetched| at.since(fetched) >= keeps) {
            // A balancer asks only who says that it is ready.
            let ready = (0..3).map(|step| (place + verifier + step) % 3);
            let ready = ready.clone().find(|at| !self.is_down(*at) && self.gateways[*at].published.lags().is_none());
            if let Some(gateway) = ready.map(|at| &self.gateways[at]) {
                let bundle = &self.bundles[gateway.bundle].1;
                let set = set_of(bundle, &self.partner, &gateway.stopped, &gateway.published, at).unwrap();
                let keys = read_jwks(set.as_bytes()).unwrap();
                let cached = &mut self.verifiers[verifier];
                (cached.fetched_at, cached.keys) = (Some(at), keys);
            }
        }
        let quote = &self.quotes[place];
        let Verifier { fetched_at, keys, .. } = &self.verifiers[verifier];
        let (input, signature) = quote.jws.as_str().rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let verifies = |key: &PublicKey| key.verifies(input.as_bytes(), &signature);
        let taken = at < quote.expires_at && keys.iter().find(|key| *key.kid() == quote.kid).is_some_and(verifies);
        self.told.presented += 1;
        let revoked_at = self.revoked.get(&quote.kid).filter(|revoked| **revoked <= at);
        match (revoked_at, taken) {
            (Some(revoked), true) => {
                self.told.revoked_cached += 1;
                if fetched_at.is_some_and(|fetched| fetched > revoked.plus(Duration::from_secs(1))) {
                    self.told.broken.push(format!("{at}: `{}` is revoked and was taken from a fresh set", quote.kid));
                }
            }
            (Some(_), false) => self.told.revoked_refused += 1,
            (None, true) => {}
            // The operators activated it before verifiers could know it.
            (None, false)
                if self.activated.get(&quote.kid).is_some_and(|at| quote.signed_at < at.plus(PROPAGATION)) =>
            {
                self.told.early_refused += 1;
            }
            (None, false) => {
                let kept = keys.iter().map(|key| key.kid().to_string()).collect::<Vec<_>>().join(", ");
                self.told.broken.push(format!(
                    "{at}: `{}`, signed {}, was refused by one who keeps the set {keeps:?}; fetched {fetched_at:?}: {kept}",
                    quote.kid, quote.signed_at
                ));
            }
        }
    }

    fn revoke(&mut self, kid: &str) {
        let (kid, now): (Kid, UtcTime) = (kid.parse().unwrap(), self.now);
        let stop = StopAct {
            stop: Stop::Revoked(kid.clone()),
            stands: true,
            reason: "INC".to_owned(),
            context: context(),
            now,
        };
        self.put(Op::Stop(stop)).unwrap();
        self.revoked.insert(kid, now);
    }

    /// Two operators.
    fn activate(&mut self, kid: &str) {
        let (kid, now): (Kid, UtcTime) = (kid.parse().unwrap(), self.now);
        for (caller, first) in [("dns:one.example", None), ("dns:two.example", Some("dns:one.example"))] {
            let (caller, within) = (caller.parse().unwrap(), Duration::from_mins(15));
            let propose = Propose { act: format!("ActivateKey {kid}"), caller, within, context: context(), now };
            let Done::Proposed(by, _) = self.put(Op::Propose(propose)).unwrap() else { panic!() };
            assert_eq!(by.map(|by| by.to_string()).as_deref(), first);
        }
        let noted = Noted::Activated { reason: "INC".to_owned() };
        self.put(Op::Note(Note { kid: kid.clone(), noted, context: context(), now })).unwrap();
        self.activated.insert(kid, now);
    }

    /// The instants at which something happens, beside quotes.
    fn turns(&self) -> BTreeSet<UtcTime> {
        let troubles = self.troubles.iter().flatten().flat_map(|trouble| match trouble {
            Trouble::Lags { until, .. } => vec![day(*until)],
            Trouble::Down { from, until } => vec![day(*from), day(*until)],
        });
        let keys = self.bundles.iter().flat_map(|(at, bundle)| {
            let times =
                bundle.timeline.all().flat_map(|key| [key.publish_at, key.sign_from, key.sign_until, key.retire_at]);
            times.chain([*at]).collect::<Vec<_>>()
        });
        troubles.chain(keys).chain(ACTS.map(|(at, ..)| day(at))).collect()
    }

    /// So many quotes over the year; a look at the ledger with each, at each turn, and at least once an hour.
    fn year(mut self, quotes: u32) -> Told {
        let step = DAY * 365 / quotes;
        // A second and a minute before and after each, and at the very moment, a quote is signed besides.
        let around = |turn: UtcTime| [-60_000, -1_000, 0, 1_000, 60_000].map(|after| turn.millis() + after);
        let close: BTreeSet<UtcTime> =
            self.turns().into_iter().flat_map(around).map(UtcTime::from_millis).filter(|at| *at > start()).collect();
        let turns: BTreeSet<UtcTime> = self.turns().union(&close).copied().collect();
        for nth in 0..quotes {
            let until = start().plus(step * nth);
            while self.now < until {
                let turn = turns.range((std::ops::Bound::Excluded(self.now), std::ops::Bound::Unbounded)).next();
                let next = until.min(self.now.plus(Duration::from_hours(1)));
                self.now = turn.map_or(next, |turn| next.min(*turn));
                self.present();
                for (at, kid, what) in ACTS {
                    match what {
                        _ if day(at) != self.now => {}
                        Act::Revoke => self.revoke(kid),
                        Act::Activate => self.activate(kid),
                    }
                }
                self.tick();
                if close.contains(&self.now) && self.now < until {
                    self.quote(nth as usize);
                }
            }
            self.quote(nth as usize);
        }
        self.present();
        self.told
    }
}

#[derive(Clone, Copy)]
enum Act {
    Revoke,
    Activate,
}

const ACTS: [(f64, &str, Act); 3] = [
    (150.0, "quote-signing-3", Act::Revoke),
    (300.0, "quote-signing-5", Act::Revoke),
    (300.03, "quote-emergency", Act::Activate),
];

fn context() -> Context {
    Context::new("year-1".parse().unwrap(), HERE, "00".to_owned(), 1)
}

/// `TRIALS=200` makes it more than 100,000 quotes.
#[test]
fn a_year_of_rotations_breaks_no_promise() {
    let quotes = u32::try_from(number_from("TRIALS", 10)).unwrap().min(200) * 550;
    let told = World::new(PROPAGATION, &[Duration::from_mins(5), PROPAGATION]).year(quotes);
    println!("{told:#?}");
    assert_eq!(told.broken, Vec::<String>::new());
    assert!(told.signed > quotes as usize * 99 / 100, "somebody could sign nearly always");
    assert_eq!(told.by_kid.len(), 8, "every key has signed: {:?}", told.by_kid);
    assert!(told.revoked_refused > 0 || quotes < 50_000, "revoked keys' quotes were presented");
}

/// The same with a propagation time shorter than caches: the check finds it.
#[test]
fn a_year_with_too_short_a_propagation_time_is_found_out() {
    let told = World::new(Duration::from_mins(5), &[Duration::from_hours(100)]).year(20_000 / 10);
    assert!(!told.broken.is_empty(), "{told:?}");
    let first: Value = json!(told.broken[0]);
    assert!(first.as_str().unwrap().contains("was refused by one who keeps the set"), "{first}");
}

/// The newest bundle lets a key sign for ten days more, which one of the gateways has not heard of.
#[test]
fn an_older_bundle_ends_no_key_that_the_newest_one_lets_sign_on() {
    let base = files::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/policy-development"))).unwrap();
    let ends = |sign_until| [key("quote-signing-1", 0.0, 1.0, sign_until)];
    let pairs = Keys::made(&[(0.0, ends(10.0).to_vec())]);
    let [old, new] =
        [(1, 10.0), (2, 20.0)].map(|(serial, until)| loaded(&base, serial, &ends(until), &pairs, PROPAGATION));
    let kept =
        Kept::new(pairs.public("quote-signing-1").to_jwk().to_string(), PARTNER.parse().unwrap(), "quote", day(0.0));
    let kids = BTreeMap::from([("quote-signing-1".parse().unwrap(), kept)]);
    let lease = |bundle: &Bundle, bundle_age| Lease {
        replica: format!("gw-{}", bundle.serial),
        age: Duration::ZERO,
        bundle_age,
        holding: Holding { serial: bundle.serial, shown: BTreeSet::new() },
    };
    let told = |leases: &[Lease], bundle: &Bundle, at| -> Vec<Noted> {
        count(leases).news(bundle, &kids, |_, _| true, day(at)).into_iter().map(|(_, noted)| noted).collect()
    };
    let (alone, both) = ([lease(&old, DAY)], [lease(&old, DAY), lease(&new, Duration::ZERO)]);
    assert_eq!(told(&alone, &old, 9.0), [Noted::Turned(KeyState::Active)]);
    assert_eq!(told(&alone, &old, 10.5), [Noted::Turned(KeyState::Retiring)]);
    for at in [9.0, 10.5] {
        assert_eq!(told(&both, &old, at), []);
        assert_eq!(told(&both, &new, at), [Noted::Turned(KeyState::Active)]);
    }
}

#[test]
fn what_is_revoked_closes_no_gap_and_stands_in_for_nobody() {
    let base = files::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/policy-development"))).unwrap();
    let standby = Planned { standby: true, ..key("quote-standby", 0.0, 1.0, 60.0) };
    let keys = [key("quote-signing-1", 0.0, 1.0, 20.0), key("quote-signing-2", 4.0, 10.0, 60.0), standby];
    let pairs = Keys::made(&[(0.0, keys.to_vec())]);
    let ahead = |keys: &[Planned], revoked: &str| {
        let bundle = loaded(&base, 1, keys, &pairs, PROPAGATION);
        let notices = bundle.ahead_within(day(5.0), DAY * 30, |kid| kid.as_str() == revoked);
        notices.into_iter().map(|notice| notice.text).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(ahead(&keys, ""), "");
    let alone = |kid| format!("were `{kid}` revoked, nothing could sign; add a key with `standby = true`");
    assert_eq!(ahead(&keys, "quote-standby"), alone("quote-signing-1"));
    assert_eq!(ahead(&keys, "quote-signing-2"), alone("quote-standby"));
    let gap = format!("no key signs from {} on; add one, published early enough", day(20.0));
    assert_eq!(ahead(&keys[..2], "quote-signing-2"), format!("{}\n{gap}", alone("quote-signing-1")));
}
