//! `KeyDirectoryService`: which public keys a partner's quotes are signed with.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::{
    clock::{Clock as _, SystemClock},
    domain::KeyState,
    pipeline::Pipeline,
    proto::{self, Reason, key_directory_service_server::KeyDirectoryService},
};

use super::{
    access,
    jwks::{self, NoSet},
    status,
};

/// Serves callers.
pub struct Keys {
    /// Holds the bundle in force.
    pub pipeline: Arc<Pipeline>,
}

#[tonic::async_trait]
impl KeyDirectoryService for Keys {
    async fn get_jwks(
        &self,
        request: Request<proto::GetJwksRequest>,
    ) -> Result<Response<proto::GetJwksResponse>, Status> {
        let call = access::GET_JWKS.call(&request)?;
        let policy = self.pipeline.policy.load();
        let (partner, _) = access::GET_JWKS.with_partner(&self.pipeline, &policy, &call, &request.get_ref().partner)?;
        let Pipeline { stopped, published, .. } = &*self.pipeline;
        let set = jwks::set_of(&policy, &partner.id, stopped, published, SystemClock.now());
        let set = set.map_err(|fault| {
            let reason = match fault {
                NoSet::NotTold | NoSet::Behind(_) => Reason::LedgerUnavailable,
                NoSet::Private(_) => Reason::Internal,
            };
            status::plain(reason, fault.to_string())
        })?;
        Ok(Response::new(proto::GetJwksResponse { jwks: set }))
    }

    async fn list_keys(
        &self,
        request: Request<proto::ListKeysRequest>,
    ) -> Result<Response<proto::ListKeysResponse>, Status> {
        let call = access::LIST_KEYS.call(&request)?;
        let policy = self.pipeline.policy.load();
        let (partner, _) =
            access::LIST_KEYS.with_partner(&self.pipeline, &policy, &call, &request.get_ref().partner)?;
        self.pipeline.knows_revocations().map_err(status::of_ledger_error)?;
        let now = SystemClock.now();
        let (stopped, standings) = (self.pipeline.stopped.known(), self.pipeline.standings());
        let timeline = &policy.timeline;
        let current = timeline.current(&partner.id, now, |kid| standings.of(kid));
        let keys = timeline
            .of(&partner.id)
            .map(|key| proto::Key {
                kid: key.kid.to_string(),
                state: if stopped.is_revoked(&key.kid) {
                    proto::KeyState::Revoked.into()
                } else {
                    state(key.state(now)).into()
                },
                current: current.is_some_and(|current| current.kid == key.kid),
                thumbprint: key.public.thumbprint(),
                publish_at: Some(proto::timestamp(key.publish_at)),
                sign_from: Some(proto::timestamp(key.sign_from)),
                sign_until: Some(proto::timestamp(key.sign_until)),
                retire_at: Some(proto::timestamp(key.retire_at)),
                served_since: standings.of(&key.kid).served_since.map(proto::timestamp),
                waits_for: timeline.obstacle(key, now, standings.of(&key.kid)).unwrap_or_default(),
                standby: key.standby,
                confirmed: key.confirmed.is_some(),
            })
            .collect();
        Ok(Response::new(proto::ListKeysResponse { keys }))
    }
}

fn state(state: KeyState) -> proto::KeyState {
    match state {
        KeyState::Planned => proto::KeyState::Planned,
        KeyState::Prepared => proto::KeyState::Prepared,
        KeyState::Active => proto::KeyState::Active,
        KeyState::Retiring => proto::KeyState::Retiring,
        KeyState::Retired => proto::KeyState::Retired,
    }
}
