//! What holds for every text, every quote and every time, and not only for those that somebody thought of.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::{collection::vec, option, prelude::*, sample::select};
use quotesign::{
    clock::UtcTime,
    domain::INTEGER_MAX,
    json::{self, Limits},
    jws::CompactJws,
    pipeline::{refusal::Refusal, validate::Invalid},
    policy::contract::pointer,
    verification::{self, Evidence, Step},
};
use serde_json::{Map, Value};

use crate::stages::{KID, LIMITS, Stages, repository};

/// A JSON text before it is written: it can be what a parsed value cannot, such as an object with a member twice.
#[derive(Debug, Clone)]
enum Json {
    Null,
    Bool(bool),
    Integer(i128),
    /// Any other number, as it is spelt.
    Number(&'static str),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

const NUMBERS: [&str; 6] = ["-0", "1.0", "0.5", "1e2", "-1E-2", "1e400"];
/// Few, so that a name often stands twice.
const NAMES: [&str; 6] = ["a", "b", "", "/", "\u{e9}", "$serde_json::private::Number"];

/// The byte-order mark, and what sets the direction of text.
const DIRECTION: &str =
    "\u{feff}\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";

fn integer() -> impl Strategy<Value = i128> {
    let edge = i128::from(INTEGER_MAX);
    prop_oneof![-10..10_i128, edge - 1..=edge + 1, -edge - 1..=1 - edge, Just(i128::from(u64::MAX) + 1)]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![9 => "[a-z\"\\\\/é\u{1f600}]{0,4}", 1 => "\\PC{0,3}", 1 => "[\u{0}-\u{1f}\u{7f}\u{202e}\u{feff}\u{fdd0}]"]
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        1 => Just(Json::Null),
        1 => any::<bool>().prop_map(Json::Bool),
        8 => integer().prop_map(Json::Integer),
        1 => select(&NUMBERS[..]).prop_map(Json::Number),
        8 => text().prop_map(Json::Text),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let name = prop_oneof![8 => select(&NAMES[..5]).prop_map(str::to_owned), 1 => select(&NAMES[..]).prop_map(str::to_owned), 8 => text()];
        prop_oneof![
            1 => vec(inner.clone(), 0..4).prop_map(Json::Array),
            3 => vec((name, inner), 0..5).prop_map(Json::Object),
        ]
    })
}

impl Json {
    fn write(&self, text: &mut String) {
        let string = |string: &str| Value::from(string).to_string();
        match self {
            Self::Null => text.push_str("null"),
            Self::Bool(value) => text.push_str(&value.to_string()),
            Self::Integer(value) => text.push_str(&value.to_string()),
            Self::Number(spelt) => text.push_str(spelt),
            Self::Text(value) => text.push_str(&string(value)),
            Self::Array(items) => {
                text.push('[');
                for (at, item) in items.iter().enumerate() {
                    text.push_str(if at > 0 { "," } else { "" });
                    item.write(text);
                }
                text.push(']');
            }
            Self::Object(members) => {
                text.push('{');
                for (at, (name, member)) in members.iter().enumerate() {
                    text.push_str(if at > 0 { "," } else { "" });
                    text.push_str(&string(name));
                    text.push(':');
                    member.write(text);
                }
                text.push('}');
            }
        }
    }

