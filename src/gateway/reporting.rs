//! Sends recorded calls and metrics to the collector. Neither is kept: what it does not take in time is dropped, and calls are
//! counted then.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock as _, SystemClock},
    telemetry::{
        Metrics, Tracer,
        otlp::{
            exporter::Exporter,
            points::{self, Span},
            spans::{self, Ended},
        },
    },
};

/// How many calls are sent at once at most, and how long the first of them waits for others.
const CALLS_MAX: usize = 512;
const GATHER: Duration = Duration::from_secs(1);
/// How often it looks for the others.
const NAP: Duration = Duration::from_millis(50);
/// How often calls are sent before they are dropped.
const TRIES: u32 = 3;

/// Where it is sent.
pub(super) struct Reporting {
    pub exporter: Exporter,
    pub resource: Resource,
    pub metrics: Arc<Metrics>,
}

impl Reporting {
    /// Sends recorded calls until `stop`.
    pub(super) async fn calls(
        self: Arc<Self>,
        tracer: Arc<Tracer>,
        mut ended: mpsc::Receiver<Ended>,
        stop: CancellationToken,
    ) {
        let mut calls = Vec::new();
        loop {
            let count = tokio::select! {
                () = stop.cancelled() => 0,
                count = ended.recv_many(&mut calls, CALLS_MAX) => count,
            };
            if count == 0 {
                break;
            }
            // The first has come: others may within the time. To be woken for each would cost more than what is sent of it.
            let until = Instant::now() + GATHER;
            while calls.len() < CALLS_MAX && Instant::now() < until && !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(NAP) => {}
                }
                let more = CALLS_MAX.saturating_sub(calls.len());
                calls.extend(std::iter::from_fn(|| ended.try_recv().ok()).take(more));
            }
            self.send(&tracer, std::mem::take(&mut calls)).await;
        }
        while let Ok(call) = ended.try_recv() {
            calls.push(call);
        }
        self.send(&tracer, calls).await;
    }

    async fn send(&self, tracer: &Tracer, calls: Vec<Ended>) {
        let count = calls.len();
        if count > 0 {
            let request = spans::request(&self.resource, calls);
            let mut tries = 1;
            while let Err(answer) = self.exporter.spans(&request).await {
                if tries == TRIES {
                    tracing::debug!(?answer, count, "the collector does not take traces");
                    tracer.drop_some(count);
                    break;
                }
                tokio::time::sleep(GATHER.saturating_mul(tries)).await;
                tries += 1;
            }
        }
        self.metrics.traces_dropped(tracer.dropped());
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
