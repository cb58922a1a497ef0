//! Follows the files of the fronts' TLS: what has changed there is in force within a few seconds, without a restart and without
//! ending a connection. Files that cannot be used change nothing; the last good ones stay.

use std::{sync::Arc, time::Duration};

use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use super::fronts::Lives;
use crate::{
    audit::{Event, Facts, Record},
    clock::{Clock as _, SystemClock},
    config::Config,
    pipeline::Pipeline,
    service::access,
    telemetry::Metrics,
    transport::{
        live::{Files, Fingerprint, Live, Settings},
        tls::TlsError,
    },
};

/// How often the files are looked at. They are read rather than watched, since directories that are swapped by a link, as
/// Kubernetes does it, tell no watcher of it.
const LOOK: Duration = Duration::from_secs(1);

/// The files of one front, and what was last seen of them.
struct Front {
    name: &'static str,
    files: Files,
    live: Arc<Live>,
    /// What the last look found: a change counts once two looks have found the same, so that files which are being written
    /// are let be.
    seen: Option<Fingerprint>,
    /// What was refused, which is told once.
    refused: Option<Refused>,
}

/// Why files cannot be used, and whether that was told. A file that is away may be about to be replaced: it is told of where it
/// is still away at the next look.
struct Refused {
    why: String,
    is_told: bool,
}

/// Looks at the files of all fronts.
pub(super) struct Certificates {
    fronts: Vec<Front>,
    pipeline: Arc<Pipeline>,
    metrics: Arc<Metrics>,
}

impl Certificates {
    pub(super) fn new(lives: &Lives, config: &Config, pipeline: Arc<Pipeline>, metrics: Arc<Metrics>) -> Self {
        let fronts = [
            ("grpc", config.grpc.files(), &lives.grpc),
            ("admin", config.admin.files(), &lives.admin),
            ("jwks", config.jwks.files(), &lives.jwks),
        ]
        .map(|(name, files, live)| {
            metrics.certificate(name, live.settings().ends);
            metrics.certificate_refused(name, false);
            Front { name, files, live: live.clone(), seen: None, refused: None }
        });
        Self { fronts: fronts.into(), pipeline, metrics }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let Ok(mut hangups) = tokio::signal::unix::signal(SignalKind::hangup()) else { return };
        loop {
            let is_told = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => false,
                _ = hangups.recv() => true,
            };
            for front in &mut self.fronts {
                front.look(&self.pipeline, &self.metrics, is_told).await;
            }
        }
    }
}

impl Front {
    async fn look(&mut self, pipeline: &Pipeline, metrics: &Metrics, is_told: bool) {
        let (files, known) = (self.files.clone(), self.live.settings().fingerprint);
        let last = std::mem::take(&mut self.seen);
        let read = tokio::task::spawn_blocking(move || {
            let material = files.read()?;
            let seen = material.fingerprint();
            let is_settled = is_told || last == Some(seen);
            Ok::<_, TlsError>((seen, (is_settled && seen != known).then(|| Settings::of(&material))))
        });
        let Ok(read) = read.await else { return };
        let refused = match read {
            Err(fault) => Some((fault.to_string(), is_told)),
            Ok((seen, settings)) => {
                self.seen = Some(seen);
                match settings {
                    None if seen == known => None,
                    None => return,
                    Some(Ok(settings)) => {
                        self.adopt(settings, pipeline, metrics);
                        None
                    }
                    Some(Err(fault)) => Some((fault.to_string(), true)),
                }
            }
        };
        self.refuse(refused, metrics);
    }

    fn refuse(&mut self, refused: Option<(String, bool)>, metrics: &Metrics) {
        let before = self.refused.take();
        self.refused = refused.map(|(why, is_sure)| {
            let again = before.filter(|before| before.why == why);
            let was_told = again.as_ref().is_some_and(|again| again.is_told);
            let is_told = is_sure || again.is_some();
            if is_told && !was_told {
                let front = self.name;
                tracing::error!(
                    front,
                    why,
                    "TLS files have changed and cannot be used; the last good ones stay in force"
                );
            }
            Refused { why, is_told }
        });
        metrics.certificate_refused(self.name, self.refused.as_ref().is_some_and(|refused| refused.is_told));
    }

    fn adopt(&self, settings: Settings, pipeline: &Pipeline, metrics: &Metrics) {
        let (ends, certificate) = (settings.ends, hex::encode(settings.certificate));
        self.live.swap(settings);
        metrics.certificate(self.name, ends);
        tracing::info!(front = self.name, certificate_sha256 = certificate, %ends, "TLS files were reloaded");
        let facts = Facts {
            detail: Some(format!("TLS of {}: certificate {certificate}, until {ends}", self.name)),
            ..Facts::default()
        };
        let context = access::own_trail(pipeline.environment, &pipeline.policy.load());
        pipeline.ledger.journal(Record::new(Event::TlsReloaded, SystemClock.now(), context, facts));
    }
}
