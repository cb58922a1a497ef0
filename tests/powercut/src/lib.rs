//! Notes what a process does to certain files, in the order in which it does it; see this crate's README.

use std::sync::OnceLock;

use libc::{c_char, c_int, c_void, mode_t, off_t, size_t, ssize_t};

mod notes;
mod paths;

use notes::{Noted, Notes};

/// The functions in whose place this library stands.
macro_rules! real {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        struct Real { $($name: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl Real {
            fn find() -> Self {
                Self { $($name: {
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: the name ends with a NUL, and the C library has a function of that name and kind.
                    unsafe {
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(
                            libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()),
                        )
                    }
                },)* }
            }
        }
    };
}

real! {
    open: fn(*const c_char, c_int, mode_t) -> c_int;
    open64: fn(*const c_char, c_int, mode_t) -> c_int;
    close: fn(c_int) -> c_int;
    write: fn(c_int, *const c_void, size_t) -> ssize_t;
    pwrite: fn(c_int, *const c_void, size_t, off_t) -> ssize_t;
    pwrite64: fn(c_int, *const c_void, size_t, off_t) -> ssize_t;
    ftruncate: fn(c_int, off_t) -> c_int;
    ftruncate64: fn(c_int, off_t) -> c_int;
    fsync: fn(c_int) -> c_int;
    fdatasync: fn(c_int) -> c_int;
    rename: fn(*const c_char, *const c_char) -> c_int;
    unlink: fn(*const c_char) -> c_int;
}

fn real() -> &'static Real {
    static REAL: OnceLock<Real> = OnceLock::new();
    REAL.get_or_init(Real::find)
}

/// Does what `open` does, and notes a file that was made, or cut to nothing.
unsafe fn opened(
    call: unsafe extern "C" fn(*const c_char, c_int, mode_t) -> c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: the caller's own arguments, to the function it meant; `mode` is only looked at where it was given.
    let plain = || unsafe { call(path, flags, mode) };
    let Some(notes) = Notes::of_process() else { return plain() };
    // SAFETY: the caller gives a C string.
    let Some(path) = (unsafe { paths::absolute(path) }) else { return plain() };
    if !notes.is_noted(&path) && !notes.is_parent(&path) {
        return plain();
    }
    let mut open = notes.open();
    let was_there = paths::exists(&path);
    let file = plain();
    if file >= 0 {
        if notes.is_noted(&path) && flags & libc::O_CREAT != 0 && !was_there {
            notes.note(Noted::Create, 0, &path, &[]);
        }
        if notes.is_noted(&path) && flags & libc::O_TRUNC != 0 && was_there {
            notes.note(Noted::Truncate, 0, &path, &[]);
        }
        open.insert(file, path);
    }
    file
}

/// Does what `call` does, and has `note` tell of it where it went well and the file is noted.
fn on_file<T: PartialOrd + From<i8>>(file: c_int, call: impl FnOnce() -> T, note: impl FnOnce(&Notes, &[u8], &T)) -> T {
    let Some(notes) = Notes::of_process() else { return call() };
    let open = notes.open();
    let Some(path) = open.get(&file).filter(|_| notes.keeps()) else {
        // Others must not wait for this one.
        drop(open);
        return call();
    };
    let done = call();
    if done >= T::from(0) {
        note(notes, path, &done);
    }
    done
}

/// Whether a write to this file finds the disk full; `errno` is set then.
fn is_full(file: c_int) -> bool {
    let Some(notes) = Notes::of_process() else { return false };
    if !notes.is_full() {
        return false;
    }
    let is_full = notes.open().get(&file).is_some_and(|path| notes.is_noted(path));
    if is_full {
        // SAFETY: this thread's own `errno`.
        unsafe { *libc::__errno_location() = libc::ENOSPC };
    }
    is_full
}

/// Waits after a synchronisation of a noted file, and holds nobody up meanwhile.
fn waited(file: c_int, done: c_int) -> c_int {
    let Some(notes) = Notes::of_process() else { return done };
    let is_noted = notes.open().contains_key(&file);
    if is_noted {
        notes.wait();
    }
    done
}

fn at(offset: off_t) -> u64 {
    u64::try_from(offset).unwrap_or_default()
}

