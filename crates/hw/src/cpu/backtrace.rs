// SPDX-License-Identifier: MIT OR Apache-2.0
//! Walks the hypervisor's own frame-pointer chain (the build keeps frame pointers).

use super::percpu;

/// Calls `each` with the return addresses found from frame pointer `rbp` on, at most `limit`.
///
/// Stops where the chain leaves this processor's stacks or does not rise.
pub fn walk(mut rbp: u64, limit: usize, mut each: impl FnMut(u64)) {
    for _ in 0..limit {
        if !percpu::on_stack(rbp) || !rbp.is_multiple_of(8) {
            return;
        }
        // SAFETY: the two words lie on one of this processor's mapped stacks; whatever they hold is plain data.
        let [next, address] = unsafe { (rbp as *const [u64; 2]).read() };
        if address == 0 {
            return;
        }
        each(address);
        if next <= rbp {
            return;
        }
        rbp = next;
    }
}

/// The caller's frame pointer.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags))
    };
    rbp
}
