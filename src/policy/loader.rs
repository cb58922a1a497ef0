//! Checks a bundle as a whole. Whatever is wrong is told at once: file, place and remedy, a line each.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    domain::{Corridor, Environment, Kid, is_dns_name},
    jwk::PublicKey,
    money::Currencies,
    signer::locator,
    strict_toml,
};

use super::{
    Bundle, Files, Partner, Problem, ScopePart, TwoCallers,
    authority::{self, Authority, Vocabulary},
    contract::Contract,
    file::{AttributesRule, KeyEntry, PolicyFile, SequenceMode},
    files,
    timeline::{TimedKey, Timeline},
};

/// How long a fetcher may keep the JWKS, in seconds; the endpoint says so.
const JWKS_MAX_AGE_S: u32 = 300;
const DAY: Duration = Duration::from_hours(24);
/// The greatest number that every reader of JSON takes for what it is.
const SERIAL_MAX: u64 = (1 << 53) - 1;

pub(super) fn check(files: &Files) -> Result<Bundle, Vec<Problem>> {
    let file = policy_file(files).map_err(|problems| [problems, of_the_others(files)].concat())?;
    let mut check = Check { files, file: &file, knows_currencies: true, problems: Vec::new() };
    check.partners();
    check.bounds();
    let currencies = check.currencies();
    let contracts = check.contracts(&currencies);
    let authority = check.authority(&currencies);
    let keys = check.keys();
    let two_callers = check.two_callers(authority.as_ref());
    let problems = check.problems;
    match authority {
        Some(authority) if problems.is_empty() => {
            Ok(assemble(files, file, authority, contracts, keys, currencies, two_callers))
        }
        _ => Err(problems),
    }
}

fn policy_file(files: &Files) -> Result<PolicyFile, Vec<Problem>> {
    let unread = || vec![Problem("policy.toml: is not UTF-8; save it as UTF-8".to_owned())];
    let misfits = strict_toml::read_all(text(files, "policy.toml").ok_or_else(unread)?);
    misfits.map_err(|misfits| misfits.iter().map(|misfit| Problem(misfit.of_file("policy.toml"))).collect())
}

/// What is wrong with the other files by themselves, where `policy.toml` cannot be read.
fn of_the_others(files: &Files) -> Vec<Problem> {
    let (rules, schema) = (text(files, "authorize.cedar"), text(files, "quotesign.cedarschema"));
    let mut problems: Vec<Problem> = rules
        .zip(schema)
        .map(|(rules, schema)| authority::faults_alone(rules, schema))
        .unwrap_or_default()
        .into_iter()
        .map(Problem)
        .collect();
    let currencies = Currencies::read(text(files, "currencies.csv").unwrap_or_default()).err().unwrap_or_default();
    problems.extend(currencies.into_iter().map(|fault| Problem(format!("currencies.csv: {fault}"))));
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("keys/")) {
        problems.extend(PublicKey::from_jwk(bytes).err().map(|fault| Problem(format!("{name}: {fault}"))));
    }
    problems
}

fn is_https(url: &str) -> bool {
    url.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some())
}

fn text<'f>(files: &'f Files, name: &str) -> Option<&'f str> {
    files.get(name).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

