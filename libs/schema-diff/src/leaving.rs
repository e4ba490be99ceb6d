//! What goes: in which order, and when.
//!
//! A partition goes with its partitioned table where that goes too. A foreign key that references a table above it and stays holds on to it:
//! such a partition is detached first, which Postgres only does once no row refers to its rows. So it goes after the rows are brought over.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{Kind, Object, ObjectId};
use crate::drop;
use crate::needs::CHAIN_LEN_MAX;
use crate::order::{self, Edges};
use crate::phrase::full_name;
use crate::plan::{Action, Planner, Section, Statement};
use crate::rename::Renames;

/// Drops by when they are run, each in order.
pub(crate) struct Leaving {
    /// Before everything else.
    first: Vec<ObjectId>,
    /// Partitions that a foreign key holds on to, and their places: when rows are there, and before others come to those places.
    held: Vec<ObjectId>,
    /// After everything else.
    last: Vec<ObjectId>,
    /// For each drop that whose statement brings it.
    stands_for: BTreeMap<ObjectId, ObjectId>,
}

/// What things are called once all that stay have their new names.
pub(crate) struct NamesThen<'p, 'a> {
    pub planner: &'p Planner<'a>,
    pub renames: &'p Renames,
    /// Names of what still is to go, which made room.
    pub temporary: BTreeMap<ObjectId, String>,
}

impl NamesThen<'_, '_> {
    /// An object of the old side that goes, under the name that it has by then.
    fn going(&self, object: &Object) -> Object {
        let schema = object.schema.as_deref().map(|schema| self.schema(schema).to_owned());
        let name = self.temporary.get(&object.id).unwrap_or(&object.name).clone();
        Object { schema, name, ..object.clone() }
    }

    fn schema<'n>(&'n self, old: &'n str) -> &'n str {
        let mut objects = self.planner.old.objects.values();
        let schema = objects.find(|object| object.kind == Kind::Schema && object.name == old);
        let temporary = schema.and_then(|schema| self.temporary.get(&schema.id));
        temporary.map_or_else(|| self.renames.schema_after(old), String::as_str)
    }

    /// The quoted name of a table of the old side.
    fn table(&self, id: &ObjectId) -> Option<String> {
        match self.planner.new.objects.get(id) {
            Some(new) => Some(full_name(new)),
            None => self.planner.old.objects.get(id).map(|old| full_name(&self.going(old))),
        }
    }
}

impl Leaving {
    /// Whether a table leaves its place before anything else is done: what is done to the table above does not come to it.
    pub fn leaves_first(&self, planner: &Planner<'_>, place: &ObjectId) -> bool {
        planner.drops.contains(place) && !self.held.contains(place)
    }

    /// Statements that are run before everything else.
    pub fn before_all(&self, planner: &Planner<'_>) -> Vec<Statement> {
        let mut statements = Vec::new();
        // What goes last leaves its place to others.
        let places = self.last.iter().filter(|id| !self.held.contains(id)).map(ObjectId::place);
        let leaves = |place: &ObjectId| planner.goes_with(place).is_some_and(|table| self.last.contains(&table));
        let places = places.filter(|place| planner.drops.contains(place) && leaves(place));
        for id in self.first.iter().cloned().chain(places) {
            let Some(object) = planner.old.objects.get(&id) else { continue };
            let sql = drop::statement(planner.old, object);
            statements.extend(sql.map(|sql| gone(planner, Section::BeforeRows, object, sql)));
        }
        statements
    }

    /// What is there while others come, and may have to make room for their names.
    pub fn that_stay_for_a_while(&self) -> Vec<ObjectId> {
        let own = self.held.iter().chain(&self.last).filter(|id| id.class != "partition");
        let mut all: Vec<ObjectId> = own.cloned().collect();
        // With those tables that go with their partitioned table, with sequences and indexes.
        let brought = self.stands_for.iter().filter(|(id, whole)| id != whole && id.class == "pg_class" && id.sub == 0);
        let brought: Vec<ObjectId> =
            brought.filter(|(_, whole)| all.contains(whole)).map(|(id, _)| id.clone()).collect();
        all.extend(brought);
        all
    }

