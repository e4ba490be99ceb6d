//! Which parts of a schema's changes are run: those that are wanted, unless the target has made them too.

use std::collections::{BTreeMap, BTreeSet};

use ardent_diff::SchemaChange;
use ardent_schema_diff::Touched;

use crate::outcome::ApplyError;

/// Most names that an error lists.
const NAMES_SHOWN_MAX: usize = 12;

/// What becomes of a part of the schema's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its statements are run.
    Run,
    /// The target has it already.
    Present,
    /// It is not wanted.
    Left,
}

/// Which parts are wanted.
pub(crate) enum Wanted<'a> {
    All,
    None,
    /// These objects, with all that is a part of them, and, if so, what they need.
    These {
        objects: &'a [String],
        with_needed: bool,
    },
}

/// What each change of the schema becomes.
pub(crate) struct SchemaChoice<'a> {
    change: &'a SchemaChange,
    /// In the order of [`SchemaChange::touched`].
    states: Vec<State>,
    by_path: BTreeMap<&'a str, Vec<usize>>,
    by_new_path: BTreeMap<&'a str, Vec<usize>>,
    /// What statements belong to. Some objects only bring others along: a view, the comments of its columns.
    parts: BTreeSet<&'a str>,
    /// What was taken along without being wanted itself.
    pub taken_along: Vec<String>,
    /// How many changes are wanted that the target has made too.
    pub already_there: u64,
}

