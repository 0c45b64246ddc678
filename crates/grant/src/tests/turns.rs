// SPDX-License-Identifier: MIT OR Apache-2.0
//! An explicit scheduler: of some threads one runs at a time. It gives its turn to another, by a sequence of random
//! numbers that can be repeated, where the fake machine is asked for something, and when it has to wait.

use spin::RelaxStrategy;
use std::boxed::Box;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::vec::Vec;

/// A small generator of random numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % limit
    }
}

struct State {
    /// Whose turn it is.
    turn: usize,
    /// Those that have not finished.
    alive: Vec<usize>,
    random: Random,
    failed: bool,
}

struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

std::thread_local! {
    static ME: RefCell<Option<(Arc<Turns>, usize)>> = const { RefCell::new(None) };
}

impl Turns {
    /// One time in `often`, another goes on.
    fn give(&self, me: usize, often: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.random.below(often) == 0 {
            let count = state.alive.len() as u64;
            let next = state.random.below(count) as usize;
            state.turn = state.alive[next];
            self.changed.notify_all();
        }
        self.wait(state, me);
    }
    fn begin(&self, me: usize) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.wait(state, me);
    }
    fn wait(&self, mut state: std::sync::MutexGuard<'_, State>, me: usize) {
        while state.turn != me && !state.failed {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let failed = state.failed;
        drop(state);
        assert!(!failed || thread::panicking(), "another thread failed");
    }
    fn finish(&self, me: usize, failed: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failed |= failed;
        state.alive.retain(|&other| other != me);
        let count = state.alive.len() as u64;
        if count != 0 {
            let next = state.random.below(count) as usize;
            state.turn = state.alive[next];
        }
        self.changed.notify_all();
    }
}

fn give(often: u64) {
    let me = ME.with_borrow(Clone::clone);
    if let Some((turns, me)) = me {
        turns.give(me, often);
    }
}

/// Another thread may go on here.
pub fn point() {
    give(4);
}

/// This thread waits for another.
pub fn pass() {
    give(1);
}

/// How locks are waited for.
#[derive(Debug)]
pub struct Pass;

impl RelaxStrategy for Pass {
    fn relax() {
        pass();
    }
}

/// Runs all `work` in the order that `seed` stands for.
pub fn run<'a>(seed: u64, work: Vec<Box<dyn FnOnce() + Send + 'a>>) {
    let turns = Arc::new(Turns {
        state: Mutex::new(State {
            turn: 0,
            alive: (0..work.len()).collect(),
            random: Random::new(seed),
            failed: false,
        }),
        changed: Condvar::new(),
    });
    thread::scope(|scope| {
        for (me, work) in work.into_iter().enumerate() {
            let turns = turns.clone();
            scope.spawn(move || {
                ME.set(Some((turns.clone(), me)));
                let result = catch_unwind(AssertUnwindSafe(|| {
                    turns.begin(me);
                    work();
                }));
                turns.finish(me, result.is_err());
                if let Err(panic) = result {
                    std::println!("with seed {seed}");
                    resume_unwind(panic);
                }
            });
        }
    });
}
