// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entering the guest kernel and leaving it again: frame layouts, refusals, and what no `iret` frame can get.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at what must not happen"
)]

use philoxen_abi::addr::{GuestWords, HYPERVISOR_END, HYPERVISOR_START, is_canonical};
use philoxen_abi::arch::{IretContext, TrapInfo, rflags};
use philoxen_abi::{Errno, callback};
use philoxen_pv::bounce::{self, Bounce, KernelEntry, Trap};
use philoxen_pv::iret::iret;
use philoxen_pv::regs::ORIGIN_SYSRET;
use philoxen_pv::{Crash, PvCpu, Regs};
use proptest::prelude::*;

const HANDLER: u64 = 0xffff_ffff_8180_0000;
const STACK: u64 = 0xffff_c900_0000_4000;

#[derive(Default)]
struct Vcpu {
    masked: bool,
    switched: bool,
    stored: Vec<(u64, Vec<u64>)>,
    faults: bool,
}

impl KernelEntry for Vcpu {
    fn upcall_masked(&self) -> bool {
        self.masked
    }
    fn mask_upcalls(&mut self) {
        self.masked = true;
    }
    fn switch_to_kernel(&mut self) {
        assert!(
            self.stored.is_empty(),
            "the kernel's page tables must be loaded before the store"
        );
        self.switched = true;
    }
    fn store<const N: usize>(&mut self, at: GuestWords<N>, words: [u64; N]) -> bool {
        self.stored.push((at.start().0, words.to_vec()));
        !self.faults
    }
}

fn kernel() -> PvCpu {
    let mut pv = PvCpu::new();
    for vector in 0..=255 {
        let flags = if matches!(vector, 3 | 4 | 0x80) { 7 } else { 4 };
        let address = HANDLER + u64::from(vector) * 16;
        pv.set_gate(&TrapInfo {
            vector,
            flags,
            cs: 0x10,
            pad: 0,
            address,
        })
        .unwrap();
    }
    for (kind, offset) in [
        (0, 0x1000),
        (1, 0x1010),
        (2, 0x1020),
        (5, 0x1030),
        (7, 0x1040),
    ] {
        pv.register_callback(kind, 1, HANDLER + offset).unwrap();
    }
    pv.kernel_sp = STACK;
    pv
}

fn user() -> Regs {
    Regs {
        rcx: 0x11,
        r11: 0x22,
        rax: 39,
        rip: 0x40_1000,
        cs: 0xe033,
        rflags: rflags::IF | rflags::FIXED | rflags::ZF | rflags::AC | rflags::DF | rflags::TF,
        rsp: 0x7fff_ffff_e018,
        ss: 0xe02b,
        ..Regs::default()
    }
}

#[test]
fn syscall_from_user_mode() {
    let (mut pv, mut regs, mut vcpu) = (kernel(), user(), Vcpu::default());
    pv.in_kernel = false;
    bounce::syscall(&mut pv, &mut regs, &mut vcpu).unwrap();
    let flags = user().rflags;
    let frame = vec![
        0x11,
        0x22,
        0x40_1000,
        0xe033,
        flags,
        0x7fff_ffff_e018,
        0xe02b,
    ];
    assert_eq!(vcpu.stored, [(STACK - 56, frame)]);
    assert!(vcpu.switched && vcpu.masked && pv.in_kernel);
    assert_eq!((regs.rip, regs.rsp), (HANDLER + 0x1020, STACK - 56));
    assert_eq!((regs.cs, regs.ss), (0xe033, 0xe02b));
    assert_eq!(regs.rflags, rflags::IF | rflags::FIXED | rflags::ZF);
    assert_eq!(regs.origin & ORIGIN_SYSRET, ORIGIN_SYSRET);
    assert_eq!(regs.rax, 39);
}

