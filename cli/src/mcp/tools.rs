//! The tools: names, what they are for, what they take and give.

use rmcp::model::{Tool, ToolAnnotations};
use rmcp::schemars::JsonSchema;

use super::applying::{ApplyArgs, DeleteArgs, ResetArgs};
use super::branches::{Branch, BranchArgs, Branches, Connection, ConnectionArgs, CreateArgs, Created, ListArgs};
use super::changes::{Changes, DiffArgs};
use super::checkpoints::{CheckpointArgs, Marked, RewindArgs};
use super::confirmation::Outcome;
use super::rehearsal::{RehearseArgs, Report};
use super::sql::{Executed, Rows, SqlArgs};

/// What a client is told before it sees the tools.
pub const INSTRUCTIONS: &str = "Ardent makes branches of a production Postgres: isolated databases with all of its data, made in \
    milliseconds. Every tool takes the branch that it works on as an argument; there is no current branch. Work on a branch of your \
    own: create_branch, then query and execute. checkpoint marks a step of your work, and rewind goes back to one. diff shows what you \
    changed. rehearse tells what a migration would lock, rewrite and change, without keeping anything. apply, rewind, reset_branch and \
    delete_branch do nothing at first: they answer with what they would do, and do it when that is confirmed. A branch that descends from \
    no other (is_root) follows production: it cannot be queried or changed, make a branch of it.";

/// A tool's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    ListBranches,
    BranchInfo,
    CreateBranch,
    ConnectionString,
    Query,
    Execute,
    Diff,
    Rehearse,
    Checkpoint,
    Rewind,
    Apply,
    ResetBranch,
    DeleteBranch,
}

/// What a tool does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Nothing.
    Reads,
    /// It adds, and the same again adds nothing.
    AddsOnce,
    /// It adds.
    Adds,
    /// It may take away.
    Destroys,
}

impl Name {
    const ALL: [Name; 13] = [
        Name::ListBranches,
        Name::BranchInfo,
        Name::CreateBranch,
        Name::ConnectionString,
        Name::Query,
        Name::Execute,
        Name::Diff,
        Name::Rehearse,
        Name::Checkpoint,
        Name::Rewind,
        Name::Apply,
        Name::ResetBranch,
        Name::DeleteBranch,
    ];

