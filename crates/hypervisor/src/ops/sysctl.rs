// SPDX-License-Identifier: MIT OR Apache-2.0
//! `sysctl` (xen/sysctl.h): the machine, its processors, domains and console, for tools in a privileged domain.

use crate::cpu::{self, CONSOLE, Running};
use crate::ops::domctl::info::domain_info;
use crate::{domain, input, policy, pools, refusal, schedule, smp};
use philoxen_abi::domctl::{DomainInfo, MsrEntry, SCHEDULER_CREDIT2};
use philoxen_abi::sysctl::{self as abi, RECORD, cpupool, op, physcap};
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, PAGE_SIZE, Result};
use philoxen_control::{bitmap, policy as leaves};
use philoxen_domain::options::is_rate_limit;
use philoxen_hw::cpu::cpu_id;
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::{dev, log, memory};
use philoxen_pv::cpuid::CpuidPolicy;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of the console ring copied at a time.
const CHUNK: usize = 256;
/// Most debug keys in one request.
const MAX_KEYS: u32 = 32;
/// Most devices looked up in one request.
const MAX_DEVICES: u32 = 1024;

/// A request's record in the caller's memory.
struct Record(GuestVa);

impl Record {
    fn read<T: FromBytes + IntoBytes>(&self) -> Result<T> {
        LoadedGuest.read(self.0)
    }
    fn write<T: IntoBytes + Immutable>(&self, record: &T) -> Result<i64> {
        LoadedGuest.write(self.0, record).map(|()| 0)
    }
}

/// `sysctl(request)`.
#[inline(never)]
pub fn sysctl(running: &Running, arg: u64) -> Flow {
    let arg = GuestVa(arg);
    let header = match LoadedGuest.read::<abi::Header>(arg) {
        Ok(header) => header,
        Err(errno) => return errno.into(),
    };
    let done = if header.interface_version == abi::INTERFACE_VERSION {
        dispatch(running, header.cmd, &Record(arg.add(RECORD)))
    } else {
        Err(Errno::EACCES)
    };
    if let Err(errno) = done {
        let name = op::name(header.cmd);
        refusal::request(running, format_args!("sysctl {name}"), errno);
    }
    done.into()
}

fn dispatch(running: &Running, cmd: u32, record: &Record) -> Result<i64> {
    match cmd {
        op::READCONSOLE => read_console(record),
        op::PHYSINFO => physical(record),
        op::SCHED_ID => record.write(&SCHEDULER_CREDIT2),
        op::GETDOMAININFOLIST => domains(record),
        op::DEBUG_KEYS => debug_keys(record),
        op::GETCPUINFO => processors(record),
        op::AVAILHEAP => heap(record),
        op::CPUTOPOINFO => topology(record),
        op::NUMAINFO => nodes(record),
        op::CPUPOOL_OP => pool(running, record),
        op::SCHEDULER_OP => scheduler(record),
        op::PCITOPOINFO => devices(record),
        // No masking of CPUID by hardware: PV guests ask us, or see what is there.
        op::GET_CPU_LEVELLING_CAPS => record.write(&0u32),
        op::GET_CPU_FEATURESET => featureset(record),
        op::GET_CPU_POLICY => cpu_policy(record),
        // Neither frequencies nor cache allocation are managed.
        op::PM_OP | op::GET_PMSTAT | op::PSR_CMT_OP | op::PSR_ALLOC => Err(Errno::ENODEV),
        op::CPU_HOTPLUG | op::LIVEPATCH_OP => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::ENOSYS),
    }
}

fn read_console(record: &Record) -> Result<i64> {
    let mut request: abi::ReadConsole = record.read()?;
    let mut position = if request.incremental != 0 {
        request.index.into()
    } else {
        0
    };
    let (buffer, room) = (GuestVa(request.buffer), request.count);
    let mut done = 0;
    while done < room {
        let mut bytes = [0; CHUNK];
        let part = bytes
            .get_mut(..((room - done) as usize).min(CHUNK))
            .ok_or(Errno::EINVAL)?;
        let (len, next) = log::read(position, false, part);
        if len == 0 {
            break;
        }
        let part = part.get(..len).ok_or(Errno::EINVAL)?;
        LoadedGuest.write_bytes(buffer.add(done.into()), part)?;
        position = next;
        done += len as u32;
    }
    if request.clear != 0 {
        log::read(position, true, &mut []);
    }
    request.count = done;
    request.index = position as u32;
    record.write(&request)
}

fn processors_in_use() -> u32 {
    smp::cpus() as u32
}

