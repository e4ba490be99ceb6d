//! The change set that undoes another.

use ardent_diff::{
    ChangeSet, LargeObjectChange, PageChange, RowChange, Sides, Spool, SpoolError, TableChange, TableState,
};

use crate::guard::{Guarded, base_columns, key_places};

/// A table's rows back.
pub(crate) fn table(guarded: &Guarded<'_>) -> Result<TableChange, SpoolError> {
    let change = guarded.change;
    let columns = base_columns(change);
    let (state, rows) = match change.state {
        TableState::Created => {
            let mut rows = Spool::default();
            for row in change.rows.iter() {
                rows.push(&match row? {
                    RowChange::Insert { new } => RowChange::Delete { old: new },
                    other => other,
                })?;
            }
            rows.seal()?;
            let base_columns = change.columns.iter().cloned().map(Some).collect();
            return Ok(TableChange { state: TableState::Dropped, base_columns, rows, ..change.clone() });
        }
        // Backwards: a unique value that went from one row to another goes back the same way.
        TableState::Dropped => (TableState::Created, guarded.undo.reversed()?),
        TableState::Kept => (TableState::Kept, guarded.undo.reversed()?),
    };
    let (schema, name) = change.renamed_from.clone().unwrap_or_else(|| (change.schema.clone(), change.name.clone()));
    let base_name = |place: usize| columns.iter().find(|column| column.0 == place).map(|column| column.1.to_owned());
    let mut names: Vec<String> = columns.iter().map(|(_, name)| (*name).to_owned()).collect();
    let mut before: Vec<Option<String>> =
        columns.iter().map(|(place, _)| change.columns.get(*place).cloned()).collect();
    names.extend(change.columns_dropped.iter().cloned());
    before.extend(change.columns_dropped.iter().map(|_| None));
    names.extend(change.columns_left.iter().cloned());
    before.extend(change.columns_left.iter().cloned().map(Some));
    let generated = change
        .generated
        .iter()
        .filter_map(|name| base_name(change.columns.iter().position(|column| column == name)?))
        .collect();
    Ok(TableChange {
        schema,
        name,
        renamed_from: change.renamed_from.as_ref().map(|_| (change.schema.clone(), change.name.clone())),
        state,
        columns: names,
        columns_added: change.columns_dropped.clone(),
        columns_dropped: change.columns_added.clone(),
        base_columns: before,
        generated,
        columns_left: Vec::new(),
        unguarded: change.columns_left.clone(),
        materialized_view: change.materialized_view,
        key: key_places(change).into_iter().filter_map(base_name).collect(),
        rows,
        copies: Spool::default(),
    })
}

pub(crate) fn large_object(change: &LargeObjectChange) -> Result<LargeObjectChange, SpoolError> {
    let state = match change.state {
        TableState::Created => TableState::Dropped,
        TableState::Dropped => TableState::Created,
        TableState::Kept => TableState::Kept,
    };
    let mut pages = Spool::default();
    for page in change.pages.iter() {
        let PageChange { number, old, new } = page?;
        pages.push(&PageChange { number, old: new, new: old })?;
    }
    pages.seal()?;
    let access = change.access.clone().map(Sides::reversed);
    let comment = change.comment.clone().map(Sides::reversed);
    Ok(LargeObjectChange { oid: change.oid, state, pages, access, comment })
}

/// An empty inverse for this database.
pub(crate) fn of(set: &ChangeSet) -> ChangeSet {
    ChangeSet { database: set.database.clone(), labels: set.labels.clone(), ..ChangeSet::default() }
}
