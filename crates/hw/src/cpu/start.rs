// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starting the other processors: INIT, STARTUP, and the way from real mode to the processor's own main stack (Intel SDM volume 3,
//! sections 8.4 and 9.8.5; MultiProcessor Specification 1.4, appendix B.4).
//!
//! One processor starts at a time. Its area is made by the processor that starts it; it goes from real mode to 64-bit
//! mode in one step, in a borrowed page of the first MiB ([`StartPage`]), and leaves that page before it says that it is there.

use super::asm::{rdtsc, relax};
use super::{CpuId, entry, features, percpu, tables, window};
use crate::boot::BootInfo;
use crate::dev::{self, lapic, timer};
use crate::memory::{self, StartPage};
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Once;

global_asm!(
    r#"
    .pushsection .rodata.start, "a"
    .balign 16
    .code16
philoxen_start_code:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl 1f - philoxen_start_code
    # PAE.
    movl $0x20, %eax
    movl %eax, %cr4
    movl philoxen_start_root - philoxen_start_code, %eax
    movl %eax, %cr3
    # EFER: NXE, LME, SCE.
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax
    wrmsr
    # PG, WP, NE, ET, MP, PE.
    movl $0x80010033, %eax
    movl %eax, %cr0
    ljmpl *philoxen_start_target - philoxen_start_code
    .balign 8
    .short 0, 0, 0
1:  .short 23
philoxen_start_gdt:
    .long 2f - philoxen_start_code
philoxen_start_target:
    .long 3f - philoxen_start_code
    .short 8
    .balign 8
philoxen_start_root:
    .quad 0
    .balign 8
2:  .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .code64
3:  movabsq $philoxen_start_high, %rax
    jmpq *%rax
philoxen_start_code_end:
    .popsection

    .pushsection .text, "ax"
philoxen_start_high:
    lgdt hw_gdt_high(%rip)
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movq philoxen_start_words(%rip), %rax
    movq %rax, %cr3
    movq philoxen_start_words + 8(%rip), %rsp
    xorl %ebp, %ebp
    call philoxen_started
    ud2
    .popsection
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static philoxen_start_code: u8;
    static philoxen_start_code_end: u8;
    static philoxen_start_gdt: u8;
    static philoxen_start_target: u8;
    static philoxen_start_root: u8;
}

/// For the processor that starts: the hypervisor's root, and the top of its stack.
#[unsafe(export_name = "philoxen_start_words")]
static WORDS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// The processor that was started is there.
static PRESENT: AtomicBool = AtomicBool::new(false);
/// What it does then.
static NEXT: Once<extern "C" fn() -> !> = Once::new();

/// Milliseconds between INIT and STARTUP.
const INIT_MS: u64 = 10;
/// Milliseconds that a processor may take after the first STARTUP before it gets another one.
const SECOND_MS: u64 = 10;
/// Milliseconds after which a processor is given up: an emulator on a busy machine may be slow.
const PATIENCE_MS: u64 = 3000;

/// Waits until `done`, or `ms` milliseconds; true if done.
fn within(ms: u64, done: impl Fn() -> bool) -> bool {
    let start = rdtsc();
    let ticks = timer::tsc_hz() / 1000 * ms;
    while rdtsc().wrapping_sub(start) < ticks {
        if done() {
            return true;
        }
        relax();
    }
    done()
}

/// What starts processors, while there may be more to start.
#[derive(Debug)]
pub struct Starter(StartPage);

impl Starter {
    /// Makes the start page; `next` is what each processor does once it is on its own stack. Once, after `dev::init` and before the
    /// first MiB is Domain 0's. `None` if there is no page or no memory for it.
    pub fn new(info: &BootInfo, next: extern "C" fn() -> !) -> Option<Self> {
        NEXT.call_once(|| next);
        let mut page = StartPage::new(info)?;
        let start = &raw const philoxen_start_code;
        let offset = |symbol: *const u8| symbol as usize - start as usize;
        let length = offset(&raw const philoxen_start_code_end);
        // SAFETY: the assembler lays the code out between the two symbols, in read-only data.
        page.write(0, unsafe { core::slice::from_raw_parts(start, length) });
        // Both words hold offsets and must become addresses.
        for symbol in [
            &raw const philoxen_start_gdt,
            &raw const philoxen_start_target,
        ] {
            // SAFETY: a word of the code, not necessarily aligned.
            let word = unsafe { symbol.cast::<u32>().read_unaligned() };
            let address = u64::from(word) + page.page();
            page.write(offset(symbol), &(address as u32).to_le_bytes());
        }
        let root = page.root();
        page.write(offset(&raw const philoxen_start_root), &root.to_le_bytes());
        Some(Self(page))
    }

    /// Starts the processor with local APIC identifier `apic_id` as number `cpu`; false if it does not answer, and then it is kept in
    /// reset. `local` is what the binary's entry points get on it.
    pub fn start(&mut self, cpu: CpuId, apic_id: u32, local: *mut ()) -> bool {
        percpu::init(cpu, local);
        window::init(cpu);
        tables::prepare(cpu);
        PRESENT.store(false, Ordering::Relaxed);
        WORDS[0].store(memory::hypervisor_root(), Ordering::Relaxed);
        WORDS[1].store(percpu::stack_top(cpu), Ordering::Release);
        let present = || PRESENT.load(Ordering::Acquire);
        lapic::send_init(apic_id);
        within(INIT_MS, || false);
        let page = (self.0.page() >> 12) as u8;
        // SAFETY: the page has the code above, with this processor's area and stack in the words it reads.
        unsafe { lapic::send_startup(apic_id, page) };
        if within(SECOND_MS, present) {
            return true;
        }
        // A processor that runs already ignores it.
        // SAFETY: as before.
        unsafe { lapic::send_startup(apic_id, page) };
        if within(PATIENCE_MS, present) {
            return true;
        }
        lapic::send_init(apic_id);
        within(INIT_MS, || false);
        false
    }
}

/// The processor is in 64-bit mode, on its main stack and under the hypervisor's root.
#[unsafe(no_mangle)]
extern "C" fn philoxen_started() -> ! {
    let cpu = percpu::cpu_id();
    features::enable();
    tables::load(cpu);
    entry::program_syscall_msrs(cpu);
    dev::init_processor();
    PRESENT.store(true, Ordering::Release);
    match NEXT.get() {
        Some(next) => next(),
        None => super::asm::halt_forever(),
    }
}
