// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heap against a sorted list.

use crate::heap::{Heap, Linked, Links};
use crate::vcpu::VcpuKey;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

struct Places(Vec<Links>);

impl Linked for Places {
    fn links(&self, key: VcpuKey) -> Option<&Links> {
        self.0.get(key.0 as usize)
    }
}

proptest! {
    #[test]
    fn random_operations_match_a_sorted_list(
        ops in proptest::collection::vec((0u32..40, 0u64..20, any::<bool>()), 0..400),
    ) {
        let places = Places((0..40).map(|_| Links::new()).collect());
        let (mut heap, mut model, mut turn) = (Heap::new(), BTreeSet::<(u64, u32, u32)>::new(), 0u32);
        for (key, order, first) in ops {
            // Takes the first or any, or puts one in.
            let known = model.iter().find(|(.., k)| *k == key).copied();
            let victim = if first { model.first().copied() } else { known };
            match victim {
                Some(entry) if first || known.is_some() => {
                    heap.remove(&places, VcpuKey(entry.2));
                    model.remove(&entry);
                }
                _ => {}
            }
            if known.is_none() {
                turn += 1;
                heap.insert(&places, VcpuKey(key), order);
                model.insert((order, turn, key));
            }
            prop_assert_eq!(heap.len() as usize, model.len());
            let expected = model.first().map(|&(order, _, key)| (VcpuKey(key), order));
            prop_assert_eq!(heap.first(&places), expected);
            let mut seen = BTreeSet::new();
            prop_assert_eq!(heap.find(&places, |key| { assert!(seen.insert(key)); false }), None);
            prop_assert_eq!(seen.len(), model.len());
        }
        // All come out in order.
        while let Some((key, _)) = heap.first(&places) {
            let (.., expected) = model.pop_first().unwrap();
            prop_assert_eq!(key, VcpuKey(expected));
            heap.remove(&places, key);
        }
        prop_assert!(model.is_empty());
    }
}
