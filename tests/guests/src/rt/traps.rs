// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and callbacks as the hypervisor delivers them, and how a test expects one.
//!
//! A test that wants a fault arms a resume address ([`probe!`](crate::probe)); the handler records the fault, goes there, and disarms.
//! A test that wants to look at every entry sets a hook. Anything else ends the test as failed.

use super::{cell::Racy, entry, events, hyper, memory, user};
use crate::println;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use philoxen_abi::hypercall as nr;

/// What an entry leaves on the stack, lowest address first. From `rax` on it is the frame of the `iret` hypercall.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "registers by their names")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rbx: u64,
    /// Exception vector or one of `entry::VECTOR_*`.
    pub vector: u64,
    pub rax: u64,
    pub r11: u64,
    pub rcx: u64,
    /// Error code on the way in, `VGCF_*` flags of the `iret` hypercall on the way out.
    pub error: u64,
    pub rip: u64,
    /// The saved upcall mask is in byte 4.
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Frame {
    /// Code selector without the saved upcall mask.
    pub fn selector(&self) -> u64 {
        self.cs & 0xffff
    }
    /// The upcall mask at the time of the exception.
    pub fn saved_mask(&self) -> u64 {
        self.cs >> 32 & 0xff
    }
    /// True if user mode was interrupted.
    pub fn from_user(&self) -> bool {
        self.cs & 3 == 3
    }
}

/// An exception that happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trap {
    /// Everything on the stack.
    pub frame: Frame,
    /// `vcpu_info.arch.cr2` at that time.
    pub cr2: u64,
    /// The upcall mask in the handler.
    pub mask: u8,
}

impl Trap {
    /// Vector and error code.
    pub fn code(&self) -> (u64, u64) {
        (self.frame.vector, self.frame.error)
    }
}

/// Where the next exception in kernel mode resumes; 0: nowhere.
#[unsafe(export_name = "guest_resume")]
pub static RESUME: AtomicU64 = AtomicU64::new(0);
/// Exceptions and callbacks, events aside, since boot.
pub static COUNT: AtomicU64 = AtomicU64::new(0);

/// A look at every entry but events: true if the frame is to be returned to as it stands now.
pub type Hook = fn(&mut Frame) -> bool;

static LAST: Racy<Option<Trap>> = Racy::new(None);
static HOOK: Racy<Option<Hook>> = Racy::new(None);

/// The exception taken since the last call of this function; disarms the resume address.
pub fn taken() -> Option<Trap> {
    RESUME.store(0, Relaxed);
    LAST.replace(None)
}

/// Sets or clears the hook.
pub fn hook(hook: Option<Hook>) {
    HOOK.replace(hook);
}

/// Runs instructions that may fault: `probe!(["insn {0}", "insn"] in(reg) value)`. Gives the trap, if there was one.
/// `r11` is used.
#[macro_export]
macro_rules! probe {
    ([$($line:expr),+ $(,)?] $($operands:tt)*) => {{
        core::arch::asm!(
            "lea r11, [rip + 77f]",
            "mov [rip + guest_resume], r11",
            $($line,)+
            "77:",
            $($operands)*
            out("r11") _,
        );
        $crate::rt::traps::taken()
    }};
}

/// Handlers that are running.
static DEPTH: AtomicU64 = AtomicU64::new(0);
/// More than any test nests.
const TOO_DEEP: u64 = 8;

/// Called by the entry code with the frame on the stack; what it leaves there is returned to.
#[unsafe(no_mangle)]
extern "C" fn guest_trap(frame: &mut Frame) {
    let depth = DEPTH.fetch_add(1, Relaxed);
    if depth == TOO_DEEP {
        hook(None);
        unexpected(&Trap {
            frame: *frame,
            cr2: memory::cr2(),
            mask: memory::upcall_mask(),
        });
    }
    if depth > TOO_DEEP {
        hyper::power_off();
    }
    dispatch(frame);
    DEPTH.fetch_sub(1, Relaxed);
}

fn dispatch(frame: &mut Frame) {
    let mask = memory::upcall_mask();
    if frame.vector == entry::VECTOR_EVENT {
        frame.error = 0;
        events::upcall(frame);
        return;
    }
    COUNT.fetch_add(1, Relaxed);
    let trap = Trap {
        frame: *frame,
        cr2: memory::cr2(),
        mask,
    };
    LAST.replace(Some(trap));
    let resume = RESUME.load(Relaxed);
    if HOOK.get().is_some_and(|hook| hook(frame)) {
        frame.error = 0;
    } else if frame.from_user() {
        user::leave(frame);
    } else if resume != 0 {
        RESUME.store(0, Relaxed);
        frame.error = 0;
        frame.rip = resume;
        // Where a bad return was tried, the selectors of the frame are the bad ones.
        (frame.cs, frame.ss) = (memory::KERNEL_CS & !3, memory::KERNEL_SS);
        // Single steps end here.
        frame.rflags &= !0x100;
    } else {
        unexpected(&trap);
    }
}

fn unexpected(trap: &Trap) -> ! {
    println!(
        "GUEST-TRAP cr2 {:#x} mask {} {:#x?}",
        trap.cr2, trap.mask, trap.frame
    );
    let (vector, error) = trap.code();
    panic!(
        "unexpected exception {vector} error {error:#x} at {:#x}",
        trap.frame.rip
    );
}

/// `struct trap_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TrapInfo {
    /// Exception vector.
    pub vector: u8,
    /// DPL in bits 0-1; 4: mask events on entry.
    pub flags: u8,
    /// Code selector.
    pub cs: u16,
    /// Entry point.
    pub address: u64,
}

/// Registers one entry; an address of 0 takes it away.
pub fn set_gate(vector: u64, flags: u8, address: u64) -> i64 {
    let info = TrapInfo {
        vector: vector as u8,
        flags,
        cs: memory::KERNEL_CS as u16,
        address,
    };
    let mut table = [info, TrapInfo::default()];
    hyper::call(nr::SET_TRAP_TABLE, [table.as_mut_ptr() as u64, 0, 0, 0, 0])
}

/// Registers every exception and callback and the stack for entries from user mode.
pub fn install() {
    let mut table = [TrapInfo::default(); 257];
    for (vector, info) in table.iter_mut().take(256).enumerate() {
        // int3, into and int 0x80 are open to user mode, everything else to none; all mask events.
        let dpl = if [3, 4, 0x80].contains(&vector) { 3 } else { 0 };
        let address = entry::address(vector as u64);
        *info = TrapInfo {
            vector: vector as u8,
            flags: 4 | dpl,
            cs: memory::KERNEL_CS as u16,
            address,
        };
    }
    let result = hyper::call(nr::SET_TRAP_TABLE, [table.as_mut_ptr() as u64, 0, 0, 0, 0]);
    assert_eq!(result, 0, "set_trap_table");
    let callbacks = [
        entry::VECTOR_EVENT,
        entry::VECTOR_FAILSAFE,
        entry::VECTOR_SYSCALL,
    ]
    .map(entry::address);
    let [event, failsafe, syscall] = callbacks;
    assert_eq!(
        hyper::call(nr::SET_CALLBACKS, [event, failsafe, syscall, 0, 0]),
        0,
        "set_callbacks"
    );
    let stack = user::trap_stack();
    assert_eq!(
        hyper::call(nr::STACK_SWITCH, [memory::KERNEL_SS, stack, 0, 0, 0]),
        0,
        "stack_switch"
    );
}
