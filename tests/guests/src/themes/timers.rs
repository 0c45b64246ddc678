// SPDX-License-Identifier: MIT OR Apache-2.0
//! Time: the record in `vcpu_info`, timers, run states, the wall clock (xen/vcpu.h).
//!
//! Upper bounds are generous, for the machine under test may be slow; lower bounds are exact.

use crate::rt::memory::{self, Page};
use crate::rt::{check::Checks, events, hyper, time};
use philoxen_abi::addr::HYPERVISOR_START;
use philoxen_abi::hypercall as nr;
use philoxen_abi::shared::shared_info::{WALLCLOCK, WALLCLOCK_NSEC};

const MS: u64 = 1_000_000;
/// How late anything may be.
const LATE: u64 = 1_500 * MS;
const SINGLESHOT: u64 = 8;
const STOP_SINGLESHOT: u64 = 9;
const PERIODIC: u64 = 6;
const STOP_PERIODIC: u64 = 7;

/// Runs the theme.
pub fn run(t: &mut Checks) {
    events::disable();
    record(t);
    let (result, port) = events::bind_virq(0, 0);
    t.ok("bind VIRQ_TIMER", result);
    t.ok("unmask", events::unmask(port));
    // A new vCPU may have a periodic timer running, as the first guests of this interface expected.
    t.ok(
        "no periodic timer",
        hyper::call(nr::VCPU_OP, [STOP_PERIODIC, 0, 0, 0, 0]),
    );
    events::enable();
    events::disable();
    single_shot(t, port);
    refusals(t);
    timer_op(t, port);
    periodic(t, port);
    polling(t);
    run_states(t);
    time_area(t);
    vcpu_info_elsewhere(t, port);
    wall_clock(t);
}

fn record(t: &mut Checks) {
    let first = time::record();
    t.equal("version is even", first.version & 1, 0);
    t.that("scale is set", first.mul != 0);
    t.that("known flags alone", first.flags & !3 == 0);
    let mut last = time::now();
    let mut backwards = 0;
    for _ in 0..200_000 {
        let now = time::now();
        backwards += u32::from(now < last);
        last = now;
    }
    t.equal("system time never goes back", backwards, 0);
    let start = (time::tsc(), time::now());
    time::spin(20 * MS);
    let end = (time::tsc(), time::now());
    t.that(
        "20 ms pass in 20 ms",
        (20 * MS..LATE).contains(&(end.1 - start.1)),
    );
    t.that("counter passes with it", end.0 > start.0);
}

/// Waits for an event on `port` by blocking: system time of its coming, or `None` after two seconds.
fn wait(port: u32) -> Option<u64> {
    let end = time::now() + 2_000 * MS;
    while events::count(port) == 0 {
        if time::now() > end {
            return None;
        }
        events::block();
    }
    let now = time::now();
    events::disable();
    Some(now)
}

fn singleshot(at: u64, flags: u64) -> i64 {
    hyper::vcpu_op(SINGLESHOT, 0, &mut [at, flags])
}

fn single_shot(t: &mut Checks, port: u32) {
    for delay in [1, 3, 10, 30] {
        events::clear();
        let due = time::now() + delay * MS;
        t.ok("single shot", singleshot(due, 0));
        let came = wait(port);
        let good = came.is_some_and(|came| came + 100_000 >= due && came < due + LATE);
        t.note(
            "single shot on time",
            good,
            &came.map(|came| came as i64 - due as i64),
        );
    }
    events::clear();
    t.ok("single shot in the past", singleshot(1, 0));
    t.that("comes at once", wait(port).is_some());
    events::clear();
    let late = singleshot(1, 1);
    t.note(
        "in the past with the future flag",
        late == -62 || late == 0,
        &late,
    );
    if late == 0 {
        wait(port);
    }
    events::clear();
    t.ok("single shot", singleshot(time::now() + 5 * MS, 0));
    t.ok(
        "stopped",
        hyper::call(nr::VCPU_OP, [STOP_SINGLESHOT, 0, 0, 0, 0]),
    );
    events::enable();
    time::spin(20 * MS);
    hyper::sched_op(0, &mut 0_u64);
    events::disable();
    t.equal("stopped timer is silent", events::count(port), 0);
    events::clear();
    // Set again and again: the last counts.
    let first = time::now();
    (0..1000).for_each(|n| {
        singleshot(first + 3_600_000 * MS + n, 0);
    });
    let due = time::now() + 4 * MS;
    t.ok("single shot after a thousand", singleshot(due, 0));
    t.that(
        "the last counts",
        wait(port).is_some_and(|came| came + 100_000 >= due),
    );
}

