//! What runs beside the calls: upkeep, checkpoints, and what is sent to a collector. Begun with the fronts; ended in the order in
//! which one writes what another sends.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Gateway, StartError, certificates::Certificates, exports, join, lanes::OwnLanes, notary::Notary, pruning::Pruning,
    publication, reporting::Reporting, shipping::Shipping, upkeep,
};
use crate::{service::access, telemetry::otlp::records};

/// How long what is left may take to be sent, whatever the collector does: what the chart gives a pod to drain counts on it.
const SENDING: Duration = Duration::from_secs(6);

/// All of it.
pub(super) struct Beside {
    upkeep: JoinSet<()>,
    notary: Option<Arc<Notary>>,
    /// What sends to the collector.
    sending: JoinSet<()>,
    /// That nothing will be written any more.
    all_is_written: CancellationToken,
}

impl Beside {
    /// Begins it; `stop` is when the gateway begins to end.
    ///
    /// # Errors
    /// Where a file that the config names cannot be used.
    pub(super) fn begin(gateway: &mut Gateway, stop: &CancellationToken) -> Result<Self, StartError> {
        let (mut upkeep, notary) = (upkeep(gateway, stop), notary(gateway)?);
        if let Some(notary) = &notary {
            upkeep.spawn(notary.clone().run(stop.clone()));
        }
        let own = Arc::new(OwnLanes::new(gateway.config.ledger.replica(), gateway.pipeline.published.clone()));
        if let Some(pruning) = pruning(gateway, &own)? {
            upkeep.spawn(pruning.run(stop.clone()));
        }
        let all_is_written = CancellationToken::new();
        let mut sending = report(gateway, &all_is_written)?;
        if let Some(shipping) = shipping(gateway, &own)? {
            sending.spawn(shipping.run(stop.clone(), all_is_written.clone()));
        }
        Ok(Self { upkeep, notary, sending, all_is_written })
    }

    /// Ends it, once no call is under way: what was only counted is journalled, what is journalled is bound together, and what
    /// is bound together is shipped.
    pub(super) async fn end(mut self, pipeline: &crate::pipeline::Pipeline) {
        self.upkeep.join_all().await;
        pipeline.journal_counted(&access::own_trail(pipeline.environment, &pipeline.policy.load()));
        if let Some(notary) = self.notary {
            notary.last().await;
        }
        self.all_is_written.cancel();
        let ended = async { while self.sending.join_next().await.is_some() {} };
        if timeout(SENDING, ended).await.is_err() {
            tracing::warn!(
                "the collector takes its time: what is left of the journal is shipped by the next gateway, spans and metrics are lost"
            );
        }
    }
}

/// What binds the journal together, where the config names a key for it.
fn notary(gateway: &Gateway) -> Result<Option<Arc<Notary>>, StartError> {
    let Some(section) = &gateway.config.audit.checkpoint else { return Ok(None) };
    let place = gateway.config.ledger.place().map_err(StartError::unfit)?;
    let notary = Notary::new(gateway.pipeline.clone(), gateway.metrics.clone(), place, section);
    notary.map(Arc::new).map(Some).map_err(StartError::unfit)
}

/// What prunes the journal, where the config says for how long it is kept, and it is shipped: what was exported nowhere stays.
fn pruning(gateway: &Gateway, own: &Arc<OwnLanes>) -> Result<Option<Pruning>, StartError> {
    let Gateway { config, .. } = gateway;
    let (Some(_), Some(keep)) = (&config.otlp, config.audit.keep(config.environment)) else { return Ok(None) };
    let place = config.ledger.place().map_err(StartError::unfit)?;
    let (own, sweep) = (own.clone(), config.ledger.sweep());
    let (pipeline, is_bound) = (gateway.pipeline.clone(), config.audit.checkpoint.is_some());
    Ok(Some(Pruning { pipeline, place, own, keep, sweep, is_bound }))
}

/// What ships the journal, where the config names a collector.
fn shipping(gateway: &Gateway, own: &Arc<OwnLanes>) -> Result<Option<Shipping>, StartError> {
    let Some(section) = &gateway.config.otlp else { return Ok(None) };
    let place = gateway.config.ledger.place().map_err(StartError::unfit)?;
    let shipping = Shipping::new(gateway.pipeline.clone(), place, own.clone(), section);
    shipping.map(Some).map_err(StartError::unfit)
}

/// What sends recorded calls and metrics, where the config names a collector for them.
fn report(gateway: &Gateway, stop: &CancellationToken) -> Result<JoinSet<()>, StartError> {
    let mut tasks = JoinSet::new();
    let Gateway { config, metrics, tracer, .. } = gateway;
    let Some(section) = &config.otlp else { return Ok(tasks) };
    let (exporter, metrics) = (section.exporter().map_err(StartError::unfit)?, metrics.clone());
    let resource = records::resource(config.environment, &config.ledger.replica());
    let reporting = Arc::new(Reporting { exporter, resource, metrics });
    if tracer.is_on() {
        tasks.spawn(reporting.clone().calls(tracer.clone(), stop.clone()));
    }
    if let Some(every) = section.metrics_interval() {
        tasks.spawn(reporting.metrics(every, stop.clone()));
    }
    Ok(tasks)
}

fn upkeep(gateway: &Gateway, stop: &CancellationToken) -> JoinSet<()> {
    let Gateway { config, control, metrics, .. } = gateway;
    let (pipeline, ledger) = (|| gateway.pipeline.clone(), &config.ledger);
    let mut upkeep = JoinSet::new();
    upkeep.spawn(upkeep::sweep(pipeline(), ledger.sweep(), ledger.keep(), stop.clone()));
    upkeep.spawn(upkeep::make_durable(pipeline(), stop.clone()));
    upkeep.spawn(upkeep::look_at_room(pipeline(), stop.clone()));
    upkeep.spawn(upkeep::reload_on_hangup(control.clone(), pipeline(), stop.clone()));
    upkeep.spawn(Certificates::new(&gateway.lives, config, pipeline(), metrics.clone()).run(stop.clone()));
    upkeep.spawn(join::until_joined(pipeline(), control.clone(), stop.clone()));
    upkeep.spawn(upkeep::look_ahead(pipeline(), metrics.clone(), stop.clone()));
    let (replica, url_ca) = (ledger.replica(), config.jwks.url_ca.clone());
    let publication = publication::Publication { pipeline: pipeline(), replica, url_ca };
    upkeep.spawn(publication.run(stop.clone()));
    let (folder, purge) = (config.jwks.export.clone(), config.jwks.purge.clone());
    upkeep.spawn(exports::Exports { pipeline: pipeline(), folder, purge }.run(stop.clone()));
    upkeep.spawn(upkeep::reload_on_change(control.clone(), pipeline(), stop.clone()));
    upkeep
}
