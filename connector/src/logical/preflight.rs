//! What production lacks for logical mode, and what of it branches will not have.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ardent_api::control::{CheckOutcome, KeylessTables, LogicalOptions, PreflightCheck};
use ardent_pg_wire::{ConnectConfig, ConnectMode, Connection, QueryResult, WireError};
use ardent_types::sql::{literal, quoted};
use tokio_postgres::Client;

use crate::logical::config::program_folders;
use crate::logical::error::{LogicalError, source};
use crate::logical::outside::{NeededOutside, OutsidePart, needed_outside, outside_parts};
use crate::logical::program;
use crate::logical::session::connect_source;
use crate::logical::tables::{SourceTable, tables};
use crate::preflight::{
    Checks, FACTS, HostFacts, LOCALES, TakenOver, change_setting, locales, major, number, server, slots,
};

/// Names that one message lists.
const LISTED_MAX: usize = 20;

/// Looks at a server that may become a source in logical mode. Failing checks are part of the answer.
pub async fn preflight_logical(
    url: &str,
    options: &LogicalOptions,
    host: &HostFacts,
    programs: &BTreeMap<u32, PathBuf>,
) -> Result<Vec<PreflightCheck>, LogicalError> {
    let config = ConnectConfig::parse(url)?.with_application_name("ardent");
    let mut sql = Connection::connect(&config, ConnectMode::Sql).await?;
    let facts = sql.query(FACTS).await?;
    let logical = sql.query(LOGICAL_FACTS).await?;
    let mut checks = Checks::default();
    server(&mut checks, &facts, host);
    dump_program(&mut checks, &facts, &program_folders(programs, major(&facts)));
    wal(&mut checks, &facts);
    replication(&mut checks, &facts, &config).await;
    slots(&mut checks, &facts);
    database(&mut checks, &facts, &logical);
    locales(&mut checks, &sql.query(LOCALES).await?, host);
    let client = connect_source(url).await?;
    schemas(&mut checks, &mut sql, options).await?;
    outside_rows(&mut checks, options, &outside_parts(&client, options).await?);
    definitions(&mut checks, options, needed_outside(&client, options).await?);
    let found = tables(&client, options).await?;
    table_rights(&mut checks, &facts, &found, &superusers(&client).await?);
    identities(&mut checks, &found, options);
    sequences(&mut checks, &facts, &client, options).await?;
    unsupported(&mut checks, &mut sql, options, &found).await?;
    Ok(checks.into_list())
}

const LOGICAL_FACTS: &str = "
    select current_database() as database, quote_ident(current_database()) as database_quoted,
        has_database_privilege(current_database(), 'create') as may_create,
        pg_encoding_to_char(encoding) as encoding,
        (select count(*) from pg_largeobject_metadata) as large_objects,
        (select count(*) from pg_database where datallowconn and not datistemplate and datname <> current_database()) as others
    from pg_database where datname = current_database()";

fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(LISTED_MAX);
    names.truncate(LISTED_MAX);
    let list = names.join(", ");
    if more > 0 { format!("{list} and {more} more") } else { list }
}

fn dump_program(checks: &mut Checks, facts: &QueryResult, folders: &[PathBuf]) {
    let major = major(facts);
    let found = program::find("pg_dump", folders, major);
    checks.require(
        "pg_dump",
        found.is_ok(),
        "pg_dump is here, to read the schema with",
        format!("no pg_dump of Postgres {major} or later is here, to read the schema with"),
        Some(format!(
            "apt-get install postgresql-client-{major}. It is looked for beside the server programs of Postgres {major} and later \
             (--pg-bin), then in the PATH that the server was started with"
        )),
    );
}

fn wal(checks: &mut Checks, facts: &QueryResult) {
    let level = facts.value("wal_level").unwrap_or_default();
    checks.require(
        "wal_level",
        level == "logical",
        "wal_level is logical",
        format!("wal_level is {level}: changes cannot be decoded; a change needs a restart"),
        Some(
            change_setting(facts, "wal_level = logical", TakenOver::AtStart)
                + ". A managed service has a parameter for it, \
                   such as rds.logical_replication = 1 or cloudsql.logical_decoding = on",
        ),
    );
    let free = number(facts, "senders") - number(facts, "senders_used");
    checks.require(
        "max_wal_senders",
        free >= 2,
        format!("{free} WAL senders are free"),
        format!("{free} WAL senders are free, 2 are needed; a change needs a restart"),
        Some(change_setting(
            facts,
            &format!("max_wal_senders = {}", (number(facts, "senders_used") + 2).max(10)),
            TakenOver::AtStart,
        )),
    );
}

