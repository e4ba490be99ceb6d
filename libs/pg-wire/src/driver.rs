//! Connection strings for a driver that speaks SQL, with all of libpq's `sslmode`s.

use tokio_postgres::config::{Config, Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{TlsMode, split_tls_parameters};
use crate::error::ConfigError;
use crate::tls::client_config;

/// What `tokio-postgres` needs to connect as `text` says: a URL, or `host=... user=...`.
pub fn driver(text: &str) -> Result<(Config, MakeRustlsConnect), ConfigError> {
    let (plain, tls, roots) = split_tls_parameters(text)?;
    let mut config: Config = plain.parse().map_err(ConfigError::Parse)?;
    let tls = tls.unwrap_or(TlsMode::Prefer);
    // libpq too has no TLS on a socket of this machine, whatever sslmode says.
    let is_local =
        !config.get_hosts().is_empty() && config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    config.ssl_mode(match tls {
        _ if is_local => SslMode::Disable,
        TlsMode::Disable => SslMode::Disable,
        TlsMode::Prefer => SslMode::Prefer,
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
    });
    let tls = if is_local { TlsMode::Disable } else { tls };
    Ok((config, MakeRustlsConnect::new(client_config(tls, roots.as_deref())?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_know_every_sslmode_and_sockets_need_no_certificate() {
        let mode = |text: &str| driver(text).map(|(config, _)| config.get_ssl_mode());
        assert_eq!(mode("postgresql://u@h/d").expect("valid"), SslMode::Prefer);
        assert_eq!(mode("postgresql://u@h/d?sslmode=disable").expect("valid"), SslMode::Disable);
        assert_eq!(mode("host=h user=u sslmode=require dbname=d").expect("valid"), SslMode::Require);
        assert_eq!(mode("postgresql://u@%2Frun%2Fpg/d?sslmode=verify-full").expect("valid"), SslMode::Disable);
        for text in [
            "postgresql://u@h/d?sslmode=verify-full&sslrootcert=/nowhere.pem",
            "host=h user=u sslmode=verify-ca sslrootcert=/nowhere.pem",
        ] {
            assert!(matches!(driver(text), Err(ConfigError::RootCertificates { .. })), "{text}");
        }
        assert!(matches!(driver("postgresql://u@h/d?sslmode=maybe"), Err(ConfigError::SslMode(_))));
    }
}
