//! Connection URLs: the parts of a production server's that control needs, and the ones that it prints.

use std::fmt;

use ardent_api::control::{ApiErrorCode, ErrorInfo};

/// A parsed `postgresql://` URL. `Debug` and `Display` leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct PgUrl {
    /// Role; `postgres` when the URL has none, which libpq would take from the operating system's user.
    pub role: String,
    /// Whether the URL holds a password.
    pub has_password: bool,
    /// Host, or a folder with a socket.
    pub host: String,
    /// Port; 5432 when the URL has none.
    pub port: u16,
    /// Database; the role's name when the URL has none, as in libpq.
    pub database: String,
    redacted: String,
}

impl PgUrl {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Self, ErrorInfo> {
        let text = text.trim();
        let rest = text
            .strip_prefix("postgresql://")
            .or_else(|| text.strip_prefix("postgres://"))
            .ok_or_else(|| bad("it does not begin with postgresql://"))?;
        let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = before_query.split_once('/').unwrap_or((before_query, ""));
        let (user_info, host_port) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match user_info.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (user_info, None),
        };
        if host_port.contains(',') {
            return Err(bad("it names more than one host, and a connector follows one server"));
        }
        let (host, port) = split_port(host_port)?;
        let role = decode(user)?;
        let mut url = PgUrl {
            has_password: password.is_some(),
            host: decode(host)?,
            port,
            database: decode(path)?,
            role: if role.is_empty() { "postgres".to_owned() } else { role },
            redacted: String::new(),
        };
        let mut shown_query = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| bad("a parameter has no ="))?;
            match key {
                "password" => {
                    url.has_password = true;
                    continue;
                }
                "user" => url.role = decode(value)?,
                "host" => url.host = decode(value)?,
                "dbname" => url.database = decode(value)?,
                "port" => url.port = value.parse().map_err(|_| bad("its port is not a number"))?,
                _ => {}
            }
            shown_query.push(pair);
        }
        if url.host.is_empty() {
            return Err(bad("it names no host"));
        }
        if url.database.is_empty() {
            url.database = url.role.clone();
        }
        let mut redacted = "postgresql://".to_owned();
        if !user.is_empty() {
            redacted.push_str(user);
            redacted.push_str(if password.is_some() { ":***@" } else { "@" });
        }
        redacted.push_str(host_port);
        if !path.is_empty() {
            redacted.push('/');
            redacted.push_str(path);
        }
        if !shown_query.is_empty() {
            redacted.push('?');
            redacted.push_str(&shown_query.join("&"));
        }
        url.redacted = redacted;
        Ok(url)
    }
}

impl fmt::Display for PgUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

impl fmt::Debug for PgUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

/// How clients reach branches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicAddress {
    /// With `wildcard`, branches are `NAME.host`; without, this address is used for all and the branch is an option.
    pub host: String,
    /// The proxy's port.
    pub port: u16,
    /// Whether names below `host` resolve.
    pub wildcard: bool,
}

impl PublicAddress {
    /// The connection string of a branch; without a password it is left out.
    pub fn branch_url(&self, branch: &str, role: &str, password: Option<&str>, database: &str) -> String {
        let user = match password {
            Some(password) => format!("{}:{}", encode(role), encode(password)),
            None => encode(role),
        };
        let (database, port) = (encode(database), self.port);
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.wildcard {
            format!("postgresql://{user}@{branch}.{host}:{port}/{database}?sslmode=require")
        } else {
            format!("postgresql://{user}@{host}:{port}/{database}?sslmode=require&options=branch%3D{branch}")
        }
    }
}

fn bad(why: &str) -> ErrorInfo {
    // The text itself is not repeated: it may hold a password.
    ErrorInfo::new(ApiErrorCode::InvalidArguments, format!("this is not a connection URL that can be used: {why}"))
        .with_hint("write postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE")
}

fn split_port(host_port: &str) -> Result<(&str, u16), ErrorInfo> {
    const DEFAULT_PORT: u16 = 5432;
    let port_of = |text: &str| match text.strip_prefix(':') {
        None if text.is_empty() => Ok(DEFAULT_PORT),
        Some("") => Ok(DEFAULT_PORT),
        Some(port) => port.parse().map_err(|_| bad("its port is not a number from 1 to 65535")),
        None => Err(bad("its host is malformed")),
    };
    if let Some(rest) = host_port.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(|| bad("a ] is missing"))?;
        return Ok((host, port_of(port)?));
    }
    let at = host_port.find(':').unwrap_or(host_port.len());
    let (host, port) = host_port.split_at(at);
    Ok((host, port_of(port)?))
}

fn decode(text: &str) -> Result<String, ErrorInfo> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let escape = tail.get(..2).ok_or_else(|| bad("a % is not followed by two hexadecimal digits"))?;
        let mut byte = [0];
        hex::decode_to_slice(escape, &mut byte)
            .map_err(|_| bad("a % is not followed by two hexadecimal digits (write %25 for a %)"))?;
        bytes.push(byte[0]);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| bad("it is not UTF-8"))
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_shown_without_the_password() {
        let check = |text: &str, role: &str, host: &str, port: u16, database: &str, shown: &str| {
            let url = PgUrl::parse(text).expect(text);
            assert_eq!(
                (url.role.as_str(), url.host.as_str(), url.port, url.database.as_str()),
                (role, host, port, database)
            );
            assert_eq!(url.to_string(), shown);
        };
        check(
            "postgresql://a:p%40@db:6000/shop?sslmode=require",
            "a",
            "db",
            6000,
            "shop",
            "postgresql://a:***@db:6000/shop?sslmode=require",
        );
        check("postgres://a@db", "a", "db", 5432, "a", "postgresql://a@db");
        check("postgresql://a%20b:p:q@[::1]:1/x", "a b", "::1", 1, "x", "postgresql://a%20b:***@[::1]:1/x");
        check(
            "postgresql:///d?host=/run/pg&user=u&password=x",
            "u",
            "/run/pg",
            5432,
            "d",
            "postgresql:///d?host=/run/pg&user=u",
        );
        check("postgresql://%2Frun%2Fpg/d", "postgres", "/run/pg", 5432, "d", "postgresql://%2Frun%2Fpg/d");
    }

    #[test]
    fn bad_urls_are_refused_and_never_repeated() {
        for text in [
            "",
            "mysql://x",
            "postgresql://u:secret@",
            "postgresql://u:secret@h:x/d",
            "postgresql://u:secret%@h/%z",
            "postgresql://u:secret@h:99999",
            "postgresql://u:secret@a,b/d",
            "postgresql://u:secret@[::1/d",
        ] {
            let error = PgUrl::parse(text).expect_err(text);
            assert!(!error.message.contains("secret"), "{}", error.message);
        }
    }

    #[test]
    fn branch_urls_have_two_forms() {
        let local = PublicAddress { host: "localhost".into(), port: 7432, wildcard: true };
        assert_eq!(
            local.branch_url("b", "r s", Some("p"), "d"),
            "postgresql://r%20s:p@b.localhost:7432/d?sslmode=require"
        );
        let plain = PublicAddress { host: "127.0.0.1".into(), port: 7432, wildcard: false };
        assert_eq!(
            plain.branch_url("b", "r", None, "d"),
            "postgresql://r@127.0.0.1:7432/d?sslmode=require&options=branch%3Db"
        );
    }
}
