//! One row for every RPC: on which service it stands, and which act of policy it is. Every method begins here.

use std::sync::Arc;

use tonic::{Request, Status};

use crate::{
    audit,
    call::{Call, Subject},
    domain::{CorrelationId, Environment, PartnerId},
    pipeline::{Pipeline, attempts},
    policy::{
        Bundle, Partner,
        authority::{Action, Resource, Verdict},
    },
    proto::Reason,
    transport::{edge::Edge, peer::Peer},
};

use super::status;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rpc {
    /// The full method name.
    pub method: &'static str,
    /// The act that policy decides on.
    pub action: Action,
}

/// Every RPC of the gateway's own services. A test holds it against the proto's descriptors.
pub const RPCS: [Rpc; 19] = [
    SIGN_QUOTE,
    SIGN_QUOTES,
    VERIFY_QUOTE,
    GET_SEQUENCE,
    GET_JWKS,
    LIST_KEYS,
    GET_STATUS,
    SEED_SEQUENCE,
    RELOAD_POLICY,
    REVOKE_KEY,
    HALT,
    RESUME,
    SUSPEND_CALLER,
    REINSTATE_CALLER,
    SET_HOLD,
    RELEASE_HOLD,
    ACTIVATE_KEY,
    LIST_SIGNED_QUOTES,
    REPORT_QUOTE_OUTCOME,
];

/// `SignQuote`.
pub const SIGN_QUOTE: Rpc = Rpc { method: "quotesign.v1.QuoteSigningService/SignQuote", action: Action::SignQuote };
/// `SignQuotes`: to policy each of its quotes is one of `SignQuote`.
pub const SIGN_QUOTES: Rpc = Rpc { method: "quotesign.v1.QuoteSigningService/SignQuotes", action: Action::SignQuote };
/// `VerifyQuote`.
pub const VERIFY_QUOTE: Rpc =
    Rpc { method: "quotesign.v1.QuoteSigningService/VerifyQuote", action: Action::VerifyQuote };
/// `GetSequence`.
pub const GET_SEQUENCE: Rpc =
    Rpc { method: "quotesign.v1.QuoteSigningService/GetSequence", action: Action::GetSequence };
/// `GetJwks`.
pub const GET_JWKS: Rpc = Rpc { method: "quotesign.v1.KeyDirectoryService/GetJwks", action: Action::GetJwks };
/// `ListKeys`.
pub const LIST_KEYS: Rpc = Rpc { method: "quotesign.v1.KeyDirectoryService/ListKeys", action: Action::ListKeys };
/// `GetStatus`.
pub const GET_STATUS: Rpc = Rpc { method: "quotesign.v1.AdminService/GetStatus", action: Action::GetStatus };
/// `SeedSequence`.
pub const SEED_SEQUENCE: Rpc = Rpc { method: "quotesign.v1.AdminService/SeedSequence", action: Action::SeedSequence };
/// `ReloadPolicy`.
pub const RELOAD_POLICY: Rpc = Rpc { method: "quotesign.v1.AdminService/ReloadPolicy", action: Action::ReloadPolicy };
/// `RevokeKey`.
pub const REVOKE_KEY: Rpc = Rpc { method: "quotesign.v1.AdminService/RevokeKey", action: Action::RevokeKey };
/// `Halt`.
pub const HALT: Rpc = Rpc { method: "quotesign.v1.AdminService/Halt", action: Action::Halt };
/// `Resume`.
pub const RESUME: Rpc = Rpc { method: "quotesign.v1.AdminService/Resume", action: Action::Resume };
/// `SuspendCaller`.
pub const SUSPEND_CALLER: Rpc =
    Rpc { method: "quotesign.v1.AdminService/SuspendCaller", action: Action::SuspendCaller };
/// `ReinstateCaller`.
pub const REINSTATE_CALLER: Rpc =
    Rpc { method: "quotesign.v1.AdminService/ReinstateCaller", action: Action::ReinstateCaller };
/// `SetHold`.
pub const SET_HOLD: Rpc = Rpc { method: "quotesign.v1.AdminService/SetHold", action: Action::SetHold };
/// `ReleaseHold`.
pub const RELEASE_HOLD: Rpc = Rpc { method: "quotesign.v1.AdminService/ReleaseHold", action: Action::ReleaseHold };
/// `ActivateKey`.
pub const ACTIVATE_KEY: Rpc = Rpc { method: "quotesign.v1.AdminService/ActivateKey", action: Action::ActivateKey };
/// `ListSignedQuotes`.
pub const LIST_SIGNED_QUOTES: Rpc =
    Rpc { method: "quotesign.v1.AdminService/ListSignedQuotes", action: Action::ListSignedQuotes };
/// `ReportQuoteOutcome`.
pub const REPORT_QUOTE_OUTCOME: Rpc =
    Rpc { method: "quotesign.v1.QuoteSigningService/ReportQuoteOutcome", action: Action::ReportQuoteOutcome };

/// Of other people's services.
const OTHERS: [&str; 5] = [
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The method that a path is of; nothing where there is none: what a caller made up is told nowhere.
#[must_use]
pub fn known(path: &str) -> Option<&'static str> {
    let wanted = path.strip_prefix('/')?;
    RPCS.iter().map(|rpc| rpc.method).chain(OTHERS).find(|method| *method == wanted)
}

impl Rpc {
    /// The call behind a request.
    ///
    /// # Errors
    /// UNAUTHENTICATED where the client certificate names no caller.
    pub fn call<T>(self, request: &Request<T>) -> Result<Call, Status> {
        let (edge, peer) = behind(request)?;
        self.call_of(&edge, &peer)
    }

