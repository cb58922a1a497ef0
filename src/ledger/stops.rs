//! What may not be signed: kids that were revoked, for good, what is halted until somebody resumes it, and what a
//! suspended caller asks for until somebody reinstates it. Rows of
//! the ledger, which every reservation and commit reads in its own transaction.

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::domain::{Caller, Environment, Identity, Kid, PartnerId, QuoteId};

/// One reason not to sign.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stop {
    /// The kid never signs again.
    Revoked(Kid),
    /// Nothing is signed within this reach until it is resumed.
    Halted(Reach),
    /// Nothing is done for this caller until it is reinstated.
    Suspended(Caller),
}

/// How far a halt reaches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// All that this ledger serves.
    All,
    /// The quotes of one partner.
    Partner(PartnerId),
    /// What one key would sign.
    Kid(Kid),
}

/// A text that names no stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give `all`, `partner/<id>` or `kid/<kid>`")]
pub struct NoReach;

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Partner(partner) => write!(f, "partner/{partner}"),
            Self::Kid(kid) => write!(f, "kid/{kid}"),
        }
    }
}

impl FromStr for Reach {
    type Err = NoReach;

    fn from_str(text: &str) -> Result<Self, NoReach> {
        match text.split_once('/') {
            None if text == "all" => Ok(Self::All),
            Some(("partner", partner)) => partner.parse().map(Self::Partner).map_err(|_| NoReach),
            Some(("kid", kid)) => kid.parse().map(Self::Kid).map_err(|_| NoReach),
            _ => Err(NoReach),
        }
    }
}

impl Stop {
    /// The act that ends it, as one that needs two people is proposed; nothing ends a revocation.
    #[must_use]
    pub fn act_that_ends_it(&self) -> Option<String> {
        match self {
            Self::Revoked(_) => None,
            Self::Halted(_) => Some(format!("Resume {self}")),
            Self::Suspended(_) => Some(format!("ReinstateCaller {self}")),
        }
    }

    /// The key that it stops, where it is one key.
    #[must_use]
    pub const fn kid(&self) -> Option<&Kid> {
        match self {
            Self::Revoked(kid) | Self::Halted(Reach::Kid(kid)) => Some(kid),
            Self::Halted(Reach::All | Reach::Partner(_)) | Self::Suspended(_) => None,
        }
    }

    /// The partner that it stops, where it is one partner.
    #[must_use]
    pub const fn partner(&self) -> Option<&PartnerId> {
        if let Self::Halted(Reach::Partner(partner)) = self { Some(partner) } else { None }
    }

    /// The caller that it stops.
    #[must_use]
    pub const fn caller(&self) -> Option<&Caller> {
        if let Self::Suspended(caller) = self { Some(caller) } else { None }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revoked(kid) => write!(f, "revoked/{kid}"),
            Self::Halted(reach) => write!(f, "halted/{reach}"),
            Self::Suspended(caller) => write!(f, "suspended/{caller}"),
        }
    }
}

impl FromStr for Stop {
    type Err = NoReach;

    fn from_str(text: &str) -> Result<Self, NoReach> {
        match text.split_once('/') {
            Some(("revoked", kid)) => kid.parse().map(Self::Revoked).map_err(|_| NoReach),
            Some(("halted", reach)) => reach.parse().map(Self::Halted),
            Some(("suspended", caller)) => caller.parse().map(Self::Suspended).map_err(|_| NoReach),
            _ => Err(NoReach),
        }
    }
}

/// All that is stopped at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stops(BTreeSet<Stop>);

