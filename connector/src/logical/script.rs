//! Takes the SQL that `pg_dump` writes apart into statements.

/// What a statement is to an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Without it rows cannot be kept as on production.
    Needed,
    /// Without it the root lacks something that production has; that is said.
    Wished,
    /// A foreign key: checked when all rows are of one moment.
    ForeignKey,
    /// A setting of the session.
    Setting,
}

/// The statements of a script, without comments between them, without psql's own commands, without their semicolons.
pub(crate) fn statements(script: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = script;
    loop {
        rest = skip_between(rest);
        if rest.is_empty() {
            return found;
        }
        let length = statement_length(rest);
        let text = rest[..length].trim_end();
        if !text.is_empty() {
            found.push(text.to_owned());
        }
        rest = rest[length..].strip_prefix(';').unwrap_or(&rest[length..]);
    }
}

/// Skips space, comments and psql's commands before a statement.
fn skip_between(mut text: &str) -> &str {
    loop {
        text = text.trim_start();
        if text.starts_with("--") || text.starts_with('\\') {
            text = text.find('\n').map_or("", |at| &text[at..]);
        } else if text.starts_with("/*") {
            text = &text[comment_length(text)..];
        } else {
            return text;
        }
    }
}

/// Up to the semicolon that ends the first statement: not one in quotes, in parentheses, or in a body between BEGIN and END.
fn statement_length(text: &str) -> usize {
    let has_body = is_routine(text);
    let bytes = text.as_bytes();
    let (mut at, mut parentheses, mut bodies) = (0, 0usize, 0usize);
    while at < bytes.len() {
        let rest = &text[at..];
        at += match bytes[at] {
            b';' if parentheses == 0 && bodies == 0 => return at,
            b'(' => {
                parentheses += 1;
                1
            }
            b')' => {
                parentheses = parentheses.saturating_sub(1);
                1
            }
            b'\'' => quote_length(rest, b'\'', has_escapes(&bytes[..at])),
            b'"' => quote_length(rest, b'"', false),
            b'-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => comment_length(rest),
            b'$' => dollar_quote_length(rest).unwrap_or(1),
            byte if is_word_byte(byte) => {
                let length = rest.bytes().position(|byte| !is_word_byte(byte) && byte != b'$').unwrap_or(rest.len());
                let word = &rest[..length];
                let is = |keyword: &str| word.eq_ignore_ascii_case(keyword);
                if has_body && is("begin") || bodies > 0 && is("case") {
                    bodies += 1;
                } else if bodies > 0 && is("end") {
                    bodies -= 1;
                }
                length
            }
            _ => 1,
        };
    }
    text.len()
}

/// Whether a text that is quoted behind this has escapes: `E'...'`, and not `date'...'`.
fn has_escapes(before: &[u8]) -> bool {
    match before {
        [.., byte, b'E' | b'e'] => !is_word_byte(*byte),
        [b'E' | b'e'] => true,
        _ => false,
    }
}

/// Letters, digits, underscores, and all beyond ASCII.
fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Whether a statement makes a function or procedure, whose body may hold statements.
fn is_routine(text: &str) -> bool {
    let mut words = text.split_ascii_whitespace().map(str::to_ascii_uppercase);
    if words.next().as_deref() != Some("CREATE") {
        return false;
    }
    let mut word = words.next();
    if word.as_deref() == Some("OR") {
        word = words.nth(1);
    }
    matches!(word.as_deref(), Some("FUNCTION" | "PROCEDURE"))
}

fn quote_length(text: &str, quote: u8, has_escapes: bool) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        if has_escapes && bytes[at] == b'\\' {
            at += 2;
        } else if bytes[at] == quote {
            if bytes.get(at + 1) != Some(&quote) {
                return at + 1;
            }
            at += 2;
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// Comments nest.
fn comment_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (2, 1);
    while at < bytes.len() && depth > 0 {
        match &bytes[at..(at + 2).min(bytes.len())] {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
            }
            _ => at += 1,
        }
    }
    at.min(bytes.len())
}

/// `$tag$ ... $tag$`; `None` if no such quote begins here.
fn dollar_quote_length(text: &str) -> Option<usize> {
    let end = text[1..].find('$')? + 2;
    let tag = &text[..end];
    let name = &tag[1..end - 1];
    if !name.bytes().all(is_word_byte) || name.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    Some(text[end..].find(tag).map_or(text.len(), |at| end + at + tag.len()))
}

/// What a statement is to an import.
pub(crate) fn weight(statement: &str) -> Weight {
    let upper: String = statement.chars().take(400).collect::<String>().to_ascii_uppercase();
    let begins = |words: &str| upper.starts_with(words);
    if begins("SET ") || begins("SELECT PG_CATALOG.SET_CONFIG(") {
        return Weight::Setting;
    }
    if begins("ALTER TABLE") && upper.contains("FOREIGN KEY") && upper.contains("ADD CONSTRAINT") {
        return Weight::ForeignKey;
    }
    let needed = begins("CREATE TABLE")
        || begins("CREATE SCHEMA")
        || begins("CREATE TYPE")
        || begins("CREATE DOMAIN")
        || begins("CREATE SEQUENCE")
        || begins("CREATE UNIQUE INDEX")
        || (begins("ALTER TABLE")
            && ["ATTACH PARTITION", "PRIMARY KEY", " UNIQUE ", "REPLICA IDENTITY", "GENERATED", "SET DEFAULT"]
                .iter()
                .any(|words| upper.contains(words)));
    if needed { Weight::Needed } else { Weight::Wished }
}

