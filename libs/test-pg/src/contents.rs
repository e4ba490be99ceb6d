//! What is in a database, as text that can be compared.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

/// Runs a query; rows as lines, fields separated by `|`.
pub type Ask<'a> = &'a dyn Fn(&str) -> String;

/// Schema, rows, sequences and large objects. Columns are in the order of their names: one that comes back comes last.
/// `pg_dump` is the program with all that says where the database is.
pub fn state(ask: Ask<'_>, pg_dump: &mut Command) -> String {
    let pg_dump = pg_dump.arg("--schema-only").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let pg_dump = pg_dump.spawn().expect("pg_dump can be run");
    // Meanwhile, it reads the schema.
    let rows = rows(ask);
    let sequences = all_of(
        ask,
        "select string_agg(format('select %L, last_value, is_called from %s', oid::regclass, oid::regclass), ' union all ' order by oid::regclass::text) from pg_class where relkind = 'S'",
    );
    let objects = ask("select oid, md5(lo_get(oid)), lomowner::regrole, obj_description(oid, 'pg_largeobject'),
            (select string_agg(a::text, ' ' order by a::text) from aclexplode(coalesce(lomacl, acldefault('L', lomowner))) a)
         from pg_largeobject_metadata order by 1");
    let output = pg_dump.wait_with_output().expect("pg_dump ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dump = String::from_utf8_lossy(&output.stdout).into_owned();
    // Newer minors begin and end with a word that is another one each time.
    let lines = dump.lines().filter(|line| !line.contains("restrict ")).map(|line| line.trim_end_matches(','));
    let mut lines: Vec<&str> = lines.collect();
    lines.sort_unstable();
    format!("{}\n{rows}\n{sequences}\n{objects}", lines.join("\n"))
}

/// All rows of all tables and materialized views.
pub fn rows(ask: Ask<'_>) -> String {
    all_of(
        ask,
        "select string_agg(format('select %L, (select coalesce(string_agg(r, E''\\n'' order by r collate \"C\"), '''') from (select row(%s)::text as r from only %s) x)', c.oid::regclass,
            (select string_agg(quote_ident(attname), ', ' order by attname) from pg_attribute a where a.attrelid = c.oid and attnum > 0 and not attisdropped), c.oid::regclass), ' union all ' order by c.oid::regclass::text)
         from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'm') and c.relispopulated and c.oid >= 16384",
    )
}

/// Runs the query that a query gives, if it gives one.
fn all_of(ask: Ask<'_>, query: &str) -> String {
    let query = ask(query);
    if query.is_empty() { query } else { ask(&query) }
}

/// The lines that only one of two texts has, for whoever must find out why.
pub fn differing_lines(wanted: &str, got: &str) -> String {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (wanted, got) = (lines(wanted), lines(got));
    let (missing, surplus): (Vec<_>, Vec<_>) = (wanted.difference(&got).collect(), got.difference(&wanted).collect());
    format!("missing {missing:#?}\nsurplus {surplus:#?}")
}
