//! Configuration files: one TOML file per process, read once at start.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The `[service]` table that every configuration file begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Name of the process, for example `chainfire-1`; it labels logs and metrics.
    pub name: String,
    /// Folder for everything the process keeps. Made at start when it is missing.
    pub data_dir: PathBuf,
    /// Log filter in `tracing`'s syntax, for example `info` or `info,raft=warn`.
    #[serde(default = "default_log_level")]
    pub log_level: String,
    /// Seconds that running work gets to end after a stop was asked for.
    #[serde(default = "default_grace_s")]
    pub shutdown_grace_s: u64,
    /// Where the process has its certificate renewed: Aegis's URL. Without it the certificate ends one day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_certificate_at: Option<String>,
}

/// The `[tls]` table: files in PEM form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificates of the authorities that peers are verified against.
    pub ca: PathBuf,
    /// Our own certificate, leaf first.
    pub cert: PathBuf,
    /// Our private key (PKCS#8).
    pub key: PathBuf,
}

/// Why a configuration file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration file `{path}`; check that it exists and that this user may read it"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what the service expects.
    #[error("the configuration file `{path}` is not valid: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        message: String,
    },
}

fn default_log_level() -> String {
    "info".to_owned()
}

const fn default_grace_s() -> u64 {
    10
}

/// Reads a configuration file. Unknown keys are refused where the type says `deny_unknown_fields`, as all of ours do.
///
/// # Errors
/// [`ConfigError`] when the file cannot be read or does not fit `T`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        service: ServiceConfig,
    }

    fn parse(text: &str) -> Result<File, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, text).unwrap();
        load(&path)
    }

    #[test]
    fn defaults_stand_here() {
        let file = parse("[service]\nname = \"a\"\ndata_dir = \"/d\"\n").unwrap();
        assert_eq!(
            (file.service.log_level.as_str(), file.service.shutdown_grace_s),
            ("info", 10)
        );
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let error = parse("[service]\nname = \"a\"\ndata_dir = \"/d\"\ncolour = 1\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("colour") && error.contains("line 4"), "{error}");
    }
}
