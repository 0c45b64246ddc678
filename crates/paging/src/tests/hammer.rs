// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real threads on the same frames: counts and exclusion survive races.

use super::fake::Fake;
use crate::entry::{P, RW};
use crate::machine::DomainMemory;
use crate::validate::{Tables, get_page_writable, put_page_writable, put_typed};
use crate::word::Kind;
use core::sync::atomic::{AtomicU32, Ordering};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::mmu::mmuext;
use philoxen_abi::{DomId, Mfn};
use std::thread;

/// Some threads use a frame as an L1, others write to it: never both at once.
#[test]
fn table_and_writable_exclude_each_other() {
    let fake = Fake::new();
    let (mfn, domain): (_, &DomainMemory) = (Mfn(Fake::first(0) + 20), &fake.domains[0]);
    let (tables, writers) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for thread in 0..4 {
            let (tables, writers) = (&tables, &writers);
            scope.spawn(move || {
                for _ in 0..4000 {
                    let mut budget = Budget::unlimited();
                    if thread % 2 == 0 {
                        let taken =
                            Tables::new(fake, domain).take_table(mfn, Kind::L1, &mut budget);
                        if taken.is_ok() {
                            tables.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(writers.load(Ordering::SeqCst), 0);
                            tables.fetch_sub(1, Ordering::SeqCst);
                            put_typed(fake, mfn, fake.frame(mfn.0), &mut budget).unwrap();
                        }
                    } else if get_page_writable(fake, mfn, DomId(0)).is_ok() {
                        writers.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(tables.load(Ordering::SeqCst), 0);
                        writers.fetch_sub(1, Ordering::SeqCst);
                        put_page_writable(fake, mfn);
                    }
                }
            });
        }
    });
    fake.check();
    assert_eq!(fake.frame(mfn.0).owner().count(), 1);
}

/// Threads change the same entries in every way while others pin and unpin the tables above.
#[test]
fn concurrent_updates_keep_the_counts() {
    let fake = Fake::new();
    let first = Fake::first(0);
    assert_eq!(fake.ext(0, mmuext::PIN_L4_TABLE, first), 0);
    thread::scope(|scope| {
        for thread in 0..4u64 {
            scope.spawn(move || {
                let mut seed = 77 + thread;
                for _ in 0..3000 {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let random = seed >> 33;
                    let target = first + 8 + random % 4;
                    let flags = [0, P, P | RW][(random >> 8) as usize % 3];
                    let slot = 8 + (random >> 16) % 3;
                    let ptr = (first + 3) << 12 | slot << 3 | (random >> 20 & 1) << 1;
                    let result = fake.update(0, ptr, target << 12 | flags, 0x7ff0);
                    assert!(matches!(result, 0 | -11 | -22), "{result}");
                    if random % 16 == 0 {
                        let cmd = if thread == 0 {
                            mmuext::UNPIN_TABLE
                        } else {
                            mmuext::PIN_L4_TABLE
                        };
                        fake.ext(0, cmd, first);
                    }
                    if random % 16 == 1 {
                        fake.set(0, first + 2, 0, (first + 3) << 12 | P | RW);
                    }
                }
            });
        }
    });
    fake.settle();
    fake.check();
}
