//! The devices: each is reached once and entered once, and shows the keys that policy pins on it.

use std::sync::Arc;

use crate::{
    cli::block_on,
    control,
    domain::{KeyState, Kid},
    gateway,
    jwk::{MODULUS_BITS_MIN, PublicKey},
    policy::timeline::TimedKey,
    signer::{
        Attributes,
        provision::{Examination, Examined, ProvisionError},
    },
};

use super::{
    Site,
    report::{Check, Report},
};

const OF_A_KEY: [Check; 4] = [Check::KeyPinned, Check::KeyAttributes, Check::KeySigns, Check::KeySize];

/// A key that should be on a device.
struct Wanted {
    of: String,
    locator: String,
    public: Arc<PublicKey>,
    attributes: Attributes,
}

pub(super) fn look(site: &Site<'_>, report: &mut Report) {
    for name in site.config.signer_names() {
        let wanted = wanted(site, name);
        let locators: Vec<String> = wanted.iter().map(|key| key.locator.clone()).collect();
        let Some(device) = gateway::provisioner(site.config, name) else { continue };
        match block_on(async { Ok(device.examine(&locators).await) }) {
            Ok(seen) => look_at_device(name, &wanted, seen, report),
            Err(failure) => report.fault(Check::SignerReached, name, failure.text, "run the command again"),
        }
    }
}

/// The keys of policy on this signer, and that of checkpoints.
fn wanted(site: &Site<'_>, name: &str) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let standings = site.standings();
    let is_revoked = |kid: &Kid| standings.as_ref().is_some_and(|known| known.of(kid).is_revoked);
    // One that signs no more need not be there any more.
    let signs = |key: &&Arc<TimedKey>| key.state(site.now) <= KeyState::Active && !is_revoked(&key.kid);
    for key in site.bundle.iter().flat_map(|bundle| bundle.timeline.all()).filter(signs) {
        for (_, locator) in key.places.iter().filter(|(signer, _)| signer == name) {
            let attributes = control::attributes_of(key);
            let (of, public) = (format!("{} on {name}", key.kid), Arc::clone(&key.public));
            wanted.push(Wanted { of, locator: locator.clone(), public, attributes });
        }
    }
    let checkpoints = site.config.audit.checkpoint.iter().filter(|section| section.signer == name);
    wanted.extend(checkpoints.filter_map(|section| {
        let public = Arc::new(section.key().ok()?);
        let of = format!("{} on {name}", public.kid());
        Some(Wanted { of, locator: section.locator.clone(), public, attributes: Attributes::Require })
    }));
    wanted
}

fn look_at_device(name: &str, wanted: &[Wanted], seen: Examination, report: &mut Report) {
    let (mut entered, mut keys) = (false, seen.keys.into_iter());
    match seen.reached {
        Err(fault) => {
            let remedy = "see that the module loads here and its token is there, by label and serial: `docs/hsm.md`, `docs/kms.md`";
            report.fault(Check::SignerReached, name, fault.to_string(), remedy);
            report.skipped(Check::SignerLogin, name, "its device was not reached");
        }
        Ok(what) => {
            report.ok(Check::SignerReached, name, what);
            entered = seen.entered.is_ok();
            match seen.entered {
                Ok(how) => report.ok(Check::SignerLogin, name, how),
                Err(ProvisionError::Pin(why)) => {
                    let remedy = "mend the PIN before anything tries again: each wrong one counts, and a few lock the token. \
                                  This command made at most one try";
                    report.fault(Check::SignerLogin, name, why, remedy);
                }
                Err(fault) => {
                    let remedy = "see that the PIN is where `pin_file` or `pin_env` say, and that the device is well";
                    report.fault(Check::SignerLogin, name, fault.to_string(), remedy);
                }
            }
        }
    }
    for key in wanted {
        if let Some(shown) = keys.next() {
            look_at_key(key, shown, report);
            continue;
        }
        let why = if entered { "the device ended before it was come to" } else { "its device lets nobody in" };
        report.skipped(Check::KeyFound, &key.of, why);
        report.all_skipped(&OF_A_KEY, &key.of, why);
    }
}

fn look_at_key(key: &Wanted, shown: Result<Examined, ProvisionError>, report: &mut Report) {
    let of = key.of.as_str();
    let shown = match shown {
        Ok(shown) => shown,
        Err(fault) => {
            let remedy = "mend the locator in policy, or bring the key back: `quotesign keys list` shows what is there";
            report.fault(Check::KeyFound, of, fault.to_string(), remedy);
            return report.all_skipped(&OF_A_KEY, of, "the key was not found");
        }
    };
    report.ok(Check::KeyFound, of, key.locator.clone());
    match &shown.public {
        Err(why) => report.all_skipped(&[Check::KeyPinned, Check::KeySize], of, why),
        Ok((modulus, exponent)) => {
            look_at_pin(key, modulus, exponent, report);
            look_at_size(of, modulus, report);
        }
    }
    look_at_attributes(key, &shown, report);
    match shown.signs {
        Ok(how) => report.ok(Check::KeySigns, of, format!("its test signature by {how} verifies")),
        Err(why) => {
            report.fault(
                Check::KeySigns,
                of,
                why,
                "have the device allow this user RS256 with this key, and enable the key",
            );
        }
    }
}

fn look_at_pin(key: &Wanted, modulus: &[u8], exponent: &[u8], report: &mut Report) {
    if key.public.same_key(modulus, exponent) {
        return report.ok(Check::KeyPinned, &key.of, format!("thumbprint {}", key.public.thumbprint()));
    }
    let is = PublicKey::new(key.public.kid().clone(), modulus, exponent).map(|is| is.thumbprint());
    let is = is.unwrap_or_else(|fault| fault.to_string());
    let evidence = format!("the device holds {is}, and policy pins {}", key.public.thumbprint());
    let remedy = "find out who changed which: a key that was replaced is revoked, `quotesign keys revoke`";
    report.fault(Check::KeyPinned, &key.of, evidence, remedy);
}

fn look_at_size(of: &str, modulus: &[u8], report: &mut Report) {
    let significant = modulus.iter().skip_while(|byte| **byte == 0);
    let zeros = significant.clone().next().map_or(0, |top| top.leading_zeros() as usize);
    let bits = (significant.count() * 8).saturating_sub(zeros);
    if bits >= MODULUS_BITS_MIN {
        report.ok(Check::KeySize, of, format!("RSA {bits}"));
    } else {
        let remedy = "make a new key, of 3072 bits: `quotesign keys generate`";
        report.fault(Check::KeySize, of, format!("RSA {bits}, below {MODULUS_BITS_MIN}"), remedy);
    }
}

fn look_at_attributes(key: &Wanted, shown: &Examined, report: &mut Report) {
    let (check, of) = (Check::KeyAttributes, key.of.as_str());
    let remedy = "make the key anew on the device, where nobody can export it: `quotesign keys generate`";
    match (key.attributes, shown.lacks.is_empty(), shown.remarks.first()) {
        (Attributes::Require, false, _) => {
            report.fault(check, of, format!("it lacks: {}", shown.lacks.join(", ")), remedy);
        }
        (_, false, _) => {
            let evidence = format!("it lacks, and policy lets it: {}", shown.lacks.join(", "));
            report.warning(check, of, evidence, remedy);
        }
        (_, true, Some(remark)) => report.warning(check, of, remark.clone(), "take a key that can do nothing but sign"),
        (_, true, None) => report.ok(check, of, "made on the device, never left it and cannot, and may sign"),
    }
}
