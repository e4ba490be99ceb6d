//! Makes a lost database anew from what stands in the store: its timelines' manifests, and the descriptions in them
//! (`descriptions.rs`). Pure but for [`make_database`], which writes the file.
//!
//! - What the last second before the loss changed may be missing, and what was being made or deleted may be back.
//! - A timeline that nothing describes comes back as a branch named `recovered-...`, for people to look into: what is there is never
//!   given up.
//! - A masked template is one if it is a root, as only what was masked is cut into one. Whether its manifest says what was done is told,
//!   and without that nothing is made of it.
//! - Of two timelines that claim one branch, a crash in the middle of an exchange, the one whose branch was later on it keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use ardent_api::policy::BranchPolicy;
use ardent_types::{BranchId, Lsn, TenantId, TimelineId};

use crate::branches::IDLE_TIMEOUT_DEFAULT_S;
use crate::connectors::url_context;
use crate::context::password_context;
use crate::secrets::{Keyring, SecretError};
use crate::store::{
    BranchDescription, Description, MaskedDescription, Store, StoreError, TimelineRow, is_blank, now_us,
};

/// A timeline in the store.
#[derive(Clone, Debug)]
pub struct FoundTimeline {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// What it hangs on: timeline, where, and where the record begins that ends there.
    pub ancestor: Option<(TimelineId, Lsn, Lsn)>,
    /// Its import is not complete.
    pub importing: bool,
    /// What stands in its manifest about it.
    pub description: Option<serde_json::Value>,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recovered {
    /// Connectors, by name.
    pub connectors: Vec<RecoveredConnector>,
    /// Branches, by name; connectors' roots and the server's own are not among them.
    pub branches: Vec<RecoveredBranch>,
    /// Timelines that no name came back for, and that are left in the store as they are.
    pub left: Vec<LeftTimeline>,
}

/// A connector that is back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecoveredConnector {
    /// Name.
    pub name: String,
    /// Its source, without a password.
    pub source: String,
    /// Whether the source's URL is known; if not, `connector move` gives it anew.
    pub has_url: bool,
}

/// A branch that is back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecoveredBranch {
    /// Name.
    pub name: String,
    /// Timeline.
    pub timeline: TimelineId,
    /// Where it begins.
    pub branch_lsn: Option<Lsn>,
    /// It was deleted, and can be had back.
    pub deleted: bool,
    /// Whether the name is the one that it had.
    pub is_described: bool,
    /// Whether its passwords can be shown; log-ins with them work either way.
    pub has_passwords: bool,
    /// Of a masked template, whether what was done to make it is known; branches can be made of it only if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_report: Option<bool>,
}

/// A timeline that stays without a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftTimeline {
    /// Timeline.
    pub timeline: TimelineId,
    /// Why.
    pub reason: String,
}

