//! Names and texts as SQL takes them, whatever is in them.

/// `name` as an identifier, always in quotes. The grammar of replication commands takes it as well.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `schema.name`, each in quotes.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(name))
}

/// `text` as a string constant that means the same whatever `standard_conforming_strings` says. It may begin with a letter, so none
/// may stand right before it.
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_stays_one_thing() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(qualified("a.b", "c"), "\"a.b\".\"c\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\b'"), "E'a\\\\b'''");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }
}
