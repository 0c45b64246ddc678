// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cost of the scheduler's decisions on this host as the number of vCPUs grows (`cargo xtask bench sched-host`).

use philoxen_sched::{CpuMask, DEFAULT_WEIGHT, Scheduler};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: u64 = 200_000;
const RUNS: usize = 5;
const SLICE: u64 = 5_000_000;

/// A processor with `vcpus` that all want to run, on processors of `mask`.
fn machine(vcpus: u32, mask: &CpuMask) -> Option<Scheduler> {
    let scheduler = Scheduler::new(2, vcpus).ok()?;
    for _ in 0..vcpus {
        let key = scheduler.add(mask, DEFAULT_WEIGHT, 0).ok()?;
        let _ = scheduler.bring_up(key, 0);
    }
    Some(scheduler)
}

/// Processor 0 chooses at the end of each slice, and the vCPU that it ran waits again.
fn slices(scheduler: &Scheduler, now: &mut u64) {
    *now += SLICE + 100_000;
    let decision = black_box(scheduler.pick_next(0, *now));
    if let Some(prev) = decision.prev
        && decision.next != Some(prev)
    {
        let _ = black_box(scheduler.context_saved(prev, *now));
    }
}

/// What runs blocks, another vCPU is chosen, and the first wakes up.
fn wake_ups(scheduler: &Scheduler, now: &mut u64) {
    *now += 100_000;
    let decision = black_box(scheduler.pick_next(0, *now));
    if let Some(prev) = decision.prev
        && decision.next != Some(prev)
    {
        let _ = black_box(scheduler.context_saved(prev, *now));
    }
    if let Some(key) = decision.next {
        scheduler.block(key, *now, || true);
        let decision = scheduler.pick_next(0, *now);
        let _ = scheduler.context_saved(key, *now);
        let _ = black_box(scheduler.wake(key, None, *now + 1000));
        black_box(decision);
    }
}

/// Median nanoseconds of a round of `step`.
fn measure(vcpus: u32, mask: &CpuMask, step: fn(&Scheduler, &mut u64)) -> Option<u128> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let scheduler = machine(vcpus, mask)?;
        let mut now = 1;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            step(&scheduler, &mut now);
        }
        times.push(start.elapsed().as_nanos() / u128::from(ROUNDS));
    }
    times.sort_unstable();
    times.get(RUNS / 2).copied()
}

fn main() {
    println!("Nanoseconds on this host, medians of {RUNS} runs of {ROUNDS}");
    println!(
        "{:>6} {:>16} {:>16} {:>24}",
        "vCPUs", "end of a slice", "(all pinned)", "block, choose, wake up"
    );
    for vcpus in [2, 4, 8, 16, 32, 64, 128, 256, 512] {
        let row = [
            measure(vcpus, &CpuMask::ALL, slices),
            measure(vcpus, &CpuMask::one(0), slices),
            measure(vcpus, &CpuMask::ALL, wake_ups),
        ];
        let [slice, pinned, wake] = row.map(Option::unwrap_or_default);
        println!("{vcpus:>6} {slice:>16} {pinned:>16} {wake:>24}");
    }
}
