//! Connection strings.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, Config, Host, SslMode};

use crate::error::ConfigError;

const DEFAULT_PORT: u16 = 5432;
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How far TLS is asked for, as libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Disable,
    /// If the server has it; its certificate isn't checked.
    Prefer,
    /// Always; the certificate isn't checked.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate of a known authority for this host.
    VerifyFull,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectMode {
    /// SQL in the database that the connection string names.
    Sql,
    /// Physical replication: WAL, base backups, slots.
    Replication,
    /// Logical replication of the database that the connection string names; SQL can be run there too.
    Logical,
}

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A parsed connection string.
#[derive(Clone)]
pub struct ConnectConfig {
    pub(crate) targets: Vec<Target>,
    pub(crate) user: String,
    pub(crate) database: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
    pub(crate) application_name: Option<String>,
    /// `options` of the startup message, as libpq's.
    pub(crate) options: Option<String>,
    pub(crate) tls: TlsMode,
    pub(crate) root_certificates: Option<String>,
    pub(crate) connect_timeout: Duration,
}

impl std::fmt::Debug for ConnectConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectConfig")
            .field("targets", &self.targets)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl ConnectConfig {
    /// Parses a `postgresql://` URL, with libpq's `sslmode` and `sslrootcert` besides what tokio-postgres knows.
    pub fn parse(url: &str) -> Result<ConnectConfig, ConfigError> {
        let (plain, tls, root_certificates) = split_tls_parameters(url)?;
        let config: Config = plain.parse().map_err(ConfigError::Parse)?;
        if config.get_channel_binding() == ChannelBinding::Require {
            return Err(ConfigError::Unsupported("channel_binding=require"));
        }
        let tls = tls.unwrap_or(match config.get_ssl_mode() {
            SslMode::Disable => TlsMode::Disable,
            SslMode::Require => TlsMode::Require,
            _ => TlsMode::Prefer,
        });
        Ok(ConnectConfig {
            targets: targets(&config)?,
            user: config.get_user().ok_or(ConfigError::NoUser)?.to_owned(),
            database: config.get_dbname().map(str::to_owned),
            password: config.get_password().map(<[u8]>::to_vec),
            application_name: config.get_application_name().map(str::to_owned),
            options: config.get_options().map(str::to_owned),
            tls,
            root_certificates,
            connect_timeout: config.get_connect_timeout().copied().unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        })
    }

    /// A server at a Unix socket, without a password.
    pub fn unix(socket_dir: impl Into<PathBuf>, port: u16, user: &str) -> ConnectConfig {
        ConnectConfig {
            targets: vec![unix_target(socket_dir.into(), port)],
            user: user.to_owned(),
            database: None,
            password: None,
            application_name: None,
            options: None,
            tls: TlsMode::Disable,
            root_certificates: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        }
    }

    /// Sets the name that `pg_stat_replication` and `synchronous_standby_names` see.
    #[must_use]
    pub fn with_application_name(mut self, name: &str) -> ConnectConfig {
        self.application_name = Some(name.to_owned());
        self
    }

    /// Sets the database.
    #[must_use]
    pub fn with_database(mut self, name: &str) -> ConnectConfig {
        self.database = Some(name.to_owned());
        self
    }

    /// Sets the options that the session begins with, as libpq's `options`.
    #[must_use]
    pub fn with_options(mut self, options: &str) -> ConnectConfig {
        self.options = Some(options.to_owned());
        self
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database, which is the user's name if the connection string says none.
    pub fn database(&self) -> &str {
        self.database.as_deref().unwrap_or(&self.user)
    }

    /// The same for a program that uses libpq, as its environment variables: no password is on a command line.
    pub fn libpq_environment(&self) -> Vec<(&'static str, String)> {
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        for target in &self.targets {
            let (host, port) = match target {
                Target::Tcp { host, port } => (host.clone(), port.to_string()),
                Target::Unix(path) => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    let folder = path.parent().unwrap_or(path).display().to_string();
                    (folder, name.rsplit('.').next().unwrap_or_default().to_owned())
                }
            };
            hosts.push(host);
            ports.push(port);
        }
        let tls = match self.tls {
            TlsMode::Disable => "disable",
            TlsMode::Prefer => "prefer",
            TlsMode::Require => "require",
            TlsMode::VerifyCa => "verify-ca",
            TlsMode::VerifyFull => "verify-full",
        };
        let mut variables = vec![
            ("PGHOST", hosts.join(",")),
            ("PGPORT", ports.join(",")),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.database().to_owned()),
            ("PGSSLMODE", tls.to_owned()),
            ("PGCONNECT_TIMEOUT", self.connect_timeout.as_secs().max(1).to_string()),
        ];
        let password = self.password.as_ref().map(|password| String::from_utf8_lossy(password).into_owned());
        variables.extend(password.map(|password| ("PGPASSWORD", password)));
        variables.extend(self.options.clone().map(|options| ("PGOPTIONS", options)));
        variables.extend(self.root_certificates.clone().map(|path| ("PGSSLROOTCERT", path)));
        variables
    }

    /// The first host, as people write it.
    pub fn host(&self) -> String {
        self.targets.first().map(Target::to_string).unwrap_or_default()
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Tcp { host, port } => write!(f, "{host}:{port}"),
            Target::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

fn unix_target(dir: PathBuf, port: u16) -> Target {
    Target::Unix(dir.join(format!(".s.PGSQL.{port}")))
}

fn targets(config: &Config) -> Result<Vec<Target>, ConfigError> {
    let ports = config.get_ports();
    // One port serves all hosts, as in libpq.
    let port_of = |index: usize| ports.get(index).or(ports.last()).copied().unwrap_or(DEFAULT_PORT);
    let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| match host {
        Host::Tcp(host) => Target::Tcp { host: host.clone(), port: port_of(index) },
        Host::Unix(dir) => unix_target(dir.clone(), port_of(index)),
    });
    let mut targets: Vec<_> = hosts.collect();
    if targets.is_empty() {
        let addresses = config.get_hostaddrs().iter().enumerate();
        targets = addresses.map(|(index, ip)| Target::Tcp { host: ip.to_string(), port: port_of(index) }).collect();
    }
    if targets.is_empty() { Err(ConfigError::NoHost) } else { Ok(targets) }
}

