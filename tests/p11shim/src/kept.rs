//! Signatures that outlive the process: what `cache` has made is added to the file of `P11SHIM_SIGNATURES`, and what lies there is
//! known from the start. So a device can answer with signatures that were made before the load that is measured.
//!
//! A key's handle is good in its own process alone, so that the file is for one key.

use std::{
    collections::HashMap,
    env,
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    sync::{Mutex, OnceLock, PoisonError},
};

use crate::memory::Fingerprint;

struct Kept {
    known: HashMap<Fingerprint, Vec<u8>>,
    file: Mutex<File>,
}

fn kept() -> Option<&'static Kept> {
    static KEPT: OnceLock<Option<Kept>> = OnceLock::new();
    let open = || {
        let path = PathBuf::from(env::var_os("P11SHIM_SIGNATURES")?);
        let known = entries(&fs::read(&path).unwrap_or_default());
        let file = File::options().create(true).append(true).open(path);
        let file = file.inspect_err(|fault| eprintln!("p11shim: P11SHIM_SIGNATURES: {fault}")).ok()?;
        Some(Kept { known, file: Mutex::new(file) })
    };
    KEPT.get_or_init(open).as_ref()
}

/// The signature over a message that an earlier process has made.
pub fn find(fingerprint: Fingerprint) -> Option<Vec<u8>> {
    kept()?.known.get(&fingerprint).cloned()
}

/// Keeps a signature for the processes that come after this one.
pub fn add(fingerprint: Fingerprint, signature: &[u8]) {
    let Some(kept) = kept() else { return };
    if let Some(entry) = entry(fingerprint, signature) {
        // What could not be written is made anew.
        let _written = kept.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&entry);
    }
}

fn entry(Fingerprint(one, two): Fingerprint, signature: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(signature.len()).ok()?;
    Some([&one.to_le_bytes()[..], &two.to_le_bytes(), &length.to_le_bytes(), signature].concat())
}

/// All whole entries.
fn entries(mut bytes: &[u8]) -> HashMap<Fingerprint, Vec<u8>> {
    let mut known = HashMap::new();
    while let Some((one, rest)) = bytes.split_first_chunk()
        && let Some((two, rest)) = rest.split_first_chunk()
        && let Some((length, rest)) = rest.split_first_chunk()
        && let Some((signature, rest)) = rest.split_at_checked(u16::from_le_bytes(*length).into())
    {
        known.insert(Fingerprint(u64::from_le_bytes(*one), u64::from_le_bytes(*two)), signature.to_vec());
        bytes = rest;
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_half_entry_is_none() {
        let (first, second) = (Fingerprint(1, 2), Fingerprint(3, 4));
        let bytes = [entry(first, b"over a").unwrap(), entry(second, b"over b").unwrap()].concat();
        let read = entries(&bytes);
        assert_eq!((read.len(), &read[&first][..], &read[&second][..]), (2, &b"over a"[..], &b"over b"[..]));
        assert_eq!(entries(&bytes[..bytes.len() - 1]).len(), 1);
        assert!(entries(&bytes[..10]).is_empty());
    }
}