struct Check<'f> {
    files: &'f Files,
    file: &'f PolicyFile,
    /// Whether what names a currency can be held against them.
    knows_currencies: bool,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn problem(&mut self, text: String) {
        self.problems.push(Problem(text));
    }

    fn partners(&mut self) {
        let file = self.file;
        let mut seen = HashSet::new();
        let mut hosts = HashSet::new();
        if file.partners.is_empty() {
            self.problem("policy.toml: it names no partner; write at least one [[partners]]".to_owned());
        }
        for partner in &file.partners {
            let id = &partner.id;
            if !seen.insert(id) {
                self.problem(format!("policy.toml: the partner `{id}` stands there twice; remove one"));
            }
            if partner.sequence.scope.first() != Some(&ScopePart::Partner) || partner.sequence.scope.len() > 2 {
                self.problem(format!(
                    "policy.toml: partner `{id}`: `sequence.scope` must be [\"partner\"] or [\"partner\", \"corridor\"]"
                ));
            }
            if partner.sequence.jump_max == 0 {
                self.problem(format!(
                    "policy.toml: partner `{id}`: `sequence.jump_max` = 0 accepts no number; raise it"
                ));
            }
            for name in &partner.contracts {
                if !file.contracts.iter().any(|contract| contract.name == *name) {
                    self.problem(format!(
                        "policy.toml: partner `{id}`: no contract is named `{name}`; add it or mend the name"
                    ));
                }
            }
            if let Some(url) = partner.jwks_url.as_ref().filter(|url| !is_https(url)) {
                self.problem(format!(
                    "policy.toml: partner `{id}`: `jwks_url` = `{url}` is no https:// address; write it as it was registered"
                ));
            }
            for host in &partner.jwks_hosts {
                if !is_dns_name(host) {
                    self.problem(format!(
                        "policy.toml: partner `{id}`: `jwks_hosts`: `{host}` is no host name in lower case; write it without scheme, port and path"
                    ));
                }
                if !hosts.insert(host) {
                    self.problem(format!("policy.toml: the host `{host}` is two partners' own; give it to one"));
                }
            }
        }
        let mut callers = HashSet::new();
        for caller in &file.callers {
            if !callers.insert(&caller.id) {
                self.problem(format!("policy.toml: the caller `{}` stands there twice; remove one", caller.id));
            }
        }
    }

    fn two_callers(&mut self, authority: Option<&Authority>) -> TwoCallers {
        let file = self.file;
        let (two_callers, problems) = TwoCallers::read(&file.two_callers, file.environment);
        let callers: Vec<_> = file.callers.iter().map(|caller| &caller.id).collect();
        let alone = authority.map(|authority| two_callers.out_of_reach(authority, &callers)).unwrap_or_default();
        self.problems.extend(problems.into_iter().chain(alone).map(Problem));
        two_callers
    }

    fn bounds(&mut self) {
        if self.file.serial > SERIAL_MAX {
            self.problem(format!(
                "policy.toml: `serial` is above {SERIAL_MAX}, which audit records cannot hold; lower it"
            ));
        }
        let validity = self.file.validity;
        if validity.longest_s == 0 || validity.useful_s >= validity.longest_s {
            self.problem(
                "policy.toml: `validity.longest_s` must be above `validity.useful_s`, or no quote is ever valid"
                    .to_owned(),
            );
        }
        let quotas = self.file.quotas;
        let signed = [
            ("signed_per_partner", quotas.signed_per_partner),
            ("signed_per_caller", quotas.signed_per_caller),
            ("signed_per_key", quotas.signed_per_key),
        ];
        let rates = signed.map(|(name, quota)| (name, quota.per_second));
        for (name, per_second) in
            rates.into_iter().chain([("attempts_per_caller", quotas.attempts_per_caller.per_second)])
        {
            if per_second.get() > 1_000_000 {
                self.problem(format!(
                    "policy.toml: `quotas.{name}.per_second` is above 1000000, which is no limit; lower it"
                ));
            }
        }
        for (name, quota) in signed {
            if quota.per_day.is_some_and(|per_day| per_day < quota.burst) {
                self.problem(format!(
                    "policy.toml: `quotas.{name}.per_day` is below its `burst`, which then never holds; raise it or lower `burst`"
                ));
            }
        }
        let propagation_s = self.file.publication.propagation_s;
        if propagation_s < JWKS_MAX_AGE_S && self.file.environment != Environment::Development {
            self.problem(format!(
                "policy.toml: `publication.propagation_s` = {propagation_s} is for development alone; set at least \
                 {JWKS_MAX_AGE_S}, the JWKS max-age, and the operator's own cache time"
            ));
        }
    }

    fn currencies(&mut self) -> Arc<Currencies> {
        let read = Currencies::read(text(self.files, "currencies.csv").unwrap_or_default());
        Arc::new(read.unwrap_or_else(|faults| {
            self.knows_currencies = false;
            self.problems.extend(faults.into_iter().map(|fault| Problem(format!("currencies.csv: {fault}"))));
            Currencies::default()
        }))
    }

    fn contracts(&mut self, currencies: &Arc<Currencies>) -> Vec<Arc<Contract>> {
        let mut names = HashSet::new();
        let mut versions = HashSet::new();
        let mut contracts = Vec::new();
        for entry in &self.file.contracts {
            let name = &entry.name;
            if !names.insert(name) || !versions.insert(&entry.version) {
                self.problem(format!(
                    "policy.toml: the contract `{name}` shares its name or version with another; make both unique"
                ));
            }
            let Some(schema) = self.files.get(&entry.schema) else {
                self.problem(format!(
                    "policy.toml: contract `{name}`: the bundle holds no `{}`; add it or mend the path",
                    entry.schema
                ));
                continue;
            };
            let knows = self.knows_currencies;
            let unknown = |code: &&String| knows && currencies.get(code).is_none();
            for code in entry.money.corridors.values().flatten().filter(unknown) {
                self.problem(format!(
                    "policy.toml: contract `{name}`: `money.corridors` names `{code}`, which currencies.csv does not hold; add it or mend the code"
                ));
            }
            let assigned = self
                .file
                .partners
                .iter()
                .any(|partner| partner.contracts.contains(name) && partner.sequence.mode == SequenceMode::Assign);
            match Contract::compile(entry, schema, currencies, assigned) {
                Ok(contract) => contracts.push(Arc::new(contract)),
                Err(fault) => self.problem(format!("{}: {fault}", entry.schema)),
            }
        }
        contracts
    }

    fn authority(&mut self, currencies: &Currencies) -> Option<Authority> {
        let (Some(rules), Some(schema)) =
            (text(self.files, "authorize.cedar"), text(self.files, "quotesign.cedarschema"))
        else {
            self.problem("authorize.cedar or quotesign.cedarschema is not UTF-8; save it as UTF-8".to_owned());
            return None;
        };
        let callers = self.file.callers.iter().map(|caller| (&caller.id, caller.roles.as_slice()));
        let partners = self.file.partners.iter().map(|partner| &partner.id);
        let contracts = &self.file.contracts;
        let vocabulary = Vocabulary {
            contracts: contracts.iter().map(|contract| contract.name.as_str()).collect(),
            corridors: contracts
                .iter()
                .flat_map(|contract| contract.money.corridors.keys().map(Corridor::as_str))
                .collect(),
            currencies: self.knows_currencies.then_some(currencies),
        };
        match Authority::compile(rules, schema, callers, partners, &vocabulary) {
            Ok(authority) => Some(authority),
            Err(faults) => {
                self.problems.extend(faults.into_iter().map(Problem));
                None
            }
        }
    }

    fn keys(&mut self) -> Vec<Arc<TimedKey>> {
        let mut kids = HashSet::new();
        let mut thumbprints: HashMap<String, &Kid> = HashMap::new();
        let mut keys = Vec::new();
        for entry in &self.file.keys {
            let kid = &entry.kid;
            if !kids.insert(kid) {
                self.problem(format!("policy.toml: the key `{kid}` stands there twice; a kid is never used again"));
            }
            self.timeline_of(entry);
            let Some(public) = self.public_key(kid) else { continue };
            if let Some(other) = thumbprints.insert(public.thumbprint(), kid).filter(|other| *other != kid) {
                self.problem(format!("keys/{kid}.jwk.json: is the very key of `{other}`; one key has one kid"));
            }
            keys.push(Arc::new(timed(entry, public)));
        }
        self.stray_keys();
        keys.sort_by(|a, b| (a.sign_from, &a.kid).cmp(&(b.sign_from, &b.kid)));
        keys
    }

    fn public_key(&mut self, kid: &Kid) -> Option<PublicKey> {
        let name = format!("keys/{kid}.jwk.json");
        let Some(bytes) = self.files.get(&name) else {
            self.problem(format!("{name}: is missing; write it with `quotesign keys jwk`"));
            return None;
        };
        match PublicKey::from_jwk(bytes) {
            Ok(key) if key.kid() == kid => Some(key),
            Ok(_) => {
                self.problem(format!("{name}: its `kid` is not `{kid}`; a file is named after its kid"));
                None
            }
            Err(fault) => {
                self.problem(format!("{name}: {fault}"));
                None
            }
        }
    }

    /// The rules on one key's times.
    fn timeline_of(&mut self, entry: &KeyEntry) {
        let kid = &entry.kid;
        let file = self.file;
        let propagation = Duration::from_secs(file.publication.propagation_s.into());
        let mut faults = Vec::new();
        if !file.partners.iter().any(|partner| partner.id == entry.partner) {
            faults.push(format!("no partner is named `{}`; add it or mend the name", entry.partner));
        }
        faults.extend(places_of(entry));
        faults.extend(attributes_of(entry, file.environment));
        faults.extend(confirmation_of(entry));
        if entry.emergency.as_ref().is_some_and(|why| why.trim().is_empty()) {
            faults.push("`emergency` must say why the key may not wait to stand in the bundle".to_owned());
        }
        // One of an emergency may stand here; it waits for the time all the same, unless two operators activate it.
        if entry.emergency.is_none() && entry.publish_at.plus(propagation) > entry.sign_from {
            faults.push(format!(
                "`sign_from` must be at least {} s after `publish_at`, the propagation time",
                propagation.as_secs()
            ));
        }
        if entry.sign_from >= entry.sign_until {
            faults.push("`sign_until` must be after `sign_from`".to_owned());
        }
        let oldest = entry.publish_at.plus(DAY.saturating_mul(file.rotation.key_age_max_days));
        if entry.sign_until > oldest {
            faults.push(format!(
                "`sign_until` is more than {} days after `publish_at`, `rotation.key_age_max_days`; let a new key follow earlier",
                file.rotation.key_age_max_days
            ));
        }
        let needed = file.validity.retirement();
        if entry.sign_until.plus(needed) > entry.retire_at {
            faults.push(format!(
                "`retire_at` must be at least {} s after `sign_until`: the longest validity, late acceptance and skew",
                needed.as_secs()
            ));
        }
        for fault in faults {
            self.problem(format!("policy.toml: key `{kid}`: {fault}"));
        }
    }

    fn stray_keys(&mut self) {
        let stray: Vec<String> = self
            .files
            .keys()
            .filter_map(|name| name.strip_prefix("keys/")?.strip_suffix(".jwk.json"))
            .filter(|kid| !self.file.keys.iter().any(|entry| entry.kid.as_str() == *kid))
            .map(|kid| format!("keys/{kid}.jwk.json: no [[keys]] entry has this kid; add one or remove the file"))
            .collect();
        self.problems.extend(stray.into_iter().map(Problem));
    }
}

