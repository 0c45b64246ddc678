// SPDX-License-Identifier: MIT OR Apache-2.0
//! What stands in models (loom) for atomics and locks of the crates: every order that the memory model allows is tried.
//!
//! A model includes the files of a crate by path, and this one as their `sync`. The atomics are loom's with something
//! added, because loom (0.7)
//! - looks only at the last access to an object for what may have come in another order, and a thread's own load, as in every
//!   loop of load and compare-and-swap, hides the loads of others from it. So each load first takes its turn at a relaxed counter
//!   beside the value. That orders nothing for the model of memory, but loom tries every order of turns;
//! - does not try whether somebody who only tries a lock comes before or after it is let go: that is a turn, too;
//! - may put a store before another thread's read-modify-write that did not see it. So stores are swaps, which come after
//!   everything that is there;
//! - takes `SeqCst` for `AcqRel` where the value that something began with is concerned. So fences are added: what x86's locked
//!   instructions are.

#![allow(
    dead_code,
    unused_imports,
    reason = "each model uses what its crate needs"
)]

use core::ops::{Deref, DerefMut};
use core::sync::atomic as core_atomic;
use std::sync::OnceLock;

pub(crate) use loom::hint::spin_loop;
use loom::sync::atomic as loomed;
pub(crate) use loom::sync::atomic::{Ordering, fence};

/// Atomics come to be when they are first used. For crates with big tables: loom takes its time for each atomic there is. What several
/// threads use must be used once before they start.
static LAZY: core_atomic::AtomicBool = core_atomic::AtomicBool::new(false);

/// See [`LAZY`]; for all tests of a model.
pub(crate) fn make_lazily() {
    LAZY.store(true, Ordering::Relaxed);
}

fn fence_if_ordered(order: Ordering) {
    if order == Ordering::SeqCst {
        fence(order);
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty, [$($rmw:ident),*]) => {
        #[derive(Debug)]
        pub(crate) struct $name {
            initial: $value,
            /// The value, and the turns at loading it.
            loomed: OnceLock<(loomed::$name, loomed::AtomicBool)>,
        }

        impl $name {
            pub(crate) fn new(initial: $value) -> Self {
                let new = Self {
                    initial,
                    loomed: OnceLock::new(),
                };
                if !LAZY.load(Ordering::Relaxed) {
                    new.get();
                }
                new
            }

            fn get(&self) -> &(loomed::$name, loomed::AtomicBool) {
                self.loomed.get_or_init(|| {
                    (loomed::$name::new(self.initial), loomed::AtomicBool::new(false))
                })
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                let (value, turn) = self.get();
                turn.swap(true, Ordering::Relaxed);
                fence_if_ordered(order);
                value.load(order)
            }

            pub(crate) fn store(&self, new: $value, order: Ordering) {
                fence_if_ordered(order);
                self.get().0.swap(new, order);
                fence_if_ordered(order);
            }

            pub(crate) fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                fence_if_ordered(success);
                let result = self.get().0.compare_exchange(old, new, success, failure);
                fence_if_ordered(success);
                result
            }

            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut old = self.load(failure);
                while let Some(new) = change(old) {
                    match self.compare_exchange(old, new, success, failure) {
                        Ok(old) => return Ok(old),
                        Err(newer) => old = newer,
                    }
                }
                Err(old)
            }

            $(pub(crate) fn $rmw(&self, value: $value, order: Ordering) -> $value {
                fence_if_ordered(order);
                let old = self.get().0.$rmw(value, order);
                fence_if_ordered(order);
                old
            })*
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new(Default::default())
            }
        }
    };
}

atomic!(AtomicBool, bool, [swap]);
atomic!(
    AtomicU32,
    u32,
    [swap, fetch_add, fetch_sub, fetch_or, fetch_and]
);
atomic!(
    AtomicU64,
    u64,
    [swap, fetch_add, fetch_or, fetch_and, fetch_xor, fetch_max]
);

/// A lock with the interface of the one that the crates use.
#[derive(Debug)]
pub(crate) struct Mutex<T> {
    lock: loom::sync::Mutex<T>,
    /// Who lets go of it, and who only tries it, in turns.
    turn: loomed::AtomicBool,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            lock: loom::sync::Mutex::new(value),
            turn: loomed::AtomicBool::new(false),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let Ok(guard) = self.lock.lock() else {
            unreachable!("a thread of the model failed")
        };
        MutexGuard {
            guard,
            turn: &self.turn,
        }
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.turn.swap(true, Ordering::Relaxed);
        let guard = self.lock.try_lock().ok()?;
        Some(MutexGuard {
            guard,
            turn: &self.turn,
        })
    }
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    guard: loom::sync::MutexGuard<'a, T>,
    turn: &'a loomed::AtomicBool,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.turn.swap(true, Ordering::Relaxed);
        }
    }
}

/// Runs `world` in every way that differs in at most `preemptions` places where a thread is stopped in the middle.
pub(crate) fn explore(preemptions: usize, world: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 10_000;
    model.check(world);
}
