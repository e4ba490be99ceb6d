//! A store for tests.

use rusqlite::params;

use ardent_types::{TenantId, TimelineId};

use super::{BranchRow, Store, branch, timeline};

/// Two branches, `a` and `b`, of one connector, and the root that they hang on; nothing is ready yet.
pub(super) fn two_branches() -> (tempfile::TempDir, Store, TimelineId, [BranchRow; 2]) {
    let folder = tempfile::tempdir().expect("folder");
    let store = Store::open(&folder.path().join("control.db")).expect("made");
    let (tenant, root) = (TenantId::generate(), TimelineId::generate());
    let branches =
        ["a", "b"].map(|name| BranchRow::fresh(name.to_owned(), "shop".to_owned(), tenant, TimelineId::generate()));
    let made = store.write(|transaction| {
        let (tenant, root) = (tenant.to_string(), root.to_string());
        transaction.execute("INSERT INTO tenants (id, created_us) VALUES (?1, 0)", params![tenant])?;
        transaction.execute("INSERT INTO timelines (id, tenant_id) VALUES (?1, ?2)", params![root, tenant])?;
        transaction.execute(
            "INSERT INTO connectors (name, tenant_id, timeline_id, state, url_sealed, source, fast, created_us)
             VALUES ('shop', ?1, ?2, 'ready', x'00', '', 0, 0)",
            params![tenant, root],
        )?;
        for row in &branches {
            timeline::insert(transaction, row.timeline, row.tenant, &root)?;
            branch::insert(transaction, row)?;
        }
        Ok(())
    });
    made.expect("made");
    (folder, store, root, branches)
}
