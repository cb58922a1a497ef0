//! `quotesign support`: what the operator's support asks for about a key set or a quote, and nothing that must not be sent.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::{
    client,
    clock::{Clock as _, SystemClock},
    domain::{Identity, Kid, Malformed, PartnerId, QuoteId},
    key_set::{self, Severity},
    ledger::{chain::StoredRecord, step::Quote},
    policy::{Bundle, contract::Contract},
    published::Standings,
    review::golive::forbidden,
};

use super::{
    ConfigPath, Failure, Format, PublicUrl, block_on,
    noted::{Noted, filter},
    out,
    policy::{bundle_in, partner_in},
};

/// Read from config, bundle and ledger, and from the public URL; no gateway is asked.
#[derive(Debug, Args)]
pub(super) struct Support {
    #[command(flatten)]
    path: ConfigPath,
    /// The partner.
    #[arg(long)]
    partner: String,
    /// The quote's id.
    #[arg(long)]
    quote: Option<String>,
    /// The error code that the operator's API gave.
    #[arg(long)]
    api_error: Option<String>,
    /// The correlation id that the operator's API gave.
    #[arg(long)]
    api_correlation_id: Option<String>,
    #[command(flatten)]
    public: PublicUrl,
    /// How to print.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

impl Support {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.path.load()?;
        let bundle = bundle_in(&config.policy)?;
        let partner = partner_in(&bundle, &self.partner)?;
        let quote: Option<QuoteId> = self.quote.as_deref().map(str::parse).transpose().map_err(unfit_quote)?;
        let told = [filter("partner", Some(&partner.id)), filter("quote", quote.as_ref())];
        let ledger = Noted::open(&config, "support", told.into_iter().flatten().collect())?;
        let active = active(&bundle, &ledger, &partner.id)?;
        let (url, ca) = self.public.of(&config, partner);
        let mut all = Map::new();
        let mut put = |name: &str, value: Value| drop(all.insert(name.to_owned(), value));
        put("environment", json!(config.environment));
        put("jwks_url", json!(url));
        put("active_kid", json!(active));
        put("made_at", json!(SystemClock.now()));
        let (status, exposed) = seen_at(url, ca, active.as_ref())?;
        put("jwks_http_status", status);
        put("private_key_exposed", json!(exposed));
        if let Some(code) = &self.api_error {
            put("api_error_code", json!(code));
        }
        if let Some(id) = &self.api_correlation_id {
            put("api_correlation_id", json!(id));
        }
        if let Some(quote) = quote {
            put("quote_id", json!(quote));
            let identity = Identity::new(config.environment, &partner.id, &quote);
            match ledger.reads()?.quote(&identity).map_err(Failure::failed)? {
                None => put("quote", json!("this ledger holds no quote of that id")),
                Some(found) => put("quote", of_quote(&bundle, &ledger, &found)?),
            }
        }
        self.print(&all)
    }

    fn print(&self, all: &Map<String, Value>) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json => format!("{:#}\n", Value::Object(all.clone())),
            Format::Text => {
                let mut lines = Vec::new();
                told(&mut lines, "", all);
                lines.join("\n") + "\n"
            }
        };
        let sequence = all.get("quote").and_then(|quote| quote.get("sequence")).map(Value::to_string);
        let known: Vec<&str> = sequence.as_deref().into_iter().chain(self.quote.as_deref()).collect();
        let bad = forbidden(&text, &known);
        if !bad.is_empty() {
            return Err(Failure::failed(format!("nothing was written: it would hold {}", bad.join(", "))));
        }
        out::write(format_args!("{text}"));
        Ok(())
    }
}