    /// Statements that are run when rows are there, before all others of then.
    pub fn after_rows(&self, names: &NamesThen<'_, '_>) -> Vec<Statement> {
        let planner = names.planner;
        let mut statements = Vec::new();
        for id in &self.held {
            let table = ObjectId { class: "pg_class".to_owned(), ..id.clone() };
            let above = planner.old.tables_above(&table).first().and_then(|above| names.table(above));
            let (place, parent, name) = (planner.old.objects.get(&id.place()), above, names.table(&table));
            if let (Some(place), Some(parent), Some(name)) = (place, parent, name) {
                statements.push(gone(planner, Section::AfterRows, place, drop::detach(&parent, &name)));
            }
            if *id == table && !self.last.contains(id) {
                statements.extend(late(names, id));
            }
        }
        statements
    }

    /// Statements that are run after everything else.
    pub fn after_all(&self, names: &NamesThen<'_, '_>) -> Vec<Statement> {
        self.last.iter().filter_map(|id| late(names, id)).collect()
    }
}

fn gone(planner: &Planner<'_>, section: Section, object: &Object, sql: String) -> Statement {
    planner.statement(section, Action::Drop, planner.old, object, sql)
}

fn late(names: &NamesThen<'_, '_>, id: &ObjectId) -> Option<Statement> {
    let planner = names.planner;
    let object = planner.old.objects.get(id)?;
    // By then its table has its new name.
    let catalog = if planner.new.parent(object).is_some() { planner.new } else { planner.old };
    let sql = drop::statement(catalog, &names.going(object))?;
    Some(gone(planner, Section::AfterRows, object, sql))
}

