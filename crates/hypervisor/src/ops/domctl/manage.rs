// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain as a whole: its creation and end, its limits, its properties.

use super::{Outcome, Request, domain_field};
use crate::lifecycle;
use crate::{paging, schedule, time};
use core::sync::atomic::Ordering;
use philoxen_abi::domctl::{
    self as abi, CreateDomain, HANDLE_BYTES, RECORD, SCHEDOP_GETINFO, SCHEDOP_PUTINFO,
    SCHEDULER_CREDIT2, TscInfo,
};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, GuestMemory, GuestVa, Pfn, Result};
use philoxen_control::{bitmap, create as checks};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::log::Level;
use philoxen_hw::{dev, guest_log};
use philoxen_paging::validate::Stop;

/// Bits of an address of any domain.
pub const ADDRESS_BITS: u32 = 64;
/// I/O ports there are.
const PORTS: u64 = 0x1_0000;

/// `createdomain`.
pub fn create(id: DomId, arg: GuestVa) -> Result<i64> {
    let record: CreateDomain = LoadedGuest.read(arg.add(RECORD))?;
    let wanted = checks::check(&record).map_err(|refused| {
        guest_log!(
            Level::Warning,
            "no such domain can be made: {}",
            refused.why
        );
        refused.errno
    })?;
    let domain = lifecycle::create(id, &wanted)?;
    LoadedGuest.write(domain_field(arg), &domain.id.0)?;
    Ok(0)
}

/// `destroydomain`.
pub fn destroy(request: &Request<'_>, budget: &mut Budget) -> Outcome {
    request.not_self()?;
    if request.target.id == DomId::DOM0 {
        return Err(Errno::EINVAL.into());
    }
    if lifecycle::destroy(&request.target, budget) {
        Ok(0)
    } else {
        Err(Stop::Again)
    }
}

/// `pausedomain`.
pub fn pause(request: &Request<'_>) -> Result<i64> {
    request.not_self()?;
    let target = &request.target;
    target.life.pause(|| schedule::pause_all(target))?;
    lifecycle::wait_stopped(target);
    Ok(0)
}

/// `unpausedomain`.
pub fn unpause(request: &Request<'_>) -> Result<i64> {
    request.not_self()?;
    let target = &request.target;
    target.life.unpause(|| schedule::unpause_all(target))?;
    Ok(0)
}

/// `resumedomain`.
pub fn resume(request: &Request<'_>) -> Result<i64> {
    request.not_self()?;
    let target = &request.target;
    target.life.resume(|| schedule::unpause_all(target));
    Ok(0)
}

/// `max_vcpus`.
pub fn max_vcpus(request: &Request<'_>) -> Result<i64> {
    request.not_self()?;
    let max: u32 = request.read()?;
    if max != request.target.tool.max_vcpus {
        return Err(Errno::EINVAL);
    }
    lifecycle::make_vcpus(&request.target).map(|()| 0)
}

/// `max_mem`. It may be less than what the domain has: the domain is expected to give that up.
pub fn max_mem(request: &Request<'_>) -> Result<i64> {
    let kib: u64 = request.read()?;
    request.target.memory.set_max_pages(kib / 4);
    Ok(0)
}

/// `setdomainhandle`.
pub fn set_handle(request: &Request<'_>) -> Result<i64> {
    let handle: [u8; HANDLE_BYTES] = request.read()?;
    *request.target.tool.handle.lock() = handle;
    Ok(0)
}

/// `setdebugging`.
pub fn set_debugging(request: &Request<'_>) -> Result<i64> {
    request.not_self()?;
    let enable: u8 = request.read()?;
    let debugged = &request.target.tool.debugged;
    debugged.store(enable != 0, Ordering::Relaxed);
    Ok(0)
}

/// `settimeoffset`.
pub fn set_time_offset(request: &Request<'_>) -> Result<i64> {
    let offset: i64 = request.read()?;
    let target = &request.target;
    target.tool.time_offset.store(offset, Ordering::Relaxed);
    time::write_wall_clock(target);
    Ok(0)
}

