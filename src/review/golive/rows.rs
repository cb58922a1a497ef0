//! The rows, in our own words, with the checklist and section of the operator that each is of. What is the partner's app alone
//! (its sign-in, its screens, its webviews) is left to the app's own evidence and told in one row a section.

/// How a row is answered.
#[derive(Debug, Clone, Copy)]
pub enum Shown {
    /// By the fact of this name; else what would have to be given for it.
    ByFact(&'static str, &'static str),
    /// By people: what they have to say.
    ByPeople(&'static str),
}

/// A row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Which checklist and section it is of.
    pub list: &'static str,
    /// What it asks.
    pub asks: &'static str,
    /// How it is answered.
    pub shown: Shown,
}

const fn fact(list: &'static str, asks: &'static str, name: &'static str, otherwise: &'static str) -> Row {
    Row { list, asks, shown: Shown::ByFact(name, otherwise) }
}

const fn people(list: &'static str, asks: &'static str, what: &'static str) -> Row {
    Row { list, asks, shown: Shown::ByPeople(what) }
}

const CREDENTIALS: &str = "Go-live 3: production credentials";
const APART: &str = "Go-live 4: environments apart";
const HOST: &str = "Go-live 5: API host";
const APP: &str = "Go-live 6 to 8, 11 to 17: the partner's app";
const JWKS: &str = "Go-live 9: key set";
const SIGNING: &str = "Go-live 10: quote signing";
const LOGGING: &str = "Go-live 18: logging";
const SUPPORT: &str = "Go-live 19: support";
const DEPLOYMENT: &str = "Go-live 20: deployment";
const MONITORING: &str = "Go-live 21: monitoring";
const EVIDENCE: &str = "Go-live 22: evidence to submit";
const CERTIFICATION: &str = "Key management 24: certification";
const APPROVAL: &str = "Go-live 23, 26: approval";

const LOOK: &str = "give the public URL: `jwks_url` in policy, or --url";
const PROBE: &str = "in sandbox, give --quote and --client";
const KEY: &str = "no key signs now, or there is no gateway to ask: give --client";
const OTHER: &str = "give the other environment's config: --apart-from";

