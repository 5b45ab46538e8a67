//! Logging: one initialisation for every server.

use tracing_subscriber::EnvFilter;

use crate::config::ServiceConfig;

/// Sends logs to standard error, one line an event, filtered by `log_level`. A filter that does not parse falls back
/// to `info` and says so. A second call in one process changes nothing.
pub fn init(service: &ServiceConfig) {
    let (filter, complaint) = match EnvFilter::try_new(&service.log_level) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let installed = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(true)
        .try_init()
        .is_ok();
    if installed && let Some(error) = complaint {
        tracing::warn!(log_level = %service.log_level, %error, "log_level is not a valid filter; using `info`");
    }
}
