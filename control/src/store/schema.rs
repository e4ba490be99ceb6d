//! The schema and its migrations.

use std::path::Path;

use rusqlite::Connection;

use super::StoreError;

/// `application_id` of our files: `ARDC`.
const APPLICATION_ID: i64 = 0x4152_4443;

/// Each entry takes the schema from its index to the next version. Entries are never changed once released.
const MIGRATIONS: &[&str] = &[
    // 0 -> 1
    "CREATE TABLE tenants (
        id TEXT PRIMARY KEY,
        created_us INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE timelines (
        id TEXT PRIMARY KEY,
        tenant_id TEXT NOT NULL REFERENCES tenants(id),
        ancestor_id TEXT REFERENCES timelines(id),
        branch_lsn TEXT,
        prev_lsn TEXT
    ) STRICT;
    CREATE INDEX timelines_ancestor ON timelines(ancestor_id);
    CREATE TABLE connectors (
        name TEXT PRIMARY KEY,
        tenant_id TEXT NOT NULL REFERENCES tenants(id),
        timeline_id TEXT NOT NULL REFERENCES timelines(id),
        state TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
        url_sealed BLOB NOT NULL,
        source TEXT NOT NULL,
        fast INTEGER NOT NULL,
        max_rate_bytes INTEGER,
        pg_major INTEGER,
        superuser TEXT,
        settings TEXT NOT NULL DEFAULT '{}',
        created_us INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE branches (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
        connector TEXT NOT NULL REFERENCES connectors(name),
        parent_id TEXT REFERENCES branches(id),
        timeline_id TEXT NOT NULL UNIQUE REFERENCES timelines(id),
        hidden INTEGER NOT NULL,
        read_only INTEGER NOT NULL,
        role TEXT NOT NULL,
        database TEXT NOT NULL,
        idle_timeout_s INTEGER NOT NULL,
        expires_us INTEGER,
        created_us INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX branches_parent ON branches(parent_id);
    CREATE TABLE credentials (
        branch_id TEXT NOT NULL REFERENCES branches(id) ON DELETE CASCADE,
        role TEXT NOT NULL,
        password_sealed BLOB,
        verifier TEXT NOT NULL,
        PRIMARY KEY (branch_id, role)
    ) STRICT;
    CREATE TABLE computes (
        id TEXT PRIMARY KEY,
        branch_id TEXT NOT NULL UNIQUE REFERENCES branches(id),
        uid INTEGER UNIQUE,
        incarnation INTEGER NOT NULL,
        agent_pid INTEGER,
        agent_started TEXT,
        postmaster_pid INTEGER,
        postmaster_started TEXT
    ) STRICT;
    CREATE TABLE leases (
        name TEXT PRIMARY KEY,
        compute_id TEXT NOT NULL UNIQUE REFERENCES computes(id) ON DELETE CASCADE,
        timeline_id TEXT NOT NULL REFERENCES timelines(id),
        lsn TEXT NOT NULL
    ) STRICT;
    CREATE TABLE user_tokens (
        hash BLOB PRIMARY KEY,
        name TEXT NOT NULL,
        created_us INTEGER NOT NULL
    ) STRICT;",
    // 1 -> 2
    "ALTER TABLE branches ADD COLUMN policy TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE branches ADD COLUMN rows_changed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE branches ADD COLUMN rows_counted_to TEXT;
    ALTER TABLE branches ADD COLUMN roles_known INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE credentials ADD COLUMN expires_us INTEGER;
    ALTER TABLE credentials ADD COLUMN sealed_for TEXT;
    UPDATE credentials SET sealed_for = role;
    CREATE TABLE roles (
        branch_id TEXT NOT NULL REFERENCES branches(id) ON DELETE CASCADE,
        oid INTEGER NOT NULL,
        name TEXT NOT NULL,
        can_login INTEGER NOT NULL,
        valid_until_us INTEGER,
        password_hash BLOB,
        PRIMARY KEY (branch_id, oid)
    ) STRICT;",
    // 2 -> 3
    "CREATE TABLE wal_debts (
        tenant_id TEXT NOT NULL,
        timeline_id TEXT NOT NULL,
        safekeeper TEXT NOT NULL,
        duty TEXT NOT NULL CHECK (duty IN ('create', 'delete')),
        PRIMARY KEY (timeline_id, safekeeper)
    ) STRICT;",
    // 3 -> 4: what a branch is compared with, where that is not where its timeline begins; since when it is on its timeline;
    // deleted branches that can be had back; timelines that branches are about to move to, and those that they have left.
    "ALTER TABLE branches ADD COLUMN base_timeline_id TEXT REFERENCES timelines(id);
    ALTER TABLE branches ADD COLUMN base_lsn TEXT;
    ALTER TABLE branches ADD COLUMN since_us INTEGER;
    ALTER TABLE branches ADD COLUMN deleted_us INTEGER;
    ALTER TABLE branches ADD COLUMN deleted_name TEXT;
    ALTER TABLE branches ADD COLUMN retention_s INTEGER;
    CREATE TABLE switches (
        branch_id TEXT PRIMARY KEY REFERENCES branches(id) ON DELETE CASCADE,
        timeline_id TEXT NOT NULL UNIQUE REFERENCES timelines(id),
        kind TEXT NOT NULL CHECK (kind IN ('reset', 'restore')),
        made INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE past_timelines (
        timeline_id TEXT PRIMARY KEY REFERENCES timelines(id) ON DELETE CASCADE,
        branch_id TEXT NOT NULL,
        since_us INTEGER NOT NULL,
        until_us INTEGER NOT NULL,
        ended_by TEXT NOT NULL CHECK (ended_by IN ('reset', 'restore')),
        leaving INTEGER NOT NULL,
        retired INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX past_timelines_branch ON past_timelines(branch_id);",
    // 4 -> 5: connectors in logical mode: what was asked for, how far they are, and SQL to be run later.
    "ALTER TABLE connectors ADD COLUMN logical TEXT;
    ALTER TABLE connectors ADD COLUMN logical_state TEXT;
    ALTER TABLE connectors ADD COLUMN logical_script TEXT;",
    // 5 -> 6: how this host sorts texts otherwise than a production.
    "ALTER TABLE connectors ADD COLUMN collation_warning TEXT;",
    // 6 -> 7: what timelines' manifests do not say yet of what is known here. Counts of rows change too often to be told each time.
    "CREATE TABLE descriptions (
        timeline_id TEXT PRIMARY KEY REFERENCES timelines(id) ON DELETE CASCADE,
        changed INTEGER NOT NULL,
        told INTEGER NOT NULL DEFAULT 0,
        digest BLOB
    ) STRICT;
    CREATE INDEX descriptions_untold ON descriptions(timeline_id) WHERE changed <> told;
    INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines;
    CREATE TRIGGER branch_made AFTER INSERT ON branches BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = NEW.timeline_id
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;
    CREATE TRIGGER branch_changed AFTER UPDATE OF name, state, connector, parent_id, timeline_id, hidden, policy, role, database, idle_timeout_s, expires_us, base_timeline_id,
        base_lsn, since_us, deleted_us, deleted_name, retention_s ON branches BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = NEW.timeline_id
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;
    CREATE TRIGGER credential_made AFTER INSERT ON credentials BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = (SELECT timeline_id FROM branches WHERE branches.id = NEW.branch_id)
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;
    CREATE TRIGGER credential_changed AFTER UPDATE ON credentials BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = (SELECT timeline_id FROM branches WHERE branches.id = NEW.branch_id)
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;
    CREATE TRIGGER credential_gone AFTER DELETE ON credentials BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = (SELECT timeline_id FROM branches WHERE branches.id = OLD.branch_id)
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;
    CREATE TRIGGER connector_changed AFTER UPDATE OF state, url_sealed, source, pg_major, superuser, settings, logical_state, collation_warning ON connectors BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = NEW.timeline_id
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;
    CREATE TRIGGER past_made AFTER INSERT ON past_timelines BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = NEW.timeline_id
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;
    CREATE TRIGGER past_changed AFTER UPDATE ON past_timelines BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = NEW.timeline_id
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;",
    // 7 -> 8: how masked templates were made.
    "CREATE TABLE masked_templates (
        branch_id TEXT PRIMARY KEY REFERENCES branches(id) ON DELETE CASCADE,
        rules TEXT NOT NULL,
        source_lsn TEXT,
        report TEXT
    ) STRICT;",
    // 8 -> 9: that stands in manifests as well.
    "CREATE TRIGGER masked_changed AFTER UPDATE ON masked_templates BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = (SELECT timeline_id FROM branches WHERE branches.id = NEW.branch_id)
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;
    UPDATE descriptions SET changed = changed + 1
        WHERE timeline_id IN (SELECT timeline_id FROM branches WHERE id IN (SELECT branch_id FROM masked_templates));",
    // 9 -> 10: whose state a rebase has kept a branch with. Up to here only the name said so.
    "ALTER TABLE branches ADD COLUMN kept_of TEXT;
    UPDATE branches SET kept_of = (SELECT b.id FROM branches b WHERE b.parent_id = branches.parent_id
        AND substr(branches.name, 1, length(b.name) + 15) = b.name || '-before-rebase-'
        AND substr(branches.name, length(b.name) + 16) GLOB '[1-9]*'
        AND substr(branches.name, length(b.name) + 16) NOT GLOB '*[^0-9]*');
    UPDATE descriptions SET changed = changed + 1
        WHERE timeline_id IN (SELECT timeline_id FROM branches WHERE kept_of IS NOT NULL);",
    // 10 -> 11: who the safekeepers are, once they were changed, and a change that is on its way.
    "CREATE TABLE membership (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        generation INTEGER NOT NULL,
        members TEXT NOT NULL,
        next TEXT
    ) STRICT;
    CREATE TABLE membership_change (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        phase TEXT NOT NULL CHECK (phase IN ('copying', 'joint', 'settled', 'cancelled')),
        from_members TEXT NOT NULL,
        to_members TEXT NOT NULL,
        begun_us INTEGER NOT NULL
    ) STRICT;",
    // 11 -> 12: marks in branches' histories. The timeline of one may be gone.
    "CREATE TABLE checkpoints (
        id INTEGER PRIMARY KEY,
        branch_id TEXT NOT NULL REFERENCES branches(id) ON DELETE CASCADE,
        label TEXT NOT NULL,
        timeline_id TEXT NOT NULL,
        lsn TEXT NOT NULL,
        created_us INTEGER NOT NULL,
        UNIQUE (branch_id, label)
    ) STRICT;
    CREATE TRIGGER checkpoint_made AFTER INSERT ON checkpoints BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = (SELECT timeline_id FROM branches WHERE branches.id = NEW.branch_id)
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;
    CREATE TRIGGER checkpoint_gone AFTER DELETE ON checkpoints BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = (SELECT timeline_id FROM branches WHERE branches.id = OLD.branch_id)
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;",
    // 12 -> 13: connectors that give out masked data only.
    "ALTER TABLE connectors ADD COLUMN masked_only INTEGER NOT NULL DEFAULT 0;
    CREATE TRIGGER connector_masked_only_changed AFTER UPDATE OF masked_only ON connectors BEGIN
        INSERT INTO descriptions (timeline_id, changed) SELECT id, 1 FROM timelines WHERE id = NEW.timeline_id
        ON CONFLICT (timeline_id) DO UPDATE SET changed = changed + 1;
    END;",
    // 13 -> 14: a restore to before a reset kept the reset's branch point. The timelines say which one it is.
    "UPDATE branches SET (base_timeline_id, base_lsn) = (
        WITH RECURSIVE chain (ancestor_id, branch_lsn) AS (
            SELECT ancestor_id, branch_lsn FROM timelines WHERE id = branches.timeline_id
            UNION ALL
            SELECT t.ancestor_id, t.branch_lsn FROM chain c JOIN past_timelines p ON p.timeline_id = c.ancestor_id
                JOIN timelines t ON t.id = p.timeline_id WHERE p.branch_id = branches.id
        )
        SELECT ancestor_id, branch_lsn FROM chain
        WHERE NOT EXISTS (SELECT 1 FROM past_timelines p WHERE p.timeline_id = chain.ancestor_id AND p.branch_id = branches.id)
    )
    WHERE base_timeline_id IS NOT NULL AND id IN (SELECT branch_id FROM past_timelines WHERE ended_by = 'reset');",
];

