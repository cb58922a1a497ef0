//! The policy bundle: who may sign what, for whom, with which key, until when. Read once into memory, checked
//! as a whole, and never used where anything in it is wrong. The one loader for `serve` and for every command.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc, time::Duration};

use serde_json::{Map, Value};

use crate::{
    domain::{Caller, Corridor, Environment, Kid, PartnerId, PolicyDigest, Scope},
    jwk::PublicKey,
    money::Currencies,
};

mod ahead;
pub mod authority;
pub mod contract;
mod file;
pub mod files;
mod loader;
mod two_callers;
pub mod seal;
pub mod shipped;
pub mod timeline;

pub use ahead::Notice;
pub use file::{AttributesRule, Quota, Quotas, ScopePart, SequenceMode, SequenceRule, Validity, ValuesFixedAt, Volume};
pub use files::DIGEST_FILE;
pub use two_callers::TwoCallers;

use authority::Authority;
use contract::Contract;
use timeline::Timeline;

/// One thing that is wrong with a bundle: one line, with file, place and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(pub String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A bundle that holds together.
pub struct Bundle {
    /// SHA-256 over its files; see [`files`](self) for how it is made.
    pub digest: PolicyDigest,
    /// Only ever rises.
    pub serial: u64,
    /// The environment it is for.
    pub environment: Environment,
    /// The bounds on quotes' times.
    pub validity: Validity,
    /// How long before something runs out it is warned of.
    pub warn_ahead: Duration,
    /// What may be used up.
    pub quotas: Quotas,
    /// When a key signs so much that it is to be told.
    pub volume: Volume,
    /// Which acts need two operators.
    pub two_callers: TwoCallers,
    /// The rules.
    pub authority: Authority,
    /// The keys.
    pub timeline: Timeline,
    /// The reviewed currencies.
    pub currencies: Arc<Currencies>,
    partners: BTreeMap<PartnerId, Partner>,
    callers: BTreeMap<Caller, Vec<String>>,
    contracts: Vec<Arc<Contract>>,
}

/// A partner of the operator.
#[derive(Debug, Clone)]
pub struct Partner {
    /// Its id.
    pub id: PartnerId,
    /// How its quotes are numbered.
    pub sequence: SequenceRule,
    /// Host names under which the well-known path is its JWKS.
    pub jwks_hosts: Vec<String>,
    /// Where the operator fetches it, as it was registered; a key is served once it was seen there too.
    pub jwks_url: Option<String>,
    /// Whom to reach, by role.
    pub contacts: BTreeMap<String, String>,
    contracts: Vec<String>,
}

impl Bundle {
    /// Reads and checks the bundle in `dir`.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once, a line each.
    pub fn load(dir: &Path) -> Result<Self, Vec<Problem>> {
        files::read(dir).and_then(|files| loader::check(&files))
    }

    /// Reads and checks the bundle in `dir`, which must be signed by `key` where one is given.
    ///
    /// # Errors
    /// As [`Bundle::load`]; of a bundle that is not signed nothing else is told.
    pub fn load_signed(dir: &Path, key: Option<&PublicKey>) -> Result<Self, Vec<Problem>> {
        let Some(key) = key else { return Self::load(dir) };
        let files = files::read(dir)?;
        let text = files::read_seal(dir).map_err(|problem| vec![problem])?.unwrap_or_default();
        seal::check(&files, &text, key).map_err(|problem| vec![problem])?;
        let bundle = loader::check(&files)?;
        seal::is_apart(key, &bundle.timeline).map_or(Ok(bundle), |problem| Err(vec![problem]))
    }

    /// Checks the bundle that these files would make.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once, a line each.
    pub fn check(files: &Files) -> Result<Self, Vec<Problem>> {
        loader::check(files)
    }

    /// The partner of this id.
    #[must_use]
    pub fn partner(&self, id: &PartnerId) -> Option<&Partner> {
        self.partners.get(id)
    }

    /// All partners.
    pub fn partners(&self) -> impl Iterator<Item = &Partner> {
        self.partners.values()
    }

