//! Where the Chainfire members are. Other services embed this as their `[chainfire_client]` table.

use serde::{Deserialize, Serialize};

/// Addresses of the Chainfire members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// `host:port` of each member's client port. One is enough to work; all of them survive a lost member.
    pub endpoints: Vec<String>,
}

impl ClientConfig {
    /// A configuration with these endpoints.
    pub fn new<I, S>(endpoints: I) -> ClientConfig
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        ClientConfig {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
        }
    }
}
