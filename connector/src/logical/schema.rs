//! Production's schema: dumped as of a snapshot, and made on the root in two parts, before the rows and after them.

use std::sync::Arc;

use ardent_types::sql::{literal, quoted};
use futures_util::future::try_join;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::logical::config::{LogicalConfig, RootAt, program_folders};
use crate::logical::dump_statement::{Weight, extension_of, for_root, summary, weight};
use crate::logical::error::{LogicalError, passes, root, source};
use crate::logical::program;
use crate::logical::session::connect_root_anywhere;
use ardent_sql_script::{PsqlCommands, Script};

/// Statements that are tried in one transaction: so many locks fit.
const TOGETHER: usize = 100;

/// The dump's two parts.
#[derive(Debug)]
pub(crate) struct Dump {
    pub before_rows: String,
    pub after_rows: String,
}

/// Dumps the schema as it was when the snapshot was made.
pub(crate) async fn dump(config: &LogicalConfig, major: u32, snapshot: &str) -> Result<Dump, LogicalError> {
    let mut chosen: Vec<String> =
        config.options.schemas.iter().map(|schema| format!("--schema={}", quoted(schema))).collect();
    if !chosen.is_empty() {
        chosen.push("--extension=*".to_owned());
    }
    // With what belongs to the database itself.
    dump_sections(config, major, snapshot, &["--create"], &chosen).await
}

async fn dump_sections(
    config: &LogicalConfig,
    major: u32,
    snapshot: &str,
    before_alone: &[&str],
    chosen: &[String],
) -> Result<Dump, LogicalError> {
    let pg_dump = program::find("pg_dump", &program_folders(&config.programs, major), major)?;
    let environment = config.connector.connect_config()?.libpq_environment();
    let section = |name: &str| {
        let mut command = program::command(&pg_dump);
        command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
        command.args(["--schema-only", "--no-publications", "--no-subscriptions", "--no-tablespaces"]);
        command.args(["--encoding=UTF8", "--lock-wait-timeout=60s", "--no-password", "--no-security-labels"]);
        command.arg(format!("--section={name}")).arg(format!("--snapshot={snapshot}")).args(chosen);
        command
    };
    let mut before = section("pre-data");
    before.args(before_alone);
    let after = section("post-data");
    let (before, after) = try_join(program::output(before, &pg_dump), program::output(after, &pg_dump)).await?;
    let text =
        |bytes| String::from_utf8(bytes).map_err(|_| LogicalError::State("pg_dump's output is not UTF-8".into()));
    Ok(Dump { before_rows: text(before)?, after_rows: text(after)? })
}

/// Dumps the definitions of some tables, by their quoted names, as they were when the snapshot was made.
pub(crate) async fn dump_tables(
    config: &LogicalConfig,
    major: u32,
    snapshot: &str,
    tables: &[String],
) -> Result<Dump, LogicalError> {
    let chosen: Vec<String> = tables.iter().map(|table| format!("--table={table}")).collect();
    dump_sections(config, major, snapshot, &[], &chosen).await
}

/// The major version of a session's server.
pub(crate) async fn major(production: &Client) -> Result<u32, LogicalError> {
    let major = production
        .query_one("select current_setting('server_version_num')::int / 10000", &[])
        .await
        .map_err(source("asking for its version"))?;
    Ok(u32::try_from(major.get::<_, i32>(0)).unwrap_or_default())
}

/// What a root branch's database holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootDatabase {
    /// Nothing: the root branch began with it.
    Fresh,
    /// Whatever an interrupted import left.
    Used,
}

/// Sees to it that the root has production's roles, and its database with nothing in it, as production has it. Passwords are not
/// production's.
pub(crate) async fn make_database(
    production: &Client,
    at: &RootAt,
    database: &str,
    here: RootDatabase,
    left_out: &mut Vec<String>,
) -> Result<(), LogicalError> {
    let client = connect_root_anywhere(at).await?;
    make_roles(production, &client, left_out).await?;
    let is_there = client.query_one("select exists (select 1 from pg_database where datname = $1)", &[&database]).await;
    let is_there: bool = is_there.map_err(root("listing databases"))?.get(0);
    if is_there && here == RootDatabase::Fresh {
        return Ok(());
    }
    let row = production
        .query_one(
            "select pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text, datlocprovider::text, \
             coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') \
             from pg_database d where datname = current_database()",
            &[],
        )
        .await
        .map_err(source("reading its locale"))?;
    let text = |column: usize| literal(&row.get::<_, String>(column));
    let mut create = format!(
        "create database {} template template0 encoding {} lc_collate {} lc_ctype {}",
        quoted(database),
        text(0),
        text(1),
        text(2)
    );
    let locale = literal(&row.get::<_, Option<String>>(4).unwrap_or_default());
    match row.get::<_, String>(3).as_str() {
        "i" => create.push_str(&format!(" locale_provider icu icu_locale {locale}")),
        "b" => create.push_str(&format!(" locale_provider builtin builtin_locale {locale}")),
        _ => create.push_str(" locale_provider libc"),
    }
    let drop = format!("drop database if exists {} with (force)", quoted(database));
    client.batch_execute(&drop).await.map_err(root("dropping what an interrupted import left"))?;
    client.batch_execute(&create).await.map_err(root("making the database"))
}