fn physical(record: &Record) -> Result<i64> {
    let cpus = processors_in_use();
    let free = memory::free_for_domains();
    let words = leaves::feature_words(policy::default(true));
    let mut hw_cap = [0; 8];
    for (to, from) in hw_cap.iter_mut().zip(words) {
        *to = from;
    }
    record.write(&abi::PhysInfo {
        threads_per_core: 1,
        cores_per_socket: cpus,
        nr_cpus: cpus,
        max_cpu_id: cpus - 1,
        nr_nodes: 1,
        max_node_id: 0,
        cpu_khz: u32::try_from(dev::timer::tsc_hz() / 1000).unwrap_or(u32::MAX),
        capabilities: physcap::PV | physcap::GNTTAB_V1 | physcap::GNTTAB_V2,
        arch_capabilities: 0,
        pad: 0,
        total_pages: memory::total_ram() / PAGE_SIZE,
        free_pages: free,
        scrub_pages: 0,
        outstanding_pages: 0,
        max_mfn: memory::frame_count().saturating_sub(1),
        hw_cap,
    })
}

fn domains(record: &Record) -> Result<i64> {
    let mut request: abi::DomainInfoList = record.read()?;
    let buffer = GuestVa(request.buffer);
    let mut next = DomId(request.first_domain);
    let mut count = 0;
    while count < request.max_domains
        && let Some(found) = domain::at_or_after(next)
    {
        let place = buffer.element(count.into(), size_of::<DomainInfo>() as u64);
        LoadedGuest.write(place, &domain_info(&found))?;
        count += 1;
        next = DomId(found.id.0 + 1);
    }
    request.num_domains = count;
    record.write(&request)
}

fn debug_keys(record: &Record) -> Result<i64> {
    let request: abi::DebugKeys = record.read()?;
    for index in 0..request.nr_keys.min(MAX_KEYS) {
        input::queue_key(LoadedGuest.read(GuestVa(request.keys).add(index.into()))?);
    }
    // They run on the way out, before the tool goes on.
    cpu::request(cpu_id(), CONSOLE);
    Ok(0)
}

fn processors(record: &Record) -> Result<i64> {
    let mut request: abi::GetCpuInfo = record.read()?;
    request.nr_cpus = request.max_cpus.min(processors_in_use());
    for cpu in 0..request.nr_cpus {
        let place = GuestVa(request.info).element(cpu.into(), 8);
        LoadedGuest.write(place, &schedule::idle_time(cpu as usize))?;
    }
    record.write(&request)
}

fn heap(record: &Record) -> Result<i64> {
    let mut request: abi::AvailHeap = record.read()?;
    request.avail_bytes = memory::free_for_domains() * PAGE_SIZE;
    record.write(&request)
}

fn topology(record: &Record) -> Result<i64> {
    let mut request: abi::CpuTopologyInfo = record.read()?;
    let list = GuestVa(request.topology);
    let count = processors_in_use();
    if !list.is_null() {
        for core in 0..count.min(request.num_cpus) {
            let entry = abi::CpuTopology {
                core,
                socket: 0,
                node: 0,
            };
            let place = list.element(core.into(), size_of::<abi::CpuTopology>() as u64);
            LoadedGuest.write(place, &entry)?;
        }
    }
    request.num_cpus = count;
    record.write(&request)
}

fn nodes(record: &Record) -> Result<i64> {
    let mut request: abi::NumaInfo = record.read()?;
    let (sizes, distances) = (GuestVa(request.memory), GuestVa(request.distance));
    if request.num_nodes != 0 && !sizes.is_null() {
        let entry = abi::NodeMemory {
            size: memory::total_ram(),
            free: memory::free_for_domains() * PAGE_SIZE,
        };
        LoadedGuest.write(sizes, &entry)?;
    }
    if request.num_nodes != 0 && !distances.is_null() {
        LoadedGuest.write(distances, &abi::LOCAL_DISTANCE)?;
    }
    request.num_nodes = 1;
    record.write(&request)
}

/// `cpupool_op`.
fn pool(running: &Running, record: &Record) -> Result<i64> {
    let mut request: abi::CpuPoolOp = record.read()?;
    let id = request.cpupool_id;
    let cpu = Some(request.cpu).filter(|cpu| *cpu != cpupool::ANY);
    match request.op {
        cpupool::CREATE if request.sched_id != SCHEDULER_CREDIT2 => return Err(Errno::EINVAL),
        cpupool::CREATE => {
            request.cpupool_id = pools::lock().create(Some(id).filter(|id| *id != cpupool::ANY))?;
        }
        cpupool::DESTROY => {
            let mut pools = pools::lock();
            let domains = pools::domains(&pools, id);
            pools.destroy(id, domains)?;
        }
        cpupool::INFO => {
            let pools = pools::lock();
            let (id, processors) = pools.at_or_after(id).ok_or(Errno::ENOENT)?;
            request.cpupool_id = id;
            request.sched_id = SCHEDULER_CREDIT2;
            request.n_dom = pools::domains(&pools, id) as u32;
            drop(pools);
            bitmap::write(&LoadedGuest, &request.cpumap, processors.words())?;
        }
        cpupool::ADDCPU => pools::add_processor(id, cpu)?,
        cpupool::RMCPU => pools::remove_processor(id, cpu)?,
        cpupool::MOVEDOMAIN => {
            let domain = match DomId(request.domid as u16) {
                DomId::SELF => running.domain.clone(),
                id => domain::find(id).ok_or(Errno::ESRCH)?,
            };
            pools::move_domain(&domain, id)?;
        }
        cpupool::FREEINFO => {
            let free = pools::lock().free();
            bitmap::write(&LoadedGuest, &request.cpumap, free.words())?;
        }
        _ => return Err(Errno::ENOSYS),
    }
    record.write(&request)
}

