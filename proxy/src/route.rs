//! Which branch a connection is for: SNI first, then `options=branch=NAME`, then the role's suffix.
//!
//! Pure functions: nothing here asks whether a branch exists, so nothing here can tell a stranger.

use crate::startup::StartupParameters;

/// The names under which branches are reached: `BRANCH.SUFFIX` for each suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNames {
    suffixes: Vec<String>,
}

impl HostNames {
    /// `localhost` and the given domains (without a leading `*.`).
    pub fn new(domains: impl IntoIterator<Item = String>) -> Self {
        let mut suffixes = vec!["localhost".to_owned()];
        suffixes.extend(domains.into_iter().map(|domain| domain.trim_start_matches("*.").to_ascii_lowercase()));
        suffixes.sort();
        suffixes.dedup();
        HostNames { suffixes }
    }

    /// The domains, without `*.`.
    pub fn suffixes(&self) -> &[String] {
        &self.suffixes
    }

    /// Whether `server_name` is one that a branch can have.
    pub fn is_ours(&self, server_name: &str) -> bool {
        self.branch(server_name).is_some()
    }

    /// The branch that a server name stands for; `None` when it is a plain host name of ours or foreign.
    fn branch(&self, server_name: &str) -> Option<String> {
        let name = server_name.trim_end_matches('.').to_ascii_lowercase();
        self.suffixes.iter().find_map(|suffix| {
            let label = name.strip_suffix(suffix)?.strip_suffix('.')?;
            (!label.is_empty() && !label.contains('.')).then(|| label.to_owned())
        })
    }
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The branch.
    pub branch: String,
    /// The role, without a branch suffix.
    pub role: String,
    /// What the compute's startup packet holds.
    pub parameters: StartupParameters,
}

/// Why a connection can't be routed. The text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No role.
    #[error("no role name was sent: put one into the connection string")]
    NoRole,
    /// Nothing names a branch.
    #[error(
        "no branch is named: connect to BRANCH.HOST, or add options=branch%3DNAME to the connection string, or write the role as ROLE.NAME"
    )]
    NoBranch,
    /// SNI and options name two branches.
    #[error("the host name says branch \"{by_host}\", options say \"{by_options}\": name one")]
    Disagree {
        /// By SNI.
        by_host: String,
        /// By options.
        by_options: String,
    },
    /// A replication connection.
    #[error("branches take no replication connections: connect without replication={0}")]
    Replication(String),
}

/// Decides where a connection goes.
///
/// The role's suffix counts only when neither host name nor options name a branch; where one does, `ROLE.NAME` with that same
/// name is `ROLE`, and any other role is taken as it is, dots included.
pub fn route(
    hosts: &HostNames,
    server_name: Option<&str>,
    mut parameters: StartupParameters,
) -> Result<Route, RouteError> {
    if let Some(value) = parameters.get("replication").filter(|value| !is_false(value)) {
        return Err(RouteError::Replication(value.to_owned()));
    }
    let sent_role = parameters.get("user").filter(|role| !role.is_empty()).ok_or(RouteError::NoRole)?.to_owned();
    let by_host = server_name.and_then(|name| hosts.branch(name));
    let (by_options, rest) = split_options(parameters.get("options").unwrap_or_default());
    let named = match (by_host, by_options) {
        (Some(by_host), Some(by_options)) if by_host != by_options => {
            return Err(RouteError::Disagree { by_host, by_options });
        }
        (by_host, by_options) => by_host.or(by_options),
    };
    let (role, branch) = match (named, sent_role.rsplit_once('.')) {
        (Some(branch), Some((plain, suffix))) if suffix == branch && !plain.is_empty() => (plain.to_owned(), branch),
        (Some(branch), _) => (sent_role.clone(), branch),
        (None, Some((plain, suffix))) if !plain.is_empty() && !suffix.is_empty() => {
            (plain.to_owned(), suffix.to_owned())
        }
        (None, _) => return Err(RouteError::NoBranch),
    };
    // The database's name is by default the role's; a client (libpq does) may have filled it in, suffix included.
    if parameters.get("database").is_none_or(|name| name.is_empty() || name == sent_role) {
        parameters.set("database", Some(role.clone()));
    }
    parameters.set("user", Some(role.clone()));
    parameters.set("options", (!rest.is_empty()).then_some(rest));
    Ok(Route { branch, role, parameters })
}

fn is_false(value: &str) -> bool {
    ["false", "off", "no", "0"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Takes `branch=NAME` out of an options string; gives the name and the rest as it was.
fn split_options(options: &str) -> (Option<String>, String) {
    let mut branch = None;
    let mut rest = Vec::new();
    for word in options.split(' ') {
        match word.strip_prefix("branch=") {
            Some(name) if !name.is_empty() => branch = Some(name.to_ascii_lowercase()),
            _ => rest.push(word),
        }
    }
    (branch, rest.join(" ").trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(user: &str, options: Option<&str>) -> StartupParameters {
        let mut parameters = StartupParameters::default();
        parameters.set("user", Some(user.to_owned()));
        parameters.set("options", options.map(str::to_owned));
        parameters
    }

    fn check(
        sni: Option<&str>,
        user: &str,
        options: Option<&str>,
        expect: Result<(&str, &str, Option<&str>), RouteError>,
    ) {
        let hosts = HostNames::new(["*.db.example.com".to_owned()]);
        let got = route(&hosts, sni, parameters(user, options));
        let got =
            got.as_ref().map(|route| (route.branch.as_str(), route.role.as_str(), route.parameters.get("options")));
        assert_eq!(got, expect.as_ref().map(|expect| *expect), "{sni:?} {user:?} {options:?}");
    }

    #[test]
    fn routing_order_is_sni_options_role_suffix() {
        check(Some("fix.localhost"), "app", None, Ok(("fix", "app", None)));
        check(Some("FIX.db.example.com"), "app", None, Ok(("fix", "app", None)));
        check(Some("fix.localhost"), "app.fix", None, Ok(("fix", "app", None)));
        check(Some("fix.localhost"), "app.other", None, Ok(("fix", "app.other", None)));
        check(None, "app", Some("branch=fix"), Ok(("fix", "app", None)));
        check(None, "app", Some("-c work_mem=1MB branch=fix"), Ok(("fix", "app", Some("-c work_mem=1MB"))));
        check(None, "first.last.fix", None, Ok(("fix", "first.last", None)));
        check(Some("localhost"), "app.fix", None, Ok(("fix", "app", None)));
    }

    #[test]
    fn unroutable_connections_say_why() {
        check(None, "app", None, Err(RouteError::NoBranch));
        check(Some("a.b.localhost"), "app", None, Err(RouteError::NoBranch));
        check(Some("x.elsewhere.com"), "app", None, Err(RouteError::NoBranch));
        check(None, "", None, Err(RouteError::NoRole));
        let disagree = RouteError::Disagree { by_host: "a".into(), by_options: "b".into() };
        check(Some("a.localhost"), "app", Some("branch=b"), Err(disagree));
    }

    #[test]
    fn a_missing_database_is_the_plain_role() {
        let hosts = HostNames::new([]);
        let got = route(&hosts, None, parameters("app.fix", None)).expect("routed");
        assert_eq!(got.parameters.get("database"), Some("app"));
        assert_eq!(got.parameters.get("user"), Some("app"));
    }

    #[test]
    fn replication_is_refused() {
        let mut startup = parameters("app.fix", None);
        startup.set("replication", Some("database".into()));
        assert_eq!(route(&HostNames::new([]), None, startup), Err(RouteError::Replication("database".into())));
    }
}
