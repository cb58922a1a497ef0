//! `[ledger]`: where the ledger is kept, in one SQLite file or in a PostgreSQL database.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio_postgres::config::Host;

use crate::{
    domain::Environment,
    ledger::{
        LedgerConfig, Place, Store,
        postgres::{Server, Settings, WriterAt},
    },
    outgoing::Outgoing,
    room::Room,
};

/// Where the ledger is kept, and the bounds of its queue.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerSection {
    /// The SQLite file, for a gateway that runs alone.
    pub sqlite: Option<PathBuf>,
    /// The PostgreSQL database, for gateways that run side by side.
    pub postgres: Option<PostgresSection>,
    /// The small file that tells a ledger that has gone back in time, on another volume than the ledger's own.
    pub anchor: Option<PathBuf>,
    /// How many operations may wait for the writer.
    #[serde(default = "defaults::queue_max")]
    pub queue_max: usize,
    /// How many are committed together at most.
    #[serde(default = "defaults::batch_max")]
    pub batch_max: usize,
    /// How often expired reservations are voided, in seconds.
    #[serde(default = "defaults::sweep_s")]
    pub sweep_s: u64,
    /// How many days after its expiry a quote is forgotten; its number stays taken.
    #[serde(default = "defaults::keep_days")]
    pub keep_days: u32,
    /// Below how much free space on the volume of a SQLite ledger it is warned, in MiB; its anchor's has lower bounds of its own.
    #[serde(default = "defaults::disk_warn_mb")]
    pub disk_warn_mb: u64,
    /// Below how much nothing new is signed, in MiB.
    #[serde(default = "defaults::disk_min_mb")]
    pub disk_min_mb: u64,
}

/// A database that several gateways share.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresSection {
    /// `postgresql://user@host:port/database`, without the password.
    pub address: String,
    /// The file that holds the password; its one line.
    pub password_file: Option<PathBuf>,
    /// The CA of the server's certificate, PEM. Not for a server on this machine alone.
    pub ca: Option<PathBuf>,
    /// The certificate that this gateway shows, PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub private_key: Option<PathBuf>,
    /// This gateway's own name among those that share the database; the machine's host name where absent.
    pub replica: Option<String>,
    /// Whether the server must name a synchronous standby.
    #[serde(default)]
    pub high_availability: bool,
    /// How far the server's clock may be from this machine's, in milliseconds.
    #[serde(default = "defaults::clock_offset_ms_max")]
    pub clock_offset_ms_max: u64,
    /// How long one exchange with the server may take, in milliseconds.
    #[serde(default = "defaults::timeout_ms")]
    pub timeout_ms: u64,
    #[serde(skip)]
    writer: WriterAt,
}

mod defaults {
    pub(super) fn queue_max() -> usize {
        4096
    }
    pub(super) fn batch_max() -> usize {
        512
    }
    pub(super) fn sweep_s() -> u64 {
        10
    }
    pub(super) fn keep_days() -> u32 {
        30
    }
    pub(super) fn disk_warn_mb() -> u64 {
        1024
    }
    pub(super) fn disk_min_mb() -> u64 {
        128
    }
    pub(super) fn clock_offset_ms_max() -> u64 {
        1_000
    }
    pub(super) fn timeout_ms() -> u64 {
        5_000
    }
}

impl LedgerSection {
    /// The bounds of the front.
    #[must_use]
    pub fn front(&self) -> LedgerConfig {
        LedgerConfig { queue_max: self.queue_max, batch_max: self.batch_max }
    }

    /// This gateway's name among those that share the ledger; empty where it is alone.
    #[must_use]
    pub fn replica(&self) -> String {
        self.postgres.as_ref().map(PostgresSection::replica).unwrap_or_default()
    }

    /// How often it is swept.
    #[must_use]
    pub fn sweep(&self) -> Duration {
        Duration::from_secs(self.sweep_s.max(1))
    }

    /// How long after its expiry a quote is kept.
    #[must_use]
    pub fn keep(&self) -> Duration {
        Duration::from_hours(24) * self.keep_days
    }

    /// The volumes that are watched: those of a SQLite ledger and its anchor. A database's own are another's to watch.
    #[must_use]
    pub fn room(&self) -> Room {
        let watched = |ledger: &PathBuf| Room::new(ledger, self.anchor.as_deref(), self.disk_warn_mb, self.disk_min_mb);
        self.sqlite.as_ref().map(watched).unwrap_or_default()
    }

