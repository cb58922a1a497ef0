//! A bundle's files, read once into memory, and their digest. Nothing reads the directory again while the
//! bundle is checked, so that what was checked is what is used.

use std::{fs, io::Read, path::Path};

use crate::domain::PolicyDigest;

use super::{Files, Problem, seal::SEAL_FILE};

/// Holds the bundle's digest, and is written last.
pub const DIGEST_FILE: &str = "bundle.digest";
/// No file of a bundle is larger.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The files that every bundle has.
const REQUIRED: [&str; 4] = ["policy.toml", "authorize.cedar", "quotesign.cedarschema", "currencies.csv"];
/// The directories whose files belong to a bundle, with the ending each file has.
const FOLDERS: [(&str, &str); 2] = [("keys", ".jwk.json"), ("schemas", ".schema.json")];

/// Reads the files that make a bundle. What else lies in the directory (a README, hidden files) is no part of it.
///
/// # Errors
/// Everything that is missing or cannot be read, a line each.
pub fn read(dir: &Path) -> Result<Files, Vec<Problem>> {
    if let Err(fault) = fs::read_dir(dir) {
        return Err(vec![Problem(format!(" cannot be read: {fault}; give the directory of a policy bundle"))]);
    }
    let mut problems = Vec::new();
    let mut paths: Vec<String> = REQUIRED.map(str::to_owned).into();
    for (folder, ending) in FOLDERS {
        match names(&dir.join(folder)) {
            Ok(names) => paths.extend(names.into_iter().map(|name| format!("{folder}/{name}"))),
            Err(fault) => problems.push(Problem(format!("{folder}/: cannot be read: {fault}"))),
        }
        paths.retain(|path| {
            let fits = !path.starts_with(&format!("{folder}/")) || path.ends_with(ending);
            if !fits {
                problems.push(Problem(format!("{path}: does not belong there; files in {folder}/ end in `{ending}`")));
            }
            fits
        });
    }
    let mut files = Files::new();
    for path in paths {
        match read_file(&dir.join(&path)) {
            Ok(bytes) => {
                files.insert(path, bytes);
            }
            Err(fault) => problems.push(Problem(format!("{path}: {fault}"))),
        }
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|fault| format!("cannot be read: {fault}"))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|fault| format!("cannot be read: {fault}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err("is larger than 1 MiB".to_owned()) } else { Ok(bytes) }
}

fn names(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The text of `bundle.jws` in `dir`; nothing where there is none.
///
/// # Errors
/// Where there is one that cannot be read.
pub fn read_seal(dir: &Path) -> Result<Option<String>, Problem> {
    match fs::read_to_string(dir.join(SEAL_FILE)) {
        Ok(text) => Ok(Some(text)),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(fault) => Err(Problem(format!("{SEAL_FILE}: cannot be read: {fault}"))),
    }
}

/// SHA-256 of the [`manifest`].
#[must_use]
pub fn digest(files: &Files) -> PolicyDigest {
    PolicyDigest::of(manifest(files).as_bytes())
}

/// The text that `sha256sum` prints for the files in the order of their paths, so that the digest can be made again with
/// standard tools: `sha256sum $(… sorted paths …) | sha256sum`.
#[must_use]
pub fn manifest(files: &Files) -> String {
    let lines = files.iter().map(|(path, bytes)| format!("{}  {path}\n", PolicyDigest::of(bytes)));
    lines.collect::<Vec<_>>().concat()
}
