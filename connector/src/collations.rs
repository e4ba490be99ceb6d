//! Whether texts sort here as on production. Where they do not, a copy's indexes on text are in an order that nobody here searches by.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;

use ardent_api::collations::COLLATIONS_IN_USE;
use ardent_pg_wire::{ConnectConfig, ConnectMode, Connection, WireError};

use crate::logical::program;
use crate::preflight::{Checks, HostFacts};

/// Names of indexes in one message, of each collation.
const NAMED_MAX: usize = 5;

/// A collation that indexes of a database depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Used {
    database: String,
    name: String,
    provider: String,
    locale: String,
    /// The versions of production's that its indexes may have been made with: the recorded one, and its server's own.
    versions: Vec<String>,
    indexes: Vec<String>,
}

/// Adds the check `collation_version`. `bin_dir` has the server programs of production's major, which know their ICU.
pub(crate) async fn check(
    checks: &mut Checks,
    config: &ConnectConfig,
    host: &HostFacts,
    bin_dir: Option<&Path>,
) -> Result<(), WireError> {
    let mut sql = Connection::connect(config, ConnectMode::Sql).await?;
    let listed = sql.query("select datname from pg_catalog.pg_database where datallowconn order by datname").await?;
    let (mut used, mut unseen) = (Vec::new(), Vec::new());
    for database in listed.rows.into_iter().flatten().flatten() {
        match used_in(config, &database).await {
            Ok(found) => used.extend(found),
            Err(error) => unseen.push(format!("{database} ({error})")),
        }
    }
    let locales: BTreeSet<&str> =
        used.iter().filter(|used| used.provider == "i").map(|used| used.locale.as_str()).collect();
    let icu = match bin_dir {
        Some(bin_dir) if !locales.is_empty() => icu_versions(bin_dir, &locales).await.unwrap_or_else(|error| {
            tracing::warn!(error, "the version of this host's ICU cannot be found out");
            BTreeMap::new()
        }),
        _ => BTreeMap::new(),
    };
    let here = |used: &Used| match used.provider.as_str() {
        "c" => host.libc_version.clone(),
        "i" => icu.get(&used.locale).cloned(),
        // Part of Postgres.
        _ => used.versions.first().cloned(),
    };
    let differing: Vec<String> = used.iter().filter_map(|used| differs(used, here(used).as_deref())).collect();
    let mut parts = Vec::new();
    if !differing.is_empty() {
        parts.push(format!(
            "texts sort otherwise here than on production, and these indexes are wrong on branches: {}",
            differing.join("; ")
        ));
    }
    if !unseen.is_empty() {
        parts.push(format!("it is not known whether texts sort here as in these databases: {}", unseen.join("; ")));
    }
    checks.warn(
        "collation_version",
        parts.is_empty(),
        "indexed texts sort here as on production",
        parts.join("; "),
        (!differing.is_empty())
            .then(|| "make branches with: ardent branch create NAME --reindex-collations".to_owned()),
    );
    Ok(())
}

async fn used_in(config: &ConnectConfig, database: &str) -> Result<Vec<Used>, WireError> {
    let mut sql = Connection::connect(&config.clone().with_database(database), ConnectMode::Sql).await?;
    sql.query("set search_path = ''").await?;
    let result = sql.query(COLLATIONS_IN_USE).await?;
    let used = |row: Vec<Option<String>>| {
        let mut values = row.into_iter().skip(1);
        let mut text = || values.next().flatten();
        let (name, provider, locale, version, actual, indexes) = (text(), text(), text(), text(), text(), text());
        let mut versions: Vec<String> = [version, actual].into_iter().flatten().collect();
        versions.dedup();
        Some(Used {
            database: database.to_owned(),
            name: name?,
            provider: provider?,
            locale: locale.unwrap_or_default(),
            versions,
            indexes: serde_json::from_str(&indexes?).ok()?,
        })
    };
    Ok(result.rows.into_iter().filter_map(used).collect())
}

