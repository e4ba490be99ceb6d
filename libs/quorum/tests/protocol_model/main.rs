//! The protocol without a change of members as a specification, of which every state within bounds is visited.
//!
//! It is `docs/quorum.md`'s steps without their machinery: ask and vote, choose, begin, complete, append, commit; three acceptors that
//! crash between any two of them and lose what was not durable, writers that come with any term and vanish. What was sent stays on its
//! way: it may arrive late, in any order, twice or never. It shares no code with the proposer and the acceptor but the comparison of
//! histories and the invariants; the simulation looks at the code.
//!
//! What makes the number of states small:
//!
//! - Acceptors are told apart by nothing. States that differ by their order are one.
//! - Writers ask from the first on: a question that has not arrived yet is seen by nobody. Of terms only the order matters.
//! - An acceptor sends at once what it may send. That a writer hears it late is the same as that it acts on it late.
//! - What a quorum has acknowledged is taken for committed although nobody may have heard of it, as it may be heard at any time.
//!
//! `ARDENT_MODEL=full` visits larger bounds.

#[path = "../support/explore.rs"]
mod explore;
mod spec;

use explore::{Outcome, explore};
use spec::{Bug, Spec, Tail};

/// Without earlier writers.
const NOTHING: &[Tail] = &[];
/// One wrote more than what is committed after it.
const LONG_TAIL: &[Tail] = &[Tail { term: 1, records: 2 }];
/// Two wrote something else each, on an acceptor each.
const TWO_TAILS: &[Tail] = &[Tail { term: 1, records: 1 }, Tail { term: 2, records: 1 }];
const UNEVEN_TAILS: &[Tail] = &[Tail { term: 1, records: 2 }, Tail { term: 2, records: 1 }];

const fn bounds(terms: &'static [u8], tails: &'static [Tail], records: u8) -> Spec {
    Spec { terms, tails, records, bug: None }
}

const QUICK: [Spec; 6] = [
    bounds(&[1, 1], NOTHING, 2),
    bounds(&[1, 2], NOTHING, 2),
    bounds(&[1, 1, 2], NOTHING, 2),
    bounds(&[1, 2, 2], NOTHING, 2),
    bounds(&[1, 2, 3], NOTHING, 1),
    bounds(&[3, 4], UNEVEN_TAILS, 2),
];

const FULL: [Spec; 5] = [
    bounds(&[1, 1, 1], NOTHING, 3),
    bounds(&[1, 2], NOTHING, 3),
    bounds(&[2, 3], LONG_TAIL, 3),
    bounds(&[3, 4], UNEVEN_TAILS, 3),
    bounds(&[1, 2, 3], NOTHING, 2),
];

/// Where each bug is looked for.
const BUGS: [Spec; 5] = [
    bounds(&[1, 1], NOTHING, 1),
    bounds(&[1, 2], NOTHING, 1),
    bounds(&[1, 2], NOTHING, 2),
    bounds(&[2, 3], LONG_TAIL, 2),
    bounds(&[3, 4], TWO_TAILS, 1),
];

/// A state space that is larger than this is a mistake in the bounds.
const STATES_MAX: usize = 60_000_000;

fn is_full() -> bool {
    std::env::var("ARDENT_MODEL").is_ok_and(|bounds| bounds == "full")
}

#[test]
fn nothing_committed_is_lost_and_a_term_has_one_writer() {
    let more: &[Spec] = if is_full() { &FULL } else { &[] };
    for spec in QUICK.iter().chain(more) {
        match explore(spec, STATES_MAX) {
            Outcome::Holds { states, depth } => {
                println!("{spec}: {states} states, {depth} steps deep");
                assert!(depth > 15, "hardly anything can happen: the bounds are too narrow");
            }
            Outcome::Broken { violation, steps } => panic!("{spec}: {violation}\n{}", steps.join("\n")),
            Outcome::TooMany => panic!("{spec}: more than {STATES_MAX} states"),
        }
    }
}

/// Each way to break the specification leads to a state that breaks an invariant.
#[test]
fn deliberate_bugs_are_found() {
    for bug in Bug::ALL {
        let found = BUGS.iter().find_map(|spec| {
            let broken = Spec { bug: Some(bug), ..*spec };
            match explore(&broken, STATES_MAX) {
                Outcome::Broken { violation, steps } => Some((spec, violation, steps)),
                Outcome::Holds { .. } => None,
                Outcome::TooMany => panic!("{bug:?}, {spec}: more than {STATES_MAX} states"),
            }
        });
        let Some((spec, violation, steps)) = found else { panic!("{bug:?} was not found") };
        println!("{bug:?} found after {} steps, {spec}: {violation}\n    {}", steps.len(), steps.join("\n    "));
    }
}
