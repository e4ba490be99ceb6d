//! The change of members as a specification, of which every state within bounds is visited.
//!
//! It is the protocol of `docs/quorum.md` without its machinery: atomic steps in any order, of which any may be left out, come late or come
//! twice. What is on its way is what its sender could still deliver: a writer's appends and begins go out under every generation that it has
//! gone by since its election. Invariants and the comparison of histories are the core's own.
//!
//! `ARDENT_MODEL=full` looks at all changes and all deliberate bugs.

#[path = "../support/explore.rs"]
mod explore;
mod spec;

use explore::{Outcome, explore};
use spec::{Bug, Change, Spec};

/// Grow, shrink, replace, and give up.
const CHANGES: [Change; 4] = [
    Change { name: "1 to 2", members: &[0], next: &[0, 1], cancel: false },
    Change { name: "2 to 1", members: &[0, 1], next: &[0], cancel: false },
    Change { name: "one for another", members: &[0], next: &[1], cancel: false },
    Change { name: "1 to 2, cancelled", members: &[0], next: &[0, 1], cancel: true },
];

/// What of the changes and bugs is looked at: all, or as many as take seconds.
fn bounded<T>(all: &[T]) -> &[T] {
    let full = std::env::var("ARDENT_MODEL").is_ok_and(|bounds| bounds == "full");
    if full { all } else { &all[..1] }
}

/// A state space that is larger than this is a mistake in the bounds.
const STATES_MAX: usize = 40_000_000;

fn spec(change: Change, bug: Option<Bug>) -> Spec {
    Spec { change, terms: 2, writes: 1, bug }
}

#[test]
fn a_change_of_members_loses_nothing_and_has_one_writer_per_term() {
    for change in bounded(&CHANGES) {
        match explore(&spec(*change, None), STATES_MAX) {
            Outcome::Holds { states, depth } => {
                println!("{}: {states} states, {depth} steps deep", change.name);
                assert!(states > 100_000, "hardly anything can happen: the bounds are too narrow");
            }
            Outcome::Broken { violation, steps } => panic!("{}: {violation}\n{}", change.name, steps.join("\n")),
            Outcome::TooMany => panic!("{}: more than {STATES_MAX} states", change.name),
        }
    }
}

/// Each way to break the specification leads to a state that breaks an invariant.
#[test]
fn deliberate_bugs_are_found() {
    for bug in bounded(&Bug::ALL).iter().copied() {
        let found = CHANGES.iter().find_map(|change| match explore(&spec(*change, Some(bug)), STATES_MAX) {
            Outcome::Broken { violation, steps } => Some((change.name, violation, steps.len())),
            Outcome::Holds { .. } => None,
            Outcome::TooMany => panic!("{bug:?}: more than {STATES_MAX} states"),
        });
        let Some((name, violation, steps)) = found else { panic!("{bug:?} was not found") };
        println!("{bug:?} found after {steps} steps, {name}: {violation}");
    }
}