#[test]
fn exception_in_the_kernel_with_events_masked() {
    let (mut pv, mut vcpu) = (
        kernel(),
        Vcpu {
            masked: true,
            ..Vcpu::default()
        },
    );
    let mut regs = Regs {
        rsp: STACK - 0x123,
        rip: HANDLER + 5,
        ..user()
    };
    let before = regs;
    bounce::exception(&mut pv, &mut regs, &mut vcpu, Trap::new(14, 0xdead_0002)).unwrap();
    let sp = ((STACK - 0x123) & !15) - 64;
    // RPL 0, the mask in byte 4 of CS, IF opposite to the mask.
    let frame = vec![
        0x11,
        0x22,
        0xdead_0002,
        HANDLER + 5,
        0x1_0000_e030,
        before.rflags & !rflags::IF,
        STACK - 0x123,
        0xe02b,
    ];
    assert_eq!(vcpu.stored, [(sp, frame)]);
    assert!(!vcpu.switched);
    assert_eq!((regs.rip, regs.rsp), (HANDLER + 14 * 16, sp));
    assert_eq!(
        regs.rflags & (rflags::IF | rflags::TF | rflags::AC),
        rflags::IF
    );
}

#[test]
fn virtual_iopl_shows_only_with_the_assist() {
    let mut pv = kernel();
    pv.set_iopl(1).unwrap();
    assert_eq!(pv.set_iopl(4), Err(Errno::EINVAL));
    let plain = bounce::plan_event(&pv, &user(), false).unwrap();
    assert_eq!(plain.words[4] & rflags::IOPL, 0);
    pv.set_architectural_iopl(true);
    let shown = bounce::plan_event(&pv, &user(), false).unwrap();
    assert_eq!(shown.words[4] & rflags::IOPL, 1 << 12);
    assert!(pv.iopl_allows());
    pv.in_kernel = false;
    assert!(!pv.iopl_allows());
}

#[test]
fn failsafe_layout() {
    let (mut pv, mut regs, mut vcpu) = (kernel(), user(), Vcpu::default());
    pv.in_kernel = false;
    bounce::failsafe(&mut pv, &mut regs, &mut vcpu, [1, 2, 3, 4]).unwrap();
    let (sp, words) = vcpu.stored[0].clone();
    assert_eq!(sp, STACK - 88);
    assert_eq!(words[..7], [0x11, 0x22, 1, 2, 3, 4, 0x40_1000]);
    assert_eq!(words.len(), 11);
}

#[test]
fn contract_breaches_crash_by_name() {
    let mut vcpu = Vcpu::default();
    let mut empty = PvCpu::new();
    let mut regs = user();
    let got = bounce::exception(&mut empty, &mut regs, &mut vcpu, Trap::gp(0));
    assert_eq!(got, Err(Crash::NoHandler(13)));
    let got = bounce::event(&mut empty, &mut regs, &mut vcpu);
    assert_eq!(got, Err(Crash::NoCallback(callback::CALLBACKTYPE_EVENT)));
    assert!(vcpu.stored.is_empty());

    // XSA-215: no frame in the hypervisor's range, not even by its first or last word.
    let mut pv = kernel();
    pv.in_kernel = false;
    for stack in [
        HYPERVISOR_START + 16,
        HYPERVISOR_START,
        HYPERVISOR_END,
        HYPERVISOR_END + 48,
        0x8000_0000_0010,
        0,
        48,
    ] {
        pv.kernel_sp = stack;
        for got in [
            bounce::plan_syscall(&pv, &regs, false).err(),
            bounce::plan_exception(&pv, &regs, false, Trap::gp(0)).err(),
            bounce::plan_failsafe(&pv, &regs, false, [0; 4]).err(),
        ] {
            assert_eq!(got, Some(Crash::BadStack(stack)), "{stack:#x}");
        }
    }
    pv.kernel_sp = 0x8000_0000_0000;
    assert!(bounce::plan_syscall(&pv, &regs, false).is_ok());

    pv.kernel_sp = STACK;
    let mut faulty = Vcpu {
        faults: true,
        ..Vcpu::default()
    };
    let got = bounce::syscall(&mut pv, &mut regs, &mut faulty);
    assert_eq!(got, Err(Crash::FrameFault(STACK - 56)));
}

