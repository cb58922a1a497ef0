//! The files that a config names: who can read and who can change them. Read off the document, so that they are told of also
//! where it makes no config.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use toml::{Table, Value};

use crate::{
    config::Config,
    disk::{self, folder_of},
};

use super::report::{Check, Report};

/// What a file is to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Whoever reads it can do what the gateway does.
    Secret,
    /// Whoever changes it changes whom or what the gateway believes.
    Trusted,
    /// The bundle's directory.
    Policy,
    /// What the ledger is kept in.
    Ledger,
    /// A directory that the gateway writes.
    Written,
}

/// The fields that name files.
const FIELDS: [(&str, Kind); 25] = [
    ("policy", Kind::Policy),
    ("policy_key", Kind::Trusted),
    ("grpc.certificate", Kind::Trusted),
    ("grpc.private_key", Kind::Secret),
    ("grpc.client_ca", Kind::Trusted),
    ("admin.certificate", Kind::Trusted),
    ("admin.private_key", Kind::Secret),
    ("admin.client_ca", Kind::Trusted),
    ("jwks.certificate", Kind::Trusted),
    ("jwks.private_key", Kind::Secret),
    ("jwks.url_ca", Kind::Trusted),
    ("jwks.export", Kind::Written),
    ("ledger.sqlite", Kind::Ledger),
    ("ledger.anchor", Kind::Ledger),
    ("ledger.postgres.password_file", Kind::Secret),
    ("ledger.postgres.ca", Kind::Trusted),
    ("ledger.postgres.certificate", Kind::Trusted),
    ("ledger.postgres.private_key", Kind::Secret),
    ("otlp.ca", Kind::Trusted),
    ("otlp.certificate", Kind::Trusted),
    ("otlp.private_key", Kind::Secret),
    ("otlp.headers_file", Kind::Secret),
    ("audit.reference_key", Kind::Secret),
    ("audit.checkpoint.public_key", Kind::Trusted),
    ("audit.checkpoint.earlier_keys", Kind::Trusted),
];
/// Those of each signer.
const OF_SIGNERS: [(&str, Kind); 2] = [("module", Kind::Trusted), ("pin_file", Kind::Secret)];

/// Nobody but owner and group may come near a secret, and the group may only read it.
const SECRET: u32 = 0o037;
/// Nobody but the owner may change what is believed.
const CHANGE: u32 = 0o022;
const OTHERS_WRITE: u32 = 0o002;
const WRITE: u32 = 0o222;
const STICKY: u32 = 0o1000;
/// What lies beside a SQLite ledger and an anchor, by what follows their names. The list of revoked kids is no secret.
const BESIDE: [(&str, u32); 8] = [
    ("", SECRET),
    ("-wal", SECRET),
    ("-shm", SECRET),
    (".lock", SECRET),
    (".reads", SECRET),
    (".reads.taken", SECRET),
    (".revoked", CHANGE),
    (".pending", SECRET),
];
/// How deep a bundle's directory is looked through.
const DEPTH_MAX: usize = 4;

/// The files of a config.
#[derive(Debug, Default)]
pub(super) struct Named(Vec<(String, Kind, PathBuf)>);

impl Named {
    /// The file that this field names.
    pub(super) fn of(&self, field: &str) -> Option<&Path> {
        self.0.iter().find(|(name, ..)| name == field).map(|(.., path)| path.as_path())
    }
}

/// The files that the config at `path` names; none where it is no TOML.
pub(super) fn named(path: &Path) -> Named {
    let Ok(document) = Config::document(path) else { return Named::default() };
    let base = folder_of(path);
    let mut found = Vec::new();
    for (field, kind) in FIELDS {
        for file in texts(field.split('.').try_fold(&document_value(&document), |value, part| value.get(part))) {
            found.push((field.to_owned(), kind, base.join(file)));
        }
    }
    let signers = document.get("signers").and_then(Value::as_array).into_iter().flatten();
    for (at, signer) in signers.enumerate() {
        for (field, kind) in OF_SIGNERS {
            let files = texts(signer.get(field));
            found.extend(files.into_iter().map(|file| (format!("signers[{at}].{field}"), kind, base.join(file))));
        }
    }
    Named(found)
}

fn document_value(document: &Table) -> Value {
    Value::Table(document.clone())
}

fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// Who may own what the gateway uses: root, this user, and whoever owns the ledger, as whom the gateway runs.
fn owners(named: &Named) -> BTreeSet<u32> {
    let ledger = named.of("ledger.sqlite").and_then(|file| fs::metadata(file).ok()).map(|found| found.uid());
    [0, geteuid().as_raw()].into_iter().chain(ledger).collect()
}

pub(super) fn look(named: &Named, config: &Path, report: &mut Report) {
    let owners = owners(named);
    let own = [("config".to_owned(), Kind::Trusted, config.to_owned())];
    let mut folders: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (field, kind, path) in own.iter().chain(&named.0) {
        if *kind != Kind::Written {
            folders.entry(folder_of(path).to_owned()).or_insert_with(|| field.clone());
        }
        match kind {
            Kind::Secret => of_file(report, Check::FilesSecret, field, path, SECRET, &owners),
            Kind::Trusted => of_file(report, Check::FilesTrusted, field, path, CHANGE, &owners),
            Kind::Policy => of_policy(report, path, &owners),
            Kind::Ledger => of_ledger(report, field, path, &owners),
            Kind::Written => drop(folders.insert(path.clone(), field.clone())),
        }
    }
    for (folder, field) in folders {
        of_folder(report, &folder, &field, &owners);
    }
}