/// Services have ways of their own to let a role replicate: trying it is the only test that counts.
async fn replication(checks: &mut Checks, facts: &QueryResult, config: &ConnectConfig) {
    let role = facts.value("me_quoted").unwrap_or_default();
    let attempt = match Connection::connect(config, ConnectMode::Logical).await {
        Ok(mut connection) => connection.identify_system().await.map(drop),
        Err(error) => Err(error),
    };
    let found = match &attempt {
        // No more senders: named above.
        Ok(()) => None,
        Err(WireError::Server(error)) if error.code == "53300" => None,
        Err(WireError::Server(error)) => Some(error.message.clone()),
        Err(error) => Some(error.to_string()),
    };
    checks.require(
        "replication_privilege",
        found.is_none(),
        format!("role {role} may follow changes"),
        format!("role {role} may not follow changes: {}", found.as_deref().unwrap_or_default()),
        Some(format!(
            "alter role {role} replication; -- where only the service can do that, its own role: grant rds_replication to {role}"
        )),
    );
}

fn database(checks: &mut Checks, facts: &QueryResult, logical: &QueryResult) {
    let role = facts.value("me_quoted").unwrap_or_default();
    let fact = |name| logical.value(name).unwrap_or_default();
    let name = fact("database_quoted");
    checks.require(
        "create_privilege",
        fact("may_create") == "t",
        format!("role {role} may make a publication in database {name}"),
        format!("role {role} may not make a publication in database {name}"),
        Some(format!("grant create on database {name} to {role}")),
    );
    let encoding = fact("encoding");
    checks.require(
        "encoding",
        !matches!(encoding, "SQL_ASCII" | "MULE_INTERNAL"),
        format!("the database's encoding is {encoding}"),
        format!("the database's encoding is {encoding}: its bytes stand for no characters that could be carried over"),
        None,
    );
    let others = number(logical, "others");
    checks.warn(
        "databases",
        others == 0,
        "no other database",
        format!("{others} other databases of this server are not on branches: a logical connector follows database {name} alone"),
        None,
    );
    let large_objects = number(logical, "large_objects");
    checks.warn(
        "large_objects",
        large_objects == 0,
        "no large objects",
        format!("{large_objects} large objects are not copied: logical replication does not carry them"),
        None,
    );
}

async fn schemas(checks: &mut Checks, sql: &mut Connection, options: &LogicalOptions) -> Result<(), LogicalError> {
    let mut missing = Vec::new();
    for schema in &options.schemas {
        let found =
            sql.query(&format!("select 1 as found from pg_namespace where nspname = {}", literal(schema))).await?;
        if found.rows.is_empty() {
            missing.push(schema.clone());
        }
    }
    checks.require(
        "schemas",
        missing.is_empty(),
        if options.schemas.is_empty() { "all schemas are copied" } else { "the schemas that were chosen are there" },
        format!("there is no schema {}", listed(missing.clone())),
        None,
    );
    Ok(())
}

/// Branches would show fewer rows than production does, without anything that differs.
fn outside_rows(checks: &mut Checks, options: &LogicalOptions, parts: &[OutsidePart]) {
    let others = parts.iter().map(|part| part.schema.clone()).collect();
    checks.warn(
        "partitions",
        parts.is_empty(),
        "no table has rows in partitions of schemas that are not copied",
        listed(parts.iter().map(OutsidePart::left_out).collect()),
        Some(with_schemas(options, others)),
    );
}

/// What is asked for without these could not be made.
fn definitions(checks: &mut Checks, options: &LogicalOptions, NeededOutside { what, schemas }: NeededOutside) {
    checks.require(
        "definitions",
        what.is_empty(),
        "the schemas that are copied need nothing of others",
        format!("the schemas that were chosen cannot be made without what is in others: {}", listed(what)),
        Some(with_schemas(options, schemas)),
    );
}

/// The option that takes more schemas.
fn with_schemas(options: &LogicalOptions, others: Vec<String>) -> String {
    let mut schemas = options.schemas.clone();
    for other in others {
        if !schemas.contains(&other) {
            schemas.push(other);
        }
    }
    format!("--schemas {}", schemas.join(","))
}

async fn superusers(client: &Client) -> Result<Vec<String>, LogicalError> {
    let rows = client.query("select rolname::text from pg_catalog.pg_roles where rolsuper", &[]).await;
    Ok(rows.map_err(source("listing its superusers"))?.iter().map(|row| row.get(0)).collect())
}

