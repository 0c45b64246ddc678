// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scheduler: work conservation, fairness, pause nesting, wake-up races.

use crate::{CpuMask, Decision, Kick, SLICE_NS, Scheduler, VcpuKey};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use philoxen_abi::Errno;
use std::thread;
use std::vec::Vec;

const MS: u64 = 1_000_000;

fn machine(cpus: u32, vcpus: u32) -> (Scheduler, Vec<VcpuKey>) {
    let s = Scheduler::new(cpus, 64).unwrap();
    let keys: Vec<_> = (0..vcpus)
        .map(|_| {
            let key = s.add(&CpuMask::ALL, 256, 0).unwrap();
            assert!(s.bring_up(key, 0).0);
            key
        })
        .collect();
    (s, keys)
}

/// `cpu` reschedules and completes the switch.
fn switch(s: &Scheduler, cpu: u32, now: u64) -> (Decision, Kick) {
    let decision = s.pick_next(cpu, now);
    match decision.prev {
        Some(prev) if decision.next != Some(prev) => (decision, s.context_saved(prev)),
        _ => (decision, Kick::None),
    }
}

#[test]
fn round_robin_with_slices() {
    let (s, keys) = machine(1, 3);
    let mut now = 0;
    let mut order = Vec::new();
    for _ in 0..6 {
        let (d, _) = switch(&s, 0, now);
        assert_eq!(d.slice_ns, SLICE_NS);
        order.push(d.next.unwrap());
        assert!(!s.tick(0, now + d.slice_ns - 1));
        now += d.slice_ns;
        assert!(s.tick(0, now));
    }
    assert_eq!(order, [keys.clone(), keys].concat());
}

#[test]
fn alone_it_runs_without_a_timer_and_idle_means_none() {
    let (s, keys) = machine(1, 1);
    let (d, _) = switch(&s, 0, 0);
    assert_eq!((d.next, d.slice_ns), (Some(keys[0]), u64::MAX));
    assert!(s.block(keys[0], 5, || true));
    assert!(s.is_blocked(keys[0]));
    let (d, _) = switch(&s, 0, 5);
    assert_eq!(
        (d.prev, d.next, d.slice_ns),
        (Some(keys[0]), None, u64::MAX)
    );
    assert!(!s.is_on_cpu(keys[0]));
    assert_eq!(s.wake(keys[0], 9), Kick::Reschedule(0));
    assert_eq!(s.wake(keys[0], 9), Kick::None, "already runnable");
    assert_eq!(switch(&s, 0, 10).0.next, Some(keys[0]));
    assert_eq!(
        s.wake(keys[0], 11),
        Kick::Notice(0),
        "running: it must look"
    );
    let run = s.runstate(keys[0], 20);
    assert_eq!((run.state, run.entered, run.time), (0, 10, [15, 1, 4, 0]));
}

#[test]
fn block_asks_under_the_lock() {
    let (s, keys) = machine(1, 1);
    let _ = switch(&s, 0, 0);
    assert!(!s.block(keys[0], 1, || false), "something is pending");
    assert!(!s.is_blocked(keys[0]));
    assert!(s.block(keys[0], 1, || true));
    assert_eq!(
        s.wake(keys[0], 2),
        Kick::Reschedule(0),
        "before the processor has switched"
    );
    let d = s.pick_next(0, 3);
    assert_eq!((d.prev, d.next), (Some(keys[0]), Some(keys[0])));
    assert_eq!(s.wake(VcpuKey(50), 0), Kick::None);
    assert!(!s.block(VcpuKey(50), 0, || true));
}

#[test]
fn a_wake_up_preempts_and_hogs_still_run() {
    let (s, keys) = machine(1, 3);
    // 0 is a hog; 1 and 2 wake each other all the time.
    let mut now = 0;
    for _ in 0..3 {
        let (d, _) = switch(&s, 0, now);
        if d.next != Some(keys[0]) {
            assert!(s.block(d.next.unwrap(), now, || true));
        }
        now += d.slice_ns.min(SLICE_NS);
    }
    let (d, _) = switch(&s, 0, now);
    assert_eq!(d.next, Some(keys[0]));
    assert_eq!(s.wake(keys[1], now), Kick::Reschedule(0));
    let (d, _) = switch(&s, 0, now);
    assert_eq!(d.next, Some(keys[1]), "woken up: runs at once");
    let mut hog = 0;
    let start = now;
    while now < start + 1000 * MS {
        let current = switch(&s, 0, now).0;
        let runs = current.next.unwrap();
        let step = current.slice_ns.min(MS / 2);
        now += step;
        if runs == keys[0] {
            hog += step;
        } else {
            let _ = s.wake(if runs == keys[1] { keys[2] } else { keys[1] }, now);
            assert!(s.block(runs, now, || true));
        }
    }
    assert!(hog > 200 * MS, "the hog got {} ms of 1000", hog / MS);
}

