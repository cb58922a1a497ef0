//! `quotesign keys revoke`: stops a key for good, sees it gone from where verifiers look, and tells what it has signed.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};

use crate::{
    client,
    clock::{Clock as _, SystemClock, UtcTime},
    domain::Kid,
    key_set,
    proto::{RevocationCause, RevokeKeyRequest, RevokeKeyResponse, text_of},
};

use super::{
    super::{ClientPath, Failure, admin::gateway, block_on, out},
    report::{FOR_PEOPLE, Format, Report, Step, signed_since, since_of},
};

/// Exit codes: 0 revoked and gone from the public URL where there is one, 1 refused, 2 not understood, 4 revoked and the
/// public URL still shows it or cannot be read, 5 not yet durable: the gateway that was asked keeps trying, 6 revoked, and nobody
/// knows a key of that kid: it may be misspelt, 7 revoked, and what it has signed could not be read.
#[derive(Debug, Args)]
pub(in crate::cli) struct Revoke {
    #[command(flatten)]
    path: ClientPath,
    /// The key id, of whatever bundle.
    kid: String,
    /// For the record: why, in words.
    #[arg(long)]
    reason: String,
    /// Which of the causes it is.
    #[arg(long, value_enum, default_value = "key-may-be-compromised")]
    cause: Cause,
    /// Since when it may have been misused: what it has signed since then is told. Everything where it is not given.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// When that was first seen; now where it is not given.
    #[arg(long, value_name = "TIME")]
    detected: Option<String>,
    /// The public URL that must no longer show it, where policy does not name it.
    #[arg(long)]
    url: Option<String>,
    /// The CAs that the URL is held against, PEM.
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    url_ca: PathBuf,
    /// How long to wait for the public URL, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    wait: u64,
    /// How to print the report.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// The operator's causes of an emergency rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cause {
    /// The private key may be in other hands.
    KeyMayBeCompromised,
    /// A public key set held private members.
    PrivateMaterialPublished,
    /// A system that signs was broken into.
    SigningSystemBreached,
    /// Somebody may have had quotes signed who must not.
    UnauthorizedSigningSuspected,
    /// The key stood in logs or source code.
    KeyExposedInLogsOrSource,
}

impl From<Cause> for RevocationCause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::KeyMayBeCompromised => Self::KeyMayBeCompromised,
            Cause::PrivateMaterialPublished => Self::PrivateMaterialPublished,
            Cause::SigningSystemBreached => Self::SigningSystemBreached,
            Cause::UnauthorizedSigningSuspected => Self::UnauthorizedSigningSuspected,
            Cause::KeyExposedInLogsOrSource => Self::KeyExposedInLogsOrSource,
        }
    }
}

/// How often the public URL is asked.
const ASK_EVERY: Duration = Duration::from_secs(2);