/// What lets the role publish these tables. Nobody is made a member of a superuser, least of all where a service keeps that role to
/// itself: such tables get another owner.
fn ownership_fixes(role: &str, owners: &BTreeMap<&str, Vec<String>>, superusers: &[String]) -> Vec<String> {
    let mut fixes = Vec::new();
    for (owner, tables) in owners {
        if superusers.iter().any(|superuser| superuser == owner) {
            fixes.extend(tables.iter().map(|table| format!("alter table {table} owner to {role}")));
        } else {
            fixes.push(format!("grant {} to {role}", quoted(owner)));
        }
    }
    fixes.truncate(LISTED_MAX);
    fixes
}

fn table_rights(checks: &mut Checks, facts: &QueryResult, found: &[SourceTable], superusers: &[String]) {
    let role = facts.value("me_quoted").unwrap_or_default();
    let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for table in found.iter().filter(|table| table.is_logged && !table.is_owned) {
        owners.entry(&table.owner).or_default().push(table.quoted());
    }
    let names = owners.values().flatten().cloned().collect();
    let fixes = ownership_fixes(role, &owners, superusers);
    checks.require(
        "ownership",
        owners.is_empty(),
        format!("role {role} may publish every table"),
        format!(
            "role {role} may publish only what it owns, or what a role that it is a member of does; not {}",
            listed(names)
        ),
        Some(fixes.join(";\n           ")),
    );
    let hidden: Vec<&SourceTable> = found.iter().filter(|table| !table.is_readable).collect();
    let names = hidden.iter().map(|table| table.quoted()).collect();
    let mut fixes: Vec<String> =
        hidden.iter().map(|table| format!("grant usage on schema {} to {role}", quoted(&table.schema))).collect();
    fixes.dedup();
    fixes.extend(hidden.iter().map(|table| format!("grant select on {} to {role}", table.quoted())));
    fixes.truncate(LISTED_MAX);
    checks.require(
        "readable",
        hidden.is_empty(),
        format!("role {role} may read every row"),
        format!("role {role} may not read all rows of {} (privileges, or row security)", listed(names)),
        Some(fixes.join(";\n           ")),
    );
}

/// One whose value is hidden would be behind on branches without anybody noticing.
async fn sequences(
    checks: &mut Checks,
    facts: &QueryResult,
    client: &Client,
    options: &LogicalOptions,
) -> Result<(), LogicalError> {
    let role = facts.value("me_quoted").unwrap_or_default();
    let hidden = client
        .query(
            "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'S' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' \
             and (cardinality($1::text[]) = 0 or n.nspname = any ($1)) and case when c.relkind = 'S' then not has_sequence_privilege(c.oid, 'select, usage') end order by 1",
            &[&options.schemas],
        )
        .await
        .map_err(source("listing its sequences"))?;
    let hidden: Vec<String> = hidden.iter().map(|row| row.get(0)).collect();
    let mut fixes: Vec<String> =
        hidden.iter().map(|name| format!("grant select on sequence {name} to {role}")).collect();
    fixes.truncate(LISTED_MAX);
    checks.require(
        "sequences",
        hidden.is_empty(),
        format!("role {role} may read every sequence"),
        format!("role {role} may not read sequences {}", listed(hidden.clone())),
        Some(fixes.join(";\n           ")),
    );
    Ok(())
}

fn identities(checks: &mut Checks, found: &[SourceTable], options: &LogicalOptions) {
    let keyless: Vec<&SourceTable> = found.iter().filter(|table| table.is_logged && !table.has_identity).collect();
    let names = listed(keyless.iter().map(|table| table.quoted()).collect());
    let mut fixes: Vec<String> =
        keyless.iter().map(|table| format!("alter table {} replica identity full", table.quoted())).collect();
    fixes.truncate(LISTED_MAX);
    let good = "updates and deletes of every table name their rows";
    match options.keyless {
        KeylessTables::Refuse => {
            fixes.push("or add primary keys, or leave these tables empty with --keyless empty".to_owned());
            checks.require(
                "replica_identity",
                keyless.is_empty(),
                good,
                format!("tables without a primary key or other replica identity (a key with a generated column is none): {names}. Published, they could not be updated any more"),
                Some(fixes.join(";\n           ")),
            );
        }
        KeylessTables::Empty => checks.warn(
            "replica_identity",
            keyless.is_empty(),
            good,
            format!("tables without a replica identity stay empty on branches, as was asked for: {names}"),
            Some(fixes.join(";\n           ")),
        ),
    }
}

