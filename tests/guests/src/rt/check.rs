// SPDX-License-Identifier: MIT OR Apache-2.0
//! The record of one theme: every failed check is a line, the last line is the verdict.

use crate::println;
use core::fmt::Debug;

/// Checks of one theme.
#[derive(Debug)]
pub struct Checks {
    theme: &'static str,
    done: u32,
    failed: u32,
    first: Option<&'static str>,
    verbose: bool,
}

impl Checks {
    /// Nothing checked yet.
    pub fn new(theme: &'static str, verbose: bool) -> Self {
        Self {
            theme,
            done: 0,
            failed: 0,
            first: None,
            verbose,
        }
    }
    /// Counts `name` as failed if not `good`.
    pub fn that(&mut self, name: &'static str, good: bool) {
        self.note(name, good, &"false");
    }
    /// `got` must equal `want`.
    pub fn equal<T: PartialEq + Debug>(&mut self, name: &'static str, got: T, want: T) {
        self.note(name, got == want, &(got, "instead of", &want));
    }
    /// A hypercall must have succeeded with 0.
    pub fn ok(&mut self, name: &'static str, result: i64) {
        self.note(name, result == 0, &result);
    }
    /// A hypercall must have failed, with any error.
    pub fn refused(&mut self, name: &'static str, result: i64) {
        self.note(name, (-4095..0).contains(&result), &result);
    }
    /// Counts `name`, with `detail` for the line if it failed.
    pub fn note(&mut self, name: &'static str, good: bool, detail: &dyn Debug) {
        self.done += 1;
        if self.verbose {
            println!("GUEST-CHECK {} {name}: {detail:?}", self.theme);
        }
        if !good {
            self.failed += 1;
            self.first.get_or_insert(name);
            println!("GUEST-CHECK {} FAILED {name}: {detail:?}", self.theme);
        }
    }
    /// Prints the verdict.
    pub fn verdict(&self) {
        println!(
            "GUEST-INFO {} {} checks, {} failed",
            self.theme, self.done, self.failed
        );
        match self.first {
            None => println!("GUEST-TEST {} PASS", self.theme),
            Some(name) => println!("GUEST-TEST {} FAIL {name}", self.theme),
        }
    }
    /// Says that the machine is to crash now.
    pub fn expect_crash(&self) {
        println!("GUEST-TEST {} EXPECT-CRASH", self.theme);
    }
}
