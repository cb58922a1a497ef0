//! The canonical form of what was read is read back as the same value, is its own canonical form, and is what an
//! independent canonicaliser writes. A valid quote always has one.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quotesign::json;
use quotesign_fuzz::LIMITS;

fuzz_target!(|payload: &[u8]| {
    let Ok(object) = json::read_object(payload, &LIMITS) else { return };
    let canonical = serde_jcs::to_vec(&object).expect("a canonical form");
    assert_eq!(serde_json_canonicalizer::to_vec(&object).expect("a canonical form"), canonical);
    let again = json::read_object(&canonical, &LIMITS).expect("the canonical form is strict too");
    assert_eq!(serde_jcs::to_vec(&again).expect("a canonical form"), canonical);
    assert_eq!(again, object);
    if let Ok(valid) = quotesign_fuzz::parsed(payload).map_err(drop).and_then(|it| quotesign_fuzz::valid(it).map_err(drop)) {
        let _denied_or_not = quotesign_fuzz::canonical(valid);
    }
});