    /// Where it is.
    ///
    /// # Errors
    /// Where neither or both are given, or a certificate cannot be used.
    pub fn place(&self) -> Result<Place, String> {
        let anchor = self.anchor.clone();
        match (&self.sqlite, &self.postgres) {
            (Some(file), None) => Ok(Place { store: Store::Sqlite(file.clone()), anchor }),
            (None, Some(postgres)) => {
                postgres.settings().map(|settings| Place { store: Store::Postgres(Box::new(settings)), anchor })
            }
            _ => Err("`ledger`: give the ledger's place by `sqlite` or by `postgres`, one of them".to_owned()),
        }
    }

    /// The paths in it.
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let postgres = self.postgres.as_mut().map(|postgres| {
            [&mut postgres.password_file, &mut postgres.ca, &mut postgres.certificate, &mut postgres.private_key]
        });
        self.sqlite
            .as_mut()
            .into_iter()
            .chain(self.anchor.as_mut())
            .chain(postgres.into_iter().flatten().filter_map(Option::as_mut))
    }

    /// The rules that types cannot hold; certificates are read later.
    pub(super) fn check(&self, environment: Environment) -> Result<(), String> {
        if environment == Environment::Production && self.anchor.is_none() {
            return Err(
                "`ledger.anchor`: production needs one; name a file on another volume than the ledger's".to_owned()
            );
        }
        if self.disk_min_mb > self.disk_warn_mb {
            return Err(format!(
                "`ledger.disk_min_mb` = `{}` is above `ledger.disk_warn_mb` = `{}`: nobody would be warned; lower it",
                self.disk_min_mb, self.disk_warn_mb
            ));
        }
        match (&self.sqlite, &self.postgres) {
            (Some(_), None) => Ok(()),
            (None, Some(postgres)) => postgres.check(),
            _ => self.place().map(drop),
        }
    }
}

impl PostgresSection {
    fn check(&self) -> Result<(), String> {
        let address = self.parsed()?;
        let is_here = address.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
            Host::Unix(_) => true,
        });
        if self.ca.is_none() && !is_here {
            return Err(
                "`ledger.postgres.ca`: give the CA of the server's certificate; only a server on this machine is \
                        talked to without TLS"
                    .to_owned(),
            );
        }
        if self.certificate.is_some() != self.private_key.is_some() || (self.certificate.is_some() && self.ca.is_none())
        {
            return Err("`ledger.postgres`: give `certificate`, `private_key` and `ca` together".to_owned());
        }
        let replica = self.replica();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if replica.is_empty() || replica.len() > 63 || !replica.bytes().all(fits) {
            return Err(format!(
                "`ledger.postgres.replica` = `{replica}` is no name; give 1 to 63 letters, digits, `-`, `.` or `_`"
            ));
        }
        for (field, value) in [("clock_offset_ms_max", self.clock_offset_ms_max), ("timeout_ms", self.timeout_ms)] {
            if !(1..=60_000).contains(&value) {
                return Err(format!("`ledger.postgres.{field}` = `{value}` is out of range; give 1 to 60000"));
            }
        }
        Ok(())
    }

    fn parsed(&self) -> Result<tokio_postgres::Config, String> {
        // The text may hold a password, and is not told back.
        let address: tokio_postgres::Config = self.address.parse().map_err(|_| {
            "`ledger.postgres.address` cannot be read; write it as `postgresql://user@host:5432/database`".to_owned()
        })?;
        if address.get_password().is_some() {
            return Err("`ledger.postgres.address` holds a password; put it into the file that `password_file` names"
                .to_owned());
        }
        if address.get_hosts().is_empty() || address.get_user().is_none() || address.get_dbname().is_none() {
            return Err(
                "`ledger.postgres.address` lacks a part; write it as `postgresql://user@host:5432/database`".to_owned()
            );
        }
        if address.get_options().is_some() {
            return Err("`ledger.postgres.address` sets options; the gateway sets its own, leave them out".to_owned());
        }
        Ok(address)
    }

    fn replica(&self) -> String {
        self.replica.clone().unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
    }

    fn settings(&self) -> Result<Settings, String> {
        let identity = self.certificate.as_deref().zip(self.private_key.as_deref());
        let tls = self.ca.as_ref().map(|ca| Outgoing::read(ca, identity, b"postgresql")).transpose();
        let server = Server {
            address: self.parsed()?,
            password_file: self.password_file.clone(),
            tls: tls.map_err(|fault| fault.to_string())?.map(Arc::new),
            high_availability: self.high_availability,
            timeout: Duration::from_millis(self.timeout_ms),
            writer: self.writer.clone(),
        };
        let clock_offset_max = Duration::from_millis(self.clock_offset_ms_max);
        Ok(Settings { server, replica: self.replica(), clock_offset_max })
    }
}