/// The bytes that were written.
///
/// # Safety
/// `bytes` must hold as many as `count` says.
unsafe fn written<'a>(bytes: *const c_void, count: ssize_t) -> &'a [u8] {
    // SAFETY: the caller's promise, and the kernel has just read them.
    unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), usize::try_from(count).unwrap_or_default()) }
}

fn synced(notes: &Notes, path: &[u8]) {
    notes.note(if notes.is_noted(path) { Noted::Sync } else { Noted::SyncDirectory }, 0, path, &[]);
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { opened(real().open, path, flags, mode) }
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { opened(real().open64, path, flags, mode) }
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(file: c_int) -> c_int {
    if let Some(notes) = Notes::of_process() {
        notes.open().remove(&file);
    }
    // SAFETY: the caller's arguments.
    unsafe { (real().close)(file) }
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, bytes: *const c_void, count: size_t) -> ssize_t {
    if is_full(file) {
        return -1;
    }
    on_file(
        file,
        // SAFETY: the caller's arguments.
        || unsafe { (real().write)(file, bytes, count) },
        |notes, path, done| {
            // SAFETY: a file that is open; where it stands after the write.
            let after = unsafe { libc::lseek(file, 0, libc::SEEK_CUR) };
            // SAFETY: so many were written from there.
            let data = unsafe { written(bytes, *done) };
            notes.note(Noted::Write, at(after).saturating_sub(data.len() as u64), path, data);
        },
    )
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(file: c_int, bytes: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    if is_full(file) {
        return -1;
    }
    on_file(
        file,
        // SAFETY: the caller's arguments.
        || unsafe { (real().pwrite)(file, bytes, count, offset) },
        // SAFETY: so many were written from there.
        |notes, path, done| notes.note(Noted::Write, at(offset), path, unsafe { written(bytes, *done) }),
    )
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(file: c_int, bytes: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    if is_full(file) {
        return -1;
    }
    on_file(
        file,
        // SAFETY: the caller's arguments.
        || unsafe { (real().pwrite64)(file, bytes, count, offset) },
        // SAFETY: so many were written from there.
        |notes, path, done| notes.note(Noted::Write, at(offset), path, unsafe { written(bytes, *done) }),
    )
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate(file: c_int, length: off_t) -> c_int {
    // SAFETY: the caller's arguments.
    let call = || unsafe { (real().ftruncate)(file, length) };
    on_file(file, call, |notes, path, _| notes.note(Noted::Truncate, at(length), path, &[]))
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(file: c_int, length: off_t) -> c_int {
    // SAFETY: the caller's arguments.
    let call = || unsafe { (real().ftruncate64)(file, length) };
    on_file(file, call, |notes, path, _| notes.note(Noted::Truncate, at(length), path, &[]))
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(file: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    let done = on_file(file, || unsafe { (real().fsync)(file) }, |notes, path, _| synced(notes, path));
    waited(file, done)
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(file: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    let done = on_file(file, || unsafe { (real().fdatasync)(file) }, |notes, path, _| synced(notes, path));
    waited(file, done)
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's arguments.
    let plain = || unsafe { (real().rename)(from, to) };
    let Some(notes) = Notes::of_process() else { return plain() };
    // SAFETY: the caller gives C strings.
    let (Some(from), Some(to)) = (unsafe { (paths::absolute(from), paths::absolute(to)) }) else { return plain() };
    let mut open = notes.open();
    let done = plain();
    if done == 0 && (notes.is_noted(&from) || notes.is_noted(&to)) {
        notes.note(Noted::Rename, 0, &from, &to);
        for path in open.values_mut().filter(|path| **path == from) {
            path.clone_from(&to);
        }
    }
    done
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's arguments.
    let plain = || unsafe { (real().unlink)(path) };
    let Some(notes) = Notes::of_process() else { return plain() };
    // SAFETY: the caller gives a C string.
    let Some(path) = (unsafe { paths::absolute(path) }) else { return plain() };
    let _open = notes.open();
    let done = plain();
    if done == 0 && notes.is_noted(&path) {
        notes.note(Noted::Unlink, 0, &path, &[]);
    }
    done
}
