//! `quotesign pkcs11-host`: the process that loads a PKCS#11 module for the gateway that started it.

use tokio::signal::unix::{SignalKind, signal};

use crate::signer::pkcs11::host;

use super::{Failure, serve::refuse_core_dumps};

/// Serves its gateway. A service manager may signal every process of the service; this one ends when its gateway has
/// drained and says so, or is gone.
pub(super) fn run() -> Result<(), Failure> {
    refuse_core_dumps()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Failure::failed)?;
    let _entered = runtime.enter();
    let listen = |kind| signal(kind).map_err(Failure::failed);
    let _ignored = [listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?, listen(SignalKind::hangup())?];
    let alone = "the gateway starts this by itself, with sockets of its own";
    host::run().map_err(|fault| Failure::unfit(format!("{fault}; {alone}")))
}
