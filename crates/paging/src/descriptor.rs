// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercall `update_descriptor` (xen/xen.h): writes one entry of a descriptor table by machine address.
//!
//! A frame in use as a descriptor table stays one during the write; any other is written as if it were mapped
//! writable. The descriptor is checked either way, so that building a table this way finds errors early.

use crate::log;
use crate::machine::{Cx, Domains, Machine};
use crate::validate::{put_flat, share_owned, take_writable};
use crate::word::Kind;
use core::sync::atomic::Ordering;
use philoxen_abi::{Errno, Flow, Mfn, Result};

/// `update_descriptor(machine address, descriptor)`.
pub fn update_descriptor<M: Machine, D: Domains>(cx: &Cx<'_, M, D>, args: [u64; 2]) -> Flow {
    update(cx, args).map(|()| 0).into()
}

fn update<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    [address, descriptor]: [u64; 2],
) -> Result<()> {
    let stored = match descriptor {
        0 => Some(0),
        _ => cx.machine.check_descriptor(descriptor),
    };
    let stored = stored.filter(|_| address & 7 == 0).ok_or(Errno::EINVAL)?;
    let (mfn, index) = (Mfn::containing(address), (address >> 3) as usize & 511);
    let frame = cx.machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
    let owner = cx.domain.id();
    if !share_owned(cx.machine, mfn, frame, Kind::SegDesc, owner)? {
        take_writable(cx.machine, mfn, frame, owner)?;
    }
    if let Some(slot) = cx.machine.words(mfn).get(index) {
        slot.store(stored, Ordering::Release);
    }
    log::written(cx.machine, frame);
    put_flat(cx.machine, mfn, frame);
    Ok(())
}
