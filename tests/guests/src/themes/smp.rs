// SPDX-License-Identifier: MIT OR Apache-2.0
//! A second vCPU: initialise, up, IPIs both ways, down. Passes with a note where the domain has one vCPU.

use crate::println;
use crate::rt::memory::{self, KERNEL_CS, KERNEL_SS, Page, pte};
use crate::rt::{check::Checks, events, hyper, time};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use philoxen_abi::hypercall as nr;

const INITIALISE: u64 = 0;
const UP: u64 = 1;
const IS_UP: u64 = 3;
/// `UVMF_ALL` and `UVMF_INVLPG`.
const FLUSH_ALL: u64 = 1 << 2;
const FLUSH_PAGE: u64 = 2;
/// Bytes of `struct vcpu_guest_context`.
const CONTEXT: usize = 5168;
/// What the second vCPU has done: 1 started, then what it was asked for.
#[unsafe(export_name = "guest_second_state")]
static STATE: AtomicU64 = AtomicU64::new(0);
/// What the second vCPU is asked for: a port to send on, or `u64::MAX` to end.
#[unsafe(export_name = "guest_second_order")]
static ORDER: AtomicU64 = AtomicU64::new(0);
/// Where the second vCPU reads over and over, 0 for nowhere; what it has read and its counter then; how often it has.
#[unsafe(export_name = "guest_second_place")]
static PLACE: AtomicU64 = AtomicU64::new(0);
#[unsafe(export_name = "guest_second_seen")]
static SEEN: AtomicU64 = AtomicU64::new(0);
#[unsafe(export_name = "guest_second_counter")]
static COUNTER: AtomicU64 = AtomicU64::new(0);
#[unsafe(export_name = "guest_second_turns")]
static TURNS: AtomicU64 = AtomicU64::new(0);

// The second vCPU runs nothing but this: Rust's globals here are for one vCPU at a time.
global_asm!(
    r#"
    .pushsection .text, "ax", @progbits
    .globl guest_second_start
guest_second_start:
    mov qword ptr [rip + guest_second_state], 1
2:  pause
    mov rbx, [rip + guest_second_place]
    test rbx, rbx
    jz 4f
    mov rbx, [rbx]
    mov [rip + guest_second_seen], rbx
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rip + guest_second_counter], rax
    inc qword ptr [rip + guest_second_turns]
4:  mov rbx, [rip + guest_second_order]
    test rbx, rbx
    jz 2b
    mov qword ptr [rip + guest_second_order], 0
    cmp rbx, -1
    je 3f
    push rbx                             # struct evtchn_send
    mov eax, 32
    mov edi, 4
    mov rsi, rsp
    syscall
    pop rbx
    inc qword ptr [rip + guest_second_state]
    jmp 2b
3:  mov qword ptr [rip + guest_second_state], -1
    mov eax, 24                          # VCPUOP_down of vCPU 1
    mov edi, 2
    mov esi, 1
    xor edx, edx
    syscall
    mov qword ptr [rip + guest_second_state], 1
    jmp 2b
    .popsection
"#
);

unsafe extern "C" {
    static guest_second_start: u8;
}

/// Waits up to two seconds until `done`.
fn within(done: impl Fn() -> bool) -> bool {
    let end = time::now() + 2_000_000_000;
    while !done() {
        if time::now() > end {
            return false;
        }
        hyper::sched_op(0, &mut 0_u64);
    }
    true
}

