//! A KMS of our own for unit tests: it holds one key, signs what it is given, and does as it is told.

use async_trait::async_trait;
use aws_lc_rs::{
    digest::{Digest, SHA256},
    encoding::AsDer as _,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    client::{Alias, Client, Creation, Described, Page, PublicHalf, RS256, Signed},
    fault::{Fault, Kind},
};
use crate::signer::locator::KeyArn;
use crate::{domain::InputDigest, jwk::PublicKey};

pub(super) const REGION: &str = "eu-west-1";
pub(super) const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

/// What comes of a call.
pub(super) type Turn = fn(Signed) -> Result<Signed, Fault>;

pub(super) struct Fake {
    pair: KeyPair,
    described: Mutex<Described>,
    credentials: Mutex<Result<(), Fault>>,
    turn: Mutex<Turn>,
    signs: Mutex<usize>,
    /// While there is one, each signature waits for it.
    gate: Mutex<Option<std::sync::Arc<Notify>>>,
}

impl Fake {
    pub(super) fn new() -> Self {
        let described = Described {
            arn: ARN.to_owned(),
            usage: "SIGN_VERIFY".to_owned(),
            state: "Enabled".to_owned(),
            spec: "RSA_2048".to_owned(),
            origin: "AWS_KMS".to_owned(),
            multi_region: false,
            is_of_aws: false,
        };
        Self {
            pair: KeyPair::generate(KeySize::Rsa2048).unwrap(),
            described: Mutex::new(described),
            credentials: Mutex::new(Ok(())),
            turn: Mutex::new(Ok),
            signs: Mutex::new(0),
            gate: Mutex::new(None),
        }
    }

    pub(super) fn public(&self) -> PublicKey {
        let modulus = self.pair.public_key().modulus().big_endian_without_leading_zero();
        PublicKey::new("quote-signing-fake".parse().unwrap(), modulus, &[1, 0, 1]).unwrap()
    }

    /// From now on this comes of each signature.
    pub(super) fn answers(&self, turn: Turn) {
        *self.turn.lock() = turn;
    }

    pub(super) fn has_credentials(&self, found: Result<(), Fault>) {
        *self.credentials.lock() = found;
    }

    pub(super) fn is_in_state(&self, state: &str) {
        state.clone_into(&mut self.described.lock().state);
    }

    pub(super) fn gate(&self) -> std::sync::Arc<Notify> {
        std::sync::Arc::clone(self.gate.lock().get_or_insert_default())
    }

    /// How many signatures were asked for.
    pub(super) fn signs(&self) -> usize {
        *self.signs.lock()
    }
}

#[async_trait]
impl Client for Fake {
    async fn credentials(&self) -> Result<(), Fault> {
        self.credentials.lock().clone()
    }

    async fn sign(&self, key: &KeyArn, digest: InputDigest) -> Result<Signed, Fault> {
        *self.signs.lock() += 1;
        let gate = self.gate.lock().clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        let mut signature = vec![0; self.pair.public_modulus_len()];
        let digest = Digest::import_less_safe(&digest.0, &SHA256).unwrap();
        self.pair.sign_digest(&RSA_PKCS1_SHA256, &digest, &mut signature).unwrap();
        let turn = *self.turn.lock();
        turn(Signed {
            key: key.to_string(),
            algorithm: RS256.to_owned(),
            signature,
            took: std::time::Duration::from_millis(1),
        })
    }

    async fn describe(&self, key: &str) -> Result<Described, Fault> {
        let told = self.described.lock().clone();
        if key == told.arn { Ok(told) } else { Err(Fault::new(Kind::Refused, "AWS KMS has no such key")) }
    }

    async fn public_half(&self, _: &str) -> Result<PublicHalf, Fault> {
        let der = self.pair.public_key().as_der().unwrap();
        Ok(PublicHalf { der: der.as_ref().to_vec(), algorithms: vec![RS256.to_owned()] })
    }

    async fn create(&self, _: &Creation) -> Result<Described, Fault> {
        Err(Fault::unfit("the fake makes no keys"))
    }

    async fn give_alias(&self, _: &str, _: &str) -> Result<(), Fault> {
        Err(Fault::unfit("the fake has no aliases"))
    }

    async fn keys(&self, _: Option<String>) -> Result<Page<String>, Fault> {
        Ok(Page { items: vec![ARN.to_owned()], next: None })
    }

    async fn aliases(&self, _: Option<String>) -> Result<Page<Alias>, Fault> {
        Ok(Page { items: Vec::new(), next: None })
    }

    async fn tags(&self, _: &str) -> Result<Vec<(String, String)>, Fault> {
        Ok(Vec::new())
    }
}
