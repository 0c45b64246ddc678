// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercall page: one 32-byte stub for each hypercall number (xen/arch-x86/xen-x86_64.h).
//!
//! A caller expects only `rax` to change, but `syscall` destroys `rcx` and `r11`: the stub saves them.
//! `iret` never returns; the hypervisor finds its frame, `rax r11 rcx` and then the hardware's, at `rsp`.

use philoxen_abi::hypercall::IRET;

/// Bytes of one stub.
const STUB: usize = 32;

/// Fills a hypercall page.
pub fn hypercall_page(page: &mut [u8; 4096]) {
    // int3: nothing falls through from one stub into the next.
    page.fill(0xcc);
    for (number, stub) in page.chunks_exact_mut(STUB).enumerate() {
        let [n, ..] = number.to_le_bytes();
        let call = [0xb8, n, 0, 0, 0, 0x0f, 0x05]; // mov eax, n; syscall
        if number as u64 == IRET {
            put(stub, &[&[0x51, 0x41, 0x53, 0x50], &call]); // push rcx; push r11; push rax
        } else {
            put(
                stub,
                &[&[0x51, 0x41, 0x53], &call, &[0x41, 0x5b, 0x59, 0xc3]],
            ); // pop r11; pop rcx; ret
        }
    }
}

fn put(stub: &mut [u8], parts: &[&[u8]]) {
    let code = parts.iter().copied().flatten();
    for (to, from) in stub.iter_mut().zip(code) {
        *to = *from;
    }
}
