//! The acts that stop signing and let it go on, and those that keep evidence.

use std::{sync::Arc, time::Duration};

use tonic::Status;
use uuid::Uuid;

use super::{Admin, invalid, why_of};
use crate::{
    audit,
    call::Call,
    clock::{Clock as _, SystemClock, UtcTime},
    control,
    domain::{Caller, Kid, PartnerId},
    ledger::{HoldAct, Reach, Stop, StopAct, asked::hold_of},
    policy::authority::Resource,
    proto::{self, HaltReach, Reason, halt_reach},
    service::{
        access::{self, Rpc},
        status,
    },
};

/// A kid of a request, of whatever bundle.
pub(super) fn kid_of(kid: &str) -> Result<Kid, Status> {
    kid.parse().map_err(|fault| invalid(format!("`kid`: {fault}")))
}

/// The caller of a request, who is not `by` itself: the last one who could undo it would have shut itself out.
pub(super) fn caller_of(caller: &str, by: Option<&Call>) -> Result<Caller, Status> {
    let caller: Caller = caller.parse().map_err(|fault| invalid(format!("`caller`: {fault}")))?;
    if by.is_some_and(|by| by.caller == caller) {
        return Err(invalid("`caller` is the one who asks; another one must suspend it"));
    }
    Ok(caller)
}

/// How far a request reaches.
pub(super) fn reach_of(reach: Option<HaltReach>) -> Result<Reach, Status> {
    match reach.and_then(|reach| reach.to) {
        Some(halt_reach::To::All(true)) => Ok(Reach::All),
        Some(halt_reach::To::Partner(partner)) => {
            partner.parse().map(Reach::Partner).map_err(|fault| invalid(format!("`reach.partner`: {fault}")))
        }
        Some(halt_reach::To::Kid(kid)) => kid_of(&kid).map(Reach::Kid),
        Some(halt_reach::To::All(false)) | None => {
            Err(invalid("`reach` must be one of `all` = true, `partner` and `kid`"))
        }
    }
}

/// How long the ledger may take to know what is stopped before whoever asked for it is told that it does not yet.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);

/// How long the ledger may take to tell what it holds.
const HOLDS_WITHIN: Duration = Duration::from_secs(1);

impl Admin {
    /// Stops at once here, whatever keeps the ledger, and has the ledger know it: the record of the act, once that is durable. With the
    /// ledger away that is as soon as it is back.
    pub(super) async fn stop_here(&self, act: StopAct) -> Option<Uuid> {
        if let Err(fault) = self.pipeline.stopped.stop_here(act.clone()) {
            let stop = &act.stop;
            tracing::error!(%stop, %fault, "it is stopped here, and a restart before the ledger knows it would forget it");
        }
        // In a task of its own: whoever asked for it may not wait as long as the ledger takes.
        let pipeline = Arc::clone(&self.pipeline);
        let asked = tokio::spawn(async move {
            let record = pipeline.ledger.stop(act.clone()).await;
            match &record {
                Ok(_) => {
                    pipeline.stopped.stands(&act.stop);
                    pipeline.stopped.is_durable(&act);
                }
                Err(_) => pipeline.stopped.waits(&act),
            }
            record.ok()
        });
        let record = tokio::time::timeout(STOPPED_WITHIN, asked).await.ok().and_then(Result::ok).flatten();
        if record.is_some() {
            // What others have stopped is known with it, and this replica's own key set follows.
            control::look_at_stops(&self.pipeline.ledger, &self.pipeline.stopped).await;
        }
        record
    }

    /// Stops or resumes: the record of the act, once that is durable. What resumes is not answered before.
    pub(super) async fn put_stop(
        &self,
        rpc: Rpc,
        call: &Call,
        stop: Result<Stop, Status>,
        stands: bool,
        reason: String,
    ) -> Result<Option<Uuid>, Status> {
        // Who may not act learns nothing of what the act would need.
        let context = self.allowed(rpc, call)?;
        let (stop, reason) = (stop?, why_of(&reason)?);
        let act = format!("{} {stop}", rpc.action.name());
        let (context, reason) = self.agreed(rpc, call, (&act, Resource::Gateway), context, reason).await?;
        let partner = stop.kid().and_then(|kid| self.partner_of(kid));
        let context = audit::Context { partner, ..context };
        let act = StopAct { stop, stands, reason, context, now: SystemClock.now() };
        if stands {
            return Ok(self.stop_here(act).await);
        }
        // What was stopped here while the ledger was away is there before it ends: the gateway sees to that twice a second.
        if self.pipeline.stopped.is_pending(&act.stop) {
            let waits = "it is not yet durable that it is stopped; ask again once it is";
            return Err(status::plain(Reason::LedgerUnavailable, waits));
        }
        let record = self.pipeline.ledger.stop(act).await.map_err(status::of_ledger_error)?;
        control::look_at_stops(&self.pipeline.ledger, &self.pipeline.stopped).await;
        Ok(Some(record))
    }

