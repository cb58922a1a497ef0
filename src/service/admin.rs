//! `AdminService`: for operators. Every act leaves an audit record before it is answered.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    control::{Control, ReloadError},
    domain::SequenceNumber,
    ledger::{
        Seed, Stop,
        asked::{floor_of, reason_of, since_of},
    },
    pipeline::Pipeline,
    policy::authority::Resource,
    proto::{self, Reason, admin_service_server::AdminService},
};

use super::{
    access,
    health::Components,
    quotes::{corridor_of, instant},
    status,
};

mod keys;
mod signed;
mod stops;

/// Serves operators.
pub struct Admin {
    /// The path of a quote, for its ledger and policy.
    pub pipeline: Arc<Pipeline>,
    /// What reads the bundle again.
    pub control: Arc<Control>,
    /// How each part fares.
    pub components: Arc<Components>,
    /// When this process started.
    pub started_at: UtcTime,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let call = access::GET_STATUS.call(&request)?;
        access::GET_STATUS.with_gateway(&self.pipeline, &self.pipeline.policy.load(), &call)?;
        let holds = self.holds().await;
        let policy = self.pipeline.policy.load();
        let components = self.components.all().into_iter().map(|(name, fault)| proto::Component {
            name,
            serving: fault.is_none(),
            detail: fault.unwrap_or_default(),
        });
        Ok(Response::new(proto::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            environment: self.pipeline.environment.to_string(),
            policy_digest: policy.digest.to_string(),
            policy_serial: policy.serial,
            started_at: Some(proto::timestamp(self.started_at)),
            components: components.collect(),
            last_reload_error: self.control.last_error().unwrap_or_default(),
            stops: self.pipeline.stopped.known().iter().map(ToString::to_string).collect(),
            replicas: self.replicas(),
            holds,
        }))
    }

    async fn seed_sequence(
        &self,
        request: Request<proto::SeedSequenceRequest>,
    ) -> Result<Response<proto::SeedSequenceResponse>, Status> {
        let call = access::SEED_SEQUENCE.call(&request)?;
        let proto::SeedSequenceRequest { partner, corridor, floor, reason } = request.into_inner();
        let policy = self.pipeline.policy.load_full();
        let (partner, verdict) = access::SEED_SEQUENCE.with_partner(&self.pipeline, &policy, &call, &partner)?;
        let corridor = corridor_of(partner, &corridor)?;
        let floor = floor_of(floor).map_err(|fault| invalid(format!("`floor` {fault}")))?;
        let reason = why_of(&reason)?;
        let mut context = access::trail(&call, self.pipeline.environment, &policy);
        context.partner = Some(partner.id.clone());
        context.corridor.clone_from(&corridor);
        context.rule_ids = verdict.rule_ids;
        let scope = policy.scope(partner, corridor.as_ref());
        let act = format!("SeedSequence {scope} {floor}");
        let act = (&*act, Resource::Partner(&partner.id));
        let (context, reason) = self.agreed(access::SEED_SEQUENCE, &call, act, context, reason).await?;
        let seed = Seed { scope, floor, reason, context, now: SystemClock.now() };
        let (previous, record) = self.pipeline.ledger.seed(seed).await.map_err(status::of_ledger_error)?;
        Ok(Response::new(proto::SeedSequenceResponse {
            previous: previous.map(SequenceNumber::get),
            audit_record_id: record.to_string(),
        }))
    }

    async fn reload_policy(
        &self,
        request: Request<proto::ReloadPolicyRequest>,
    ) -> Result<Response<proto::ReloadPolicyResponse>, Status> {
        let call = access::RELOAD_POLICY.call(&request)?;
        let policy = self.pipeline.policy.load_full();
        let verdict = access::RELOAD_POLICY.with_gateway(&self.pipeline, &policy, &call)?;
        let mut context = access::trail(&call, self.pipeline.environment, &policy);
        context.rule_ids = verdict.rule_ids;
        let reloaded = self.control.reload(context).await.map_err(|fault| match fault {
            ReloadError::Refused(problems) => {
                call.journalled.set();
                let problems = problems.join("; ");
                let why = format!("the bundle was refused and the last good one goes on serving: {problems}");
                status::plain(Reason::BundleRefused, why)
            }
            ReloadError::Ledger(error) => status::of_ledger_error(error),
        })?;
        Ok(Response::new(proto::ReloadPolicyResponse {
            previous_digest: policy.digest.to_string(),
            policy_digest: reloaded.bundle.digest.to_string(),
            policy_serial: reloaded.bundle.serial,
            audit_record_id: reloaded.record.to_string(),
        }))
    }

    async fn revoke_key(
        &self,
        request: Request<proto::RevokeKeyRequest>,
    ) -> Result<Response<proto::RevokeKeyResponse>, Status> {
        let call = access::REVOKE_KEY.call(&request)?;
        self.revoke(&call, request.into_inner()).await.map(Response::new)
    }

    async fn activate_key(
        &self,
        request: Request<proto::ActivateKeyRequest>,
    ) -> Result<Response<proto::ActivateKeyResponse>, Status> {
        let call = access::ACTIVATE_KEY.call(&request)?;
        self.activate(&call, request.into_inner()).await.map(Response::new)
    }

    async fn list_signed_quotes(
        &self,
        request: Request<proto::ListSignedQuotesRequest>,
    ) -> Result<Response<proto::ListSignedQuotesResponse>, Status> {
        let call = access::LIST_SIGNED_QUOTES.call(&request)?;
        let context = self.allowed(access::LIST_SIGNED_QUOTES, &call)?;
        self.signed_page(context, request.into_inner()).await.map(Response::new)
    }

    async fn halt(&self, request: Request<proto::HaltRequest>) -> Result<Response<proto::HaltResponse>, Status> {
        let call = access::HALT.call(&request)?;
        let proto::HaltRequest { reach, reason } = request.into_inner();
        let stop = stops::reach_of(reach).map(Stop::Halted);
        let unknown = stop.as_ref().is_ok_and(|stop| !self.knows(stop));
        let record = self.put_stop(access::HALT, &call, stop, true, reason).await?;
        Ok(Response::new(proto::HaltResponse {
            not_yet_durable: record.is_none(),
            audit_record_id: text(record),
            unknown,
        }))
    }

    async fn resume(&self, request: Request<proto::ResumeRequest>) -> Result<Response<proto::ResumeResponse>, Status> {
        let call = access::RESUME.call(&request)?;
        let proto::ResumeRequest { reach, reason } = request.into_inner();
        let stop = stops::reach_of(reach).map(Stop::Halted);
        let record = self.put_stop(access::RESUME, &call, stop, false, reason).await?;
        Ok(Response::new(proto::ResumeResponse { audit_record_id: text(record) }))
    }

    async fn suspend_caller(
        &self,
        request: Request<proto::SuspendCallerRequest>,
    ) -> Result<Response<proto::SuspendCallerResponse>, Status> {
        let call = access::SUSPEND_CALLER.call(&request)?;
        let proto::SuspendCallerRequest { caller, reason, signed_since } = request.into_inner();
        let since = signed_since.map(|since| instant("signed_since", since)).transpose();
        let suspended = stops::caller_of(&caller, Some(&call)).and_then(|caller| since.map(|since| (caller, since)));
        let stop = suspended.clone().map(|(caller, _)| Stop::Suspended(caller));
        let unknown = stop.as_ref().is_ok_and(|stop| !self.knows(stop));
        let record = self.put_stop(access::SUSPEND_CALLER, &call, stop, true, reason).await?;
        let (caller, since) = suspended?;
        let (signed, has_more) = match since {
            Some(since) => self.signed_by(&caller, since).await,
            None => (Vec::new(), false),
        };
        let (not_yet_durable, audit_record_id) = (record.is_none(), text(record));
        let told = proto::SuspendCallerResponse { audit_record_id, signed, has_more, unknown, not_yet_durable };
        Ok(Response::new(told))
    }

    async fn reinstate_caller(
        &self,
        request: Request<proto::ReinstateCallerRequest>,
    ) -> Result<Response<proto::ReinstateCallerResponse>, Status> {
        let call = access::REINSTATE_CALLER.call(&request)?;
        let proto::ReinstateCallerRequest { caller, reason } = request.into_inner();
        let stop = stops::caller_of(&caller, None).map(Stop::Suspended);
        let record = self.put_stop(access::REINSTATE_CALLER, &call, stop, false, reason).await?;
        Ok(Response::new(proto::ReinstateCallerResponse { audit_record_id: text(record) }))
    }

    async fn set_hold(
        &self,
        request: Request<proto::SetHoldRequest>,
    ) -> Result<Response<proto::SetHoldResponse>, Status> {
        let call = access::SET_HOLD.call(&request)?;
        let proto::SetHoldRequest { hold, since, reason } = request.into_inner();
        let since = since.ok_or_else(|| invalid("`since` must say from when on everything is kept"));
        let since = since.and_then(|since| instant("since", since)).and_then(|since| {
            since_of(since, SystemClock.now()).map(Some).map_err(|fault| invalid(format!("`since` {fault}")))
        });
        let record = self.put_hold(access::SET_HOLD, &call, hold, since, reason).await?;
        Ok(Response::new(proto::SetHoldResponse { audit_record_id: record.to_string() }))
    }

    async fn release_hold(
        &self,
        request: Request<proto::ReleaseHoldRequest>,
    ) -> Result<Response<proto::ReleaseHoldResponse>, Status> {
        let call = access::RELEASE_HOLD.call(&request)?;
        let proto::ReleaseHoldRequest { hold, reason } = request.into_inner();
        let record = self.put_hold(access::RELEASE_HOLD, &call, hold, Ok(None), reason).await?;
        Ok(Response::new(proto::ReleaseHoldResponse { audit_record_id: record.to_string() }))
    }
}

/// The id of a record; empty where there is none yet.
fn text(record: Option<Uuid>) -> String {
    record.map(|record| record.to_string()).unwrap_or_default()
}

/// Why an operator acts, in words that fit a record.
fn why_of(reason: &str) -> Result<String, Status> {
    reason_of(reason).map_err(|fault| invalid(format!("`reason` {fault}")))
}

fn invalid(message: impl Into<String>) -> Status {
    status::plain(Reason::InvalidRequest, message)
}
