//! Postgres's client programs.

use std::process::Command;

use ardent_test_pg::{program, server_command};

/// A client program of the server's version, with a clean environment.
pub fn pg_program(name: &str) -> Command {
    let mut command = server_command(program(name));
    // A branch may have to be woken first. The user that runs this may not read the certificates of the one who tests.
    command.env("PGCONNECT_TIMEOUT", "60").env("HOME", "/");
    command
}

/// Runs SQL at `url`; rows as lines, fields separated by `|`. Panics on an error.
pub fn sql(url: &str, text: &str) -> String {
    try_sql(url, text).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// [`sql`]; the error is what psql printed.
pub fn try_sql(url: &str, text: &str) -> Result<String, String> {
    let output = pg_program("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", text])
        .output()
        .expect("psql can be run");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(if said.is_empty() { format!("psql said nothing and ended with {}", output.status) } else { said })
    }
}

/// The same connection string for another database.
pub fn in_database(url: &str, database: &str) -> String {
    let (address, parameters) = url.split_once('?').map_or((url, None), |(address, rest)| (address, Some(rest)));
    let (server, _) = address.rsplit_once('/').expect("connection strings name a database");
    let parameters = parameters.map(|rest| format!("?{rest}")).unwrap_or_default();
    format!("{server}/{database}{parameters}")
}

/// Row count and checksum of each permanent table (and materialized view) at `url`, one a line.
pub fn table_sums(url: &str) -> String {
    let queries = sql(
        url,
        "select string_agg(format($$select %L as name, count(*), md5(string_agg(t::text, chr(10) order by t::text collate \"C\"))
           from %s t$$, c.oid::regclass, c.oid::regclass), ' union all ')
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.relkind in ('r', 'm') and c.relpersistence = 'p' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'",
    );
    if queries.is_empty() {
        return String::new();
    }
    sql(url, &format!("{queries} order by name"))
}
