//! What shells complete: commands and flags out of the command line's definition, and names out of the server's lists.
//!
//! A shell's script starts this program with [`VARIABLE`] set at every press of the key. It must be quick then, and have nothing to say:
//! a server that is not there, or takes longer than [`PATIENCE`], has no names.

use std::io::Write as _;
use std::time::Duration;

use ardent_api::control::{BranchList, ConnectorList};
use ardent_masking::MaskedList;
use clap::CommandFactory as _;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};

use crate::api::Api;
use crate::args::Cli;
use crate::commands::checkpoint;
use crate::config::branch_or_default;
use crate::failure::Failure;

/// Set by the scripts, to the shell's name.
const VARIABLE: &str = "ARDENT_COMPLETE";
/// Set by most scripts, to the place of the word at which the key was pressed.
const INDEX: &str = "_CLAP_COMPLETE_INDEX";
/// Longest wait for a server's list.
const PATIENCE: Duration = Duration::from_millis(800);

/// In a folder of zsh's functions, the script is first run at the press of the key itself, and has to answer that one as well.
const ZSH_FIRST_PRESS: &str = "if [[ $funcstack[1] = _ardent ]]; then _clap_dynamic_completer_ardent \"$@\"; fi\n";

/// Whose names an argument takes.
#[derive(Clone, Copy, Debug)]
enum Names {
    Branches,
    /// Those that can be deleted, and are not named on the line yet.
    OtherBranches,
    /// Those that are deleted and can be had back.
    DeletedBranches,
    Connectors,
    Templates,
    /// Labels of the branch that is named on the line, or else of the default one.
    Checkpoints,
}

/// The arguments that take a name: the command, the argument.
const ARGUMENTS: &[(&[&str], &str, Names)] = &[
    (&["psql"], "branch", Names::Branches),
    (&["branch", "info"], "name", Names::Branches),
    (&["branch", "switch"], "name", Names::Branches),
    (&["branch", "create"], "from", Names::Branches),
    (&["branch", "create"], "masked", Names::Templates),
    (&["branch", "diff"], "name", Names::Branches),
    (&["branch", "diff"], "against", Names::Branches),
    (&["branch", "diff"], "since", Names::Checkpoints),
    (&["branch", "log"], "name", Names::Branches),
    (&["branch", "blame"], "row", Names::Branches),
    (&["branch", "apply"], "source", Names::Branches),
    (&["branch", "apply"], "to", Names::Connectors),
    (&["branch", "rebase"], "name", Names::Branches),
    (&["branch", "rehearse"], "from", Names::Branches),
    (&["branch", "set"], "name", Names::Branches),
    (&["branch", "policy"], "name", Names::Branches),
    (&["branch", "password"], "name", Names::Branches),
    (&["branch", "wake"], "name", Names::Branches),
    (&["branch", "suspend"], "name", Names::Branches),
    (&["branch", "reset"], "name", Names::Branches),
    (&["branch", "restore"], "name", Names::Branches),
    (&["branch", "history"], "name", Names::Branches),
    (&["branch", "checkpoint", "create"], "branch", Names::Branches),
    (&["branch", "checkpoint", "list"], "branch", Names::Branches),
    (&["branch", "checkpoint", "delete"], "branch", Names::Branches),
    (&["branch", "checkpoint", "delete"], "labels", Names::Checkpoints),
    (&["branch", "rewind"], "branch", Names::Branches),
    (&["branch", "rewind"], "label", Names::Checkpoints),
    (&["branch", "rename"], "name", Names::Branches),
    (&["branch", "delete"], "names", Names::OtherBranches),
    (&["branch", "undelete"], "name", Names::DeletedBranches),
    (&["connector", "switch"], "name", Names::Connectors),
    (&["connector", "status"], "name", Names::Connectors),
    (&["connector", "move"], "name", Names::Connectors),
    (&["connector", "verify"], "name", Names::Connectors),
    (&["connector", "add-tables"], "name", Names::Connectors),
    (&["connector", "resume"], "name", Names::Connectors),
    (&["connector", "set"], "name", Names::Connectors),
    (&["connector", "delete"], "name", Names::Connectors),
    (&["mask", "create"], "from", Names::Branches),
    (&["mask", "check"], "from", Names::Branches),
    (&["mask", "report"], "name", Names::Templates),
    (&["mask", "delete"], "name", Names::Templates),
    (&["inspect", "unnamed-files"], "branch", Names::Branches),
];

