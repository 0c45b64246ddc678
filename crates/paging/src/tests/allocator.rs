// SPDX-License-Identifier: MIT OR Apache-2.0
//! The buddy allocator against a set of free frames.

use crate::buddy::{Buddy, MAX_ORDER};
use crate::frame::{Frame, FrameTable};
use crate::word::{Class, NO_LINK, TypeWord};
use philoxen_abi::Mfn;
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::vec::Vec;

fn table(count: u64) -> FrameTable {
    let frames: Vec<Frame> = (0..count).map(|_| Frame::new()).collect();
    FrameTable::new(Box::leak(frames.into_boxed_slice()))
}

#[test]
fn links_survive_the_split_around_the_kind() {
    for (prev, next) in [
        (0, 0),
        (NO_LINK, NO_LINK),
        (0x2aaa_aaaa, 0x1555_5555),
        (1 << 29, 1),
    ] {
        let word = TypeWord::links(prev, next);
        assert_eq!(word.as_links(), (prev, next));
        for kind in [crate::word::Kind::L1, crate::word::Kind::Writable] {
            assert_eq!(word.share(kind), None);
        }
    }
}

#[test]
fn high_memory_first_and_address_limits() {
    let frames = table(1024);
    let mut buddy = Buddy::new();
    buddy.release_boot(&frames, Mfn(0), 1024);
    assert_eq!(buddy.free_frames(), 1023);
    assert_eq!(frames.class(Mfn(0)), Class::Hypervisor);
    assert_eq!(buddy.alloc(&frames, 0, 0), Some(Mfn(1023)));
    let low = buddy.alloc(&frames, 5, 18).unwrap();
    assert!(low.0 + 32 <= 64, "{low:?}");
    assert_eq!(buddy.alloc(&frames, 6, 18), None);
    assert_eq!(buddy.alloc(&frames, 0, 12), None);
    assert_eq!(buddy.alloc(&frames, MAX_ORDER + 1, 0), None);
    buddy.free(&frames, low, 5);
    buddy.free(&frames, Mfn(1023), 0);
    assert_eq!(buddy.free_frames(), 1023);
    assert_eq!(buddy.alloc(&frames, 9, 0), Some(Mfn(512)));
}

#[test]
fn stamps_and_dirt_survive_merges() {
    let frames = table(64);
    let mut buddy = Buddy::new();
    buddy.release_boot(&frames, Mfn(32), 32);
    let a = buddy.alloc(&frames, 4, 0).unwrap();
    let b = buddy.alloc(&frames, 4, 0).unwrap();
    buddy.free_block(&frames, a, 4, false, 7);
    buddy.free_block(&frames, b, 4, true, 5);
    let block = buddy.alloc_block(&frames, 5, 0).unwrap();
    assert_eq!((block.start, block.stamp, block.dirty), (Mfn(32), 7, true));
}

proptest! {
    #[test]
    fn blocks_are_disjoint_aligned_and_come_back(
        ops in prop::collection::vec((any::<bool>(), 0u32..7, prop::sample::select(std::vec![0u32, 16, 17, 18, 20, 64]), any::<prop::sample::Index>()), 1..200)
    ) {
        let frames = table(300);
        let mut buddy = Buddy::new();
        buddy.release_boot(&frames, Mfn(3), 250);
        let mut held: Vec<(u64, u32)> = Vec::new();
        let mut used = BTreeSet::new();
        for (alloc, order, bits, pick) in ops {
            if alloc {
                if let Some(start) = buddy.alloc(&frames, order, bits) {
                    prop_assert_eq!(start.0 % (1 << order), 0);
                    if bits != 0 && bits < 64 {
                        prop_assert!((start.0 + (1 << order)) << 12 <= 1 << bits);
                    }
                    for index in start.0..start.0 + (1 << order) {
                        prop_assert!((3..253).contains(&index) && used.insert(index));
                        prop_assert_eq!(frames.class(Mfn(index)), Class::Hypervisor);
                    }
                    held.push((start.0, order));
                }
            } else if !held.is_empty() {
                let (start, order) = held.swap_remove(pick.index(held.len()));
                for index in start..start + (1 << order) {
                    used.remove(&index);
                }
                buddy.free(&frames, Mfn(start), order);
            }
            prop_assert_eq!(buddy.free_frames(), 250 - used.len() as u64);
        }
        for (start, order) in held {
            buddy.free(&frames, Mfn(start), order);
        }
        // Everything has merged again: the largest blocks are back.
        prop_assert_eq!(buddy.alloc(&frames, 6, 0), Some(Mfn(128)));
        prop_assert_eq!(buddy.alloc(&frames, 6, 0), Some(Mfn(64)));
    }
}