/// `subscribe`: the port to notify when the domain suspends.
pub fn subscribe(request: &Request<'_>) -> Result<i64> {
    let port: u32 = request.read()?;
    let target = &request.target.tool.suspend_port;
    target.store(port, Ordering::Relaxed);
    Ok(0)
}

/// `hypercall_init`.
pub fn hypercall_page(request: &Request<'_>) -> Result<i64> {
    let frame: u64 = request.read()?;
    if paging::fill_hypercall_page(&request.target, Pfn(frame)) {
        Ok(0)
    } else {
        Err(Errno::EACCES)
    }
}

/// `set_address_size`.
pub fn set_address_size(request: &Request<'_>) -> Result<i64> {
    match request.read::<u32>()? {
        ADDRESS_BITS => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `settscinfo`. The counter is always native; the record is kept for tools.
pub fn set_tsc(request: &Request<'_>) -> Result<i64> {
    request.not_self()?;
    let info: TscInfo = request.read()?;
    *request.target.tool.tsc.lock() = info;
    Ok(0)
}

/// `gettscinfo`.
pub fn get_tsc(request: &Request<'_>) -> Result<i64> {
    let kept = *request.target.tool.tsc.lock();
    request.write(&TscInfo {
        gtsc_khz: u32::try_from(dev::timer::tsc_hz() / 1000).unwrap_or(u32::MAX),
        elapsed_nsec: time::now(),
        pad: 0,
        ..kept
    })
}

/// `scheduler_op`: weight and cap.
pub fn scheduler(request: &Request<'_>) -> Result<i64> {
    let mut record: abi::SchedulerOp = request.read()?;
    if record.sched_id != SCHEDULER_CREDIT2 {
        return Err(Errno::EINVAL);
    }
    let mut share = request.target.tool.share.lock();
    match record.cmd {
        SCHEDOP_PUTINFO => {
            *share = share.changed(record.weight, record.cap);
            schedule::set_share(&request.target, share.weight.into(), share.cap.into());
            Ok(0)
        }
        SCHEDOP_GETINFO => {
            (record.weight, record.cap) = (share.weight, share.cap);
            request.write(&record)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `setnodeaffinity`: there is one node.
pub fn set_nodes(request: &Request<'_>) -> Result<i64> {
    let map: abi::NodeAffinity = request.read()?;
    let [first, ..] = bitmap::read(&LoadedGuest, &map)?;
    if first & 1 == 0 {
        return Err(Errno::EINVAL);
    }
    Ok(0)
}

/// `getnodeaffinity`.
pub fn get_nodes(request: &Request<'_>) -> Result<i64> {
    let map: abi::NodeAffinity = request.read()?;
    bitmap::write(&LoadedGuest, &map, &[1, 0, 0, 0])?;
    Ok(0)
}

/// `irq_permission`.
pub fn permit_irq(request: &Request<'_>) -> Result<i64> {
    let record: abi::IrqPermission = request.read()?;
    let mut access = request.target.tool.access.write();
    access
        .irqs
        .set(record.pirq.into(), 1, record.allow != 0)
        .map(|()| 0)
}

/// `iomem_permission`.
pub fn permit_frames(request: &Request<'_>) -> Result<i64> {
    let record: abi::IomemPermission = request.read()?;
    let mut access = request.target.tool.access.write();
    access
        .frames
        .set(record.first_mfn, record.nr_mfns, record.allow != 0)
        .map(|()| 0)
}

/// `ioport_permission`.
pub fn permit_ports(request: &Request<'_>) -> Result<i64> {
    let record: abi::IoportPermission = request.read()?;
    let (first, count) = (u64::from(record.first_port), u64::from(record.nr_ports));
    if first + count > PORTS {
        return Err(Errno::EINVAL);
    }
    if count == 0 {
        return Ok(0);
    }
    let mut access = request.target.tool.access.write();
    access
        .ports
        .set(first, count, record.allow != 0)
        .map(|()| 0)
}
