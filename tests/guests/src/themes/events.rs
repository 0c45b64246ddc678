// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels: binding, sending, masking, polling, closing; 2-level first, then FIFO (xen/event_channel.h).
//!
//! Names end with the number of the advisory whose attack the check repeats.

use crate::rt::events::{self, Small};
use crate::rt::memory;
use crate::rt::{check::Checks, hyper, random::Random, time};
use crate::themes::fifo;
use philoxen_abi::addr::HYPERVISOR_START;
use philoxen_abi::shared::vcpu_info::PENDING_SEL;

const SELF: u16 = 0x7ff0;
/// Statuses of `EVTCHNOP_status`.
const CLOSED: u32 = 0;
const UNBOUND: u32 = 1;
const INTERDOMAIN: u32 = 2;
const VIRQ: u32 = 4;
const IPI: u32 = 5;

/// Runs the theme.
pub fn run(t: &mut Checks) {
    events::disable();
    channels(t);
    upcalls(t);
    ordering(t);
    refusals(t);
    polling(t);
    closing(t);
    bound_vcpu(t);
    random_operations(t);
    exhaustion(t);
    reset(t);
    fifo::run(t);
}

/// `EVTCHNOP_status` of one of our ports: result, kind, vCPU, detail.
pub fn status(port: u32) -> (i64, u32, u32, u64) {
    let mut argument = [u64::from(SELF) | u64::from(port) << 32, 0, 0];
    let result = hyper::event_op(5, &mut argument);
    (
        result,
        argument[1] as u32,
        (argument[1] >> 32) as u32,
        argument[2],
    )
}

fn channels(t: &mut Checks) {
    let (result, ipi) = events::bind_ipi(0);
    t.ok("bind IPI", result);
    t.that("port is not 0", ipi != 0);
    t.equal("status of an IPI", status(ipi).1, IPI);
    let (result, timer) = events::bind_virq(0, 0);
    t.ok("bind VIRQ", result);
    t.equal(
        "status of a VIRQ",
        (status(timer).1, status(timer).3 as u32),
        (VIRQ, 0),
    );
    t.refused("bind a VIRQ twice", events::bind_virq(0, 0).0);
    let (result, open) = events::alloc_unbound(SELF, SELF);
    t.ok("allocate unbound", result);
    t.equal("status of an unbound channel", status(open).1, UNBOUND);
    t.equal(
        "send on an unbound channel is dropped",
        events::send(open),
        0,
    );
    let (result, other) = events::bind_interdomain(SELF, open);
    t.ok("bind to ourselves", result);
    t.equal(
        "status of one end",
        (status(open).1, status(open).3 >> 32),
        (INTERDOMAIN, u64::from(other)),
    );
    t.equal(
        "status of the other end",
        (status(other).1, status(other).3 >> 32),
        (INTERDOMAIN, u64::from(open)),
    );
    t.refused(
        "bind to a bound channel",
        events::bind_interdomain(SELF, open).0,
    );
    let ports = [ipi, timer, open, other];
    let distinct = (0..4).all(|n| !ports[..n].contains(&ports[n]));
    t.that("ports are distinct", distinct);
    // Upcalls are masked: pending bits show what was sent.
    events::clear_pending(open);
    events::clear_pending(other);
    ports
        .iter()
        .for_each(|port| t.ok("unmask", events::unmask(*port)));
    t.ok("send", events::send(open));
    t.equal(
        "the other end is pending",
        (events::is_pending(open), events::is_pending(other)),
        (false, true),
    );
    t.that("upcall pending", memory::upcall_pending() != 0);
    let selector = memory::read(memory::vcpu_info() + PENDING_SEL as u64);
    t.equal("selector", selector >> (other / 64) & 1, 1);
    t.refused("send on a VIRQ", events::send(timer));
    t.ok("send an IPI", events::send(ipi));
    t.that("IPI pending", events::is_pending(ipi));
    events::clear();
    memory::take_upcall_pending();
    events::scan();
    t.equal(
        "scan finds both",
        (events::count(other), events::count(ipi)),
        (1, 1),
    );
    ports
        .iter()
        .for_each(|port| t.ok("close", events::close(*port)));
    t.equal("closed", status(ipi).1, CLOSED);
}

