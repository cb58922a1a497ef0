//! What goes wrong between the gateway and a token, sorted by what can be done about it; the one place that
//! translates the module's errors. They keep the function and its return code, since codes are what vendors
//! ask for, but nothing decides by a code save that a refused PIN is never tried again.

use cryptoki::error::{Error, RvError};

use crate::signer::SignError;

/// Why a token or one of its keys did not do its part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Module, token or session failed: the ladder of recovery may help.
    #[error("{0}")]
    Device(String),
    /// The token refuses the PIN. Another try could lock it.
    #[error("the token refuses the PIN ({0}); it is not tried again")]
    Pin(String),
    /// The token is there and has no such key.
    #[error("the token holds no private RSA key that `{0}` names")]
    Missing(String),
    /// The key is there and must not be used.
    #[error("{0}")]
    Unfit(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked};
        match error {
            Error::Pkcs11(code, function) => {
                let text = format!("C_{function:?}: {code:?}");
                match code {
                    PinIncorrect | PinInvalid | PinLenRange | PinExpired | PinLocked => Self::Pin(text),
                    _ => Self::Device(text),
                }
            }
            other => Self::Device(format!("cryptoki: {other}")),
        }
    }
}

impl From<Fault> for SignError {
    fn from(fault: Fault) -> Self {
        let text = fault.to_string();
        match fault {
            Fault::Device(_) | Fault::Pin(_) | Fault::Missing(_) => Self::Unavailable(text),
            Fault::Unfit(_) => Self::Unfit(text),
        }
    }
}
