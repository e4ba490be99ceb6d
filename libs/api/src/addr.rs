//! Where a service listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A service's address: `unix:/path/to.sock` or `tcp:host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ServiceAddr {
    /// A Unix socket on this host.
    Unix(PathBuf),
    /// `host:port`, TLS when not loopback.
    Tcp(String),
}

/// The text is neither `unix:PATH` nor `tcp:HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a service address: {0:?} (write unix:/path/to.sock or tcp:host:port)")]
pub struct ParseAddrError(String);

impl FromStr for ServiceAddr {
    type Err = ParseAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(ServiceAddr::Unix(PathBuf::from(path)));
        }
        match text.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':')) {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(ServiceAddr::Tcp(format!("{host}:{port}")))
            }
            _ => Err(ParseAddrError(text.to_owned())),
        }
    }
}

impl fmt::Display for ServiceAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            ServiceAddr::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl TryFrom<String> for ServiceAddr {
    type Error = ParseAddrError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ServiceAddr> for String {
    fn from(address: ServiceAddr) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_reject() {
        for text in ["unix:/run/a.sock", "tcp:127.0.0.1:80", "tcp:[::1]:80"] {
            assert_eq!(text.parse::<ServiceAddr>().map(|a| a.to_string()).as_deref(), Ok(text));
        }
        for bad in ["", "unix:", "tcp:", "tcp:host", "tcp::1", "tcp:h:99999", "/a"] {
            assert!(bad.parse::<ServiceAddr>().is_err(), "{bad:?} parsed");
        }
    }
}
