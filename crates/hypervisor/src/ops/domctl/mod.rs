// SPDX-License-Identifier: MIT OR Apache-2.0
//! `domctl` (xen/domctl.h): domains made, changed and ended by tools in a privileged domain.
//!
//! Requests that need a vCPU's private part pause the vCPU for that time, so a tool always sees it whole.

pub mod info;
mod log;
mod manage;
mod policy;
mod vcpu;

use crate::cpu::Running;
use crate::domain::{self, Domain};
use crate::refusal;
use crate::syscall::budget;
use alloc::sync::Arc;
use philoxen_abi::domctl::{self as abi, DOMAIN, RECORD, op};
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Result, VcpuId};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_paging::validate::Stop;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A request about a domain that exists.
pub struct Request<'a> {
    /// Who asks.
    running: &'a Running,
    /// Whom it is about.
    target: Arc<Domain>,
    /// Where it is.
    arg: GuestVa,
}

impl Request<'_> {
    fn read<T: FromBytes + IntoBytes>(&self) -> Result<T> {
        LoadedGuest.read(self.arg.add(RECORD))
    }
    fn write<T: IntoBytes + Immutable>(&self, record: &T) -> Result<i64> {
        LoadedGuest.write(self.arg.add(RECORD), record).map(|()| 0)
    }
    /// The target's vCPU `id`, which must exist.
    fn vcpu(&self, id: u32) -> Result<&crate::vcpu::Vcpu> {
        let vcpu = self.target.vcpu(VcpuId(id)).ok_or(Errno::ENOENT)?;
        Ok(vcpu)
    }
    /// Refuses what a domain cannot do to itself.
    fn not_self(&self) -> Result<()> {
        if self.target.id == self.running.domain.id {
            Err(Errno::EINVAL)
        } else {
            Ok(())
        }
    }
}

/// What a request that may have to wait for a processor or for page-table work comes to.
type Outcome = core::result::Result<i64, Stop>;

/// `domctl(request)`. The second argument has no meaning but in a request that is run again.
#[inline(never)]
pub fn domctl(running: &Running, arg: u64, token: u64) -> Flow {
    let header = match LoadedGuest.read::<abi::Header>(GuestVa(arg)) {
        Ok(header) => header,
        Err(errno) => return errno.into(),
    };
    if header.interface_version != abi::INTERFACE_VERSION {
        return Errno::EACCES.into();
    }
    if header.cmd == op::SHADOW_OP {
        return log::shadow_op(running, &header, arg, token);
    }
    match dispatch(running, &header, GuestVa(arg)) {
        Ok(value) => Flow::Done(value),
        Err(Stop::Failed(errno)) => {
            let (name, domain) = (op::name(header.cmd), header.domain);
            refusal::request(running, format_args!("domctl {name} of d{domain}"), errno);
            errno.into()
        }
        Err(Stop::Again) => Flow::Again([arg, 0, 0, 0, 0]),
    }
}

fn dispatch(running: &Running, header: &abi::Header, arg: GuestVa) -> Outcome {
    let id = DomId(header.domain);
    match header.cmd {
        op::CREATEDOMAIN => return Ok(manage::create(id, arg)?),
        op::GETDOMAININFO => return Ok(info::get(id, arg)?),
        _ => {}
    }
    let request = Request {
        running,
        target: domain::find(id).ok_or(Errno::ESRCH)?,
        arg,
    };
    let r = &request;
    let done = match header.cmd {
        op::DESTROYDOMAIN => return manage::destroy(r, &mut budget()),
        op::SETVCPUCONTEXT => return vcpu::set_context(r),
        op::GETVCPUCONTEXT => return vcpu::get_context(r),
        op::SET_EXT_VCPUCONTEXT => return vcpu::set_extended(r),
        op::GET_EXT_VCPUCONTEXT => return vcpu::get_extended(r),
        op::SETVCPUEXTSTATE => return vcpu::set_state(r),
        op::GETVCPUEXTSTATE => return vcpu::get_state(r),
        op::SET_VCPU_MSRS => return vcpu::set_msrs(r),
        op::GET_VCPU_MSRS => return vcpu::get_msrs(r),
        op::PAUSEDOMAIN => manage::pause(r),
        op::UNPAUSEDOMAIN => manage::unpause(r),
        op::RESUMEDOMAIN => manage::resume(r),
        op::MAX_VCPUS => manage::max_vcpus(r),
        op::MAX_MEM => manage::max_mem(r),
        op::SETDOMAINHANDLE => manage::set_handle(r),
        op::SETDEBUGGING => manage::set_debugging(r),
        op::SETTIMEOFFSET => manage::set_time_offset(r),
        op::SUBSCRIBE => manage::subscribe(r),
        op::HYPERCALL_INIT => manage::hypercall_page(r),
        op::SET_ADDRESS_SIZE => manage::set_address_size(r),
        op::GET_ADDRESS_SIZE => r.write(&manage::ADDRESS_BITS),
        op::SETTSCINFO => manage::set_tsc(r),
        op::GETTSCINFO => manage::get_tsc(r),
        op::SCHEDULER_OP => manage::scheduler(r),
        op::SETNODEAFFINITY => manage::set_nodes(r),
        op::GETNODEAFFINITY => manage::get_nodes(r),
        op::IRQ_PERMISSION => manage::permit_irq(r),
        op::IOMEM_PERMISSION => manage::permit_frames(r),
        op::IOPORT_PERMISSION => manage::permit_ports(r),
        op::GETPAGEFRAMEINFO3 => info::frames(r),
        op::GETVCPUINFO => info::vcpu(r),
        op::SENDTRIGGER => vcpu::trigger(r),
        op::SETVCPUAFFINITY => vcpu::set_affinity(r),
        op::GETVCPUAFFINITY => vcpu::get_affinity(r),
        op::SET_CPU_POLICY => policy::set(r),
        op::GET_CPU_POLICY => policy::get(r),
        op::PSR_CMT_OP | op::PSR_ALLOC => Err(Errno::ENODEV),
        op::SETVNUMAINFO
        | op::MONITOR_OP
        | op::ASSIGN_DEVICE
        | op::TEST_ASSIGN_DEVICE
        | op::DEASSIGN_DEVICE
        | op::GET_PAGING_MEMPOOL_SIZE
        | op::SET_PAGING_MEMPOOL_SIZE => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::ENOSYS),
    };
    Ok(done?)
}

/// Where a request says which domain it is about.
const fn domain_field(arg: GuestVa) -> GuestVa {
    arg.add(DOMAIN)
}
