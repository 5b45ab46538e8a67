//! Renews a server's certificate at Aegis, through its current one.
//!
//! The private key is made here and never leaves the machine. Both files are written beside the old ones first, then
//! the key is renamed into place, then the certificate; [`recover`] finishes what a crash between the two left.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hearth_service::config::TlsConfig;
use hearth_service::pki::{PkiError, signing_request, write_private};
use hearth_service::tasks::{Kind, Tasks, chain};
use hearth_service::tls::Identity;

use crate::wire::RenewRequest;
use crate::{AegisClient, ClientError};

/// How often the certificate's age is looked at.
const PERIOD: Duration = Duration::from_secs(300);
/// Pause after a failed renewal.
const RETRY: Duration = Duration::from_secs(60);

/// Why a renewal failed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// Aegis did not give a certificate.
    #[error("Aegis did not renew the certificate")]
    Client(#[from] ClientError),
    /// The key or the files could not be made.
    #[error("the renewed certificate could not be put in place")]
    Pki(#[from] PkiError),
    /// A file could not be renamed.
    #[error("cannot rename `{path}`")]
    Rename {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Looks at the certificate from time to time and renews it when two thirds of its life are over. A failure is logged
/// and tried again: a third of the life is left for that.
pub fn spawn_renewer(identity: Identity, aegis_url: &str, tasks: &Tasks) {
    let url = aegis_url.to_owned();
    let stop = tasks.clone();
    tasks.spawn("certificate-renewer", Kind::Background, async move {
        tokio::select! {
            () = renew_forever(&identity, &url) => {}
            () = stop.stopping() => {}
        }
        Ok(())
    });
}

async fn renew_forever(identity: &Identity, url: &str) {
    loop {
        let pause = if is_due(identity.validity(), SystemTime::now()) {
            match renew(identity, url).await {
                Ok(()) => {
                    tracing::info!("the certificate was renewed");
                    PERIOD
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the certificate could not be renewed; retrying");
                    RETRY
                }
            }
        } else {
            PERIOD
        };
        tokio::time::sleep(pause).await;
    }
}

/// Whether two thirds of the life are over.
#[must_use]
pub fn is_due((not_before, not_after): (SystemTime, SystemTime), now: SystemTime) -> bool {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    now >= not_before + life * 2 / 3
}

/// Renews now.
///
/// # Errors
/// [`RenewError`]; the old files are as they were.
pub async fn renew(identity: &Identity, aegis_url: &str) -> Result<(), RenewError> {
    let client = AegisClient::with_identity(aegis_url, identity)?;
    let (key, csr) = signing_request(&identity.own().path)?;
    let answer = client.renew_certificate(&RenewRequest { csr }).await?;
    let files = identity.files();
    // The order lets `recover` tell by the names alone how far this came.
    write_private(&staged(&files.key), key.as_bytes())?;
    write_private(&staged(&files.cert), answer.certificate.as_bytes())?;
    rename(&staged(&files.key), &files.key)?;
    rename(&staged(&files.cert), &files.cert)
}

/// Finishes a renewal that a crash interrupted between its two renames. Call it before the identity is loaded.
///
/// # Errors
/// [`RenewError::Rename`].
pub fn recover(files: &TlsConfig) -> Result<(), RenewError> {
    let (cert, key) = (staged(&files.cert), staged(&files.key));
    match (cert.exists(), key.exists()) {
        // The key is in place already, the certificate is not.
        (true, false) => rename(&cert, &files.cert),
        // Nothing was put in place yet: the old pair is whole.
        (_, true) => {
            let _unused = std::fs::remove_file(&key);
            let _unused = std::fs::remove_file(&cert);
            Ok(())
        }
        (false, false) => Ok(()),
    }
}

fn staged(path: &Path) -> PathBuf {
    path.with_added_extension("next")
}

fn rename(from: &Path, to: &Path) -> Result<(), RenewError> {
    std::fs::rename(from, to).map_err(|source| RenewError::Rename {
        path: from.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_at_two_thirds() {
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        assert!(!is_due((at(0), at(300)), at(199)));
        assert!(is_due((at(0), at(300)), at(200)));
        assert!(is_due((at(300), at(0)), at(300)), "nonsense is renewed");
    }

    #[test]
    fn a_crash_at_any_point_leaves_a_pair_that_belongs_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = TlsConfig {
            ca: path("ca"),
            cert: path("cert"),
            key: path("key"),
        };
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
        // Staged in part or completely, nothing renamed: the old pair stays.
        for staged in [&["key.next"][..], &["key.next", "cert.next"]] {
            write("cert", "old");
            write("key", "old");
            staged.iter().for_each(|name| write(name, "new"));
            recover(&files).unwrap();
            assert_eq!((read("cert"), read("key")), ("old".to_owned(), "old".to_owned()));
            assert!(!path("key.next").exists() && !path("cert.next").exists());
        }
        // The key was renamed.
        write("key", "new");
        write("cert.next", "new");
        recover(&files).unwrap();
        assert_eq!((read("cert"), read("key")), ("new".to_owned(), "new".to_owned()));
        assert!(!path("cert.next").exists());
    }
}