fn upcalls(t: &mut Checks) {
    let (_, port) = events::bind_ipi(0);
    t.ok("unmask", events::unmask(port));
    events::clear();
    t.ok("send while upcalls are masked", events::send(port));
    t.equal("no upcall yet", events::logged(), 0);
    events::enable();
    t.equal("upcall once unmasked", events::count(port), 1);
    t.equal("upcalls are on again after it", memory::upcall_mask(), 0);
    t.ok("send with upcalls on", events::send(port));
    t.equal(
        "upcall before the hypercall returns",
        events::count(port),
        2,
    );
    events::mask(port);
    t.ok("send on a masked channel", events::send(port));
    t.equal("masked channel makes no upcall", events::count(port), 2);
    t.that("but is pending", events::is_pending(port));
    t.ok("unmask the pending channel", events::unmask(port));
    t.equal("upcall by unmasking", events::count(port), 3);
    events::mask(port);
    t.ok("send masked", events::send(port));
    events::clear_pending(port);
    t.ok("unmask what is no longer pending", events::unmask(port));
    t.equal("no upcall", events::count(port), 3);
    // Several sends before the upcall are one event.
    events::disable();
    (0..5).for_each(|_| t.ok("send five times", events::send(port)));
    events::enable();
    t.equal("one event", events::count(port), 4);
    // A storm.
    for _ in 0..5000 {
        events::send(port);
    }
    t.equal("5000 upcalls", events::logged(), 5004);
    events::disable();
    t.ok("close", events::close(port));
}

fn ordering(t: &mut Checks) {
    let ports: [u32; 40] = core::array::from_fn(|_| events::bind_ipi(0).1);
    ports
        .iter()
        .for_each(|port| t.ok("unmask", events::unmask(*port)));
    events::disable();
    events::clear();
    ports
        .iter()
        .rev()
        .for_each(|port| t.ok("send", events::send(*port)));
    events::enable();
    t.equal("all forty", events::logged(), 40);
    t.that(
        "each once",
        ports.iter().all(|port| events::count(*port) == 1),
    );
    events::disable();
    ports
        .iter()
        .for_each(|port| t.ok("close", events::close(*port)));
}

fn refusals(t: &mut Checks) {
    for port in [0, 4095, 4096, 100_000, u32::MAX] {
        t.refused("send on no port", events::send(port));
        t.refused("close no port", events::close(port));
        t.refused(
            "status beyond all ports",
            if port < 4096 { -1 } else { status(port).0 },
        );
        t.refused("bind to no port", events::bind_interdomain(SELF, port).0);
        t.refused(
            "no port to a vCPU",
            hyper::event_op(8, &mut Small(port, 0, 0)),
        );
    }
    for virq in [24, 100, u32::MAX] {
        t.refused("no such VIRQ", events::bind_virq(virq, 0).0);
    }
    for vcpu in [1000, 8192, u32::MAX] {
        t.refused("VIRQ of no vCPU", events::bind_virq(0, vcpu).0);
        t.refused("IPI of no vCPU", events::bind_ipi(vcpu).0);
    }
    t.refused("global VIRQ on another vCPU", events::bind_virq(3, 5).0);
    t.refused("unbound for no domain", events::alloc_unbound(99, SELF).0);
    t.refused("bind to no domain", events::bind_interdomain(99, 1).0);
    t.refused(
        "unknown operation",
        hyper::event_op(99, &mut Small(0, 0, 0)),
    );
    let before = open_ports();
    for place in [HYPERVISOR_START + (1 << 42), 0x1000, 1 << 47, u64::MAX - 3] {
        for cmd in [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13] {
            let args = [cmd, place, 0, 0, 0];
            let result = hyper::call(philoxen_abi::hypercall::EVENT_CHANNEL_OP, args);
            t.equal("argument at a bad place", result, -14);
        }
    }
    t.equal("no port leaked by refusals", open_ports(), before);
}

/// How many of the first ports are in use.
fn open_ports() -> usize {
    (1..512).filter(|port| status(*port).1 != CLOSED).count()
}

fn polling(t: &mut Checks) {
    let (_, port) = events::bind_ipi(0);
    events::mask(port);
    let start = time::now();
    t.ok(
        "poll with a timeout (221)",
        events::poll(&mut [port], start + 5_000_000),
    );
    let spent = time::now() - start;
    t.note(
        "timeout met",
        (5_000_000..2_000_000_000).contains(&spent),
        &spent,
    );
    t.ok("send to the polled port", events::send(port));
    let start = time::now();
    t.ok(
        "poll on what is pending",
        events::poll(&mut [port], start + 5_000_000_000),
    );
    t.that("no wait", time::now() - start < 4_000_000_000);
    let mut many = [port; 128];
    t.ok(
        "poll on the most ports",
        events::poll(&mut many, time::now() + 1000),
    );
    let mut over = [port; 129];
    t.refused(
        "poll on too many",
        events::poll(&mut over, time::now() + 1000),
    );
    events::clear_pending(port);
    for bad in [4095, 4096, 200_000, u32::MAX] {
        t.refused(
            "poll on no port",
            events::poll(&mut [bad, port], time::now() + 1000),
        );
    }
    t.ok(
        "poll on nothing (221)",
        events::poll(&mut [], time::now() + 1000),
    );
    let mut argument = [HYPERVISOR_START + (1 << 42), 1, time::now() + 1000];
    t.refused(
        "poll on ports at a bad place",
        hyper::sched_op(3, &mut argument),
    );
    t.ok("poll with a time gone by", events::poll(&mut [port], 1));
    t.ok("close", events::close(port));
}