impl<'a> SchemaChoice<'a> {
    /// Decides. `there` are the target's definitions; absent: it is known to be as it was.
    pub fn new(
        change: &'a SchemaChange,
        wanted: &Wanted<'_>,
        there: Option<&BTreeMap<String, String>>,
    ) -> Result<SchemaChoice<'a>, ApplyError> {
        let (mut by_path, mut by_new_path): (BTreeMap<&str, Vec<usize>>, BTreeMap<&str, Vec<usize>>) =
            Default::default();
        for (index, touched) in change.touched.iter().enumerate() {
            by_path.entry(&touched.path).or_default().push(index);
            by_new_path.entry(&touched.new_path).or_default().push(index);
        }
        let states = vec![State::Left; change.touched.len()];
        let parts = change.statements.iter().map(|statement| statement.part.as_str()).collect();
        let mut choice =
            SchemaChoice { change, states, by_path, by_new_path, parts, taken_along: Vec::new(), already_there: 0 };
        let present = there.map(|there| choice.present(there)).unwrap_or_default();
        let chosen = choice.chosen(wanted, &present)?;
        let differs = |touched: &Touched| touched.old != touched.new;
        // What has statements and no other definition, such as a materialized view that is filled, follows the others; alone it is run.
        let wanted = change.touched.iter().filter(|touched| chosen.contains(choice.whole_of(touched)));
        let mut differing = wanted.filter(|touched| differs(touched)).peekable();
        let is_all_there =
            differing.peek().is_some() && differing.all(|touched| present.contains(choice.whole_of(touched)));
        for (index, touched) in change.touched.iter().enumerate() {
            let part = choice.whole_of(touched);
            let is_there = present.contains(part) || (!differs(touched) && is_all_there);
            choice.states[index] = match (chosen.contains(part), is_there) {
                (_, true) => State::Present,
                (true, false) => State::Run,
                (false, false) => State::Left,
            };
            if chosen.contains(part) && present.contains(part) && differs(touched) {
                choice.already_there += 1;
            }
        }
        Ok(choice)
    }

    /// Whether the change set says which statement belongs to which part.
    fn knows_parts(&self) -> bool {
        self.change.statements.iter().all(|statement| !statement.part.is_empty())
    }

    /// The path of the object whose statements bring `touched` about.
    fn whole_of(&self, touched: &'a Touched) -> &'a str {
        match &touched.with {
            Some(whole) if self.by_path.contains_key(whole.as_str()) || self.parts.contains(whole.as_str()) => whole,
            _ => &touched.path,
        }
    }

    /// Parts that the target has as the branch has them.
    fn present(&self, there: &BTreeMap<String, String>) -> BTreeSet<&'a str> {
        // Of the objects that had or get a name.
        let of = |paths: &BTreeMap<&str, Vec<usize>>, path: &str| -> Vec<&Touched> {
            paths.get(path).into_iter().flatten().map(|index| &self.change.touched[*index]).collect()
        };
        let is_old = |path: &str| {
            let now = there.get(path);
            now.is_some() && of(&self.by_path, path).iter().any(|touched| touched.old.as_ref() == now)
        };
        let made = |touched: &Touched| {
            let now = there.get(&touched.new_path);
            if touched.new.is_some() && touched.path == touched.new_path {
                return now == touched.new.as_ref();
            }
            let comes_again = of(&self.by_new_path, &touched.path).iter().any(|other| other.new.is_some());
            let old_name_is_free = there.get(&touched.path).is_none() || (comes_again && !is_old(&touched.path));
            old_name_is_free && (touched.new.is_none() || now == touched.new.as_ref())
        };
        let alike = |path: &str| {
            is_old(path) && of(&self.by_new_path, path).iter().any(|touched| touched.new.as_ref() == there.get(path))
        };
        let differing = || self.change.touched.iter().filter(|touched| touched.old != touched.new);
        let (mut made_ones, mut others) = (BTreeSet::new(), BTreeSet::new());
        for touched in differing() {
            let whole = self.whole_of(touched);
            // What has the name in the target may be what had it at the branch point: that can't be told if the two are alike, and is
            // nothing to go by for what they are parts of.
            let is_alike = alike(&touched.path) || alike(&touched.new_path);
            if !is_alike && made(touched) {
                made_ones.insert(whole);
            } else if !is_alike || whole == touched.path {
                others.insert(whole);
            }
        }
        // What an older program wrote is one part.
        if !self.knows_parts() && !others.is_empty() {
            return BTreeSet::new();
        }
        made_ones.difference(&others).copied().collect()
    }

    fn chosen(&mut self, wanted: &Wanted<'_>, present: &BTreeSet<&'a str>) -> Result<BTreeSet<&'a str>, ApplyError> {
        let touched = &self.change.touched;
        let (objects, with_needed) = match wanted {
            Wanted::All => return Ok(touched.iter().map(|touched| self.whole_of(touched)).collect()),
            Wanted::None => return Ok(BTreeSet::new()),
            Wanted::These { objects, with_needed } => (objects, *with_needed),
        };
        if !self.knows_parts() {
            let what =
                "the change set was written by an older program, which did not note what its parts need".to_owned();
            return Err(ApplyError::Choice {
                what,
                hint: "write it again: ardent branch diff NAME -o FILE".to_owned(),
            });
        }
        let (mut chosen, mut queue): (BTreeSet<&'a str>, Vec<&'a str>) = Default::default();
        let mut missing: BTreeSet<(&'a str, &'a str)> = BTreeSet::new();
        for object in *objects {
            let found: Vec<&Touched> = touched.iter().filter(|touched| is_or_is_of(touched, object)).collect();
            if found.is_empty() {
                return Err(self.not_changed(object));
            }
            // What only brings others along is chosen with each of them.
            let is_own = |whole: &str, touched: &Touched| whole == touched.path || !self.by_path.contains_key(whole);
            let own = found.iter().map(|touched| (self.whole_of(touched), touched));
            queue.extend(own.filter(|(whole, touched)| is_own(whole, touched)).map(|(whole, _)| whole));
            let parts: Vec<&str> = queue.clone();
            let foreign = found.iter().map(|touched| (touched.path.as_str(), self.whole_of(touched)));
            missing.extend(foreign.filter(|(_, whole)| !parts.contains(whole) && !present.contains(whole)));
        }
        let mut along: BTreeSet<&'a str> = BTreeSet::new();
        if with_needed {
            along.extend(missing.iter().map(|(_, whole)| *whole));
            queue.extend(std::mem::take(&mut missing).into_iter().map(|(_, whole)| whole));
        }
        let wanted: BTreeSet<&'a str> = queue.iter().copied().collect();
        while let Some(part) = queue.pop() {
            if !chosen.insert(part) {
                continue;
            }
            let own = self.by_path.get(part).into_iter().flatten().map(|index| &touched[*index]);
            for need in own.flat_map(|touched| &touched.needs).map(String::as_str) {
                if present.contains(need) || wanted.contains(need) || !self.by_path.contains_key(need) {
                    continue;
                }
                if with_needed {
                    along.insert(need);
                    queue.push(need);
                } else {
                    missing.insert((part, need));
                }
            }
        }
        missing.retain(|(_, need)| !chosen.contains(need));
        if !missing.is_empty() {
            let list: Vec<String> = missing.iter().map(|(part, need)| format!("{part} needs {need}")).collect();
            let flags: BTreeSet<String> = missing.iter().map(|(_, need)| format!("--object '{need}'")).collect();
            return Err(ApplyError::Choice {
                what: format!("what is chosen cannot be applied alone: {}", listed(&list)),
                hint: format!(
                    "choose that too ({}), or have all that is needed taken along: --with-needed",
                    listed(&flags.into_iter().collect::<Vec<_>>())
                ),
            });
        }
        self.taken_along = along.into_iter().map(str::to_owned).collect();
        Ok(chosen)
    }

    fn not_changed(&self, object: &str) -> ApplyError {
        let own = self.change.touched.iter().filter(|touched| touched.with.is_none());
        let names: Vec<String> = own.map(|touched| touched.path.clone()).collect();
        let hint = if names.is_empty() {
            "the branch changed nothing of the schema".to_owned()
        } else {
            format!("the branch changed {}", listed(&names))
        };
        ApplyError::Choice { what: format!("{object:?} is nothing that the branch changed"), hint }
    }

    /// The statements and touched objects that are left, and nothing of the way back.
    pub fn change(&self, not_covered: bool) -> SchemaChange {
        let running: BTreeSet<&str> = self.running().map(|touched| self.whole_of(touched)).collect();
        let is_run =
            |part: &String| if part.is_empty() { !running.is_empty() } else { running.contains(part.as_str()) };
        SchemaChange {
            statements: self.change.statements.iter().filter(|statement| is_run(&statement.part)).cloned().collect(),
            not_covered: if not_covered { self.change.not_covered.clone() } else { Vec::new() },
            touched: self.running().cloned().collect(),
            ..SchemaChange::default()
        }
    }

    /// What is run.
    fn running(&self) -> impl Iterator<Item = &'a Touched> {
        let touched = self.change.touched.iter().zip(&self.states);
        touched.filter(|(_, state)| **state == State::Run).map(|(touched, _)| touched)
    }

    /// What becomes of the object that the branch has under this path.
    pub fn of_new(&self, new_path: &str) -> Option<(&'a Touched, State)> {
        self.at(self.by_new_path.get(new_path)?)
    }

    /// What becomes of the object that the branch point has under this path.
    pub fn of_old(&self, path: &str) -> Option<(&'a Touched, State)> {
        self.at(self.by_path.get(path)?)
    }

    /// Of several under one name (one was dropped, one made), one that is run, if any is.
    fn at(&self, indices: &[usize]) -> Option<(&'a Touched, State)> {
        let all = || indices.iter().map(|index| (&self.change.touched[*index], self.states[*index]));
        all().find(|(_, state)| *state == State::Run).or_else(|| all().next())
    }
}