/// The status of the public URL, and whether it shows private key material; what could not be looked at is said.
fn seen_at(url: Option<&str>, ca: &Path, active: Option<&Kid>) -> Result<(Value, String), Failure> {
    let Some(url) = url else {
        return Ok((json!("give the URL: --url"), "the public URL was not looked at".to_owned()));
    };
    block_on(async {
        Ok(match client::look(url, ca).await {
            Err(fault) => (json!(fault.to_string()), "the public URL could not be read".to_owned()),
            Ok((fetched, body)) => {
                let findings = key_set::inspect(&body, Some(&fetched), active, SystemClock.now());
                let critical = findings.iter().find(|finding| finding.severity == Severity::Critical);
                let exposed = critical.map_or_else(
                    || "no: the key set shows no private member; the private key is in its device".to_owned(),
                    |finding| format!("YES: {}", finding.detail),
                );
                (json!(fetched.status), exposed)
            }
        })
    })
}

fn unfit_quote(fault: Malformed) -> Failure {
    Failure::unfit(format!("--quote: {fault}"))
}

fn active(bundle: &Bundle, ledger: &Noted, partner: &PartnerId) -> Result<Option<Kid>, Failure> {
    let mut reads = ledger.reads()?;
    let (stops, kids) = (reads.stops().map_err(Failure::failed)?, reads.kids().map_err(Failure::failed)?);
    let standings = Standings::of_ledger(stops, kids);
    let current = bundle.timeline.current(partner, SystemClock.now(), |kid| standings.of(kid));
    Ok(current.map(|key| key.kid.clone()))
}

/// What may be told of a quote: who, when and which; its header; its payload without values but the named few.
fn of_quote(bundle: &Bundle, ledger: &Noted, quote: &Quote) -> Result<Value, Failure> {
    let Some(released) = quote.released() else {
        return Ok(
            json!({ "signed": false, "sequence": quote.sequence, "kid": quote.kid, "expires_at": quote.expires_at }),
        );
    };
    let journal = ledger.journal()?;
    let stored = journal.record(&released.record).map_err(Failure::failed)?;
    let record = stored.as_ref().map(StoredRecord::record).transpose().map_err(Failure::failed)?;
    let part = |nth| released.jws.as_str().split('.').nth(nth).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let read = |nth| part(nth).and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
    let payload = read(1).unwrap_or_default();
    let contract = bundle.contract_of(&payload);
    Ok(json!({
        "signed": true,
        "kid": released.kid,
        "sequence": released.sequence,
        "signed_at": record.as_ref().map(|record| record.at),
        "expires_at": released.expires_at,
        "correlation_id": record.as_ref().map(|record| record.context.correlation_id.clone()),
        "audit_record_id": released.record,
        "jws_sha256": released.jws.digest().to_string(),
        "header": read(0),
        "payload": masked(payload, contract.map(AsRef::as_ref)),
    }))
}

/// The payload with what each value is in place of the value, but for ids, numbers, times, corridor and version.
fn masked(payload: Map<String, Value>, contract: Option<&Contract>) -> Map<String, Value> {
    let is_told = |claim: &str| {
        contract.is_some_and(|contract| {
            let claims = &contract.claims;
            let named = [&claims.partner, &claims.sequence, &claims.corridor, &claims.issued_at, &claims.expires_at];
            named.into_iter().chain(&claims.quote_id).chain([&contract.version.claim]).any(|named| named == claim)
        })
    };
    let mask = |value: &Value| match value {
        Value::String(text) => format!("text of {} characters", text.chars().count()),
        Value::Number(_) => "number".to_owned(),
        Value::Bool(_) => "boolean".to_owned(),
        Value::Null => "null".to_owned(),
        Value::Array(items) => format!("array of {}", items.len()),
        Value::Object(members) => format!("object of {}", members.len()),
    };
    let told = payload.into_iter().map(|(claim, value)| {
        let value = if is_told(&claim) { value } else { json!(mask(&value)) };
        (claim, value)
    });
    told.collect()
}

/// A line each, names of what is within after a dot.
fn told(lines: &mut Vec<String>, prefix: &str, all: &Map<String, Value>) {
    for (name, value) in all {
        match value {
            Value::Object(within) => told(lines, &format!("{prefix}{name}."), within),
            Value::String(text) => lines.push(format!("{prefix}{name}: {text}")),
            value => lines.push(format!("{prefix}{name}: {value}")),
        }
    }
}