/// What stands there, or why that is not told.
struct Found {
    /// Who may do what; of a directory on a read-only mount, as a `ConfigMap` is, nobody may write.
    mode: u32,
    uid: u32,
    told: String,
}

fn find(path: &Path) -> io::Result<Found> {
    let found = fs::metadata(path)?;
    let (mode, uid) = (found.mode() & 0o7777, found.uid());
    let told = format!("{}: mode {mode:04o}, owner {uid}", path.display());
    if found.is_dir() && disk::is_read_only(path) {
        return Ok(Found { mode: mode & !WRITE, uid, told: format!("{told}, on a read-only mount") });
    }
    Ok(Found { mode, uid, told })
}

/// Why the file must not stay as it is, and the remedy.
fn wrong(found: &Found, path: &Path, forbidden: u32, owners: &BTreeSet<u32>) -> Option<String> {
    let path = path.display();
    match () {
        () if !owners.contains(&found.uid) => Some(format!(
            "it belongs to another user, who can change it: `chown` it to the gateway's user or root: {path}"
        )),
        () if found.mode & forbidden != 0 => Some(format!("chmod {:04o} {path}", found.mode & !forbidden & 0o777)),
        () => None,
    }
}

fn of_file(report: &mut Report, check: Check, field: &str, path: &Path, forbidden: u32, owners: &BTreeSet<u32>) {
    let found = match find(path).and_then(|found| fs::File::open(path).map(|_| found)) {
        Ok(found) => found,
        Err(fault) => {
            let remedy = format!("put it there, readable for the gateway's user, or mend `{field}`");
            return report.fault(check, field, format!("{}: {fault}", path.display()), remedy);
        }
    };
    match wrong(&found, path, forbidden, owners) {
        None => report.ok(check, field, found.told),
        Some(remedy) => report.fault(check, field, found.told, remedy),
    }
}

/// The directory and all in it.
fn of_policy(report: &mut Report, dir: &Path, owners: &BTreeSet<u32>) {
    let (mut count, mut waiting) = (0_usize, vec![(dir.to_owned(), 0)]);
    while let Some((path, depth)) = waiting.pop() {
        count += 1;
        let bad = match find(&path) {
            Err(fault) => Some((format!("{}: {fault}", path.display()), "put the bundle there".to_owned())),
            Ok(found) => wrong(&found, &path, CHANGE, owners).map(|remedy| (found.told, remedy)),
        };
        if let Some((evidence, remedy)) = bad {
            return report.fault(Check::FilesPolicy, "policy", evidence, remedy);
        }
        if path.is_dir() && depth < DEPTH_MAX {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.map(|entry| (entry.path(), depth + 1)));
        }
    }
    let evidence = format!("{}: nobody else can change it or one of the {} things in it", dir.display(), count - 1);
    report.ok(Check::FilesPolicy, "policy", evidence);
}

fn of_ledger(report: &mut Report, field: &str, path: &Path, owners: &BTreeSet<u32>) {
    let (mut told, mut count) = (None, 0_usize);
    for (beside, forbidden) in BESIDE {
        let mut name = path.as_os_str().to_owned();
        name.push(beside);
        let file = PathBuf::from(name);
        match find(&file) {
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
            Err(fault) => {
                let remedy = "run this as the gateway's user";
                return report.fault(Check::FilesLedger, field, format!("{}: {fault}", file.display()), remedy);
            }
            Ok(found) => {
                if let Some(remedy) = wrong(&found, &file, forbidden, owners) {
                    return report.fault(Check::FilesLedger, field, found.told, remedy);
                }
                count += 1;
                told = told.or(Some(found.told));
            }
        }
    }
    match told {
        Some(told) => report.ok(Check::FilesLedger, field, format!("{told}; {count} files")),
        None => report.skipped(Check::FilesLedger, field, format!("{}: is not there yet", path.display())),
    }
}

/// Whoever can write a directory can put another file in the place of one.
fn of_folder(report: &mut Report, folder: &Path, field: &str, owners: &BTreeSet<u32>) {
    let of = format!("of {field}");
    match find(folder) {
        Err(fault) => {
            let remedy = format!("make it, or mend `{field}`");
            report.fault(Check::FilesDirectory, &of, format!("{}: {fault}", folder.display()), remedy);
        }
        Ok(found) => {
            // In one that is sticky nobody moves what is another's.
            let forbidden = if found.mode & STICKY == 0 { OTHERS_WRITE } else { 0 };
            match wrong(&found, folder, forbidden, owners) {
                None => report.ok(Check::FilesDirectory, &of, found.told),
                Some(remedy) => report.fault(Check::FilesDirectory, &of, found.told, remedy),
            }
        }
    }
}