impl Stops {
    /// Each of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Stop> {
        self.0.iter()
    }

    /// Whether it is among them.
    #[must_use]
    pub fn contains(&self, stop: &Stop) -> bool {
        self.0.contains(stop)
    }

    /// Whether `kid` was revoked.
    #[must_use]
    pub fn is_revoked(&self, kid: &Kid) -> bool {
        !self.0.is_empty() && self.0.contains(&Stop::Revoked(kid.clone()))
    }

    /// Whether `caller` was suspended.
    #[must_use]
    pub fn is_suspended(&self, caller: &Caller) -> bool {
        !self.0.is_empty() && self.0.contains(&Stop::Suspended(caller.clone()))
    }

    /// The halt, if any, that reaches the partner, or the kid where one is given.
    #[must_use]
    pub fn halt(&self, partner: &PartnerId, kid: Option<&Kid>) -> Option<&Stop> {
        self.0.iter().find(|stop| match stop {
            Stop::Halted(Reach::All) => true,
            Stop::Halted(Reach::Partner(halted)) => halted == partner,
            Stop::Halted(Reach::Kid(halted)) => kid == Some(halted),
            Stop::Revoked(_) | Stop::Suspended(_) => false,
        })
    }

    /// The first stop that keeps `kid` from signing the quote of `identity` for `caller`.
    #[must_use]
    pub fn on(&self, identity: &Identity, kid: &Kid, caller: Option<&Caller>) -> Option<&Stop> {
        // Nearly always there is none; only then is nothing read.
        self.0.iter().find(|stop| match stop {
            Stop::Revoked(stopped) | Stop::Halted(Reach::Kid(stopped)) => stopped == kid,
            Stop::Halted(Reach::All) => true,
            Stop::Halted(Reach::Partner(partner)) => is_of(identity, partner),
            Stop::Suspended(suspended) => caller == Some(suspended),
        })
    }

    pub(super) fn put(&mut self, stop: &Stop, stands: bool) {
        if stands {
            self.0.insert(stop.clone());
        } else {
            self.0.remove(stop);
        }
    }
}

impl FromIterator<Stop> for Stops {
    fn from_iter<I: IntoIterator<Item = Stop>>(stops: I) -> Self {
        Self(stops.into_iter().collect())
    }
}

/// An identity that cannot be read counts as the partner's: better one signature too few.
fn is_of(identity: &Identity, partner: &PartnerId) -> bool {
    serde_json::from_str::<(Environment, PartnerId, QuoteId)>(identity.as_str())
        .map_or(true, |(_, theirs, _)| theirs == *partner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::step::tests::identity;

    #[test]
    fn each_is_read_as_it_is_written() {
        let suspended = "suspended/spiffe://dev.quotesign.example/pricing";
        for text in ["revoked/quote-a", "halted/all", "halted/partner/acme-remit", "halted/kid/quote-a", suspended] {
            assert_eq!(text.parse::<Stop>().unwrap().to_string(), text);
        }
        for text in ["", "all", "revoked", "revoked/", "halted/", "halted/every", "halted/partner/", "halted/kid/a b"] {
            assert_eq!(text.parse::<Stop>(), Err(NoReach), "{text}");
        }
    }

    #[test]
    fn each_reaches_as_far_as_it_says() {
        let (mine, other) = ("quote-a".parse::<Kid>().unwrap(), "quote-b".parse::<Kid>().unwrap());
        let quote = identity("q1");
        for (text, reaches_mine, reaches_other) in [
            ("revoked/quote-a", true, false),
            ("halted/kid/quote-a", true, false),
            ("halted/all", true, true),
            ("halted/partner/acme-remit", true, true),
            ("halted/partner/acme-remi", false, false),
            ("suspended/spiffe://dev.quotesign.example/pricing", true, true),
            ("suspended/spiffe://dev.quotesign.example/pricin", false, false),
        ] {
            let caller = "spiffe://dev.quotesign.example/pricing".parse().unwrap();
            let caller = Some(&caller);
            let stops: Stops = [text.parse().unwrap()].into_iter().collect();
            let found = [stops.on(&quote, &mine, caller).is_some(), stops.on(&quote, &other, caller).is_some()];
            assert_eq!(found, [reaches_mine, reaches_other], "{text}");
        }
    }
}
