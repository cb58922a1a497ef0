//! `quotesign keys report`, and the report that `keys revoke` ends with: what the operator's notification asks for.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    client::ClientFile,
    clock::{Clock as _, SystemClock, UtcTime},
    proto::{self, ListSignedQuotesRequest, SignedQuote, list_signed_quotes_request::Of, text_of, timestamp},
};

use super::super::{ClientPath, Failure, admin::gateway, block_on, out};

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
    /// The quotes alone, a line each.
    Csv,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ReportCommand {
    #[command(flatten)]
    path: ClientPath,
    /// The key id.
    kid: String,
    /// Tell what it has signed since then, as `2026-06-01T00:00:00Z`; everything where it is not given.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// How to print.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// A step that was taken to contain it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Step {
    /// When.
    pub at: String,
    /// What.
    pub what: String,
    /// Whether it is done.
    pub done: bool,
}

/// What a notification of the operator says; what is not known is left out.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub environment: String,
    pub partner: String,
    pub kid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub incident: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub first_detected: String,
    pub window_from: String,
    pub window_until: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containment: Vec<Step>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub replacement_kid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jwks_url: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy_digest: String,
    pub quotes_signed: usize,
    /// Quotes of the window that have not expired: to be reissued under new ids and numbers, with the new key.
    pub to_reissue: usize,
    /// Why the quotes are not told, where they could not be read.
    pub quotes_unread: Option<String>,
    /// What only people know.
    pub for_people: [&'static str; 3],
    pub quotes: Vec<Row>,
}

/// A quote that the key has signed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    quote_id: String,
    sequence: u64,
    signed_at: String,
    expires_at: String,
    still_valid: bool,
    jws_sha256: String,
}

/// What a report leaves to people.
pub(super) const FOR_PEOPLE: [&str; 3] = [
    "the partner's name and whom the operator reaches",
    "whether customer data or regulated transaction data may be affected",
    "app versions, and correlation ids of calls that were seen to be wrong",
];

impl ReportCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let since = since_of(self.since.as_deref())?;
        let client = self.path.load()?;
        block_on(async {
            let quotes = signed_since(&client, &self.kid, since).await?;
            let now = SystemClock.now();
            let partner = quotes.first().map(|quote| quote.partner.clone()).unwrap_or_default();
            let mut report = Report {
                environment: client.environment.to_string(),
                partner,
                kid: self.kid,
                incident: String::new(),
                first_detected: String::new(),
                window_from: since.to_string(),
                window_until: now.to_string(),
                containment: Vec::new(),
                replacement_kid: String::new(),
                jwks_url: String::new(),
                gateway_version: String::new(),
                policy_digest: String::new(),
                quotes_signed: 0,
                to_reissue: 0,
                quotes_unread: None,
                for_people: FOR_PEOPLE,
                quotes: Vec::new(),
            };
            let (kid, is_empty) = (report.kid.clone(), quotes.is_empty());
            report.put(Ok(quotes), now);
            out::write(format_args!("{}", report.print(self.format)));
            if is_empty {
                let text = format!(
                    "the journal tells of nothing that `{kid}` has signed since then: is it misspelt? What is older than `audit.keep_days` may be gone"
                );
                return Err(Failure { code: 6, text });
            }
            Ok(())
        })
    }
}

/// Since when; the beginning where nothing is said.
pub(super) fn since_of(since: Option<&str>) -> Result<UtcTime, Failure> {
    let since = since.map(UtcTime::parse).transpose().map_err(|fault| Failure::unfit(format!("--since: {fault}")))?;
    Ok(since.unwrap_or(UtcTime::from_millis(0)))
}

/// All that the key has signed since then.
pub(super) async fn signed_since(client: &ClientFile, kid: &str, since: UtcTime) -> Result<Vec<SignedQuote>, Failure> {
    let mut gateway = gateway(client).await?;
    let (mut quotes, mut page_token) = (Vec::new(), String::new());
    loop {
        let of = Some(Of::Kid(kid.to_owned()));
        let request = ListSignedQuotesRequest { of, since: Some(timestamp(since)), page_token };
        let page = gateway.list_signed_quotes(request).await.map_err(|status| Failure::refused(&status))?.into_inner();
        quotes.extend(page.quotes);
        if page.next_page_token.is_empty() {
            return Ok(quotes);
        }
        page_token = page.next_page_token;
    }
}

impl Report {
    /// Takes the quotes in, or why they could not be read.
    pub(super) fn put(&mut self, quotes: Result<Vec<SignedQuote>, Failure>, now: UtcTime) {
        match quotes {
            Err(failure) => self.quotes_unread = Some(failure.text),
            Ok(quotes) => {
                let row = |quote: SignedQuote| Row {
                    still_valid: quote.expires_at.and_then(proto::instant).is_some_and(|end| end > now),
                    signed_at: text_of(quote.signed_at),
                    expires_at: text_of(quote.expires_at),
                    quote_id: quote.quote_id,
                    sequence: quote.sequence,
                    jws_sha256: quote.jws_sha256,
                };
                self.quotes = quotes.into_iter().map(row).collect();
                self.quotes_signed = self.quotes.len();
                self.to_reissue = self.quotes.iter().filter(|row| row.still_valid).count();
            }
        }
    }

    pub(super) fn print(&self, format: Format) -> String {
        match format {
            Format::Json => serde_json::to_string_pretty(self).unwrap_or_default() + "\n",
            Format::Csv => self.csv(),
            Format::Text => self.text(),
        }
    }

    /// Ids, digests and times need no quoting: their grammars have no comma, quote or line end.
    fn csv(&self) -> String {
        let mut text = "kid,quote_id,sequence,signed_at,expires_at,still_valid,jws_sha256\n".to_owned();
        for Row { quote_id, sequence, signed_at, expires_at, still_valid, jws_sha256 } in &self.quotes {
            let kid = &self.kid;
            // Writing to a String does not fail.
            let _written =
                writeln!(text, "{kid},{quote_id},{sequence},{signed_at},{expires_at},{still_valid},{jws_sha256}");
        }
        text
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        for (name, value) in [
            ("environment", &self.environment),
            ("partner", &self.partner),
            ("affected kid", &self.kid),
            ("incident", &self.incident),
            ("first detected", &self.first_detected),
            ("JWKS URL", &self.jwks_url),
            ("replacement kid", &self.replacement_kid),
            ("gateway version", &self.gateway_version),
            ("policy digest", &self.policy_digest),
        ] {
            if !value.is_empty() {
                lines.push(format!("{name:<16} {value}"));
            }
        }
        lines.push(format!("{:<16} {} to {}", "window", self.window_from, self.window_until));
        for Step { at, what, done } in &self.containment {
            let at = if at.is_empty() { String::new() } else { format!("{at} ") };
            lines.push(format!("{:<16} {at}{what}", if *done { "contained" } else { "NOT YET" }));
        }
        match &self.quotes_unread {
            Some(why) => {
                lines.push(format!("{:<16} {why}; `quotesign keys report {}` tells them later", "quotes", self.kid));
            }
            None => lines.push(format!(
                "{:<16} {} signed in the window, of which {} are still valid: reissue those under new ids and numbers",
                "quotes", self.quotes_signed, self.to_reissue
            )),
        }
        for row in self.quotes.iter().filter(|row| row.still_valid) {
            lines.push(format!("  reissue {} (number {}, valid until {})", row.quote_id, row.sequence, row.expires_at));
        }
        lines.extend(self.for_people.iter().map(|what| format!("{:<16} {what}", "to be added")));
        lines.join("\n") + "\n"
    }
}
