//! Order of things of which some need others. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::ObjectId;

/// From a thing to those that come before it.
pub(crate) type Edges = BTreeMap<ObjectId, BTreeSet<ObjectId>>;

/// Orders `nodes` so that each comes after what it needs, by rank where that leaves a choice. Where things need each other in a
/// circle, the one of lowest rank goes first; those are given too.
pub(crate) fn sort<R: Ord>(
    nodes: &BTreeSet<ObjectId>,
    edges: &Edges,
    rank: impl Fn(&ObjectId) -> R,
) -> (Vec<ObjectId>, Vec<ObjectId>) {
    let mut missing: BTreeMap<&ObjectId, usize> = BTreeMap::new();
    let mut users: BTreeMap<&ObjectId, Vec<&ObjectId>> = BTreeMap::new();
    for node in nodes {
        let needs = edges.get(node).into_iter().flatten().filter(|need| nodes.contains(need));
        let mut count = 0;
        for need in needs {
            users.entry(need).or_default().push(node);
            count += 1;
        }
        missing.insert(node, count);
    }
    let mut ready: BTreeSet<(R, &ObjectId)> =
        missing.iter().filter(|(_, count)| **count == 0).map(|(node, _)| (rank(node), *node)).collect();
    let (mut ordered, mut forced) = (Vec::with_capacity(nodes.len()), Vec::new());
    let mut left: BTreeSet<&ObjectId> = nodes.iter().collect();
    while !left.is_empty() {
        let next = match ready.pop_first() {
            Some((_, node)) => node,
            None => {
                let Some(node) = left.iter().copied().min_by_key(|node| (rank(node), *node)) else { break };
                forced.push(node.clone());
                node
            }
        };
        if !left.remove(next) {
            continue;
        }
        ordered.push(next.clone());
        for user in users.get(next).into_iter().flatten() {
            if let Some(count) = missing.get_mut(user) {
                *count = count.saturating_sub(1);
                if *count == 0 && left.contains(user) {
                    ready.insert((rank(user), user));
                }
            }
        }
    }
    (ordered, forced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_comes_first_and_circles_are_broken_at_the_lowest_rank() {
        let id = |oid: u32| ObjectId { class: "x".to_owned(), oid, sub: 0 };
        let check = |needs: &[(u32, u32)], expect: &[u32], circles: &[u32]| {
            let nodes: BTreeSet<_> = (1..=4).map(id).collect();
            let mut edges = Edges::new();
            for (from, to) in needs {
                edges.entry(id(*from)).or_default().insert(id(*to));
            }
            let (ordered, forced) = sort(&nodes, &edges, |id| id.oid);
            let numbers = |ids: &[ObjectId]| ids.iter().map(|id| id.oid).collect::<Vec<_>>();
            assert_eq!((numbers(&ordered), numbers(&forced)), (expect.to_vec(), circles.to_vec()));
        };
        check(&[], &[1, 2, 3, 4], &[]);
        check(&[(1, 4), (4, 3)], &[2, 3, 4, 1], &[]);
        check(&[(1, 2), (2, 1), (3, 1)], &[4, 1, 2, 3], &[1]);
    }
}
