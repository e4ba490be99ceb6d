//! Who talks to which server.

use std::io::Read as _;

use serde::Serialize;

use ardent_api::control::{
    ApiErrorCode, ConnectorList, DeleteReply, ErrorInfo, SafekeeperChange, SafekeeperInfo, StatusReply, WhoamiReply,
};

use super::{disk_space, safekeepers, storage};
use crate::api::Api;
use crate::args::{LoginArgs, StatusArgs};
use crate::config::{Session, UserConfig};
use crate::failure::Failure;
use crate::output::{Output, pairs};

/// What `ardent status` tells.
#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    status: StatusReply,
    safekeepers: Vec<SafekeeperInfo>,
    /// Of the list of them; 0: they never changed.
    safekeeper_generation: u64,
    /// A change of them that is on its way.
    safekeeper_change: Option<SafekeeperChange>,
}

/// `ardent login`.
pub fn login(output: &Output, url_flag: Option<&str>, args: &LoginArgs) -> Result<(), Failure> {
    let mut session = Session::resolve(url_flag)?;
    if args.token_stdin {
        let mut token = String::new();
        std::io::stdin()
            .read_to_string(&mut token)
            .map_err(|error| Failure::local("standard input cannot be read", &error))?;
        session.token = Some(token.trim().to_owned());
    }
    if session.token.as_deref().is_none_or(str::is_empty) {
        return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, "there is no token to log in with")
            .with_hint("give it on standard input with --token-stdin, or in ARDENT_TOKEN; ardent up logs in by itself")
            .into());
    }
    let config = UserConfig { url: Some(session.url.clone()), token: session.token.clone() };
    let who: WhoamiReply = Api::with_session(session.clone()).get("/v1/whoami")?;
    config.save()?;
    output.data(&who, |who| format!("logged into {} with the token {}", session.url, who.token_name))
}

/// `ardent logout`.
pub fn logout(output: &Output, url_flag: Option<&str>) -> Result<(), Failure> {
    let api = Api::new(url_flag)?;
    let mut config = UserConfig::load()?;
    if config.token.is_none() {
        return Err(ErrorInfo::new(ApiErrorCode::NotAuthenticated, "nobody is logged in")
            .with_hint("ardent login --token-stdin")
            .into());
    }
    let revoked: Result<DeleteReply, Failure> = api.delete("/v1/token");
    let reply = match revoked {
        Ok(reply) => reply,
        // Revoked already, or the server is gone for good: what matters here is that the token is forgotten.
        Err(failure) if failure.info.code == ApiErrorCode::NotAuthenticated => {
            DeleteReply { schema_version: 1, name: api.url().to_owned(), warning: None, kept_until: None }
        }
        Err(failure) => {
            let warning = format!("the token could not be revoked: {}", failure.info.message);
            output.warning(&warning);
            DeleteReply { schema_version: 1, name: api.url().to_owned(), warning: Some(warning), kept_until: None }
        }
    };
    config.token = None;
    config.save()?;
    output.data(&reply, |_| format!("logged out of {}", api.url()))
}

/// `ardent whoami`.
pub fn whoami(output: &Output, url_flag: Option<&str>) -> Result<(), Failure> {
    let api = Api::new(url_flag)?;
    let who: WhoamiReply = api.get("/v1/whoami")?;
    output.data(&who, |who| {
        pairs(&[("server", api.url().to_owned()), ("token", who.token_name.clone()), ("since", who.created_at.clone())])
    })
}

/// `ardent status`.
pub fn status(output: &Output, url_flag: Option<&str>, args: &StatusArgs) -> Result<(), Failure> {
    let api = Api::new(url_flag)?;
    let status: StatusReply = api.get("/v1/status")?;
    if args.ca && !output.json {
        return output.line(&status.ca_file);
    }
    let told = safekeepers::ask(&api)?;
    let change = safekeepers::change_text(&told);
    let mut concerns = safekeepers::concerns(&told.safekeepers);
    concerns.extend(safekeepers::change_concern(&told));
    let safekeepers::Told { safekeepers, generation, change: safekeeper_change } = told;
    let disks = disk_space::disks(&status, &safekeepers);
    concerns.extend(disk_space::concerns(&disks));
    concerns.extend(storage::concern(&status.storage_problems));
    for concern in &concerns {
        output.warning(&format!("{}; {}", concern.message, concern.fix));
    }
    let connectors: ConnectorList = api.get("/v1/connectors")?;
    let mut is_warned = !concerns.is_empty();
    if let Some(problem) = &status.clock_problem {
        output.warning(problem);
        is_warned = true;
    }
    for connector in &connectors.connectors {
        for warning in &connector.warnings {
            output.warning(&format!("connector {}: {warning}", connector.name));
            is_warned = true;
        }
    }
    let told = Told { status, safekeepers, safekeeper_generation: generation, safekeeper_change };
    output.data(&told, |Told { status, safekeepers, .. }| {
        let branches_at = if status.proxy_wildcard {
            format!("NAME.{}:{}", status.proxy_host, status.proxy_port)
        } else {
            format!("{}:{} with options=branch%3DNAME", status.proxy_host, status.proxy_port)
        };
        let mut lines = vec![
            ("server", format!("{} (version {}, since {})", api.url(), status.version, status.started_at)),
            ("data", status.data_dir.clone()),
            ("branches at", branches_at),
            ("ca", status.ca_file.clone()),
            ("connectors", status.connectors.to_string()),
            ("branches", status.branches.to_string()),
            ("running", status.computes_running.to_string()),
            ("safekeepers", safekeepers::summary(safekeepers)),
        ];
        lines.extend(change.map(|change| ("their change", change)));
        lines.extend(disk_space::text(&disks).map(|text| ("disks", text)));
        pairs(&lines)
    })?;
    if args.exit_code && is_warned { Err(Failure::differences()) } else { Ok(()) }
}
