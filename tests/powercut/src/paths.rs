//! Paths as the kernel would read them, without calls that this library stands in the place of.

use std::ffi::CStr;

use libc::c_char;

/// The path from the root on; nothing where the directory of the process is not known.
///
/// # Safety
/// `path` must be a C string.
pub(crate) unsafe fn absolute(path: *const c_char) -> Option<Vec<u8>> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    if path.starts_with(b"/") {
        return Some(path.strip_suffix(b"/").filter(|path| !path.is_empty()).unwrap_or(path).to_vec());
    }
    let mut here = vec![0_u8; 4096];
    // SAFETY: as many bytes as are told.
    if unsafe { libc::getcwd(here.as_mut_ptr().cast(), here.len()) }.is_null() {
        return None;
    }
    let here = CStr::from_bytes_until_nul(&here).ok()?.to_bytes();
    Some(if path == b"." { here.to_vec() } else { [here, b"/", path].concat() })
}

/// Whether there is something of that name.
pub(crate) fn exists(path: &[u8]) -> bool {
    let path = [path, b"\0"].concat();
    // SAFETY: it ends with a NUL.
    unsafe { libc::access(path.as_ptr().cast(), libc::F_OK) == 0 }
}
