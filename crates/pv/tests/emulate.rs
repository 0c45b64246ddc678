// SPDX-License-Identifier: MIT OR Apache-2.0
//! Emulated instructions: what each does, who may, how long it is, and that random bytes are harmless.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at what must not happen"
)]

use philoxen_abi::arch::{CpuidRegs, TrapInfo, rflags};
use philoxen_abi::guest::FakeGuest;
use philoxen_pv::bounce::Trap;
use philoxen_pv::decode::SegmentBases;
use philoxen_pv::emulate::{
    CrWrite, Environment, Outcome, STRING_BATCH, general_protection, invalid_opcode,
};
use philoxen_pv::{PvCpu, Regs, control};
use proptest::prelude::*;

const CODE: u64 = 0xffff_ffff_8100_0000;
const DATA: u64 = CODE + 64;
/// Takes three writes to CR3 until it is validated.
const LARGE_ROOT: u64 = 0x7000;

struct Env<'a> {
    memory: FakeGuest<'a>,
    log: Vec<String>,
    long: bool,
    bitmap: bool,
}

impl<'a> Env<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self {
            memory: FakeGuest::new(CODE, bytes),
            log: Vec::new(),
            long: true,
            bitmap: false,
        }
    }
}

impl<'a> Environment for Env<'a> {
    type Memory = FakeGuest<'a>;
    fn memory(&self) -> &Self::Memory {
        &self.memory
    }
    fn segment_bases(&self) -> SegmentBases {
        SegmentBases {
            fs: 0x100,
            gs: 0x200,
        }
    }
    fn is_long_code(&self, _: u16) -> bool {
        self.long
    }
    fn io_bitmap_allows(&self, _: u16, _: u8) -> bool {
        self.bitmap
    }
    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.log.push(format!("in {port:#x} {size}"));
        0x8877_6655
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        self.log.push(format!("out {port:#x} {size} {value:#x}"));
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidRegs {
        CpuidRegs {
            a: leaf,
            b: subleaf,
            c: 3,
            d: 4,
        }
    }
    fn read_msr(&mut self, msr: u32) -> Option<u64> {
        (msr != 0xbad).then_some(0x1111_2222_3333_4444)
    }
    fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        self.log.push(format!("wrmsr {msr:#x} {value:#x}"));
        msr != 0xbad
    }
    fn read_cr(&mut self, number: u8) -> Option<u64> {
        match number {
            0 => Some(control::cr0_view(true)),
            2..=4 => Some(u64::from(number) * 0x1000),
            _ => None,
        }
    }
    fn write_cr(&mut self, number: u8, value: u64) -> CrWrite {
        self.log.push(format!("cr{number} {value:#x}"));
        if number == 3 && value == LARGE_ROOT && self.log.len() < 3 {
            return CrWrite::Again;
        }
        CrWrite::from(number != 8)
    }
    fn read_dr(&mut self, number: u8) -> Option<u64> {
        (number < 8).then_some(0xd0 + u64::from(number))
    }
    fn write_dr(&mut self, number: u8, value: u64) -> bool {
        self.log.push(format!("dr{number} {value:#x}"));
        true
    }
    fn tsc(&mut self) -> u64 {
        0x1_0000_0002
    }
    fn tsc_aux(&mut self) -> Option<u32> {
        Some(5)
    }
    fn xcr0(&mut self) -> Option<u64> {
        Some(7)
    }
    fn set_xcr0(&mut self, value: u64) -> bool {
        self.log.push(format!("xcr0 {value:#x}"));
        value == 7
    }
    fn invalidate_page(&mut self, address: u64) {
        self.log.push(format!("invlpg {address:#x}"));
    }
    fn flush_caches(&mut self) {
        self.log.push("flush".into());
    }
}

fn kernel() -> PvCpu {
    let mut pv = PvCpu::new();
    for vector in [13, 0x80, 3] {
        pv.set_gate(&TrapInfo {
            vector,
            flags: 7,
            cs: 0,
            pad: 0,
            address: CODE,
        })
        .unwrap();
    }
    pv.set_iopl(1).unwrap();
    pv
}

fn regs() -> Regs {
    Regs {
        rip: CODE,
        cs: 0xe033,
        ss: 0xe02b,
        rflags: 0x202,
        rax: 0xaaaa_bbbb_cccc_dd07,
        rcx: 0x10,
        rdx: 0x3f8,
        rsi: DATA,
        rdi: DATA,
        rbx: 0x9999,
        r9: 0x7777,
        ..Regs::default()
    }
}

