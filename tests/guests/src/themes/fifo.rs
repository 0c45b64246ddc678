// SPDX-License-Identifier: MIT OR Apache-2.0
//! FIFO event channels (part of the theme `events`): control block, event array, priorities, links.

use crate::rt::events;
use crate::rt::memory::{self, Page};
use crate::rt::{cell::Racy, check::Checks, hyper};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

const PENDING: u32 = 1 << 31;
const MASKED: u32 = 1 << 30;
const LINKED: u32 = 1 << 29;
const LINK: u32 = (1 << 17) - 1;
/// Event words in a page of the array.
const PER_PAGE: u32 = 1024;
const SELF: u16 = 0x7ff0;

/// The control block, and the pages of the event array.
static CONTROL: Racy<Option<Page>> = Racy::new(None);
static ARRAY: Racy<[Option<Page>; 8]> = Racy::new([None; 8]);
/// First event of each queue that is not yet taken.
static HEADS: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];

fn word_at(va: u64) -> &'static AtomicU32 {
    // SAFETY: callers name words of the control block or the event array, which stay mapped and are only used like this.
    unsafe { AtomicU32::from_ptr(va as *mut u32) }
}

/// The event word of `port`.
fn event(port: u32) -> &'static AtomicU32 {
    let page = ARRAY.get()[(port / PER_PAGE) as usize].expect("a port within the array");
    word_at(page.0 + u64::from(port % PER_PAGE) * 4)
}

fn control() -> Page {
    CONTROL.get().expect("a control block")
}

/// Takes every queued event, highest priority first.
fn scan(found: &mut dyn FnMut(u32)) {
    let ready = word_at(control().0);
    let mut queues = ready.swap(0, SeqCst);
    while queues != 0 {
        let queue = queues.trailing_zeros();
        let local = &HEADS[queue as usize];
        let head = match local.load(SeqCst) {
            0 => word_at(control().0 + 8 + u64::from(queue) * 4).load(SeqCst),
            head => head,
        };
        if head == 0 {
            queues &= !(1 << queue);
            continue;
        }
        // Unlink first: the port may be queued again from then on.
        let before = event(head).fetch_and(!(LINKED | LINK), SeqCst);
        let next = before & LINK;
        local.store(next, SeqCst);
        if next == 0 {
            queues &= !(1 << queue);
        }
        if before & (PENDING | MASKED) == PENDING {
            event(head).fetch_and(!PENDING, SeqCst);
            found(head);
        }
        queues |= ready.swap(0, SeqCst);
    }
}

fn init_control(frame: u64, offset: u32, vcpu: u32) -> (i64, u8) {
    let mut argument = [frame, u64::from(offset) | u64::from(vcpu) << 32, 0];
    (hyper::event_op(11, &mut argument), argument[2] as u8)
}

fn expand(frame: u64) -> i64 {
    hyper::event_op(12, &mut { frame })
}

fn set_priority(port: u32, priority: u32) -> i64 {
    hyper::event_op(13, &mut events::Small(port, priority, 0))
}

fn unmask(port: u32) {
    event(port).fetch_and(!MASKED, SeqCst);
    events::unmask(port);
}

/// Runs the checks.
pub fn run(t: &mut Checks) {
    events::disable();
    refusals(t);
    switch(t);
    delivery(t);
    priorities(t);
    masking(t);
    storm(t);
    corrupted_links(t);
    more_ports(t);
    again_after_reset(t);
}

fn refusals(t: &mut Checks) {
    let page = Page::take();
    t.refused("array before the control block", expand(page.mfn()));
    for frame in [
        1 << 35,
        u64::MAX,
        crate::themes::pagetypes::hypervisor_frame(),
        memory::root(),
    ] {
        t.refused("control block in a bad frame", init_control(frame, 0, 0).0);
    }
    for offset in [1, 4, 4096, 4096 - 64, u32::MAX] {
        t.refused(
            "control block at a bad offset",
            init_control(page.mfn(), offset, 0).0,
        );
    }
    t.refused(
        "control block of no vCPU",
        init_control(page.mfn(), 0, 4000).0,
    );
}

