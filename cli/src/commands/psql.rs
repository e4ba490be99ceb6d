//! `ardent psql`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use ardent_api::control::{ApiErrorCode, ErrorInfo};

use super::branch;
use crate::api::Api;
use crate::args::PsqlArgs;
use crate::config::branch_or_default;
use crate::failure::Failure;

/// Runs the command. Returns only if psql could not be started.
pub fn run(api: &Api, args: &PsqlArgs) -> Result<(), Failure> {
    let name = branch_or_default(args.branch.as_deref())?;
    let reply = branch::url(api, &name, args.role.as_deref())?;
    open(&reply.url, &args.arguments)
}

/// Becomes psql on a connection string. The password goes by the environment: command lines are there for all to read.
pub fn open(url: &str, arguments: &[String]) -> Result<(), Failure> {
    let (without_password, password) = split_password(url);
    let mut command = Command::new("psql");
    command.arg(&without_password).args(arguments);
    if let Some(password) = password {
        command.env("PGPASSWORD", password);
    }
    let error = command.exec();
    let message = format!("psql cannot be started: {error}");
    Err(ErrorInfo::new(ApiErrorCode::NotFound, message)
        .with_hint("install it (Debian: postgresql-client), or use another client: ardent branch info --print-url")
        .into())
}

/// Our own URLs: the password has letters and digits only.
fn split_password(url: &str) -> (String, Option<&str>) {
    let split = || {
        let (scheme, rest) = url.split_once("://")?;
        let (user_info, rest) = rest.split_once('@')?;
        let (user, password) = user_info.split_once(':')?;
        Some((format!("{scheme}://{user}@{rest}"), password))
    };
    match split() {
        Some((url, password)) => (url, Some(password)),
        None => (url.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_leaves_the_url() {
        let (url, password) = split_password("postgresql://app:s3@a.localhost:7432/shop?sslmode=require");
        assert_eq!((url.as_str(), password), ("postgresql://app@a.localhost:7432/shop?sslmode=require", Some("s3")));
        assert_eq!(split_password("postgresql://app@h/d").1, None);
    }
}
