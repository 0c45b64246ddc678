// SPDX-License-Identifier: MIT OR Apache-2.0
//! States and protocols: blocking, pauses, removal, affinity, and what threads do to each other.

use crate::group::SENDER_SLICE_NS;
use crate::{CpuMask, DEFAULT_ALLOWANCE_NS, Decision, Kick, Scheduler, VcpuKey};
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
        Some(prev) if decision.next != Some(prev) => (decision, s.context_saved(prev, now)),
        _ => (decision, Kick::None),
    }
}

#[test]
fn equals_take_turns_of_an_allowance() {
    let (s, keys) = machine(1, 3);
    let mut now = 0;
    let mut order = Vec::new();
    for _ in 0..9 {
        let (d, _) = switch(&s, 0, now);
        order.push(d.next.unwrap());
        assert!(!s.tick(0, now + d.slice_ns / 2));
        now += d.slice_ns;
    }
    // Each gets a moment at once, for it has just come; then they take turns.
    assert_eq!(order[3..6], order[6..9]);
    let (d, _) = switch(&s, 0, now);
    assert!(
        d.slice_ns.abs_diff(DEFAULT_ALLOWANCE_NS) < MS,
        "{}",
        d.slice_ns
    );
    assert!(s.tick(0, now + d.slice_ns));
    assert!(keys.contains(&d.next.unwrap()));
    s.set_allowance_ns(20 * MS);
    assert_eq!(s.allowance_ns(), 20 * MS);
    let (d, _) = switch(&s, 0, now + d.slice_ns);
    assert!(d.slice_ns >= 15 * MS, "{}", d.slice_ns);
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
    assert_eq!(s.wake(keys[0], None, 9), Kick::Reschedule(0));
    assert_eq!(s.wake(keys[0], None, 9), Kick::None, "already runnable");
    assert_eq!(switch(&s, 0, 10).0.next, Some(keys[0]));
    assert_eq!(
        s.wake(keys[0], None, 11),
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
        s.wake(keys[0], None, 2),
        Kick::Reschedule(0),
        "before the processor has switched"
    );
    let d = s.pick_next(0, 3);
    assert_eq!((d.prev, d.next), (Some(keys[0]), Some(keys[0])));
    assert_eq!(s.wake(VcpuKey(50), None, 0), Kick::None);
    assert!(!s.block(VcpuKey(50), 0, || true));
}

/// One processor: the first vCPU runs from 0 on, the second has slept for a while.
fn sender_and_sleeper() -> (Scheduler, Vec<VcpuKey>) {
    let (s, keys) = machine(1, 2);
    let _ = switch(&s, 0, 0);
    assert!(s.block(keys[0], 0, || true));
    assert_eq!(switch(&s, 0, 0).0.next, Some(keys[1]));
    assert!(s.block(keys[1], 0, || true));
    let _ = s.wake(keys[0], None, 0);
    assert_eq!(switch(&s, 0, 0).0.next, Some(keys[0]));
    (s, keys)
}

