//! Asks the kernel whether its clock is synchronised, which no safe crate of those in use does. Nothing is set.

use std::io;

/// What the kernel says of its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelClock {
    /// Whether something disciplines it, such as an NTP daemon.
    pub is_synchronised: bool,
    /// The largest error that its discipline allows for, in microseconds.
    pub error_us_max: i64,
}

/// Asks by `adjtimex` with no mode, which any process may.
///
/// # Errors
/// Where the call is refused, as in some sandboxes.
pub fn ask() -> io::Result<KernelClock> {
    // SAFETY: every field of the struct is a plain integer, for which zero is a value.
    let mut told: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `told` outlives the call; its `modes` are 0, so that the kernel fills it in and changes nothing.
    let state = unsafe { libc::adjtimex(&raw mut told) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    let is_synchronised = state != libc::TIME_ERROR && told.status & libc::STA_UNSYNC == 0;
    Ok(KernelClock { is_synchronised, error_us_max: told.maxerror })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_or_refuses_and_a_synchronised_clock_has_a_bounded_error() {
        match ask() {
            // The kernel lets the bound grow to 16 s, and then no longer calls it synchronised.
            Ok(told) => assert!(!told.is_synchronised || told.error_us_max <= 16_000_000, "{told:?}"),
            Err(refused) => assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
