//! The commands. Each is a file of its own name under `cli/`; exit codes are 0 for done, 1 for refused or
//! failed, 2 for arguments or configuration that cannot be used.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{client::ClientFile, config::Config, policy::Partner};

mod admin;
mod audit;
mod bench;
mod callers;
mod completions;
mod config;
mod dev;
mod doctor;
mod golive;
mod halt;
mod health;
mod jwks;
mod keys;
mod ledger;
mod man;
mod noted;
mod out;
mod pkcs11_host;
mod policy;
mod serve;
mod sign;
mod support;
mod verify;

/// Signs price quotes with keys that never leave their hardware: checked against policy, numbered, recorded,
/// verified before release.
///
/// New here? `quotesign dev` makes a whole gateway in `.dev/` and tells what to try next.
#[derive(Debug, Parser)]
#[command(name = "quotesign", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway.
    Serve(serve::Serve),
    /// Make a development environment with its own token, keys and certificates, and serve it.
    Dev(dev::Dev),
    /// Check what `serve` would read, without starting anything.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look at a deployment from end to end and tell what is wrong, with the remedy; changes nothing.
    Doctor(doctor::Doctor),
    /// Have a quote signed.
    Sign(sign::Sign),
    /// Verify a signed quote.
    Verify(verify::Verify),
    /// Fetch a partner's public keys as callers of the public endpoint see them.
    Jwks(jwks::Jwks),
    /// Ask whether the gateway can sign; exit code 0 where it can.
    Health(health::Health),
    /// Act on a running gateway as an operator.
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// Stop signing at once: all of it, or for one partner or key.
    Halt(halt::Act),
    /// End a halt.
    Resume(halt::Act),
    /// Suspend a caller at once, and reinstate it.
    #[command(subcommand)]
    Callers(callers::CallersCommand),
    /// Make keys on a device and show their public halves, and revoke one.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Create, migrate, copy and read the ledger.
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// Read and verify the audit journal.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Check, try, explain, compare and sign policy bundles, from files alone.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Show what the operator's go-live checklists ask for, as far as a machine can, with the evidence.
    Golive(Box<golive::GoLive>),
    /// Gather what the operator's support asks for about a key set or a quote, and nothing that must not be sent.
    Support(support::Support),
    /// Load a gateway and measure it, with every answer checked; refuses production.
    Bench(Box<bench::Bench>),
    /// Write completions for a shell to standard output.
    Completions(completions::Completions),
    /// Write the manual pages, one for each command, to a directory.
    Man(man::Man),
    /// Load a PKCS#11 module for the gateway that started this process. Nobody else needs it.
    #[command(hide = true)]
    Pkcs11Host,
    /// Sign in a bare loop for the `bench` that started this process. Nobody else needs it.
    #[command(hide = true)]
    BenchRaw(bench::BenchRaw),
}

/// How a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Where the public key set is.
#[derive(Debug, Args)]
struct PublicUrl {
    /// Where verifiers fetch the keys, where policy does not name it.
    #[arg(long)]
    url: Option<String>,
    /// The CAs that the URL is held against, PEM; those of the config where it is not given.
    #[arg(long, value_name = "FILE")]
    url_ca: Option<PathBuf>,
}

impl PublicUrl {
    /// The URL of `partner`, where there is one, and the CAs to hold it against.
    fn of<'u>(&'u self, config: &'u Config, partner: &'u Partner) -> (Option<&'u str>, &'u Path) {
        let url = self.url.as_deref().or(partner.jwks_url.as_deref());
        (url, self.url_ca.as_ref().unwrap_or(&config.jwks.url_ca))
    }
}

/// Where the gateway's config is.
#[derive(Debug, Args)]
struct ConfigPath {
    /// The gateway's config.
    #[arg(long, env = "QUOTESIGN_CONFIG", default_value = "quotesign.toml", value_name = "FILE")]
    config: PathBuf,
}

impl ConfigPath {
    fn load(&self) -> Result<Config, Failure> {
        Config::load(&self.config).map_err(Failure::unfit)
    }
}

/// Where the client file is.
#[derive(Debug, Args)]
struct ClientPath {
    /// How to reach the gateway: addresses, CA, and this client's certificate.
    #[arg(long, env = "QUOTESIGN_CLIENT", default_value = ".dev/client.toml", value_name = "FILE")]
    client: PathBuf,
}

impl ClientPath {
    fn load(&self) -> Result<ClientFile, Failure> {
        ClientFile::load(&self.client).map_err(Failure::unfit)
    }
}

/// An act of an emergency was done, and nobody knows what it was done to.
fn misspelt(what: &str) -> Failure {
    Failure { code: 6, text: format!("done, and {what}: is it misspelt? What was meant still signs") }
}

/// An act that stops something was done at one gateway, whose ledger is away.
fn not_yet_durable(what: &str, unknown: bool) -> Failure {
    let misspelt = if unknown { "; nobody knows one of that name: is it misspelt?" } else { "" };
    let text = format!(
        "not yet durable: {what} by the gateway that was asked, which keeps trying; tell the others by asking each{misspelt}"
    );
    Failure { code: 5, text }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// The command was understood, and what it asked for was refused or failed.
    fn failed(text: impl Display) -> Self {
        Self { code: 1, text: text.to_string() }
    }

    /// What it was given cannot be used.
    fn unfit(text: impl Display) -> Self {
        Self { code: 2, text: text.to_string() }
    }

    /// A gateway refused a call: its reason, what it says, and each violation.
    fn refused(status: &tonic::Status) -> Self {
        use tonic_types::StatusExt as _;
        let reason = status.get_details_error_info().map_or_else(|| format!("{:?}", status.code()), |info| info.reason);
        let mut text = format!("{reason}: {}", status.message());
        for field in status.get_details_bad_request().map(|request| request.field_violations).unwrap_or_default() {
            text.extend(["\n  ", &field.field, " ", &field.description]);
        }
        Self::failed(text)
    }
}

impl Cli {
    /// Runs the command.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Serve(command) => command.run(),
            Command::Dev(command) => command.run(),
            Command::Config(command) => command.run(),
            Command::Doctor(command) => command.run(),
            Command::Sign(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Jwks(command) => command.run(),
            Command::Health(command) => command.run(),
            Command::Admin(command) => command.run(),
            Command::Halt(act) => act.halt(),
            Command::Resume(act) => act.resume(),
            Command::Callers(command) => command.run(),
            Command::Keys(command) => command.run(),
            Command::Ledger(command) => command.run(),
            Command::Audit(command) => command.run(),
            Command::Policy(command) => command.run(),
            Command::Golive(command) => command.run(),
            Command::Support(command) => command.run(),
            Command::Man(command) => command.run(),
            Command::Pkcs11Host => pkcs11_host::run(),
            Command::Bench(command) => command.run(),
            Command::BenchRaw(command) => command.run(),
            Command::Completions(command) => {
                command.run();
                Ok(())
            }
        };
        match done.and_then(|()| out::finish()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                for line in failure.text.lines() {
                    out::warn(format_args!("{line}"));
                }
                ExitCode::from(failure.code)
            }
        }
    }
}

/// Runs a client command's future on a runtime of its own.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?.block_on(future)
}
