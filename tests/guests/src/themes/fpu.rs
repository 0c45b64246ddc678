// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floating-point and vector registers: clean at the start, kept over everything, lazily trapped only on request.

use crate::probe;
use crate::rt::check::Checks;
use crate::rt::memory::Page;
use crate::rt::traps::{self, Frame};
use crate::rt::{cell::Racy, events, hyper, time};
use crate::themes::emulation;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use philoxen_abi::hypercall as nr;

static NM: AtomicU64 = AtomicU64::new(0);
static CLEAR: Racy<bool> = Racy::new(true);

/// Answers #NM as kernels do, by clearing TS.
fn on_fault(frame: &mut Frame) -> bool {
    if frame.vector != 7 {
        return false;
    }
    NM.fetch_add(1, Relaxed);
    if CLEAR.get() {
        hyper::call(nr::FPU_TASKSWITCH, [0; 5]);
    } else {
        // SAFETY: clts is emulated and has no operands.
        unsafe { asm!("clts") };
    }
    true
}

/// Runs the theme.
pub fn run(t: &mut Checks) {
    traps::hook(Some(on_fault));
    clean_at_start(t);
    kept(t);
    task_switched(t);
    wide(t);
    control_words(t);
    traps::hook(None);
}

/// As [`run`], where XSAVE is hidden from us: nothing of it can be used, before and after a block.
pub fn hidden(t: &mut Checks) {
    const XSAVE: u32 = 1 << 26;
    const OSXSAVE: u32 = 1 << 27;
    let [_, _, shown, _] = emulation::forced(1, 0);
    if shown & XSAVE != 0 {
        crate::println!("GUEST-INFO no-xsave not hidden");
        return;
    }
    let vector = |trap: Option<traps::Trap>| trap.map(|trap| trap.frame.vector);
    for round in 0..2 {
        t.equal("OSXSAVE in the hypervisor's CPUID", shown & OSXSAVE, 0);
        let natively = core::arch::x86_64::__cpuid(1).ecx;
        t.equal("OSXSAVE in the processor's CPUID", natively & OSXSAVE, 0);
        // SAFETY: undefined.
        let trap = unsafe { probe!(["xgetbv"] in("rcx") 0_u64, out("rax") _, out("rdx") _,) };
        t.equal("xgetbv", vector(trap), Some(6));
        // SAFETY: undefined.
        let trap = unsafe { probe!(["vpxor ymm0, ymm0, ymm0"]) };
        t.equal("AVX", vector(trap), Some(6));
        // SAFETY: the bit is dropped, then undefined.
        let trap = unsafe {
            probe!(["mov {0}, cr4", "or {0}, 0x40000", "mov cr4, {0}", "xsetbv"] out(reg) _, in("rax") 7_u64, in("rcx") 0_u64, in("rdx") 0_u64,)
        };
        t.equal("xsetbv", vector(trap), Some(6));
        if round == 0 {
            run(t);
        }
    }
}

fn store(page: Page) {
    // SAFETY: the page has room for 16 registers of 16 bytes.
    unsafe {
        asm!("movups [{0}], xmm0", "movups [{0} + 16], xmm1", "movups [{0} + 32], xmm2", "movups [{0} + 48], xmm3",
            "movups [{0} + 64], xmm4", "movups [{0} + 80], xmm5", "movups [{0} + 96], xmm6", "movups [{0} + 112], xmm7",
            "movups [{0} + 128], xmm8", "movups [{0} + 144], xmm9", "movups [{0} + 160], xmm10", "movups [{0} + 176], xmm11",
            "movups [{0} + 192], xmm12", "movups [{0} + 208], xmm13", "movups [{0} + 224], xmm14", "movups [{0} + 240], xmm15",
            in(reg) page.0);
    }
}

fn fill(page: Page) {
    // SAFETY: the page holds 16 registers; this program's own code uses none of them.
    unsafe {
        asm!("movups xmm0, [{0}]", "movups xmm1, [{0} + 16]", "movups xmm2, [{0} + 32]", "movups xmm3, [{0} + 48]",
            "movups xmm4, [{0} + 64]", "movups xmm5, [{0} + 80]", "movups xmm6, [{0} + 96]", "movups xmm7, [{0} + 112]",
            "movups xmm8, [{0} + 128]", "movups xmm9, [{0} + 144]", "movups xmm10, [{0} + 160]", "movups xmm11, [{0} + 176]",
            "movups xmm12, [{0} + 192]", "movups xmm13, [{0} + 208]", "movups xmm14, [{0} + 224]", "movups xmm15, [{0} + 240]",
            in(reg) page.0);
    }
}

fn clean_at_start(t: &mut Checks) {
    let page = Page::take();
    page.fill(u64::MAX);
    store(page);
    t.that(
        "vector registers start as zero",
        (0..32).all(|n| page.word(n) == 0),
    );
    let (mut control, mut status) = (0_u32, 0_u16);
    // SAFETY: stores control words.
    unsafe {
        asm!("stmxcsr [{0}]", "fnstcw [{1}]", in(reg) &raw mut control, in(reg) &raw mut status)
    };
    t.equal("MXCSR", control, 0x1f80);
    t.equal("x87 control word", status, 0x37f);
}

/// Whether the registers hold what `page` says after `action`.
fn survives(page: Page, seed: u64, action: impl FnOnce()) -> bool {
    let after = Page::take();
    (0..32).for_each(|n| page.set_word(n, seed.wrapping_mul(n + 1)));
    fill(page);
    action();
    store(after);
    (0..32).all(|n| after.word(n) == page.word(n))
}