fn refusals(t: &mut Checks) {
    let far = HYPERVISOR_START + (1 << 42);
    for place in [far, 0x1000, 1 << 47] {
        for cmd in [PERIODIC, SINGLESHOT, 4, 5, 10, 13] {
            t.equal(
                "argument at a bad place",
                hyper::call(nr::VCPU_OP, [cmd, 0, place, 0, 0]),
                -14,
            );
        }
    }
    for vcpu in [4000, 0xffff_ffff] {
        t.refused("no such vCPU", hyper::vcpu_op(3, vcpu, &mut 0_u64));
        t.refused(
            "run state of no vCPU",
            hyper::vcpu_op(4, vcpu, &mut [0_u64; 6]),
        );
    }
    t.equal("vCPU 0 is up", hyper::vcpu_op(3, 0, &mut 0_u64), 1);
    t.refused("unknown operation", hyper::vcpu_op(99, 0, &mut 0_u64));
    t.refused(
        "period of 0.1 us",
        hyper::vcpu_op(PERIODIC, 0, &mut 100_u64),
    );
    t.refused(
        "period of for ever",
        hyper::vcpu_op(PERIODIC, 0, &mut { u64::MAX }),
    );
}

fn timer_op(t: &mut Checks, port: u32) {
    events::clear();
    let due = time::now() + 5 * MS;
    t.ok(
        "set_timer_op",
        hyper::call(nr::SET_TIMER_OP, [due, 0, 0, 0, 0]),
    );
    let came = wait(port);
    t.that(
        "on time",
        came.is_some_and(|came| came + 100_000 >= due && came < due + LATE),
    );
    events::clear();
    t.ok(
        "set_timer_op",
        hyper::call(nr::SET_TIMER_OP, [time::now() + 5 * MS, 0, 0, 0, 0]),
    );
    t.ok("cleared by 0", hyper::call(nr::SET_TIMER_OP, [0; 5]));
    events::enable();
    time::spin(15 * MS);
    hyper::sched_op(0, &mut 0_u64);
    events::disable();
    t.equal("silent", events::count(port), 0);
}

fn periodic(t: &mut Checks, port: u32) {
    events::clear();
    t.ok(
        "period of 5 ms",
        hyper::vcpu_op(PERIODIC, 0, &mut { 5 * MS }),
    );
    let start = time::now();
    // The timer need not run while the vCPU is blocked, so it is not.
    events::enable();
    while events::count(port) < 10 && time::now() < start + 3_000 * MS {
        hyper::sched_op(0, &mut 0_u64);
    }
    events::disable();
    let spent = time::now() - start;
    t.note(
        "ten periods",
        events::count(port) >= 10 && spent >= 40 * MS,
        &spent,
    );
    t.ok(
        "stop",
        hyper::call(nr::VCPU_OP, [STOP_PERIODIC, 0, 0, 0, 0]),
    );
    events::enable();
    events::clear();
    time::spin(20 * MS);
    hyper::sched_op(0, &mut 0_u64);
    events::disable();
    t.that("silent", events::count(port) <= 1);
}

fn polling(t: &mut Checks) {
    let start = time::now();
    t.ok(
        "poll for nothing but time",
        events::poll(&mut [], start + 8 * MS),
    );
    let spent = time::now() - start;
    t.note(
        "poll on time",
        (8 * MS - 100_000..LATE).contains(&spent),
        &spent,
    );
}

