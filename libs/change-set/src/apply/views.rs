//! Materialized views: those that the branch refreshed are refreshed, others that read what is written are named.

use ardent_diff::TableState;
use ardent_schema_diff::{literal, qualified};

use super::Run;
use crate::guard::Guarded;
use crate::outcome::ApplyError;

impl Run<'_> {
    /// Refreshes what is in the change set.
    pub(super) async fn refresh_views(&mut self, tables: &[Guarded<'_>]) -> Result<(), ApplyError> {
        let views = self.set.tables.iter();
        let mut known = Vec::new();
        for view in views.filter(|change| change.materialized_view && change.state == TableState::Kept) {
            let name = qualified(&view.schema, &view.name);
            // One that the branch emptied stays empty.
            let populated = format!("select relispopulated from pg_class where oid = {}::regclass", literal(&name));
            if self.target.rows(&populated).await? == [[Some("t".to_owned())]] {
                self.target.run(&format!("REFRESH MATERIALIZED VIEW {name}")).await?;
            }
            known.push(name);
        }
        for name in self.views_on(tables).await?.into_iter().filter(|name| !known.contains(name)) {
            self.applied.notes.push(format!(
                "{name} was not refreshed, and is made of rows that were changed: REFRESH MATERIALIZED VIEW {name}"
            ));
        }
        Ok(())
    }

    /// Filled materialized views that read rows which are written, be it through other views.
    async fn views_on(&self, tables: &[Guarded<'_>]) -> Result<Vec<String>, ApplyError> {
        let written = tables.iter().filter(|guarded| guarded.writes() || !guarded.places.is_empty());
        let oid = |guarded: &Guarded<'_>| {
            let name = qualified(&guarded.change.schema, &guarded.change.name);
            format!("to_regclass({})", literal(&name))
        };
        let oids: Vec<String> = written.map(oid).collect();
        if oids.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "with recursive reading(oid) as (
                 select oid from pg_class where oid in ({})
                 union
                 select more.oid from reading r, lateral (
                     select i.inhparent from pg_inherits i where i.inhrelid = r.oid
                     union all
                     select w.ev_class from pg_depend d join pg_rewrite w on w.oid = d.objid
                      where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = r.oid) more(oid))
             select c.oid::regclass from pg_class c join reading on reading.oid = c.oid where c.relkind = 'm' and c.relispopulated order by c.oid",
            oids.join(", ")
        );
        Ok(self.target.rows(&sql).await?.into_iter().flatten().flatten().collect())
    }
}
