//! The validate stage refuses with at least one violation, each at a JSON Pointer, and never with nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quotesign::pipeline::validate::Invalid;

fuzz_target!(|payload: &[u8]| {
    let Ok(parsed) = quotesign_fuzz::parsed(payload) else { return };
    if let Err(Invalid::Violations(violations)) = quotesign_fuzz::valid(parsed) {
        assert!(!violations.is_empty());
        for violation in violations {
            assert!(violation.pointer.is_empty() || violation.pointer.starts_with('/'), "{}", violation.pointer);
            assert!(!violation.reason.is_empty());
        }
    }
});