/// The rules on where a key lies.
fn places_of(entry: &KeyEntry) -> Vec<String> {
    let (signers, locators) = (entry.signer.all(), entry.locator.all());
    let mut faults = Vec::new();
    if signers.is_empty() {
        faults.push("`signer` names none; name the signer that holds the key".to_owned());
    }
    for (at, signer) in signers.iter().enumerate() {
        if signers.iter().skip(at + 1).any(|other| other == signer) {
            faults.push(format!("`signer` names `{signer}` twice; name each once"));
        }
    }
    if locators.len() != 1 && locators.len() != signers.len() {
        let (locators, signers) = (locators.len(), signers.len());
        faults
            .push(format!("`locator` has {locators} entries for {signers} signers; give one for all, or one for each"));
    }
    for text in locators {
        if let Err(fault) = locator::check(text) {
            faults.push(format!("`locator`: {fault}"));
        }
    }
    faults
}

/// The rule on what a key may leave unproven.
fn attributes_of(entry: &KeyEntry, environment: Environment) -> Option<String> {
    let reason = entry.attributes_reason.as_ref().is_some_and(|reason| !reason.trim().is_empty());
    match entry.attributes {
        AttributesRule::Off if environment != Environment::Development => Some(format!(
            "`attributes` = \"off\" is for development alone; in {environment} it is \"require\", or \"warn\" with `attributes_reason`"
        )),
        AttributesRule::Warn if environment != Environment::Development && !reason => Some(format!(
            "`attributes` = \"warn\" needs `attributes_reason` in {environment}: why this key cannot show that it never left its device"
        )),
        AttributesRule::Require if entry.attributes_reason.is_some() => {
            Some("`attributes_reason` goes with `attributes` = \"warn\"; remove it".to_owned())
        }
        AttributesRule::Require | AttributesRule::Warn | AttributesRule::Off => None,
    }
}

