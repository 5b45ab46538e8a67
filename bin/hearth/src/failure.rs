//! What goes wrong, as people and scripts see it: a message, a hint, a request id, an exit code.

use std::fmt;
use std::process::ExitCode;

use hearth_types::ErrorKind;

/// A failure that the program itself found, with what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A failure of this kind.
pub(crate) fn fail(kind: ErrorKind, message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    let hint = Some(hint.into()).filter(|h| !h.is_empty());
    anyhow::Error::new(Failure {
        kind,
        message: message.into(),
        hint,
    })
}

/// Ctrl-C. What was asked of the servers goes on there.
#[derive(Debug)]
struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted; what was asked for already goes on in the background, and the same command again is safe")
    }
}

impl std::error::Error for Interrupted {}

pub(crate) fn interrupted() -> anyhow::Error {
    anyhow::Error::new(Interrupted)
}

/// The exit code of a kind. Documented in docs/guides/command-line.md.
pub(crate) const fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Internal | ErrorKind::Unimplemented | ErrorKind::DataLoss => 1,
        // 2 is clap's: the command line itself is wrong.
        ErrorKind::InvalidArgument => 3,
        ErrorKind::NotFound => 4,
        ErrorKind::Unauthenticated => 5,
        ErrorKind::PermissionDenied => 6,
        ErrorKind::AlreadyExists | ErrorKind::Conflict => 7,
        ErrorKind::FailedPrecondition => 8,
        ErrorKind::ResourceExhausted => 9,
        ErrorKind::Unavailable => 10,
        ErrorKind::DeadlineExceeded => 11,
    }
}

/// The kind of whatever lies at the bottom of the chain.
pub(crate) fn kind(error: &anyhow::Error) -> Option<ErrorKind> {
    error.chain().find_map(|cause| {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return Some(failure.kind);
        }
        if let Some(store) = cause.downcast_ref::<chainfire_client::Error>() {
            return Some(store.kind());
        }
        if let Some(client) = cause.downcast_ref::<plasmavmc_client::ClientError>() {
            return client.kind();
        }
        if let Some(client) = cause.downcast_ref::<flashdns_client::ClientError>() {
            return client.kind();
        }
        match cause.downcast_ref::<iam_client::ClientError>()? {
            iam_client::ClientError::Api { kind, .. } => Some(*kind),
            iam_client::ClientError::Unreachable { .. } => Some(ErrorKind::Unavailable),
            iam_client::ClientError::OAuth { .. } => Some(ErrorKind::Unauthenticated),
            iam_client::ClientError::DeviceExpired => Some(ErrorKind::DeadlineExceeded),
            _ => None,
        }
    })
}

/// Hint and request id, where there are any.
fn details(error: &anyhow::Error) -> (Option<String>, Option<String>) {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return (failure.hint.clone(), None);
        }
        // PlasmaVMC's message carries its hint already.
        if let Some(plasmavmc_client::ClientError::Api { detail, .. }) = cause.downcast_ref() {
            return (None, detail.request_id.clone());
        }
        if let Some(flashdns_client::ClientError::Api(detail)) = cause.downcast_ref() {
            return (detail.hint.clone(), detail.request_id.clone());
        }
        if let Some(iam_client::ClientError::Api { hint, request_id, .. }) = cause.downcast_ref() {
            return (hint.clone(), request_id.clone());
        }
    }
    (None, None)
}

/// Prints the failure to standard error and gives its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<Interrupted>().is_some() {
        eprintln!("\n{error}");
        return ExitCode::from(130);
    }
    eprintln!("error: {error:#}");
    let (hint, request_id) = details(error);
    let kind = kind(error);
    match (hint, kind) {
        (Some(hint), _) => eprintln!("hint: {hint}"),
        (None, Some(ErrorKind::Unauthenticated)) => eprintln!("hint: sign in with `hearth login`"),
        (None, Some(ErrorKind::Unavailable)) => {
            eprintln!("hint: `hearth status` shows what runs; `hearth up` starts what does not");
        }
        _ => {}
    }
    if let Some(id) = request_id {
        eprintln!("request id: {id}");
    }
    ExitCode::from(kind.map_or(1, exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_an_exit_code_that_is_not_success_nor_claps() {
        for kind in ErrorKind::ALL {
            assert!(!matches!(exit_code(kind), 0 | 2), "{kind:?}");
        }
    }

    #[test]
    fn the_kind_is_found_below_context() {
        let error = fail(ErrorKind::NotFound, "no such thing", "").context("reading it");
        assert_eq!(kind(&error), Some(ErrorKind::NotFound));
        assert_eq!(format!("{error:#}"), "reading it: no such thing");
    }
}
