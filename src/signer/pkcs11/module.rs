//! PKCS#11 modules of this process. A module is loaded once and stays for ever, since unloading one under
//! running threads crashes. It is initialised as long as someone holds a [`Lease`]: the first in initialises,
//! the last out finalises. So nobody is ever inside a module that is being finalised, and a token that leaves
//! and enters again finds a fresh one, unless another token is at work in it and must not be disturbed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
};
use parking_lot::Mutex;

use super::fault::Fault;

static MODULES: Mutex<BTreeMap<PathBuf, &'static Module>> = Mutex::new(BTreeMap::new());

/// A loaded module.
pub(super) struct Module {
    path: PathBuf,
    pkcs11: Pkcs11,
    leases: Mutex<usize>,
}

impl Module {
    /// The module at `path`, loaded now if it was not yet.
    pub(super) fn load(path: &Path) -> Result<&'static Self, Fault> {
        let refuse =
            |why: &dyn std::fmt::Display| Fault::Device(format!("cannot load the module `{}`: {why}", path.display()));
        let canonical = fs::canonicalize(path).map_err(|error| refuse(&error))?;
        let mut modules = MODULES.lock();
        if let Some(module) = modules.get(&canonical) {
            return Ok(module);
        }
        let pkcs11 = Pkcs11::new(&canonical).map_err(|error| refuse(&error))?;
        let module: &'static Self =
            Box::leak(Box::new(Self { path: canonical.clone(), pkcs11, leases: Mutex::new(0) }));
        modules.insert(canonical, module);
        Ok(module)
    }

    /// Enters the module, and initialises it where nobody is in it.
    pub(super) fn enter(&'static self) -> Result<Lease, Fault> {
        let mut leases = self.leases.lock();
        if *leases == 0 {
            match self.pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
                Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
                Err(error) => return Err(self.uninitialised(error)),
            }
        }
        *leases += 1;
        Ok(Lease { module: self })
    }

    fn uninitialised(&self, error: Error) -> Fault {
        let hint = match error {
            // SoftHSM says no more than this when SOFTHSM2_CONF or its token directory cannot be read.
            Error::Pkcs11(RvError::GeneralError, _) => "; can it read its own configuration and token directory?",
            _ => "",
        };
        Fault::Device(format!("cannot initialise the module `{}`: {}{hint}", self.path.display(), Fault::from(error)))
    }
}

/// The right to be inside a module. Sessions borrow from it, so that none outlives it.
pub(super) struct Lease {
    module: &'static Module,
}

impl Lease {
    /// The module's functions.
    pub(super) fn pkcs11(&self) -> &Pkcs11 {
        &self.module.pkcs11
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = self.module.leases.lock();
        *leases -= 1;
        if *leases == 0
            && let Err(error) = self.module.pkcs11.clone().finalize()
        {
            let (module, why) = (self.module.path.display(), Fault::from(error));
            tracing::warn!(%module, %why, "the module did not finalise");
        }
    }
}