fn switch(t: &mut Checks) {
    let (page, array) = (Page::take(), Page::take());
    // A channel from before the switch is carried over with its bits.
    let (_, old) = events::bind_ipi(0);
    t.ok("unmask the old channel", events::unmask(old));
    let (result, bits) = init_control(page.mfn(), 0, 0);
    t.equal("control block", (result, bits), (0, 17));
    CONTROL.replace(Some(page));
    events::set_scanner(scan);
    t.refused(
        "control block twice (188)",
        init_control(page.mfn(), 0, 0).0,
    );
    t.refused(
        "control block elsewhere (188)",
        init_control(Page::take().mfn(), 64, 0).0,
    );
    array.fill(u64::from(MASKED) | u64::from(MASKED) << 32);
    t.ok("event array", expand(array.mfn()));
    let mut pages = [None; 8];
    pages[0] = Some(array);
    ARRAY.replace(pages);
    unmask(old);
    events::clear();
    t.ok("send on the old channel", events::send(old));
    events::enable();
    t.equal("old channel delivered by FIFO", events::count(old), 1);
    events::disable();
    t.ok("close", events::close(old));
    t.refused("array in a bad frame", expand(1 << 35));
    t.refused(
        "array in the hypervisor",
        expand(crate::themes::pagetypes::hypervisor_frame()),
    );
}

fn open(t: &mut Checks) -> u32 {
    let (result, port) = events::bind_ipi(0);
    t.ok("bind", result);
    unmask(port);
    port
}

fn delivery(t: &mut Checks) {
    let port = open(t);
    events::clear();
    t.ok("send", events::send(port));
    let word = event(port).load(SeqCst);
    t.equal(
        "pending and linked",
        word & (PENDING | LINKED),
        PENDING | LINKED,
    );
    t.that("queue ready", word_at(control().0).load(SeqCst) != 0);
    t.that("upcall pending", memory::upcall_pending() != 0);
    events::enable();
    t.equal("delivered", events::count(port), 1);
    t.equal(
        "word at rest",
        event(port).load(SeqCst) & (PENDING | LINKED),
        0,
    );
    for n in 2..50 {
        t.ok("send again", events::send(port));
        t.equal("delivered again", events::count(port), n);
    }
    events::disable();
    let ports: [u32; 30] = core::array::from_fn(|_| open(t));
    events::clear();
    ports
        .iter()
        .for_each(|port| t.ok("send in order", events::send(*port)));
    events::enable();
    let kept = ports
        .iter()
        .enumerate()
        .all(|(n, port)| events::entry(n) == *port);
    t.that("first in, first out", events::logged() == 30 && kept);
    events::disable();
    ports
        .iter()
        .for_each(|port| t.ok("close", events::close(*port)));
    t.ok("close", events::close(port));
}

fn priorities(t: &mut Checks) {
    let ports: [u32; 16] = core::array::from_fn(|_| open(t));
    for (priority, port) in ports.iter().enumerate() {
        t.ok("priority", set_priority(*port, 15 - priority as u32));
    }
    t.refused("priority 16", set_priority(ports[0], 16));
    t.refused("priority of a port out of range", set_priority(u32::MAX, 3));
    events::disable();
    events::clear();
    ports
        .iter()
        .for_each(|port| t.ok("send, lowest first", events::send(*port)));
    events::enable();
    let sorted = ports
        .iter()
        .rev()
        .enumerate()
        .all(|(n, port)| events::entry(n) == *port);
    t.that("highest first", events::logged() == 16 && sorted);
    events::disable();
    // Changed while linked: delivered once by the old queue, later by the new one.
    t.ok("send", events::send(ports[0]));
    t.ok("priority changed while linked", set_priority(ports[0], 0));
    events::clear();
    events::enable();
    t.equal("delivered once", events::count(ports[0]), 1);
    t.ok("send by the new queue", events::send(ports[0]));
    t.equal("delivered by the new queue", events::count(ports[0]), 2);
    events::disable();
    ports
        .iter()
        .for_each(|port| t.ok("close", events::close(*port)));
}

