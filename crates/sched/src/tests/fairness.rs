// SPDX-License-Identifier: MIT OR Apache-2.0
//! What vCPUs get: shares by weight, caps, bounded borrowing, latency, no starvation.

use super::sim::{HOG, Habit, MS, SECOND, Sim, US, on_demand};
use crate::{CpuMask, DEFAULT_WEIGHT, Warp};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// What each of `weights` is due of `cpus` processors, in parts of a million of one, where none can use more than one.
fn due(weights: &[u32], cpus: u64) -> Vec<u64> {
    let mut due: Vec<u64> = weights.iter().map(|_| 0).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| core::cmp::Reverse(weights[i]));
    let (mut cpus, mut total) = (
        cpus * 1_000_000,
        weights.iter().map(|&w| u64::from(w)).sum::<u64>(),
    );
    for i in order {
        let weight = u64::from(weights[i]);
        due[i] = (cpus * weight / total).min(1_000_000);
        cpus -= due[i];
        total -= weight;
    }
    due
}

fn assert_shares(weights: &[u32], cpus: u32, ns: u64) {
    let mut sim = Sim::new(cpus);
    for &weight in weights {
        sim.add(weight, HOG);
    }
    sim.run(SECOND);
    let got = sim.shares(ns);
    for (i, (got, due)) in got.iter().zip(due(weights, cpus.into())).enumerate() {
        let error = got.abs_diff(due);
        assert!(
            error <= 10_000,
            "{cpus} processors, weights {weights:?}: {i} got {got}, due {due}"
        );
    }
}

#[test]
fn shares_follow_weights_within_a_hundredth() {
    for cpus in 1..=4 {
        for count in 2..=8 {
            assert_shares(&vec![DEFAULT_WEIGHT; count], cpus, 10 * SECOND);
            let unequal: Vec<u32> = (1..=count as u32).map(|i| i * 64).collect();
            assert_shares(&unequal, cpus, 10 * SECOND);
        }
    }
    // More than a processor cannot be had; the rest is shared by the others.
    assert_shares(&[10_000, 256, 256, 256], 2, 10 * SECOND);
    assert_shares(&[10_000, 10_000, 512, 256, 256], 3, 10 * SECOND);
    assert_shares(&[65_535, 1], 1, 60 * SECOND);
}

#[test]
fn a_claim_that_could_not_be_met_is_not_kept() {
    // Guest 0 asks for more than a processor for a minute; then so many come that it is to share.
    let mut sim = Sim::new(2);
    sim.add(2560, HOG);
    sim.hogs(3);
    sim.run(60 * SECOND);
    sim.hogs(27);
    sim.run(SECOND);
    let got = sim.shares(10 * SECOND);
    assert!(got[0].abs_diff(500_000) < 10_000, "{}", got[0]);
}

#[test]
fn idle_time_is_no_claim() {
    let mut sim = Sim::new(1);
    sim.hogs(2);
    let late = sim.add(DEFAULT_WEIGHT, on_demand(100 * SECOND));
    sim.run(1);
    sim.sleep(late);
    sim.run(20 * SECOND);
    sim.wake(late);
    let got = sim.shares(3 * SECOND);
    assert!(got[late].abs_diff(333_333) < 10_000, "{got:?}");
}

#[test]
fn a_moment_of_sleep_costs_no_more_than_the_moment() {
    // Guest 0 is due a hundred times as much, and sleeps 10 us in every millisecond.
    let mut sim = Sim::new(1);
    let heavy = sim.add(
        25_600,
        Habit {
            run: 990 * US,
            sleep: 10 * US,
        },
    );
    sim.add(256, HOG);
    sim.run(SECOND);
    let got = sim.shares(10 * SECOND);
    assert!(got[heavy] > 960_000, "{got:?}");
}