const ROLES: &str = "
    select rolname::text, concat_ws(' ',
        case when rolsuper then 'superuser' else 'nosuperuser' end,
        case when rolinherit then 'inherit' else 'noinherit' end,
        case when rolcreaterole then 'createrole' else 'nocreaterole' end,
        case when rolcreatedb then 'createdb' else 'nocreatedb' end,
        case when rolcanlogin then 'login' else 'nologin' end,
        case when rolreplication then 'replication' else 'noreplication' end,
        case when rolbypassrls then 'bypassrls' else 'nobypassrls' end,
        'connection limit ' || rolconnlimit,
        case when rolvaliduntil is not null then 'valid until ' || quote_literal(rolvaliduntil::text) end)
    from pg_roles where rolname !~ '^pg_' order by rolname";

const MEMBERSHIPS: &str = "
    select r.rolname::text, m.rolname::text, a.admin_option,
        (to_jsonb(a) ->> 'inherit_option')::bool, (to_jsonb(a) ->> 'set_option')::bool
    from pg_auth_members a join pg_roles r on r.oid = a.roleid join pg_roles m on m.oid = a.member
    where m.rolname !~ '^pg_' order by a.roleid, a.member";

const ROLE_SETTINGS: &str = "
    select r.rolname::text, s.setconfig from pg_db_role_setting s join pg_roles r on r.oid = s.setrole
    where s.setdatabase = 0";

/// Makes production's roles with what they may, what they are members of, and their settings.
async fn make_roles(production: &Client, client: &Client, left_out: &mut Vec<String>) -> Result<(), LogicalError> {
    let reading = source("reading its roles");
    let known = client.query("select rolname::text from pg_roles", &[]).await.map_err(root("listing roles"))?;
    let mut known: Vec<String> = known.iter().map(|row| row.get(0)).collect();
    for row in production.query(ROLES, &[]).await.map_err(&reading)? {
        let (name, attributes): (String, String) = (row.get(0), row.get(1));
        if !known.contains(&name) {
            let create = format!("create role {} with {attributes}", quoted(&name));
            client.batch_execute(&create).await.map_err(root(format!("making role {name}")))?;
            known.push(name);
        }
    }
    for row in production.query(MEMBERSHIPS, &[]).await.map_err(&reading)? {
        let (role, member, admin): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
        if !known.contains(&role) {
            left_out.push(format!("role {member} is a member of {role}, which is the service's own and not here"));
            continue;
        }
        let mut options = vec![format!("admin {}", if admin { "true" } else { "false" })];
        let option = |name: &str, on: Option<bool>| on.map(|on| format!("{name} {on}"));
        options.extend([option("inherit", row.get(3)), option("set", row.get(4))].into_iter().flatten());
        let with = match options.len() {
            1 if admin => " with admin option".to_owned(),
            1 => String::new(),
            _ => format!(" with {}", options.join(", ")),
        };
        let grant = format!("grant {} to {}{with}", quoted(&role), quoted(&member));
        if let Err(error) = client.batch_execute(&grant).await {
            left_out
                .push(format!("{grant}: {}", LogicalError::Root { action: "a grant".into(), source: error }.chain()));
        }
    }
    for row in production.query(ROLE_SETTINGS, &[]).await.map_err(&reading)? {
        let (name, settings): (String, Vec<String>) = (row.get(0), row.get(1));
        // As production has it, without being taken apart and put together: what is a list stays one.
        client
            .execute(
                "insert into pg_catalog.pg_db_role_setting (setdatabase, setrole, setconfig) \
                 select 0, r.oid, $2::text[] from pg_catalog.pg_roles r where r.rolname = $1 and not exists \
                 (select 1 from pg_catalog.pg_db_role_setting s where s.setdatabase = 0 and s.setrole = r.oid)",
                &[&name, &settings],
            )
            .await
            .map_err(root(format!("setting what role {name} has set")))?;
    }
    Ok(())
}

/// Runs the part that comes before the rows.
pub(crate) async fn load_before_rows(
    client: &Arc<Client>,
    script: &str,
    left_out: &mut Vec<String>,
) -> Result<(), LogicalError> {
    let here = client
        .query("select name::text from pg_catalog.pg_available_extensions", &[])
        .await
        .map_err(root("listing extensions"))?;
    let here: Vec<String> = here.iter().map(|row| row.get(0)).collect();
    let mut wanted = Vec::new();
    for statement in Script::parse(script.as_bytes(), PsqlCommands::Skipped)?.statements() {
        let makes_database = statement.starts_with("CREATE DATABASE ");
        match extension_of(statement) {
            Some(name) if !here.contains(&name) => {
                if statement.starts_with("CREATE") {
                    left_out.push(format!("extension {name}: it is not installed on this host"));
                }
            }
            _ if makes_database || statement == "CREATE SCHEMA public" => {}
            _ => wanted.extend(for_root(statement)),
        }
    }
    for together in wanted.chunks(TOGETHER) {
        let all = format!("begin;\n{};\ncommit", together.join(";\n"));
        if client.batch_execute(&all).await.is_ok() {
            continue;
        }
        client.batch_execute("rollback").await.map_err(root("rolling back"))?;
        for statement in together {
            run(client, statement, left_out).await?;
        }
    }
    Ok(())
}

/// Runs one statement. Of one that is not needed for rows, a refusal is noted.
pub(crate) async fn run(client: &Client, statement: &str, left_out: &mut Vec<String>) -> Result<(), LogicalError> {
    let Err(error) = client.batch_execute(statement).await else { return Ok(()) };
    let said_no = !passes(&error);
    match weight(statement) {
        // Newer programs set what older servers do not know.
        Weight::Setting if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => Ok(()),
        Weight::Wished | Weight::ForeignKey if said_no => {
            let why = error.as_db_error().map_or_else(String::new, |error| error.message().to_owned());
            left_out.push(format!("{}: {why}", summary(statement)));
            Ok(())
        }
        _ => Err(LogicalError::Schema { statement: summary(statement), source: error }),
    }
}