#[test]
fn entry_points_must_be_canonical() {
    let mut pv = PvCpu::new();
    let address = 0x8000_0000_0000;
    for kind in [0, 1, 2, 4, 5, 7] {
        assert_eq!(pv.register_callback(kind, 0, address), Err(Errno::EINVAL));
    }
    assert_eq!(pv.register_callback(3, 0, HANDLER), Err(Errno::ENOSYS));
    assert_eq!(pv.unregister_callback(0), Err(Errno::EINVAL));
    let trap = TrapInfo {
        vector: 1,
        flags: 0,
        cs: 0,
        pad: 0,
        address,
    };
    assert_eq!(pv.set_gate(&trap), Err(Errno::EINVAL));
    assert_eq!(pv.gate(1).address(), 0);
    assert_eq!(kernel().trap_info(0x80).flags, 7);
}

#[test]
fn software_interrupts_need_the_guests_leave() {
    // XSA-259, XSA-298: a missing gate or callback is never entered.
    for (vector, in_kernel, entered) in [
        (0x80, false, true),
        (3, false, true),
        (0x81, false, false),
        (0x81, true, false),
    ] {
        let (mut pv, mut regs, mut vcpu) = (kernel(), user(), Vcpu::default());
        pv.in_kernel = in_kernel;
        regs.rip += 2;
        bounce::software_interrupt(&mut pv, &mut regs, &mut vcpu, vector, 2).unwrap();
        let words = vcpu.stored[0].1.clone();
        if entered {
            assert_eq!((words.len(), words[2]), (7, 0x40_1002));
        } else {
            assert_eq!((words[2], words[3]), (u64::from(vector) * 8 + 2, 0x40_1000));
        }
    }
    let (mut pv, mut regs, mut vcpu) = (kernel(), user(), Vcpu::default());
    pv.syscall = philoxen_pv::state::Callback::NONE;
    pv.in_kernel = false;
    let got = bounce::syscall(&mut pv, &mut regs, &mut vcpu);
    assert_eq!(got, Err(Crash::NoCallback(callback::CALLBACKTYPE_SYSCALL)));
    assert!(vcpu.stored.is_empty() && !vcpu.switched);
    bounce::back_to_syscall(&mut regs);
    bounce::exception(&mut pv, &mut regs, &mut vcpu, Trap::UD).unwrap();
    assert_eq!(regs.rip, HANDLER + 6 * 16);
    assert_eq!(vcpu.stored[0].1[2], 0x40_1000 - 2);
    // XSA-44: NT goes before the fault of an unregistered SYSENTER.
    let (mut pv, mut regs, mut vcpu) = (kernel(), user(), Vcpu::default());
    pv.sysenter = philoxen_pv::state::Callback::NONE;
    pv.in_kernel = false;
    regs.rflags |= rflags::NT;
    bounce::sysenter(&mut pv, &mut regs, &mut vcpu).unwrap();
    assert_eq!(vcpu.stored[0].1[5] & rflags::NT, 0);
}

#[test]
fn iret_by_syscall_flag_discards_what_it_may() {
    let mut pv = kernel();
    let mut regs = Regs {
        rcx: 1,
        r11: 2,
        ..Regs::default()
    };
    let frame = IretContext {
        rax: 7,
        r11: 0x55,
        rcx: 0x66,
        flags: 0x100,
        rip: 0x40_2000,
        cs: 0x33,
        rflags: 0x246,
        rsp: 0x7000,
        ss: 0x2b,
    };
    let done = iret(&mut pv, &mut regs, &frame, true).unwrap();
    assert!(done.to_user && !done.masked && !done.failsafe && !pv.in_kernel);
    assert_eq!(
        (regs.cs, regs.ss, regs.origin),
        (0xe033, 0xe02b, ORIGIN_SYSRET)
    );
    assert_eq!(
        (regs.rax, regs.rip, regs.rsp, regs.rflags),
        (7, 0x40_2000, 0x7000, 0x246)
    );

    // XSA-7: a non-canonical RIP is never given to SYSRET.
    let mut pv = kernel();
    let bad = IretContext {
        rip: 0x8000_0000_0000,
        ..frame
    };
    let done = iret(&mut pv, &mut regs, &bad, true).unwrap();
    assert!(done.failsafe);
    assert_eq!(regs.origin & ORIGIN_SYSRET, 0);
    assert_eq!(
        iret(&mut kernel(), &mut regs, &frame, false),
        Err(Crash::NoUserTables)
    );

    let mut end = Regs {
        rip: 0x8000_0000_0000,
        origin: ORIGIN_SYSRET,
        ..Regs::default()
    };
    end.check_exit();
    assert_eq!(end.origin, 0);
}

