//! What production lacks for logical mode, and what of it branches will not have.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ardent_api::control::{CheckOutcome, KeylessTables, LogicalOptions, PreflightCheck};
use ardent_pg_wire::{ConnectConfig, ConnectMode, Connection, QueryResult, WireError};
use ardent_types::sql::{literal, quoted};
use tokio_postgres::Client;

use crate::logical::config::program_folders;
use crate::logical::error::{LogicalError, source};
use crate::logical::program;
use crate::logical::session::connect_source;
use crate::logical::tables::{SourceTable, tables};
use crate::preflight::{Checks, FACTS, HostFacts, LOCALES, locales, major, number, server, slots};

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
    let found = tables(&client, options).await?;
    table_rights(&mut checks, &facts, &found);
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
        Some(format!("apt-get install postgresql-client-{major}")),
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
            "alter system set wal_level = logical; -- then restart. A managed service has a parameter for it, \
             such as rds.logical_replication = 1 or cloudsql.logical_decoding = on"
                .to_owned(),
        ),
    );
    let free = number(facts, "senders") - number(facts, "senders_used");
    checks.require(
        "max_wal_senders",
        free >= 2,
        format!("{free} WAL senders are free"),
        format!("{free} WAL senders are free, 2 are needed; a change needs a restart"),
        Some(format!(
            "alter system set max_wal_senders = {}; -- then restart",
            (number(facts, "senders_used") + 2).max(10)
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

fn table_rights(checks: &mut Checks, facts: &QueryResult, found: &[SourceTable]) {
    let role = facts.value("me_quoted").unwrap_or_default();
    let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for table in found.iter().filter(|table| table.is_logged && !table.is_owned) {
        owners.entry(&table.owner).or_default().push(table.quoted());
    }
    let names = owners.values().flatten().cloned().collect();
    let grants = owners.keys().map(|owner| format!("grant {} to {role}", quoted(owner)));
    checks.require(
        "ownership",
        owners.is_empty(),
        format!("role {role} may publish every table"),
        format!(
            "role {role} may publish only what it owns, or what a role that it is a member of does; not {}",
            listed(names)
        ),
        Some(grants.collect::<Vec<_>>().join(";\n           ")),
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
                format!("tables without a primary key or other replica identity: {names}. Published, they could not be updated any more"),
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
