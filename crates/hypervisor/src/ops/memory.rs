// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page tables and memory: the paging crate's operations for the running vCPU.

use crate::cpu::{self, Running};
use crate::paging::with;
use crate::syscall::budget;
use philoxen_abi::Flow;
use philoxen_abi::memory::op;
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_paging as paging;

/// `mmu_update(requests, count, done, foreign)`.
#[inline]
pub fn mmu_update(running: &Running, args: [u64; 4]) -> Flow {
    with(running, |cx| {
        paging::mmu_update(cx, &LoadedGuest, args, &mut budget())
    })
}

/// `update_va_mapping(va, entry, flags)`.
#[inline]
pub fn update_va_mapping(running: &Running, args: [u64; 3]) -> Flow {
    with(running, |cx| {
        paging::update_va_mapping(cx, &LoadedGuest, args, &mut budget())
    })
}

/// `update_va_mapping_otherdomain(va, entry, flags, domid)`.
pub fn update_va_mapping_otherdomain(running: &Running, args: [u64; 4]) -> Flow {
    with(running, |cx| {
        paging::update_va_mapping_otherdomain(cx, &LoadedGuest, args, &mut budget())
    })
}

/// `mmuext_op(requests, count, done, foreign)`.
#[inline]
pub fn mmuext_op(running: &mut Running, args: [u64; 4]) -> Flow {
    let flow = with(running, |cx| {
        paging::mmuext_op(cx, &LoadedGuest, args, &mut budget())
    });
    cpu::apply_ldt(running);
    flow
}

/// `memory_op(cmd, arg)`.
pub fn memory_op(running: &Running, cmd: u64, arg: u64) -> Flow {
    if cmd == op::ACQUIRE_RESOURCE {
        return super::grant::acquire_resource(running, arg);
    }
    with(running, |cx| {
        paging::memory_op(cx, &LoadedGuest, [cmd, arg], &mut budget())
    })
}

/// `update_descriptor(address, descriptor)`.
pub fn update_descriptor(running: &Running, address: u64, descriptor: u64) -> Flow {
    with(running, |cx| {
        paging::update_descriptor(cx, [address, descriptor])
    })
}
