//! What lies ahead on the timelines of a bundle's partners, told while there is time to act.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::UtcTime,
    domain::{KeyState, Kid, PartnerId},
};

use super::{
    Bundle,
    timeline::{Standing, TimedKey},
};

/// Something that will go wrong unless somebody acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whose timeline it is on.
    pub partner: PartnerId,
    /// When it comes about; the instant that was asked about where it holds already.
    pub at: UtcTime,
    /// What it is and what to do.
    pub text: String,
}

impl Bundle {
    /// What stands in the way of keys that are to sign soon, or that should sign already: what `standing` says of them, not
    /// what the bundle plans.
    #[must_use]
    pub fn obstacles(&self, now: UtcTime, standing: impl Fn(&Kid) -> Standing) -> Vec<Notice> {
        let soon = |key: &&Arc<TimedKey>| key.sign_from < now.plus(self.warn_ahead);
        // That a confirmation is missing is told from the bundle alone.
        let keys = self.timeline.all().filter(soon).filter(|key| key.confirmed.is_some() || key.emergency.is_some());
        let told = |key: &Arc<TimedKey>| {
            let why = self.timeline.obstacle(key, now, standing(&key.kid))?;
            let text = format!("`{}` will not sign from {} on: {why}", key.kid, key.sign_from);
            Some(Notice { partner: key.partner.clone(), at: key.sign_from.max(now), text })
        };
        keys.filter_map(told).collect()
    }

    /// What is to be warned of at `now`, by partner and time: gaps in signing, one key upon which everything hangs, and
    /// keys that the operator has not confirmed. A key that was revoked closes no gap and stands in for nobody.
    #[must_use]
    pub fn ahead(&self, now: UtcTime, is_revoked: impl Fn(&Kid) -> bool) -> Vec<Notice> {
        self.ahead_within(now, self.warn_ahead, is_revoked)
    }

    /// The same of another time ahead than the bundle's own.
    #[must_use]
    pub fn ahead_within(&self, now: UtcTime, span: Duration, is_revoked: impl Fn(&Kid) -> bool) -> Vec<Notice> {
        let until = now.plus(span);
        let mut notices = Vec::new();
        for partner in self.partners.keys() {
            let mut tell = |at, text| notices.push(Notice { partner: partner.clone(), at, text });
            let mut alone = None;
            for span in self.timeline.spans(partner, (now, until), &is_revoked) {
                let Some(key) = span.key else {
                    let text = match span.until {
                        Some(end) if end < until => {
                            format!("no key signs from {} until {end}; close the gap with a key", span.from)
                        }
                        _ => format!("no key signs from {} on; add one, published early enough", span.from),
                    };
                    tell(span.from, text);
                    continue;
                };
                let others = |kid: &Kid| Standing::planned(*kid == key.kid || is_revoked(kid));
                if alone.is_none() && self.timeline.current(partner, span.from, others).is_none() {
                    alone = Some(span.from);
                    tell(
                        span.from,
                        format!("were `{}` revoked, nothing could sign; add a key with `standby = true`", key.kid),
                    );
                }
            }
            for key in self.timeline.of(partner).filter(|key| key.confirmed.is_none() && !is_revoked(&key.kid)) {
                if matches!(key.state(now), KeyState::Prepared | KeyState::Active) && key.sign_from < until {
                    let text =
                        format!("`{}` is not confirmed by the operator; obtain it and write `confirmed`", key.kid);
                    tell(key.sign_from.max(now), text);
                }
            }
        }
        notices.sort_by(|a, b| (&a.partner, a.at).cmp(&(&b.partner, b.at)));
        notices
    }
}
