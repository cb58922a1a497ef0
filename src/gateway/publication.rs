//! Sees to it that a key signs only once verifiers can know it: every gateway that counts serves it, and the partner's
//! registered URL shows it where policy names one. What is seen is written in the ledger, once.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::{
    client,
    clock::{Clock as _, SystemClock, UtcTime},
    domain::Kid,
    key_set,
    ledger::{Holding, LedgerError, Note, Noted},
    pipeline::Pipeline,
    policy::{Bundle, Partner, timeline::TimedKey},
    published::Standings,
    service::access,
};

/// How often the lease is renewed and the votes are counted.
const EVERY: Duration = Duration::from_secs(2);
/// How often a registered URL is looked at while a key waits to be seen there, or to be seen gone.
const FETCH_EVERY: Duration = Duration::from_secs(10);

/// What the keys of this gateway's sets need to be looked after.
pub(super) struct Publication {
    pub pipeline: Arc<Pipeline>,
    /// This gateway's name among those that share the ledger.
    pub replica: String,
    /// The CAs that registered URLs are held against.
    pub url_ca: PathBuf,
}

impl Publication {
    /// Renews the lease, counts the votes and notes what has become of the keys, and looks at registered URLs beside that,
    /// until `stop`: a URL that does not answer must not cost the lease.
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(self.keep_looking(&stop), self.keep_fetching(&stop));
    }

    async fn keep_looking(&self, stop: &CancellationToken) {
        loop {
            if self.pipeline.has_joined().is_ok()
                && let Err(fault) = self.look().await
            {
                tracing::debug!(%fault, "what keys are served could not be taken down");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn keep_fetching(&self, stop: &CancellationToken) {
        loop {
            // Looked for again soon while nothing waits, so that what comes to wait is seen to early.
            let fetch = async { if self.look_at_urls().await { FETCH_EVERY } else { EVERY } };
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::time::sleep(fetch.await).await } => {}
            }
        }
    }

    async fn look(&self) -> Result<(), LedgerError> {
        let Pipeline { ledger, published, policy, clock, .. } = &*self.pipeline;
        let (bundle, now) = (policy.load_full(), SystemClock.now());
        let standings = self.pipeline.standings();
        let shown = self.shown(&bundle, &standings, now);
        let leases = ledger.renew(Holding { serial: bundle.serial, shown }).await?;
        let count = published.meet(&self.replica, leases);
        let kids = ledger.kids().await?;
        // What is written once for ever is not written by a clock that cannot be trusted.
        let Ok(now) = clock.now() else {
            published.learn(kids);
            return Ok(());
        };
        let is_at_url =
            |partner: &Partner, key: &_| partner.jwks_url.is_none() || published.is_at_url(&partner.id, key);
        for (key, noted) in count.news(&bundle, &kids, is_at_url, now) {
            self.note(&bundle, key, noted, now).await?;
        }
        published.learn(ledger.kids().await?);
        Ok(())
    }

    async fn note(&self, bundle: &Bundle, key: &TimedKey, noted: Noted, now: UtcTime) -> Result<(), LedgerError> {
        let mut context = access::own_trail(self.pipeline.environment, bundle);
        context.partner = Some(key.partner.clone());
        let news = format!("{noted:?}");
        if self.pipeline.ledger.note(Note { kid: key.kid.clone(), noted, context, now }).await?.is_some() {
            tracing::info!(kid = %key.kid, news, "a key has come further");
        }
        Ok(())
    }

    /// What this gateway's sets show.
    fn shown(&self, bundle: &Bundle, standings: &Standings, now: UtcTime) -> BTreeSet<Kid> {
        if !self.pipeline.stopped.is_told() {
            return BTreeSet::new();
        }
        let is_shown = |key: &&Arc<TimedKey>| bundle.timeline.is_shown(key, now, standings.of(&key.kid));
        bundle.timeline.all().filter(is_shown).map(|key| key.kid.clone()).collect()
    }

    /// Looks at the registered URLs of partners with a key that waits for that; whether there was any.
    async fn look_at_urls(&self) -> bool {
        let (bundle, now) = (self.pipeline.policy.load_full(), SystemClock.now());
        let (standings, published) = (self.pipeline.standings(), &self.pipeline.published);
        let revoked = bundle.timeline.all().map(|key| &key.kid).filter(|kid| standings.of(kid).is_revoked);
        published.is_revoked_now(revoked.cloned().collect());
        // A key waits to be seen there, or to be seen gone.
        let waits = |key: &Arc<TimedKey>| {
            let standing = standings.of(&key.kid);
            let is_not_gone = || published.is_still_shown(&key.partner, &key.kid).is_some();
            key.is_published(now) && (standing.served_since.is_none() || standing.is_revoked && is_not_gone())
        };
        let wanted = bundle.partners().filter(|partner| bundle.timeline.of(&partner.id).any(waits));
        // At once, so that one that does not answer holds up none.
        let looks = wanted.filter_map(|partner| Some(self.look_at_url(partner, partner.jwks_url.as_deref()?)));
        !join_all(looks).await.is_empty()
    }

    async fn look_at_url(&self, partner: &Partner, url: &str) {
        let shown = client::fetch(url, &self.url_ca).await.map_err(|fault| fault.to_string());
        let shown = shown.and_then(|body| key_set::shown(&body).ok_or_else(|| format!("{url}: it is no key set")));
        if let Err(fault) = &shown {
            tracing::warn!(partner = %partner.id, fault, "the registered URL of a key set cannot be looked at");
        }
        self.pipeline.published.seen_at_url(partner.id.clone(), shown);
    }
}