#[test]
fn weights_stretch_slices() {
    let (s, keys) = machine(1, 2);
    s.set_weight(keys[0], 512);
    assert_eq!(s.weight(keys[0]), 512);
    let (mut now, mut time) = (0, [0u64; 2]);
    while now < 3000 * MS {
        let (d, _) = switch(&s, 0, now);
        time[usize::from(d.next == Some(keys[1]))] += d.slice_ns;
        now += d.slice_ns;
    }
    assert!((19..=21).contains(&(time[0] * 10 / time[1])), "{time:?}");
    s.set_weight(keys[0], 0);
    assert_eq!(s.weight(keys[0]), 1);
}

#[test]
fn yield_lets_others_go_first() {
    let (s, keys) = machine(1, 2);
    let _ = switch(&s, 0, 0);
    s.yield_now(keys[0]);
    assert!(s.tick(0, 1));
    assert_eq!(switch(&s, 0, 1).0.next, Some(keys[1]));
    s.yield_now(keys[0]);
    assert!(!s.tick(0, 2), "only the running one can yield");
    assert!(s.block(keys[1], 2, || true));
    assert_eq!(switch(&s, 0, 2).0.next, Some(keys[0]));
    s.yield_now(keys[0]);
    assert_eq!(switch(&s, 0, 3).0.next, Some(keys[0]), "nobody else");
}

#[test]
fn pauses_nest() {
    let (s, keys) = machine(1, 1);
    assert_eq!(s.pause(keys[0], 0), Kick::None);
    assert_eq!(s.pause(keys[0], 0), Kick::None);
    assert_eq!(switch(&s, 0, 0).0.next, None);
    assert_eq!(s.runstate(keys[0], 5).state, 3);
    assert_eq!(s.unpause(keys[0], 5), Kick::None);
    assert_eq!(switch(&s, 0, 5).0.next, None);
    assert_eq!(s.unpause(keys[0], 6), Kick::Reschedule(0));
    assert_eq!(s.unpause(keys[0], 6), Kick::None, "one too many is nothing");
    assert_eq!(switch(&s, 0, 7).0.next, Some(keys[0]));
    // Paused while it runs: it stops when its processor looks.
    assert_eq!(s.pause(keys[0], 8), Kick::Reschedule(0));
    assert!(s.is_on_cpu(keys[0]));
    assert_eq!(switch(&s, 0, 9).0.next, None);
    assert!(!s.is_on_cpu(keys[0]));
    // Woken up while paused: it waits for the last unpause.
    let _ = s.unpause(keys[0], 10);
    let _ = switch(&s, 0, 10);
    assert!(s.block(keys[0], 11, || true));
    let _ = switch(&s, 0, 11);
    let _ = s.pause(keys[0], 12);
    assert_eq!(s.wake(keys[0], 13), Kick::None);
    assert_eq!(switch(&s, 0, 13).0.next, None);
    assert_eq!(s.pause_count(keys[0]), 1);
    assert_eq!(s.unpause(keys[0], 14), Kick::Reschedule(0));
    assert_eq!(switch(&s, 0, 15).0.next, Some(keys[0]));
}

#[test]
fn offline_and_removal() {
    let (s, keys) = machine(1, 2);
    let _ = switch(&s, 0, 0);
    assert_eq!(s.remove(keys[0], 0), Err(Errno::EBUSY));
    assert_eq!(s.take_down(keys[0], 1), Kick::Reschedule(0));
    assert!(!s.is_up(keys[0]) && s.is_up(keys[1]));
    assert_eq!(
        s.remove(keys[0], 1),
        Err(Errno::EBUSY),
        "its registers are still loaded"
    );
    assert_eq!(switch(&s, 0, 2).0.next, Some(keys[1]));
    assert_eq!(s.take_down(keys[1], 2), Kick::Reschedule(0));
    assert_eq!(
        s.bring_up(keys[1], 3),
        (true, Kick::Reschedule(0)),
        "up again before it left"
    );
    assert!(!s.bring_up(keys[1], 3).0);
    assert_eq!(switch(&s, 0, 3).0.next, Some(keys[1]));
    s.remove(keys[0], 4).unwrap();
    assert_eq!(s.remove(keys[0], 4), Err(Errno::ENOENT));
    assert_eq!(
        s.add(&CpuMask::ALL, 256, 5),
        Ok(keys[0]),
        "the slot is used again"
    );
    assert_eq!(s.add(&CpuMask::one(9), 256, 5), Err(Errno::EINVAL));
    let full = Scheduler::new(1, 0).unwrap();
    assert_eq!(full.add(&CpuMask::ALL, 1, 0), Err(Errno::ENOSPC));
    assert!(Scheduler::new(0, 1).is_err() && Scheduler::new(257, 1).is_err());
}

