//! What a file needs beside its own synchronisation to be there after a power cut: its name, in its folder. And how much room there
//! is beside it, and whether it can be written there at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::StatVfsMountFlags;

/// The folder that a file's name stands in.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes what was done to the names in `path`'s folder durable: files made, renamed and removed.
///
/// # Errors
/// Where the folder cannot be opened or synchronised.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// How many bytes are free for this process on the volume of `path`'s folder.
///
/// # Errors
/// Where the file system does not tell.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let told = rustix::fs::statvfs(folder_of(path))?;
    Ok(told.f_bavail.saturating_mul(told.f_frsize))
}

/// Whether nobody can write by this path, whatever its mode: what it is on is mounted read-only here.
#[must_use]
pub fn is_read_only(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|told| told.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Puts a file of these bytes at `path`, in one piece or not at all, durable when this returns.
///
/// # Errors
/// Where it cannot be written. What was there before is there then.
pub fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put_with(path, bytes, 0o666)
}

/// The same for nobody else to read.
///
/// # Errors
/// As there.
pub fn put_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put_with(path, bytes, 0o600)
}

fn put_with(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Of this process alone, so that two who write the same file do not write into one another.
    let new = path.with_added_extension(format!("{}.new", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_folder_of(path)
}
