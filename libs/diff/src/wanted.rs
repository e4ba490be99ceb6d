//! Tables that are asked for by name, and may not be there.

use std::collections::BTreeSet;

use crate::catalog::field;
use crate::error::DiffError;
use crate::session::Session;

/// Most names that are proposed for one that is not there.
const PROPOSED_MAX: usize = 3;

/// All that rows and sequence values are compared of, and partitioned and foreign tables, whose schema is.
const NAMED: &str = "
    select n.nspname::text, c.relname::text
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'm', 'f', 'S') and c.relpersistence <> 't'
       and n.nspname <> 'pg_catalog' and n.nspname <> 'information_schema' and n.nspname !~ '^pg_toast'";

/// A name of a table, as a diff takes it: `name`, or `schema.name`, each as the catalog has it, or in double quotes as SQL takes it.
pub(crate) fn is_named(wanted: &str, schema: &str, name: &str) -> bool {
    let is_plain =
        wanted == name || wanted.strip_suffix(name).and_then(|start| start.strip_suffix('.')) == Some(schema);
    is_plain
        || match &unquoted(wanted)[..] {
            [of] => of == name,
            [of_schema, of] => of_schema == schema && of == name,
            _ => false,
        }
}

/// The parts of a name in which there are double quotes; none where there are none, or where it is no name.
pub fn unquoted(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while text.contains('"') {
        let (part, after) = match rest.strip_prefix('"') {
            Some(inside) => {
                let Some((part, after)) = closing_quote(inside) else { return Vec::new() };
                (part.replace("\"\"", "\""), after)
            }
            None => {
                let end = rest.find('.').unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        parts.push(part);
        match after.strip_prefix('.') {
            Some(more) => rest = more,
            None if after.is_empty() => break,
            None => return Vec::new(),
        }
    }
    parts
}

/// What stands before the quote that ends it, and what after: two quotes are one that does not.
fn closing_quote(inside: &str) -> Option<(&str, &str)> {
    let mut from = 0;
    loop {
        let at = from + inside[from..].find('"')?;
        match inside[at + 1..].starts_with('"') {
            true => from = at + 2,
            false => return Some((&inside[..at], &inside[at + 1..])),
        }
    }
}

/// Schema and name of everything in a database that a diff can be asked for.
pub async fn names(session: &Session) -> Result<BTreeSet<(String, String)>, DiffError> {
    let rows = session.query(NAMED, &[]).await?;
    rows.iter().map(|row| Ok((field(session, row, 0)?, field(session, row, 1)?))).collect()
}

/// Those of the wanted names that nothing has, each with the nearest names that something has.
pub fn unknown<'a>(wanted: &'a [String], names: &BTreeSet<(String, String)>) -> Vec<(&'a str, Vec<String>)> {
    let is_unknown = |wanted: &&String| !names.iter().any(|(schema, name)| is_named(wanted, schema, name));
    wanted.iter().filter(is_unknown).map(|wanted| (wanted.as_str(), near(wanted, names))).collect()
}

/// Names that are a typing error or two away, and the right name in another schema; nearest first.
fn near(wanted: &str, names: &BTreeSet<(String, String)>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let (schema_given, bare) = wanted.rsplit_once('.').map_or((false, wanted.as_str()), |(_, name)| (true, name));
    let errors_max = 1 + bare.chars().count() / 4;
    let mut found: Vec<(usize, usize, String)> = Vec::new();
    for (schema, name) in names {
        let full = format!("{schema}.{name}");
        let of_full = errors_between(&wanted, &full.to_lowercase());
        let errors = of_full.min(errors_between(bare, &name.to_lowercase()));
        if errors <= errors_max {
            // Of names that are as near, first those whose schema is.
            found.push((errors, if schema_given { of_full } else { 0 }, full));
        }
    }
    found.sort();
    found.into_iter().take(PROPOSED_MAX).map(|(.., name)| name).collect()
}

/// How many characters must be put in, left out or exchanged to make one text of the other.
fn errors_between(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, of_a) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = line + 1;
        for (place, of_b) in b.iter().enumerate() {
            let exchanged = before + usize::from(of_a != *of_b);
            before = row[place + 1];
            row[place + 1] = exchanged.min(before + 1).min(row[place] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nothing_has_are_told_with_what_is_near() {
        let pair = |schema: &str, name: &str| (schema.to_owned(), name.to_owned());
        let names = BTreeSet::from([
            pair("public", "orders"),
            pair("public", "Order.lines"),
            pair("shop", "orders"),
            pair("shop", "customers"),
        ]);
        let check = |wanted: &str, expect: Option<&[&str]>| {
            let wanted = [wanted.to_owned()];
            let found = unknown(&wanted, &names);
            let near: Option<Vec<&str>> = found.first().map(|(_, near)| near.iter().map(String::as_str).collect());
            assert_eq!(near.as_deref(), expect, "{wanted:?}");
        };
        for there in [
            "orders",
            "shop.orders",
            "customers",
            "Order.lines",
            "public.Order.lines",
            "\"orders\"",
            "\"shop\".\"orders\"",
            "shop.\"orders\"",
            "\"Order.lines\"",
            "public.\"Order.lines\"",
        ] {
            check(there, None);
        }
        check("oders", Some(&["public.orders", "shop.orders"]));
        check("shop.oders", Some(&["shop.orders", "public.orders"]));
        check("Customers", Some(&["shop.customers"]));
        check("public.customers", Some(&["shop.customers"]));
        check("invoices", Some(&[]));
        // A part of a schema's name is none.
        check("op.orders", Some(&["shop.orders", "public.orders"]));
    }

    #[test]
    fn quoted_names_have_parts() {
        let check = |text: &str, expect: &[&str]| assert_eq!(unquoted(text), expect, "{text}");
        check("a.b", &[]);
        check("\"a.b\"", &["a.b"]);
        check("\"a b\".c", &["a b", "c"]);
        check("a.\"say \"\"x\"\"\"", &["a", "say \"x\""]);
        for broken in ["\"a", "\"a\"b", "\"a\"\"", "\""] {
            check(broken, &[]);
        }
    }

    #[test]
    fn errors_are_counted() {
        for (a, b, expect) in [("", "", 0), ("", "ab", 2), ("ab", "", 2), ("kitten", "sitting", 3), ("ü", "u", 1)] {
            assert_eq!(errors_between(a, b), expect, "{a} {b}");
        }
    }
}
