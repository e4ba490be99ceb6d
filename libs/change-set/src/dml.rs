//! Statements for rows. Values are string constants, which Postgres reads with each column's own input function.

use ardent_schema_diff::{identifier, literal};

pub(crate) fn value(value: &Option<String>) -> String {
    value.as_deref().map_or("NULL".to_owned(), literal)
}

/// One insert of many rows; each row gives the values of `columns`. Identity columns take what is given.
pub(crate) fn insert<'a>(
    table: &str,
    columns: &[&str],
    rows: impl IntoIterator<Item = Vec<&'a Option<String>>>,
) -> String {
    let names: Vec<String> = columns.iter().map(|name| identifier(name)).collect();
    let rows: Vec<String> = rows
        .into_iter()
        .map(|row| format!("({})", row.iter().map(|v| value(v)).collect::<Vec<_>>().join(", ")))
        .collect();
    if names.is_empty() {
        return rows.iter().map(|_| format!("INSERT INTO {table} DEFAULT VALUES")).collect::<Vec<_>>().join("; ");
    }
    format!("INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE VALUES {}", names.join(", "), rows.join(", "))
}

/// An update of one row.
pub(crate) fn update(table: &str, key: &[(&str, &Option<String>)], set: &[(&str, &Option<String>)]) -> String {
    let set: Vec<String> = set.iter().map(|(name, v)| format!("{} = {}", identifier(name), value(v))).collect();
    format!("UPDATE ONLY {table} SET {} WHERE {}", set.join(", "), condition(key))
}

/// A delete of one row.
pub(crate) fn delete(table: &str, key: &[(&str, &Option<String>)]) -> String {
    format!("DELETE FROM ONLY {table} WHERE {}", condition(key))
}

/// Whether a column has the value that its type's output function writes so. Not every type has an equality, and a composite of nulls is no
/// null.
pub(crate) fn looks_like(column: &str, value: Option<&str>) -> String {
    let column = identifier(column);
    match value {
        Some(value) => format!("(num_nulls({column}) = 0 AND format('%s', {column}) = {})", literal(value)),
        None => format!("num_nulls({column}) = 1"),
    }
}

fn condition(key: &[(&str, &Option<String>)]) -> String {
    let parts: Vec<String> = key.iter().map(|(name, v)| format!("{} = {}", identifier(name), value(v))).collect();
    parts.join(" AND ")
}

/// `(a, b) IN (...)` for these keys.
pub(crate) fn any_of(columns: &[&str], keys: &[Vec<Option<String>>]) -> String {
    let names: Vec<String> = columns.iter().map(|name| identifier(name)).collect();
    format!("({}) IN ({})", names.join(", "), key_list(keys))
}

/// The same by what values look like, for keys that may be no values of the columns' types.
pub(crate) fn any_of_texts(columns: &[&str], keys: &[Vec<Option<String>>]) -> String {
    let names: Vec<String> = columns.iter().map(|name| format!("{}::text", identifier(name))).collect();
    format!("({}) IN ({})", names.join(", "), key_list(keys))
}

fn key_list(keys: &[Vec<Option<String>>]) -> String {
    let rows: Vec<String> =
        keys.iter().map(|key| format!("({})", key.iter().map(value).collect::<Vec<_>>().join(", "))).collect();
    rows.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_quote_names_and_values() {
        let (one, text, null) = (Some("1".to_owned()), Some("it's".to_owned()), None);
        assert_eq!(
            insert("public.t", &["id", "Name"], [vec![&one, &text], vec![&one, &null]]),
            "INSERT INTO public.t (id, \"Name\") OVERRIDING SYSTEM VALUE VALUES ('1', 'it''s'), ('1', NULL)"
        );
        assert_eq!(update("t", &[("id", &one)], &[("a", &null)]), "UPDATE ONLY t SET a = NULL WHERE id = '1'");
        assert_eq!(delete("t", &[("id", &one), ("b", &text)]), "DELETE FROM ONLY t WHERE id = '1' AND b = 'it''s'");
        assert_eq!(any_of(&["id"], &[vec![one.clone()]]), "(id) IN (('1'))");
        assert_eq!(any_of_texts(&["id"], &[vec![one.clone()]]), "(id::text) IN (('1'))");
    }
}
