//! The time between the loss of a token and its return, and what callers are told meanwhile: to wait, for a
//! moment; then why it does not serve.

use std::time::{Duration, Instant};

use tokio::time;

use super::Shared;

/// How long a token that was lost counts as being brought back, and orders wait for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The time since the token was lost.
#[derive(Default)]
pub(super) struct Outage {
    pub since: Option<Instant>,
    why: String,
}

impl Outage {
    /// The token is lost, or could not be brought back.
    pub fn tell(&mut self, shared: &Shared, why: &str) {
        let is_new = std::mem::replace(&mut self.why, why.to_owned()) != why;
        if is_new {
            tracing::warn!(signer = %shared.config.name, why, "the token is down; trying until it is back");
        }
        self.show(shared);
    }

    /// Callers wait for a token that was lost a moment ago; for one that stays away they do not.
    fn show(&self, shared: &Shared) {
        match self.since {
            Some(since) if since.elapsed() < PATIENCE => shared.recovering(&self.why),
            _ => shared.down(&self.why),
        }
    }

    pub async fn wait(&self, shared: &Shared, pause: Duration) {
        self.during(shared, time::sleep(pause)).await;
        self.show(shared);
    }

    /// Does `attempt`, and meanwhile ceases to have callers wait when it has lasted too long.
    pub async fn during<T>(&self, shared: &Shared, attempt: impl Future<Output = T>) -> T {
        let left = self.since.map_or(Duration::ZERO, |since| PATIENCE.saturating_sub(since.elapsed()));
        tokio::pin!(attempt);
        tokio::select! {
            done = &mut attempt => return done,
            () = time::sleep(left) => {}
        }
        if !self.why.is_empty() {
            self.show(shared);
        }
        attempt.await
    }
}
