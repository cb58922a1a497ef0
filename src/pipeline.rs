//! The path of one quote, top to bottom. [`Pipeline::sign_quote`] is the whole of it; each stage takes what
//! the stage before it made, and only that stage can make it, so a skipped stage does not compile:
//!
//! ```no_run
//! # use quotesign::{audit::Context, clock::ClockGuard, ledger::Ledger, policy::Bundle, signer::keyring::Keyring};
//! use quotesign::pipeline::{commit, reserve::Pending, sign, verify};
//! # async fn finish(pending: Pending, policy: &Bundle, keyring: &Keyring, ledger: &Ledger, clock: &ClockGuard,
//! #     context: Context) {
//! let signed = sign::sign(pending, keyring, std::time::Instant::now()).await.unwrap();
//! let verified = verify::verify(signed, policy, clock).unwrap();
//! let released = commit::commit(verified, ledger, clock, context).await;
//! # }
//! ```
//!
//! A quote without a reservation cannot be signed:
//!
//! ```compile_fail,E0308
//! # use quotesign::signer::keyring::Keyring;
//! use quotesign::pipeline::{canonicalise::Canonical, sign};
//! # async fn skip(canonical: Canonical, keyring: &Keyring) {
//! let signed = sign::sign(canonical, keyring, std::time::Instant::now()).await.unwrap();
//! # }
//! ```
//!
//! A signature that was not verified cannot be committed:
//!
//! ```compile_fail,E0308
//! # use quotesign::{audit::Context, clock::ClockGuard, ledger::Ledger, signer::keyring::Keyring};
//! use quotesign::pipeline::{commit, reserve::Pending, sign};
//! # async fn skip(pending: Pending, keyring: &Keyring, ledger: &Ledger, clock: &ClockGuard, context: Context) {
//! let signed = sign::sign(pending, keyring, std::time::Instant::now()).await.unwrap();
//! let released = commit::commit(signed, ledger, clock, context).await;
//! # }
//! ```
//!
//! Nor can what a stage makes be made by hand:
//!
//! ```compile_fail,E0423
//! let counted = quotesign::pipeline::attempts::Counted(());
//! ```

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;

use crate::{
    audit,
    call::Call,
    clock::ClockGuard,
    domain::{Environment, PolicyDigest},
    json::Limits,
    ledger::{Ledger, Released},
    policy::Bundle,
    signer::keyring::Keyring,
};

pub mod attempts;
pub mod parse;
pub mod validate;
pub mod authorize;
pub mod admit;
pub mod select;
pub mod canonicalise;
pub mod reserve;
pub mod sign;
pub mod verify;
pub mod commit;
pub mod refusal;

use admit::Admission;
use attempts::Attempts;
use parse::QuoteRequest;
use refusal::Refusal;
use reserve::{Held, Pending};

/// What the path of a quote needs. All of it is in memory or behind a queue; the control plane swaps
/// `policy` and never holds the path up.
pub struct Pipeline {
    /// The environment that requests must name.
    pub environment: Environment,
    /// Bounds on payloads.
    pub limits: Limits,
    /// The quota on attempts.
    pub attempts: Attempts,
    /// The devices' capacity.
    pub admission: Admission,
    /// The bundle in force.
    pub policy: Arc<ArcSwap<Bundle>>,
    /// The memory.
    pub ledger: Ledger,
    /// The keys.
    pub keyring: Arc<Keyring>,
    /// The time, where it can be trusted.
    pub clock: Arc<ClockGuard>,
    /// Signatures under way; a drain waits for them.
    pub finishing: TaskTracker,
}

/// A signed quote with what the caller learns beside it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The JWS and what it is bound to.
    pub released: Released,
    /// The bundle under which this call was decided.
    pub policy: PolicyDigest,
    /// Whether an earlier call had it signed.
    pub replayed: bool,
}

impl Pipeline {
    /// Signs one quote under `policy`, or says why not. `trail` gathers what the audit records of this call share.
    ///
    /// # Errors
    /// The first stage's refusal. No number is taken before `reserve`, and none is released before `commit`.
    pub async fn sign_quote(
        self: &Arc<Self>,
        policy: &Arc<Bundle>,
        call: &Call,
        request: QuoteRequest,
        trail: &mut audit::Context,
    ) -> Result<Answer, Refusal> {
        let counted = attempts::count(&self.attempts, policy, call)?;
        let now = self.clock.now()?;
        let parsed = parse::parse(counted, request, self.environment, &self.limits)?;
        let valid = validate::validate(parsed, policy, now, trail)?;
        let authorized = authorize::authorize(valid, policy, call, trail)?;
        let admitted = admit::admit(authorized, &self.admission)?;
        let keyed = select::select_key(admitted, policy, now)?;
        let canonical = canonicalise::canonicalise(keyed)?;
        let (released, replayed) = match reserve::reserve(canonical, policy, &self.ledger, call, now, trail).await? {
            Held::Replay(stored) => (verify::verify_again(stored, policy, now)?, true),
            Held::Pending(pending) => (self.finish(pending, policy, call, trail.clone()).await?, false),
        };
        Ok(Answer { released, policy: policy.digest, replayed })
    }

    /// Sign, verify, commit: in a task of its own, so that a cancelled call cannot come between them.
    async fn finish(
        self: &Arc<Self>,
        pending: Pending,
        policy: &Arc<Bundle>,
        call: &Call,
        context: audit::Context,
    ) -> Result<Released, Refusal> {
        let (path, policy, deadline) = (self.clone(), policy.clone(), call.deadline);
        let finishing = self.finishing.spawn(async move {
            fail::fail_point!("pipeline::before-sign");
            let signed = sign::sign(pending, &path.keyring, deadline).await?;
            let verified = verify::verify(signed, &policy, &path.clock)?;
            fail::fail_point!("pipeline::before-commit");
            Ok(commit::commit(verified, &path.ledger, &path.clock, context).await?)
        });
        finishing.await.unwrap_or(Err(Refusal::Torn))
    }
}
