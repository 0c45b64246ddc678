// SPDX-License-Identifier: MIT OR Apache-2.0
//! One vCPU of a domain: its registers, extended state, MSRs and affinity.

use super::{Outcome, Request};
use crate::lifecycle::while_stopped;
use crate::vcpu::{Vcpu, VcpuState};
use crate::{context, pools, schedule, time};
use philoxen_abi::domctl::{
    self as abi, AFFINITY_FORCE, AFFINITY_HARD, AFFINITY_SOFT, ExtVcpuContext, MsrEntry,
};
use philoxen_abi::{Errno, GuestMemory, GuestVa, Result};
use philoxen_control::bitmap;
use philoxen_hw::cpu::features;
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::cpu::state::FpuState;
use philoxen_paging::validate::Stop;
use philoxen_pv::state::Callback;
use philoxen_sched::CpuMask;
use zerocopy::IntoBytes;

/// Bytes before the XSAVE area in a vCPU's extended state: XCR0, and the components ever used.
const STATE_HEADER: u64 = 16;
/// `MSR_TSC_AUX`, the only MSR of a vCPU that is saved on its own.
const TSC_AUX: u32 = 0xc000_0103;

/// Calls `work` with the private part of a vCPU that has been initialised.
fn with_state<R>(
    request: &Request<'_>,
    id: u32,
    work: impl FnOnce(&Vcpu, &mut VcpuState) -> Result<R>,
) -> core::result::Result<R, Stop> {
    request.not_self()?;
    let vcpu = request.vcpu(id)?;
    let run = || match &mut *vcpu.parked.lock() {
        Some(state) => work(vcpu, state),
        None => Err(Errno::ENODATA),
    };
    stopped(request, vcpu, run)?.map_err(Stop::Failed)
}

/// Calls `work` while the vCPU does not run.
fn stopped<R>(
    request: &Request<'_>,
    vcpu: &Vcpu,
    work: impl FnOnce() -> R,
) -> core::result::Result<R, Stop> {
    if request.target.life.is_dying() {
        return Err(Errno::EINVAL.into());
    }
    while_stopped(&request.target, vcpu, work).ok_or(Stop::Again)
}

/// `setvcpucontext`; without a context, the vCPU becomes as it was made.
pub fn set_context(request: &Request<'_>) -> Outcome {
    request.not_self()?;
    let record: abi::VcpuContext = request.read()?;
    let vcpu = request.vcpu(record.vcpu)?;
    let place = GuestVa(record.context);
    if place.is_null() {
        stopped(request, vcpu, || context::reset(&request.target, vcpu))?;
        return Ok(0);
    }
    let given = context::read(place)?;
    stopped(request, vcpu, || {
        context::set(&request.target, vcpu, &given)
    })??;
    if record.vcpu == 0 {
        // Tools that build a domain clear its `shared_info` after it was made.
        time::write_wall_clock(&request.target);
    }
    Ok(0)
}

/// `getvcpucontext`.
pub fn get_context(request: &Request<'_>) -> Outcome {
    let record: abi::VcpuContext = request.read()?;
    let context = with_state(request, record.vcpu, |vcpu, state| {
        context::get(&request.target, vcpu, state)
    })?;
    LoadedGuest.write_bytes(GuestVa(record.context), context.as_bytes())?;
    Ok(0)
}

/// `set_ext_vcpucontext`.
pub fn set_extended(request: &Request<'_>) -> Outcome {
    let record: ExtVcpuContext = request.read()?;
    if (record.size as usize) < core::mem::offset_of!(ExtVcpuContext, mcg_cap) {
        return Err(Errno::EINVAL.into());
    }
    let callback = |address, masks: u8| Callback::new(address, masks != 0).ok_or(Errno::EINVAL);
    let syscall32 = callback(record.syscall32_eip, record.syscall32_masks)?;
    let sysenter = callback(record.sysenter_eip, record.sysenter_masks)?;
    with_state(request, record.vcpu, |_, state| {
        state.pv.syscall32 = syscall32;
        state.pv.sysenter = sysenter;
        Ok(0)
    })
}

