// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ballooning and exchange: giving frames back, taking new ones, bad handles (part of the theme `pagetypes`).

use crate::rt::check::Checks;
use crate::rt::hyper::{self, Exchange, Reservation, ext, mmuext_one};
use crate::rt::memory::{self, PAGE, Page, pte};
use crate::themes::pagetypes::{hypervisor_frame, try_read};

/// Runs the checks.
pub fn run(t: &mut Checks) {
    balloon(t);
    balloon_refusals(t);
    exchange(t);
    exchange_refusals(t);
}

fn reservation(list: &mut [u64], order: u32) -> Reservation {
    let (extents, count) = (list.as_mut_ptr() as u64, list.len() as u64);
    Reservation {
        extents,
        count,
        order,
        domid: hyper::SELF as u16,
        ..Reservation::default()
    }
}

/// Gives the frames in `list` back: how many were taken.
pub fn decrease(list: &mut [u64]) -> i64 {
    hyper::memory_op(1, &mut reservation(list, 0))
}

/// Takes a new frame for `page`, whose own was given back, and maps it.
pub fn repopulate(page: Page) -> bool {
    let mut list = [page.pfn()];
    if hyper::memory_op(6, &mut reservation(&mut list, 0)) != 1 {
        return false;
    }
    memory::set_p2m(page.pfn(), list[0]);
    memory::m2p(list[0]) == page.pfn() && page.restore() == 0
}

fn current() -> i64 {
    hyper::memory_op(3, &mut 0x7ff0_u64)
}

fn balloon(t: &mut Checks) {
    const COUNT: usize = 128;
    let pages = Page::take_many(COUNT);
    let before = current();
    for round in 0..8 {
        let mut list: [u64; COUNT] = core::array::from_fn(|n| pages.plus(n as u64).mfn());
        for n in 0..COUNT as u64 {
            pages.plus(n).fill(0x5ec2_e700 + round);
            t.ok("unmap", pages.plus(n).unmap());
        }
        t.equal("balloon out", decrease(&mut list), COUNT as i64);
        t.equal("reservation sinks", current(), before - COUNT as i64);
        let gone = list.iter().all(|mfn| memory::m2p(*mfn) != pages.pfn());
        t.that("M2P forgets", gone);
        t.refused(
            "frame mapped after it was given back",
            pages.map(list[0], pte::RW),
        );
        t.refused(
            "frame pinned after it was given back",
            mmuext_one(ext::PIN_L1, list[1], 0),
        );
        t.equal("frame given back twice", decrease(&mut list[..1]), 0);
        let mut wanted: [u64; COUNT] = core::array::from_fn(|n| pages.plus(n as u64).pfn());
        let taken = hyper::memory_op(6, &mut reservation(&mut wanted, 0));
        t.equal("balloon in", taken, COUNT as i64);
        for (n, mfn) in wanted.iter().enumerate() {
            let page = pages.plus(n as u64);
            memory::set_p2m(page.pfn(), *mfn);
            t.equal("M2P knows", memory::m2p(*mfn), page.pfn());
            t.ok("map", page.restore());
        }
        t.equal("reservation rises", current(), before);
    }
    // A page that is still mapped or typed keeps its frame until the last reference goes.
    let (page, window) = (Page::take(), Page::take());
    page.set_word(0, 42);
    t.ok("second mapping", window.map(page.mfn(), pte::RO));
    let mfn = page.mfn();
    let taken = decrease(&mut [mfn]);
    t.that(
        "mapped frame given back or refused",
        taken == 0 || taken == 1,
    );
    t.equal("still readable", try_read(window.0), Some(42));
    t.ok("first mapping away", page.unmap());
    t.ok("second mapping away", window.unmap());
    if taken == 1 {
        t.equal("freed with its last reference", current(), before - 1);
        t.refused("freed frame mapped", window.map(mfn, pte::RO));
        t.that("new frame", repopulate(page));
    } else {
        t.ok("mapped again", page.restore());
    }
    t.ok("restore", window.restore());
    t.equal("reservation at the end", current(), before);
}

fn balloon_refusals(t: &mut Checks) {
    let before = current();
    let page = Page::take();
    for mfn in [hypervisor_frame(), 1 << 35, u64::MAX] {
        t.equal("give back what is not ours", decrease(&mut [mfn]), 0);
    }
    t.that(
        "own root is not given away",
        decrease(&mut [memory::root()]) <= 1,
    );
    t.equal(
        "root still there",
        try_read(memory::start().pt_base).is_some(),
        true,
    );
    let far = philoxen_abi::addr::HYPERVISOR_START + (1 << 42);
    for cmd in [0, 1, 6] {
        for extents in [far, 1 << 47, 0x1000, u64::MAX - 7] {
            let mut argument = Reservation {
                extents,
                count: 1,
                domid: hyper::SELF as u16,
                ..Reservation::default()
            };
            t.that(
                "list at a bad place",
                hyper::memory_op(cmd, &mut argument) <= 0,
            );
        }
        let mut argument = reservation(&mut [page.mfn()], 0);
        argument.domid = 77;
        t.that(
            "for a domain not there",
            hyper::memory_op(cmd, &mut argument) <= 0,
        );
        let mut argument = reservation(&mut [page.pfn()], 63);
        t.that(
            "extents of 2^63 pages",
            hyper::memory_op(cmd, &mut argument) <= 0,
        );
        let mut argument = reservation(&mut [page.pfn()], 0);
        argument.count = u64::MAX;
        t.that(
            "2^64 - 1 extents",
            hyper::memory_op(cmd, &mut argument) <= 0,
        );
    }
    t.equal(
        "list of machine pages to a bad place",
        hyper::memory_op(5, &mut [1_u64, far, 0]),
        -14,
    );
    let lost = before - current();
    // The hypervisor may hand out a frame whose number it then cannot write; it may not lose more than was offered.
    t.note(
        "at most the frame that was offered is gone",
        (-16..=1).contains(&lost),
        &lost,
    );
}