fn closing(t: &mut Checks) {
    let (_, port) = events::bind_ipi(0);
    t.ok("unmask", events::unmask(port));
    events::disable();
    t.ok("send", events::send(port));
    t.ok("close while pending", events::close(port));
    events::clear();
    events::enable();
    events::disable();
    t.that("at most one stray event", events::count(port) <= 1);
    t.refused("send on the closed port", events::send(port));
    let (_, again) = events::bind_ipi(0);
    t.that("new channel is not pending", !events::is_pending(again));
    t.ok("close again", events::close(again));
    let (_, open) = events::alloc_unbound(SELF, SELF);
    let (_, other) = events::bind_interdomain(SELF, open);
    t.ok("close one end", events::close(open));
    t.equal("other end is unbound", status(other).1, UNBOUND);
    let (result, third) = events::bind_interdomain(SELF, other);
    t.ok("bind again", result);
    let (_, spare) = events::alloc_unbound(SELF, SELF);
    for port in [third, other, spare] {
        events::close(port);
    }
    t.equal("nothing left", open_ports(), 0);
}

fn bound_vcpu(t: &mut Checks) {
    let (_, port) = events::alloc_unbound(SELF, SELF);
    t.ok("to vCPU 0", hyper::event_op(8, &mut Small(port, 0, 0)));
    t.refused("to no vCPU", hyper::event_op(8, &mut Small(port, 4000, 0)));
    let (_, timer) = events::bind_virq(0, 0);
    t.refused(
        "per-vCPU VIRQ moved",
        hyper::event_op(8, &mut Small(timer, 0, 0)),
    );
    let (_, ipi) = events::bind_ipi(0);
    t.refused("IPI moved", hyper::event_op(8, &mut Small(ipi, 0, 0)));
    [port, timer, ipi]
        .iter()
        .for_each(|port| t.ok("close", events::close(*port)));
}

/// Random operations against a table of what should be open.
fn random_operations(t: &mut Checks) {
    let mut random = Random(0xe7e7);
    let mut open = [false; 512];
    let mut wrong = 0;
    for _ in 0..20_000 {
        let port = random.below(512) as u32;
        let was = open[port as usize];
        match random.below(5) {
            0 => {
                let (result, port) = events::bind_ipi(0);
                if result == 0 && port >= 512 {
                    wrong += u32::from(events::close(port) != 0);
                } else if result == 0 {
                    wrong += u32::from(open[port as usize]);
                    open[port as usize] = true;
                }
            }
            1 => {
                wrong += u32::from((events::close(port) == 0) != was);
                open[port as usize] = false;
            }
            2 => wrong += u32::from((events::send(port) == 0) != was),
            3 => wrong += u32::from((status(port).1 == IPI) != was),
            _ => {
                events::unmask(port);
            }
        }
        if open.iter().filter(|open| **open).count() > 190 {
            (1..512)
                .filter(|port| open[*port as usize])
                .for_each(|port| {
                    events::close(port);
                });
            open = [false; 512];
        }
    }
    t.equal("results that contradict the table", wrong, 0);
    (1..512)
        .filter(|port| open[*port as usize])
        .for_each(|port| t.ok("close", events::close(port)));
}

fn exhaustion(t: &mut Checks) {
    let mut last = 0;
    let mut count = 0_u32;
    loop {
        let (result, port) = events::alloc_unbound(SELF, SELF);
        if result != 0 {
            t.refused("out of ports", result);
            break;
        }
        last = port.max(last);
        count += 1;
        if count > 200_000 {
            break;
        }
    }
    t.note("number of ports", (1000..=4095).contains(&count), &count);
    t.equal("all ports used", last, count);
    t.refused("still out of ports (317)", events::bind_ipi(0).0);
    t.refused("no port for a VIRQ (496)", events::bind_virq(0, 0).0);
    (1..=last).for_each(|port| {
        events::close(port);
    });
    let (result, port) = events::bind_virq(0, 0);
    t.ok("ports again, VIRQ still free (496)", result);
    t.ok("close", events::close(port));
}

fn reset(t: &mut Checks) {
    for _ in 0..8 {
        let ports: [u32; 20] = core::array::from_fn(|_| events::bind_ipi(0).1);
        let (_, open) = events::alloc_unbound(SELF, SELF);
        events::bind_interdomain(SELF, open);
        ports.iter().for_each(|port| {
            events::send(*port);
        });
        t.ok(
            "reset (343)",
            hyper::event_op(10, &mut Small(u32::from(SELF), 0, 0)),
        );
        let left = ports
            .iter()
            .filter(|port| status(**port).1 != CLOSED)
            .count();
        t.equal("all closed by reset", left, 0);
    }
    t.refused(
        "reset of no domain",
        hyper::event_op(10, &mut Small(99, 0, 0)),
    );
    memory::take_upcall_pending();
    let (result, port) = events::bind_ipi(0);
    t.ok("channels after reset", result);
    t.ok("close", events::close(port));
}