/// Runs one instruction; returns the outcome, the registers and what the environment saw.
fn run(pv: &PvCpu, start: &Regs, code: &[u8], error: u32) -> (Outcome, Regs, Vec<String>) {
    let mut bytes = [0x90_u8; 128];
    bytes[..code.len()].copy_from_slice(code);
    let mut env = Env::new(&mut bytes);
    let mut regs = *start;
    let outcome = general_protection(pv, &mut regs, &mut env, error);
    (outcome, regs, env.log)
}

#[test]
fn kernel_instructions() {
    let pv = kernel();
    for (code, seen) in [
        (&[0xe4, 0x60][..], "in 0x60 1"),
        (&[0xe5, 0x60], "in 0x60 4"),
        (&[0x66, 0xe5, 0x60], "in 0x60 2"),
        (&[0xec], "in 0x3f8 1"),
        (&[0x66, 0xed], "in 0x3f8 2"),
        (&[0xed], "in 0x3f8 4"),
        (&[0x48, 0xed], "in 0x3f8 4"),
        (&[0xe6, 0x80], "out 0x80 1 0x7"),
        (&[0xee], "out 0x3f8 1 0x7"),
        (&[0x66, 0xef], "out 0x3f8 2 0xdd07"),
        (&[0xef], "out 0x3f8 4 0xccccdd07"),
        (&[0xfa], ""),
        (&[0xfb], ""),
        (&[0x0f, 0x06], "cr0 0x80050033"),
        (&[0x0f, 0x08], "flush"),
        (&[0x0f, 0x09], "flush"),
        (&[0x0f, 0x30], "wrmsr 0x10 0x3f8ccccdd07"),
        (&[0x0f, 0x22, 0xe3], "cr4 0x9999"),
        (&[0x41, 0x0f, 0x22, 0xd9], "cr3 0x7777"),
        (&[0x0f, 0x23, 0xfb], "dr7 0x9999"),
        (&[0x0f, 0x01, 0x3f], "invlpg 0xffffffff81000040"),
        (&[0x65, 0x0f, 0x01, 0x3f], "invlpg 0xffffffff81000240"),
        (&[0x0f, 0x01, 0xf3], "cr0 0x80050039"),
    ] {
        let (outcome, regs, log) = run(&pv, &regs(), code, 0);
        assert_eq!(outcome, Outcome::Done, "{code:x?}");
        assert_eq!(regs.rip, CODE + code.len() as u64, "{code:x?}");
        assert_eq!(log.join(";"), seen, "{code:x?}");
        assert_eq!(regs.rflags, 0x202, "XSA-202: {code:x?}");
    }
}

#[test]
fn a_root_that_is_not_validated_yet_is_loaded_again() {
    let mut memory = [0_u8; 16];
    memory[..3].copy_from_slice(&[0x0f, 0x22, 0xd8]);
    let mut env = Env::new(&mut memory);
    let pv = PvCpu::new();
    let mut regs = Regs {
        rip: CODE,
        rax: LARGE_ROOT,
        ..Regs::default()
    };
    for _ in 0..2 {
        let before = regs;
        assert_eq!(
            general_protection(&pv, &mut regs, &mut env, 0),
            Outcome::Retry
        );
        assert_eq!(regs, before);
    }
    assert_eq!(
        general_protection(&pv, &mut regs, &mut env, 0),
        Outcome::Done
    );
    assert_eq!(regs.rip, CODE + 3);
}

#[test]
fn results_in_registers() {
    let pv = kernel();
    let after = |code: &[u8]| run(&pv, &regs(), code, 0).1;
    assert_eq!(after(&[0xec]).rax, 0xaaaa_bbbb_cccc_dd55);
    assert_eq!(after(&[0x66, 0xed]).rax, 0xaaaa_bbbb_cccc_6655);
    assert_eq!(after(&[0xed]).rax, 0x8877_6655);
    let msr = after(&[0x0f, 0x32]);
    assert_eq!((msr.rax, msr.rdx), (0x3333_4444, 0x1111_2222));
    assert_eq!(after(&[0x0f, 0x20, 0xd0]).rax, 0x2000);
    assert_eq!(after(&[0x41, 0x0f, 0x20, 0xe1]).r9, 0x4000);
    assert_eq!(after(&[0x0f, 0x21, 0xf3]).rbx, 0xd6);
    let tsc = after(&[0x0f, 0x31]);
    assert_eq!((tsc.rax, tsc.rdx), (2, 1));
    assert_eq!(after(&[0x0f, 0x01, 0xf9]).rcx, 5);
    let id = after(&[0x0f, 0xa2]);
    assert_eq!((id.rax, id.rbx, id.rcx, id.rdx), (0xcccc_dd07, 0x10, 3, 4));
}