#[test]
fn idle_processors_take_work() {
    let (s, keys) = machine(2, 2);
    // Both on processor 0's queue.
    for &key in &keys {
        let _ = s.set_affinity(key, &CpuMask::one(0)).unwrap();
        let _ = s.set_affinity(key, &CpuMask::ALL).unwrap();
    }
    assert_eq!(s.home(keys[1]), 0);
    let (a, _) = switch(&s, 0, 0);
    let (b, _) = switch(&s, 1, 0);
    assert_eq!((a.next, b.next), (Some(keys[0]), Some(keys[1])), "stolen");
    assert!(s.block(keys[1], 1, || true));
    assert_eq!(switch(&s, 1, 1).0.next, None);
    assert!(s.block(keys[0], 1, || true));
    let d = s.pick_next(0, 1);
    assert_eq!(d.next, None);
    // Its registers are still on processor 0: nobody else may take it.
    assert_eq!(s.wake(keys[0], 2), Kick::Reschedule(0));
    assert_eq!(s.pick_next(1, 2).next, None);
    assert_eq!(
        s.context_saved(keys[0]),
        Kick::Reschedule(1),
        "now processor 1 may"
    );
    assert_eq!(s.pick_next(1, 3).next, Some(keys[0]));
    assert_eq!(s.pick_next(0, 3).next, None);
    // Waking up on a busy home goes to whoever is idle.
    let _ = s.set_affinity(keys[1], &CpuMask::one(1)).unwrap();
    let _ = s.set_affinity(keys[1], &CpuMask::ALL).unwrap();
    assert_eq!(s.wake(keys[1], 4), Kick::Reschedule(0));
    assert_eq!(switch(&s, 0, 5).0.next, Some(keys[1]));
}

#[test]
fn affinity_moves_what_runs_elsewhere() {
    let (s, keys) = machine(2, 1);
    let home = s.home(keys[0]);
    assert_eq!(switch(&s, home, 0).0.next, Some(keys[0]));
    let other = 1 - home;
    let _ = switch(&s, other, 0);
    assert_eq!(
        s.set_affinity(keys[0], &CpuMask::one(7)),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        s.set_affinity(keys[0], &CpuMask::one(other)),
        Ok(Kick::Reschedule(home))
    );
    let d = s.pick_next(home, 1);
    assert_eq!(d.next, None);
    assert_eq!(s.pick_next(other, 1).next, None, "registers not saved yet");
    assert_eq!(s.context_saved(keys[0]), Kick::Reschedule(other));
    assert_eq!(switch(&s, other, 2).0.next, Some(keys[0]));
    assert_eq!(switch(&s, home, 2).0.next, None);
    assert!(s.affinity(keys[0]).contains(other) && !s.affinity(keys[0]).contains(home));
}

/// Random operations on two processors. After each round in which kicks are obeyed, no processor idles while
/// a vCPU that may run there waits, and nothing runs that must not.
#[test]
fn work_is_conserved() {
    for seed in 0..60u64 {
        let mut random = seed;
        let mut next = |bound: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(77);
            (random >> 33) % bound
        };
        let (s, keys) = machine(2, 5);
        let mut current: [Option<VcpuKey>; 2] = [None, None];
        let mut now = 0;
        let mut todo: Vec<u32> = [0, 1].to_vec();
        let mut blocked = [false; 5];
        let mut paused = [0u32; 5];
        let mut last = [0u64; 5];
        for _ in 0..4000 {
            now += next(2 * MS);
            let index = next(5) as usize;
            let key = keys[index];
            let kick = match next(6) {
                0 if current.contains(&Some(key)) && paused[index] == 0 => {
                    blocked[index] |= s.block(key, now, || true);
                    todo.push(s.home(key));
                    Kick::None
                }
                1 => {
                    blocked[index] = false;
                    s.wake(key, now)
                }
                2 if paused[index] < 2 => {
                    paused[index] += 1;
                    s.pause(key, now)
                }
                3 if paused[index] > 0 => {
                    paused[index] -= 1;
                    s.unpause(key, now)
                }
                4 => s
                    .set_affinity(key, &CpuMask::from_words(&[1 + next(3)]))
                    .unwrap(),
                _ => Kick::None,
            };
            if let Kick::Reschedule(cpu) = kick {
                todo.push(cpu);
            }
            todo.extend((0..2).filter(|&cpu| s.tick(cpu, now)));
            while let Some(cpu) = todo.pop() {
                let (d, kick) = switch(&s, cpu, now);
                assert_eq!(d.prev, current[cpu as usize]);
                current[cpu as usize] = d.next;
                if let Kick::Reschedule(cpu) = kick {
                    todo.push(cpu);
                }
            }
            assert!(current[0].is_none() || current[0] != current[1]);
            for (index, &key) in keys.iter().enumerate() {
                let runs = current.iter().position(|&c| c == Some(key));
                let may = !blocked[index] && paused[index] == 0;
                if let Some(cpu) = runs {
                    assert!(may && s.affinity(key).contains(cpu as u32), "seed {seed}");
                }
                if may && runs.is_none() {
                    for (cpu, current) in current.iter().enumerate() {
                        let fits = s.affinity(key).contains(cpu as u32);
                        assert!(current.is_some() || !fits, "seed {seed}: idle beside work");
                    }
                }
                if !may || runs.is_some() {
                    last[index] = now;
                }
                assert!(
                    now - last[index] < 400 * MS,
                    "seed {seed}: vCPU {index} starves"
                );
            }
        }
        let total: u64 = keys
            .iter()
            .map(|&k| s.runstate(k, now).time.iter().sum::<u64>())
            .sum();
        assert_eq!(total, 5 * now, "every nanosecond is accounted for");
    }
}