/// Whether an object is the one that is named, or a part of that.
fn is_or_is_of(touched: &Touched, object: &str) -> bool {
    [&touched.path, &touched.new_path]
        .into_iter()
        .any(|path| path == object || path.strip_suffix(object).is_some_and(|start| start.ends_with(" of ")))
}

fn listed(names: &[String]) -> String {
    let mut shown = names.iter().take(NAMES_SHOWN_MAX).cloned().collect::<Vec<_>>().join("; ");
    if names.len() > NAMES_SHOWN_MAX {
        shown.push_str(&format!("; and {} more", names.len() - NAMES_SHOWN_MAX));
    }
    shown
}

/// The way back from what was just done: `back` is the whole way from what the target has now to what it had, of which only what
/// belongs to `done` is meant, with all that must be made again for it. What somebody else changed meanwhile stays.
pub(crate) fn undoing(back: &SchemaChange, done: &SchemaChange) -> Result<SchemaChange, ApplyError> {
    let known: BTreeSet<&str> = back.touched.iter().map(|touched| touched.path.as_str()).collect();
    // What went with another thing may come back by statements of its own.
    let names = done.touched.iter().map(|touched| touched.new_path.clone());
    let mut objects: Vec<String> = names.filter(|name| known.contains(name.as_str())).collect();
    if objects.iter().any(|object| object.starts_with("partition ")) {
        // The same before and after, it belongs to whoever moves a partition below what it references.
        let gives_way = back.touched.iter().filter(|touched| touched.old == touched.new);
        let is_foreign_key = |touched: &&Touched| {
            back.statements.iter().any(|made| made.part == touched.path && made.sql.contains(" FOREIGN KEY "))
        };
        objects.extend(gives_way.filter(is_foreign_key).map(|touched| touched.path.clone()));
    }
    let part = |change: &SchemaChange, objects: &[String]| -> Result<SchemaChange, ApplyError> {
        let choice = SchemaChoice::new(change, &Wanted::These { objects, with_needed: true }, None)?;
        Ok(choice.change(false))
    };
    if objects.is_empty() {
        return Ok(SchemaChange::default());
    }
    let there_again = back.reversed();
    let undo = part(back, &objects)?;
    let redo: Vec<String> = undo.touched.iter().map(|touched| touched.new_path.clone()).collect();
    let redo: Vec<String> =
        redo.into_iter().filter(|name| there_again.touched.iter().any(|touched| touched.path == *name)).collect();
    let redone = if redo.is_empty() { SchemaChange::default() } else { part(&there_again, &redo)? };
    Ok(SchemaChange {
        not_covered: back.not_covered.clone(),
        undo: redone.statements,
        undo_touched: redone.touched,
        ..undo
    })
}
