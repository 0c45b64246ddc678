// SPDX-License-Identifier: MIT OR Apache-2.0
//! `XENMEM_acquire_resource` for grant tables (xen/memory.h): a privileged domain learns the frames of another's table and
//! maps them as frames of that domain, to write the first entries of a guest it builds.

use crate::host::{Host, Request};
use crate::table::{FrameKind, GrantTable};
use alloc::sync::Arc;
use philoxen_abi::memory::{AcquireResource, resource};
use philoxen_abi::{DomId, Errno, GuestMemory, GuestVa, Result};
use philoxen_paging::{Cx, Domains};

/// Handles the request at `arg`.
///
/// # Errors
/// `EPERM` for callers without privilege and for a domain's own table, `ESRCH` if there is no such domain, `EOPNOTSUPP`
/// for other resources, `EINVAL` for what is not there, `ENOMEM`, `EFAULT`.
pub fn acquire_resource<M: Host, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    own: &Arc<GrantTable>,
    memory: &G,
    arg: GuestVa,
) -> Result<i64> {
    let mut op: AcquireResource = memory.read(arg)?;
    if op.pad != 0 {
        return Err(Errno::EINVAL);
    }
    let mut request = Request::new(cx, own);
    let (domain, table) = request.managed(DomId(op.domid))?;
    if domain.id() == cx.domain.id() {
        return Err(Errno::EPERM);
    }
    if op.kind != resource::GRANT_TABLE {
        return Err(Errno::EOPNOTSUPP);
    }
    let kind = match op.id {
        resource::GRANT_TABLE_SHARED => FrameKind::Shared,
        resource::GRANT_TABLE_STATUS if table.version() == 2 => FrameKind::Status,
        _ => return Err(Errno::EINVAL),
    };
    let list = GuestVa(op.frame_list);
    let max = table.max_frames(kind);
    if op.nr_frames == 0 {
        if !list.is_null() {
            return Err(Errno::EINVAL);
        }
        op.nr_frames = max;
        return memory.write(arg, &op).map(|()| 0);
    }
    let end = op
        .frame
        .checked_add(op.nr_frames.into())
        .filter(|&end| end <= max.into())
        .ok_or(Errno::EINVAL)?;
    if list.is_null() {
        return Err(Errno::EFAULT);
    }
    if kind == FrameKind::Shared {
        table.grow(cx.machine, domain, end as u32)?;
    }
    for (index, frame) in (op.frame..end).enumerate() {
        let mfn = table.frame(kind, frame as u32).ok_or(Errno::EINVAL)?;
        memory.write(list.element(index as u64, 8), &mfn.0)?;
    }
    Ok(0)
}
