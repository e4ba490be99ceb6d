//! What a statement that `pg_dump` wrote is to an import.

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

/// Whether a statement makes an index, or a key and its index, of one table: it needs no other statement of that kind.
pub(crate) fn makes_index(statement: &str) -> bool {
    let upper: String = statement.chars().take(400).collect::<String>().to_ascii_uppercase();
    upper.starts_with("CREATE INDEX ")
        || upper.starts_with("CREATE UNIQUE INDEX ")
        || (upper.starts_with("ALTER TABLE ONLY ")
            && [" PRIMARY KEY (", " UNIQUE ("].iter().any(|words| upper.contains(words))
            && upper.contains("ADD CONSTRAINT ")
            && !upper.contains("FOREIGN KEY"))
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
        for statement in [
            "CREATE INDEX i ON s.t USING btree (a)",
            "CREATE UNIQUE INDEX i ON ONLY s.t USING btree (a)",
            "ALTER TABLE ONLY s.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (a)",
            "ALTER TABLE ONLY s.t\n    ADD CONSTRAINT t_key UNIQUE (a)",
        ] {
            assert!(makes_index(statement), "{statement}");
        }
        for statement in [
            "ALTER INDEX s.i ATTACH PARTITION s.j",
            "ALTER TABLE ONLY s.t REPLICA IDENTITY USING INDEX i",
            "ALTER TABLE ONLY s.t\n    ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES s.u(a)",
            "CREATE TRIGGER x AFTER INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f()",
        ] {
            assert!(!makes_index(statement), "{statement}");
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