#[test]
fn privilege() {
    let inject = |error| Outcome::Inject(Trap::gp(error));
    let mut user = kernel();
    user.in_kernel = false;
    for code in [
        &[0xec][..],
        &[0xfa],
        &[0xfb],
        &[0xf4],
        &[0x6c],
        &[0x0f, 0x06],
        &[0x0f, 0x09],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x23, 0xf8],
        &[0x0f, 0x01, 0xd1],
        &[0x0f, 0x01, 0x3f],
        &[0x0f, 0x01, 0xf0],
    ] {
        let (outcome, after, log) = run(&user, &regs(), code, 0);
        assert_eq!(
            (outcome, after, log.len()),
            (inject(0), regs(), 0),
            "{code:x?}"
        );
    }
    // Not even for the kernel: LGDT, LIDT, LLDT, LTR, SWAPGS, SYSRET, RDPMC, CR8, far jumps, LOCK, nonsense.
    for code in [
        &[0x0f, 0x01, 0x17][..],
        &[0x0f, 0x01, 0x1f],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x01, 0xf8],
        &[0x48, 0x0f, 0x07],
        &[0x0f, 0x33],
        &[0x44, 0x0f, 0x20, 0xc0],
        &[0x44, 0x0f, 0x22, 0xc0],
        &[0xf0, 0xec],
        &[0xcf],
    ] {
        assert_eq!(run(&kernel(), &regs(), code, 0).0, inject(0), "{code:x?}");
    }
    // IOPL 0: no CLI, no ports, unless the guest's bitmap opens them.
    let mut plain = kernel();
    plain.set_iopl(0).unwrap();
    assert_eq!(run(&plain, &regs(), &[0xfa], 0).0, inject(0));
    let mut code = [0xec_u8; 32];
    let mut env = Env::new(&mut code);
    env.bitmap = true;
    assert_eq!(
        general_protection(&user, &mut regs(), &mut env, 0),
        Outcome::Done
    );
    assert_eq!(run(&kernel(), &regs(), &[0xf4], 0).0, Outcome::Halt);
    // Single step after emulation.
    let stepping = Regs {
        rflags: 0x302,
        ..regs()
    };
    assert_eq!(run(&kernel(), &stepping, &[0xfa], 0).0, Outcome::DoneStep);
}

#[test]
fn refused_msr_reads_before_there_is_a_handler() {
    let early = PvCpu::new();
    let start = Regs {
        rcx: 0xbad,
        ..regs()
    };
    let (outcome, after, _) = run(&early, &start, &[0x0f, 0x32], 0);
    assert_eq!((outcome, after.rax, after.rdx), (Outcome::Done, 0, 0));
    assert_eq!(
        run(&kernel(), &start, &[0x0f, 0x32], 0).0,
        Outcome::Inject(Trap::gp(0))
    );
}

#[test]
fn software_interrupts_are_known_by_their_bytes() {
    let pv = kernel();
    // Right and QEMU 7.2's error code for int 0x80.
    for error in [0x80 * 8 + 2, 0x80 * 16 + 2] {
        let (outcome, after, _) = run(&pv, &regs(), &[0xcd, 0x80], error);
        assert_eq!(
            outcome,
            Outcome::Software {
                vector: 0x80,
                length: 2
            }
        );
        assert_eq!(after.rip, CODE + 2);
    }
    // No such gate in the guest; a selector fault is passed on as it is.
    let (outcome, after, _) = run(&pv, &regs(), &[0xcd, 0x81], 0x81 * 16 + 2);
    assert_eq!(
        (outcome, after.rip),
        (Outcome::Inject(Trap::gp(0x81 * 8 + 2)), CODE)
    );
    let (outcome, ..) = run(&pv, &regs(), &[0xcd, 0x80], 0x18);
    assert_eq!(outcome, Outcome::Inject(Trap::gp(0x18)));
}

