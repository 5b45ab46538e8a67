//! What a caller can branch on, and how a gRPC status becomes it.

use hearth_types::ErrorKind;
use tonic::{Code, Status};

/// Text that begins every error of an etcd-compatible server.
const ETCD_PREFIX: &str = "etcdserver: ";

/// Why a call to Chainfire failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration names no endpoint or an unusable one.
    #[error("chainfire endpoint `{endpoint}` cannot be used: {reason}; expected `host:port`")]
    Endpoint {
        /// The endpoint as configured.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The members that answered have no leader (election under way, or no quorum). Nothing was applied.
    #[error("chainfire has no leader at the moment; it needs a majority of its members")]
    NoLeader,
    /// No endpoint could be reached, or all refused. Nothing was applied.
    #[error("no chainfire endpoint answers: {detail}")]
    Unavailable {
        /// What the last endpoint tried said.
        detail: String,
    },
    /// The revision asked for is no longer stored.
    #[error("the requested revision has been compacted")]
    Compacted,
    /// The identity of this client may not touch one of the keys.
    #[error("chainfire refuses this identity access to the key: permission denied")]
    PermissionDenied,
    /// The lease does not exist (any more).
    #[error("the lease does not exist (any more)")]
    LeaseNotFound,
    /// A read got no answer before its deadline.
    #[error("chainfire did not answer within the deadline")]
    Timeout,
    /// A write was sent and its answer was lost: it may or may not have been applied. Read before repeating it.
    #[error("the outcome of the write is unknown: {detail}")]
    UnknownOutcome {
        /// What broke.
        detail: String,
    },
    /// Any other refusal, as the server worded it.
    #[error("{message}")]
    Etcd {
        /// gRPC code.
        code: Code,
        /// The server's text, such as `etcdserver: duplicate key given in txn request`.
        message: String,
    },
}

impl Error {
    /// The closed kind, for HTTP and gRPC replies of the calling service.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Endpoint { .. } => ErrorKind::InvalidArgument,
            Error::NoLeader | Error::Unavailable { .. } | Error::UnknownOutcome { .. } => {
                ErrorKind::Unavailable
            }
            Error::Timeout => ErrorKind::DeadlineExceeded,
            Error::Compacted => ErrorKind::FailedPrecondition,
            Error::PermissionDenied => ErrorKind::PermissionDenied,
            Error::LeaseNotFound => ErrorKind::NotFound,
            Error::Etcd { code, .. } => match code {
                Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidArgument,
                Code::NotFound => ErrorKind::NotFound,
                Code::FailedPrecondition => ErrorKind::FailedPrecondition,
                Code::ResourceExhausted => ErrorKind::ResourceExhausted,
                Code::Unavailable => ErrorKind::Unavailable,
                Code::Unauthenticated => ErrorKind::Unauthenticated,
                Code::PermissionDenied => ErrorKind::PermissionDenied,
                Code::DataLoss => ErrorKind::DataLoss,
                Code::Unimplemented => ErrorKind::Unimplemented,
                _ => ErrorKind::Internal,
            },
        }
    }

    /// Whether the same call may be repeated at once without harm and may succeed then.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::NoLeader | Error::Unavailable { .. } | Error::Timeout)
    }
}

/// What a failed attempt says about going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Provably not applied: any call may be repeated on another endpoint.
    NotApplied(Error),
    /// Perhaps applied: only reads may be repeated.
    Unknown(String),
    /// The server's last word.
    Final(Error),
}

/// Judges the status of a failed attempt.
pub(crate) fn judge(status: &Status) -> Attempt {
    let message = status.message();
    if never_sent(status) {
        return Attempt::NotApplied(Error::Unavailable {
            detail: message.to_owned(),
        });
    }
    match message.strip_prefix(ETCD_PREFIX) {
        Some("no leader" | "not leader") => return Attempt::NotApplied(Error::NoLeader),
        // Refused at the door, before anything was proposed.
        Some("too many requests" | "not capable" | "rpc not supported for learner") => {
            return Attempt::NotApplied(Error::Unavailable {
                detail: message.to_owned(),
            });
        }
        Some("mvcc: required revision has been compacted") => return Attempt::Final(Error::Compacted),
        Some("requested lease not found") => return Attempt::Final(Error::LeaseNotFound),
        Some("permission denied") => return Attempt::Final(Error::PermissionDenied),
        _ => {}
    }
    match status.code() {
        Code::PermissionDenied => Attempt::Final(Error::PermissionDenied),
        // The stream or connection broke, or the server gave up waiting: the write may be in the log.
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown | Code::Internal
            if !message.starts_with(ETCD_PREFIX) || status.code() == Code::Unavailable =>
        {
            Attempt::Unknown(message.to_owned())
        }
        code => Attempt::Final(Error::Etcd {
            code,
            message: message.to_owned(),
        }),
    }
}

/// Whether the request never left this process: the connection could not be made.
fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_judged_by_code_and_text() {
        let judged = |code, text: &str| judge(&Status::new(code, text));
        assert_eq!(
            judged(Code::Unavailable, "etcdserver: no leader"),
            Attempt::NotApplied(Error::NoLeader)
        );
        assert!(matches!(
            judged(Code::Unavailable, "etcdserver: request timed out"),
            Attempt::Unknown(_)
        ));
        assert!(matches!(
            judged(Code::Unavailable, "connection reset"),
            Attempt::Unknown(_)
        ));
        assert!(matches!(
            judged(Code::Unknown, "transport error"),
            Attempt::Unknown(_)
        ));
        assert_eq!(
            judged(
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted"
            ),
            Attempt::Final(Error::Compacted)
        );
        assert_eq!(
            judged(Code::NotFound, "etcdserver: requested lease not found"),
            Attempt::Final(Error::LeaseNotFound)
        );
        assert_eq!(
            judged(Code::PermissionDenied, "etcdserver: permission denied"),
            Attempt::Final(Error::PermissionDenied)
        );
        assert!(matches!(
            judged(
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request"
            ),
            Attempt::Final(Error::Etcd {
                code: Code::InvalidArgument,
                ..
            })
        ));
    }

    #[test]
    fn a_refused_connection_is_never_sent() {
        let refused = tonic::ConnectError("connection refused".into());
        let status = Status::from_error(Box::new(refused));
        assert!(matches!(
            judge(&status),
            Attempt::NotApplied(Error::Unavailable { .. })
        ));
    }
}