fn run_states(t: &mut Checks) {
    let page = Page::take();
    let mut place = page.0;
    t.ok("run-state area", hyper::vcpu_op(5, 0, &mut place));
    t.equal("running", page.word(0) as u32, 0);
    let mut state = [0_u64; 6];
    t.ok("run state", hyper::vcpu_op(4, 0, &mut state));
    t.equal("running by hypercall", state[0] as u32, 0);
    let blocked = state[4];
    t.ok("poll", events::poll(&mut [], time::now() + 20 * MS));
    t.ok("run state", hyper::vcpu_op(4, 0, &mut state));
    t.note(
        "blocked time grew",
        state[4] >= blocked + 15 * MS,
        &(blocked, state),
    );
    let total: u64 = state[2..].iter().sum();
    t.note(
        "times add up to system time",
        total <= time::now() && total + LATE > time::now(),
        &total,
    );
    t.note(
        "area agrees",
        page.word(4) >= blocked + 15 * MS,
        &page.word(4),
    );
    let unmapped = hyper::vcpu_op(5, 0, &mut 0x1000_u64);
    t.note(
        "area at an address that is not mapped",
        unmapped == 0 || unmapped == -14,
        &unmapped,
    );
    t.ok("poll", events::poll(&mut [], time::now() + MS));
    for place in [HYPERVISOR_START + (1 << 42), 1 << 47, u64::MAX - 3] {
        let result = hyper::vcpu_op(5, 0, &mut { place });
        // An address whose end wraps may be found out later, when the area is written.
        t.note(
            "area at an address that is not ours",
            result < 0 || place == u64::MAX - 3,
            &(place, result),
        );
        events::poll(&mut [], time::now() + MS);
    }
    t.that("alive", hyper::call(nr::XEN_VERSION, [0; 5]) > 0);
    let none = hyper::vcpu_op(5, 0, &mut 0_u64);
    t.note("no area", none == 0 || none == -14, &none);
}

fn time_area(t: &mut Checks) {
    let page = Page::take();
    let mut place = page.0;
    let result = hyper::vcpu_op(13, 0, &mut place);
    t.note(
        "secondary time record",
        result == 0 || result == -38,
        &result,
    );
    if result == 0 {
        let second = time::record_at(page.0);
        t.that(
            "is kept",
            second.is_some_and(|record| record.mul == time::record().mul),
        );
    }
}

/// Moves `vcpu_info` to a page of ours; events and time must follow.
fn vcpu_info_elsewhere(t: &mut Checks, port: u32) {
    let page = Page::take();
    let register = |frame: u64, offset: u32| {
        let mut argument = [frame, u64::from(offset)];
        hyper::vcpu_op(10, 0, &mut argument)
    };
    for (frame, offset) in [
        (1 << 35, 0),
        (u64::MAX, 0),
        (page.mfn(), 4096 - 63),
        (page.mfn(), u32::MAX),
        (memory::root(), 0),
    ] {
        t.refused("vcpu_info at a bad place", register(frame, offset));
    }
    events::clear();
    t.ok("vcpu_info moved", register(page.mfn(), 128));
    memory::set_vcpu_info(page.0 + 128);
    t.refused("moved twice", register(page.mfn(), 256));
    events::disable();
    t.that("time goes on there", time::record().mul != 0);
    let before = time::now();
    time::spin(MS);
    t.that("time rises there", time::now() > before);
    events::clear();
    let due = time::now() + 3 * MS;
    t.ok("single shot", singleshot(due, 0));
    t.that(
        "event arrives there",
        wait(port).is_some_and(|came| came + 100_000 >= due),
    );
}

fn wall_clock(t: &mut Checks) {
    let read = || {
        let (first, second) = (
            memory::shared_info() + WALLCLOCK as u64,
            memory::shared_info() + WALLCLOCK_NSEC as u64,
        );
        let (low, high) = (memory::read(first), memory::read(second));
        let seconds = (low >> 32) | (high >> 32) << 32;
        (low as u32, seconds, high as u32)
    };
    let (version, seconds, nanoseconds) = read();
    t.equal("version is even", version & 1, 0);
    t.that("version is not 0", version != 0);
    // 2020 to 2100.
    t.note(
        "seconds are a date of our time",
        (1_577_836_800..4_102_444_800).contains(&seconds),
        &seconds,
    );
    t.that("nanoseconds below a second", nanoseconds < 1_000_000_000);
    // XENPF_settime64 by Domain 0: the wall clock is the time given less the system time given.
    let mut argument = [0_u64; 17];
    argument[0] = 62 | 0x0300_0001 << 32;
    argument[1] = 1_700_000_000;
    argument[3] = 100_000_000_000;
    t.ok(
        "settime64",
        hyper::call(nr::PLATFORM_OP, [hyper::address(&mut argument), 0, 0, 0, 0]),
    );
    let after = read();
    t.that("version changed", after.0 != version && after.0 & 1 == 0);
    t.equal("seconds as set", after.1, 1_699_999_900);
    argument[0] = 62 | 0x0200_0001 << 32;
    t.equal(
        "wrong interface version",
        hyper::call(nr::PLATFORM_OP, [hyper::address(&mut argument), 0, 0, 0, 0]),
        -13,
    );
}