#[test]
fn forced_emulation_prefix() {
    let code = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2, 0x90];
    let mut bytes = [0x90; 32];
    bytes[..8].copy_from_slice(&code);
    let mut env = Env::new(&mut bytes);
    let mut after = regs();
    assert_eq!(invalid_opcode(&mut after, &mut env), Outcome::Done);
    assert_eq!((after.rip, after.rax), (CODE + 7, 0xcccc_dd07));
    after.rip = CODE + 7;
    assert_eq!(
        invalid_opcode(&mut after, &mut env),
        Outcome::Inject(Trap::UD)
    );
    // Nothing can be fetched.
    after.rip = 0x1000;
    assert_eq!(
        invalid_opcode(&mut after, &mut env),
        Outcome::Inject(Trap::UD)
    );
    assert_eq!(
        general_protection(&kernel(), &mut after, &mut env, 0),
        Outcome::Inject(Trap::gp(0))
    );
}

#[test]
fn strings_go_in_bounded_batches() {
    let pv = kernel();
    // outsb, once.
    let (outcome, after, log) = run(&pv, &regs(), &[0x6e], 0);
    assert_eq!(
        (outcome, after.rsi, log.len()),
        (Outcome::Done, DATA + 1, 1)
    );
    // rep outsw over 4 elements.
    let start = Regs { rcx: 4, ..regs() };
    let (outcome, after, log) = run(&pv, &start, &[0xf3, 0x66, 0x6f], 0);
    assert_eq!(
        (outcome, after.rsi, after.rcx),
        (Outcome::Done, DATA + 8, 0)
    );
    assert_eq!((log.len(), log[0].as_str()), (4, "out 0x3f8 2 0x9090"));
    // rep insb runs into the end of memory: the rest faults with a write error, registers tell how far it came.
    let start = Regs {
        rcx: 1000,
        rdi: DATA + 40,
        ..regs()
    };
    let (outcome, after, log) = run(&pv, &start, &[0xf3, 0x6c], 0);
    assert_eq!(outcome, Outcome::Inject(Trap::page_fault(CODE + 128, 2)));
    assert_eq!(
        (after.rdi, after.rcx, after.rip, log.len()),
        (CODE + 128, 976, CODE, 24)
    );
    // Backwards, and bounded.
    let start = Regs {
        rcx: 100,
        rdi: DATA + 63,
        rflags: 0x202 | rflags::DF,
        ..regs()
    };
    let (outcome, after, log) = run(&pv, &start, &[0xf3, 0x6c], 0);
    assert_eq!((outcome, after.rip), (Outcome::Retry, CODE));
    assert_eq!(
        (after.rcx, log.len()),
        (100 - u64::from(STRING_BATCH), STRING_BATCH as usize)
    );
    // A count of 0 does nothing.
    let start = Regs {
        rcx: 0,
        rdi: 0,
        ..regs()
    };
    let (outcome, after, log) = run(&pv, &start, &[0xf3, 0x6c], 0);
    assert_eq!(
        (outcome, after.rip, log.len()),
        (Outcome::Done, CODE + 2, 0)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn random_bytes_are_bounded(
        code in proptest::collection::vec(any::<u8>(), 1..24),
        prefix in prop_oneof![Just(None), Just(Some(0x0f_u8)), Just(Some(0xf3))],
        registers in any::<[u64; 4]>(),
        flags in any::<(bool, bool, bool)>(),
        error in prop_oneof![Just(0), any::<u32>()],
    ) {
        let mut bytes = [0_u8; 48];
        let start = usize::from(prefix.is_some());
        bytes[0] = prefix.unwrap_or(0);
        bytes[start..start + code.len()].copy_from_slice(&code);
        let mut env = Env::new(&mut bytes);
        let (in_kernel, long, bitmap) = flags;
        (env.long, env.bitmap) = (long, bitmap);
        let mut pv = kernel();
        pv.in_kernel = in_kernel;
        let [rax, rcx, rdx, rdi] = registers;
        let before = Regs { rax, rcx, rdx, rdi, ..regs() };
        let mut after = before;
        let outcome = general_protection(&pv, &mut after, &mut env, error);
        let moved = after.rip.wrapping_sub(before.rip);
        match outcome {
            Outcome::Inject(_) | Outcome::Retry => prop_assert_eq!(moved, 0),
            _ => prop_assert!((1..=15).contains(&moved)),
        }
        prop_assert!(env.log.len() <= STRING_BATCH as usize);
        prop_assert_eq!(after.rflags, before.rflags);
        prop_assert_eq!((after.cs, after.ss), (before.cs, before.ss));
        if !in_kernel {
            prop_assert!(env.log.iter().all(|line| line.starts_with("in ") || line.starts_with("out ")));
        }
        invalid_opcode(&mut after, &mut env);
    }
}
