//! The status that a call was answered with, by the name that gRPC gives it.

use serde::{Deserialize, Serialize};

/// Defines the statuses with their names, of which there is one list.
macro_rules! statuses {
    ($($(#[$about:meta])* $status:ident = $number:literal $name:literal,)+) => {
        /// How a call ended, as gRPC has it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Status {
            $($(#[$about])* #[serde(rename = $name)] $status,)+
        }

        impl Status {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$status),+];

            /// Its canonical name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$status => $name,)+
                }
            }

            /// Its number on the wire.
            #[must_use]
            pub const fn number(self) -> i32 {
                match self {
                    $(Self::$status => $number,)+
                }
            }
        }
    };
}

statuses! {
    /// It was served.
    Ok = 0 "OK",
    /// The request cannot be read, or says what cannot be.
    InvalidArgument = 3 "INVALID_ARGUMENT",
    /// Its time was over.
    DeadlineExceeded = 4 "DEADLINE_EXCEEDED",
    /// There is no such thing, or not for this caller.
    NotFound = 5 "NOT_FOUND",
    /// There is another one already.
    AlreadyExists = 6 "ALREADY_EXISTS",
    /// The caller may not.
    PermissionDenied = 7 "PERMISSION_DENIED",
    /// A quota is spent, or there is no place.
    ResourceExhausted = 8 "RESOURCE_EXHAUSTED",
    /// Not as things stand.
    FailedPrecondition = 9 "FAILED_PRECONDITION",
    /// A fault of the gateway.
    Internal = 13 "INTERNAL",
    /// Not at the moment.
    Unavailable = 14 "UNAVAILABLE",
    /// Nobody knows who calls.
    Unauthenticated = 16 "UNAUTHENTICATED",
}