/// `struct vcpu_guest_context` for the second vCPU: in the kernel, on `stack`, with our root.
fn context(pages: Page, stack: u64) -> u64 {
    let at = |offset: usize, value: u64| memory::write(pages.0 + offset as u64, value);
    (0..CONTEXT).step_by(8).for_each(|offset| at(offset, 0));
    // flags: in the kernel.
    at(512, 1 << 2);
    // user_regs begin at 520: rip at 128, cs at 136, rflags at 144, rsp at 152, ss at 160 within.
    at(520 + 128, &raw const guest_second_start as u64);
    at(520 + 136, KERNEL_CS);
    at(520 + 144, 0x200);
    at(520 + 152, stack);
    at(520 + 160, KERNEL_SS);
    // trap_ctxt at 720, then ldt (2 words), gdt_frames (16), gdt_ents, kernel_ss, kernel_sp, ctrlreg (8).
    let tail = 720 + 256 * 16;
    at(tail + 19 * 8, KERNEL_SS);
    at(tail + 20 * 8, stack);
    at(tail + 21 * 8, 0x8005_003b);
    let root = memory::root() << 12;
    // CR3 in the folded form of the interface, which is the plain one below 2^52.
    at(tail + 24 * 8, root);
    pages.0
}

/// True once the second vCPU has read `value` in a turn that began after this call.
fn reads(value: u64) -> bool {
    let turn = TURNS.load(SeqCst);
    within(|| TURNS.load(SeqCst) >= turn + 2) && SEEN.load(SeqCst) == value
}

/// What the second vCPU has in its TLB is gone when a flush has returned, and when a frame has become something else.
fn shootdown(t: &mut Checks) {
    let (window, frames) = (Page::take(), Page::take_many(2));
    let [first, second] = [0, 1].map(|n| frames.plus(n));
    // Even values: entries that are not present, should the page become a table.
    let value = |page: Page| page.mfn() << 12;
    for page in [first, second] {
        memory::write(page.0, value(page));
    }
    t.ok("window", window.map(first.mfn(), pte::RO));
    PLACE.store(window.0, SeqCst);
    t.that("the second vCPU reads", reads(value(first)));
    let mut both = 3_u64;
    for round in 0..200 {
        let page = if round % 2 == 0 { second } else { first };
        let scope = if round % 4 < 2 {
            FLUSH_ALL
        } else {
            hyper::address(&mut both)
        };
        let result =
            hyper::update_va_mapping(window.0, page.mfn() << 12 | pte::RO, scope | FLUSH_PAGE);
        t.note("map", result == 0, &round);
        t.note("seen after the flush", reads(value(page)), &round);
    }
    for round in 0..50 {
        // No flush is asked for: the hypervisor must see to it before the page becomes a table.
        let [from, to] = if round % 2 == 0 {
            [first, second]
        } else {
            [second, first]
        };
        t.note("from", window.map(from.mfn(), pte::RW) == 0, &round);
        t.note("from is seen", within(|| reads(value(from))), &round);
        let moved = hyper::update_va_mapping(window.0, to.mfn() << 12 | pte::RO, 0);
        t.note("to", moved == 0, &round);
        t.note("no writable mapping", from.protect() == 0, &round);
        let pinned = hyper::mmuext_one(hyper::ext::PIN_L1, from.mfn(), 0);
        t.note("pin", pinned == 0, &round);
        t.note("not seen as a table", reads(value(to)), &round);
        let unpinned = hyper::mmuext_one(hyper::ext::UNPIN, from.mfn(), 0);
        t.note("unpin", unpinned == 0, &round);
        t.note("writable again", from.restore() == 0, &round);
    }
}

/// Counters never go back from one vCPU to the other, and both time records tell the same time.
fn counters(t: &mut Checks) {
    if time::record().flags & 1 == 0 {
        println!("GUEST-INFO smp counters differ");
        return;
    }
    let turn = TURNS.load(SeqCst);
    let end = time::now() + 300_000_000;
    let mut last = 0;
    let mut ordered = true;
    while time::now() < end {
        let mine = time::tsc();
        // A turn that ends later has read its counter after ours; the one before it is older than what we read next.
        let theirs = COUNTER.load(SeqCst);
        ordered &= theirs <= time::tsc() && theirs >= last && mine <= time::tsc();
        last = theirs;
    }
    t.that("counters agree", ordered);
    t.that("the second vCPU ran", TURNS.load(SeqCst) > turn);
    let other = time::record_at(memory::shared_info() + 64 + 32);
    let now = time::tsc();
    let apart = other.map(|other| other.at(now).abs_diff(time::record().at(now)));
    t.that("records agree", apart.is_some_and(|apart| apart <= 1000));
}