#[test]
fn iret_to_the_kernel_restores_the_mask() {
    let mut pv = kernel();
    pv.set_architectural_iopl(true);
    let mut regs = Regs::default();
    let frame = IretContext {
        rax: 1,
        r11: 2,
        rcx: 3,
        flags: 0,
        rip: HANDLER,
        cs: 0xe030,
        rflags: 0x1046,
        rsp: STACK,
        ss: 0xe028,
    };
    let done = iret(&mut pv, &mut regs, &frame, false).unwrap();
    assert!(!done.to_user && done.masked && !done.failsafe && pv.in_kernel);
    assert_eq!((regs.cs, regs.ss, regs.rflags), (0xe033, 0xe02b, 0x246));
    assert_eq!((regs.rax, regs.r11, regs.rcx), (1, 2, 3));
    assert_eq!(pv.iopl(), 1);
}

#[test]
fn selectors_of_the_hypervisor_and_null_are_not_code() {
    for (cs, ok) in [
        (0xe033, true),
        (0xe023, true),
        (0x33, true),
        (0x13, true),
        (0x0f, true),
        (0xdfff, true),
        (3, false),
        (0, false),
        (0xe003, false),
        (0xe00b, false),
        (0xe02b, false),
        (0xe03b, false),
        (0xfffb, false),
    ] {
        assert_eq!(bounce::code_selector_ok(cs), ok, "{cs:#x}");
    }
}

#[test]
fn nmis_wait_for_the_handlers_iret() {
    let (mut pv, mut regs, mut vcpu) = (kernel(), user(), Vcpu::default());
    pv.unregister_callback(callback::CALLBACKTYPE_NMI).unwrap();
    assert!(!pv.takes_nmi());
    pv.register_callback(callback::CALLBACKTYPE_NMI, 0, HANDLER + 0x2000)
        .unwrap();
    assert!(pv.takes_nmi());
    // The trap table, which tools save, has it.
    assert_eq!(pv.trap_info(2).address, HANDLER + 0x2000);
    bounce::nmi(&mut pv, &mut regs, &mut vcpu).unwrap();
    assert_eq!(regs.rip, HANDLER + 0x2000);
    assert!(vcpu.masked && !pv.takes_nmi());
    let frame = IretContext {
        rax: 1,
        r11: 2,
        rcx: 3,
        flags: 0,
        rip: HANDLER,
        cs: 0xe030,
        rflags: rflags::IF,
        rsp: STACK,
        ss: 0xe028,
    };
    let done = iret(&mut pv, &mut regs, &frame, false).unwrap();
    assert!(pv.takes_nmi() && !done.masked);
    assert_eq!(pv.iopl(), 0);
}

