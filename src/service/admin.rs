//! `AdminService`: for operators. Every act leaves an audit record before it is answered.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::{
    clock::{Clock as _, SystemClock, UtcTime},
    control::{Control, ReloadError},
    domain::SequenceNumber,
    json::is_hidden,
    ledger::Seed,
    pipeline::Pipeline,
    proto::{self, Reason, admin_service_server::AdminService},
};

use super::{
    access,
    health::Components,
    quotes::{corridor_of, timestamp},
    status,
};

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

/// A floor beyond this would leave a sequence too little room ever to be raised again: 2^52.
const FLOOR_MAX: u64 = 1 << 52;
/// The longest reason an operator may give for an act.
const REASON_BYTES_MAX: usize = 500;

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let call = access::GET_STATUS.call(&request)?;
        let policy = self.pipeline.policy.load();
        access::GET_STATUS.with_gateway(&self.pipeline, &policy, &call)?;
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
            started_at: Some(timestamp(self.started_at)),
            components: components.collect(),
            last_reload_error: self.control.last_error().unwrap_or_default(),
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
        if floor > FLOOR_MAX {
            return Err(invalid(format!("`floor` is above {FLOOR_MAX}, which would leave the sequence no room")));
        }
        if reason.is_empty() || reason.len() > REASON_BYTES_MAX || reason.chars().any(is_hidden) {
            return Err(invalid("`reason` must say in 1 to 500 bytes of one line why"));
        }
        let floor = SequenceNumber::try_from(floor).map_err(|fault| invalid(format!("`floor`: {fault}")))?;
        let mut context = access::trail(&call, self.pipeline.environment, &policy);
        context.partner = Some(partner.id.clone());
        context.corridor.clone_from(&corridor);
        context.rule_ids = verdict.rule_ids;
        let scope = policy.scope(partner, corridor.as_ref());
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
            ReloadError::Refused(problems) => status::plain(
                Reason::BundleRefused,
                format!("the bundle was refused and the last good one goes on serving: {}", problems.join("; ")),
            ),
            ReloadError::Ledger(error) => status::of_ledger_error(error),
        })?;
        Ok(Response::new(proto::ReloadPolicyResponse {
            previous_digest: policy.digest.to_string(),
            policy_digest: reloaded.bundle.digest.to_string(),
            policy_serial: reloaded.bundle.serial,
            audit_record_id: reloaded.record.to_string(),
        }))
    }
}

fn invalid(message: impl Into<String>) -> Status {
    status::plain(Reason::InvalidRequest, message)
}
