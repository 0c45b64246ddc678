// SPDX-License-Identifier: MIT OR Apache-2.0
//! User mode: a second top-level table, and a way into it and back.
//!
//! [`Space`] maps one code and one data page at fixed addresses. [`Space::run`] enters by the `iret` hypercall; whatever
//! brings the processor back (a system call, an exception) ends the run and is handed to the caller.

use super::memory::{self, Page, pte};
use super::traps::{self, Frame, Trap};
use super::{cell::Racy, hyper, hyper::ext};

/// Where the code page is in user mode.
pub const CODE: u64 = 0x40_0000;
/// Where the data page is in user mode.
pub const DATA: u64 = 0x40_1000;
/// Initial stack of user mode, in the data page.
pub const STACK: u64 = DATA + 4096;
/// Selector of 64-bit user code.
pub const USER_CS: u64 = 0xe033;

static LEFT: Racy<Option<Trap>> = Racy::new(None);

unsafe extern "C" {
    static guest_trap_stack_top: u8;
    static guest_user_return: u8;
    fn guest_enter_user(frame: *const Frame);
}

/// The kernel stack for entries from user mode.
pub fn trap_stack() -> u64 {
    &raw const guest_trap_stack_top as u64
}

/// Ends a run: the frame is changed to return to [`Space::run`].
pub fn leave(frame: &mut Frame) {
    LEFT.replace(Some(Trap {
        frame: *frame,
        cr2: memory::cr2(),
        mask: memory::upcall_mask(),
    }));
    frame.error = 0;
    frame.rip = &raw const guest_user_return as u64;
    frame.cs = memory::KERNEL_CS & !3;
    frame.ss = memory::KERNEL_SS;
    // Upcalls stay masked, as they are in every handler.
    frame.rflags = 2;
}

/// An address space for user mode.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// The code page, as the kernel sees it.
    pub code: Page,
    /// The data page, as the kernel sees it.
    pub data: Page,
    /// Its four tables, top first.
    pub tables: [Page; 4],
}

impl Space {
    /// A user address space with empty pages; becomes the vCPU's user table.
    #[allow(clippy::new_without_default, reason = "making one changes the vCPU")]
    pub fn new() -> Self {
        let space = Self {
            code: Page::take(),
            data: Page::take(),
            tables: core::array::from_fn(|_| Page::take()),
        };
        let [top, third, second, first] = space.tables;
        top.set_word(memory::index(CODE, 4), third.ma(0) | pte::RW);
        third.set_word(memory::index(CODE, 3), second.ma(0) | pte::RW);
        second.set_word(memory::index(CODE, 2), first.ma(0) | pte::RW);
        first.set_word(memory::index(CODE, 1), space.code.ma(0) | pte::RO);
        first.set_word(memory::index(DATA, 1), space.data.ma(0) | pte::RW);
        for table in space.tables {
            assert_eq!(table.protect(), 0, "a table made read-only");
        }
        assert_eq!(
            hyper::mmuext_one(ext::PIN_L4, top.mfn(), 0),
            0,
            "pinning the user table"
        );
        assert_eq!(
            hyper::mmuext_one(ext::NEW_USER_BASEPTR, top.mfn(), 0),
            0,
            "new_user_baseptr"
        );
        space
    }

    /// Puts machine code at [`CODE`].
    pub fn load(&self, code: &[u8]) {
        for (index, chunk) in code.chunks(8).enumerate() {
            let mut word = [0xcc; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.code.set_word(index as u64, u64::from_le_bytes(word));
        }
    }

    /// A frame that starts at [`CODE`] with upcalls allowed.
    pub fn frame() -> Frame {
        Frame {
            rip: CODE,
            cs: USER_CS,
            ss: memory::KERNEL_SS,
            rsp: STACK,
            rflags: 0x202,
            ..Frame::default()
        }
    }

    /// Enters user mode with `frame` and gives what brought us back.
    pub fn run(&self, frame: &Frame) -> Trap {
        LEFT.replace(None);
        traps::taken();
        // SAFETY: the callee saves what the calling convention asks for, and `leave` returns to its second half.
        unsafe { guest_enter_user(frame) };
        LEFT.replace(None).expect("back from user mode by a trap")
    }
}
