//! The one PKCS#11 module of a host process. It is loaded and initialised once and left once: a module that must
//! start anew gets a new process, since initialising one again under threads of its own crashes too many of them.

use std::{fs, path::Path};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
};

use super::super::fault::Fault;

/// Loads the module at `path` and initialises it.
pub(super) fn enter(path: &Path) -> Result<Pkcs11, Fault> {
    let refuse =
        |why: &dyn std::fmt::Display| Fault::Device(format!("cannot load the module `{}`: {why}", path.display()));
    let canonical = fs::canonicalize(path).map_err(|error| refuse(&error))?;
    let pkcs11 = Pkcs11::new(&canonical).map_err(|error| refuse(&error))?;
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(pkcs11),
        Err(error) => Err(uninitialised(path, error)),
    }
}

fn uninitialised(path: &Path, error: Error) -> Fault {
    let hint = match error {
        // SoftHSM says no more than this when SOFTHSM2_CONF or its token directory cannot be read.
        Error::Pkcs11(RvError::GeneralError, _) => "; can it read its own configuration and token directory?",
        _ => "",
    };
    Fault::Device(format!("cannot initialise the module `{}`: {}{hint}", path.display(), Fault::from(error)))
}