fn kept(t: &mut Checks) {
    let page = Page::take();
    t.that(
        "over a hypercall",
        survives(page, 0x0123_4567_89ab_cdef, || {
            hyper::call(nr::XEN_VERSION, [0; 5]);
        }),
    );
    t.that(
        "over console output",
        survives(page, 0x1111_2222_3333_4445, || {
            crate::println!("GUEST-INFO fpu")
        }),
    );
    t.that(
        "over a fault",
        survives(page, 0xfedc_ba98_7654_3211, || {
            crate::themes::pagetypes::try_read(0x1000);
        }),
    );
    t.that(
        "over an emulated instruction",
        survives(page, 0x9e37_79b9_7f4a_7c15, || {
            // SAFETY: reads a control register, which is emulated.
            unsafe { asm!("mov {0}, cr0", out(reg) _) };
        }),
    );
    let (bound, port) = events::bind_virq(0, 0);
    t.ok("timer", bound);
    for round in 1..6 {
        let good = survives(page, 0xdead_beef_0bad_cafe ^ round, || {
            let mut timer = [time::now() + 2_000_000, 0];
            hyper::vcpu_op(8, 0, &mut timer);
            events::block();
            events::disable();
        });
        t.that("over a block", good);
    }
    t.that(
        "over a yield",
        survives(page, 3, || {
            hyper::sched_op(0, &mut 0_u64);
        }),
    );
    t.ok("close", events::close(port));
}

fn task_switched(t: &mut Checks) {
    let page = Page::take();
    for clear in [true, false] {
        CLEAR.replace(clear);
        t.ok("set TS", hyper::call(nr::FPU_TASKSWITCH, [1, 0, 0, 0, 0]));
        let before = NM.load(Relaxed);
        let cr0: u64;
        // SAFETY: reads a control register, which is emulated.
        unsafe { asm!("mov {0}, cr0", out(reg) cr0) };
        t.equal("TS shows in CR0", cr0 & 8, 8);
        store(page);
        t.equal("one #NM", NM.load(Relaxed), before + 1);
        store(page);
        t.equal("none once cleared", NM.load(Relaxed), before + 1);
        // SAFETY: as above.
        let cr0: u64 = unsafe {
            let value;
            asm!("mov {0}, cr0", out(reg) value);
            value
        };
        t.equal("TS gone from CR0", cr0 & 8, 0);
    }
    CLEAR.replace(true);
    // TS by a write to CR0.
    let before = NM.load(Relaxed);
    // SAFETY: sets TS; all other bits as they are.
    unsafe { asm!("mov {0}, cr0", "or {0}, 8", "mov cr0, {0}", out(reg) _) };
    store(page);
    t.equal("#NM after TS by CR0", NM.load(Relaxed), before + 1);
    t.that(
        "registers kept over TS",
        survives(Page::take(), 77, || {
            hyper::call(nr::FPU_TASKSWITCH, [1, 0, 0, 0, 0]);
        }),
    );
}

/// The upper halves of the 256-bit registers, where the processor and the hypervisor offer them.
fn wide(t: &mut Checks) {
    let leaf = core::arch::x86_64::__cpuid(1);
    if leaf.ecx & 1 << 26 == 0 || leaf.ecx & 1 << 28 == 0 {
        return;
    }
    // As a kernel does: OSXSAVE, then the states. SAFETY: emulated, or faults where it is not offered.
    let trap = unsafe {
        probe!(["mov {0}, cr4", "or {0}, 0x40000", "mov cr4, {0}", "xsetbv"] out(reg) _, in("rax") 7_u64, in("rcx") 0_u64, in("rdx") 0_u64,)
    };
    if trap.is_some() {
        return;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE is set, so the instruction exists.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    t.equal("x87, SSE and AVX states on", (low, high), (7, 0));
    let page = Page::take();
    // SAFETY: AVX is on; the page has room.
    unsafe { asm!("vmovups [{0}], ymm9", "vmovups [{0} + 32], ymm3", in(reg) page.0) };
    t.that(
        "upper halves start as zero",
        [2, 3, 6, 7].iter().all(|n| page.word(*n) == 0),
    );
    (0..4).for_each(|n| page.set_word(n, 0x4242_0000 + n));
    // SAFETY: as above.
    unsafe { asm!("vmovups ymm9, [{0}]", in(reg) page.0) };
    let (bound, port) = events::bind_virq(0, 0);
    t.ok("timer", bound);
    hyper::vcpu_op(8, 0, &mut [time::now() + 2_000_000, 0]);
    events::block();
    events::disable();
    // SAFETY: as above.
    unsafe { asm!("vmovups [{0} + 64], ymm9", in(reg) page.0) };
    t.that(
        "upper halves kept over a block",
        (0..4).all(|n| page.word(8 + n) == page.word(n)),
    );
    t.ok("close", events::close(port));
}

fn control_words(t: &mut Checks) {
    let (set, mut seen) = (0x3f80_u32, 0_u32);
    // SAFETY: a valid MXCSR value.
    unsafe { asm!("ldmxcsr [{0}]", in(reg) &raw const set) };
    hyper::call(nr::XEN_VERSION, [0; 5]);
    hyper::sched_op(0, &mut 0_u64);
    // SAFETY: stores MXCSR.
    unsafe { asm!("stmxcsr [{0}]", in(reg) &raw mut seen) };
    t.equal("MXCSR kept", seen, set);
}