/// Answers a shell's question and ends the process, if that is what it was started for.
pub fn answer_shell() {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// Prints the script that makes a shell ask this program.
pub fn print_script(shell: Shell) -> Result<(), Failure> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let completer = shells.completer(&name).ok_or_else(|| Failure::usage(format!("{name} cannot be completed for")))?;
    let mut script = Vec::new();
    let written = completer.write_registration(VARIABLE, "ardent", "ardent", "ardent", &mut script);
    if shell == Shell::Zsh {
        script.extend_from_slice(ZSH_FIRST_PRESS.as_bytes());
    }
    written.and_then(|()| std::io::stdout().write_all(&script)).map_err(|error| Failure::of(&error))
}

/// The command line, whose arguments know the names that they take.
fn command() -> clap::Command {
    let command = ARGUMENTS
        .iter()
        .fold(Cli::command(), |command, (path, argument, names)| with_names(command, path, argument, *names));
    match nothing_typed(&asked_words(), std::env::var(INDEX).ok().as_deref()) {
        true => without_flags(command),
        false => command,
    }
}

/// What a shell's script hands over: the line's words, the program's first.
fn asked_words() -> Vec<String> {
    std::env::args_os()
        .skip_while(|word| word != "--")
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// The place of the word to be completed. Shells that don't say which one it is mean the last.
fn place(words: &[String], index: Option<&str>) -> usize {
    index.and_then(|index| index.parse().ok()).unwrap_or(words.len().saturating_sub(1))
}

/// Whether the word to be completed has no letter yet.
fn nothing_typed(words: &[String], index: Option<&str>) -> bool {
    words.get(place(words, index)).is_none_or(String::is_empty)
}

/// Flags are offered where there's nothing else, or once a dash is typed; otherwise they'd stand among the names.
fn without_flags(command: clap::Command) -> clap::Command {
    command
        .disable_help_flag(true)
        .disable_version_flag(true)
        .mut_args(|known| match known.is_positional() {
            true => known,
            false => known.hide(true),
        })
        .mut_subcommands(without_flags)
}

fn with_names(command: clap::Command, path: &[&str], argument: &str, names: Names) -> clap::Command {
    match path.split_first() {
        Some((first, rest)) => command.mut_subcommand(first, |sub| with_names(sub, rest, argument, names)),
        // All of them in place: a single one that is changed comes last among its command's, where places count.
        None => command.mut_args(|known| match known.get_id() == argument {
            true => known.add(ArgValueCandidates::new(move || candidates(names))),
            false => known,
        }),
    }
}

fn candidates(names: Names) -> Vec<CompletionCandidate> {
    let words = asked_words();
    // An error would be written over what is being typed: there are no names then.
    let found = Api::impatient(url_of(&words), PATIENCE).and_then(|api| list(&api, names, &words));
    found.unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

fn list(api: &Api, names: Names, words: &[String]) -> Result<Vec<String>, Failure> {
    let branches =
        |path: &str| Ok(api.get::<BranchList>(path)?.branches.into_iter().map(|branch| branch.name).collect());
    match names {
        Names::Branches => branches("/v1/branches"),
        Names::OtherBranches => {
            let named = named_besides(words, std::env::var(INDEX).ok().as_deref());
            let list: BranchList = api.get("/v1/branches")?;
            let others = list.branches.into_iter().filter(|branch| !branch.is_root);
            Ok(others.map(|branch| branch.name).filter(|name| !named.contains(&name.as_str())).collect())
        }
        Names::DeletedBranches => branches("/v1/branches?deleted=true"),
        Names::Connectors => {
            let list: ConnectorList = api.get("/v1/connectors")?;
            Ok(list.connectors.into_iter().map(|connector| connector.name).collect())
        }
        Names::Templates => {
            let list: MaskedList = api.get("/v1/masked")?;
            Ok(list.templates.into_iter().map(|template| template.name).collect())
        }
        Names::Checkpoints => {
            let named = arguments(words).into_iter().next().map(|(_, word)| word);
            let branch = branch_or_default(named)?;
            Ok(checkpoint::all(api, &branch)?.checkpoints.into_iter().map(|made| made.label).collect())
        }
    }
}

/// The words of the line to be completed that are neither a command's, nor a flag's, nor the value of one; with their places.
fn arguments(words: &[String]) -> Vec<(usize, &str)> {
    let all = Cli::command();
    let (mut command, mut found) = (&all, Vec::new());
    // The program's own name stands first.
    let mut words = words.iter().enumerate().skip(1);
    while let Some((place, word)) = words.next() {
        if takes_value(&all, word) || takes_value(command, word) {
            words.next();
        } else if !word.starts_with('-') {
            match command.find_subcommand(word) {
                Some(sub) if found.is_empty() => command = sub,
                _ => found.push((place, word.as_str())),
            }
        }
    }
    found
}

/// Whether this is a flag of the command's whose value is the next word.
fn takes_value(command: &clap::Command, word: &str) -> bool {
    let is_it = |flag: &clap::Arg| match word.strip_prefix("--") {
        Some(long) => flag.get_long() == Some(long),
        None => flag.get_short().is_some_and(|short| word.strip_prefix('-') == Some(short.to_string().as_str())),
    };
    command.get_arguments().any(|flag| is_it(flag) && flag.get_action().takes_values())
}

/// The arguments of the line but for the one that is being completed.
fn named_besides<'a>(words: &'a [String], index: Option<&str>) -> Vec<&'a str> {
    let completed = place(words, index);
    arguments(words).into_iter().filter(|(place, _)| *place != completed).map(|(_, word)| word).collect()
}

