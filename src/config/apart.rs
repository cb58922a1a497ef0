//! What the gateways of two environments must not share.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};

use super::{CheckpointSection, Config};
use crate::{jwk::PublicKey, transport::tls};

impl Config {
    /// What this gateway shares with `other`, a line each: CAs and trust domains of callers, the ledger, the anchor, tokens, and the keys
    /// of bundles, checkpoints and customers' references. Tokens count as one by module and label: which device is behind them
    /// nobody is asked.
    ///
    /// # Errors
    /// Where a file of CAs or of a key cannot be read.
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

    fn own(&self) -> Result<[(&'static str, BTreeSet<String>); 8], String> {
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
        let bundles = self.policy_key()?.map(|key| key.thumbprint());
        let checkpoints = self.audit.checkpoint.as_ref().map(CheckpointSection::keys).transpose()?.unwrap_or_default();
        let references = self.reference_key()?.map(|key| key.id().to_owned());
        Ok([
            ("the CA of callers with the SHA-256", authorities),
            ("the trust domain", domains.collect()),
            ("the ledger", [ledger.where_it_is()].into()),
            ("the anchor", anchor.into_iter().collect()),
            ("the token", tokens.collect()),
            ("the key of policy bundles with the thumbprint", bundles.into_iter().collect()),
            ("the key of checkpoints with the thumbprint", checkpoints.iter().map(PublicKey::thumbprint).collect()),
            ("the key of customers' references with the id", references.into_iter().collect()),
        ])
    }
}