/// `get_ext_vcpucontext`.
pub fn get_extended(request: &Request<'_>) -> Outcome {
    let asked: ExtVcpuContext = request.read()?;
    let record = with_state(request, asked.vcpu, |_, state| {
        let pv = &state.pv;
        Ok(ExtVcpuContext {
            vcpu: asked.vcpu,
            size: size_of::<ExtVcpuContext>() as u32,
            syscall32_eip: pv.syscall32.address(),
            sysenter_eip: pv.sysenter.address(),
            syscall32_cs: 0,
            sysenter_cs: 0,
            syscall32_masks: pv.syscall32.masks_events().into(),
            sysenter_masks: pv.sysenter.masks_events().into(),
            pad: [0; 2],
            mcg_cap: philoxen_pv::msr::MC_BANKS.into(),
            mci_ctl2: [0; 2],
            mcg_ext_ctl: 0,
        })
    })?;
    Ok(request.write(&record)?)
}

/// `getvcpuextstate`: asked with size 0, how big it is.
pub fn get_state(request: &Request<'_>) -> Outcome {
    let mut record: abi::VcpuExtState = request.read()?;
    let all = features::xcr0_supported();
    let area = u64::from(request.target.policy.read().cpuid.xsave_size(all));
    let size = if all == 0 { 0 } else { STATE_HEADER + area };
    request.vcpu(record.vcpu)?;
    if record.size == 0 && record.xfeature_mask == 0 {
        (record.size, record.xfeature_mask) = (size, all);
        return Ok(request.write(&record)?);
    }
    if record.size != size || record.xfeature_mask != all {
        return Err(Errno::EINVAL.into());
    }
    let place = GuestVa(record.buffer);
    with_state(request, record.vcpu, |_, state| {
        LoadedGuest.write(place, &[state.xcr0, all])?;
        let image = state
            .fpu
            .image()
            .get(..area as usize)
            .ok_or(Errno::EINVAL)?;
        LoadedGuest.write_bytes(place.add(STATE_HEADER), image)
    })?;
    Ok(request.write(&record)?)
}

/// `setvcpuextstate`.
pub fn set_state(request: &Request<'_>) -> Outcome {
    let record: abi::VcpuExtState = request.read()?;
    let place = GuestVa(record.buffer);
    let area = record.size.checked_sub(STATE_HEADER).ok_or(Errno::EINVAL)?;
    let [xcr0, _used]: [u64; 2] = LoadedGuest.read(place)?;
    let policy_xcr0 = request.target.policy.read().cpuid.xcr0();
    if !philoxen_pv::control::xcr0_valid(xcr0, policy_xcr0) {
        return Err(Errno::EINVAL.into());
    }
    if area == 0 {
        return Ok(0);
    }
    let mut fpu = FpuState::new().ok_or(Errno::ENOMEM)?;
    let image = fpu
        .image_mut()
        .get_mut(..area as usize)
        .ok_or(Errno::EINVAL)?;
    LoadedGuest.read_bytes(place.add(STATE_HEADER), image)?;
    if !fpu.sanitise() {
        return Err(Errno::EINVAL.into());
    }
    with_state(request, record.vcpu, |_, state| {
        state.fpu = fpu;
        state.xcr0 = xcr0;
        Ok(0)
    })
}