/// The server that the line to be completed names.
fn url_of(words: &[String]) -> Option<&str> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--url" {
            return words.next().map(String::as_str);
        }
        if let Some(url) = word.strip_prefix("--url=") {
            return Some(url);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_of_the_list_is_one_of_the_command_line() {
        command().debug_assert();
        for (path, argument, _) in ARGUMENTS {
            let mut at = Cli::command();
            for name in *path {
                at = at.find_subcommand(name).unwrap_or_else(|| panic!("{path:?}")).clone();
            }
            assert!(at.get_arguments().any(|known| known.get_id() == *argument), "{path:?} {argument}");
            let mut changed = command();
            for name in *path {
                changed = changed.find_subcommand(name).unwrap_or_else(|| panic!("{path:?}")).clone();
            }
            let order = |command: &clap::Command| -> Vec<clap::Id> {
                command.get_arguments().map(|known| known.get_id().clone()).collect()
            };
            assert_eq!(order(&changed), order(&at), "{path:?}");
            let known = changed.get_arguments().find(|known| known.get_id() == *argument);
            assert!(known.is_some_and(|known| known.get::<ArgValueCandidates>().is_some()), "{path:?} {argument}");
        }
    }

    #[test]
    fn flags_are_left_out_where_nothing_is_typed() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(nothing_typed(&words("ardent branch info "), Some("3")));
        assert!(nothing_typed(&words("ardent branch info"), Some("3")), "a script may leave the empty word out");
        assert!(!nothing_typed(&words("ardent branch info -"), Some("3")));
        assert!(!nothing_typed(&words("ardent branch info  --json"), Some("4")));
        assert!(nothing_typed(&words("ardent branch info "), None));

        let mut bare = without_flags(Cli::command());
        bare.build();
        let mut at = &bare;
        for name in ["branch", "info"] {
            at = at.find_subcommand(name).expect("it is there");
        }
        let shown: Vec<_> = at.get_arguments().filter(|known| !known.is_hide_set()).map(clap::Arg::get_id).collect();
        assert_eq!(shown, ["name"]);
    }

    #[test]
    fn the_server_is_the_one_that_the_line_names() {
        let check = |words: &[&str], expect: Option<&str>| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(url_of(&words), expect);
        };
        check(&["--", "ardent", "--url", "http://a", "branch"], Some("http://a"));
        check(&["--", "ardent", "branch", "--url=http://b"], Some("http://b"));
        check(&["--", "ardent", "branch", "--url"], None);
    }

    #[test]
    fn what_is_an_argument_is_neither_a_command_nor_a_flag_or_its_value() {
        let check = |line: &str, expect: &[&str]| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let found: Vec<&str> = arguments(&words).into_iter().map(|(_, word)| word).collect();
            assert_eq!(found, expect, "{line}");
        };
        check("ardent branch rewind work ", &["work", ""]);
        check("ardent --url http://a branch --json rewind --url=http://b work st", &["work", "st"]);
        check("ardent branch checkpoint delete rewind step-1 ", &["rewind", "step-1", ""]);
        check("ardent branch rewind", &[]);
        check("ardent branch diff --since st", &[]);
        check("ardent branch diff --stat --table t -o x.changes work --since ", &["work"]);
        check("ardent branch delete --for-good a b", &["a", "b"]);
    }

    #[test]
    fn the_word_that_is_completed_is_not_named_yet() {
        let check = |line: &str, index: Option<&str>, expect: &[&str]| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(named_besides(&words, index), expect, "{line}");
        };
        check("ardent branch delete a b", None, &["a"]);
        check("ardent branch delete a b", Some("3"), &["b"]);
        check("ardent branch delete a b", Some("5"), &["a", "b"]);
        check("ardent branch delete a ", Some("4"), &["a"]);
    }
}
