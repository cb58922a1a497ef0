//! What the gateways of two environments must not share.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};

use super::Config;
use crate::transport::tls;

impl Config {
    /// What this gateway shares with `other`, a line each: CAs and trust domains of callers, the ledger, the anchor, tokens.
    ///
    /// # Errors
    /// Where a file of CAs cannot be read.
    pub fn shared_with(&self, other: &Self) -> Result<Vec<String>, String> {
        let theirs = other.environment;
        let mut lines = Vec::new();
        if self.environment == theirs {
            lines.push(format!("both are for {theirs}; compare two environments"));
        }
        for ((what, ours), (_, others)) in self.own()?.into_iter().zip(other.own()?) {
            for both in ours.intersection(&others) {
                lines.push(format!("{what} `{both}` is {theirs}'s too; give each environment its own"));
            }
        }
        Ok(lines)
    }

    fn own(&self) -> Result<[(&'static str, BTreeSet<String>); 5], String> {
        let mut authorities = BTreeSet::new();
        for listener in [&self.grpc, &self.admin] {
            for certificate in tls::certificates(&listener.client_ca).map_err(|fault| fault.to_string())? {
                authorities.insert(hex::encode(digest(&SHA256, &certificate)));
            }
        }
        let domains = [&self.grpc, &self.admin].into_iter().filter_map(|listener| listener.trust_domain.clone());
        let ledger = self.ledger.place()?;
        let anchor = ledger.anchor.as_ref().map(|anchor| anchor.display().to_string());
        let tokens = self.signers.iter().map(|signer| format!("{} of {}", signer.token, signer.module.display()));
        Ok([
            ("the CA of callers with the SHA-256", authorities),
            ("the trust domain", domains.collect()),
            ("the ledger", [ledger.to_string()].into()),
            ("the anchor", anchor.into_iter().collect()),
            ("the token", tokens.collect()),
        ])
    }
}
