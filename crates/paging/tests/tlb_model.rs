// SPDX-License-Identifier: MIT OR Apache-2.0
//! The TLB clock under every order that the memory model allows (loom): one processor removes a page from a table and uses it
//! for something else, another one may have it in its TLB.
//!
//! The second processor may keep a translation from any walk until it loads a root or answers. It must never use one after
//! the page has become something else.

mod atomics {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}
#[path = "../src/tlb.rs"]
mod tlb;

use atomics::{AtomicU64, Ordering, fence};
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::thread;
use tlb::{CpuNotes, TlbClock};

struct World {
    clock: TlbClock,
    notes: CpuNotes,
    /// The entry: the table maps the page.
    mapped: AtomicBool,
    /// The page is something else now.
    reused: AtomicBool,
    /// An NMI is on its way.
    asked: AtomicBool,
}

/// The processor that has the root loaded, or is about to.
struct Processor {
    world: Arc<World>,
    /// It holds a translation of the page.
    holds: bool,
}

impl Processor {
    /// Uses the page if it can.
    fn access(&mut self) {
        self.holds = self.holds || self.world.mapped.load(Ordering::Relaxed);
        if self.holds {
            assert!(!self.world.reused.load(Ordering::Relaxed), "stale");
        }
    }
    /// CR3 is written: a full fence, and the TLB is empty.
    fn write_root(&mut self) {
        fence(Ordering::SeqCst);
        self.holds = false;
    }
    fn load_root(&mut self) {
        self.world.clock.note(&self.world.notes);
        self.write_root();
    }
    /// The same with an NMI between the two halves of the note.
    fn load_root_interrupted(&mut self) {
        let now = self.world.clock.now.load(Ordering::Relaxed);
        self.nmi();
        self.world.notes.noted.store(now, Ordering::Release);
        self.write_root();
    }
    fn idle(&mut self) {
        self.load_root();
        self.world.notes.go_away();
    }
    fn nmi(&mut self) {
        if self.world.asked.swap(false, Ordering::AcqRel) {
            self.world.clock.answer(&self.world.notes);
            self.write_root();
        }
    }
}

/// Removes the page and reuses it if nobody holds it, now or after being asked: whether an answer comes in time is not the question
/// here, only what may be done after it.
fn reuse(world: &World) {
    world.mapped.store(false, Ordering::Relaxed);
    let stamp = world.clock.stamp();
    world.clock.settle();
    if world.notes.may_hold(stamp) {
        world.asked.store(true, Ordering::Release);
        if world.notes.may_hold(stamp) {
            return;
        }
    }
    world.reused.store(true, Ordering::Relaxed);
}

/// Runs `work` on a processor whose note is `noted`, against [`reuse`].
fn check(noted: u64, work: fn(&mut Processor)) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let world = Arc::new(World {
            clock: TlbClock {
                now: AtomicU64::new(1),
            },
            notes: CpuNotes {
                noted: AtomicU64::new(noted),
                answered: AtomicU64::new(0),
            },
            mapped: AtomicBool::new(true),
            reused: AtomicBool::new(false),
            asked: AtomicBool::new(false),
        });
        let other = {
            let world = world.clone();
            thread::spawn(move || {
                let mut processor = Processor {
                    world,
                    holds: false,
                };
                work(&mut processor);
            })
        };
        reuse(&world);
        assert!(other.join().is_ok());
    });
}

const AWAY: u64 = u64::MAX;

#[test]
fn who_uses_the_table_is_asked() {
    check(1, |processor| {
        processor.access();
        processor.nmi();
        processor.access();
    });
}

#[test]
fn who_comes_back_is_asked_or_sees_the_removal() {
    check(AWAY, |processor| {
        processor.load_root();
        processor.access();
        processor.access();
    });
}

#[test]
fn who_goes_away_is_not_asked_and_holds_nothing() {
    check(1, |processor| {
        processor.access();
        processor.idle();
        processor.load_root();
        processor.access();
    });
}

#[test]
fn an_answer_is_not_undone_by_the_note_that_it_interrupts() {
    check(1, |processor| {
        processor.access();
        processor.load_root_interrupted();
        processor.access();
    });
}
