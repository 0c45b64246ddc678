// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's whole state as `struct vcpu_guest_context` (xen/arch-x86/xen.h) has it: for `VCPUOP_initialise` and for
//! tools that build, save and look at domains.

use crate::domain::Domain;
use crate::host::Hv;
use crate::lifecycle::{release_tables, release_vcpu};
use crate::ops::misc::ASSISTS;
use crate::syscall::budget;
use crate::vcpu::{Vcpu, VcpuState};
use crate::{schedule, time};
use alloc::boxed::Box;
use core::sync::atomic::Ordering;
use philoxen_abi::arch::{self, VcpuGuestContext};
use philoxen_abi::{Errno, GuestMemory, GuestVa, Mfn, PAGE_SIZE, Result, VcpuId, callback};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::cpu::state::Segments;
use philoxen_paging::mmuext;
use philoxen_paging::validate::{self, Stop};
use philoxen_pv::{Regs, control};
use zerocopy::{FromZeros, IntoBytes};

/// `VCPUOP_initialise(vcpu, context)`.
///
/// # Errors
/// `EEXIST` if it has been initialised, `EINVAL` for a state it cannot have, `EFAULT`, `ENOMEM`; or "again" while its page
/// tables are being validated.
#[inline(never)]
pub fn initialise(domain: &Domain, vcpu: &Vcpu, arg: GuestVa) -> core::result::Result<(), Stop> {
    let context = read(arg)?;
    // Held all along: of two at the same time one finds the vCPU initialised, and its roots are not touched.
    let mut parked = vcpu.parked.lock();
    if vcpu.initialised.load(Ordering::Acquire) {
        return Err(Errno::EEXIST.into());
    }
    *parked = Some(build(domain, vcpu, &context)?);
    vcpu.initialised.store(true, Ordering::Release);
    Ok(())
}

/// A context from the caller's memory: five kilobytes, on the heap and not on the hypervisor's stack.
///
/// # Errors
/// `EFAULT`, `ENOMEM`.
pub fn read(arg: GuestVa) -> Result<Box<VcpuGuestContext>> {
    let mut context = VcpuGuestContext::new_box_zeroed().map_err(|_| Errno::ENOMEM)?;
    LoadedGuest.read_bytes(arg, context.as_mut_bytes())?;
    Ok(context)
}

/// Gives a vCPU that does not run the state `context`, in the place of any it had (`setvcpucontext`).
///
/// # Errors
/// As [`initialise`], but for `EEXIST`.
#[inline(never)]
pub fn set(
    domain: &Domain,
    vcpu: &Vcpu,
    context: &VcpuGuestContext,
) -> core::result::Result<(), Stop> {
    let old = {
        // Held while the roots change: the domain may be initialising the vCPU at the same time.
        let mut parked = vcpu.parked.lock();
        let mut state = build(domain, vcpu, context)?;
        // The context has no room for these: a guest that resumes from a cancelled suspend goes on with its own.
        if let Some(old) = &*parked {
            state.xcr0 = old.xcr0;
            state.tsc_aux = old.tsc_aux;
            state.io_bitmap = old.io_bitmap;
        }
        parked.replace(state)
    };
    vcpu.initialised.store(true, Ordering::Release);
    if vcpu.id == VcpuId(0) {
        let assists = context.vm_assist & ASSISTS;
        domain.assists.store(assists, Ordering::Relaxed);
    }
    if let Some(old) = old {
        release_tables(&old);
    }
    time::write_time(domain, vcpu.id);
    if context.flags & arch::VGCF_ONLINE != 0 {
        schedule::bring_up(domain, vcpu.id);
    } else {
        schedule::take_down(domain, vcpu.id);
    }
    Ok(())
}

/// Makes a vCPU that does not run as it was before it was initialised: down.
pub fn reset(domain: &Domain, vcpu: &Vcpu) {
    {
        // Under this lock the domain brings it up: whoever comes later finds it not initialised.
        let _parked = vcpu.parked.lock();
        vcpu.initialised.store(false, Ordering::Release);
        schedule::take_down(domain, vcpu.id);
    }
    release_vcpu(vcpu, &mut budget());
}