#[test]
fn waking_up_beside_hogs_is_immediate() {
    for hogs in [1, 7, 31] {
        let mut sim = Sim::new(1);
        sim.hogs(hogs);
        let guest = sim.add(
            DEFAULT_WEIGHT,
            Habit {
                run: 20 * US,
                sleep: 7 * MS + 13 * US,
            },
        );
        sim.run(SECOND);
        sim.guests[guest].latencies.clear();
        sim.run(10 * SECOND);
        let latencies = &mut sim.guests[guest].latencies;
        latencies.sort_unstable();
        assert!(latencies.len() > 1000);
        assert_eq!(latencies.last(), Some(&0), "beside {hogs}");
    }
}

#[test]
fn warp_keeps_a_busy_guest_prompt_and_its_share() {
    let latency = |warp: u64| {
        let mut sim = Sim::new(1);
        sim.hogs(7);
        // It wants a fifth of the processor and is due an eighth.
        let guest = sim.add(
            DEFAULT_WEIGHT,
            Habit {
                run: 2 * MS,
                sleep: 8 * MS,
            },
        );
        let warp = Warp {
            value_ns: warp,
            ..Warp::default()
        };
        let _ = sim.s.set_warp(sim.guests[guest].key, warp, sim.now);
        sim.run(2 * SECOND);
        let share = sim.shares(10 * SECOND)[guest];
        let all = &sim.guests[guest].delays;
        (all.iter().sum::<u64>() / all.len() as u64, share)
    };
    let (straight, share) = latency(0);
    let (warped, warped_share) = latency(100 * SECOND);
    assert!(warped * 10 < straight, "{warped} of {straight}");
    assert!(share < 140_000, "{share}");
    assert!(warped_share > 190_000, "while it borrows: {warped_share}");
    // A warp that is soon used up is paid back.
    let (_, paid) = latency(50 * MS);
    assert!(paid < 140_000, "{paid}");
}

#[test]
fn warp_is_limited_in_time() {
    let mut sim = Sim::new(1);
    sim.hogs(1);
    let guest = sim.add(DEFAULT_WEIGHT, on_demand(1_000 * SECOND));
    let warp = Warp {
        value_ns: 3600 * SECOND,
        limit_ns: 30 * MS,
        unwarp_ns: 200 * MS,
    };
    sim.run(10 * MS);
    let _ = sim.s.set_warp(sim.guests[guest].key, warp, sim.now);
    assert_eq!(sim.s.warp(sim.guests[guest].key), warp);
    sim.run(SECOND);
    // It borrowed 30 ms and had to wait for the other one to catch up.
    let got = sim.shares(10 * SECOND);
    assert!(got[guest].abs_diff(500_000) < 10_000, "{got:?}");
    // Not warped again before 200 ms are over, however often it wakes up.
    let mut sim = Sim::new(1);
    sim.hogs(3);
    let guest = sim.add(
        DEFAULT_WEIGHT,
        Habit {
            run: 35 * MS,
            sleep: MS,
        },
    );
    let _ = sim.s.set_warp(sim.guests[guest].key, warp, sim.now);
    sim.run(SECOND);
    let got = sim.shares(10 * SECOND);
    assert!((150_000..=300_000).contains(&got[guest]), "{got:?}");
}

#[test]
fn caps_hold_and_are_used_up() {
    for cpus in [1, 2] {
        let mut sim = Sim::new(cpus);
        let capped = [sim.add(DEFAULT_WEIGHT, HOG), sim.add(DEFAULT_WEIGHT, HOG)];
        sim.cap(&capped, 40);
        assert_eq!(sim.s.cap(sim.guests[capped[1]].key), 40);
        let got = sim.shares(10 * SECOND);
        assert!(
            (got[0] + got[1]).abs_diff(400_000) < 10_000 && got[0].abs_diff(got[1]) < 40_000,
            "{cpus} processors: {got:?}"
        );
        let other = sim.add(DEFAULT_WEIGHT, HOG);
        let got = sim.shares(10 * SECOND);
        assert!(got[other] >= 590_000, "{got:?}");
        sim.cap(&capped, 0);
        sim.run(SECOND);
        let got = sim.shares(10 * SECOND);
        let third = u64::from(cpus) * 1_000_000 / 3;
        assert!(
            got.iter().all(|got| got.abs_diff(third) < 10_000),
            "{got:?}"
        );
    }
}