/// The rule on the operator's word: it is of a key that it could see, and can be found again.
fn confirmation_of(entry: &KeyEntry) -> Option<String> {
    let confirmed = entry.confirmed.as_ref()?;
    if confirmed.reference.trim().is_empty() {
        return Some("`confirmed.ref` must say where the operator's word is on record".to_owned());
    }
    let early = confirmed.at < entry.publish_at;
    early.then(|| {
        "`confirmed.at` is before `publish_at`: nobody could have seen the key; write when it was given".to_owned()
    })
}

fn timed(entry: &KeyEntry, public: PublicKey) -> TimedKey {
    let locators = entry.locator.all().iter().cycle();
    TimedKey {
        places: entry.signer.all().iter().cloned().zip(locators.cloned()).collect(),
        attributes: entry.attributes,
        kid: entry.kid.clone(),
        partner: entry.partner.clone(),
        public: Arc::new(public),
        publish_at: entry.publish_at,
        confirmed: entry.confirmed.clone(),
        sign_from: entry.sign_from,
        sign_until: entry.sign_until,
        retire_at: entry.retire_at,
        standby: entry.standby,
        emergency: entry.emergency.clone(),
    }
}

fn assemble(
    files: &Files,
    file: PolicyFile,
    authority: Authority,
    contracts: Vec<Arc<Contract>>,
    keys: Vec<Arc<TimedKey>>,
    currencies: Arc<Currencies>,
    two_callers: TwoCallers,
) -> Bundle {
    let propagation = Duration::from_secs(file.publication.propagation_s.into());
    let partner = |entry: super::file::PartnerEntry| Partner {
        id: entry.id,
        sequence: entry.sequence,
        jwks_hosts: entry.jwks_hosts,
        jwks_url: entry.jwks_url,
        contacts: entry.contacts,
        contracts: entry.contracts,
    };
    Bundle {
        digest: files::digest(files),
        serial: file.serial,
        environment: file.environment,
        validity: file.validity,
        warn_ahead: DAY.saturating_mul(file.rotation.warn_ahead_days),
        quotas: file.quotas,
        volume: file.volume,
        two_callers,
        authority,
        timeline: Timeline {
            environment: file.environment,
            propagation,
            late_acceptance: file.validity.late_acceptance(),
            keys,
        },
        currencies,
        partners: file.partners.into_iter().map(|entry| (entry.id.clone(), partner(entry))).collect(),
        callers: file.callers.into_iter().map(|caller| (caller.id, caller.roles)).collect(),
        contracts,
    }
}
