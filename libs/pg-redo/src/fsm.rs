//! Free-space-map pages: only what truncation does to them, since nothing else about them is in WAL.

use ardent_types::BLCKSZ;

/// Nodes start after the page header and the search hint (`fp_next_slot`).
const NODES_AT: usize = 28;
const NODES: usize = BLCKSZ - NODES_AT;
const INNER_NODES: usize = BLCKSZ / 2 - 1;
/// Leaf nodes of a page, each for one page of the level below.
pub(crate) const SLOTS_PER_PAGE: usize = NODES - INNER_NODES;

/// Clears the leaf nodes from `slots` on and brings the inner nodes up to date.
pub(crate) fn truncate(page: &mut [u8; BLCKSZ], slots: usize) {
    let nodes = &mut page[NODES_AT..];
    nodes[INNER_NODES + slots..].fill(0);
    for node in (0..INNER_NODES).rev() {
        let left = 2 * node + 1;
        let child = |index: usize| nodes.get(index).copied().unwrap_or(0);
        nodes[node] = child(left).max(child(left + 1));
    }
}
