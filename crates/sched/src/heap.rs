// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting vCPUs in the order of their virtual times: a leftist heap whose links are in the records, so that nothing is
//! allocated and any member can be taken out.
//!
//! Invariants: no parent comes after its child; the way to the nearest missing child is never shorter on the left
//! (`rank`), so a right spine has at most log2(n + 1) members, and with it every insertion and removal that many steps.
//! Source: C. A. Crane, "Linear lists and priority queues as balanced binary trees", 1972.

use crate::field::{Long, Word};
use crate::vcpu::{NONE, VcpuKey};

/// A record's place in a heap.
#[derive(Debug)]
pub(crate) struct Links {
    left: Word,
    right: Word,
    parent: Word,
    /// Steps to the nearest missing child, counting itself.
    rank: Word,
    /// What the heap is ordered by, then by who came first.
    order: Long,
    turn: Long,
}

impl Links {
    pub(crate) const fn new() -> Self {
        Self {
            left: Word::new(NONE),
            right: Word::new(NONE),
            parent: Word::new(NONE),
            rank: Word::new(0),
            order: Long::new(0),
            turn: Long::new(0),
        }
    }
}

/// Finds the links of a key.
pub(crate) trait Linked {
    fn links(&self, key: VcpuKey) -> Option<&Links>;
}

/// A set of vCPUs in order. A vCPU is in at most one heap at a time; its owner keeps book of that.
#[derive(Debug)]
pub(crate) struct Heap {
    root: u32,
    len: u32,
    turns: u64,
}

impl Heap {
    pub(crate) const fn new() -> Self {
        Self {
            root: NONE,
            len: 0,
            turns: 0,
        }
    }

    /// Number of members.
    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    /// The first member, and what it is ordered by.
    #[inline]
    pub(crate) fn first(&self, all: &impl Linked) -> Option<(VcpuKey, u64)> {
        let root = VcpuKey(self.root);
        all.links(root).map(|links| (root, links.order.get()))
    }

    /// Adds a vCPU that is in no heap, behind others of the same `order`.
    pub(crate) fn insert(&mut self, all: &impl Linked, key: VcpuKey, order: u64) {
        let Some(links) = all.links(key) else { return };
        self.turns = self.turns.wrapping_add(1);
        links.left.set(NONE);
        links.right.set(NONE);
        links.parent.set(NONE);
        links.rank.set(1);
        links.order.set(order);
        links.turn.set(self.turns);
        self.root = merge(all, self.root, key.0);
        self.len = self.len.saturating_add(1);
    }

    /// Takes out a vCPU that is in this heap.
    pub(crate) fn remove(&mut self, all: &impl Linked, key: VcpuKey) {
        let Some(links) = all.links(key) else { return };
        let parent = links.parent.get();
        let rest = merge(all, links.left.get(), links.right.get());
        if let Some(rest) = all.links(VcpuKey(rest)) {
            rest.parent.set(parent);
        }
        match all.links(VcpuKey(parent)) {
            None => self.root = rest,
            Some(above) => {
                let side = if above.left.get() == key.0 {
                    &above.left
                } else {
                    &above.right
                };
                side.set(rest);
                repair(all, parent, NONE);
            }
        }
        self.len = self.len.saturating_sub(1);
    }

    /// Some member that `fits`, preferring early ones. Looks at every member if none does.
    pub(crate) fn find(
        &self,
        all: &impl Linked,
        mut fits: impl FnMut(VcpuKey) -> bool,
    ) -> Option<VcpuKey> {
        let mut at = self.root;
        while let Some(links) = all.links(VcpuKey(at)) {
            if fits(VcpuKey(at)) {
                return Some(VcpuKey(at));
            }
            at = match (links.left.get(), links.right.get()) {
                (NONE, NONE) => next_branch(all, at),
                (NONE, right) => right,
                (left, _) => left,
            };
        }
        None
    }
}

/// The next member, in the order parent, left, right, that is not below `at`.
fn next_branch(all: &impl Linked, mut at: u32) -> u32 {
    while let Some(links) = all.links(VcpuKey(at)) {
        let parent = links.parent.get();
        let Some(above) = all.links(VcpuKey(parent)) else {
            return NONE;
        };
        let right = above.right.get();
        if right != at && right != NONE {
            return right;
        }
        at = parent;
    }
    NONE
}

fn before(all: &impl Linked, a: u32, b: u32) -> bool {
    let place = |key| {
        all.links(VcpuKey(key))
            .map(|l| (l.order.get(), l.turn.get()))
    };
    place(a) < place(b)
}

fn rank(all: &impl Linked, key: u32) -> u32 {
    all.links(VcpuKey(key)).map_or(0, |links| links.rank.get())
}

/// Joins two heaps by their right spines; the root, whose parent is for the caller to set.
fn merge(all: &impl Linked, a: u32, b: u32) -> u32 {
    if a == NONE || b == NONE {
        return if a == NONE { b } else { a };
    }
    let (root, mut rest) = if before(all, b, a) { (b, a) } else { (a, b) };
    let mut at = root;
    while let Some(links) = all.links(VcpuKey(at)) {
        let right = links.right.get();
        if right == NONE || before(all, rest, right) {
            links.right.set(rest);
            if let Some(below) = all.links(VcpuKey(rest)) {
                below.parent.set(at);
            }
            at = rest;
            rest = right;
            if rest == NONE {
                break;
            }
        } else {
            at = right;
        }
    }
    repair(all, at, root);
    root
}

/// Restores the ranks from `at` upwards: as far as `top`, or without one until nothing changes.
fn repair(all: &impl Linked, mut at: u32, top: u32) {
    while let Some(links) = all.links(VcpuKey(at)) {
        let (left, right) = (links.left.get(), links.right.get());
        let (left_rank, right_rank) = (rank(all, left), rank(all, right));
        if left_rank < right_rank {
            links.left.set(right);
            links.right.set(left);
        }
        let new = left_rank.min(right_rank).saturating_add(1);
        let old = links.rank.get();
        links.rank.set(new);
        if at == top || (top == NONE && new == old) {
            break;
        }
        at = links.parent.get();
    }
}