/// Why a database cannot be made anew.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// There is one.
    #[error("{path} exists: nothing is lost. Move it away if it is damaged")]
    DatabaseExists {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing to make it from.
    #[error("the store holds no timeline with a description of a connector")]
    NothingFound,
    /// The file cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key file.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The file cannot be put into its place.
    #[error("{path} cannot be written")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

/// Makes the database at `path`. One that is there must be blank: a server that was started without its database has made it, and knows nothing. To be
/// called with the data directory's lock held.
pub fn make_database(path: &Path, keyring: &Keyring, found: Vec<FoundTimeline>) -> Result<Recovered, RecoveryError> {
    let is_replaced = path.exists();
    // One that cannot be read may be damaged: what it knows is for people to give up.
    if is_replaced && !matches!(is_blank(path), Ok(true)) {
        return Err(RecoveryError::DatabaseExists { path: path.to_owned() });
    }
    let (rows, recovered) = plan(keyring, found)?;
    let failed = |source| RecoveryError::File { path: path.to_owned(), source };
    // Whole under another name, then in its place: a crash never leaves half of it under the real name.
    let temporary = path.with_extension("db.recovering");
    for suffix in ["", "-wal", "-shm"] {
        let leftover = PathBuf::from(format!("{}{suffix}", temporary.display()));
        match std::fs::remove_file(&leftover) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let store = Store::open(&temporary)?;
    store.restore(&rows)?;
    store.close()?;
    if is_replaced {
        // Its write-ahead log must not be taken for the new one's.
        Store::open(path)?.close()?;
    }
    std::fs::rename(&temporary, path).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(recovered)
}

/// The rows of the new database, and what to tell about them.
fn plan(keyring: &Keyring, found: Vec<FoundTimeline>) -> Result<(Vec<TimelineRow>, Recovered), RecoveryError> {
    let mut recovered = Recovered::default();
    let mut rows: BTreeMap<TimelineId, TimelineRow> = BTreeMap::new();
    for timeline in found {
        match read(&timeline) {
            Ok(row) => {
                rows.insert(row.timeline, row);
            }
            Err(reason) => recovered.left.push(LeftTimeline { timeline: timeline.timeline, reason }),
        }
    }
    leave_out_what_hangs_on_nothing(&mut rows, &mut recovered);
    settle_branches(&mut rows);
    let roots: BTreeMap<TenantId, BranchDescription> = rows
        .values()
        .filter(|row| row.connector.is_some())
        .filter_map(|row| Some((row.tenant, row.branch.clone()?)))
        .collect();
    let nameless = name_the_nameless(&mut rows, &roots);
    find_parents(&mut rows, &roots);
    for row in rows.values_mut() {
        if let Some(connector) = &mut row.connector {
            let has_url = opens(keyring, &url_context(row.tenant), &connector.url_sealed);
            let (name, source) = (connector.name.clone(), connector.source.clone());
            recovered.connectors.push(RecoveredConnector { name, source, has_url });
        }
        let is_root = row.connector.is_some();
        let has_report = row.masked.as_ref().is_some_and(|made| made.report.is_some());
        if let Some(branch) = &mut row.branch {
            let has_report = branch.is_template().then_some(has_report);
            let has_passwords = drop_closed_passwords(keyring, branch);
            if !is_root && !branch.hidden {
                recovered.branches.push(RecoveredBranch {
                    name: branch.name.clone(),
                    timeline: row.timeline,
                    branch_lsn: row.ancestor.map(|(_, lsn, _)| lsn),
                    deleted: branch.deleted_us.is_some(),
                    is_described: !nameless.contains(&row.timeline),
                    has_passwords,
                    has_report,
                });
            }
        }
    }
    if recovered.connectors.is_empty() {
        return Err(RecoveryError::NothingFound);
    }
    recovered.connectors.sort_by(|one, other| one.name.cmp(&other.name));
    recovered.branches.sort_by(|one, other| one.name.cmp(&other.name));
    recovered.left.sort_by_key(|left| left.timeline);
    Ok((rows.into_values().collect(), recovered))
}

/// A row with what the manifest says; or why there is none.
fn read(found: &FoundTimeline) -> Result<TimelineRow, String> {
    if found.importing {
        return Err("its import was never complete".to_owned());
    }
    let description = match &found.description {
        None => None,
        Some(json) => Some(Description::from_json(json)?),
    };
    let (connector, mut branch, past, masked) = match description {
        Some(description) => (description.connector, description.branch, description.past, description.masked),
        None => (None, None, None, None),
    };
    let is_template = branch.as_ref().is_some_and(BranchDescription::is_template);
    if is_template && found.ancestor.is_some() {
        // What was there before could be read from it.
        branch = None;
    }
    if found.ancestor.is_none() && !is_template && (connector.is_none() || branch.is_none()) {
        return Err("nothing says which connector it is the root of".to_owned());
    }
    Ok(TimelineRow {
        tenant: found.tenant,
        timeline: found.timeline,
        ancestor: found.ancestor,
        connector: connector.filter(|_| found.ancestor.is_none()),
        masked: masked.as_ref().filter(|_| branch.is_some()).map(MaskedDescription::row),
        branch,
        past,
    })
}

/// Removes timelines whose ancestors, up to a connector's root, are not all there.
fn leave_out_what_hangs_on_nothing(rows: &mut BTreeMap<TimelineId, TimelineRow>, recovered: &mut Recovered) {
    loop {
        let orphans: Vec<(TimelineId, TimelineId)> = rows
            .values()
            .filter_map(|row| Some((row.timeline, row.ancestor?.0)))
            .filter(|(_, ancestor)| !rows.contains_key(ancestor))
            .collect();
        if orphans.is_empty() {
            return;
        }
        for (timeline, ancestor) in orphans {
            rows.remove(&timeline);
            let reason = format!("it hangs on {ancestor}, which did not come back");
            recovered.left.push(LeftTimeline { timeline, reason });
        }
    }
}

/// One timeline for each branch, and one branch for each name: the others lose the description.
fn settle_branches(rows: &mut BTreeMap<TimelineId, TimelineRow>) {
    let later = |row: &TimelineRow| {
        let branch = row.branch.as_ref().expect("it has one");
        (row.past.is_none(), branch.since_us.unwrap_or(branch.created_us), row.timeline)
    };
    let mut claims: Vec<_> =
        rows.values().filter(|row| row.branch.is_some()).map(|row| (later(row), row.timeline)).collect();
    claims.sort_by(|one, other| other.cmp(one));
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (_, timeline) in claims {
        let row = rows.get_mut(&timeline).expect("it was there");
        let branch = row.branch.as_ref().expect("it has one");
        // Deleted branches have no name that could be taken.
        let is_taken = ids.contains(&branch.id) || (branch.deleted_us.is_none() && names.contains(&branch.name));
        if is_taken && row.ancestor.is_some() {
            row.branch = None;
            continue;
        }
        ids.insert(branch.id);
        if branch.deleted_us.is_none() {
            names.insert(branch.name.clone());
        }
    }
}

/// What nothing describes becomes a branch. Gives these.
fn name_the_nameless(
    rows: &mut BTreeMap<TimelineId, TimelineRow>,
    roots: &BTreeMap<TenantId, BranchDescription>,
) -> BTreeSet<TimelineId> {
    let mut nameless = BTreeSet::new();
    let mut names: BTreeSet<String> = rows.values().filter_map(|row| Some(row.branch.as_ref()?.name.clone())).collect();
    for row in rows.values_mut().filter(|row| row.branch.is_none() && row.past.is_none()) {
        let Some(root) = roots.get(&row.tenant) else { continue };
        let id = row.timeline.to_string();
        let name =
            (8..=id.len()).map(|length| format!("recovered-{}", &id[..length])).find(|name| !names.contains(name));
        let name = name.unwrap_or(id);
        names.insert(name.clone());
        nameless.insert(row.timeline);
        row.branch = Some(BranchDescription {
            id: BranchId::generate(),
            name,
            parent: None,
            base: None,
            since_us: None,
            deleted_us: None,
            retention_s: None,
            hidden: false,
            kept_of: None,
            policy: BranchPolicy::default(),
            rows_changed: 0,
            rows_counted_to: None,
            idle_timeout_s: IDLE_TIMEOUT_DEFAULT_S,
            expires_us: None,
            created_us: now_us(),
            // One is made when the URL is asked for.
            credentials: Vec::new(),
            checkpoints: Vec::new(),
            ..root.clone()
        });
    }
    nameless
}

/// Each branch's parent is there: the one that it names, else the branch that is or was on the timeline that it hangs on.
fn find_parents(rows: &mut BTreeMap<TimelineId, TimelineRow>, roots: &BTreeMap<TenantId, BranchDescription>) {
    let ids: BTreeSet<BranchId> = rows.values().filter_map(|row| Some(row.branch.as_ref()?.id)).collect();
    let owners: BTreeMap<TimelineId, BranchId> = rows
        .values()
        .filter_map(|row| {
            let owner = row.branch.as_ref().map(|branch| branch.id).or(row.past.as_ref().map(|past| past.branch))?;
            Some((row.timeline, owner))
        })
        .collect();
    for row in rows.values_mut() {
        let Some(branch) = row.branch.as_mut().filter(|_| row.connector.is_none()) else { continue };
        if branch.parent.is_some_and(|parent| ids.contains(&parent)) {
            continue;
        }
        // A template hangs on nothing.
        let owner = row
            .ancestor
            .and_then(|(ancestor, _, _)| owners.get(&ancestor).copied())
            .filter(|owner| ids.contains(owner) && *owner != branch.id);
        branch.parent = owner.or_else(|| roots.get(&row.tenant).map(|root| root.id));
    }
}

/// Forgets passwords that this key file does not open: their verifiers stay. False if there were any.
fn drop_closed_passwords(keyring: &Keyring, branch: &mut BranchDescription) -> bool {
    let id = branch.id;
    let mut all = true;
    for credential in &mut branch.credentials {
        let Some(sealed) = &credential.password_sealed else { continue };
        let sealed_for = credential.sealed_for.as_deref().unwrap_or(&credential.role);
        if !opens(keyring, &password_context(id, sealed_for), sealed) {
            credential.password_sealed = None;
            all = false;
        }
    }
    all
}

fn opens(keyring: &Keyring, context: &str, sealed: &str) -> bool {
    hex::decode(sealed).is_ok_and(|sealed| keyring.open(context, &sealed).is_ok())
}

#[cfg(test)]
mod tests {
    use ardent_api::control::ConnectorState;

    use super::*;
    use crate::store::ConnectorRow;

    fn connector() -> ConnectorRow {
        ConnectorRow {
            name: "shop".to_owned(),
            tenant: TenantId::generate(),
            timeline: TimelineId::generate(),
            state: ConnectorState::Creating,
            url_sealed: vec![0],
            source: String::new(),
            fast: false,
            max_rate_bytes: None,
            pg_major: None,
            superuser: None,
            settings: BTreeMap::new(),
            logical: None,
            collation_warning: None,
            masked_only: false,
            created_us: 0,
        }
    }

    #[test]
    fn a_database_that_knows_nothing_is_taken_for_lost_and_no_other() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("control.db");
        let keyring = Keyring::open_or_create(&folder.path().join("secrets.key")).expect("a key");
        let make = || make_database(&path, &keyring, Vec::new()).expect_err("there is nothing to make it from");
        assert!(matches!(make(), RecoveryError::NothingFound), "it is not there");
        Store::open(&path).expect("made").close().expect("closed");
        assert!(matches!(make(), RecoveryError::NothingFound), "a server has made it, and knows nothing");
        assert!(path.exists(), "where nothing is found it stays");

        let store = Store::open(&path).expect("opened");
        store.insert_connector(&connector()).expect("written").expect("inserted");
        store.close().expect("closed");
        assert!(matches!(make(), RecoveryError::DatabaseExists { .. }));
        std::fs::write(&path, b"no database").expect("written");
        assert!(matches!(make(), RecoveryError::DatabaseExists { .. }), "a damaged one is for people to move away");
    }
}
