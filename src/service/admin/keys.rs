//! The acts of an emergency: a key is revoked, and one that verifiers may not know yet is let sign.

use tonic::Status;
use uuid::Uuid;

use super::{Admin, invalid, stops::kid_of, text, why_of};
use crate::{
    audit,
    call::Call,
    clock::{Clock as _, SystemClock, UtcTime},
    domain::{Caller, KeyState, Kid},
    ledger::{Note, Noted, Stop, StopAct},
    policy::{Bundle, authority::Resource},
    proto::{self, Reason, RevocationCause},
    published::count,
    service::{access, status},
};

impl Admin {
    /// Revokes a key. This gateway knows it at once, whatever keeps the ledger; with the ledger away, that as soon as it is back.
    pub(super) async fn revoke(
        &self,
        call: &Call,
        request: proto::RevokeKeyRequest,
    ) -> Result<proto::RevokeKeyResponse, Status> {
        let context = self.allowed(access::REVOKE_KEY, call)?;
        let kid = kid_of(&request.kid)?;
        let reason = format!("{}: {}", cause_of(request.cause()), why_of(&request.reason)?);
        let now = SystemClock.now();
        let stood_before = self.pipeline.stopped.known().is_revoked(&kid);
        let context = audit::Context { partner: self.partner_of(&kid), ..context };
        let act = StopAct { stop: Stop::Revoked(kid.clone()), stands: true, reason, context, now };
        let record = self.stop_here(act).await;
        let known = self.knows(&Stop::Revoked(kid.clone()));
        Ok(proto::RevokeKeyResponse { unknown_kid: !known, stood_before, ..self.told(&kid, record, now) })
    }

    fn told(&self, kid: &Kid, record: Option<Uuid>, now: UtcTime) -> proto::RevokeKeyResponse {
        let policy = self.pipeline.policy.load();
        let standings = self.pipeline.standings();
        let partner = self.partner_of(kid);
        let partner = partner.and_then(|partner| policy.partner(&partner));
        let replacement =
            partner.and_then(|partner| policy.timeline.current(&partner.id, now, |kid| standings.of(kid)));
        proto::RevokeKeyResponse {
            not_yet_durable: record.is_none(),
            audit_record_id: text(record),
            partner: partner.map(|partner| partner.id.to_string()).unwrap_or_default(),
            replacement_kid: replacement.map(|key| key.kid.to_string()).unwrap_or_default(),
            revoked_at: Some(proto::timestamp(now)),
            environment: self.pipeline.environment.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policy_digest: policy.digest.to_string(),
            unknown_kid: false,
            stood_before: false,
            jwks_url: partner.and_then(|partner| partner.jwks_url.clone()).unwrap_or_default(),
        }
    }

    /// Lets a key sign before its propagation time is over.
    pub(super) async fn activate(
        &self,
        call: &Call,
        request: proto::ActivateKeyRequest,
    ) -> Result<proto::ActivateKeyResponse, Status> {
        let context = self.allowed(access::ACTIVATE_KEY, call)?;
        let (kid, reason) = (kid_of(&request.kid)?, why_of(&request.reason)?);
        let now = SystemClock.now();
        may_be_activated(&self.pipeline.policy.load(), &kid, now)?;
        let act = format!("ActivateKey {kid}");
        let (context, reason) =
            self.agreed(access::ACTIVATE_KEY, call, (&act, Resource::Gateway), context, reason).await?;
        let note = Note { kid, noted: Noted::Activated { reason }, context, now };
        let record = self.pipeline.ledger.note(note).await.map_err(status::of_ledger_error)?;
        // So that the very next quote finds it.
        if let Ok(kids) = self.pipeline.ledger.kids().await {
            self.pipeline.published.learn(kids);
        }
        Ok(proto::ActivateKeyResponse { audit_record_id: text(record) })
    }

    /// The gateways of the ledger.
    pub(super) fn replicas(&self) -> Vec<proto::Replica> {
        let leases = self.pipeline.published.replicas();
        let mut no_vote = count(&leases).no_vote;
        let told = leases.into_iter().map(|lease| proto::Replica {
            no_vote: no_vote.remove(&lease.replica).unwrap_or_default(),
            policy_serial: lease.holding.serial,
            seen_ms_ago: u64::try_from(lease.age.as_millis()).unwrap_or(u64::MAX),
            name: lease.replica,
        });
        told.collect()
    }

    /// Goes on where policy does not want two operators for the act on this resource, or this is the second who asks for it: with both in
    /// the record.
    pub(super) async fn agreed(
        &self,
        rpc: access::Rpc,
        call: &Call,
        act: (&str, Resource<'_>),
        context: audit::Context,
        reason: String,
    ) -> Result<(audit::Context, String), Status> {
        let (act, resource) = act;
        let two_callers = self.pipeline.policy.load().two_callers.clone();
        if !two_callers.need(rpc.action) {
            return Ok((context, reason));
        }
        let propose = crate::ledger::Propose {
            act: act.to_owned(),
            caller: call.caller.clone(),
            within: two_callers.within,
            context: context.clone(),
            now: SystemClock.now(),
        };
        let (first, _) = self.pipeline.ledger.propose(propose.clone()).await.map_err(status::of_ledger_error)?;
        // Who asked first may have lost the right to it since: then this is the first.
        let policy = self.pipeline.policy.load_full();
        let may = |first: &Caller| policy.authority.decide(first, rpc.action, resource, None).allowed;
        let first = match first {
            Some(first) if !may(&first) => {
                self.pipeline.ledger.propose(propose).await.map_err(status::of_ledger_error)?.0
            }
            first => first,
        };
        if first.is_none() {
            call.journalled.set();
        }
        match first {
            Some(first) => Ok((context, format!("{reason} (first asked for by {first})"))),
            None => Err(status::plain(
                Reason::SecondCallerNeeded,
                format!(
                    "nothing was done yet: another operator must ask for the very same within {} s",
                    two_callers.within.as_secs()
                ),
            )),
        }
    }
}

/// A key that is in the key sets, and whose window is open or about to be.
fn may_be_activated(policy: &Bundle, kid: &Kid, now: UtcTime) -> Result<(), Status> {
    let key = policy.key(kid).ok_or_else(|| {
        status::plain(Reason::NotFound, format!("the bundle in force has no key `{kid}`; add it and reload"))
    })?;
    match key.state(now) {
        KeyState::Prepared | KeyState::Active => Ok(()),
        state => {
            Err(invalid(format!("`kid`: `{kid}` is {state}; only a key that is prepared or active can be activated")))
        }
    }
}

fn cause_of(cause: RevocationCause) -> &'static str {
    match cause {
        RevocationCause::Unspecified | RevocationCause::KeyMayBeCompromised => "key-may-be-compromised",
        RevocationCause::PrivateMaterialPublished => "private-material-published",
        RevocationCause::SigningSystemBreached => "signing-system-breached",
        RevocationCause::UnauthorizedSigningSuspected => "unauthorized-signing-suspected",
        RevocationCause::KeyExposedInLogsOrSource => "key-exposed-in-logs-or-source",
    }
}