/// A statement as it is right on a root branch, whose rows come with everything that triggers did on production. Triggers and rules
/// that fire for replicated changes would do it again: those that fire for ordinary sessions as well become ordinary ones (`None`:
/// they are so when they are made), the others are turned off, as they are for production's ordinary sessions.
pub(crate) fn for_root(statement: &str) -> Option<String> {
    let upper = statement.to_ascii_uppercase();
    if !upper.starts_with("ALTER ") {
        return Some(statement.to_owned());
    }
    for kind in ["TRIGGER", "RULE"] {
        if upper.contains(&format!(" ENABLE ALWAYS {kind} ")) {
            return None;
        }
        let replica = format!(" ENABLE REPLICA {kind} ");
        if let Some(at) = upper.find(&replica) {
            let after = &statement[at + replica.len()..];
            return Some(format!("{} DISABLE {kind} {after}", &statement[..at]));
        }
    }
    if upper.starts_with("ALTER EVENT TRIGGER ") {
        if upper.ends_with(" ENABLE ALWAYS") {
            return None;
        }
        if let Some(start) = upper.strip_suffix(" ENABLE REPLICA") {
            return Some(format!("{} DISABLE", &statement[..start.len()]));
        }
    }
    Some(statement.to_owned())
}

/// The extension that a statement makes, or comments on.
pub(crate) fn extension_of(statement: &str) -> Option<String> {
    let rest = statement
        .strip_prefix("CREATE EXTENSION IF NOT EXISTS ")
        .or_else(|| statement.strip_prefix("CREATE EXTENSION "))
        .or_else(|| statement.strip_prefix("COMMENT ON EXTENSION "))?;
    match rest.strip_prefix('"') {
        Some(rest) => rest.split('"').next().map(str::to_owned),
        None => rest.split_ascii_whitespace().next().map(str::to_owned),
    }
}

/// The first line of a statement, for messages.
pub(crate) fn summary(statement: &str) -> String {
    const LENGTH: usize = 160;
    let line = statement.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(script: &str, expect: &[&str]) {
        assert_eq!(statements(script), expect, "{script}");
    }

    #[test]
    fn statements_end_at_their_own_semicolons() {
        check("-- a; b\n\\restrict x;\nSELECT 1;\n\n/* ; /* ; */ ; */ SELECT 2", &["SELECT 1", "SELECT 2"]);
        check(
            "SELECT 'a;b''c;', \"x;y\", E'\\';', 'C:\\';SELECT 2;",
            &["SELECT 'a;b''c;', \"x;y\", E'\\';', 'C:\\'", "SELECT 2"],
        );
        check(
            "CREATE FUNCTION f() AS $$ a; $b$ ; $$;SELECT $x$;$$;$x$, $1;",
            &["CREATE FUNCTION f() AS $$ a; $b$ ; $$", "SELECT $x$;$$;$x$, $1"],
        );
        check(
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);SELECT 3;",
            &["CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)", "SELECT 3"],
        );
        let body = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END";
        check(&format!("{body};SELECT begin;"), &[body, "SELECT begin"]);
        check("SELECT a$b; -- c'\nSELECT 'ä;';", &["SELECT a$b", "SELECT 'ä;'"]);
        check("SELECT date'\\';SELECT 2", &["SELECT date'\\'", "SELECT 2"]);
        check(" ;; ", &[]);
    }

    #[test]
    fn what_is_cut_off_is_one_statement() {
        for cut in ["SELECT 'a;", "SELECT \"a;", "SELECT $x$ ; $", "/* ; ", "SELECT (1;", "CREATE FUNCTION f() BEGIN ;"]
        {
            assert!(statements(cut).len() <= 1, "{cut}");
        }
    }

    #[test]
    fn triggers_do_not_do_again_what_they_did_on_production() {
        let check = |statement: &str, expect: Option<&str>| assert_eq!(for_root(statement).as_deref(), expect);
        check("ALTER TABLE s.t ENABLE ALWAYS TRIGGER x", None);
        check("ALTER TABLE s.t ENABLE REPLICA TRIGGER \"X y\"", Some("ALTER TABLE s.t DISABLE TRIGGER \"X y\""));
        check("ALTER TABLE s.t DISABLE TRIGGER x", Some("ALTER TABLE s.t DISABLE TRIGGER x"));
        check("ALTER TABLE s.t ENABLE REPLICA RULE x", Some("ALTER TABLE s.t DISABLE RULE x"));
        check("ALTER EVENT TRIGGER x ENABLE REPLICA", Some("ALTER EVENT TRIGGER x DISABLE"));
        check("ALTER EVENT TRIGGER x ENABLE ALWAYS", None);
        check("CREATE TABLE t (a int)", Some("CREATE TABLE t (a int)"));
    }

    #[test]
    fn statements_are_weighed() {
        for (statement, expect) in [
            ("SET x = 1", Weight::Setting),
            ("SELECT pg_catalog.set_config('search_path', '', false)", Weight::Setting),
            ("CREATE TABLE s.t (a int)", Weight::Needed),
            ("ALTER TABLE ONLY s.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (a)", Weight::Needed),
            ("ALTER TABLE ONLY s.t\n    ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES s.u(a)", Weight::ForeignKey),
            ("CREATE VIEW v AS SELECT 1", Weight::Wished),
            ("GRANT SELECT ON TABLE s.t TO x", Weight::Wished),
        ] {
            assert_eq!(weight(statement), expect, "{statement}");
        }
        assert_eq!(
            extension_of("CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" WITH SCHEMA public").as_deref(),
            Some("uuid-ossp")
        );
        assert_eq!(extension_of("COMMENT ON EXTENSION hstore IS 'x'").as_deref(), Some("hstore"));
        assert_eq!(extension_of("CREATE TABLE t ()"), None);
        assert_eq!(summary("CREATE\n  TABLE t"), "CREATE TABLE t");
    }
}
