//! The bundle that comes with the gateway, as it stands in the binary: the example that a development environment
//! starts from, and the contract that `quotesign verify` knows by itself.

use super::{Bundle, Problem, loader};

/// `policy.toml`.
pub const POLICY: &str = include_str!("../../examples/policy-development/policy.toml");

/// The files that do not depend on an environment's own keys.
pub const FILES: [(&str, &str); 5] = [
    ("authorize.cedar", include_str!("../../examples/policy-development/authorize.cedar")),
    ("quotesign.cedarschema", include_str!("../../examples/policy-development/quotesign.cedarschema")),
    ("currencies.csv", include_str!("../../examples/policy-development/currencies.csv")),
    ("schemas/quote-v1.schema.json", include_str!("../../examples/policy-development/schemas/quote-v1.schema.json")),
    ("README.md", include_str!("../../examples/policy-development/README.md")),
];

/// The example's public key. Its private half was thrown away.
const KEY: (&str, &str) = (
    "keys/quote-signing-2026-06.jwk.json",
    include_str!("../../examples/policy-development/keys/quote-signing-2026-06.jwk.json"),
);

/// The shipped bundle as a whole.
///
/// # Errors
/// Never for a binary that passed its tests.
pub fn bundle() -> Result<Bundle, Vec<Problem>> {
    let all = FILES.into_iter().chain([KEY, ("policy.toml", POLICY)]);
    loader::check(&all.map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec())).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_shipped_bundle_is_good() {
        let bundle = super::bundle().unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(bundle.partners().count(), 1);
    }
}