const UNSUPPORTED: &str = "
    select c.relkind::text as kind, quote_ident(n.nspname) || '.' || quote_ident(c.relname) as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and c.relkind in ('m', 'f') and CHOSEN
    union all
    select 't', quote_ident(t.tgname) || ' on ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname)
    from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
    where not t.tgisinternal and t.tgenabled in ('A', 'R') and CHOSEN
    order by 1, 2";

async fn unsupported(
    checks: &mut Checks,
    sql: &mut Connection,
    options: &LogicalOptions,
    found: &[SourceTable],
) -> Result<(), LogicalError> {
    let unlogged: Vec<String> = found.iter().filter(|table| !table.is_logged).map(SourceTable::quoted).collect();
    checks.warn(
        "unlogged",
        unlogged.is_empty(),
        "no unlogged tables",
        format!("unlogged tables stay empty on branches, as no change of theirs is sent: {}", listed(unlogged.clone())),
        None,
    );
    let chosen = if options.schemas.is_empty() {
        "true".to_owned()
    } else {
        let list: Vec<String> = options.schemas.iter().map(|schema| literal(schema)).collect();
        format!("n.nspname in ({})", list.join(", "))
    };
    let rows = sql.query(&UNSUPPORTED.replace("CHOSEN", &chosen)).await?.rows;
    let of = |kind: &str| -> Vec<String> {
        let rows = rows.iter().filter(|row| row.first().and_then(Option::as_deref) == Some(kind));
        rows.filter_map(|row| row.get(1).cloned().flatten()).collect()
    };
    let said = [
        ("m", "materialized_views", "materialized views are filled once, and refreshed by nobody on the root branch"),
        ("f", "foreign_tables", "foreign tables come as definitions, and reach nothing from a branch"),
        ("t", "triggers", "triggers that fire for replicated changes as well are ordinary ones on branches, or off"),
    ];
    for (kind, name, consequence) in said {
        let names = of(kind);
        checks.warn(
            name,
            names.is_empty(),
            format!("no such {}", name.replace('_', " ")),
            format!("{consequence}: {}", listed(names.clone())),
            None,
        );
    }
    let extensions = sql
        .query(
            "select string_agg(extname, ', ' order by extname) as names from pg_extension where extname <> 'plpgsql'",
        )
        .await?;
    match extensions.value("names") {
        None => checks.add("extensions", CheckOutcome::Ok, "no extensions", None),
        Some(names) => checks.add(
            "extensions",
            CheckOutcome::Ok,
            format!("extensions {names} are made anew on the root, as this host has them; rows of their own tables are theirs"),
            None,
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_superusers_get_another_owner() {
        let tables = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        let owners: BTreeMap<&str, Vec<String>> =
            [("boss", tables(["s.a", "s.b"])), ("postgres", tables(["s.c", "s.d"]))].into();
        assert_eq!(
            ownership_fixes("app", &owners, &["postgres".to_owned()]),
            ["grant \"boss\" to app", "alter table s.c owner to app", "alter table s.d owner to app"]
        );
    }

    #[test]
    fn what_other_schemas_have_is_named_with_the_option_that_takes_it() {
        let options = LogicalOptions { schemas: vec!["a1".into()], ..LogicalOptions::default() };
        let part = |name: &str| OutsidePart { name: name.into(), schema: "a2".into(), of: "a1.p".into() };
        let mut checks = Checks::default();
        outside_rows(&mut checks, &options, &[part("a2.p_1"), part("a2.p_2")]);
        let needed = NeededOutside { what: vec!["type public.mood".into()], schemas: vec!["public".into()] };
        definitions(&mut checks, &options, needed);
        outside_rows(&mut checks, &options, &[]);
        definitions(&mut checks, &options, NeededOutside::default());
        let checks = checks.into_list();
        let outcomes = [CheckOutcome::Warning, CheckOutcome::Failed, CheckOutcome::Ok, CheckOutcome::Ok];
        assert_eq!(checks.iter().map(|check| check.outcome).collect::<Vec<_>>(), outcomes);
        assert!(checks[0].message.contains("a2.p_1") && checks[0].message.contains("a2.p_2"), "{:?}", checks[0]);
        assert_eq!(checks[0].fix.as_deref(), Some("--schemas a1,a2"));
        assert!(checks[1].message.contains("type public.mood"), "{:?}", checks[1]);
        assert_eq!(checks[1].fix.as_deref(), Some("--schemas a1,public"));
    }
}