#[test]
fn who_wakes_up_for_a_message_lets_the_sender_go_on_for_a_while() {
    let (s, keys) = sender_and_sleeper();
    let _ = s.wake(keys[1], Some(keys[0]), MS / 10);
    let (d, _) = switch(&s, 0, MS / 10);
    let slice = SENDER_SLICE_NS;
    assert_eq!((d.next, d.slice_ns), (Some(keys[0]), slice - MS / 10));
    assert_eq!(switch(&s, 0, slice).0.next, Some(keys[1]), "and no longer");

    let (s, keys) = sender_and_sleeper();
    let _ = s.wake(keys[1], Some(keys[0]), MS / 10);
    let _ = switch(&s, 0, MS / 10);
    assert!(s.block(keys[0], MS / 5, || true));
    assert_eq!(
        switch(&s, 0, MS / 5).0.next,
        Some(keys[1]),
        "or until it sleeps"
    );

    // What else it wakes up for does not wait, nor does it wait for another one than the sender.
    for sender in [None, Some(VcpuKey(40))] {
        let (s, keys) = sender_and_sleeper();
        assert_eq!(s.wake(keys[1], sender, MS / 10), Kick::Reschedule(0));
        assert_eq!(switch(&s, 0, MS / 10).0.next, Some(keys[1]));
    }
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
    assert_eq!(s.wake(keys[0], None, 13), Kick::None);
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
fn who_is_retired_can_only_be_removed() {
    let (s, keys) = machine(1, 1);
    let _ = switch(&s, 0, 0);
    assert_eq!(s.retire(keys[0], 1), Kick::Reschedule(0));
    assert!(!s.is_up(keys[0]));
    let _ = s.take_down(keys[0], 1);
    assert_eq!(s.bring_up(keys[0], 1), (false, Kick::None));
    assert_eq!(s.wake(keys[0], None, 1), Kick::None);
    assert_eq!(s.remove(keys[0], 1), Err(Errno::EBUSY));
    assert_eq!(switch(&s, 0, 2).0.next, None);
    s.remove(keys[0], 3).unwrap();
    assert_eq!(s.add(&CpuMask::ALL, 256, 3), Ok(keys[0]));
    assert!(s.bring_up(keys[0], 3).0, "a new life");
}

#[test]
fn idle_processors_take_work() {
    let (s, keys) = machine(2, 2);
    // Both on processor 0's queue.
    for &key in &keys {
        let _ = s.set_affinity(key, &CpuMask::one(0), 0).unwrap();
        let _ = s.set_affinity(key, &CpuMask::ALL, 0).unwrap();
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
    assert_eq!(s.wake(keys[0], None, 2), Kick::None);
    assert_eq!(s.pick_next(1, 2).next, None);
    assert_eq!(s.pick_next(0, 2).next, None);
    assert_eq!(
        s.context_saved(keys[0], 3),
        Kick::Reschedule(0),
        "now any processor may, where it was if possible"
    );
    assert_eq!(s.pick_next(1, 3).next, Some(keys[0]), "this one came first");
    assert_eq!(s.pick_next(0, 3).next, None);
    // Waking up on a busy home goes to whoever is idle.
    assert_eq!(s.home(keys[1]), 1);
    assert_eq!(s.wake(keys[1], None, 4), Kick::Reschedule(0));
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
        s.set_affinity(keys[0], &CpuMask::one(7), 1),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        s.set_affinity(keys[0], &CpuMask::one(other), 1),
        Ok(Kick::Reschedule(home))
    );
    let d = s.pick_next(home, 1);
    assert_eq!(d.next, None);
    assert_eq!(s.pick_next(other, 1).next, None, "registers not saved yet");
    assert_eq!(s.context_saved(keys[0], 3), Kick::Reschedule(other));
    assert_eq!(switch(&s, other, 2).0.next, Some(keys[0]));
    assert_eq!(switch(&s, home, 2).0.next, None);
    assert!(s.affinity(keys[0]).contains(other) && !s.affinity(keys[0]).contains(home));
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
                if matches!(s.wake(key, None, 0), Kick::Reschedule(0)) {
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
            // Something may have woken it up between the choice and the end of the switch.
            let choose = || {
                let (decision, kick) = switch(&s, 0, 0);
                if kick == Kick::Reschedule(0) {
                    kicked.store(true, Ordering::SeqCst);
                }
                decision.next
            };
            while taken.load(Ordering::SeqCst) < EVENTS {
                if current.is_none() {
                    if !kicked.swap(false, Ordering::SeqCst) {
                        thread::yield_now();
                        continue;
                    }
                    current = choose();
                    continue;
                }
                taken.fetch_add(pending.swap(0, Ordering::SeqCst), Ordering::SeqCst);
                if s.block(key, 0, || pending.load(Ordering::SeqCst) == 0) {
                    current = choose();
                }
            }
        });
    });
    assert_eq!(taken.load(Ordering::SeqCst), EVENTS);
}

/// Many processors, of one group and of two, and vCPUs on real threads: a vCPU is never on two processors.
#[test]
fn never_on_two_processors() {
    random_threads([0, 1, 2, 3]);
    random_threads([0, 1, 16, 17]);
}

fn random_threads(cpus: [u32; 4]) {
    let (s, keys) = machine(cpus[3] + 1, 6);
    let owner: Vec<AtomicU32> = keys.iter().map(|_| AtomicU32::new(u32::MAX)).collect();
    thread::scope(|scope| {
        for cpu in cpus {
            let (s, keys, owner) = (&s, &keys, &owner);
            scope.spawn(move || {
                let mut current: Option<VcpuKey> = None;
                let mut x = cpu + 1;
                for now in 0..5000u64 {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let key = keys[(x >> 8) as usize % keys.len()];
                    match (x >> 24) % 8 {
                        0 => drop(current.map(|key| s.block(key, now, || true))),
                        1 | 2 => drop(s.wake(key, None, now)),
                        3 => drop(s.pause(key, now)),
                        4 => drop(s.unpause(key, now)),
                        5 => {
                            let chosen = 1 + u64::from(x >> 28) % 15;
                            let bits = (0..4).filter(|bit| chosen >> bit & 1 != 0);
                            let mask = bits.fold(0, |mask, bit| mask | 1 << cpus[bit]);
                            let mask = CpuMask::from_words(&[mask]);
                            let _ = s.set_affinity(key, &mask, now);
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
                        let _ = s.context_saved(prev, now * MS);
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