impl Revoke {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let since = since_of(self.since.as_deref())?;
        let detected = self.detected.as_deref().map(UtcTime::parse).transpose();
        let detected = detected.map_err(|fault| Failure::unfit(format!("--detected: {fault}")))?;
        let kid: Kid = self.kid.parse().map_err(|fault| Failure::unfit(format!("KID: {fault}")))?;
        let client = self.path.load()?;
        block_on(async {
            let cause = RevocationCause::from(self.cause);
            let request = RevokeKeyRequest { kid: self.kid.clone(), reason: self.reason.clone(), cause: cause.into() };
            let done = gateway(&client).await?.revoke_key(request).await;
            let done = done.map_err(|status| Failure::refused(&status))?.into_inner();
            let mut report = self.report(&done, since, detected);
            // The ledger that would tell is away.
            let quotes = if done.not_yet_durable {
                Err(Failure::failed("the ledger is away"))
            } else {
                signed_since(&client, &self.kid, since).await
            };
            let unread = quotes.as_ref().err().map(|failure| failure.text.clone());
            report.put(quotes, SystemClock.now());
            let gone = self.until_gone(&kid, &done).await;
            if let Some(gone) = &gone {
                report.containment.push(gone.clone());
            }
            out::write(format_args!("{}", report.print(self.format)));
            match gone {
                _ if done.not_yet_durable => Err(Failure {
                    code: 5,
                    text: "not yet durable: the gateway that was asked shows and signs with the key no more and keeps trying; tell the others by asking each".to_owned(),
                }),
                _ if done.unknown_kid => Err(Failure {
                    code: 6,
                    text: format!("`{kid}` is revoked, and neither bundle nor ledger knows a key of that kid: is it misspelt?"),
                }),
                Some(Step { done: false, what, .. }) => {
                    Err(Failure { code: 4, text: format!("incomplete: {what}; purge its caches, and ask again") })
                }
                _ => unread.map_or(Ok(()), |why| {
                    let text = format!("revoked, and what it has signed could not be read: {why}; `quotesign keys report {kid}` tries again");
                    Err(Failure { code: 7, text })
                }),
            }
        })
    }

    fn report(&self, done: &RevokeKeyResponse, since: UtcTime, detected: Option<UtcTime>) -> Report {
        let revoked_at = text_of(done.revoked_at);
        let contained_at = if done.stood_before { String::new() } else { revoked_at.clone() };
        let cause = self.cause.to_possible_value().map(|cause| cause.get_name().to_owned()).unwrap_or_default();
        let revoked = if done.not_yet_durable {
            "revoked at one gateway, which keeps trying to make it durable".to_owned()
        } else if done.stood_before {
            format!(
                "`{0}` had been revoked before: `quotesign audit tail --kid {0} --event key.revoked` tells when and by whom",
                self.kid
            )
        } else {
            format!(
                "`{}` is revoked, for good, on every gateway that reaches this ledger: nothing it signed is released (audit record {})",
                self.kid, done.audit_record_id
            )
        };
        let replaced = match done.replacement_kid.as_str() {
            "" if done.partner.is_empty() => Step {
                at: revoked_at.clone(),
                what: "the bundle in force has no such key; is the kid misspelt?".to_owned(),
                done: false,
            },
            "" => Step {
                at: revoked_at.clone(),
                what: "no other key may sign: `quotesign keys rotate --emergency` makes one".to_owned(),
                done: false,
            },
            kid => Step { at: revoked_at.clone(), what: format!("`{kid}` signs from now on"), done: true },
        };
        Report {
            environment: done.environment.clone(),
            partner: done.partner.clone(),
            kid: self.kid.clone(),
            incident: format!("{cause}: {}", self.reason),
            // Of one that stood before that is not known here.
            first_detected: detected.map_or_else(|| contained_at.clone(), |at| at.to_string()),
            window_from: since.to_string(),
            window_until: revoked_at.clone(),
            containment: vec![Step { at: contained_at, what: revoked, done: !done.not_yet_durable }, replaced],
            replacement_kid: done.replacement_kid.clone(),
            jwks_url: self.url.clone().unwrap_or_else(|| done.jwks_url.clone()),
            gateway_version: done.version.clone(),
            policy_digest: done.policy_digest.clone(),
            quotes_signed: 0,
            to_reissue: 0,
            quotes_unread: None,
            for_people: FOR_PEOPLE,
            quotes: Vec::new(),
        }
    }

    /// Waits until the public URL no longer shows the key; nothing where there is no URL.
    async fn until_gone(&self, kid: &Kid, done: &RevokeKeyResponse) -> Option<Step> {
        let url = self.url.as_deref().unwrap_or(&done.jwks_url);
        if url.is_empty() {
            return None;
        }
        let until = Instant::now() + Duration::from_secs(self.wait);
        loop {
            let shown = client::fetch(url, &self.url_ca).await.map_err(|fault| fault.to_string());
            let shown = shown.and_then(|body| key_set::shown(&body).ok_or_else(|| "it is no key set".to_owned()));
            let at = SystemClock.now().to_string();
            let why = match shown {
                Ok(shown) if !shown.names(kid) => {
                    return Some(Step { at, what: format!("{url} no longer shows `{kid}`"), done: true });
                }
                Ok(_) => format!("{url} still shows `{kid}`"),
                Err(fault) => format!("whether {url} still shows `{kid}` is not known: {fault}"),
            };
            if Instant::now() >= until {
                return Some(Step { at, what: why, done: false });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}
