//! What the parse stage takes is strict I-JSON: plain `serde_json` reads the same value, and no number in it is
//! anything but an integer within 2^53 - 1.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quotesign::{domain::INTEGER_MAX, json};
use quotesign_fuzz::LIMITS;
use serde_json::Value;

fuzz_target!(|payload: &[u8]| {
    if let Ok(object) = json::read_object(payload, &LIMITS) {
        let object = Value::Object(object);
        assert_eq!(serde_json::from_slice::<Value>(payload).expect("JSON"), object);
        assert!(is_plain(&object));
    }
    let _refused_or_not = quotesign_fuzz::parsed(payload);
});

fn is_plain(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_i64().is_some_and(|number| number.unsigned_abs() <= INTEGER_MAX),
        Value::Array(items) => items.iter().all(is_plain),
        Value::Object(members) => members.values().all(is_plain),
        _ => true,
    }
}