#[test]
fn pinned_guests_share_their_processor_and_leave_the_other() {
    let mut sim = Sim::new(2);
    for _ in 0..3 {
        sim.add_on(&CpuMask::one(0), DEFAULT_WEIGHT, HOG);
    }
    sim.hogs(2);
    sim.run(30 * SECOND);
    let got = sim.shares(10 * SECOND);
    for (guest, due) in [333_333, 333_333, 333_333, 500_000, 500_000]
        .iter()
        .enumerate()
    {
        assert!(got[guest].abs_diff(*due) < 10_000, "{got:?}");
    }
    // Their processor lags behind; who comes to the other one is no better off than those who are there.
    let late = sim.add(DEFAULT_WEIGHT, HOG);
    let got = sim.shares(2 * SECOND);
    assert!(got[late] < 350_000, "{got:?}");
    // One that may go everywhere again keeps nothing.
    let key = sim.guests[0].key;
    let kick = sim.s.set_affinity(key, &CpuMask::ALL, sim.now).unwrap();
    sim.follow(kick);
    sim.obey();
    let got = sim.shares(2 * SECOND);
    assert!(got[0] < 400_000, "{got:?}");
}

#[test]
fn soft_affinity_is_obeyed_where_nobody_loses() {
    let mut sim = Sim::new(2);
    sim.hogs(3);
    let key = sim.guests[0].key;
    let kick = sim
        .s
        .set_soft_affinity(key, &CpuMask::one(1), sim.now)
        .unwrap();
    sim.follow(kick);
    sim.obey();
    sim.run(SECOND);
    for _ in 0..100 {
        sim.run(MS);
        assert_ne!(sim.running(0), Some(0));
    }
    // With its processor taken it runs on the other, if that is idle.
    let mut sim = Sim::new(2);
    sim.add_on(&CpuMask::one(1), DEFAULT_WEIGHT, HOG);
    let guest = sim.add(DEFAULT_WEIGHT, on_demand(SECOND));
    let key = sim.guests[guest].key;
    sim.run(1);
    sim.sleep(guest);
    let _ = sim
        .s
        .set_soft_affinity(key, &CpuMask::one(1), sim.now)
        .unwrap();
    assert_eq!(sim.s.soft_affinity(key), CpuMask::one(1));
    sim.wake(guest);
    assert_eq!(sim.running(guest), Some(0));
}

#[test]
fn groups_of_processors_help_each_other() {
    // Forty processors are three groups.
    let mut sim = Sim::new(40);
    sim.hogs(39);
    let pinned = sim.add_on(
        &CpuMask::one(39),
        DEFAULT_WEIGHT,
        Habit { run: MS, sleep: MS },
    );
    // Whoever waits for the last processor is taken by it when it comes free, whatever group it waits in.
    let between = sim.add(DEFAULT_WEIGHT, HOG);
    sim.run(SECOND);
    let got = sim.shares(SECOND);
    assert!(got[pinned] > 300_000 && got[between] > 300_000, "{got:?}");
    assert!(got.iter().sum::<u64>() > 39_900_000);
}

/// Something that happens to a random guest.
#[derive(Clone, Copy, Debug)]
enum Act {
    Sleep,
    Wake,
    Pause,
    Unpause,
    Weight(u32),
    Hard(u64),
    Soft(u64),
    Warp(Warp),
    Cap(u32),
    Yield,
    Nothing,
}

fn acts() -> impl Strategy<Value = Vec<(u64, usize, Act)>> {
    let act = prop_oneof![
        4 => Just(Act::Sleep),
        4 => Just(Act::Wake),
        1 => Just(Act::Pause),
        2 => Just(Act::Unpause),
        1 => (1u32..2000).prop_map(Act::Weight),
        1 => (1u64..16).prop_map(Act::Hard),
        1 => (1u64..16).prop_map(Act::Soft),
        1 => (0..50 * MS, 0..20 * MS, 0..50 * MS).prop_map(|(value_ns, limit_ns, unwarp_ns)| {
            Act::Warp(Warp { value_ns, limit_ns, unwarp_ns })
        }),
        1 => (0u32..3).prop_map(|cap| Act::Cap(cap * 30)),
        1 => Just(Act::Yield),
        2 => Just(Act::Nothing),
    ];
    proptest::collection::vec((0..12 * MS, 0usize..6, act), 20..300)
}

