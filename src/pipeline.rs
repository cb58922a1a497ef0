//! The path of one quote, top to bottom. [`Pipeline::sign_quote`] is the whole of it; each stage takes what
//! the stage before it made, and only that stage can make it, so a skipped stage does not compile:
//!
//! ```no_run
//! # use quotesign::{audit::Context, clock::ClockGuard, ledger::Ledger, policy::Bundle};
//! use quotesign::pipeline::{commit, reserve::Pending, sign, verify};
//! # async fn finish(pending: Pending, policy: &Bundle, ledger: &Ledger, clock: &ClockGuard, context: Context) {
//! # let (deadline, gone) = (std::time::Instant::now(), tokio_util::sync::CancellationToken::new());
//! let signed = sign::sign(pending, deadline, gone).await.unwrap();
//! let verified = verify::verify(signed, policy, clock).unwrap();
//! let released = commit::commit(verified, ledger, clock, context).await;
//! # }
//! ```
//!
//! A quote without a reservation cannot be signed:
//!
//! ```compile_fail,E0308
//! use quotesign::pipeline::{admit::Admitted, sign};
//! # async fn skip(admitted: Admitted) {
//! # let (deadline, gone) = (std::time::Instant::now(), tokio_util::sync::CancellationToken::new());
//! let signed = sign::sign(admitted, deadline, gone).await.unwrap();
//! # }
//! ```
//!
//! A signature that was not verified cannot be committed:
//!
//! ```compile_fail,E0308
//! # use quotesign::{audit::Context, clock::ClockGuard, ledger::Ledger};
//! use quotesign::pipeline::{commit, reserve::Pending, sign};
//! # async fn skip(pending: Pending, ledger: &Ledger, clock: &ClockGuard, context: Context) {
//! # let (deadline, gone) = (std::time::Instant::now(), tokio_util::sync::CancellationToken::new());
//! let signed = sign::sign(pending, deadline, gone).await.unwrap();
//! let released = commit::commit(signed, ledger, clock, context).await;
//! # }
//! ```
//!
//! Nor can what a stage makes be made by hand:
//!
//! ```compile_fail,E0423
//! let counted = quotesign::pipeline::attempts::Counted(());
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde_json::{Map, Value};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    audit::{self, customer::ReferenceKey},
    backlog::{Backlog, TooFarBehind},
    call::{Call, Course, Stage, Subject},
    clock::{ClockGuard, UtcTime},
    domain::{Environment, Identity, Kid, PolicyDigest},
    json::Limits,
    ledger::{self, Ledger, LedgerError, Released, Stop},
    outcomes::Outcomes,
    policy::Bundle,
    published::{Published, Standings},
    room::Room,
    signer::keyring::Keyring,
    stopped::Stopped,
    volume::Volumes,
};

pub mod attempts;
pub mod parse;
pub mod validate;
pub mod authorize;
pub mod canonicalise;
pub mod select;
pub mod admit;
pub mod reserve;
pub mod sign;
pub mod verify;
pub mod commit;
pub mod refusal;
pub mod journal;