/// Takes `sslmode` and `sslrootcert` out of the parameters: tokio-postgres doesn't know all their values.
pub(crate) fn split_tls_parameters(text: &str) -> Result<(String, Option<TlsMode>, Option<String>), ConfigError> {
    // `host=... user=...`, whose values need not be encoded.
    if !text.contains("://") {
        let (mut tls, mut roots, mut rest) = (None, None, Vec::new());
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(("sslmode", mode)) => tls = Some(parse_tls_mode(mode)?),
                Some(("sslrootcert", path)) => roots = Some(path.trim_matches('\'').to_owned()),
                Some(("sslcert" | "sslkey", _)) => return Err(ConfigError::Unsupported("a client certificate")),
                _ => rest.push(word),
            }
        }
        let plain = if tls.is_none() && roots.is_none() { text.to_owned() } else { rest.join(" ") };
        return Ok((plain, tls, roots));
    }
    let Some((base, query)) = text.split_once('?') else { return Ok((text.to_owned(), None, None)) };
    let (mut tls, mut roots, mut rest) = (None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", mode)) => tls = Some(parse_tls_mode(mode)?),
            Some(("sslrootcert", path)) => roots = Some(decode_percent(path)),
            Some(("sslcert" | "sslkey", _)) => return Err(ConfigError::Unsupported("a client certificate")),
            _ => rest.push(pair),
        }
    }
    let plain = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((plain, tls, roots))
}

fn parse_tls_mode(mode: &str) -> Result<TlsMode, ConfigError> {
    Ok(match mode {
        "disable" => TlsMode::Disable,
        "allow" | "prefer" => TlsMode::Prefer,
        "require" => TlsMode::Require,
        "verify-ca" => TlsMode::VerifyCa,
        "verify-full" => TlsMode::VerifyFull,
        _ => return Err(ConfigError::SslMode(mode.to_owned())),
    })
}

fn decode_percent(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let config =
            ConnectConfig::parse("postgresql://me:p%40ss@db.example/shop?sslmode=verify-full&sslrootcert=%2Fca.pem")
                .unwrap();
        assert_eq!(config.targets, [Target::Tcp { host: "db.example".to_owned(), port: 5432 }]);
        assert_eq!((config.user(), config.database()), ("me", "shop"));
        assert_eq!(config.password.as_deref(), Some(&b"p@ss"[..]));
        assert_eq!((config.tls, config.root_certificates.as_deref()), (TlsMode::VerifyFull, Some("/ca.pem")));
        assert!(!format!("{config:?}").contains("ss\""), "no password in debug output");
        let branch = ConnectConfig::parse("postgresql://me@h/d?sslmode=require&options=branch%3Dx").unwrap();
        assert_eq!((branch.options.as_deref(), branch.tls), (Some("branch=x"), TlsMode::Require));
        assert!(branch.libpq_environment().contains(&("PGOPTIONS", "branch=x".to_owned())));
        let socket = ConnectConfig::parse("postgresql://me@%2Ftmp%2Fx:6543/db").unwrap();
        assert_eq!(socket.targets, [Target::Unix("/tmp/x/.s.PGSQL.6543".into())]);
        assert_eq!(socket.tls, TlsMode::Prefer);
        let environment = config.libpq_environment();
        for (name, value) in [("PGHOST", "db.example"), ("PGPASSWORD", "p@ss"), ("PGSSLMODE", "verify-full")] {
            assert!(environment.contains(&(name, value.to_owned())), "{name}");
        }
        let environment = socket.libpq_environment();
        assert!(
            environment.contains(&("PGHOST", "/tmp/x".to_owned()))
                && environment.contains(&("PGPORT", "6543".to_owned()))
        );
        let two = ConnectConfig::parse("postgresql://me@a:1,b:2/db?application_name=x").unwrap();
        assert_eq!(two.targets.len(), 2);
        for bad in [
            "postgresql:///db",
            "postgresql://h/db",
            "postgresql://u@h/db?sslmode=maybe",
            "nonsense",
            "postgresql://u@h/db?channel_binding=require",
        ] {
            assert!(ConnectConfig::parse(bad).is_err(), "{bad}");
        }
    }
}
