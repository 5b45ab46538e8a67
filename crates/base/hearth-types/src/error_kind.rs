//! The closed set of error kinds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure a caller sees. Closed: services map their own errors to one of these, and
/// `hearth-service` maps each to a gRPC status and an HTTP status in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is wrong whatever the state of the system.
    InvalidArgument,
    /// It does not exist, or the caller may not know that it does.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// Somebody else changed it meanwhile; read again and retry.
    Conflict,
    /// The state of the system does not allow it now; retrying alone does not help.
    FailedPrecondition,
    /// No valid credential.
    Unauthenticated,
    /// The caller is known and may not.
    PermissionDenied,
    /// A quota, a limit or a disk is full.
    ResourceExhausted,
    /// A part is not reachable or not ready; retry with back-off.
    Unavailable,
    /// It took longer than the caller allowed; whether it happened is unknown.
    DeadlineExceeded,
    /// Stored data is damaged.
    DataLoss,
    /// A defect of ours.
    Internal,
    /// This server does not offer it.
    Unimplemented,
}

impl ErrorKind {
    /// Every kind, for tables that must be complete.
    pub const ALL: [Self; 13] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Conflict,
        Self::FailedPrecondition,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::DataLoss,
        Self::Internal,
        Self::Unimplemented,
    ];

    /// The name that stands in JSON bodies and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Conflict => "conflict",
            Self::FailedPrecondition => "failed_precondition",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::DataLoss => "data_loss",
            Self::Internal => "internal",
            Self::Unimplemented => "unimplemented",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_serde_agree() {
        for kind in ErrorKind::ALL {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<ErrorKind>(&json).unwrap(), kind);
        }
    }
}
