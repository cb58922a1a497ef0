//! One connection to the server: how it is made, what must hold of the server before it is used, and what its
//! failures mean.

use std::{
    future::poll_fn,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, config::SslMode, error::Severity};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::home::WriterAt;
use crate::{ledger::EngineError, outgoing::Outgoing};

/// Where the server is and what is asked of it.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its address, user and database; no password.
    pub address: Config,
    /// The file that holds the password.
    pub password_file: Option<PathBuf>,
    /// TLS; absent for a server on this machine alone.
    pub tls: Option<Arc<Outgoing>>,
    /// Whether it must have a synchronous standby.
    pub high_availability: bool,
    /// How long one exchange with it may take.
    pub timeout: Duration,
    /// Where this process writes, which those who read beside it must have reached.
    pub writer: WriterAt,
}

impl Server {
    /// Whether what it shows to a connection that reads is durable wherever it must be.
    pub(in crate::ledger) fn shows_durable(&self) -> bool {
        !self.high_availability
    }

    /// Refuses it where it does not keep what it acknowledges, by what it says of [`KEEPS`].
    pub(super) fn keeps(&self, keeps: &[bool]) -> Result<(), EngineError> {
        let why = match keeps {
            [true, true, true] => return Ok(()),
            [true, true, false] if !self.high_availability => return Ok(()),
            [true, true, ..] => {
                "names no synchronous standby, and the config says high_availability: set synchronous_standby_names"
            }
            [true, ..] => "runs with full_page_writes = off and can be torn by a power cut: turn it on",
            _ => "runs with fsync = off and would lose what it acknowledged: turn it on",
        };
        Err(EngineError::Unfit(format!("the ledger's server {why}")))
    }
}

/// A connection, and whether the server said that a commit may not be where it should be.
pub(super) struct Session {
    pub client: Client,
    warned: Arc<AtomicBool>,
}

/// Whether a server keeps what it acknowledges, as it says itself: it writes it, whole, and has a standby do so.
pub(super) const KEEPS: &str = "ARRAY[current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
    current_setting('synchronous_standby_names') <> '']";

/// What every session is told: durable commits, each statement seeing what the locks it waited for made true, and
/// plans that do not depend on how empty a table was.
const OPTIONS: &str = "-c synchronous_commit=on -c default_transaction_isolation=read\\ committed \
    -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c search_path=quotesign -c jit=off \
    -c client_min_messages=warning -c idle_in_transaction_session_timeout=60000";
/// The oldest server whose behaviour this was shown on.
const VERSION_MIN: i32 = 15;

impl Session {
    /// Connects, and checks the server.
    pub async fn open(server: &Server) -> Result<Self, EngineError> {
        let timeout = server.timeout;
        let opened = tokio::time::timeout(timeout, async {
            let session = Self::connect(server).await?;
            session.check(server).await?;
            Ok(session)
        });
        opened.await.unwrap_or_else(|_| Err(EngineError::Away(format!("the server gave no answer in {timeout:?}"))))
    }

    async fn connect(server: &Server) -> Result<Self, EngineError> {
        let mut config = server.address.clone();
        let lock_timeout = server.timeout.as_millis();
        config
            .options(format!("{OPTIONS} -c lock_timeout={lock_timeout}"))
            .application_name("quotesign")
            .connect_timeout(server.timeout)
            .tcp_user_timeout(server.timeout)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        if let Some(file) = &server.password_file {
            let password = std::fs::read_to_string(file).map_err(|fault| {
                EngineError::Unfit(format!("the ledger's password: `{}` cannot be read: {fault}", file.display()))
            })?;
            config.password(password.trim_end_matches(['\r', '\n']));
        }
        let warned = Arc::new(AtomicBool::new(false));
        let client = if let Some(tls) = &server.tls {
            config.ssl_mode(SslMode::Require);
            let tls = MakeRustlsConnect::new(ClientConfig::clone(&tls.now()));
            let (client, connection) = config.connect(tls).await.map_err(cannot_connect)?;
            tokio::spawn(drive(connection, Arc::clone(&warned)));
            client
        } else {
            config.ssl_mode(SslMode::Disable);
            let (client, connection) = config.connect(NoTls).await.map_err(cannot_connect)?;
            tokio::spawn(drive(connection, Arc::clone(&warned)));
            client
        };
        Ok(Self { client, warned })
    }