fn any_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u64..256).prop_map(|low| HYPERVISOR_START.wrapping_sub(128).wrapping_add(low)),
        (0_u64..256).prop_map(|low| HYPERVISOR_END - 128 + low),
        (0_u64..256).prop_map(|low| 0x7fff_ffff_ff80 + low),
        Just(STACK),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn no_iret_frame_gains_privilege(
        words in any::<[u64; 6]>(),
        rip in any_address(),
        in_syscall in any::<bool>(),
        has_user in any::<bool>(),
    ) {
        let [rax, r11, cs, flags, rsp, ss] = words;
        let frame = IretContext {
            rax, r11, rcx: r11, flags: u64::from(in_syscall) << 8, rip, cs, rflags: flags, rsp, ss,
        };
        let (mut pv, mut regs) = (kernel(), user());
        match iret(&mut pv, &mut regs, &frame, has_user) {
            Err(reason) => {
                prop_assert_eq!(reason, Crash::NoUserTables);
                prop_assert!(!has_user && cs & 3 == 3);
            }
            Ok(done) => {
                prop_assert_eq!(regs.cs & 3, 3);
                prop_assert_eq!(regs.ss & 3, 3);
                prop_assert!(regs.cs < 0x1_0000 && regs.ss < 0x1_0000);
                let fixed = rflags::IF | rflags::IOPL | rflags::NT | rflags::VM | 2 | 3 << 19;
                prop_assert_eq!(regs.rflags & fixed, rflags::IF | 2);
                prop_assert_eq!(regs.rflags >> 22, 0);
                prop_assert_eq!(done.masked, flags & rflags::IF == 0);
                prop_assert_eq!(done.to_user, !pv.in_kernel);
                prop_assert!(done.failsafe || is_canonical(regs.rip));
                prop_assert!(done.failsafe || bounce::code_selector_ok(regs.cs as u16));
                if regs.origin & ORIGIN_SYSRET != 0 {
                    prop_assert!(is_canonical(regs.rip) && regs.cs == 0xe033);
                }
            }
        }
    }

    /// What an exception stores is what `iret` needs to undo it.
    #[test]
    fn bounce_then_iret_is_the_identity(
        general in any::<[u64; 4]>(),
        rip in 0_u64..0x7fff_ffff_f000,
        vector in 0_u8..32,
        masked in any::<bool>(),
        in_kernel in any::<bool>(),
    ) {
        let [rax, rcx, r11, flags] = general;
        let mut start = Regs { rax, rcx, r11, rflags: flags, ..user() };
        start.rip = rip;
        start.rsp = STACK;
        prop_assert!(start.sanitise());
        let mut pv = kernel();
        pv.in_kernel = in_kernel;
        let (mut regs, mut vcpu) = (start, Vcpu { masked, ..Vcpu::default() });
        bounce::exception(&mut pv, &mut regs, &mut vcpu, Trap::new(vector, 0)).unwrap();
        prop_assert!(vcpu.masked && pv.in_kernel);
        let words = &vcpu.stored[0].1;
        prop_assert_eq!(words.len(), if bounce::has_error_code(vector) { 8 } else { 7 });
        let tail = &words[words.len() - 5..];
        prop_assert_eq!(tail[1] >> 32, u64::from(masked));
        let frame = IretContext {
            rax: regs.rax, r11: words[1], rcx: words[0], flags: 0,
            rip: tail[0], cs: tail[1], rflags: tail[2], rsp: tail[3], ss: tail[4],
        };
        let done = iret(&mut pv, &mut regs, &frame, true).unwrap();
        prop_assert_eq!((done.masked, done.to_user, done.failsafe), (masked, !in_kernel, false));
        prop_assert_eq!(pv.in_kernel, in_kernel);
        regs.origin = start.origin;
        prop_assert_eq!(regs, start);
    }

    /// Whatever the stack, a planned frame lies in the guest's part of the address space (XSA-215).
    #[test]
    fn frames_avoid_the_hypervisor(stack in any_address(), vector in any::<u8>(), in_kernel: bool) {
        let mut pv = kernel();
        pv.in_kernel = in_kernel;
        pv.kernel_sp = stack;
        let regs = Regs { rsp: stack, ..user() };
        let planned = match bounce::plan_exception(&pv, &regs, false, Trap::new(vector, 0)) {
            Ok(Bounce::Plain(frame)) => Some((frame.sp.start().0, 56)),
            Ok(Bounce::Coded(frame)) => Some((frame.sp.start().0, 64)),
            Err(_) => None,
        };
        if let Some((sp, size)) = planned {
            prop_assert_eq!(sp.wrapping_add(size) & 15, 0);
            for at in [sp, sp + size - 1] {
                prop_assert!(is_canonical(at));
                prop_assert!(!(HYPERVISOR_START..HYPERVISOR_END).contains(&at));
            }
        }
    }
}