use admit::{Admitted, Flows};
use attempts::Attempts;
use canonicalise::Canonical;
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
    /// Who takes turns with whom at the devices.
    pub flows: Flows,
    /// The bundle in force.
    pub policy: Arc<ArcSwap<Bundle>>,
    /// The memory.
    pub ledger: Ledger,
    /// What may not be signed, as this replica knows it.
    pub stopped: Arc<Stopped>,
    /// Which keys verifiers know, likewise.
    pub published: Arc<Published>,
    /// Whether this gateway has taken its place at the ledger: it signs nothing before.
    pub joined: Arc<AtomicBool>,
    /// The keys.
    pub keyring: Arc<Keyring>,
    /// The time, where it can be trusted.
    pub clock: Arc<ClockGuard>,
    /// Signatures under way; a drain waits for them.
    pub finishing: TaskTracker,
    /// Under which customers stand in records; they do not where there is none.
    pub customers: Option<ReferenceKey>,
    /// How much each key signs.
    pub volumes: Volumes,
    /// What became of them at the operator's.
    pub outcomes: Outcomes,
    /// How much is journalled singly.
    pub shares: journal::Shares,
    /// How far the shipping of the journal is behind.
    pub backlog: Backlog,
    /// How much room there is where the ledger is.
    pub room: Room,
    /// How far it may be before nothing is signed; nothing depends on it where there is none.
    pub behind_max: Option<Duration>,
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
    /// Counts an attempt to have something signed, whatever is sent with it: a quote of a stream is held back where too many are.
    ///
    /// # Errors
    /// Where the caller's quota is spent, or it is suspended.
    pub async fn attempt(&self, policy: &Bundle, call: &Call) -> Result<attempts::Counted, Refusal> {
        let counted = match call.turn {
            None => attempts::count(&self.attempts, policy, call)?,
            Some(_) => attempts::count_in_time(&self.attempts, policy, call).await?,
        };
        self.let_in(call)?;
        Ok(counted)
    }

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
        let counted = self.attempt(policy, call).await?;
        self.has_joined()?;
        let now = self.clock.now()?;
        let course = &*call.course;
        let parsed = course.time(Stage::Parse, || parse::parse(counted, request, self.environment, &self.limits))?;
        trail.customer_ref = self.customer_ref(policy, parsed.quote());
        let valid = course.time(Stage::Validate, || validate::validate(parsed, policy, now, trail));
        // As far as it was learnt, also where it is not valid.
        let _first = call.subject.set(Subject { partner: trail.partner.clone(), quote_id: trail.quote_id.clone() });
        let valid = valid?;
        let authorized = course.time(Stage::Authorize, || authorize::authorize(valid, policy, call, trail))?;
        let canonical = course.time(Stage::Canonicalise, || canonicalise::canonicalise(authorized, policy))?;
        let mark = canonical.mark().clone();
        let (released, replayed) = match self.hold(canonical, &mark, policy, call, now, trail).await? {
            Held::Replay(stored) => (verify::verify_again(stored, policy, now)?, true),
            Held::Pending(pending) => self.finish(pending, policy, call, trail.clone()).await?,
        };
        // The ledger may have kept the call waiting: what has expired meanwhile stays here.
        if released.expires_at <= self.clock.now()? {
            return Err(verify::VerifyError::Expired.into());
        }
        self.may_release(&mark.identity, &released.kid, call)?;
        Ok(Answer { released, policy: policy.digest, replayed })
    }

    /// Whether nobody has told this gateway to stop what is about to be released, before the ledger could be told.
    fn may_release(&self, identity: &Identity, kid: &Kid, call: &Call) -> Result<(), LedgerError> {
        let revoked = self.stopped.known().is_revoked(kid).then(|| Stop::Revoked(kid.clone()));
        let stop = revoked.or_else(|| self.stopped.here_on(identity, kid, Some(&call.caller)));
        stop.map_or(Ok(()), |stop| {
            Err(LedgerError::Refused(match stop {
                Stop::Revoked(kid) => ledger::Refusal::KidRevoked { kid },
                Stop::Halted(reach) => ledger::Refusal::Halted { reach },
                Stop::Suspended(_) => ledger::Refusal::Suspended,
            }))
        })
    }

    /// What records call the customer of a quote, also of one that is refused; of a quote that names none, nothing.
    fn customer_ref(&self, policy: &Bundle, quote: &Map<String, Value>) -> Option<String> {
        let key = self.customers.as_ref()?;
        let claims = &policy.contract_of(quote)?.claims;
        Some(key.of(quote.get(&claims.partner)?.as_str()?, quote.get(&claims.subscription)?.as_str()?))
    }

    /// Whether what was revoked is known, so that a key may be shown.
    ///
    /// # Errors
    /// Where neither the ledger nor the file beside its anchor has told it yet.
    pub fn knows_revocations(&self) -> Result<(), LedgerError> {
        let unknown = || LedgerError::Unavailable("it is not known yet which keys were revoked".to_owned());
        if self.stopped.is_told() { Ok(()) } else { Err(unknown()) }
    }

    /// What is known of every key at this moment.
    #[must_use]
    pub fn standings(&self) -> Standings {
        Standings::of_now(&self.stopped, &self.published)
    }

    /// Whether this gateway has taken its place at the ledger.
    ///
    /// # Errors
    /// Where it could not be reached yet.
    pub fn has_joined(&self) -> Result<(), LedgerError> {
        let not_yet = || LedgerError::Unavailable("this gateway has not reached its ledger yet".to_owned());
        if self.joined.load(Ordering::Acquire) { Ok(()) } else { Err(not_yet()) }
    }

    /// Turns away a caller that this replica knows to be suspended. Reservations and replays ask the ledger itself.
    ///
    /// # Errors
    /// Where it is.
    pub fn let_in(&self, call: &Call) -> Result<(), Refusal> {
        if self.stopped.known().is_suspended(&call.caller) {
            return Err(LedgerError::Refused(ledger::Refusal::Suspended).into());
        }
        Ok(())
    }

    /// Finds a key and a place at its device, and reserves. A quote that was signed before needs neither to be given again:
    /// it is looked up first where its number has been passed, and else where there is no key or place.
    async fn hold(
        &self,
        canonical: Canonical,
        mark: &canonicalise::Mark,
        policy: &Bundle,
        call: &Call,
        now: UtcTime,
        trail: &audit::Context,
    ) -> Result<Held, Refusal> {
        let course = &*call.course;
        let recall = async || {
            let from = course.begins(Stage::Recall);
            let recalled =
                reserve::recall(mark, &self.ledger, &self.stopped, now, trail, || self.is_replay_written(trail)).await;
            course.ran(Stage::Recall, from);
            recalled
        };
        let has_passed = |(scope, sequence)| self.ledger.has_passed(&scope, sequence);
        let is_looked_up = canonical.numbered(policy).is_some_and(has_passed);
        if is_looked_up {
            match recall().await {
                Ok(Some(stored)) => return Ok(Held::Replay(stored)),
                Err(LedgerError::Refused(refusal)) => return Err(LedgerError::Refused(refusal).into()),
                // Where the look-up fails, the ledger's own transaction decides.
                Ok(None) | Err(_) => {}
            }
        }
        if let Some(turn) = &call.turn {
            turn.comes().await;
        }
        match self.admit(canonical, policy, call).await {
            Ok((admitted, now)) => {
                let from = course.begins(Stage::Reserve);
                let held = reserve::reserve(admitted, policy, &self.ledger, call, now, trail).await;
                course.ran(Stage::Reserve, from);
                Ok(held?)
            }
            Err(refusal) if is_looked_up => Err(refusal),
            Err(refusal) => recall().await?.map(Held::Replay).ok_or(refusal),
        }
    }

    /// Finds a key and a place at its device, and the time at which it had both. A quote of a stream may have waited for its turn, and may
    /// wait for its place: each time that it asks for one it asks for its key, too.
    async fn admit(&self, canonical: Canonical, policy: &Bundle, call: &Call) -> Result<(Admitted, UtcTime), Refusal> {
        let (course, mut canonical, from) = (&*call.course, canonical, Instant::now());
        self.is_shipped_in_time(self.clock.now()?)?;
        self.has_room()?;
        loop {
            let now = self.clock.now()?;
            let select = || select::select_key(canonical, policy, &self.keyring, &self.standings(), now);
            let keyed = course.time(Stage::Select, select)?;
            let admitted = admit::admit(keyed, &self.flows, call);
            course.ran(Stage::Admit, from);
            match admitted {
                Ok(admitted) => return Ok((admitted, now)),
                Err(full) => canonical = full.waited(call).await?,
            }
        }
    }

    /// Whether the journal is shipped as the config asks for where anything is to be signed.
    ///
    /// # Errors
    /// Where it is too far behind.
    pub fn is_shipped_in_time(&self, now: UtcTime) -> Result<(), TooFarBehind> {
        self.backlog.bears(now, self.behind_max)
    }

    /// Whether there is room for a number to be taken; what holds one already needs none here.
    fn has_room(&self) -> Result<(), Refusal> {
        self.room.suffices().map_err(|why| Refusal::Ledger(LedgerError::Unavailable(why)))
    }

    /// Sign, verify, commit: in a task of its own, so that a cancelled call cannot come between them. What goes
    /// wrong there is journalled there, whether or not anybody still waits. Tells also whether another call was
    /// first.
    async fn finish(
        self: &Arc<Self>,
        pending: Pending,
        policy: &Arc<Bundle>,
        call: &Call,
        context: audit::Context,
    ) -> Result<(Released, bool), Refusal> {
        let (path, policy, deadline, course) = (self.clone(), policy.clone(), call.deadline, call.course.clone());
        let gone = CancellationToken::new();
        // Dropped with the call: what has not reached its device by then would be signed for nobody.
        let _here = gone.clone().drop_guard();
        // And so is how the call ends, unless it is signed: its caller may be gone by then.
        call.journalled.set();
        let finishing = async move {
            let finished = path.sign_and_commit(pending, &policy, &course, deadline, gone, context.clone()).await;
            finished.inspect_err(|refusal| path.journal_refusal(context, refusal))
        };
        // Its log lines are the call's.
        match self.finishing.spawn(finishing.in_current_span()).await {
            Ok(finished) => finished.map_err(|refusal| Refusal::Told(Box::new(refusal))),
            // The task is gone and has told nobody.
            Err(_) => Err(Refusal::Torn),
        }
    }

    async fn sign_and_commit(
        &self,
        pending: Pending,
        policy: &Bundle,
        course: &Course,
        deadline: Instant,
        gone: CancellationToken,
        context: audit::Context,
    ) -> Result<(Released, bool), Refusal> {
        stand_still("pipeline::before-sign").await;
        let from = course.begins(Stage::Sign);
        let signed = sign::sign(pending, deadline, gone).await;
        course.ran(Stage::Sign, from);
        let verified =
            course.time(Stage::Verify, || verify::verify(signed?, policy, &self.clock).map_err(Refusal::from))?;
        stand_still("pipeline::before-commit").await;
        let from = course.begins(Stage::Commit);
        let committed = commit::commit(verified, &self.ledger, &self.clock, context).await;
        course.ran(Stage::Commit, from);
        let (released, first) = committed?;
        if first && let Ok(now) = self.clock.now() {
            self.volumes.signed(&released.kid, now);
        }
        Ok((released, !first))
    }
}

/// Where a test has one quote stand still or its task die; on a thread of its own, so that nothing else stands still.
#[cfg(feature = "failpoints")]
async fn stand_still(point: &'static str) {
    let stood = tokio::task::spawn_blocking(move || fail::eval(point, |_| ())).await;
    if let Err(fault) = stood {
        std::panic::resume_unwind(fault.into_panic());
    }
}

#[cfg(not(feature = "failpoints"))]
async fn stand_still(_point: &'static str) {}