    /// The call of this peer at this edge.
    ///
    /// # Errors
    /// UNAUTHENTICATED where the client certificate names no caller, or is not accepted any more.
    pub fn call_of(self, edge: &Edge, peer: &Peer) -> Result<Call, Status> {
        let caller = peer.caller().map_err(|why| status::plain(Reason::CallerUnidentified, why.to_string()))?.clone();
        Ok(edge.call(self.method, caller))
    }

    /// Counts the attempt, and says whether policy lets `call` do this with `partner`. Unknown and forbidden look
    /// the same; a denial is journalled.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`, or `NOT_FOUND`.
    pub fn with_partner<'p>(
        self,
        pipeline: &Pipeline,
        policy: &'p Bundle,
        call: &Call,
        partner: &str,
    ) -> Result<(&'p Partner, Verdict), Status> {
        count(pipeline, policy, call)?;
        let unknown = || status::plain(Reason::NotFound, "no such partner, or not for this caller");
        let id: PartnerId = partner.parse().map_err(|_| unknown())?;
        // Asked for unknown partners too, so that the two cases also take the same time.
        let verdict = policy.authority.decide(&call.caller, self.action, Resource::Partner(&id), None);
        let partner = policy.partner(&id);
        if partner.is_some() {
            // Whose it is is told of a denial, too; a name that policy does not have is the caller's own text. A second look at the
            // same call finds it told.
            let _told = call.subject.set(Subject { partner: Some(id), quote_id: None });
        }
        match partner {
            Some(partner) if verdict.allowed => Ok((partner, verdict)),
            _ => {
                denied(pipeline, policy, call, &verdict, status::answer(Reason::NotFound));
                Err(unknown())
            }
        }
    }

    /// Counts the attempt, and says whether policy lets `call` do this with the gateway itself. A denial is
    /// journalled.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`, or `PERMISSION_DENIED`.
    pub fn with_gateway(self, pipeline: &Pipeline, policy: &Bundle, call: &Call) -> Result<Verdict, Status> {
        count(pipeline, policy, call)?;
        let verdict = policy.authority.decide(&call.caller, self.action, Resource::Gateway, None);
        if verdict.allowed {
            return Ok(verdict);
        }
        denied(pipeline, policy, call, &verdict, status::answer(Reason::PolicyDenied));
        Err(status::plain(Reason::PolicyDenied, "policy does not let this caller do this"))
    }
}

/// What the transport put beside a request.
///
/// # Errors
/// Where it did not come through the edge, or over a connection without a client certificate.
pub fn behind<T>(request: &Request<T>) -> Result<(Edge, Arc<Peer>), Status> {
    let extensions = request.extensions();
    let edge = extensions.get::<Edge>().ok_or_else(|| status::plain(Reason::Internal, "the call has no edge"))?;
    let peer = extensions.get::<Option<Arc<Peer>>>().and_then(Option::as_ref);
    let nobody = || status::plain(Reason::CallerUnidentified, "the connection has no client certificate");
    Ok((edge.clone(), peer.ok_or_else(nobody)?.clone()))
}

/// Counts the attempt, and turns away whoever is suspended.
fn count(pipeline: &Pipeline, policy: &Bundle, call: &Call) -> Result<(), Status> {
    attempts::count(&pipeline.attempts, policy, call).map_err(|spent| status::of(&spent.into()))?;
    pipeline.let_in(call).map_err(|suspended| status::of(&suspended))
}

/// Journals that policy denied an act, and what its caller is told; the record joins the next batch.
fn denied(pipeline: &Pipeline, policy: &Bundle, call: &Call, verdict: &Verdict, told: audit::Status) {
    let partner = call.subject.get().and_then(|subject| subject.partner.clone());
    let (rule_ids, trail) = (verdict.rule_ids.clone(), trail(call, pipeline.environment, policy));
    let context = audit::Context { partner, rule_ids, ..trail };
    call.journalled.set();
    pipeline.journal_denial(context, Reason::PolicyDenied, told, "policy does not allow it".to_owned());
}

/// What all audit records of a call share.
#[must_use]
pub fn trail(call: &Call, environment: Environment, policy: &Bundle) -> audit::Context {
    audit::Context {
        correlation_id: call.correlation_id.clone(),
        caller: Some(call.caller.clone()),
        method: Some(call.method.to_owned()),
        span_id: call.trace.as_ref().map(|trace| hex::encode(trace.span_id)),
        trace_id: call.trace.as_ref().map(|trace| hex::encode(trace.trace_id)),
        ..own_trail(environment, policy)
    }
}

/// What all audit records share of what the gateway does by itself.
#[must_use]
pub fn own_trail(environment: Environment, policy: &Bundle) -> audit::Context {
    audit::Context::new(CorrelationId::made(), environment, policy.digest.to_string(), policy.serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn every_rpc_of_the_proto_has_its_row_and_every_row_its_rpc() {
        let set = prost_types::FileDescriptorSet::decode(crate::proto::DESCRIPTORS).unwrap();
        let mut methods: Vec<String> = set
            .file
            .iter()
            .filter(|file| file.package() == "quotesign.v1")
            .flat_map(|file| &file.service)
            .flat_map(|service| {
                service.method.iter().map(|method| format!("quotesign.v1.{}/{}", service.name(), method.name()))
            })
            .collect();
        let mut rows: Vec<String> = RPCS.iter().map(|rpc| rpc.method.to_owned()).collect();
        methods.sort();
        rows.sort();
        assert_eq!(methods, rows);
        // A stream is many of one act.
        let is_of = |rpc: &Rpc| rpc.method.ends_with(&format!("/{}", rpc.action.name()));
        assert!(RPCS.iter().all(|rpc| *rpc == SIGN_QUOTES || is_of(rpc)));
        assert_eq!(SIGN_QUOTES.action, SIGN_QUOTE.action);
    }
}
