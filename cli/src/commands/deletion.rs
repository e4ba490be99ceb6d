//! `ardent branch delete`: all of the branches that are named, or none.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::iter::successors;

use ardent_api::control::{ApiErrorCode, BranchInfo, BranchList, DeleteReply, ErrorInfo, SCHEMA_VERSION};
use serde::Serialize;

use super::{path_name, template_of};
use crate::api::Api;
use crate::args::BranchDeleteArgs;
use crate::failure::Failure;
use crate::output::Output;

/// What a delete of several prints with `--json`.
#[derive(Serialize)]
struct Deleted {
    schema_version: u32,
    deleted: Vec<String>,
    /// Until when each can be had back; null: it cannot.
    kept_until: Vec<Option<String>>,
}

/// Runs the command.
pub fn run(output: &Output, api: &Api, args: &BranchDeleteArgs) -> Result<(), Failure> {
    let (mut deleted, mut kept_until) = (Vec::new(), Vec::new());
    let mut failure = None;
    let query = if args.for_good { "?for_good=true" } else { "" };
    for name in to_delete(api, &args.names)? {
        match api.delete::<DeleteReply>(&format!("/v1/branches/{name}{query}")) {
            Ok(reply) => {
                deleted.push(reply.name);
                kept_until.push(reply.kept_until);
            }
            // Where there are several, something happened since all were looked at.
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    if !deleted.is_empty() || failure.is_none() {
        let reply = Deleted { schema_version: SCHEMA_VERSION, deleted, kept_until };
        output.data(&reply, deleted_text)?;
    }
    failure.map_or(Ok(()), Err)
}

/// The branches, each once, children before their parents. An error says which of them cannot be deleted.
fn to_delete(api: &Api, given: &[String]) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = Vec::new();
    for name in given {
        let name = path_name(name).map_err(|failure| of_template(name, failure))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    // A single one is for the server to look at.
    if names.len() > 1 {
        let list: BranchList = api.get("/v1/branches")?;
        put_in_order(&mut names, &list.branches)?;
    }
    Ok(names)
}

/// A masked template is shown under this name where its branches' parents are, and is no branch.
fn of_template(name: &str, failure: Failure) -> Failure {
    match template_of(name) {
        Some(template) => failure.hint(format!(
            "masked templates are deleted with ardent mask delete {template}; ardent mask list shows them"
        )),
        None => failure,
    }
}

/// Sorts the names, children before their parents, if all of them can be deleted.
fn put_in_order(names: &mut [String], branches: &[BranchInfo]) -> Result<(), ErrorInfo> {
    let known: HashMap<&str, &BranchInfo> = branches.iter().map(|branch| (branch.name.as_str(), branch)).collect();
    if let Some(error) = first_refusal(names, &known) {
        return Err(error);
    }
    let depth = |name: &str| {
        let branch = known.get(name).copied();
        successors(branch, |branch| known.get(branch.parent.as_deref()?).copied()).count()
    };
    names.sort_by_cached_key(|name| Reverse(depth(name)));
    Ok(())
}

fn first_refusal(names: &[String], known: &HashMap<&str, &BranchInfo>) -> Option<ErrorInfo> {
    let given: HashSet<&str> = names.iter().map(String::as_str).collect();
    names.iter().find_map(|name| refusal(name, known.get(name.as_str()).copied(), &given))
}

/// Why a branch cannot be deleted together with all that are given.
fn refusal(name: &str, branch: Option<&BranchInfo>, given: &HashSet<&str>) -> Option<ErrorInfo> {
    let Some(branch) = branch else {
        let message = format!("there is no branch {name}: nothing was deleted");
        let error = ErrorInfo::new(ApiErrorCode::NotFound, message);
        return Some(error.with_hint("ardent branch list shows which there are"));
    };
    if branch.is_root {
        let message = format!("{name} is a connector's root branch: nothing was deleted");
        let hint = format!("delete the connector instead: ardent connector delete {name}");
        return Some(ErrorInfo::new(ApiErrorCode::RootBranch, message).with_hint(hint));
    }
    let left = branch.children.iter().filter(|child| !given.contains(child.as_str()));
    let left: Vec<&str> = left.map(String::as_str).collect();
    if left.is_empty() {
        return None;
    }
    let message = format!("branch {name} has branches made from it ({}): nothing was deleted", left.join(", "));
    let hint = format!("name them as well, or delete them first: ardent branch delete {}", left.join(" "));
    Some(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint(hint))
}

fn deleted_text(reply: &Deleted) -> String {
    let line = |(name, kept_until): (&String, &Option<String>)| match kept_until {
        Some(until) => format!("deleted branch {name}; ardent branch undelete {name} brings it back until {until}\n"),
        None => format!("deleted branch {name} for good\n"),
    };
    reply.deleted.iter().zip(&reply.kept_until).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::branch::tests::branch;
    use super::*;

    fn check(given: &[&str], expect: Result<&[&str], (ApiErrorCode, &str)>) {
        let with_children = |name: &str, parent: Option<&str>, children: &[&str]| {
            let children = children.iter().map(|child| (*child).to_owned()).collect();
            BranchInfo { children, ..branch(name, parent) }
        };
        let branches = [
            with_children("a", Some("shop"), &["b", "c"]),
            with_children("b", Some("a"), &["d"]),
            with_children("c", Some("a"), &[]),
            with_children("d", Some("b"), &[]),
            with_children("e", Some("masked.a"), &[]),
            with_children("shop", None, &["a"]),
        ];
        let mut names: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
        match (put_in_order(&mut names, &branches), expect) {
            (Ok(()), Ok(expect)) => assert_eq!(names, expect),
            (Err(error), Err((code, words))) => {
                assert_eq!(error.code, code, "{error:?}");
                assert!(error.message.contains(words) && error.message.ends_with("nothing was deleted"), "{error:?}");
            }
            (got, expect) => panic!("{given:?}: {got:?}, not {expect:?}"),
        }
    }

    #[test]
    fn a_masked_template_is_deleted_by_its_own_command() {
        let hint = |name: &str| {
            let failure = of_template(name, path_name(name).expect_err("no branch's name"));
            assert_eq!(failure.info.code, ApiErrorCode::InvalidName);
            failure.info.hint.unwrap_or_default()
        };
        assert!(hint("masked.nightly").starts_with("masked templates are deleted with ardent mask delete nightly;"));
        for other in ["other.nightly", "masked.", "masked.a b"] {
            assert!(!hint(other).contains("mask delete"), "{other}");
        }
    }

    #[test]
    fn several_go_children_first_or_none_of_them() {
        check(&["c", "e", "d"], Ok(&["d", "c", "e"]));
        check(&["a", "b", "c", "d"], Ok(&["d", "b", "c", "a"]));
        check(&["c", "nope"], Err((ApiErrorCode::NotFound, "no branch nope")));
        check(&["c", "shop"], Err((ApiErrorCode::RootBranch, "shop is a connector's root branch")));
        check(&["c", "b"], Err((ApiErrorCode::Conflict, "branch b has branches made from it (d)")));
        check(&["a", "d", "b"], Err((ApiErrorCode::Conflict, "branch a has branches made from it (c)")));
    }
}
