// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two vCPUs of each of three domains at once: map, unmap (also each other's handles), copy, rewrite entries.

use super::fake::*;
use super::versions::set_version;
use philoxen_abi::grant::{copy, gntst, gtf, map as flag, op};
use spin::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::vec::Vec;

const ROUNDS: u32 = 4000;

/// A small generator: the sequence differs by thread, the interleaving by chance.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A handle and the address of its leaf.
type Handles = Mutex<Vec<(u32, u64)>>;

fn vcpu(fake: M, who: usize, id: usize, handles: &Handles, done: &AtomicU64) {
    let mut random = Random(0x9e37_79b9 * (1 + who as u64 * 2 + id as u64));
    for _ in 0..ROUNDS {
        let from = random.below(DOMAINS as u64) as usize;
        let gref = 8 + random.below(3) as u32;
        match random.below(6) {
            0 | 1 => {
                let page = HOLE + id as u64 * 40 + random.below(40);
                let ro = if random.below(2) == 0 { RO } else { 0 };
                let flags = [HOST, HOST | flag::DEVICE_MAP][random.below(2) as usize] | ro;
                let mut request = [map_request(from, gref, page << 12, flags)];
                assert_eq!(
                    fake.op_on((who, id), u32::MAX, op::MAP_GRANT_REF, &mut request),
                    0
                );
                if request[0].status == gntst::OKAY {
                    handles.lock().push((request[0].handle, page << 12));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
            2 | 3 => {
                // Not taken off the list: others race for the same handle.
                let lot: Vec<_> = handles.lock().iter().rev().take(3).copied().collect();
                let mut requests: Vec<_> = lot
                    .iter()
                    .map(|&(handle, at)| unmap_request(handle, at, 0))
                    .collect();
                fake.op_on((who, id), u32::MAX, op::UNMAP_GRANT_REF, &mut requests);
                if random.below(8) == 0 {
                    handles.lock().clear();
                }
            }
            4 => {
                let mine = own(Fake::data(who, 5 + id as u64), 0);
                let flags = copy::SOURCE_GREF;
                let mut request = [copy_request(granted(from, gref, 8), mine, 64, flags)];
                fake.op_on((who, id), u32::MAX, op::COPY, &mut request);
            }
            _ => {
                let to = random.below(DOMAINS as u64) as usize;
                let flags = if random.below(3) == 0 {
                    gtf::READONLY
                } else {
                    0
                };
                if fake.tables[who].version() == 1 {
                    fake.grant(
                        who,
                        gref,
                        to,
                        Fake::data(who, random.below(4)),
                        gtf::PERMIT_ACCESS | flags,
                    );
                }
                if random.below(16) == 0 {
                    set_version(fake, who, 1 + random.below(2) as u32);
                }
            }
        }
    }
}

#[test]
fn processors_race_and_nothing_is_lost() {
    let fake = Fake::new();
    let handles: [Handles; DOMAINS] = Default::default();
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for (who, handles) in handles.iter().enumerate() {
            for id in 0..VCPUS {
                let done = &done;
                scope.spawn(move || vcpu(fake, who, id, handles, done));
            }
        }
    });
    assert!(
        done.load(Ordering::Relaxed) > 100,
        "hardly anything was mapped"
    );
    for who in [1, 0, 2] {
        fake.destroy(who);
    }
    for table in &fake.tables {
        assert_eq!((table.entries_in_use(), table.handles_in_use()), (0, 0));
    }
    fake.check([].into_iter());
    assert_eq!(fake.buddy.lock().free_frames(), 64 + DOMAINS as u64 * EACH);
}