    /// The rules of strict I-JSON, as they are told to callers.
    fn is_strict(&self) -> bool {
        let visible = |text: &str| {
            !text.chars().any(|letter| {
                let code = u32::from(letter);
                let is_noncharacter = (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe;
                letter.is_control() || is_noncharacter || DIRECTION.contains(letter)
            })
        };
        match self {
            Self::Null | Self::Bool(_) => true,
            Self::Integer(value) => value.unsigned_abs() <= INTEGER_MAX.into(),
            Self::Number(_) => false,
            Self::Text(text) => visible(text),
            Self::Array(items) => items.iter().all(Self::is_strict),
            Self::Object(members) => {
                let mut names: Vec<_> = members.iter().map(|(name, _)| name).collect();
                names.sort();
                names.dedup();
                names.len() == members.len()
                    && members.iter().all(|(name, member)| {
                        visible(name) && !name.starts_with("$serde_json::private") && member.is_strict()
                    })
            }
        }
    }

    fn inner(&self) -> Vec<&Self> {
        match self {
            Self::Array(items) => items.iter().collect(),
            Self::Object(members) => members.iter().map(|(_, member)| member).collect(),
            _ => Vec::new(),
        }
    }

    fn nodes(&self) -> usize {
        1 + self.inner().into_iter().map(Self::nodes).sum::<usize>()
    }

    fn depth(&self) -> usize {
        let own = usize::from(matches!(self, Self::Array(_) | Self::Object(_)));
        own + self.inner().into_iter().map(Self::depth).max().unwrap_or(0)
    }
}

/// The names of the contract's claims, and others.
fn claim() -> impl Strategy<Value = String> {
    let schema = std::fs::read(repository("policy/schemas/quote-v1.schema.json")).unwrap();
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let claims: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
    prop_oneof![40 => select(claims), 1 => "[a-z~/]{0,50}"]
}

fn claim_value() -> impl Strategy<Value = Value> {
    const NEAR: [&str; 16] = [
        "v1",
        "acme-remit",
        "GBP",
        "JPY",
        "250.00",
        "0.00",
        "250",
        "90071992547409.91",
        "118.2437",
        "0.0000000001",
        "999999999.9999999999",
        "2026-06-15T10:00:00Z",
        "2026-06-15T10:10:00Z",
        "9999-12-31T23:59:59.999Z",
        "0000-01-01T00:00:00Z",
        "",
    ];
    prop_oneof![
        12 => select(&NEAR[..]).prop_map(Value::from),
        2 => "[0-9]{1,17}(\\.[0-9]{1,11})?".prop_map(Value::from),
        1 => "\\PC{0,40}".prop_map(Value::from),
        1 => (-9_007_199_254_740_991_i64..=9_007_199_254_740_991).prop_map(Value::from),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(serde_json::json!({"a": ["b"]})),
    ]
}

/// RFC 6901: empty, or parts behind a slash each, with `~` only before 0 or 1.
fn is_pointer(text: &str) -> bool {
    let escapes_are_good = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    (text.is_empty() || text.starts_with('/')) && escapes_are_good
}

thread_local! {
    static STAGES: Stages = Stages::shipped();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The strict reader takes exactly what the rules allow, and reads it as everybody does.
    #[test]
    fn what_is_read_is_strict_and_all_that_is_strict_is_read(
        json in any_json(), depth_max in 1..6_usize, nodes_max in 1..30_usize,
    ) {
        let mut text = String::new();
        json.write(&mut text);
        let limits = Limits { payload_bytes_max: text.len(), depth_max, nodes_max };
        let allowed = matches!(json, Json::Object(_))
            && json.is_strict() && json.depth() <= depth_max && json.nodes() <= nodes_max;
        let read = json::read_object(text.as_bytes(), &limits);
        prop_assert_eq!(read.is_ok(), allowed, "{}: {:?}", text, read);
        if let Ok(object) = read {
            prop_assert_eq!(Value::Object(object), serde_json::from_str::<Value>(&text).unwrap());
            let one_byte_less = Limits { payload_bytes_max: text.len() - 1, ..limits };
            prop_assert!(json::read_object(text.as_bytes(), &one_byte_less).is_err());
        }
    }

    /// The canonical form is its own canonical form.
    #[test]
    fn canonicalising_twice_is_canonicalising_once(json in any_json()) {
        let mut text = String::new();
        json.write(&mut text);
        if let Ok(object) = json::read_object(text.as_bytes(), &LIMITS) {
            let once = serde_jcs::to_vec(&object).unwrap();
            let again = json::read_object(&once, &LIMITS).unwrap();
            prop_assert_eq!(serde_jcs::to_vec(&again).unwrap(), once);
            prop_assert_eq!(again, object);
        }
    }

    /// Validation ends for every object, and says where the fault lies.
    #[test]
    fn validation_ends_for_every_object_and_names_places(
        changed in vec((claim(), option::weighted(0.9, claim_value())), 1..6), bare in prop::bool::weighted(0.2),
    ) {
        let example = std::fs::read(repository("examples/quote.json")).unwrap();
        let mut quote: Map<String, Value> = if bare { Map::new() } else { serde_json::from_slice(&example).unwrap() };
        for (claim, value) in changed {
            match value {
                Some(value) => quote.insert(claim, value),
                None => quote.remove(&claim),
            };
        }
        let payload = serde_json::to_vec(&quote).unwrap();
        let outcome = STAGES.with(|stages| stages.validate(&payload).map(drop));
        if let Err(Refusal::Invalid(Invalid::Violations(violations))) = outcome {
            prop_assert!(!violations.is_empty());
            for violation in violations {
                prop_assert!(is_pointer(&violation.pointer), "{}", violation.pointer);
                prop_assert!(!violation.reason.is_empty());
            }
        }
    }

    /// A pointer leads back to its claim, whatever the claim is called.
    #[test]
    fn a_pointer_leads_to_its_claim(name in "[~/01a-c\\PC]{1,12}") {
        let pointer = pointer(&name);
        prop_assert!(is_pointer(&pointer), "{}", pointer);
        let quote = Value::Object(Map::from_iter([(name, Value::from("found"))]));
        prop_assert_eq!(quote.pointer(&pointer), Some(&Value::from("found")));
    }

    /// Every instant of the calendar is read back from its own text.
    #[test]
    fn an_instant_is_read_back(millis in -62_167_219_200_000..253_402_300_800_000_i64) {
        let at = UtcTime::from_millis(millis);
        prop_assert_eq!(UtcTime::parse(&at.to_string()), Ok(at));
    }

    /// A time is taken exactly where its date is in the calendar and its hour on the clock.
    #[test]
    fn a_time_is_taken_where_it_exists(
        year in 0..=9999_i32, month in 0..=13_u8, day in 0..=32_u8, hour in 0..=24_u8, minute in 0..=60_u8,
        second in 0..=61_u8, millis in option::of(0..=999_u16),
    ) {
        let fraction = millis.map(|millis| format!(".{millis:03}")).unwrap_or_default();
        let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z");
        let date = time::Month::try_from(month).ok().and_then(|month| time::Date::from_calendar_date(year, month, day).ok());
        let of_day = time::Time::from_hms_milli(hour, minute, second, millis.unwrap_or(0)).ok();
        let exists = date.zip(of_day).map(|(date, of_day)| {
            let nanos = time::PrimitiveDateTime::new(date, of_day).assume_utc().unix_timestamp_nanos();
            i64::try_from(nanos.div_euclid(1_000_000)).unwrap()
        });
        prop_assert_eq!(UtcTime::parse(&text).ok().map(UtcTime::millis), exists, "{}", text);
    }

    /// No other text is a time: what is taken is what would be written, but for a fraction of zeros.
    #[test]
    fn a_time_has_one_spelling(text in "[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-5][0-9]:[0-6][0-9](\\.[0-9]{0,4})?([Zz]|\\+00:00)?") {
        if let Ok(at) = UtcTime::parse(&text) {
            prop_assert_eq!(at.to_string(), text.replace(".000Z", "Z"));
        }
    }

    /// Verification ends for every text, goes through every step, and takes nothing that nobody has signed.
    #[test]
    fn verification_ends_for_every_text(
        parts in vec(prop_oneof![any_json().prop_map(|json| {
            let mut text = String::new();
            json.write(&mut text);
            URL_SAFE_NO_PAD.encode(text)
        }), "[A-Za-z0-9_=-]{0,20}", "\\PC{0,10}"], 0..5),
        ours in any::<bool>(),
    ) {
        let mut parts = parts;
        if let Some(header) = parts.first_mut().filter(|_| ours) {
            *header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"RS256","kid":"{KID}","typ":"JWT"}}"#));
        }
        let jws = CompactJws::from_text(parts.join("."));
        let (steps, valid) = STAGES.with(|stages| {
            let evidence = Evidence {
                key: &|kid| stages.policy.key(kid).map(|key| &*key.public),
                partner: None,
                contract: &|quote| stages.policy.contract_of(quote).map(AsRef::as_ref),
                now: stages.now,
            };
            let report = verification::verify(&jws, &evidence);
            (report.findings().iter().map(|(step, _)| *step).collect::<Vec<_>>(), report.is_valid())
        });
        prop_assert_eq!(steps, Step::ALL);
        prop_assert!(!valid);
    }
}