/// Version of the schema that this program writes.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the file to [`SCHEMA_VERSION`], one transaction per step.
pub fn prepare(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |action| move |source| StoreError::Sqlite { path: path.to_owned(), action, source };
    let pragma =
        |connection: &Connection, name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = pragma(connection, "user_version").map_err(failed("read"))?;
    let application = pragma(connection, "application_id").map_err(failed("read"))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed("read"))?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    if version > SCHEMA_VERSION {
        return Err(StoreError::Newer { path: path.to_owned(), found: version, known: SCHEMA_VERSION });
    }
    let setup = |connection: &Connection| {
        // A commit is on disk when the call returns: what control answered survives a crash.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))
    };
    setup(connection).map_err(failed("set up"))?;
    let first = usize::try_from(version).map_err(|_| StoreError::Foreign { path: path.to_owned() })?;
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(first) {
        let migrate = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", index as i64 + 1)?;
            transaction.commit()
        };
        migrate(connection).map_err(failed("migrated"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of an older version, with a connector.
    fn of_version(version: usize) -> Connection {
        let connection = Connection::open_in_memory().expect("opens");
        for migration in &MIGRATIONS[..version] {
            connection.execute_batch(migration).expect("an older schema");
        }
        connection.pragma_update(None, "application_id", APPLICATION_ID).expect("set");
        connection.pragma_update(None, "user_version", version as i64).expect("set");
        connection.execute_batch("INSERT INTO tenants VALUES ('t', 0); INSERT INTO timelines (id, tenant_id) VALUES ('root', 't');
            INSERT INTO connectors (name, tenant_id, timeline_id, state, url_sealed, source, fast, created_us) VALUES ('c', 't', 'root', 'ready', x'', '', 0, 0)").expect("made");
        connection
    }

    #[test]
    fn branches_of_an_older_version_can_have_checkpoints() {
        let mut connection = of_version(11);
        connection
            .execute_batch(
                "INSERT INTO branches (id, name, state, connector, timeline_id, hidden, read_only, role, database, idle_timeout_s, created_us)
                 VALUES ('b', 'b', 'ready', 'c', 'root', 0, 0, '', '', 0, 0);
                 UPDATE descriptions SET told = changed",
            )
            .expect("made");
        prepare(&mut connection, Path::new("memory")).expect("migrated");
        let untold = |connection: &Connection| {
            let query = "SELECT count(*) FROM descriptions WHERE changed <> told";
            connection.query_row(query, [], |row| row.get::<_, i64>(0)).expect("asked")
        };
        assert_eq!(untold(&connection), 0, "nothing is told anew for the migration alone");
        let mark = "INSERT INTO checkpoints (branch_id, label, timeline_id, lsn, created_us) VALUES ('b', 'one', 'gone', '0/1', 0)";
        connection.execute_batch(mark).expect("made");
        assert_eq!(untold(&connection), 1);
        assert!(connection.execute_batch(mark).is_err(), "a label is there once");
        connection.execute_batch("DELETE FROM branches").expect("deleted");
        let left = connection.query_row("SELECT count(*) FROM checkpoints", [], |row| row.get::<_, i64>(0));
        assert_eq!(left.expect("asked"), 0);
    }

    #[test]
    fn branches_that_were_restored_to_before_a_reset_are_compared_with_what_they_were_then() {
        let mut connection = of_version(13);
        connection
            .execute_batch(
                "INSERT INTO timelines (id, tenant_id, ancestor_id, branch_lsn) VALUES ('one', 't', 'root', '0/1'),
                    ('two', 't', 'root', '0/5'), ('three', 't', 'one', '0/3'), ('four', 't', 'three', '0/4'),
                    ('lost', 't', 'root', '0/1'), ('other', 't', 'lost', '0/2');
                 INSERT INTO branches (id, name, state, connector, timeline_id, hidden, read_only, role, database, idle_timeout_s,
                    created_us, base_timeline_id, base_lsn)
                 VALUES ('b', 'b', 'ready', 'c', 'four', 0, 0, '', '', 0, 0, 'root', '0/5'),
                    ('never-reset', 'never-reset', 'ready', 'c', 'other', 0, 0, '', '', 0, 0, 'root', '0/1');
                 INSERT INTO past_timelines (timeline_id, branch_id, since_us, until_us, ended_by, leaving, retired)
                 VALUES ('one', 'b', 0, 1, 'reset', 0, 0), ('two', 'b', 1, 2, 'restore', 0, 0), ('three', 'b', 2, 3, 'restore', 0, 0);
                 UPDATE descriptions SET told = changed",
            )
            .expect("made");
        prepare(&mut connection, Path::new("memory")).expect("migrated");
        let base = |branch: &str| -> (String, String) {
            let query = "SELECT base_timeline_id, base_lsn FROM branches WHERE id = ?1";
            connection.query_row(query, [branch], |row| Ok((row.get(0)?, row.get(1)?))).expect("asked")
        };
        let root_at = |lsn: &str| ("root".to_owned(), lsn.to_owned());
        assert_eq!((base("b"), base("never-reset")), (root_at("0/1"), root_at("0/1")));
        let query = "SELECT group_concat(timeline_id) FROM descriptions WHERE changed <> told";
        let untold: String = connection.query_row(query, [], |row| row.get(0)).expect("asked");
        assert_eq!(untold, "four", "its manifest is to say so as well");
    }

    #[test]
    fn states_that_rebases_have_kept_are_taken_from_their_names_once() {
        let mut connection = of_version(9);
        let branches = [
            ("c", None),
            ("x", Some("c")),
            ("x-before-rebase-1", Some("c")),
            ("x-before-rebase-12", Some("c")),
            ("x-before-rebase-1-before-rebase-2", Some("c")),
            ("x-before-rebase-0", Some("c")),
            ("x-before-rebase-1a", Some("c")),
            ("x-before-rebase-3", Some("x")),
            ("y-before-rebase-1", Some("c")),
        ];
        for (name, parent) in branches {
            connection
                .execute("INSERT INTO timelines (id, tenant_id) VALUES (?1, 't')", [format!("of {name}")])
                .expect("made");
            connection
                .execute(
                    "INSERT INTO branches (id, name, state, connector, parent_id, timeline_id, hidden, read_only, role, database, idle_timeout_s, created_us)
                     VALUES (?1, ?1, 'ready', 'c', ?2, 'of ' || ?1, 0, 0, '', '', 0, 0)",
                    rusqlite::params![name, parent],
                )
                .expect("made");
        }
        prepare(&mut connection, Path::new("memory")).expect("migrated");
        let mut kept = connection
            .prepare("SELECT name, kept_of FROM branches WHERE kept_of IS NOT NULL ORDER BY name")
            .expect("a statement");
        let kept = kept.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("asked");
        let kept: Vec<(String, String)> = kept.collect::<Result<_, _>>().expect("read");
        let kept: Vec<(&str, &str)> = kept.iter().map(|(name, of)| (name.as_str(), of.as_str())).collect();
        let expect = [
            ("x-before-rebase-1", "x"),
            ("x-before-rebase-1-before-rebase-2", "x-before-rebase-1"),
            ("x-before-rebase-12", "x"),
        ];
        assert_eq!(kept, expect);
    }
}