/// The state of a vCPU that does not run, for tools.
///
/// # Errors
/// `ENOMEM`.
#[inline(never)]
pub fn get(domain: &Domain, vcpu: &Vcpu, state: &VcpuState) -> Result<Box<VcpuGuestContext>> {
    let bit = |condition: bool, flag: u64| if condition { flag } else { 0 };
    let pv = &state.pv;
    let [ds, es, fs, gs] = state.segments.selectors;
    let masked = domain
        .events
        .vcpu(vcpu.id)
        .is_some_and(|events| events.upcall_masked(&Hv));
    let mut context = VcpuGuestContext::new_box_zeroed().map_err(|_| Errno::ENOMEM)?;
    context.flags = arch::VGCF_I387_VALID
        | bit(pv.in_kernel, arch::VGCF_IN_KERNEL)
        | bit(
            pv.failsafe.masks_events(),
            arch::VGCF_FAILSAFE_DISABLES_EVENTS,
        )
        | bit(
            pv.syscall.masks_events(),
            arch::VGCF_SYSCALL_DISABLES_EVENTS,
        )
        | bit(schedule::is_up(domain, vcpu.id), arch::VGCF_ONLINE);
    for (to, from) in context.fpu_ctxt.iter_mut().zip(state.fpu.legacy()) {
        *to = *from;
    }
    context.user_regs = state.regs.to_context([es, ds, fs, gs], masked);
    context.user_regs.rflags |= u64::from(pv.iopl()) << 12;
    for (vector, trap) in (0..=u8::MAX).zip(&mut context.trap_ctxt) {
        *trap = pv.trap_info(vector);
    }
    (context.ldt_base, context.ldt_ents) = (state.ldt_base.0, state.ldt_entries);
    for (to, from) in context.gdt_frames.iter_mut().zip(&state.gdt) {
        *to = from.0;
    }
    context.gdt_ents = state.gdt_entries;
    (context.kernel_ss, context.kernel_sp) = (pv.kernel_ss.into(), pv.kernel_sp);
    let root = |root: Option<Mfn>| root.map_or(0, Mfn::addr);
    context.ctrlreg = [
        control::cr0_view(state.task_switched),
        root(vcpu.roots.user()),
        0,
        root(vcpu.roots.kernel()),
        state.cr4,
        0,
        0,
        0,
    ];
    for (number, value) in (0..).zip(&mut context.debugreg) {
        if !matches!(number, 4 | 5) {
            *value = state.debug.read(number, true).unwrap_or(0);
        }
    }
    context.event_callback_eip = pv.event.address();
    context.failsafe_callback_eip = pv.failsafe.address();
    context.syscall_callback_eip = pv.syscall.address();
    context.vm_assist = domain.assists.load(Ordering::Relaxed);
    context.fs_base = state.segments.fs_base;
    context.gs_base_kernel = state.segments.gs_kernel;
    context.gs_base_user = state.segments.gs_user;
    Ok(context)
}

