//! Large objects: compared and written page by page, with owner, privileges and comment.

use ardent_diff::{LargeObjectChange, Sides, Spool, TableState};
use ardent_schema_diff::{LARGE_OBJECT_OWNER, LargeObjectAccess, comment_on_large_object, large_object_privileges};

use super::Run;
use crate::inverse;
use crate::large_object::{self, PAGE_LEN};
use crate::outcome::{ApplyError, Conflict};

/// What the target has of one, besides pages.
struct There {
    access: LargeObjectAccess,
    comment: Option<String>,
}

/// Whose pages the target has, of those that the branch changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    BranchPoint,
    Branch,
    Other,
}

impl Run<'_> {
    /// Those that are to be changed, with what the target has now as their old state.
    pub(super) async fn check_large_objects(&mut self) -> Result<Vec<LargeObjectChange>, ApplyError> {
        let set = self.set;
        let mut wanted = Vec::new();
        for change in &set.large_objects {
            wanted.extend(self.check_large_object(change).await?);
        }
        Ok(wanted)
    }

    async fn check_large_object(
        &mut self,
        change: &LargeObjectChange,
    ) -> Result<Option<LargeObjectChange>, ApplyError> {
        let there = self.large_object_there(change.oid).await?;
        let compares = change.state != TableState::Created && there.is_some();
        let pages = if compares { self.pages_there(change).await? } else { Pages::BranchPoint };
        let why = match (change.state, there) {
            (TableState::Created, None) => return Ok(Some(change.clone())),
            (TableState::Created, Some(there)) if self.is_as_made(change, &there).await? => {
                self.applied.already_there += 1;
                return Ok(None);
            }
            (TableState::Created, Some(_)) => "both made one with this number",
            (TableState::Kept, None) => "the branch changed it; the target deleted it",
            (TableState::Dropped, None) => {
                self.applied.already_there += 1;
                return Ok(None);
            }
            (_, Some(_)) if pages == Pages::Other => "both changed it, or the target changed what the branch deleted",
            (TableState::Dropped, Some(there)) => match still_to_drop(change, there) {
                Ok(wanted) => return Ok(Some(wanted)),
                Err(why) => why,
            },
            (TableState::Kept, Some(there)) => match still_to_change(change, there, pages) {
                Ok((wanted, already_there)) => {
                    self.applied.already_there += already_there;
                    return Ok(wanted);
                }
                Err(why) => why,
            },
        };
        self.applied.conflict(Conflict::LargeObject { oid: change.oid, why: why.to_owned() });
        Ok(None)
    }

    /// Owner, privileges and comment; none if there is no such object.
    async fn large_object_there(&self, oid: u32) -> Result<Option<There>, ApplyError> {
        let privileges = large_object_privileges();
        let sql = format!(
            "select {LARGE_OBJECT_OWNER}, {privileges}, obj_description(oid, 'pg_largeobject') from pg_largeobject_metadata where oid = {oid}"
        );
        let Some(row) = self.target.rows(&sql).await?.into_iter().next() else { return Ok(None) };
        let mut fields = row.into_iter();
        let mut field = || fields.next().flatten();
        let (owner, privileges, comment) = (field(), field(), field());
        let access = LargeObjectAccess::from_texts(&owner.unwrap_or_default(), &privileges.unwrap_or_default())?;
        Ok(Some(There { access, comment }))
    }

    async fn pages_there(&self, change: &LargeObjectChange) -> Result<Pages, ApplyError> {
        let (mut is_old, mut is_new) = (true, change.state == TableState::Kept);
        for page in change.pages.iter() {
            let page = page?;
            let there = self.page_there(change.oid, page.number).await?;
            is_old &= trimmed(&there) == trimmed(page.old.as_deref().unwrap_or_default());
            is_new &= trimmed(&there) == trimmed(page.new.as_deref().unwrap_or_default());
            if !is_old && !is_new {
                return Ok(Pages::Other);
            }
        }
        Ok(if is_old { Pages::BranchPoint } else { Pages::Branch })
    }

    /// Whether one that the branch made is there with all that the branch gave it, and nothing else. One with pages that there are none of, which
    /// read as zeros, counts as another.
    async fn is_as_made(&self, change: &LargeObjectChange, there: &There) -> Result<bool, ApplyError> {
        // Without it the change set is an older program's, and says nothing of owner and privileges.
        let access = change.access.as_ref().and_then(|access| access.new.as_ref());
        let comment = change.comment.as_ref().and_then(|comment| comment.new.as_ref());
        if access.is_some_and(|new| !new.is_same(&there.access)) || there.comment.as_ref() != comment {
            return Ok(false);
        }
        let (mut next, mut end) = (0, 0);
        for page in change.pages.iter() {
            let page = page?;
            let content = page.new.unwrap_or_default();
            if page.number != next || trimmed(&self.page_there(change.oid, next).await?) != trimmed(&content) {
                return Ok(false);
            }
            end = i64::from(next) * PAGE_LEN + content.len() as i64 / 2;
            next += 1;
        }
        // Its last byte, and none behind that.
        let (from, len) = if end > 0 { (end - 1, "1") } else { (0, "0") };
        let rows = self.target.rows(&format!("select octet_length(lo_get({}, {from}, 2))", change.oid)).await?;
        Ok(rows.first().and_then(|row| row.first()?.as_deref()) == Some(len))
    }

    /// What a page reads as, in hexadecimal.
    async fn page_there(&self, oid: u32, number: i32) -> Result<String, ApplyError> {
        let at = i64::from(number) * PAGE_LEN;
        let rows = self.target.rows(&format!("select encode(lo_get({oid}, {at}, {PAGE_LEN}), 'hex')")).await?;
        Ok(rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default())
    }

    /// Where the content before a page ends.
    async fn end_before(&self, oid: u32, page: i32) -> Result<i64, ApplyError> {
        let at = i64::from(page) * PAGE_LEN;
        let sql = "select has_table_privilege('pg_largeobject', 'select')";
        if self.target.rows(sql).await?.first().and_then(|row| row.first()?.as_deref()) != Some("t") {
            // Who may not see pages gets the zeros.
            return Ok(at);
        }
        let rows = self.target.rows(&format!("select {}", large_object::end_before(oid, page))).await?;
        Ok(rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).unwrap_or(at))
    }

    pub(super) async fn large_object(&mut self, change: LargeObjectChange) -> Result<(), ApplyError> {
        let oid = change.oid;
        match change.state {
            TableState::Dropped => self.target.run(&large_object::unlink(oid)).await?,
            TableState::Created => self.target.run(&large_object::create(oid)).await?,
            TableState::Kept => {}
        }
        if change.state != TableState::Dropped {
            self.write_pages(&change).await?;
            // Before it belongs to somebody else.
            if let Some(comment) = &change.comment {
                self.target.run(&comment_on_large_object(oid, comment.new.as_deref())).await?;
            }
            if let Some(new) = change.access.as_ref().and_then(|access| access.new.as_ref()) {
                self.give(oid, new).await?;
            }
        }
        self.applied.inverse.large_objects.push(inverse::large_object(&change)?);
        Ok(())
    }

    async fn write_pages(&self, change: &LargeObjectChange) -> Result<(), ApplyError> {
        let oid = change.oid;
        let mut end = None;
        for page in change.pages.iter() {
            let page = page?;
            match &page.new {
                Some(content) => {
                    self.target.run(&large_object::put(oid, i64::from(page.number) * PAGE_LEN, content)).await?;
                    end = large_object::shortened(page.number, page.old.as_deref(), content).or(end);
                }
                None if end.is_none() => end = Some(self.end_before(oid, page.number).await?),
                None => {}
            }
        }
        match end {
            Some(end) => self.target.run(&large_object::truncate(oid, &end.to_string())).await,
            None => Ok(()),
        }
    }

    /// Gives one its owner and privileges. What a new one has depends on who made it, and on default privileges.
    async fn give(&self, oid: u32, new: &LargeObjectAccess) -> Result<(), ApplyError> {
        let Some(there) = self.large_object_there(oid).await? else {
            return Err(ApplyError::Unexpected { what: format!("large object {oid} is not there any more") });
        };
        for sql in there.access.change_to(new, oid) {
            self.target.run(&sql).await?;
        }
        Ok(())
    }
}