fn perform(sim: &mut Sim, guest: usize, act: Act) {
    let (key, now) = (sim.guests[guest].key, sim.now);
    let mut kicks = Vec::new();
    match act {
        Act::Sleep => sim.sleep(guest),
        Act::Wake => sim.wake(guest),
        Act::Pause if sim.guests[guest].pauses < 2 => {
            sim.guests[guest].pauses += 1;
            kicks.push(sim.s.pause(key, now));
        }
        Act::Unpause if sim.guests[guest].pauses > 0 => {
            sim.guests[guest].pauses -= 1;
            kicks.push(sim.s.unpause(key, now));
        }
        Act::Weight(weight) => sim.s.set_weight(key, weight, now),
        Act::Hard(mask) => {
            let mask = CpuMask::from_words(&[mask]);
            kicks.extend(sim.s.set_affinity(key, &mask, now));
        }
        Act::Soft(mask) => {
            let mask = CpuMask::from_words(&[mask]);
            kicks.push(sim.s.set_soft_affinity(key, &mask, now).unwrap());
        }
        Act::Warp(warp) => kicks.push(sim.s.set_warp(key, warp, now)),
        Act::Cap(percent) => sim.cap(&[guest], percent),
        Act::Yield => {
            if let Some(cpu) = sim.running(guest) {
                sim.s.yield_now(key);
                kicks.push(crate::Kick::Reschedule(cpu));
            }
        }
        _ => {}
    }
    kicks.into_iter().for_each(|kick| sim.follow(kick));
    sim.obey();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever happens: work is conserved and nothing runs that must not (`Sim::check`), every nanosecond is accounted
    /// for, and nobody waits longer than weights, warps and allowances explain.
    #[test]
    fn any_life_is_orderly(cpus in 1u32..=4, acts in acts()) {
        let mut sim = Sim::new(cpus);
        for _ in 0..6 {
            sim.add(DEFAULT_WEIGHT, HOG);
        }
        let start = sim.now;
        for (ns, guest, act) in acts {
            sim.run(ns);
            perform(&mut sim, guest, act);
        }
        let total: u64 = sim.guests.iter()
            .map(|guest| sim.s.runstate(guest.key, sim.now).time.iter().sum::<u64>())
            .sum();
        prop_assert_eq!(total, 6 * (sim.now - start));
        // In the end all compete for processor 0 with the same weight: after their debts are paid, as equals.
        for guest in 0..6 {
            while sim.guests[guest].pauses != 0 {
                perform(&mut sim, guest, Act::Unpause);
            }
            for act in [Act::Wake, Act::Cap(0), Act::Warp(Warp::default()), Act::Hard(1), Act::Weight(256)] {
                perform(&mut sim, guest, act);
            }
        }
        sim.run(20 * SECOND);
        let got = sim.shares(6 * SECOND);
        for got in got {
            prop_assert!(got.abs_diff(166_666) < 10_000, "{}", got);
        }
    }

    /// Shares over ten seconds are within a hundredth of a processor of what the weights say, for any weights.
    #[test]
    fn any_weights_are_met(cpus in 1u32..=4, weights in proptest::collection::vec(16u32..4096, 2..9)) {
        assert_shares(&weights, cpus, 10 * SECOND);
    }

    /// Guests that sleep and wake as they like never keep a hog from its share.
    #[test]
    fn sleepers_take_no_more_than_their_share(habits in proptest::collection::vec((20u64..9000, 1u64..9000), 1..7)) {
        let mut sim = Sim::new(1);
        sim.hogs(1);
        for &(run, sleep) in &habits {
            sim.add(DEFAULT_WEIGHT, Habit { run: run * US, sleep: sleep * US });
        }
        sim.run(SECOND);
        let got = sim.shares(10 * SECOND);
        let share = 1_000_000 / (habits.len() as u64 + 1);
        prop_assert!(got[0] + 10_000 >= share, "{:?}", got);
    }
}
