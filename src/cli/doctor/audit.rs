//! What makes the journal worth keeping: the key of customers' references, and signed checkpoints.

use crate::domain::Environment;

use super::{
    Site,
    report::{Check, Report},
};

pub(super) fn look(site: &Site<'_>, report: &mut Report) {
    let config = site.config;
    match config.reference_key() {
        Ok(Some(_)) => report.ok(Check::AuditReferenceKey, "", "it is a key; all gateways of a ledger need the same"),
        Ok(None) => {
            report.skipped(Check::AuditReferenceKey, "", "none is configured: records hold nothing of customers");
        }
        Err(why) => report.fault(Check::AuditReferenceKey, "", why, "give 32 to 1024 random bytes"),
    }
    let check = Check::AuditCheckpoints;
    match &config.audit.checkpoint {
        None if config.environment == Environment::Production => {
            let evidence =
                "production has no `[audit.checkpoint]`: whoever can change the ledger can write its journal anew";
            report.warning(check, "", evidence, "`quotesign keys generate --for checkpoints` prints the section");
        }
        None => report.skipped(check, "", "none are configured"),
        Some(section) => match section.keys() {
            Ok(keys) => {
                let every = section.interval_s;
                report.ok(
                    check,
                    "",
                    format!("one in {every} s, of {}; {} keys known", section.origin(config.environment), keys.len()),
                );
            }
            Err(why) => {
                report.fault(check, "", why, "write the public JWK there: `quotesign keys jwk --for checkpoints`");
            }
        },
    }
}