/// `scheduler_op`: the rate limit of credit2 is our context-switch allowance, one for all pools.
fn scheduler(record: &Record) -> Result<i64> {
    let mut request: abi::SchedulerOp = record.read()?;
    if pools::lock().processors(request.cpupool_id).is_none() {
        return Err(Errno::ESRCH);
    }
    if request.sched_id != SCHEDULER_CREDIT2 {
        return Err(Errno::EINVAL);
    }
    match request.cmd {
        0 if is_rate_limit(request.ratelimit_us) => {
            schedule::set_allowance_us(request.ratelimit_us);
        }
        1 => request.ratelimit_us = schedule::allowance_us(),
        _ => return Err(Errno::EINVAL),
    }
    record.write(&request)
}

/// All devices are on the only node.
fn devices(record: &Record) -> Result<i64> {
    let mut request: abi::PciTopologyInfo = record.read()?;
    if request.devs == 0 || request.nodes == 0 {
        return Err(Errno::EINVAL);
    }
    request.num_devs = request.num_devs.min(MAX_DEVICES);
    for index in 0..request.num_devs {
        LoadedGuest.write(GuestVa(request.nodes).element(index.into(), 4), &0u32)?;
    }
    record.write(&request)
}

/// The policy that a tool asks for by number: what the machine has, or what PV guests may see.
fn known_policy(hvm: bool, machine: bool) -> Result<&'static CpuidPolicy> {
    if hvm {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(policy::default(machine))
}

fn featureset(record: &Record) -> Result<i64> {
    let mut request: abi::CpuFeatureset = record.read()?;
    let shown = match request.index {
        0 | 1 => known_policy(false, true)?,
        2 | 4 => known_policy(false, false)?,
        3 | 5 => known_policy(true, false)?,
        _ => return Err(Errno::EINVAL),
    };
    let words = leaves::feature_words(shown);
    let count = words.len() as u32;
    let list = GuestVa(request.features);
    let room = request.nr_features;
    if list.is_null() {
        request.nr_features = count;
        return record.write(&request);
    }
    for (index, word) in (0..room).zip(words) {
        LoadedGuest.write(list.element(index.into(), 4), &word)?;
    }
    request.nr_features = room.min(count);
    record.write(&request)?;
    if room < count {
        return Err(Errno::ENOBUFS);
    }
    Ok(0)
}

fn cpu_policy(record: &Record) -> Result<i64> {
    let mut request: abi::CpuPolicy = record.read()?;
    if request.reserved != 0 {
        return Err(Errno::EINVAL);
    }
    let shown = match request.index {
        0 | 1 => known_policy(false, true)?,
        2 | 4 => known_policy(false, false)?,
        3 | 5 => known_policy(true, false)?,
        _ => return Err(Errno::EINVAL),
    };
    request.nr_leaves = write_leaves(shown, GuestVa(request.leaves), request.nr_leaves)?;
    request.nr_msrs = write_msrs(GuestVa(request.msrs), request.nr_msrs)?;
    record.write(&request)
}

/// Writes a policy's leaves; how many. Without a list, how many there may be.
///
/// # Errors
/// `ENOBUFS` without room, `EFAULT`.
pub fn write_leaves(shown: &CpuidPolicy, list: GuestVa, room: u32) -> Result<u32> {
    if list.is_null() {
        return Ok(leaves::MAX_LEAVES);
    }
    leaves::leaves(shown, |index, leaf| {
        if index >= room {
            return Err(Errno::ENOBUFS);
        }
        LoadedGuest.write(list.element(index.into(), size_of_val(leaf) as u64), leaf)
    })
}

/// Writes a policy's MSRs; how many. Without a list, how many there may be.
///
/// # Errors
/// `ENOBUFS` without room, `EFAULT`.
pub fn write_msrs(list: GuestVa, room: u32) -> Result<u32> {
    let entries = leaves::msrs();
    let count = entries.len() as u32;
    if list.is_null() {
        return Ok(count);
    }
    if room < count {
        return Err(Errno::ENOBUFS);
    }
    for (index, entry) in (0..).zip(entries) {
        LoadedGuest.write(list.element(index, size_of::<MsrEntry>() as u64), &entry)?;
    }
    Ok(count)
}