    /// The partner whose well-known path `host` is; where there is but one partner, every host is its own.
    #[must_use]
    pub fn partner_of_host(&self, host: &str) -> Option<&Partner> {
        let host = host.trim_end_matches('.');
        let is_it = |name: &String| name.eq_ignore_ascii_case(host);
        let named = self.partners.values().find(|partner| partner.jwks_hosts.iter().any(is_it));
        named.or_else(|| self.partners.values().next().filter(|_| self.partners.len() == 1))
    }

    /// Those who may call.
    pub fn callers(&self) -> impl Iterator<Item = &Caller> {
        self.callers.keys()
    }

    /// Whether the bundle declares `caller`.
    #[must_use]
    pub fn knows(&self, caller: &Caller) -> bool {
        self.callers.contains_key(caller)
    }

    /// The contract that `quote` says it keeps.
    #[must_use]
    pub fn contract_of(&self, quote: &Map<String, Value>) -> Option<&Arc<Contract>> {
        self.contracts.iter().find(|contract| contract.is_kept_by(quote))
    }

    /// The contracts that `partner`'s quotes may keep.
    pub fn contracts_of(&self, partner: &Partner) -> impl Iterator<Item = &Arc<Contract>> {
        self.contracts.iter().filter(|contract| partner.keeps(&contract.name))
    }

    /// The partner that `claim` of a quote names.
    #[must_use]
    pub fn partner_of(&self, quote: &Map<String, Value>, claim: &str) -> Option<&Partner> {
        self.partner(&quote.get(claim)?.as_str()?.parse().ok()?)
    }

    /// The scope of `partner`'s quotes over `corridor`, which counts only where policy tells its sequences apart by it.
    #[must_use]
    pub fn scope(&self, partner: &Partner, corridor: Option<&Corridor>) -> Scope {
        Scope::new(self.environment, &partner.id, corridor.filter(|_| partner.numbers_by_corridor()))
    }

    /// The public key of `kid`, whatever its state.
    #[must_use]
    pub fn key(&self, kid: &Kid) -> Option<&Arc<timeline::TimedKey>> {
        self.timeline.all().find(|key| key.kid == *kid)
    }
}

impl Partner {
    /// Whether this partner's quotes may keep the contract of this name.
    #[must_use]
    pub fn keeps(&self, contract: &str) -> bool {
        self.contracts.iter().any(|name| name == contract)
    }

    /// Whether the gateway gives its quotes their numbers.
    #[must_use]
    pub fn is_assigned_numbers(&self) -> bool {
        self.sequence.mode == SequenceMode::Assign
    }

    /// Whether its sequences are told apart by corridor.
    #[must_use]
    pub fn numbers_by_corridor(&self) -> bool {
        self.sequence.scope.contains(&ScopePart::Corridor)
    }
}

impl Validity {
    /// How far `issued_at` may lie in the future.
    #[must_use]
    pub fn clock_skew(&self) -> Duration {
        Duration::from_secs(self.clock_skew_s.into())
    }
    /// The longest time from `issued_at` to `expires_at`.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_secs(self.longest_s.into())
    }
    /// A quote that ends sooner than this is not worth signing.
    #[must_use]
    pub fn useful(&self) -> Duration {
        Duration::from_secs(self.useful_s.into())
    }
    /// From a key's last signature until no quote of it can be presented any more.
    #[must_use]
    pub fn retirement(&self) -> Duration {
        self.longest() + self.clock_skew() + self.late_acceptance()
    }
    /// From a quote's expiry until it cannot be presented any more, by any clock that is near enough.
    #[must_use]
    pub fn presentable(&self) -> Duration {
        self.clock_skew() + self.late_acceptance()
    }
    /// How long after its expiry a quote may still be presented.
    #[must_use]
    pub fn late_acceptance(&self) -> Duration {
        Duration::from_secs(self.late_acceptance_s.into())
    }
}

/// The files of a bundle, by path relative to it.
pub type Files = BTreeMap<String, Vec<u8>>;