    /// As clients write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::ListBranches => "list_branches",
            Name::BranchInfo => "branch_info",
            Name::CreateBranch => "create_branch",
            Name::ConnectionString => "connection_string",
            Name::Query => "query",
            Name::Execute => "execute",
            Name::Diff => "diff",
            Name::Rehearse => "rehearse",
            Name::Checkpoint => "checkpoint",
            Name::Rewind => "rewind",
            Name::Apply => "apply",
            Name::ResetBranch => "reset_branch",
            Name::DeleteBranch => "delete_branch",
        }
    }

    /// The tool of that name.
    pub fn of(name: &str) -> Option<Name> {
        Name::ALL.into_iter().find(|tool| tool.as_str() == name)
    }

    fn effect(self) -> Effect {
        match self {
            Name::ListBranches | Name::BranchInfo | Name::Query | Name::Diff => Effect::Reads,
            Name::CreateBranch => Effect::AddsOnce,
            // Who has the string may write; the branch of a rehearsal is there for a while.
            Name::ConnectionString | Name::Rehearse | Name::Checkpoint => Effect::Adds,
            Name::Execute | Name::Apply | Name::Rewind | Name::ResetBranch | Name::DeleteBranch => Effect::Destroys,
        }
    }

    /// Whether it changes nothing.
    pub fn is_reading(self) -> bool {
        self.effect() == Effect::Reads
    }

    fn tool(self) -> Tool {
        let described = |text: &'static str| Tool::new(self.as_str(), text, rmcp::model::JsonObject::new());
        let tool = match self {
            Name::ListBranches => {
                shaped::<ListArgs, Branches>(described("List the branches and what they were made from."))
            }
            Name::BranchInfo => {
                shaped::<BranchArgs, Branch>(described("Show one branch: parent, limits, state, children."))
            }
            Name::CreateBranch => shaped::<CreateArgs, Created>(described(
                "Make a branch: an isolated database with all data of production, of another branch, or of a masked template, as of now or of a \
                 time in the past. The same name again gives the same branch. Give it a ttl if it is for one piece of work.",
            )),
            Name::ConnectionString => shaped::<ConnectionArgs, Connection>(described(
                "The connection string of a branch, with its password, for a program that connects by itself. To run SQL use query and \
                 execute.",
            )),
            Name::Query => shaped::<SqlArgs, Rows>(described(
                "Run one SELECT, WITH, VALUES, TABLE, EXPLAIN or SHOW on a branch. It cannot change anything: the server holds the \
                 session to reading.",
            )),
            Name::Execute => shaped::<SqlArgs, Executed>(described(
                "Run SQL that changes a branch: any statements, parted by semicolons, in one transaction unless they say BEGIN and \
                 COMMIT. Production is not reached.",
            )),
            Name::Diff => shaped::<DiffArgs, Changes>(described(
                "Show what changed on a branch since it was made, since a checkpoint, or against another branch: the schema's statements \
                 and counts by table; with table, that table's changed rows.",
            )),
            Name::Rehearse => shaped::<RehearseArgs, Report>(described(
                "Run a migration on a branch that is made for it and deleted again, and report for each statement: time, locks that \
                 would block others, rewritten tables, rows, errors; then what is different afterwards.",
            )),
            Name::Checkpoint => shaped::<CheckpointArgs, Marked>(described(
                "Mark what a branch has committed now, for rewind to go back to. It costs nothing and ends no session: make one before each \
                 step of your work.",
            )),
            Name::Rewind => shaped::<RewindArgs, Outcome>(described(
                "Make a branch what it was at a checkpoint, and so throw away what changed on it since. It is done after a confirmation, \
                 can be undone for a while, and later checkpoints can still be gone to.",
            )),
            Name::Apply => shaped::<ApplyArgs, Outcome>(described(
                "Apply what changed on a branch to production (a connector's name) or to another branch, in one transaction, each row \
                 guarded by what it was. The first call tries it and takes it back; it is done after a confirmation.",
            )),
            Name::ResetBranch => shaped::<ResetArgs, Outcome>(described(
                "Make a branch what its parent is, and so throw away what changed on it. It is done after a confirmation, and can be \
                 undone for a while.",
            )),
            Name::DeleteBranch => shaped::<DeleteArgs, Outcome>(described(
                "Delete a branch. It is done after a confirmation, and can be undone for a while.",
            )),
        };
        let effect = self.effect();
        let annotations = ToolAnnotations::new()
            .read_only(effect == Effect::Reads)
            .destructive(effect == Effect::Destroys)
            .idempotent(matches!(effect, Effect::Reads | Effect::AddsOnce))
            .open_world(false);
        tool.with_annotations(annotations)
    }
}

fn shaped<Arguments: JsonSchema + 'static, Answer: JsonSchema + 'static>(tool: Tool) -> Tool {
    tool.with_input_schema::<Arguments>().with_output_schema::<Answer>()
}

/// All tools.
pub fn all() -> impl Iterator<Item = (Name, Tool)> {
    Name::ALL.into_iter().map(|name| (name, name.tool()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_says_what_it_takes_gives_and_does() {
        for (name, tool) in all() {
            assert_eq!(Name::of(&tool.name), Some(name));
            let input = serde_json::to_value(&tool.input_schema).expect("JSON");
            assert_eq!(input["type"], "object", "{input}");
            assert_eq!(input["additionalProperties"], false, "{input}: a misspelt argument would be lost");
            let named = input["properties"].as_object().expect("an object");
            let undescribed: Vec<_> = named.iter().filter(|(_, schema)| schema["description"].is_null()).collect();
            assert!(undescribed.is_empty(), "{}: {undescribed:?}", tool.name);
            if name != Name::ListBranches && name != Name::Rehearse {
                assert_eq!(input["required"][0], "branch", "{}: bound to a branch by its argument", tool.name);
            }
            let output = serde_json::to_value(&tool.output_schema).expect("JSON");
            assert_eq!(output["type"], "object", "{output}");
            let annotations = tool.annotations.expect("there");
            assert_eq!(annotations.read_only_hint, Some(name.is_reading()));
        }
    }
}