/// Events against blocking on real threads: the vCPU counts every event it was sent.
#[test]
fn wake_ups_are_never_lost() {
    let (s, keys) = machine(1, 1);
    let key = keys[0];
    let (pending, kicked) = (AtomicU32::new(0), AtomicBool::new(true));
    let taken = AtomicU32::new(0);
    const EVENTS: u32 = 20_000;
    thread::scope(|scope| {
        scope.spawn(|| {
            for sent in 0..EVENTS {
                pending.fetch_add(1, Ordering::SeqCst);
                if matches!(s.wake(key, 0), Kick::Reschedule(0)) {
                    kicked.store(true, Ordering::SeqCst);
                }
                // Wait for the event to be taken: a lost wake-up hangs here.
                while taken.load(Ordering::SeqCst) <= sent {
                    thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            let mut current = None;
            while taken.load(Ordering::SeqCst) < EVENTS {
                if current.is_none() {
                    if !kicked.swap(false, Ordering::SeqCst) {
                        thread::yield_now();
                        continue;
                    }
                    current = switch(&s, 0, 0).0.next;
                    continue;
                }
                taken.fetch_add(pending.swap(0, Ordering::SeqCst), Ordering::SeqCst);
                if s.block(key, 0, || pending.load(Ordering::SeqCst) == 0) {
                    current = switch(&s, 0, 0).0.next;
                }
            }
        });
    });
    assert_eq!(taken.load(Ordering::SeqCst), EVENTS);
}

/// Many processors and vCPUs on real threads: a vCPU is never on two processors.
#[test]
fn never_on_two_processors() {
    let (s, keys) = machine(4, 6);
    let owner: Vec<AtomicU32> = keys.iter().map(|_| AtomicU32::new(u32::MAX)).collect();
    thread::scope(|scope| {
        for cpu in 0..4u32 {
            let (s, keys, owner) = (&s, &keys, &owner);
            scope.spawn(move || {
                let mut current: Option<VcpuKey> = None;
                let mut x = cpu + 1;
                for now in 0..5000u64 {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let key = keys[(x >> 8) as usize % keys.len()];
                    match (x >> 24) % 8 {
                        0 => drop(current.map(|key| s.block(key, now, || true))),
                        1 | 2 => drop(s.wake(key, now)),
                        3 => drop(s.pause(key, now)),
                        4 => drop(s.unpause(key, now)),
                        5 => {
                            let mask = CpuMask::from_words(&[1 + u64::from(x >> 28) % 15]);
                            let _ = s.set_affinity(key, &mask);
                        }
                        _ => drop(current.map(|key| s.yield_now(key))),
                    }
                    let d = s.pick_next(cpu, now * MS);
                    assert_eq!(d.prev, current);
                    if d.next == d.prev {
                        continue;
                    }
                    if let Some(next) = d.next {
                        let old = owner[next.0 as usize].swap(cpu, Ordering::SeqCst);
                        assert_eq!(old, u32::MAX, "already on processor {old}");
                    }
                    if let Some(prev) = d.prev {
                        owner[prev.0 as usize].store(u32::MAX, Ordering::SeqCst);
                        let _ = s.context_saved(prev);
                    }
                    current = d.next;
                }
                if let Some(key) = current {
                    let _ = s.take_down(key, u64::MAX);
                    owner[key.0 as usize].store(u32::MAX, Ordering::SeqCst);
                    s.pick_next(cpu, u64::MAX);
                }
            });
        }
    });
}
