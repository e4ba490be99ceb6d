//! Where a service listens, and how it is reached.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A service's address: `unix:/path/to.sock`, `tcp:host:port` or `tls:host:port/key`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ServiceAddr {
    /// A Unix socket on this host.
    Unix(PathBuf),
    /// `host:port` on loopback, not encrypted.
    Tcp(String),
    /// `host:port` on any host, encrypted; whoever answers there must hold this key.
    Tls(String, KeyPin),
}

/// Where a service is to listen: `unix:/path/to.sock`, `tcp:host:port` or `tls:host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port` on loopback, not encrypted.
    Tcp(String),
    /// `host:port`, encrypted.
    Tls(String),
}

/// SHA-256 of a service's public key (its `SubjectPublicKeyInfo`, DER): 64 hexadecimal digits.
///
/// It is a part of the address, so that who knows where a service is also knows who answers there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyPin([u8; 32]);

/// The text is no service's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddrError {
    /// Of no known kind.
    #[error(
        "not a service address: {0:?} (write unix:/path/to.sock, tcp:host:port, or tls:host:port/key as the service printed it)"
    )]
    Malformed(String),
    /// A TLS address without the key.
    #[error(
        "{0:?} does not say by which key to know the service: write tls:host:port/key, with the 64 digits that the service printed when it started"
    )]
    NoKey(String),
}

/// The text is no address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an address to listen on: {0:?} (write unix:/path/to.sock, tcp:host:port or tls:host:port)")]
pub struct ParseListenError(String);

impl FromStr for ServiceAddr {
    type Err = ParseAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ParseAddrError::Malformed(text.to_owned());
        if let Some(rest) = text.strip_prefix("tls:") {
            let Some((at, pin)) = rest.rsplit_once('/') else {
                host_port(rest).ok_or_else(malformed)?;
                return Err(ParseAddrError::NoKey(text.to_owned()));
            };
            let at = host_port(at).ok_or_else(malformed)?;
            let pin = KeyPin::parse(pin).ok_or_else(|| ParseAddrError::NoKey(text.to_owned()))?;
            return Ok(ServiceAddr::Tls(at, pin));
        }
        match text.parse() {
            Ok(ListenAddr::Unix(path)) => Ok(ServiceAddr::Unix(path)),
            Ok(ListenAddr::Tcp(at)) => Ok(ServiceAddr::Tcp(at)),
            Ok(ListenAddr::Tls(_)) | Err(_) => Err(malformed()),
        }
    }
}

impl FromStr for ListenAddr {
    type Err = ParseListenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(ListenAddr::Unix(PathBuf::from(path)));
        }
        let listen = match text.split_once(':') {
            Some(("tcp", rest)) => host_port(rest).map(ListenAddr::Tcp),
            Some(("tls", rest)) => host_port(rest).map(ListenAddr::Tls),
            _ => None,
        };
        listen.ok_or_else(|| ParseListenError(text.to_owned()))
    }
}

/// `text`, if it is a host and a port.
fn host_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    (!host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()).then(|| text.to_owned())
}

impl fmt::Display for ServiceAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            ServiceAddr::Tcp(at) => write!(f, "tcp:{at}"),
            ServiceAddr::Tls(at, pin) => write!(f, "tls:{at}/{pin}"),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddr::Tcp(at) => write!(f, "tcp:{at}"),
            ListenAddr::Tls(at) => write!(f, "tls:{at}"),
        }
    }
}

impl From<ServiceAddr> for ListenAddr {
    fn from(address: ServiceAddr) -> Self {
        match address {
            ServiceAddr::Unix(path) => ListenAddr::Unix(path),
            ServiceAddr::Tcp(at) => ListenAddr::Tcp(at),
            ServiceAddr::Tls(at, _) => ListenAddr::Tls(at),
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

impl KeyPin {
    /// From the hash itself.
    pub fn new(sha256: [u8; 32]) -> Self {
        KeyPin(sha256)
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut sha256 = [0; 32];
        for (byte, pair) in sha256.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| (pair[at] as char).to_digit(16);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(KeyPin(sha256))
    }
}

impl fmt::Display for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPin({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddee0f";

    #[test]
    fn addresses_round_trip_and_reject() {
        let tls = format!("tls:[2001:db8::1]:80/{KEY}");
        for text in ["unix:/run/a.sock", "tcp:127.0.0.1:80", "tcp:[::1]:80", &tls] {
            assert_eq!(text.parse::<ServiceAddr>().map(|a| a.to_string()).as_deref(), Ok(text));
        }
        let bad_hosts = [format!("tls:h/{KEY}"), format!("tls::1/{KEY}"), format!("tls:a/b:1/{KEY}")];
        let bad = ["", "unix:", "tcp:", "tcp:host", "tcp::1", "tcp:h:99999", "/a", "tls:h"];
        for bad in bad.into_iter().chain(bad_hosts.iter().map(String::as_str)) {
            assert_eq!(bad.parse::<ServiceAddr>(), Err(ParseAddrError::Malformed(bad.to_owned())));
        }
    }

    #[test]
    fn a_tls_address_is_whole_only_with_a_key() {
        let short = format!("tls:h:1/{}", &KEY[1..]);
        let no_digit = format!("tls:h:1/{}g", &KEY[1..]);
        let long = format!("tls:h:1/{KEY}0");
        for text in ["tls:h:1", "tls:h:1/", &short, &no_digit, &long] {
            assert_eq!(text.parse::<ServiceAddr>(), Err(ParseAddrError::NoKey(text.to_owned())));
        }
        let upper = format!("tls:h:1/{}", KEY.to_uppercase());
        assert_eq!(upper.parse::<ServiceAddr>(), format!("tls:h:1/{KEY}").parse());
    }

    #[test]
    fn one_listens_without_naming_a_key() {
        for text in ["unix:/run/a.sock", "tcp:127.0.0.1:80", "tls:0.0.0.0:80", "tls:[::]:0"] {
            assert_eq!(text.parse::<ListenAddr>().map(|a| a.to_string()).as_deref(), Ok(text));
        }
        let whole: ServiceAddr = format!("tls:h:1/{KEY}").parse().expect("an address");
        assert_eq!(ListenAddr::from(whole), ListenAddr::Tls("h:1".to_owned()));
        for bad in ["", "tls:", "tls:h", &format!("tls:h:1/{KEY}"), "udp:h:1"] {
            assert!(bad.parse::<ListenAddr>().is_err(), "{bad:?} parsed");
        }
    }
}
