//! A cheap quota on attempts per caller, before anything is parsed, so that refusals are bounded too. Kept in
//! memory: forgetting it costs nothing. Quotas on signed quotes are the ledger's.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use governor::{DefaultDirectRateLimiter, Quota as Rate, RateLimiter, clock::Clock as _};
use parking_lot::RwLock;

use crate::{
    call::Call,
    domain::Caller,
    policy::{Bundle, Quota},
};

/// The caller has used up its attempts for the moment.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the quota `attempts_per_caller` is spent; come again in {} ms", retry_after.as_millis())]
pub struct Exhausted {
    /// When the next attempt will be taken.
    pub retry_after: Duration,
}

/// A call that was counted.
#[derive(Debug)]
pub struct Counted(());

/// The attempts of each caller. Callers that policy does not declare share one count, so that memory is
/// bounded by the bundle whatever certificates the CA gives out.
#[derive(Default)]
pub struct Attempts {
    limiters: RwLock<HashMap<Option<Caller>, Arc<Limiter>>>,
}

struct Limiter {
    quota: Quota,
    limiter: DefaultDirectRateLimiter,
}

/// Counts one attempt of the caller.
///
/// # Errors
/// Where its quota is spent.
pub fn count(attempts: &Attempts, policy: &Bundle, call: &Call) -> Result<Counted, Exhausted> {
    let quota = policy.quotas.attempts_per_caller;
    let caller = policy.knows(&call.caller).then(|| call.caller.clone());
    let limiter = attempts.limiter(caller, quota);
    match limiter.limiter.check() {
        Ok(()) => Ok(Counted(())),
        Err(not_until) => Err(Exhausted { retry_after: not_until.wait_time_from(limiter.limiter.clock().now()) }),
    }
}

/// Counts one attempt of the caller once its quota has room: for a stream, which is held back rather than refused.
pub async fn count_in_time(attempts: &Attempts, policy: &Bundle, call: &Call) -> Result<Counted, Exhausted> {
    loop {
        match count(attempts, policy, call) {
            Err(Exhausted { retry_after }) if Instant::now() + retry_after < call.deadline => {
                tokio::time::sleep(retry_after).await;
            }
            counted => return counted,
        }
    }
}

impl Attempts {
    /// The caller's own limiter; a new one where policy has changed the quota.
    fn limiter(&self, caller: Option<Caller>, quota: Quota) -> Arc<Limiter> {
        if let Some(limiter) = self.limiters.read().get(&caller).filter(|limiter| limiter.quota == quota) {
            return limiter.clone();
        }
        let rate = Rate::per_second(quota.per_second).allow_burst(quota.burst);
        let limiter = Arc::new(Limiter { quota, limiter: RateLimiter::direct(rate) });
        let mut limiters = self.limiters.write();
        let kept = limiters.entry(caller).or_insert_with(|| limiter.clone());
        if kept.quota != quota {
            *kept = limiter;
        }
        kept.clone()
    }
}
