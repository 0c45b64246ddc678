// SPDX-License-Identifier: MIT OR Apache-2.0
//! `hypfs_op` (xen/hypfs.h): scheduling parameters for which the other interfaces have no place.

use crate::domain::Domain;
use crate::{domain, schedule};
use alloc::sync::Arc;
use philoxen_abi::hypfs::{Direntry, MAX_PATH, VERSION, op};
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Result};
use philoxen_control::hypfs::{MAX_ENTRY, NUMBER_BYTES, Node, Parameter, find, list_entry};
use philoxen_hw::cpu::guest::LoadedGuest;

const MICROSECOND: u64 = 1_000;

/// `hypfs_op(cmd, path, path length, buffer, buffer size)`.
#[inline(never)]
pub fn hypfs_op(cmd: u64, [path, path_len, buffer, size]: [u64; 4]) -> Flow {
    match cmd {
        op::GET_VERSION if [path, path_len, buffer, size] == [0; 4] => Flow::Done(VERSION),
        op::GET_VERSION => Errno::EINVAL.into(),
        op::READ => place(path, path_len)
            .and_then(|node| read(node, GuestVa(buffer), size))
            .into(),
        op::WRITE_CONTENTS => place(path, path_len)
            .and_then(|node| write(node, GuestVa(buffer), size))
            .into(),
        _ => Errno::EOPNOTSUPP.into(),
    }
}

/// The place that a path in the caller's memory names, with its domain there.
fn place(path: u64, len: u64) -> Result<Node> {
    let mut bytes = [0; MAX_PATH];
    let path_bytes = usize::try_from(len)
        .ok()
        .and_then(|len| bytes.get_mut(..len))
        .ok_or(Errno::EINVAL)?;
    LoadedGuest.read_bytes(GuestVa(path), path_bytes)?;
    let Some((0, name)) = path_bytes.split_last() else {
        return Err(Errno::EINVAL);
    };
    let node = find(name)?;
    if let Some(id) = node.domain() {
        known(id)?;
    }
    Ok(node)
}

fn known(id: DomId) -> Result<Arc<Domain>> {
    domain::find(id).ok_or(Errno::ENOENT)
}

/// All domains that there are.
fn ids() -> impl Iterator<Item = DomId> {
    let next = |from: DomId| domain::at_or_after(from).map(|domain| domain.id);
    core::iter::successors(next(DomId(0)), move |last| {
        last.0.checked_add(1).and_then(|id| next(DomId(id)))
    })
}

fn read(node: Node, buffer: GuestVa, size: u64) -> Result<i64> {
    let entry = node.entry(ids());
    let header = size_of::<Direntry>() as u64;
    if size < header {
        return Err(Errno::ENOBUFS);
    }
    LoadedGuest.write(buffer, &entry)?;
    let content = buffer.add(header);
    let room = size - header;
    if room < entry.content_len.into() {
        return Err(Errno::ENOBUFS);
    }
    if let Node::Number(id, parameter) = node {
        let mut warp = schedule::warp(&*known(id)?);
        let ns = *value(&mut warp, parameter);
        let us = u32::try_from(ns / MICROSECOND).unwrap_or(u32::MAX);
        LoadedGuest.write(content, &us)?;
        return Ok(0);
    }
    // Domains may come and go meanwhile: what was announced is filled, no more.
    let mut done = 0u32;
    node.children(ids(), |name, child| {
        let mut place = [0; MAX_ENTRY];
        let kind = child.entry(ids());
        let bytes = list_entry(name, kind, false, &mut place).map_or(0, <[u8]>::len) as u32;
        let end = done.saturating_add(bytes);
        if end > entry.content_len {
            return Ok(());
        }
        let last = end == entry.content_len;
        let bytes = list_entry(name, kind, last, &mut place).ok_or(Errno::EINVAL)?;
        LoadedGuest.write_bytes(content.add(done.into()), bytes)?;
        done = end;
        Ok(())
    })?;
    Ok(0)
}

/// Where a parameter is among all.
fn value(warp: &mut philoxen_sched::Warp, parameter: Parameter) -> &mut u64 {
    match parameter {
        Parameter::Warp => &mut warp.value_ns,
        Parameter::WarpLimit => &mut warp.limit_ns,
        Parameter::Unwarp => &mut warp.unwarp_ns,
    }
}

fn write(node: Node, buffer: GuestVa, size: u64) -> Result<i64> {
    let Node::Number(id, parameter) = node else {
        return Err(Errno::EACCES);
    };
    if size > NUMBER_BYTES.into() {
        return Err(Errno::ENOSPC);
    }
    if size != u64::from(NUMBER_BYTES) {
        return Err(Errno::EDOM);
    }
    let us: u32 = LoadedGuest.read(buffer)?;
    let domain = known(id)?;
    let mut warp = schedule::warp(&domain);
    *value(&mut warp, parameter) = u64::from(us) * MICROSECOND;
    schedule::set_warp(&domain, warp);
    Ok(0)
}