/// The private state that `context` describes, with references to its GDT and page tables taken.
fn build(
    domain: &Domain,
    vcpu: &Vcpu,
    context: &VcpuGuestContext,
) -> core::result::Result<Box<VcpuState>, Stop> {
    let regs = Regs::from_context(&context.user_regs).ok_or(Errno::EINVAL)?;
    let mut state = VcpuState::new(regs).ok_or(Errno::ENOMEM)?;
    // The I/O privilege level is virtual: it is taken from the flags and never loaded.
    state
        .pv
        .set_iopl((context.user_regs.rflags >> 12 & 3) as u32)?;
    state.pv.in_kernel = context.flags & arch::VGCF_IN_KERNEL != 0;
    for trap in &context.trap_ctxt {
        if trap.address != 0 {
            state.pv.set_gate(trap)?;
        }
    }
    state.pv.kernel_ss = context.kernel_ss as u16 | 3;
    state.pv.kernel_sp = context.kernel_sp;
    set_callbacks(&mut state, context)?;
    for (number, value) in (0..).zip(context.debugreg) {
        if value != 0 && !matches!(number, 4 | 5) {
            state.debug.write(number, value, true)?;
        }
    }
    if context.flags & arch::VGCF_I387_VALID != 0 {
        state.fpu.set_legacy(&context.fpu_ctxt);
    }
    let user = &context.user_regs;
    state.segments = Segments {
        selectors: [user.ds, user.es, user.fs, user.gs],
        fs_base: context.fs_base,
        gs_kernel: context.gs_base_kernel,
        gs_user: context.gs_base_user,
    };
    state.ldt_base = GuestVa(context.ldt_base);
    state.ldt_entries = context.ldt_ents;
    let table = GuestVa(context.ldt_base);
    if context.ldt_ents > arch::MAX_LDT_ENTRIES
        || context.ldt_ents != 0
            && !(table.0.is_multiple_of(PAGE_SIZE) && table.range_ok(context.ldt_ents * 8))
    {
        return Err(Errno::EINVAL.into());
    }
    take_gdt(&mut state, domain, context)?;
    let result = take_roots(domain, vcpu, context);
    if result.is_err() {
        release_gdt(&state);
    }
    result.map(|()| state)
}

fn set_callbacks(state: &mut VcpuState, context: &VcpuGuestContext) -> Result<()> {
    let mask = |bit: u64| {
        if context.flags & bit != 0 {
            callback::CALLBACKF_MASK_EVENTS
        } else {
            0
        }
    };
    let callbacks = [
        (callback::CALLBACKTYPE_EVENT, 0, context.event_callback_eip),
        (
            callback::CALLBACKTYPE_FAILSAFE,
            mask(arch::VGCF_FAILSAFE_DISABLES_EVENTS),
            context.failsafe_callback_eip,
        ),
        (
            callback::CALLBACKTYPE_SYSCALL,
            mask(arch::VGCF_SYSCALL_DISABLES_EVENTS),
            context.syscall_callback_eip,
        ),
    ];
    callbacks
        .into_iter()
        .try_for_each(|(kind, flags, address)| state.pv.register_callback(kind, flags, address))
}

fn take_gdt(state: &mut VcpuState, domain: &Domain, context: &VcpuGuestContext) -> Result<()> {
    if context.gdt_ents > arch::FIRST_RESERVED_GDT_ENTRY as u64 {
        return Err(Errno::EINVAL);
    }
    let pages = context.gdt_ents.div_ceil(512) as usize;
    for &frame in context.gdt_frames.iter().take(pages) {
        let taken = validate::get_page_segdesc(Hv, Mfn(frame), domain.id);
        if taken.is_err() || state.gdt.try_push(Mfn(frame)).is_err() {
            release_gdt(state);
            return Err(Errno::EINVAL);
        }
    }
    state.gdt_entries = context.gdt_ents;
    Ok(())
}

fn release_gdt(state: &VcpuState) {
    state
        .gdt
        .iter()
        .for_each(|&mfn| validate::put_page_segdesc(Hv, mfn));
}

/// Frame number in a PV CR3 value (`xen_cr3_to_pfn`): the upper part is folded into the low twelve bits.
const fn cr3_frame(cr3: u64) -> Mfn {
    Mfn(cr3 >> 12 | (cr3 & 0xfff) << 52)
}

fn take_roots(
    domain: &Domain,
    vcpu: &Vcpu,
    context: &VcpuGuestContext,
) -> core::result::Result<(), Stop> {
    let [_, user, _, kernel, ..] = context.ctrlreg;
    // Bit 0 of the user root only says that it is valid.
    let user = (user & !1 != 0).then(|| cr3_frame(user & !1));
    mmuext::set_roots(
        Hv,
        &domain.memory,
        &vcpu.roots,
        cr3_frame(kernel),
        user,
        &mut budget(),
    )
}
