//! Large objects: who owns one, and who may do what with it. There may be millions, so they are no part of a catalog.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::catalog::{CatalogError, Privilege, parse};
use crate::privileges;
use crate::queries::acl;

/// The owner of a row of `pg_largeobject_metadata`, as SQL.
pub const LARGE_OBJECT_OWNER: &str = "quote_ident(pg_get_userbyid(lomowner))";

/// The privileges that such a row gives, as SQL: JSON.
pub fn large_object_privileges() -> String {
    format!("coalesce({}, '[]')", acl("lomacl", 'L', "lomowner"))
}

/// The owner of a large object, and its privileges. Names of roles are quoted where they need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjectAccess {
    /// Who owns it.
    pub owner: String,
    /// Who may do what.
    pub privileges: Vec<Privilege>,
}

impl LargeObjectAccess {
    /// From what [`LARGE_OBJECT_OWNER`] and [`large_object_privileges`] give.
    pub fn from_texts(owner: &str, privileges: &str) -> Result<LargeObjectAccess, CatalogError> {
        Ok(LargeObjectAccess { owner: owner.to_owned(), privileges: parse(privileges)? })
    }

    /// What `owner` has of one of which nobody granted or revoked anything.
    pub fn default_of(owner: &str) -> LargeObjectAccess {
        let own = |word: &str| (Some(owner.to_owned()), owner.to_owned(), word.to_owned(), false);
        LargeObjectAccess { owner: owner.to_owned(), privileges: vec![own("SELECT"), own("UPDATE")] }
    }

    /// Whether it says the same: the order of privileges says nothing.
    pub fn is_same(&self, other: &LargeObjectAccess) -> bool {
        self.owner == other.owner && as_set(&self.privileges) == as_set(&other.privileges)
    }

    /// Whether other privileges are there than a new owner alone accounts for.
    pub fn grants_differ(&self, new: &LargeObjectAccess) -> bool {
        as_set(&self.carried_to(&new.owner)) != as_set(&new.privileges)
    }

    /// Statements that lead from this to `new`. They are for a transaction: what another role granted is granted as that role.
    pub fn change_to(&self, new: &LargeObjectAccess, oid: u32) -> Vec<String> {
        let mut statements = Vec::new();
        if self.owner != new.owner {
            statements.push(owner_statement(oid, &new.owner));
        }
        if self.grants_differ(new) {
            let before = self.carried_to(&new.owner);
            statements.extend(privileges::change(&before, &new.privileges, Some(&new.owner), &phrase(oid), None));
        }
        statements
    }

    /// Statements that give all of it to a large object that was just made, whoever made it.
    pub fn of_new(&self, oid: u32) -> Vec<String> {
        let mut statements = vec![owner_statement(oid, &self.owner)];
        statements.extend(LargeObjectAccess::default_of(&self.owner).change_to(self, oid));
        statements
    }

    /// The privileges once it has another owner: Postgres puts that one in the place of the old one.
    fn carried_to(&self, owner: &str) -> Vec<Privilege> {
        let carried = |name: &String| if *name == self.owner { owner.to_owned() } else { name.clone() };
        let privileges = self.privileges.iter();
        privileges
            .map(|(grantee, grantor, word, grantable)| {
                (grantee.as_ref().map(carried), carried(grantor), word.clone(), *grantable)
            })
            .collect()
    }
}

/// What gives a large object its comment, or takes it away.
pub fn comment_on_large_object(oid: u32, text: Option<&str>) -> String {
    privileges::comment(&phrase(oid), text)
}

fn owner_statement(oid: u32, owner: &str) -> String {
    format!("ALTER {} OWNER TO {owner}", phrase(oid))
}

fn phrase(oid: u32) -> String {
    format!("LARGE OBJECT {oid}")
}

fn as_set(privileges: &[Privilege]) -> BTreeSet<&Privilege> {
    privileges.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_owner_takes_the_old_ones_place_and_grants_are_told_apart_from_that() {
        let access = |text: &str| LargeObjectAccess::from_texts("ann", text).expect("privileges");
        let own = r#"["ann", "ann", "SELECT", false], ["ann", "ann", "UPDATE", false]"#;
        let (plain, shared) =
            (access(&format!("[{own}]")), access(&format!(r#"[{own}, ["bob", "ann", "SELECT", false]]"#)));
        assert_eq!(plain, LargeObjectAccess::default_of("ann"));
        assert_eq!(plain.change_to(&plain, 7), Vec::<String>::new());
        let given = LargeObjectAccess::default_of("\"Eve\"");
        assert_eq!(plain.change_to(&given, 7), ["ALTER LARGE OBJECT 7 OWNER TO \"Eve\""]);
        let granted = ["REVOKE ALL ON LARGE OBJECT 7 FROM ann", "GRANT SELECT, UPDATE ON LARGE OBJECT 7 TO ann"];
        assert_eq!(plain.change_to(&shared, 7), [&granted[..], &["GRANT SELECT ON LARGE OBJECT 7 TO bob"]].concat());
        assert!(shared.change_to(&plain, 7).contains(&"REVOKE ALL ON LARGE OBJECT 7 FROM bob".to_owned()));
        assert_eq!(shared.of_new(7)[0], "ALTER LARGE OBJECT 7 OWNER TO ann");
        assert_eq!(comment_on_large_object(7, Some("it's")), "COMMENT ON LARGE OBJECT 7 IS 'it''s'");
    }
}