fn masking(t: &mut Checks) {
    let port = open(t);
    event(port).fetch_or(MASKED, SeqCst);
    events::clear();
    events::enable();
    t.ok("send masked", events::send(port));
    t.equal("nothing delivered", events::count(port), 0);
    t.that("pending", event(port).load(SeqCst) & PENDING != 0);
    unmask(port);
    t.equal("delivered by unmasking", events::count(port), 1);
    events::disable();
    t.ok("send", events::send(port));
    t.ok("close while linked", events::close(port));
    events::clear();
    events::enable();
    events::disable();
    let again = open(t);
    t.ok("send on the port's successor", events::send(again));
    events::clear();
    events::enable();
    t.equal("successor delivered", events::count(again), 1);
    events::disable();
    t.ok("close", events::close(again));
}

fn storm(t: &mut Checks) {
    let ports: [u32; 8] = core::array::from_fn(|_| open(t));
    let mut random = crate::rt::random::Random(9);
    ports
        .iter()
        .for_each(|port| t.ok("priority", set_priority(*port, random.below(16) as u32)));
    events::clear();
    events::enable();
    let mut sent = 0;
    for _ in 0..20_000 {
        let port = ports[random.below(8) as usize];
        sent += usize::from(events::send(port) == 0);
        if random.below(100) == 0 {
            set_priority(port, random.below(16) as u32);
        }
    }
    t.equal(
        "every event delivered",
        (sent, events::logged()),
        (20_000, 20_000),
    );
    events::disable();
    ports
        .iter()
        .for_each(|port| t.ok("close", events::close(*port)));
}

/// The array and the block are ours to write: rubbish in them may lose our events, nothing else.
fn corrupted_links(t: &mut Checks) {
    let ports: [u32; 6] = core::array::from_fn(|_| open(t));
    let mut random = crate::rt::random::Random(505);
    for _ in 0..3000 {
        for port in ports {
            events::send(port);
            if random.below(3) == 0 {
                event(port).store(random.next() as u32, SeqCst);
            }
        }
        let head = control().0 + 8 + random.below(16) * 4;
        word_at(head).store(random.next() as u32, SeqCst);
        word_at(control().0).store(random.next() as u32, SeqCst);
        memory::take_upcall_pending();
    }
    ports.iter().for_each(|port| {
        event(*port).store(MASKED, SeqCst);
        events::close(*port);
    });
    t.that(
        "alive",
        hyper::call(philoxen_abi::hypercall::XEN_VERSION, [0; 5]) > 0,
    );
}

fn more_ports(t: &mut Checks) {
    let mut pages = ARRAY.get();
    for place in pages.iter_mut().take(4).skip(1) {
        let page = Page::take();
        page.fill(u64::from(MASKED) | u64::from(MASKED) << 32);
        t.ok("next page of the array", expand(page.mfn()));
        *place = Some(page);
    }
    ARRAY.replace(pages);
    let mut last = 0;
    for _ in 0..3000 {
        let (result, port) = events::alloc_unbound(SELF, SELF);
        if result == 0 {
            last = port.max(last);
        }
    }
    t.note("ports beyond the first page", last > PER_PAGE, &last);
    t.ok("close the last", events::close(last));
    let (result, port) = events::bind_ipi(0);
    t.equal("the last again", (result, port), (0, last));
    event(port).store(0, SeqCst);
    t.ok("send on a high port", events::send(port));
    t.that(
        "pending in its page",
        event(port).load(SeqCst) & PENDING != 0,
    );
    (1..=last).for_each(|port| {
        events::close(port);
    });
}

fn again_after_reset(t: &mut Checks) {
    for _ in 0..3 {
        t.ok(
            "reset (343, 505)",
            hyper::event_op(10, &mut events::Small(u32::from(SELF), 0, 0)),
        );
        HEADS.iter().for_each(|head| head.store(0, SeqCst));
        let (page, array) = (Page::take(), Page::take());
        t.ok(
            "control block after reset",
            init_control(page.mfn(), 64, 0).0,
        );
        CONTROL.replace(Some(Page(page.0 + 64)));
        array.fill(0);
        t.ok("array after reset", expand(array.mfn()));
        let mut pages = [None; 8];
        pages[0] = Some(array);
        ARRAY.replace(pages);
        let port = open(t);
        events::clear();
        t.ok("send", events::send(port));
        events::enable();
        t.equal("delivered after reset", events::count(port), 1);
        events::disable();
    }
}