/// What to say of a collation whose version here is `here`, unless it sorts as on production.
fn differs(used: &Used, here: Option<&str>) -> Option<String> {
    if used.versions.iter().all(|version| Some(version.as_str()) == here) {
        return None;
    }
    let Used { database, name, locale, versions, indexes, .. } = used;
    let provider = if used.provider == "c" { "C library" } else { "ICU" };
    let more = indexes.len().saturating_sub(NAMED_MAX);
    let mut named = indexes.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 {
        named.push_str(&format!(" and {more} more"));
    }
    Some(format!(
        "database {database}, collation {name} ({provider}, {locale}, version {} there, {} here): {named}",
        versions.join(" and "),
        here.unwrap_or("unknown")
    ))
}

/// The version of each of these locales' collations, as the server programs have it: ICU's depend on which one they are linked with. A
/// cluster is made to ask them, and removed. A locale that they don't know is not in the answer.
async fn icu_versions(bin_dir: &Path, locales: &BTreeSet<&str>) -> Result<BTreeMap<String, String>, String> {
    let folder = program::folder().map_err(|error| error.to_string())?;
    let data = folder.path().join("data");
    let initdb = bin_dir.join("initdb");
    let mut command = program::command(&initdb);
    command.args([
        "--no-sync",
        "--auth=trust",
        "--no-instructions",
        "--locale=C",
        "--encoding=UTF8",
        "--username=postgres",
        "-D",
    ]);
    command.arg(&data);
    program::output(command, &initdb).await.map_err(|error| error.chain())?;
    let mut command = program::command(&bin_dir.join("postgres"));
    command.arg("--single").arg("-D").arg(&data).args(["-c", "fsync=off", "template1"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let failed = |error: std::io::Error| format!("postgres --single: {error}");
    let mut child = command.spawn().map_err(failed)?;
    let mut input = child.stdin.take().expect("it is piped");
    // One statement a line. One that fails leaves the others.
    let mut script = String::new();
    for (number, locale) in locales.iter().enumerate() {
        let locale = locale.replace('\'', "''").replace('\n', " ");
        script.push_str(&format!("create collation ardent_{number} (provider = icu, locale = '{locale}')\n"));
    }
    script.push_str(
        "select '@' || substr(collname, 8) || '=' || pg_collation_actual_version(oid) as v from pg_collation where collname like 'ardent\\_%'\n",
    );
    input.write_all(script.as_bytes()).await.map_err(failed)?;
    drop(input);
    let output = child.wait_with_output().await.map_err(failed)?;
    Ok(parse_versions(&String::from_utf8_lossy(&output.stdout), locales))
}

/// `1: v = "@0=153.120" (typeid = 25, ...)`
fn parse_versions(printed: &str, locales: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let found = |line: &str| {
        let (number, rest) = line.split_once("\"@")?.1.split_once('=')?;
        let locale = locales.iter().nth(number.parse().ok()?)?;
        Some(((*locale).to_owned(), rest.split_once('"')?.0.to_owned()))
    };
    printed.lines().filter_map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(versions: &[&str]) -> Used {
        Used {
            database: "shop".into(),
            name: "the default".into(),
            provider: "c".into(),
            locale: "de_DE.UTF-8".into(),
            versions: versions.iter().map(|&version| version.to_owned()).collect(),
            indexes: (1..8).map(|number| format!("public.i{number}")).collect(),
        }
    }

    #[test]
    fn indexes_are_named_where_one_of_productions_versions_is_not_the_one_here() {
        assert_eq!(differs(&used(&["2.36"]), Some("2.36")), None);
        for (versions, here) in [(&["2.31"][..], Some("2.36")), (&["2.31", "2.36"], Some("2.36")), (&["2.36"], None)] {
            let said = differs(&used(versions), here).expect("it differs");
            for word in ["database shop", "the default", "de_DE.UTF-8", "public.i1", "public.i5 and 2 more"] {
                assert!(said.contains(word), "{word} is not in {said}");
            }
        }
    }

    #[test]
    fn versions_are_read_from_what_a_single_user_server_prints() {
        let printed = "\t 1: v\t(typeid = 25, len = -1)\n\t----\n\t 1: v = \"@1=153.120\"\t(typeid = 25)\n\t----\n\t 1: v = \"@0=153.14\"\t(x)\n";
        let found = parse_versions(printed, &BTreeSet::from(["de", "sv"]));
        let wanted =
            [("de", "153.14"), ("sv", "153.120")].map(|(locale, version)| (locale.to_owned(), version.to_owned()));
        assert_eq!(found, BTreeMap::from(wanted));
    }
}