/// Runs the theme.
pub fn run(t: &mut Checks) {
    if hyper::vcpu_op(IS_UP, 1, &mut 0_u64) < 0 {
        println!("GUEST-INFO smp one vCPU alone");
        return;
    }
    t.equal(
        "second vCPU is down",
        hyper::vcpu_op(IS_UP, 1, &mut 0_u64),
        0,
    );
    t.refused(
        "up before it is initialised",
        hyper::vcpu_op(UP, 1, &mut 0_u64),
    );
    let (pages, stack) = (Page::take_many(2), Page::take());
    let place = context(pages, stack.plus(1).0);
    let initialise = || hyper::call(nr::VCPU_OP, [INITIALISE, 1, place, 0, 0]);
    // A root that is none of the tables.
    memory::write(place + 720 + 4096 + 24 * 8, stack.ma(0));
    t.refused("initialise with a bad root", initialise());
    context(pages, stack.plus(1).0);
    t.ok("initialise", initialise());
    t.refused("initialise twice", initialise());
    let (result, port) = events::bind_ipi(0);
    t.ok("IPI to the first vCPU", result);
    t.ok("unmask", events::unmask(port));
    let (result, other) = events::bind_ipi(1);
    t.ok("IPI to the second vCPU", result);
    t.ok("up", hyper::vcpu_op(UP, 1, &mut 0_u64));
    t.equal("second vCPU is up", hyper::vcpu_op(IS_UP, 1, &mut 0_u64), 1);
    t.that("it runs", within(|| STATE.load(SeqCst) == 1));
    events::clear();
    events::enable();
    for n in 1..=100 {
        ORDER.store(u64::from(port), SeqCst);
        t.that("IPI sent", within(|| STATE.load(SeqCst) == 1 + n));
        t.that("IPI arrived", within(|| events::count(port) == n as usize));
    }
    events::disable();
    t.ok("IPI the other way", events::send(other));
    // vcpu_info of vCPU 1 is the second of the shared page: its upcall is masked, so the bit stays.
    let pending =
        || memory::read(memory::shared_info() + 64) & 0xff != 0 || events::is_pending(other);
    t.that("pending for the second vCPU", within(pending));
    t.refused("initialise while up", initialise());
    for cmd in [8, 10] {
        // Another vCPU's timer is not ours; where its vcpu_info lies may be said once.
        t.that(
            "other vCPU's affairs",
            hyper::vcpu_op(cmd, 1, &mut [u64::MAX, 0]) < 0,
        );
    }
    let mut everybody = 3_u64;
    for round in 0..50 {
        let page = stack.plus(0);
        let result = hyper::mmuext_one(
            hyper::ext::TLB_FLUSH_MULTI,
            page.0,
            hyper::address(&mut everybody),
        );
        t.note("flush on both", result == 0, &round);
        for cmd in [hyper::ext::FLUSH_CACHE, hyper::ext::FLUSH_CACHE_GLOBAL] {
            let flushed = hyper::mmuext_one(cmd, 0, 0);
            t.note("caches", flushed == 0, &round);
        }
    }
    shootdown(t);
    counters(t);
    PLACE.store(0, SeqCst);
    ORDER.store(u64::MAX, SeqCst);
    t.that("it ends", within(|| STATE.load(SeqCst) == u64::MAX));
    t.that(
        "second vCPU is down again",
        within(|| hyper::vcpu_op(IS_UP, 1, &mut 0_u64) == 0),
    );
    t.ok("up once more", hyper::vcpu_op(UP, 1, &mut 0_u64));
    t.that(
        "goes on behind its last hypercall",
        within(|| STATE.load(SeqCst) == 1),
    );
    ORDER.store(u64::MAX, SeqCst);
    t.that(
        "down at the end",
        within(|| hyper::vcpu_op(IS_UP, 1, &mut 0_u64) == 0),
    );
}
