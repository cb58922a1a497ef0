//! The lanes of a run: which caller's connection each goes over, which sequence is its own, and what its quotes are made of.

use std::{
    fs,
    sync::{Arc, atomic::AtomicU64},
};

use tonic::transport::Channel;

use super::{Bench, Numbers, Place, check::Checker, load::Lane};
use crate::{
    cli::{Failure, jwks::partner_of, sign::Template},
    clock::UtcTime,
    jwk,
    policy::Partner,
    proto::{GetSequenceRequest, quote_signing_service_client::QuoteSigningServiceClient},
};

const QUOTE: &[u8] = include_bytes!("../../../examples/quote.json");

impl Bench {
    /// Lanes over a connection for each caller, and what their answers are held against.
    pub(super) async fn connect(
        &self,
        place: &Place,
        issued: Option<UtcTime>,
    ) -> Result<(Vec<Lane>, Arc<Checker>), Failure> {
        let bytes = match &self.quote {
            Some(path) => fs::read(path).map_err(|fault| Failure::unfit(format!("{}: {fault}", path.display())))?,
            None => QUOTE.to_vec(),
        };
        let template = Template::read(&bytes).map_err(|fault| Failure::unfit(format!("--quote: {fault}")))?;
        let first = place.clients.first().ok_or_else(|| Failure::unfit("name a client file with --client"))?;
        let partner = partner_of(first, Some(template.partner()))?;
        let set = first.jwks(&partner).await.map_err(Failure::failed)?;
        let keys = jwk::read_jwks(&set).map_err(|fault| Failure::failed(format!("the JWKS: {fault}")))?;
        // The ids of a run are its own; those of quotes that are asked for twice are the same both times.
        let run =
            issued.map_or_else(|| uuid::Uuid::now_v7().simple().to_string(), |issued| issued.millis().to_string());
        let (in_flight, shared) = (self.in_flight()?, Arc::new(AtomicU64::new(0)));
        let mut lanes = Vec::new();
        for client in &place.clients {
            let mut service = QuoteSigningServiceClient::new(client.grpc().await.map_err(Failure::failed)?);
            let last = self.last(&mut service, place, &template).await?;
            for _ in 0..in_flight {
                let at = lanes.len();
                let own_sequence = place.own.is_some() && self.sequence == Numbers::Verify;
                let template = template.clone();
                lanes.push(Lane {
                    client: service.clone(),
                    environment: client.environment.to_string(),
                    template: if own_sequence { template.with("corridor", &format!("GB-{at}")) } else { template },
                    prefix: format!("bench-{run}-{at}"),
                    scope: if own_sequence { at } else { 0 },
                    told: if own_sequence { Arc::default() } else { Arc::clone(&shared) },
                    next: (self.sequence == Numbers::Verify).then_some(last + 1),
                    issued,
                    made: 0,
                });
            }
        }
        if !self.own && self.sequence == Numbers::Verify && lanes.len() > 1 {
            return Err(Failure::unfit(
                "--client: callers of one sequence cannot keep its order; give one, or have the gateway give the numbers, with --sequence assign",
            ));
        }
        let checker = Checker::new(keys, partner, Arc::clone(&place.policy), self.verify_every);
        Ok((lanes, Arc::new(checker)))
    }

    /// The last number of a running gateway's sequence. Those of this run's own gateway begin with it.
    async fn last(
        &self,
        service: &mut QuoteSigningServiceClient<Channel>,
        place: &Place,
        template: &Template,
    ) -> Result<u64, Failure> {
        if self.own || self.sequence == Numbers::Assign {
            return Ok(0);
        }
        let partner = template.partner().parse().ok().and_then(|id| place.policy.partner(&id));
        let by_corridor = partner.is_some_and(Partner::numbers_by_corridor);
        let corridor = if by_corridor { template.corridor() } else { "" };
        let request = GetSequenceRequest { partner: template.partner().to_owned(), corridor: corridor.to_owned() };
        let answer = service.get_sequence(request).await.map_err(|status| Failure::refused(&status))?;
        Ok(answer.into_inner().last)
    }
}
