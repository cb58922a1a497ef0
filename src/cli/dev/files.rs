//! The development environment's files: config, client file, and the shipped policy bundle with its own key.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use crate::{
    cli::{Failure, keys::write_jwk},
    clock::{Clock as _, SystemClock},
    jwk::PublicKey,
    policy::shipped,
    signer::locator::Locator,
};

use super::{
    certificates::TRUST_DOMAIN,
    token::{self, CHECKPOINT_KID, LABEL},
};

pub(in crate::cli) const CONFIG: &str = "quotesign.toml";
pub(super) const PARTNER: &str = "acme-remit";
const SOFTHSM: &str = "softhsm2.conf";
pub(super) const COMPLETE: &str = "complete";
const REFERENCE_KEY: &str = "reference.key";
const CHECKPOINT_KEY: &str = "checkpoint.jwk.json";
/// Written first and last, so that an interrupted run is seen.
const MADE: [&str; 11] = [
    "complete",
    "tokens",
    "tls",
    "policy",
    "quotesign.toml",
    "client.toml",
    "pin",
    "so-pin",
    "softhsm2.conf",
    REFERENCE_KEY,
    CHECKPOINT_KEY,
];
/// gRPC, admin, JWKS, operations; another free port where one is taken.
const PORTS: [u16; 4] = [8443, 8444, 8445, 9464];
const DAY: Duration = Duration::from_hours(24);

/// Writes a file that this user alone may read.
pub(in crate::cli) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let named = |fault: std::io::Error| Failure::failed(format!("{}: {fault}", path.display()));
    let open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(bytes)).map_err(named)
}

/// Removes what an earlier, interrupted run has made; nothing else in the directory is touched.
pub(super) fn clear(dir: &Path) -> Result<(), Failure> {
    for name in
        MADE.into_iter().chain(["ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite.lock"])
    {
        let path = dir.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(fault) if fault.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::failed(format!("{}: {fault}", path.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `SoftHSM`'s own config: where its tokens are.
pub(super) fn write_softhsm(dir: &Path) -> Result<(), Failure> {
    let tokens = dir.join("tokens");
    fs::create_dir_all(&tokens).map_err(|fault| Failure::failed(format!("{}: {fault}", tokens.display())))?;
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    write(&dir.join(SOFTHSM), text.as_bytes())
}

/// Writes the public half of the key of checkpoints.
pub(super) fn write_checkpoint_key(dir: &Path, key: &PublicKey) -> Result<(), Failure> {
    write(&dir.join(CHECKPOINT_KEY), format!("{:#}\n", key.to_jwk()).as_bytes())
}

/// Writes config and client file. Addresses change only where another process has taken one.
pub(in crate::cli) fn write_addresses(dir: &Path) -> Result<(), Failure> {
    let [grpc, admin, jwks, operations] = addresses()?;
    let module = token::module()?;
    let config = format!(
        r#"# A development gateway. `quotesign config check --config` reads it; every field is explained in docs/config.md.
environment = "development"
policy = "policy"

[grpc]
listen = "{grpc}"
certificate = "tls/server.pem"
private_key = "tls/server.key"
client_ca = "tls/ca.pem"
trust_domain = "{TRUST_DOMAIN}"
reflection = true

[admin]
listen = "{admin}"
certificate = "tls/server.pem"
private_key = "tls/server.key"
client_ca = "tls/ca.pem"
trust_domain = "{TRUST_DOMAIN}"

[jwks]
listen = "{jwks}"
certificate = "tls/server.pem"
private_key = "tls/server.key"

[operations]
listen = "{operations}"

[ledger]
sqlite = "ledger.sqlite"

[[signers]]
name = "hsm-primary"
module = "{}"
token = "{LABEL}"
pin_file = "pin"
environment = {{ SOFTHSM2_CONF = "{}" }}

[drain]
grace_ms = 0

[log]
format = "text"

[audit]
reference_key = "{REFERENCE_KEY}"
{}"#,
        module.display(),
        dir.join(SOFTHSM).display(),
        checkpoints(dir)
    );
    let client = format!(
        r#"environment = "development"
partner = "acme-remit"
ca = "tls/ca.pem"
jwks = "https://{jwks}"

[grpc]
url = "https://{grpc}"
certificate = "tls/pricing.pem"
private_key = "tls/pricing.key"

[admin]
url = "https://{admin}"
certificate = "tls/operator.pem"
private_key = "tls/operator.key"
"#
    );
    // What an older version has made has none.
    let key = dir.join(REFERENCE_KEY);
    if !key.exists() {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Failure::failed("the system gives no random bytes"))?;
        write(&key, &bytes)?;
    }
    write(&dir.join(CONFIG), config.as_bytes())?;
    write(&dir.join("client.toml"), client.as_bytes())
}

/// An environment that is made now has a key for checkpoints, and one that an older version has made has none.
fn checkpoints(dir: &Path) -> String {
    if dir.join(COMPLETE).exists() && !dir.join(CHECKPOINT_KEY).exists() {
        return String::new();
    }
    let locator = Locator::uri_of(LABEL, CHECKPOINT_KID);
    format!(
        "\n[audit.checkpoint]\nsigner = \"hsm-primary\"\nlocator = \"{locator}\"\npublic_key = \"{CHECKPOINT_KEY}\"\n"
    )
}

fn addresses() -> Result<[SocketAddr; 4], Failure> {
    let mut held = Vec::new();
    for port in PORTS {
        let listener = TcpListener::bind(("127.0.0.1", port)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
        held.push(listener.map_err(Failure::failed)?);
    }
    let addresses: Vec<_> = held.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    addresses.try_into().map_err(|_| Failure::failed("this machine does not tell its own addresses"))
}

/// The shipped bundle, with this environment's own key in place of the example's.
pub(super) fn write_policy(dir: &Path, key: &PublicKey) -> Result<(), Failure> {
    for folder in ["keys", "schemas"] {
        fs::create_dir_all(dir.join(folder)).map_err(|fault| Failure::failed(format!("{}: {fault}", dir.display())))?;
    }
    for (name, text) in shipped::FILES {
        write(&dir.join(name), text.as_bytes())?;
    }
    write_jwk(&dir.join("keys"), key)?;
    let mut policy: DocumentMut = shipped::POLICY.parse().map_err(Failure::failed)?;
    let mut keys = ArrayOfTables::new();
    keys.push(timeline(key)?);
    policy.insert("keys", Item::ArrayOfTables(keys));
    write(&dir.join("policy.toml"), policy.to_string().as_bytes())
}

/// Signs from now on for a year; the JWKS keeps it a week longer.
fn timeline(key: &PublicKey) -> Result<Table, Failure> {
    let now = SystemClock.now();
    let at = |time: crate::clock::UtcTime| time.to_string().parse::<toml_edit::Datetime>().map_err(Failure::failed);
    let kid = key.kid();
    let mut table = Table::new();
    table.insert("kid", value(kid.as_str()));
    table.insert("partner", value(PARTNER));
    table.insert("signer", value("hsm-primary"));
    table.insert("locator", value(Locator::uri_of(LABEL, kid.as_str())));
    let start = crate::clock::UtcTime::from_millis(now.millis() - now.millis().rem_euclid(60_000));
    table.insert("publish_at", value(at(start)?));
    table.insert("sign_from", value(at(start)?));
    table.insert("sign_until", value(at(start.plus(DAY * 365))?));
    table.insert("retire_at", value(at(start.plus(DAY * 372))?));
    Ok(table)
}