/// What is left to do about one that the branch changed, with how much of it the target has already; or what is at odds.
fn still_to_change(
    change: &LargeObjectChange,
    there: There,
    pages: Pages,
) -> Result<(Option<LargeObjectChange>, u64), &'static str> {
    let mut wanted = change.clone();
    let mut already_there = 0;
    if pages == Pages::Branch {
        wanted.pages = Spool::default();
        already_there += 1;
    }
    if let Some(Sides { old: Some(old), new: Some(new) }) = &change.access {
        if there.access.is_same(old) {
            wanted.access = Some(Sides { old: Some(there.access), new: Some(new.clone()) });
        } else if there.access.is_same(new) {
            wanted.access = None;
            already_there += 1;
        } else {
            return Err("both gave it another owner or other privileges");
        }
    }
    if let Some(comment) = &change.comment {
        if there.comment == comment.new {
            wanted.comment = None;
            already_there += 1;
        } else if there.comment != comment.old {
            return Err("both gave it another comment");
        }
    }
    let is_done = wanted.pages.is_empty() && wanted.access.is_none() && wanted.comment.is_none();
    Ok(((!is_done).then_some(wanted), already_there))
}

/// One that the branch deleted, with all that comes back in the inverse; or what is at odds.
fn still_to_drop(change: &LargeObjectChange, there: There) -> Result<LargeObjectChange, &'static str> {
    // Without the former the change set is an older program's, and says nothing of either.
    if let Some(Sides { old: Some(old), .. }) = &change.access {
        if !there.access.is_same(old) {
            return Err("the branch deleted it; the target gave it another owner or other privileges");
        }
        if there.comment.as_ref() != change.comment.as_ref().and_then(|comment| comment.old.as_ref()) {
            return Err("the branch deleted it; the target gave it another comment");
        }
    }
    let access = Some(Sides { old: Some(there.access), new: None });
    let comment = there.comment.map(|text| Sides { old: Some(text), new: None });
    Ok(LargeObjectChange { access, comment, ..change.clone() })
}

/// A page's end that is all zero is the same as one that is not there.
fn trimmed(hex: &str) -> &str {
    hex.trim_end_matches('0')
}