/// All of them.
pub const ROWS: &[Row] = &[
    people(CREDENTIALS, "The API subscription key is there and stored securely", "where, and who can read it"),
    people(CREDENTIALS, "The partner id is confirmed", "the operator's word"),
    fact(CREDENTIALS, "The key set's URL is confirmed", "jwks.registered", "write `jwks_url` in policy"),
    fact(CREDENTIALS, "The kid is confirmed", "key.confirmed", "no key signs now"),
    fact(CREDENTIALS, "A support contact is exchanged", "contact.technical", "write `contacts.technical` in policy"),
    fact(CREDENTIALS, "An emergency contact is exchanged", "contact.incident", "write `contacts.incident` in policy"),
    fact(APART, "Neither environment's keys are used in the other", "apart", OTHER),
    fact(APART, "Each environment has a configuration of its own", "apart.config", OTHER),
    fact(APART, "Logging is on", "log", ""),
    people(APART, "No build holds the other environment's subscription key", "how that was checked"),
    people(HOST, "All calls go to the production host, with TLS validated", "the app's configuration"),
    people(APP, "Its flows, errors, retries and screens pass", "the app's own test report"),
    fact(JWKS, "Its URL uses HTTPS", "jwks.https", LOOK),
    fact(JWKS, "It answers with status 200", "jwks.status", LOOK),
    fact(JWKS, "It is valid JSON", "jwks.json", LOOK),
    fact(JWKS, "It has the active kid", "jwks.active", LOOK),
    fact(JWKS, "Its keys are RSA", "jwks.kty", LOOK),
    fact(JWKS, "`alg` is RS256", "jwks.alg", LOOK),
    fact(JWKS, "`use` is sig", "jwks.use", LOOK),
    fact(JWKS, "It shows no private field", "jwks.private", LOOK),
    fact(JWKS, "The keys are strong enough", "jwks.size", LOOK),
    fact(JWKS, "The TLS certificate is valid", "jwks.tls", LOOK),
    people(JWKS, "It is monitored", "where `quotesign jwks watch` runs, and who is called"),
    people(JWKS, "Key rotation is documented", "docs/runbooks/planned-rotation.md, as your team has taken it over"),
    people(
        JWKS,
        "Emergency rotation is documented",
        "docs/runbooks/emergency-rotation.md, as your team has taken it over",
    ),
    fact(SIGNING, "The payload has the claims that are required", "contract.claims", ""),
    fact(SIGNING, "Money is in decimal strings", "contract.money", ""),
    fact(SIGNING, "Times are UTC", "contract.utc", ""),
    fact(SIGNING, "The customer's reference is signed", "contract.subscription", ""),
    fact(SIGNING, "The version claim is set", "contract.version", ""),
    fact(SIGNING, "An expired quote is refused", "probe.expired", PROBE),
    fact(SIGNING, "After one, a new quote is signed", "probe.recovery", PROBE),
    fact(SIGNING, "The same quote in another order and spacing gives the same bytes", "probe.order", PROBE),
    fact(SIGNING, "The form is a compact JWS with RS256", "probe.compact", PROBE),
    fact(SIGNING, "Its header has the kid that is active", "probe.kid", PROBE),
    fact(SIGNING, "Every step of local verification passes", "probe.verified", PROBE),
    fact(
        SIGNING,
        "The operator's API has taken a quote",
        "outcome.accepted",
        "no report of the key that signs is among the newest 20,000 records; have callers send `ReportQuoteOutcome`",
    ),
    fact(SIGNING, "A signature is in the journal", "audit.record", PROBE),
    fact(SIGNING, "The journal's chain holds", "audit.chain", ""),
    fact(SIGNING, "The private key is protected", "key.protected", KEY),
    people(LOGGING, "Logs hold what support needs and nothing that is forbidden", "a sample that was read"),
    people(SUPPORT, "The way of escalation was tried, and support knows what never to ask for", "when, and by whom"),
    fact(DEPLOYMENT, "The key set is live", "jwks.status", LOOK),
    fact(DEPLOYMENT, "The signing key is active", "key.active", ""),
    fact(DEPLOYMENT, "It was served for the propagation time", "key.served", ""),
    fact(DEPLOYMENT, "There is a kill switch", "halt", ""),
    people(DEPLOYMENT, "A way back exists and the release is planned", "the plan"),
    people(
        MONITORING,
        "Signing and key set are monitored, and alerts reach somebody",
        "the dashboard, and an alert that was tried",
    ),
    fact(EVIDENCE, "A signed quote", "probe.signed", PROBE),
    fact(EVIDENCE, "A retry that changed nothing", "probe.replay", PROBE),
    fact(EVIDENCE, "A conflict that was refused", "probe.conflict", PROBE),
    fact(EVIDENCE, "An expired quote that was refused", "probe.expired", PROBE),
    fact(EVIDENCE, "The key set's URL", "jwks.registered", "write `jwks_url` in policy"),
    fact(EVIDENCE, "The active kid", "key.active", ""),
    people(EVIDENCE, "Correlation ids of the app's flows", "the app's own test report"),
    fact(CERTIFICATION, "The URL is final", "jwks.registered", "write `jwks_url` in policy"),
    fact(CERTIFICATION, "The sandbox has its own", "apart", OTHER),
    fact(CERTIFICATION, "The private key is stored securely", "key.protected", KEY),
    fact(CERTIFICATION, "The active kid is registered and visible", "jwks.active", LOOK),
    fact(CERTIFICATION, "Only approved keys sign", "key.approved", ""),
    fact(CERTIFICATION, "Quotes verify locally", "probe.verified", PROBE),
    fact(
        CERTIFICATION,
        "The operator's sandbox verifies them",
        "outcome.accepted",
        "no report of the key that signs is among the newest 20,000 records; have callers send `ReportQuoteOutcome`",
    ),
    fact(CERTIFICATION, "No private field is in the key set", "jwks.private", LOOK),
    people(APPROVAL, "Launch date, way back and approvals are agreed", "names, dates and signatures of both sides"),
];
