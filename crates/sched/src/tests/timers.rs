// SPDX-License-Identifier: MIT OR Apache-2.0
//! The timer queue against a sorted map.

use crate::{TimerKey, TimerKind, TimerQueue, VcpuKey};
use std::collections::BTreeMap;
use std::vec::Vec;

const KINDS: [TimerKind; 4] = [
    TimerKind::Singleshot,
    TimerKind::Periodic,
    TimerKind::Poll,
    TimerKind::Slice,
];

#[test]
fn keys_round_trip() {
    for kind in KINDS {
        let key = TimerKey::new(VcpuKey(77), kind);
        assert_eq!((key.vcpu(), key.kind()), (VcpuKey(77), kind));
    }
}

#[test]
fn without_room_nothing_happens() {
    let mut queue = TimerQueue::new();
    queue.set(TimerKey::new(VcpuKey(0), TimerKind::Poll), 5);
    assert!(queue.is_empty());
    queue.reserve(VcpuKey(2)).unwrap();
    queue.reserve(VcpuKey(1)).unwrap();
    queue.set(TimerKey::new(VcpuKey(2), TimerKind::Slice), 5);
    queue.set(TimerKey::new(VcpuKey(3), TimerKind::Singleshot), 4);
    assert_eq!((queue.len(), queue.next_deadline()), (1, Some(5)));
    assert_eq!(queue.pop_expired(4), None);
    assert_eq!(
        queue.pop_expired(5),
        Some(TimerKey::new(VcpuKey(2), TimerKind::Slice))
    );
}

#[test]
fn random_operations_match_a_map() {
    for seed in 0..50u64 {
        let mut random = seed;
        let mut next = |bound: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            (random >> 33) % bound
        };
        let mut queue = TimerQueue::new();
        queue.reserve(VcpuKey(9)).unwrap();
        let mut model: BTreeMap<TimerKey, u64> = BTreeMap::new();
        for _ in 0..2000 {
            let key = TimerKey::new(VcpuKey(next(10) as u32), KINDS[next(4) as usize]);
            match next(5) {
                0..3 => {
                    let deadline = next(100);
                    queue.set(key, deadline);
                    model.insert(key, deadline);
                }
                3 => assert_eq!(queue.cancel(key), model.remove(&key)),
                _ => {
                    let now = next(60);
                    let mut last = 0;
                    while let Some(key) = queue.pop_expired(now) {
                        let deadline = model.remove(&key).unwrap();
                        assert!(last <= deadline && deadline <= now);
                        last = deadline;
                    }
                    assert!(model.values().all(|&deadline| deadline > now));
                }
            }
            assert_eq!(queue.next_deadline(), model.values().copied().min());
            assert_eq!(queue.len(), model.len());
            assert_eq!(queue.deadline(key), model.get(&key).copied());
        }
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop_expired(u64::MAX)).collect();
        assert_eq!(rest.len(), model.len());
    }
}
