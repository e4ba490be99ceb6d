//! What the target has in columns that are about to go, for the inverse.

use ardent_diff::{Order, PAIRING_BYTES_MAX, Pairing, RowChange, TableChange};
use ardent_schema_diff::{MISSING, MISSING_IN_PARTITIONS, identifier, literal};

use super::{Guarded, base_columns, base_table, select_list, values_of};
use crate::outcome::{Applied, ApplyError};
use crate::target::{Target, TextRow};

/// What the target has in columns that are about to go, for the inverse.
pub(super) async fn keep_dropped_columns(
    target: &Target<'_>,
    guarded: &mut Guarded<'_>,
    key: &[usize],
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let change = guarded.change;
    if key.is_empty() {
        return keep_rows_without_key(target, guarded, applied).await;
    }
    let columns = base_columns(change);
    let at: Vec<usize> = key.iter().filter_map(|place| columns.iter().position(|column| column.0 == *place)).collect();
    // Rows that the inverse has already, and those that have something to lose, are told apart by one more value. They meet by key.
    let mut meeting = Pairing::new(at, PAIRING_BYTES_MAX);
    for row in guarded.undo.iter() {
        let mut row = values_of(&row?).to_vec();
        row.push(Some("known".to_owned()));
        meeting.add_head(row)?;
    }
    let sql = format!("select {} from only {}{}", select_list(change), base_table(change), losing(guarded));
    target
        .each(&sql, |mut row| {
            row.push(None);
            meeting.add_base(row)
        })
        .await?;
    for row in meeting.finish(Order::Key)?.iter() {
        let RowChange::Delete { old: mut row } = row? else { continue };
        row.pop();
        let mut old = row.clone();
        old[columns.len()..columns.len() + change.columns_dropped.len()].clone_from_slice(&guarded.readded);
        guarded.undo.push(&RowChange::Update { old, new: row })?;
    }
    Ok(())
}

/// What rows get in the dropped columns when those are added again: what old rows of a column that was added late have, or nothing.
pub(super) async fn readded(target: &Target<'_>, change: &TableChange) -> Result<TextRow, ApplyError> {
    let table = literal(&base_table(change));
    let sql = format!(
        "select a.attname, {MISSING} from pg_attribute a join pg_class c on c.oid = a.attrelid {MISSING_IN_PARTITIONS} \
         where c.oid = {table}::regclass and a.attnum > 0 and not a.attisdropped"
    );
    let rows = target.rows(&sql).await?;
    let value = |name: &String| {
        let row = rows.iter().find(|row| row.first().is_some_and(|column| column.as_ref() == Some(name)));
        row.and_then(|row| row.get(1).cloned().flatten())
    };
    Ok(change.columns_dropped.iter().map(value).collect())
}

/// The condition for rows that have another value in a column that is about to go than they get when it is added again.
fn losing(guarded: &Guarded<'_>) -> String {
    let differs = |(name, value): (&String, &Option<String>)| match value {
        None => format!("{} is distinct from null", identifier(name)),
        Some(value) => format!("{}::text is distinct from {}", identifier(name), literal(value)),
    };
    let columns = guarded.change.columns_dropped.iter().zip(&guarded.readded);
    format!(" where {}", columns.map(differs).collect::<Vec<_>>().join(" or "))
}

/// Whether a foreign key refers to a table.
pub(crate) async fn is_referred_to(target: &Target<'_>, table: &str) -> Result<bool, ApplyError> {
    let sql = format!(
        "select exists (select from pg_constraint where contype = 'f' and confrelid = {}::regclass)",
        literal(table)
    );
    Ok(target.rows(&sql).await? == [[Some("t".to_owned())]])
}

/// The same for rows that no key tells apart: the inverse takes them away and brings them again, whole.
async fn keep_rows_without_key(
    target: &Target<'_>,
    guarded: &mut Guarded<'_>,
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let change = guarded.change;
    let table = base_table(change);
    if is_referred_to(target, &table).await? {
        let columns = change.columns_dropped.join(", ");
        applied.notes.push(format!(
            "{table} has no key that both sides have, and others refer to its rows: the inverse cannot bring back the values of {columns}"
        ));
        return Ok(());
    }
    // Rows that differ in columns that the inverse cannot compare must not be taken for one another: then all of them.
    let losing = if change.columns_left.is_empty() { losing(guarded) } else { String::new() };
    let mut meeting = Pairing::new(Vec::new(), PAIRING_BYTES_MAX);
    for row in guarded.undo.iter() {
        if let RowChange::Insert { new } = row? {
            meeting.add_head(new)?;
        }
    }
    let sql = format!("select {} from only {table}{losing}", select_list(change));
    target.each(&sql, |row| meeting.add_base(row)).await?;
    let kept = base_columns(change).len();
    for row in meeting.finish(Order::Kind)?.iter() {
        let RowChange::Delete { old: row } = row? else { continue };
        let mut old = row.clone();
        old[kept..kept + change.columns_dropped.len()].clone_from_slice(&guarded.readded);
        guarded.undo.push(&RowChange::Delete { old })?;
        guarded.undo.push(&RowChange::Insert { new: row })?;
    }
    Ok(())
}