    /// Refuses a server that acknowledges what it could lose.
    async fn check(&self, server: &Server) -> Result<(), EngineError> {
        let sql = format!(
            "SELECT current_setting('server_version_num')::int / 10000, {KEEPS}, pg_is_in_recovery(),
                    current_setting('synchronous_commit') = 'on'"
        );
        let rows = self.client.query(&sql, &[]).await.map_err(definite)?;
        let row = rows.first().ok_or_else(|| EngineError::Unknown("the server said nothing of itself".to_owned()))?;
        let version: i32 = row.get(0);
        let wrong = [
            (version < VERSION_MIN, "is older than PostgreSQL 15: upgrade it"),
            (row.get(2), "is in recovery: give the address of the primary"),
            (!row.get::<_, bool>(3), "does not let this session set synchronous_commit = on: allow it"),
        ];
        if let Some((_, why)) = wrong.iter().find(|(wrong, _)| *wrong) {
            return Err(EngineError::Unfit(format!("the ledger's server {why}")));
        }
        server.keeps(&row.get::<_, Vec<bool>>(1))
    }

    /// Whether the server warned since the last time this was asked. A commit that comes with a warning may be on
    /// this server alone.
    pub fn was_warned(&self) -> bool {
        self.warned.swap(false, Ordering::SeqCst)
    }

    /// That it did not.
    ///
    /// # Errors
    /// Where it did: what became of the commit is unknown.
    pub fn unwarned(&self) -> Result<(), EngineError> {
        if self.was_warned() {
            let why = "the server warned of a commit: it may be on one server alone";
            return Err(EngineError::Unknown(why.to_owned()));
        }
        Ok(())
    }
}

/// Runs the connection, and heeds what the server says unasked.
async fn drive<S, T>(mut connection: Connection<S, T>, warned: Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notice(notice) = message {
            tracing::warn!(severity = notice.severity(), message = notice.message(), "the ledger's server warns");
            warned.store(true, Ordering::SeqCst);
        }
    }
}

fn cannot_connect(error: tokio_postgres::Error) -> EngineError {
    EngineError::Away(format!("the ledger's server cannot be reached: {}", told(&error)))
}

/// An error and its causes, in a line.
pub(super) fn told(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

/// What an error of a statement means: only an `ERROR` of the server itself says that nothing was done.
pub(super) fn definite(error: tokio_postgres::Error) -> EngineError {
    let text = told(&error);
    match error.as_db_error() {
        Some(answer) if answer.parsed_severity() == Some(Severity::Error) => match answer.code().code() {
            "QS002" => EngineError::Unfit(fenced()),
            // Without its schema, or with another's rights.
            "42P01" | "42883" | "3F000" | "42501" => {
                EngineError::Unfit(format!("the ledger cannot be used: {text}; run `quotesign ledger migrate`"))
            }
            code if is_of_the_server(code) => EngineError::Failing(text),
            _ => EngineError::RolledBack(text),
        },
        _ => EngineError::Unknown(text),
    }
}

/// Whether a code tells of the server and not of the statement: it lacks room or memory, is told to stop or to write nothing, waits
/// for a lock for too long, or cannot read or trust its own files.
fn is_of_the_server(code: &str) -> bool {
    matches!(code, "25006" | "55P03") || ["53", "57", "58", "XX"].iter().any(|class| code.starts_with(class))
}

/// Whether the server says that somebody else was first.
pub(super) fn has_moved(error: &tokio_postgres::Error) -> bool {
    let code = error.as_db_error().filter(|answer| answer.parsed_severity() == Some(Severity::Error));
    // Ours; unique_violation; deadlock_detected; serialization_failure.
    code.is_some_and(|answer| matches!(answer.code().code(), "QS001" | "23505" | "40P01" | "40001"))
}

pub(super) fn fenced() -> String {
    "another gateway writes under this one's name: give each its own `ledger.postgres.replica`, and start this one again"
        .to_owned()
}
