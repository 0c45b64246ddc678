// SPDX-License-Identifier: MIT OR Apache-2.0
//! What tools can find out about a domain, its vCPUs and its frames.

use super::{Request, domain_field};
use crate::domain::{self, Domain};
use crate::host::Hv;
use crate::schedule;
use core::sync::atomic::Ordering;
use philoxen_abi::domctl::{
    self as abi, ArchConfig, DomainInfo, NO_VCPU, PageFrameInfo3, RECORD, pfinfo,
};
use philoxen_abi::{DomId, Errno, GuestMemory, GuestVa, Mfn, Result};
use philoxen_control::info::{State, flags, frame_type};
use philoxen_domain::lifecycle::Phase;
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::memory;
use philoxen_paging::Machine;
use philoxen_paging::word::Kind;

/// Most frames in one `getpageframeinfo3`.
const MAX_FRAMES: u64 = 1024;

/// The record about a domain.
pub fn domain_info(domain: &Domain) -> DomainInfo {
    let mut state = State {
        dying: domain.life.is_dying(),
        shutdown: match domain.life.phase() {
            Phase::ShutDown(reason) => Some(reason as u8),
            _ => None,
        },
        paused: domain.life.is_paused(),
        xenstore: domain.tool.xenstore,
        debugged: domain.tool.debugged.load(Ordering::Relaxed),
        ..State::default()
    };
    let mut cpu_time = 0u64;
    for vcpu in domain.vcpus() {
        let Some(account) = schedule::runstate(domain, vcpu.id) else {
            continue;
        };
        let [ran, ..] = account.time;
        cpu_time = cpu_time.saturating_add(ran);
        if schedule::is_up(domain, vcpu.id) {
            state.online += 1;
            state.blocked += u32::from(schedule::is_blocked(vcpu));
            state.running |= schedule::is_on_cpu(vcpu);
        }
    }
    DomainInfo {
        domain: domain.id.0,
        pad1: 0,
        flags: flags(&state),
        tot_pages: domain.memory.total_pages(),
        max_pages: domain.memory.max_pages(),
        outstanding_pages: 0,
        shr_pages: 0,
        paged_pages: 0,
        shared_info_frame: domain.shared_info.0,
        cpu_time,
        nr_online_vcpus: state.online,
        max_vcpu_id: (domain.vcpus().len() as u32)
            .checked_sub(1)
            .unwrap_or(NO_VCPU),
        ssidref: 0,
        handle: *domain.tool.handle.lock(),
        cpupool: domain.tool.pool.load(Ordering::Relaxed),
        gpaddr_bits: memory::address_bits() as u8,
        pad2: [0; 7],
        arch: ArchConfig::default(),
    }
}

/// `getdomaininfo`: of the first domain with a number of at least `id`.
pub fn get(id: DomId, arg: GuestVa) -> Result<i64> {
    if id >= DomId::FIRST_RESERVED {
        return Err(Errno::EINVAL);
    }
    let found = domain::at_or_after(id).ok_or(Errno::ESRCH)?;
    LoadedGuest.write(domain_field(arg), &found.id.0)?;
    LoadedGuest.write(arg.add(RECORD), &domain_info(&found))?;
    Ok(0)
}

/// `getpageframeinfo3`: the page-table level of each frame, in the place of its number.
pub fn frames(request: &Request<'_>) -> Result<i64> {
    let list: PageFrameInfo3 = request.read()?;
    if list.num > MAX_FRAMES {
        return Err(Errno::E2BIG);
    }
    for index in 0..list.num {
        let place = GuestVa(list.array).element(index, 8);
        let mfn: u64 = LoadedGuest.read(place)?;
        LoadedGuest.write(place, &type_of(&request.target, Mfn(mfn)))?;
    }
    Ok(0)
}

fn type_of(domain: &Domain, mfn: Mfn) -> u64 {
    let owned = Hv
        .frames()
        .get(mfn)
        .filter(|frame| frame.owner().is_owned_by(domain.id));
    let Some(frame) = owned else {
        return pfinfo::INVALID;
    };
    let word = frame.kind();
    let level = match word.kind() {
        _ if word.count() == 0 => 0,
        Kind::L1 => 1,
        Kind::L2 => 2,
        Kind::L3 => 3,
        Kind::L4 => 4,
        _ => 0,
    };
    frame_type(level, level != 0 && word.is_pinned())
}

/// `getvcpuinfo`.
pub fn vcpu(request: &Request<'_>) -> Result<i64> {
    let mut record: abi::VcpuInfo = request.read()?;
    let vcpu = request.vcpu(record.vcpu)?;
    let account = schedule::runstate(&request.target, vcpu.id).ok_or(Errno::ESRCH)?;
    let [ran, ..] = account.time;
    record.online = schedule::is_up(&request.target, vcpu.id).into();
    record.blocked = schedule::is_blocked(vcpu).into();
    record.running = schedule::is_on_cpu(vcpu).into();
    record.cpu_time = ran;
    record.cpu = schedule::home(vcpu);
    request.write(&record)
}
