//! Visits every state of a specification, breadth first, so that the way to a broken one is a shortest.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use ardent_quorum::invariant::Violation;

/// What is explored: states, and the steps between them.
pub trait Specification {
    type State: Hash;
    type Step: Display;

    fn first(&self) -> Self::State;

    /// Every state that can follow, and by which step.
    fn steps(&self, state: &Self::State) -> Vec<(Self::Step, Self::State)>;

    fn check(&self, state: &Self::State) -> Result<(), Violation>;
}

pub enum Outcome {
    Holds { states: usize, depth: usize },
    Broken { violation: Violation, steps: Vec<String> },
    TooMany,
}

/// Two hashes of 64 bits stand for a state: with 10^8 states the chance that any two are taken for one is below 10^-22.
type Print = (u64, u64);

/// Two multiplicative hashes at once.
struct Prints(u64, u64);

impl Hasher for Prints {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        let word = word.wrapping_add(1);
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.1 = (self.1.rotate_left(29) ^ word).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.1
    }
}

/// A print is as good as a hash already.
#[derive(Default)]
struct Taken(u64);

impl Hasher for Taken {
    fn write(&mut self, _: &[u8]) {
        unreachable!("prints are numbers");
    }

    fn write_u64(&mut self, word: u64) {
        self.0 ^= word;
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

type Seen = HashMap<Print, Print, BuildHasherDefault<Taken>>;

fn print_of(state: &impl Hash) -> Print {
    let mut prints = Prints(0x243F_6A88_85A3_08D3, 0x1319_8A2E_0370_7344);
    state.hash(&mut prints);
    (prints.0, prints.1)
}

pub fn explore<S: Specification>(spec: &S, states_max: usize) -> Outcome {
    let first = spec.first();
    // From where each state was reached.
    let mut seen = Seen::default();
    seen.insert(print_of(&first), print_of(&first));
    let mut queue = VecDeque::from([(first, 0)]);
    let mut depth = 0;
    while let Some((state, at)) = queue.pop_front() {
        depth = depth.max(at);
        let from = print_of(&state);
        for (_, next) in spec.steps(&state) {
            let print = print_of(&next);
            if seen.contains_key(&print) {
                continue;
            }
            seen.insert(print, from);
            if let Err(violation) = spec.check(&next) {
                return Outcome::Broken { violation, steps: way_to(spec, &seen, print) };
            }
            if seen.len() > states_max {
                return Outcome::TooMany;
            }
            queue.push_back((next, at + 1));
        }
    }
    Outcome::Holds { states: seen.len(), depth }
}

/// The names of the steps that lead to a state, found by walking them again.
fn way_to<S: Specification>(spec: &S, seen: &Seen, last: Print) -> Vec<String> {
    let mut prints = vec![last];
    while let Some(from) = seen.get(prints.last().expect("never empty")).filter(|from| Some(*from) != prints.last()) {
        prints.push(*from);
    }
    prints.reverse();
    let mut state = spec.first();
    let mut names = Vec::new();
    for print in &prints[1..] {
        let step = spec.steps(&state).into_iter().find(|(_, next)| print_of(next) == *print);
        let (name, next) = step.expect("it was reached by a step");
        names.push(name.to_string());
        state = next;
    }
    names
}