/// `get_vcpu_msrs`: without a list, how many there may be.
pub fn get_msrs(request: &Request<'_>) -> Outcome {
    let mut record: abi::VcpuMsrs = request.read()?;
    let list = GuestVa(record.msrs);
    request.vcpu(record.vcpu)?;
    if list.is_null() {
        record.msr_count = 1;
        return Ok(request.write(&record)?);
    }
    let room = record.msr_count;
    let value = with_state(request, record.vcpu, |_, state| Ok(state.tsc_aux))?;
    record.msr_count = u32::from(value != 0);
    if room < record.msr_count {
        request.write(&record)?;
        return Err(Errno::ENOBUFS.into());
    }
    if value != 0 {
        let entry = MsrEntry {
            index: TSC_AUX,
            flags: 0,
            value: value.into(),
        };
        LoadedGuest.write(list, &entry)?;
    }
    Ok(request.write(&record)?)
}

/// `set_vcpu_msrs`.
pub fn set_msrs(request: &Request<'_>) -> Outcome {
    let mut record: abi::VcpuMsrs = request.read()?;
    if record.msr_count > 1 {
        return Err(Errno::EINVAL.into());
    }
    if record.msr_count == 0 {
        return Ok(0);
    }
    let entry: MsrEntry = LoadedGuest.read(GuestVa(record.msrs))?;
    match u32::try_from(entry.value) {
        Ok(value) if entry.index == TSC_AUX && entry.flags == 0 => {
            with_state(request, record.vcpu, |_, state| {
                state.tsc_aux = value;
                Ok(0)
            })
        }
        _ => {
            record.msr_count = 0;
            request.write(&record)?;
            Err(Errno::EINVAL.into())
        }
    }
}

/// `sendtrigger`: an NMI; there are no buttons to press.
pub fn trigger(request: &Request<'_>) -> Result<i64> {
    let record: abi::SendTrigger = request.read()?;
    match record.trigger {
        abi::TRIGGER_NMI => {
            let vcpu = request.vcpu(record.vcpu).map_err(|_| Errno::ESRCH)?;
            schedule::send_nmi(vcpu);
            Ok(0)
        }
        abi::TRIGGER_POWER | abi::TRIGGER_SLEEP => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

/// `setvcpuaffinity`.
pub fn set_affinity(request: &Request<'_>) -> Result<i64> {
    let record: abi::VcpuAffinity = request.read()?;
    let vcpu = request.vcpu(record.vcpu)?;
    let known = AFFINITY_HARD | AFFINITY_SOFT | AFFINITY_FORCE;
    if record.flags & (AFFINITY_HARD | AFFINITY_SOFT) == 0 || record.flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let online = *pools::processors(&request.target).words();
    let join = |a: [u64; bitmap::WORDS], b: [u64; bitmap::WORDS]| {
        let mut both = a;
        both.iter_mut().zip(b).for_each(|(a, b)| *a &= b);
        both
    };
    if record.flags & AFFINITY_HARD != 0 {
        let wanted = bitmap::read(&LoadedGuest, &record.hard)?;
        schedule::set_affinity(vcpu, &CpuMask::from_words(&wanted))?;
        bitmap::write(&LoadedGuest, &record.hard, &join(wanted, online))?;
    }
    if record.flags & AFFINITY_SOFT != 0 {
        let wanted = bitmap::read(&LoadedGuest, &record.soft)?;
        schedule::set_soft_affinity(vcpu, &CpuMask::from_words(&wanted))?;
        let hard = *schedule::affinity(vcpu).words();
        bitmap::write(
            &LoadedGuest,
            &record.soft,
            &join(join(wanted, hard), online),
        )?;
    }
    Ok(0)
}

/// `getvcpuaffinity`.
pub fn get_affinity(request: &Request<'_>) -> Result<i64> {
    let record: abi::VcpuAffinity = request.read()?;
    let vcpu = request.vcpu(record.vcpu)?;
    if record.flags & AFFINITY_HARD != 0 {
        let hard = schedule::affinity(vcpu);
        bitmap::write(&LoadedGuest, &record.hard, hard.words())?;
    }
    if record.flags & AFFINITY_SOFT != 0 {
        let soft = schedule::soft_affinity(vcpu);
        bitmap::write(&LoadedGuest, &record.soft, soft.words())?;
    }
    Ok(0)
}
