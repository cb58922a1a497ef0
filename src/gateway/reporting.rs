//! Sends recorded calls and metrics to the collector. Neither is kept: what it does not take in time is dropped, and calls are
//! counted then.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock as _, SystemClock},
    telemetry::{
        Metrics, Recorded, Tracer,
        otlp::{
            exporter::Exporter,
            points::{self, Span},
            room, spans,
        },
    },
};

/// How long the first call waits for others, where they do not fill a page before.
const GATHER: Duration = Duration::from_secs(1);
/// How often calls are sent before they are dropped.
const TRIES: u32 = 3;

/// Where it is sent.
pub(super) struct Reporting {
    pub exporter: Exporter,
    pub resource: Resource,
    pub metrics: Arc<Metrics>,
}

impl Reporting {
    /// Sends recorded calls until `stop`, and then what is left.
    pub(super) async fn calls(self: Arc<Self>, tracer: Arc<Tracer>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tracer.gathered(GATHER) => {}
            }
            // Then one that is full; what is still being gathered waits.
            let mut calls = tracer.take();
            while let Some(page) = calls {
                self.send(&tracer, page).await;
                calls = (tracer.has_full() && !stop.is_cancelled()).then(|| tracer.take()).flatten();
            }
        }
        while let Some(page) = tracer.take() {
            if !self.send(&tracer, page).await {
                std::iter::from_fn(|| tracer.take()).for_each(|page| tracer.drop_some(page.calls));
            }
        }
        self.metrics.traces_dropped(tracer.dropped());
    }

    /// Whether the collector took them. It tells of those that were dropped meanwhile, too.
    async fn send(&self, tracer: &Tracer, Recorded { spans, calls }: Recorded) -> bool {
        let spans = Bytes::from(spans);
        let mut tries = 1;
        let is_taken = loop {
            match self.exporter.spans(spans::request(&self.resource, spans.clone())).await {
                Ok(()) => break true,
                Err(answer) if tries == TRIES => {
                    tracing::debug!(?answer, calls, "the collector does not take traces");
                    tracer.drop_some(calls);
                    break false;
                }
                Err(_) => tokio::time::sleep(GATHER.saturating_mul(tries)).await,
            }
            tries += 1;
        };
        tracer.reuse(room(spans));
        self.metrics.traces_dropped(tracer.dropped());
        is_taken
    }

    /// Sends metrics every so often until `stop`, and at the end.
    pub(super) async fn metrics(self: Arc<Self>, every: Duration, stop: CancellationToken) {
        let from = nanos();
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(every) => {}
            }
            let request = points::request(&self.resource, &self.metrics.text(), Span { from, to: nanos() });
            if let Err(answer) = self.exporter.metrics(&request).await {
                tracing::debug!(?answer, "the collector does not take metrics");
            }
        }
    }
}

fn nanos() -> u64 {
    u64::try_from(SystemClock.now().millis()).unwrap_or_default().saturating_mul(1_000_000)
}