impl Planner<'_> {
    /// What goes away with `id`'s whole, or with what it copies, and needs no statement of its own.
    pub(crate) fn goes_with(&self, id: &ObjectId) -> Option<ObjectId> {
        let object = &self.old.objects[id];
        let parent = object.parent_id().filter(|parent| self.drops.contains(parent));
        match object.kind {
            Kind::ViewColumn => return object.parent_id(),
            Kind::Constraint => {
                let both = object.references().is_some_and(|other| {
                    parent.as_ref().is_some_and(|parent| *parent != other) && self.drops.contains(&other)
                });
                if both && object.number("parent_constraint") == 0 && object.number("inherited") == 0 {
                    return None;
                }
            }
            _ => {}
        }
        if parent.is_some() {
            return parent;
        }
        // By then it is no part of what is above.
        if self.place_left(object).is_some() {
            return None;
        }
        let dropped = |class: &str, oid: i64| {
            let id = ObjectId { class: class.to_owned(), oid: u32::try_from(oid).ok()?, sub: 0 };
            self.drops.contains(&id).then_some(id)
        };
        match object.kind {
            // Its place goes with it; one that only leaves its place is detached, whatever becomes of the table above.
            Kind::Table | Kind::ForeignTable => {
                self.old.tables_above(id).into_iter().next().filter(|above| self.drops.contains(above))
            }
            Kind::Index => dropped("pg_class", object.number("parent_index")),
            Kind::Constraint => {
                let whole = dropped("pg_constraint", object.number("parent_constraint"));
                let inherited =
                    object.number("inherited") > 0 && !object.flag("local") && object.text("type") == Some("c");
                whole.or_else(|| inherited.then(|| object.parent_id()).flatten())
            }
            Kind::Column if object.number("inherited") > 0 && !object.flag("local") => object.parent_id(),
            Kind::Sequence => {
                let owned = ObjectId { class: "owned".to_owned(), ..id.clone() };
                let columns = self.old.needs_of(&owned).filter(|need| *need != id);
                columns
                    .flat_map(|column| [column.clone(), ObjectId { sub: 0, ..column.clone() }])
                    .find(|owner| self.drops.contains(owner))
            }
            _ => None,
        }
    }

    /// The place that an object's table leaves, if it stays itself.
    fn place_left(&self, object: &Object) -> Option<ObjectId> {
        let table = object.parent_id().filter(|table| !self.drops.contains(table))?;
        let is_part = matches!(object.kind, Kind::Column | Kind::Index | Kind::Constraint);
        Some(table.place()).filter(|place| is_part && self.drops.contains(place))
    }

    /// What a partition's column, index or constraint has from the table above.
    fn that_it_copies(&self, object: &Object) -> Vec<ObjectId> {
        let index = u32::try_from(object.number("parent_index")).ok().filter(|oid| *oid != 0);
        let index = index.map(|oid| ObjectId { class: "pg_class".to_owned(), oid, sub: 0 });
        let columns = self.old.columns_above(object).filter(|_| object.kind == Kind::Column);
        columns.map(|column| column.id.clone()).chain(index).chain(object.copy_of()).collect()
    }

    /// All that goes, in order.
    pub(crate) fn leaving(&self) -> Leaving {
        let stands_for: BTreeMap<ObjectId, ObjectId> = self
            .drops
            .iter()
            .map(|id| {
                let mut at = id.clone();
                for _ in 0..CHAIN_LEN_MAX {
                    match self.drops.contains(&at).then(|| self.goes_with(&at)).flatten() {
                        Some(whole) => at = whole,
                        None => break,
                    }
                }
                (id.clone(), at)
            })
            .collect();
        let mut edges = Edges::new();
        let mut needed_late: BTreeSet<ObjectId> = BTreeSet::new();
        for (from, needs) in &self.old.needs {
            for need in needs.iter().filter(|need| self.drops.contains(need)) {
                let to = stands_for.get(need).unwrap_or(need).clone();
                match stands_for.get(from) {
                    Some(from) if *from != to => {
                        // `from` goes first.
                        edges.entry(to).or_default().insert(from.clone());
                    }
                    Some(_) => {}
                    // A foreign key lets go of a place when that is left.
                    None if need.class == "partition" => {}
                    None => {
                        // An object that stays lets go of it only once it was changed.
                        let part_of_it =
                            self.old.objects.get(from).and_then(Object::parent_id).is_some_and(|parent| parent == to);
                        if !part_of_it {
                            needed_late.insert(to);
                        }
                    }
                }
            }
        }
        for id in &self.drops {
            // What is inherited cannot be dropped.
            let object = &self.old.objects[id];
            let Some(place) = self.place_left(object) else { continue };
            edges.entry(id.clone()).or_default().insert(place.clone());
            // What it is inherited from would take it along.
            for above in self.that_it_copies(object).iter().filter_map(|above| stands_for.get(above)) {
                edges.entry(above.clone()).or_default().insert(place.clone());
            }
        }
        let own: BTreeSet<ObjectId> =
            stands_for.iter().filter(|(id, whole)| id == whole).map(|(id, _)| id.clone()).collect();
        let rank = |id: &ObjectId| self.old.objects.get(id).map(|o| (std::cmp::Reverse(o.kind), self.old.path(o)));
        let (ordered, _) = order::sort(&own, &edges, rank);
        let holding = self.held_tables();
        let (mut held, mut last) = (BTreeSet::new(), needed_late);
        for id in &ordered {
            let goes_before =
                |others: &BTreeSet<ObjectId>| edges.get(id).into_iter().flatten().any(|before| others.contains(before));
            let is_held = self.is_held(id, &holding);
            // What is needed by what goes late goes later still.
            if goes_before(&last) || (!is_held && goes_before(&held)) {
                last.insert(id.clone());
            }
            if is_held {
                held.insert(id.clone());
            }
        }
        let is_place = |id: &ObjectId| id.class == "partition";
        let is_last = |id: &ObjectId| last.contains(id) && !is_place(id);
        let is_first = |id: &ObjectId| !held.contains(id) && !is_last(id);
        Leaving {
            first: ordered.iter().filter(|id| is_first(id)).cloned().collect(),
            held: ordered.iter().filter(|id| held.contains(*id)).cloned().collect(),
            last: ordered.iter().filter(|id| is_last(id)).cloned().collect(),
            stands_for,
        }
    }

    /// Tables that foreign keys reference which stay, and are not made again.
    pub(crate) fn held_tables(&self) -> BTreeSet<ObjectId> {
        let keys = self.old.objects.values().filter(|object| !self.drops.contains(&object.id));
        keys.filter_map(Object::references).collect()
    }

    /// Whether a table, or a table's place, is below one of these.
    fn is_held(&self, id: &ObjectId, holding: &BTreeSet<ObjectId>) -> bool {
        let table = ObjectId { class: "pg_class".to_owned(), ..id.clone() };
        let is_partition = self
            .old
            .objects
            .get(id)
            .is_some_and(|object| matches!(object.kind, Kind::Table | Kind::ForeignTable | Kind::Partition));
        is_partition && self.old.tables_above(&table).iter().any(|above| holding.contains(above))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::catalog::Catalog;
    use crate::plan::{Identity, plan};

    const C: u32 = 20_003;

    fn table(oid: u32, name: &str) -> Value {
        json!({ "class": "pg_class", "oid": oid, "sub": 0, "kind": "table", "schema": "z", "name": name })
    }

    fn partition(oid: u32, name: &str, parent: (u32, &str), bound: &str) -> Value {
        let mut object = table(oid, name);
        object["d"] = json!({ "partition_bound": bound, "parents": [[format!("z.{}", parent.1)]] });
        object["s"] = json!({ "parents": [parent.0] });
        object
    }

    fn foreign_key(oid: u32, table: u32, references: (u32, &str)) -> Value {
        let definition = format!("FOREIGN KEY (a) REFERENCES z.{}(a)", references.1);
        json!({ "class": "pg_constraint", "oid": oid, "sub": 0, "kind": "constraint", "schema": null, "name": "fk",
            "parent": ["pg_class", table, 0], "d": { "type": "f", "definition": definition, "foreign_table": references.0 } })
    }

    /// Of these objects; a foreign key depends on what it references.
    fn catalog(objects: &[Value]) -> Catalog {
        let keys = objects.iter().filter(|object| object["kind"] == "constraint");
        let needs =
            keys.map(|key| json!(["pg_constraint", key["oid"], 0, "pg_class", key["d"]["foreign_table"], 0, "n"]));
        let needs: Vec<String> = needs.map(|row| row.to_string()).collect();
        let objects: Vec<String> = objects.iter().map(Value::to_string).collect();
        Catalog::from_answers(&[needs, Vec::new(), Vec::new(), objects]).expect("a catalog")
    }

    /// The statements from one side to the other, those after the rows behind a line.
    fn check(old: &[Value], new: &[Value], expect: &[&str]) {
        let found = plan(&catalog(old), &catalog(new), Identity::Oid);
        assert_eq!(found.not_covered, Vec::<String>::new());
        let of = |section: Section| {
            let statements = found.statements.iter().filter(move |statement| statement.section == section);
            statements.map(|statement| statement.sql.clone())
        };
        let mut all: Vec<String> = of(Section::BeforeRows).collect();
        all.push("--".to_owned());
        all.extend(of(Section::AfterRows));
        assert_eq!(all, expect);
    }

    /// p with p0 and p1, and c.
    fn base() -> Vec<Value> {
        let p = (20_000, "p");
        vec![
            table(p.0, "p"),
            partition(20_001, "p0", p, "FOR VALUES IN (0)"),
            partition(20_002, "p1", p, "FOR VALUES IN (1)"),
            table(C, "c"),
        ]
    }

    fn referenced() -> Vec<Value> {
        [base(), vec![foreign_key(20_004, C, (20_000, "p"))]].concat()
    }

    fn without(objects: &[Value], names: &[&str]) -> Vec<Value> {
        objects.iter().filter(|object| names.iter().all(|name| object["name"] != *name)).cloned().collect()
    }

    #[test]
    fn a_partition_that_a_foreign_key_holds_on_to_is_detached_first() {
        let (with_key, gone) = (referenced(), "DROP TABLE z.p0");
        let detached = "ALTER TABLE z.p DETACH PARTITION z.p0";
        check(&with_key, &without(&with_key, &["p0"]), &["--", detached, gone]);
        check(&base(), &without(&base(), &["p0"]), &[gone, "--"]);
        check(&with_key, &without(&with_key, &["p0", "fk"]), &["ALTER TABLE z.c DROP CONSTRAINT fk", gone, "--"]);
        // Nobody can refer to rows of a place that is left.
        let mut alone = with_key.clone();
        alone[1] = table(20_001, "p0");
        check(&with_key, &alone, &["--", detached]);
    }

    #[test]
    fn a_partition_that_is_held_makes_room_for_what_gets_its_name() {
        let all = referenced();
        let mut new = [without(&all, &["p0"]), vec![table(20_040, "p0")]].concat();
        new[0] = table(20_000, "whole");
        let expect = [
            "ALTER TABLE z.p0 RENAME TO ardent_old_20001_0",
            "ALTER TABLE z.p RENAME TO whole",
            "CREATE TABLE z.p0 ()",
            "--",
            "ALTER TABLE z.whole DETACH PARTITION z.ardent_old_20001_0",
            "DROP TABLE z.ardent_old_20001_0",
        ];
        check(&all, &new, &expect);
    }

    #[test]
    fn a_partition_whose_table_above_goes_goes_with_it_and_one_that_stays_does_not() {
        let all = referenced();
        let key = "ALTER TABLE z.c DROP CONSTRAINT fk";
        check(&all, &[], &[key, "DROP TABLE z.c", "DROP TABLE z.p", "--"]);
        check(&all, &without(&all, &["p", "p0", "p1", "fk"]), &[key, "DROP TABLE z.p", "--"]);
        let mut stays = without(&base(), &["p", "p1"]);
        stays[0] = table(20_001, "p0");
        check(&base(), &stays, &["ALTER TABLE z.p DETACH PARTITION z.p0", "DROP TABLE z.p", "--"]);
        // Several levels.
        let m = (20_010, "m");
        let middle = partition(m.0, m.1, (20_000, "p"), "FOR VALUES IN (5, 6)");
        let leaf = partition(20_011, "m5", m, "FOR VALUES IN (5)");
        let deep = [all.clone(), vec![middle, leaf]].concat();
        let detached = "ALTER TABLE z.p DETACH PARTITION z.m";
        check(&deep, &all, &["--", detached, "DROP TABLE z.m"]);
        check(&deep, &without(&deep, &["m5"]), &["--", "ALTER TABLE z.m DETACH PARTITION z.m5", "DROP TABLE z.m5"]);
    }

    #[test]
    fn a_foreign_key_to_the_table_itself_holds_on_to_its_partitions() {
        let all = [base(), vec![foreign_key(20_005, 20_000, (20_000, "p"))]].concat();
        let held = ["--", "ALTER TABLE z.p DETACH PARTITION z.p1", "DROP TABLE z.p1"];
        check(&all, &without(&all, &["p1"]), &held);
        check(&all, &without(&all, &["p", "p0", "p1", "fk"]), &["DROP TABLE z.p", "--"]);
    }

    #[test]
    fn a_new_partition_is_in_its_place_before_rows_refer_to_its_rows() {
        let (with_key, p) = (referenced(), (20_000, "p"));
        let new = partition(20_020, "p2", p, "FOR VALUES IN (2)");
        let made = "CREATE TABLE z.p2 ()";
        let attached = "ALTER TABLE ONLY z.p ATTACH PARTITION z.p2 FOR VALUES IN (2)";
        check(&base(), &[base(), vec![new.clone()]].concat(), &[made, "--", attached]);
        check(&with_key, &[with_key.clone(), vec![new.clone()]].concat(), &[made, attached, "--"]);
        // Where it may get in the way of another, or of rows that are still elsewhere, the foreign key gives way.
        let (key, again) = (
            "ALTER TABLE z.c DROP CONSTRAINT fk",
            "ALTER TABLE z.c ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES z.p(a)",
        );
        let instead = [without(&with_key, &["p0"]), vec![new.clone()]].concat();
        check(&with_key, &instead, &[key, "DROP TABLE z.p0", made, "--", attached, again]);
        let with_default = [with_key, vec![partition(20_021, "rest", p, "DEFAULT")]].concat();
        let beside = [with_default.clone(), vec![new]].concat();
        check(&with_default, &beside, &[key, made, "--", attached, again]);
    }

    #[test]
    fn a_foreign_key_gives_way_to_a_partition_that_changes_its_place() {
        let (with_key, mut moved) = (referenced(), referenced());
        moved[1] = partition(20_001, "p0", (20_000, "p"), "FOR VALUES IN (0, 3)");
        let expect = [
            "ALTER TABLE z.c DROP CONSTRAINT fk",
            "ALTER TABLE z.p DETACH PARTITION z.p0",
            "--",
            "ALTER TABLE ONLY z.p ATTACH PARTITION z.p0 FOR VALUES IN (0, 3)",
            "ALTER TABLE z.c ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES z.p(a)",
        ];
        check(&with_key, &moved, &expect);
        // One that was made again on the way was in the way.
        let again = [without(&base(), &["p1"]), vec![foreign_key(20_030, C, (20_000, "p"))]].concat();
        check(&with_key, &again, &[expect[0], "DROP TABLE z.p1", "--", expect[4]]);
    }
}