    /// What the ledger holds, where it answers.
    pub(super) async fn holds(&self) -> Option<proto::Holds> {
        // It is not asked where it is known not to answer: whoever watches the status would fill its queue.
        self.pipeline.ledger.health().ok()?;
        let told = tokio::time::timeout(HOLDS_WITHIN, self.pipeline.ledger.holds()).await.ok()?.ok()?;
        let hold = |(hold, since)| proto::Hold { hold, since: Some(proto::timestamp(since)) };
        Some(proto::Holds { holds: told.into_iter().map(hold).collect() })
    }

    /// Has the ledger hold what expired or was journalled since an instant, or let go of it.
    pub(super) async fn put_hold(
        &self,
        rpc: Rpc,
        call: &Call,
        id: String,
        since: Result<Option<UtcTime>, Status>,
        reason: String,
    ) -> Result<Uuid, Status> {
        let context = self.allowed(rpc, call)?;
        let id = hold_of(&id).map_err(|fault| invalid(format!("`hold` {fault}")))?;
        let (since, reason) = (since?, why_of(&reason)?);
        let act = format!("{} {id}", rpc.action.name());
        let (context, reason) = self.agreed(rpc, call, (&act, Resource::Gateway), context, reason).await?;
        let act = HoldAct { id, since, reason, context, now: SystemClock.now() };
        self.pipeline.ledger.hold(act).await.map_err(status::of_ledger_error)
    }

    /// Whose key it is: also one that the bundle in force has no more, or not yet.
    pub(super) fn partner_of(&self, kid: &Kid) -> Option<PartnerId> {
        let in_force = self.pipeline.policy.load().key(kid).map(|key| key.partner.clone());
        in_force.or_else(|| self.pipeline.published.kids().get(kid).map(|kept| kept.partner.clone()))
    }

    /// Whether there is anything that `stop` would stop: by the bundle in force, and for kids by the ledger too.
    pub(super) fn knows(&self, stop: &Stop) -> bool {
        let policy = self.pipeline.policy.load();
        match stop {
            Stop::Halted(Reach::All) => true,
            Stop::Halted(Reach::Partner(partner)) => policy.partner(partner).is_some(),
            Stop::Halted(Reach::Kid(kid)) | Stop::Revoked(kid) => {
                let checkpoints = self.control.checkpoint_key.as_ref().is_some_and(|key| key.kid() == kid);
                checkpoints || policy.key(kid).is_some() || self.pipeline.published.kids().contains_key(kid)
            }
            Stop::Suspended(caller) => policy.callers().any(|declared| declared == caller),
        }
    }

    pub(super) fn allowed(&self, rpc: Rpc, call: &Call) -> Result<audit::Context, Status> {
        let policy = self.pipeline.policy.load_full();
        let verdict = rpc.with_gateway(&self.pipeline, &policy, call)?;
        let context = access::trail(call, self.pipeline.environment, &policy);
        Ok(audit::Context { rule_ids: verdict.rule_ids, ..context })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reach_is_exactly_one_thing() {
        let of = |to| reach_of(Some(HaltReach { to })).map(|reach| reach.to_string()).map_err(|_| ());
        assert_eq!(of(Some(halt_reach::To::All(true))), Ok("all".to_owned()));
        assert_eq!(of(Some(halt_reach::To::Partner("acme-remit".to_owned()))), Ok("partner/acme-remit".to_owned()));
        assert_eq!(of(Some(halt_reach::To::Kid("quote-a".to_owned()))), Ok("kid/quote-a".to_owned()));
        for to in [None, Some(halt_reach::To::All(false)), Some(halt_reach::To::Kid(String::new()))] {
            assert_eq!(of(to), Err(()));
        }
        assert!(reach_of(None).is_err());
    }

    /// What begins drops what was proposed to end it, by this text.
    #[test]
    fn an_act_that_ends_a_stop_is_proposed_as_the_ledger_knows_it() {
        for (rpc, stop) in [(access::RESUME, "halted/all"), (access::REINSTATE_CALLER, "suspended/dns:a.example")] {
            let stop: Stop = stop.parse().unwrap();
            assert_eq!(stop.act_that_ends_it(), Some(format!("{} {stop}", rpc.action.name())));
        }
        assert_eq!(access::RELEASE_HOLD.action.name(), "ReleaseHold");
    }
}