fn exchange(t: &mut Checks) {
    const ORDER: u32 = 6;
    const COUNT: usize = 1 << ORDER;
    let pages = Page::take_many(COUNT);
    let before = current();
    let mut given: [u64; COUNT] = core::array::from_fn(|n| pages.plus(n as u64).mfn());
    (0..COUNT as u64).for_each(|n| t.ok("unmap", pages.plus(n).unmap()));
    let mut wanted = [pages.pfn()];
    let mut argument = Exchange {
        input: reservation(&mut given, 0),
        output: reservation(&mut wanted, ORDER),
        exchanged: 0,
    };
    argument.output.flags = 32;
    t.ok(
        "64 frames for 64 in a row",
        hyper::memory_op(11, &mut argument),
    );
    t.equal("all exchanged", argument.exchanged, COUNT as u64);
    let first = wanted[0];
    t.equal("aligned", first % COUNT as u64, 0);
    t.that("below 4 GiB", first + COUNT as u64 <= 1 << 20);
    for n in 0..COUNT as u64 {
        let page = pages.plus(n);
        t.equal("M2P follows", memory::m2p(first + n), page.pfn());
        memory::set_p2m(page.pfn(), first + n);
        t.ok("map", page.restore());
        page.set_word(0, n);
    }
    t.equal("reservation unchanged", current(), before);
    t.refused(
        "old frame mapped",
        pages
            .map(given[0], pte::RO)
            .min(-i64::from(given.contains(&first))),
    );
    // The other way: one extent for single frames.
    (0..COUNT as u64).for_each(|n| t.ok("unmap", pages.plus(n).unmap()));
    let mut given = [first];
    let mut wanted: [u64; COUNT] = core::array::from_fn(|n| pages.plus(n as u64).pfn());
    let mut argument = Exchange {
        input: reservation(&mut given, ORDER),
        output: reservation(&mut wanted, 0),
        exchanged: 0,
    };
    t.ok(
        "64 in a row for 64 frames",
        hyper::memory_op(11, &mut argument),
    );
    t.equal("the one exchanged", argument.exchanged, 1);
    for (n, mfn) in wanted.iter().enumerate() {
        let page = pages.plus(n as u64);
        memory::set_p2m(page.pfn(), *mfn);
        t.ok("map", page.restore());
    }
    t.equal("reservation unchanged again", current(), before);
}

fn exchange_refusals(t: &mut Checks) {
    let page = Page::take();
    page.set_word(0, 4711);
    let before = current();
    let own = page.mfn();
    let attempt = |change: &dyn Fn(&mut Exchange)| {
        let (mut given, mut wanted) = ([own], [page.pfn()]);
        let mut argument = Exchange {
            input: reservation(&mut given, 0),
            output: reservation(&mut wanted, 0),
            exchanged: 0,
        };
        change(&mut argument);
        hyper::memory_op(11, &mut argument)
    };
    let far = philoxen_abi::addr::HYPERVISOR_START;
    for place in [
        far,
        far + (1 << 42),
        1 << 47,
        u64::MAX - 7,
        0xffff_87ff_ffff_fff8,
    ] {
        t.refused(
            "input list at a bad place (29)",
            attempt(&|x| x.input.extents = place),
        );
        t.refused(
            "output list at a bad place (29)",
            attempt(&|x| x.output.extents = place),
        );
    }
    let wrap = far.wrapping_sub(memory::start().address) / 8;
    t.refused(
        "progress that leads elsewhere (212)",
        attempt(&|x| x.exchanged = wrap),
    );
    t.refused("progress beyond the end", attempt(&|x| x.exchanged = 2));
    t.refused("counts that do not match", attempt(&|x| x.output.count = 2));
    t.refused("orders that do not match", attempt(&|x| x.output.order = 1));
    t.refused(
        "orders that overflow",
        attempt(&|x| (x.input.order, x.output.order) = (64, 64)),
    );
    t.refused(
        "counts that overflow",
        attempt(&|x| (x.input.count, x.output.count) = (u64::MAX, u64::MAX)),
    );
    t.refused("two domains", attempt(&|x| x.output.domid = 1));
    t.refused(
        "no such domain",
        attempt(&|x| (x.input.domid, x.output.domid) = (99, 99)),
    );
    let foreign = [hypervisor_frame(), 1 << 35, u64::MAX, memory::root()];
    for mfn in foreign {
        let list = [mfn];
        let place = list.as_ptr() as u64;
        t.refused(
            "frame that cannot be given",
            attempt(&|x| x.input.extents = place),
        );
    }
    let result = attempt(&|x| x.output.flags = 13);
    t.refused("address limit that nothing meets", result);
    t.equal("reservation unchanged by refusals", current(), before);
    t.equal("page unchanged by refusals", try_read(page.0), Some(4711));
    t.equal("offset in the page", page.0 % PAGE, 0);
}
