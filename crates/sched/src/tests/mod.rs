// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host tests under a simulated clock.

mod timers;

mod fairness;
mod heap;
mod protocol;
mod sim;
