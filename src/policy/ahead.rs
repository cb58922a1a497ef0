//! What lies ahead on the timelines of a bundle's partners, told while there is time to act.

use crate::{clock::UtcTime, domain::PartnerId};

use super::{Bundle, timeline::KeyState};

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
    /// What is to be warned of at `now`, by partner and time: gaps in signing, one key upon which everything hangs, and
    /// keys that the operator has not confirmed.
    #[must_use]
    pub fn ahead(&self, now: UtcTime) -> Vec<Notice> {
        let until = now.plus(self.warn_ahead);
        let mut notices = Vec::new();
        for partner in self.partners.keys() {
            let mut tell = |at, text| notices.push(Notice { partner: partner.clone(), at, text });
            let mut alone = None;
            for span in self.timeline.spans(partner, now, until) {
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
                let others = |kid: &_| *kid == key.kid;
                if alone.is_none() && self.timeline.current(partner, span.from, others).is_none() {
                    alone = Some(span.from);
                    tell(
                        span.from,
                        format!("were `{}` revoked, nothing could sign; add a key with `standby = true`", key.kid),
                    );
                }
            }
            for key in self.timeline.of(partner).filter(|key| key.confirmed.is_none()) {
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
