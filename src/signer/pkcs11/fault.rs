//! What goes wrong between the gateway and a token, sorted by what can be done about it; the one place that
//! translates the module's errors. They keep the function and its return code, since codes are what vendors
//! ask for, but nothing decides by a code save that a refused PIN is never tried again.

use cryptoki::{
    context::Function,
    error::{Error, RvError},
};

use crate::signer::{SignError, provision::ProvisionError};

/// Why a token or one of its keys did not do its part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Module, token or session failed: the ladder of recovery may help.
    #[error("{0}")]
    Device(String),
    /// The token refuses the PIN. Another try could lock it.
    #[error("the token refuses the PIN ({0}); it is not tried again")]
    Pin(String),
    /// A login came to an end that does not say whether the PIN was taken. The token may have counted it.
    #[error("a login came to no known end ({0}); the token may have counted it as a wrong PIN")]
    Login(String),
    /// The token is there and has no such key.
    #[error("the token holds no private RSA key that `{0}` names")]
    Missing(String),
    /// The key is there and must not be used.
    #[error("{0}")]
    Unfit(String),
    /// Its session has been inside the module for too long. Others may fare better.
    #[error("{0}")]
    Stuck(String),
    /// The job came too late to be begun.
    #[error("the deadline had passed before a session was free")]
    Late,
    /// What is to be made is there already.
    #[error("`{0}` exists already")]
    Exists(String),
    /// What is asked for cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        use RvError::{
            ArgumentsBad, CryptokiNotInitialized, DataLenRange, DeviceError, DeviceMemory, DeviceRemoved,
            FunctionCanceled, HostMemory, PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked, SessionClosed,
            SessionCount, SessionHandleInvalid, SlotIdInvalid, TokenNotPresent, TokenNotRecognized,
            UserPinNotInitialized,
        };
        match error {
            Error::Pkcs11(code, function) => {
                let text = format!("C_{function:?}: {code:?}");
                match code {
                    // YubiHSM says so of a PIN that is too short to be one.
                    ArgumentsBad if matches!(function, Function::Login) => Self::Pin(text),
                    // It is what it was given that is too long, and nothing is wrong with the token.
                    DataLenRange if matches!(function, Function::SignInit | Function::Sign) => {
                        Self::Invalid(format!("it signs nothing of this length ({text})"))
                    }
                    // What is wrong is not the PIN, as far as any code can be trusted.
                    CryptokiNotInitialized
                    | DeviceError
                    | DeviceMemory
                    | DeviceRemoved
                    | FunctionCanceled
                    | HostMemory
                    | SessionClosed
                    | SessionCount
                    | SessionHandleInvalid
                    | SlotIdInvalid
                    | TokenNotPresent
                    | TokenNotRecognized
                    | UserPinNotInitialized => Self::Device(text),
                    PinIncorrect | PinInvalid | PinLenRange | PinExpired | PinLocked => Self::Pin(text),
                    _ if matches!(function, Function::Login) => Self::Login(text),
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
            Fault::Device(_) | Fault::Stuck(_) | Fault::Login(_) => Self::Lost(text),
            Fault::Late => Self::TimedOut,
            Fault::Pin(_) | Fault::Missing(_) | Fault::Exists(_) => Self::Unavailable(text),
            Fault::Unfit(_) | Fault::Invalid(_) => Self::Unfit(text),
        }
    }
}

impl From<Fault> for ProvisionError {
    fn from(fault: Fault) -> Self {
        let text = fault.to_string();
        match fault {
            Fault::Pin(_) => Self::Pin(text),
            Fault::Device(_) | Fault::Stuck(_) | Fault::Late | Fault::Login(_) => Self::Device(text),
            Fault::Missing(locator) => Self::Missing(locator),
            Fault::Unfit(_) => Self::Unfit(text),
            Fault::Exists(name) => Self::Exists(name),
            Fault::Invalid(_) => Self::Invalid(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(code: RvError) -> Fault {
        Fault::from(Error::Pkcs11(code, Function::Login))
    }

    /// Most of what a login fails with must not be tried again without need; what says plainly that the PIN was not
    /// looked at may be.
    #[test]
    fn a_login_says_whether_the_pin_was_to_blame() {
        for code in [RvError::PinIncorrect, RvError::PinInvalid, RvError::PinLenRange, RvError::PinExpired] {
            assert!(matches!(login(code), Fault::Pin(_)), "{code:?}");
        }
        assert!(matches!(login(RvError::PinLocked), Fault::Pin(_)));
        assert!(matches!(login(RvError::ArgumentsBad), Fault::Pin(_)), "a PIN too short to be one");
        for code in [RvError::SessionCount, RvError::UserPinNotInitialized, RvError::DeviceRemoved] {
            assert!(matches!(login(code), Fault::Device(_)), "{code:?}");
        }
        for code in [RvError::GeneralError, RvError::FunctionFailed, RvError::VendorDefined(0x8000_0001)] {
            assert!(matches!(login(code), Fault::Login(_)), "{code:?}");
        }
        let signing = Fault::from(Error::Pkcs11(RvError::GeneralError, Function::Sign));
        assert_eq!(signing, Fault::Device("C_Sign: GeneralError".to_owned()), "no login at all");
    }

    #[test]
    fn what_is_too_long_for_a_token_is_not_the_tokens_fault() {
        for function in [Function::SignInit, Function::Sign] {
            let fault = Fault::from(Error::Pkcs11(RvError::DataLenRange, function));
            assert!(matches!(SignError::from(fault), SignError::Unfit(why) if why.contains("DataLenRange")));
        }
        assert!(matches!(login(RvError::DataLenRange), Fault::Login(_)));
    }
}
