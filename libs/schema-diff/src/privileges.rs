//! Owners, privileges and comments.

use std::collections::BTreeSet;

use ardent_types::sql::literal;

use crate::catalog::{Kind, Object, Privilege};

/// Whether this is what an object has when nobody granted or revoked anything.
pub(crate) fn is_default(object: &Object) -> bool {
    let Some(acl) = &object.acl else { return true };
    let (own, everybody): (&[&str], Option<&str>) = match object.kind {
        Kind::Table | Kind::ForeignTable | Kind::View | Kind::MaterializedView => {
            (&["INSERT", "SELECT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"], None)
        }
        Kind::Sequence => (&["SELECT", "UPDATE", "USAGE"], None),
        Kind::Schema => (&["USAGE", "CREATE"], None),
        Kind::Function => (&["EXECUTE"], Some("EXECUTE")),
        Kind::Enum | Kind::Domain | Kind::Composite | Kind::Range => (&["USAGE"], Some("USAGE")),
        Kind::Server => (&["USAGE"], None),
        _ => return acl.is_empty(),
    };
    let owner = object.owner.as_deref().unwrap_or_default();
    let mut left: BTreeSet<(Option<&str>, &str)> = own.iter().map(|privilege| (Some(owner), *privilege)).collect();
    left.extend(everybody.map(|privilege| (None, privilege)));
    for (grantee, grantor, privilege, grantable) in acl {
        // Majors that know one more privilege for owners have it in their defaults too.
        let newer = privilege == "MAINTAIN" && grantee.as_deref() == Some(owner);
        if *grantable || grantor != owner || !(left.remove(&(grantee.as_deref(), privilege.as_str())) || newer) {
            return false;
        }
    }
    left.is_empty()
}

/// Statements that lead from one ACL to another. `what` is the target of `GRANT ... ON`, `column` a column's name.
pub(crate) fn change(
    old: &[Privilege],
    new: &[Privilege],
    owner: Option<&str>,
    what: &str,
    column: Option<&str>,
) -> Vec<String> {
    let grantees: BTreeSet<&Option<String>> = old.iter().map(|privilege| &privilege.0).collect();
    let everything = match column {
        Some(column) => format!("ALL ({column})"),
        None => "ALL".to_owned(),
    };
    let mut statements = Vec::new();
    for grantee in grantees {
        statements.push(format!("REVOKE {everything} ON {what} FROM {}", role(grantee.as_deref())));
    }
    let mut at = 0;
    while at < new.len() {
        let (grantee, grantor, _, grantable) = &new[at];
        let same = new[at..].iter().take_while(|p| (&p.0, &p.1, &p.3) == (grantee, grantor, grantable)).count();
        let words: Vec<String> = new[at..at + same]
            .iter()
            .map(|privilege| match column {
                Some(column) => format!("{} ({column})", privilege.2),
                None => privilege.2.clone(),
            })
            .collect();
        let option = if *grantable { " WITH GRANT OPTION" } else { "" };
        let grant = format!("GRANT {} ON {what} TO {}{option}", words.join(", "), role(grantee.as_deref()));
        if owner.is_some_and(|owner| owner != grantor) {
            statements.push(format!("SET LOCAL ROLE {grantor}"));
            statements.push(grant);
            statements.push("RESET ROLE".to_owned());
        } else {
            statements.push(grant);
        }
        at += same;
    }
    statements
}

/// Statements that lead from one set of default privileges to another.
pub(crate) fn change_defaults(old: Option<&Object>, new: Option<&Object>) -> Vec<String> {
    let Some(shown) = new.or(old) else { return Vec::new() };
    let read = |object: Option<&Object>, field: &str| -> Vec<Privilege> {
        object
            .and_then(|o| o.d.get(field))
            .and_then(|value| serde_json::from_value(value.clone()).ok())
            .unwrap_or_default()
    };
    let base = read(Some(shown), "base");
    // Absent means as built in, for those of all schemas; nothing, for those of one.
    let before = if old.is_some() { read(old, "privileges") } else { base.clone() };
    let after = if new.is_some() { read(new, "privileges") } else { base };
    let prefix = format!("ALTER DEFAULT PRIVILEGES {}", shown.text("prefix").unwrap_or_default());
    let objects = shown.text("objects").unwrap_or_default();
    change(&before, &after, None, objects, None).into_iter().map(|statement| format!("{prefix} {statement}")).collect()
}

pub(crate) fn comment(phrase: &str, text: Option<&str>) -> String {
    format!("COMMENT ON {phrase} IS {}", text.map_or("NULL".to_owned(), literal))
}

fn role(name: Option<&str>) -> &str {
    name.unwrap_or("PUBLIC")
}
