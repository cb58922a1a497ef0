//! What a key must be before it signs: one of KMS's own making, for RS256, enabled, and the very key that policy
//! pins. Pure; asking KMS for it is left to `check`, and to others what follows from it.

use super::{
    client::{Client, Described, PublicHalf, RS256},
    fault::{Fault, Kind},
    spki,
};
use crate::signer::locator::KeyArn;
use crate::{jwk::PublicKey, signer::Attributes};

/// What is not against a key but worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remarks(pub(super) Vec<String>);

/// A key's public half: modulus and exponent.
pub(super) type Integers = (Vec<u8>, Vec<u8>);

/// Asks KMS what this key is, and judges it.
pub(super) async fn check(
    client: &dyn Client,
    key: &KeyArn,
    attributes: Attributes,
) -> Result<(Integers, Remarks), Fault> {
    let told = client.describe(key.as_str()).await?;
    if told.arn != key.as_str() {
        return Err(Fault::nonsense("`DescribeKey` told of another key"));
    }
    let remarks = judge(&told, attributes)?;
    let half = client.public_half(key.as_str()).await?;
    Ok((public(&half)?, remarks))
}

/// Whether a key that policy pins is this one.
pub(super) fn is_pinned(pin: &PublicKey, (modulus, exponent): &Integers) -> Result<(), Fault> {
    if pin.same_key(modulus, exponent) { Ok(()) } else { Err(Fault::unfit("it is not the key that policy pins")) }
}

/// The length of an RSA modulus in bits, by the name that KMS gives it.
pub(super) fn bits(spec: &str) -> Option<u32> {
    spec.strip_prefix("RSA_").and_then(|bits| bits.parse().ok()).filter(|bits| [2048, 3072, 4096].contains(bits))
}

/// Whether the key may sign, as its description says.
pub(super) fn judge(told: &Described, attributes: Attributes) -> Result<Remarks, Fault> {
    let (spec, usage, origin) = (&told.spec, &told.usage, &told.origin);
    if usage != "SIGN_VERIFY" {
        return Err(Fault::unfit(format!("its usage is `{usage}` and must be `SIGN_VERIFY`")));
    }
    if bits(spec).is_none() {
        return Err(Fault::unfit(format!("its spec is `{spec}` and must be RSA_2048, RSA_3072 or RSA_4096")));
    }
    match told.state.as_str() {
        "Enabled" => {}
        "Disabled" => {
            return Err(Fault::new(Kind::Refused, "the key is disabled; enable it with `aws kms enable-key`"));
        }
        "PendingDeletion" | "PendingReplicaDeletion" => {
            let text = "the key is to be deleted; if that is a mistake, `aws kms cancel-key-deletion` and enable it";
            return Err(Fault::new(Kind::Refused, text));
        }
        state => return Err(Fault::new(Kind::Refused, format!("the key's state is `{state}` and must be `Enabled`"))),
    }
    let mut remarks = Vec::new();
    // In a CloudHSM cluster a key is generated as in KMS itself. Of an imported one there is a copy outside, and of
    // an external store nobody can tell.
    if attributes != Attributes::Off && !["AWS_KMS", "AWS_CLOUDHSM"].contains(&origin.as_str()) {
        let why = format!("its origin is `{origin}`, so it was not generated in an HSM of AWS");
        if attributes == Attributes::Require {
            return Err(Fault::unfit(why));
        }
        remarks.push(format!("{why}; it signs only since `attributes` says `warn`"));
    }
    if told.multi_region {
        remarks.push("it is a multi-region key: its replicas in other regions hold the same private half".to_owned());
    }
    Ok(Remarks(remarks))
}

/// The public half, if it is that of an RSA key for [`RS256`]. Whose it is shows by the pin or by a test signature.
pub(super) fn public(half: &PublicHalf) -> Result<Integers, Fault> {
    if !half.algorithms.iter().any(|algorithm| algorithm == RS256) {
        return Err(Fault::unfit(format!("it does not sign with {RS256}")));
    }
    spki::rsa(&half.der).ok_or_else(|| Fault::unfit("its public half is no RSA key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Described {
        Described {
            arn: String::new(),
            usage: "SIGN_VERIFY".to_owned(),
            state: "Enabled".to_owned(),
            spec: "RSA_3072".to_owned(),
            origin: "AWS_KMS".to_owned(),
            multi_region: false,
            is_of_aws: false,
        }
    }

    #[test]
    fn each_thing_that_is_against_a_key_is_named() {
        type Change = fn(&mut Described);
        let cases: [(Change, Kind, &str); 10] = [
            (|it| it.usage = "ENCRYPT_DECRYPT".to_owned(), Kind::Unfit, "its usage is `ENCRYPT_DECRYPT`"),
            (|it| it.usage = "not told".to_owned(), Kind::Unfit, "its usage is `not told`"),
            (|it| it.spec = "ECC_NIST_P256".to_owned(), Kind::Unfit, "its spec is `ECC_NIST_P256`"),
            (|it| it.spec = "RSA_1024".to_owned(), Kind::Unfit, "its spec is `RSA_1024`"),
            (|it| it.state = "Disabled".to_owned(), Kind::Refused, "is disabled; enable it"),
            (|it| it.state = "PendingDeletion".to_owned(), Kind::Refused, "is to be deleted"),
            (|it| it.state = "PendingImport".to_owned(), Kind::Refused, "state is `PendingImport`"),
            (|it| it.state = "Unavailable".to_owned(), Kind::Refused, "state is `Unavailable`"),
            (|it| it.origin = "EXTERNAL".to_owned(), Kind::Unfit, "its origin is `EXTERNAL`"),
            (|it| it.origin = "EXTERNAL_KEY_STORE".to_owned(), Kind::Unfit, "its origin is `EXTERNAL_KEY_STORE`"),
        ];
        for (change, kind, text) in cases {
            let mut described = told();
            change(&mut described);
            let fault = judge(&described, Attributes::Require).unwrap_err();
            assert!(fault.kind == kind && fault.to_string().contains(text), "{fault:?}");
        }
    }

    #[test]
    fn an_imported_key_signs_only_where_attributes_say_so_and_a_cloudhsm_key_always() {
        let imported = Described { origin: "EXTERNAL".to_owned(), ..told() };
        assert_eq!(judge(&imported, Attributes::Warn).unwrap().0.len(), 1);
        assert_eq!(judge(&imported, Attributes::Off).unwrap().0, Vec::<String>::new());
        let cluster = Described { origin: "AWS_CLOUDHSM".to_owned(), multi_region: true, ..told() };
        assert!(judge(&cluster, Attributes::Require).unwrap().0.concat().contains("multi-region"));
    }
}
