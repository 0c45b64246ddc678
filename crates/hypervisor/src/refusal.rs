// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a privileged request was refused, in one line on the console ring: tools show their users a number at most.
//!
//! The lines count as a guest's (`guest_loglvl`): those that tools provoke in ordinary work are for developers only.

use crate::cpu::Running;
use core::fmt;
use philoxen_abi::{DomId, Errno};
use philoxen_hw::guest_log;
use philoxen_hw::log::Level;
use philoxen_paging::DomainMemory;

/// What tools meet while they look for something, or try what not every machine has.
const ORDINARY: [Errno; 8] = [
    Errno::ENOENT,
    Errno::ESRCH,
    Errno::ENOSYS,
    Errno::EOPNOTSUPP,
    Errno::ENODEV,
    Errno::ENODATA,
    Errno::ENOBUFS,
    Errno::EAGAIN,
];

/// The running vCPU's request `what` ended with `errno`.
#[cold]
#[inline(never)]
pub fn request(running: &Running, what: fmt::Arguments<'_>, errno: Errno) {
    let level = if ORDINARY.contains(&errno) {
        Level::Debug
    } else {
        Level::Warning
    };
    guest_log!(
        level,
        "d{}v{}: {what} refused: {errno}",
        running.domain.id.0,
        running.id.0
    );
}

/// The running vCPU made a hypercall that its domain may not make.
#[cold]
#[inline(never)]
pub fn not_privileged(running: &Running, hypercall: u64) {
    guest_log!(
        Level::Warning,
        "d{}v{}: hypercall {hypercall} refused: the domain has no control of the machine",
        running.domain.id.0,
        running.id.0
    );
}

/// A domain could not be given or rid of an extent of 2^`order` frames.
#[cold]
#[inline(never)]
pub fn memory(caller: DomId, domain: &DomainMemory, order: u32, errno: Errno) {
    // Tools try smaller extents next, and a balloon that meets its own limit is nothing special.
    let level = if order != 0 || caller == domain.id() {
        Level::Debug
    } else {
        Level::Warning
    };
    guest_log!(
        level,
        "d{}: memory_op for d{} refused an extent of {} pages (it has {} of at most {}; {} are free): {errno}",
        caller.0,
        domain.id().0,
        1u64 << order.min(63),
        domain.total_pages(),
        domain.max_pages(),
        philoxen_hw::memory::free_for_domains()
    );
}
