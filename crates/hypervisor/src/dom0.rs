// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds Domain 0 from the boot loader's modules: the first is its kernel, the second, if any, its ramdisk.

use crate::domain::{self, Config, Domain};
use crate::host::Hv;
use crate::irq::{DomainPirqs, IRQS};
use crate::lifecycle::{self, Tool};
use crate::vcpu::VcpuState;
use crate::{schedule, smp, time};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::start_info::{TextMode, VgaConsoleInfo};
use philoxen_abi::{DomId, Errno, Mfn, VcpuId};
use philoxen_builder::{
    self as builder, BuildError, Entry, Extent, Flavour, Identity, Kernel, P2m, Plan, Request,
    Target,
};
use philoxen_domain::options::Options;
use philoxen_hw::boot::{BootInfo, Region, RegionKind, Screen};
use philoxen_hw::info;
use philoxen_hw::memory::{self, ModuleMemory};
use philoxen_paging::buddy::MAX_ORDER;
use philoxen_paging::validate::Stop;
use philoxen_paging::word::Kind;
use philoxen_paging::{DomainMemory, mmuext, reservation};
use philoxen_pv::Regs;
use philoxen_sched::CpuMask;

/// Memory kept from Domain 0 unless `dom0_mem=` says otherwise: for the hypervisor's heap, 1/256 of RAM within bounds.
const RESERVE_MIN: u64 = 4 << 20;
const RESERVE_MAX: u64 = 64 << 20;
/// Event channels of Domain 0: the FIFO layout's limit.
const MAX_PORT: u32 = (1 << 17) - 1;
/// Power management that is Domain 0's business (`XEN_PROCESSOR_PM_CX | XEN_PROCESSOR_PM_PX`).
const PM: u8 = 3;
const MIB: u64 = 1 << 20;

/// Why Domain 0 cannot be built.
pub enum Failure {
    /// The boot loader passed no modules.
    NoKernel,
    /// The ramdisk lies where we cannot give it away.
    BadRamdisk,
    /// The image or its layout.
    Build(BuildError),
    /// The machine has less than this many MiB more to give.
    TooLittleMemory(u64),
    /// The kernel's initial page tables were refused, or a table could not be made.
    Refused(Errno),
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Build(error)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKernel => f.write_str("no Domain 0 kernel: the boot loader passed no module"),
            Self::BadRamdisk => f.write_str("the ramdisk module is not page-aligned RAM"),
            Self::Build(error) => write!(f, "Domain 0 kernel: {error}"),
            Self::TooLittleMemory(mib) => {
                write!(f, "too little memory for Domain 0: {mib} MiB cannot be had")
            }
            Self::Refused(errno) => write!(f, "Domain 0 could not be made (error {})", errno.0),
        }
    }
}

/// Builds Domain 0 and makes its first vCPU runnable.
#[inline(never)]
pub fn build(boot_info: &BootInfo, options: &Options<'_>) -> Result<(), Failure> {
    let mut modules = memory::take_modules().into_iter();
    let kernel_module = modules.next().ok_or(Failure::NoKernel)?;
    let ramdisk = modules.next();
    let cmdline = command_line(boot_info);
    let start = time::now();
    let image = builder::unpack(kernel_module.bytes())?;
    let unpacked = time::now();
    let kernel = Kernel::parse(&image)?;
    let ramdisk_len = ramdisk
        .as_ref()
        .map_or(0, |module| module.range().end - module.range().start);
    let flavour = Flavour::Dom0 {
        vga: screen(boot_info),
        pm: PM,
    };
    let spare = (image.len() as u64 + kernel_module.bytes().len() as u64) / philoxen_abi::PAGE_SIZE;
    let nr_pages = size(
        options,
        spare,
        ramdisk_len.div_ceil(philoxen_abi::PAGE_SIZE),
    );
    let request = Request {
        kernel: &kernel,
        ramdisk_len,
        cmdline: cmdline.as_bytes(),
        nr_pages,
        flavour,
    };
    let plan = Plan::new(&request)?;

    let domain = create(options, nr_pages)?;
    let mut frames = Frames {
        domain: &domain.memory,
        extents: Vec::new(),
    };
    // First what the kernel is loaded into; then its file can go, and its memory be Domain 0's as well.
    let first = kernel.end.div_ceil(philoxen_abi::PAGE_SIZE);
    frames.allocate(first)?;
    let mut loaded = P2m::with_capacity(frames.extents.len());
    frames
        .extents
        .iter()
        .for_each(|extent| loaded.push(*extent));
    builder::load_segments(&mut Copy, &kernel, &plan, &loaded)?;
    drop(kernel);
    drop(image);
    kernel_module.release();
    frames.allocate(plan.frames_needed().saturating_sub(first))?;
    let ramdisk = ramdisk
        .map(|module| give_ramdisk(&domain.memory, module))
        .transpose()?;
    let p2m = P2m::for_plan(&plan, frames.extents.iter().copied(), ramdisk)?;
    memory::open_low_memory();
    let identity = Identity {
        shared_info: domain.shared_info,
        cmdline: cmdline.as_bytes(),
        flavour,
    };
    let l4 = builder::build(&mut Copy, &plan, &p2m, identity)?;
    publish_m2p(&p2m);
    finish(&domain, l4, &plan.entry)?;
    info!(
        "Domain 0: {} MiB, {} vCPUs; kernel unpacked in {} ms",
        nr_pages * philoxen_abi::PAGE_SIZE / MIB,
        domain.vcpus().len(),
        (unpacked - start) / 1_000_000
    );
    info!(
        "bench: dom0 entry at {} us, decompression {} us",
        time::now() / 1000,
        (unpacked - start) / 1000
    );
    Ok(())
}

/// The kernel's arguments as the boot loader gave them; also where the ACPI root pointer is if that is among the firmware's
/// tables, as under UEFI: the kernel would look for it in the BIOS's memory only.
fn command_line(boot_info: &BootInfo) -> String {
    let mut line = String::from(
        boot_info
            .modules()
            .next()
            .map_or("", |module| module.cmdline),
    );
    if !line.contains("acpi_rsdp=")
        && let Some(address) = root_pointer(boot_info)
    {
        // Writing to a string cannot fail.
        let _ = write!(line, " acpi_rsdp={address:#x}");
    }
    line
}

/// Finds the ACPI root pointer, of which the boot loader passed a copy, in the memory of firmware's tables (on a four-byte
/// boundary: UEFI promises no more).
fn root_pointer(boot_info: &BootInfo) -> Option<u64> {
    let copy = boot_info.rsdp.as_ref()?;
    let wanted = copy.bytes.get(..copy.len)?;
    let firmware =
        |region: &&Region| matches!(region.kind, RegionKind::AcpiReclaim | RegionKind::AcpiNvs);
    boot_info.memory.iter().filter(firmware).find_map(|region| {
        let bytes = memory::phys_bytes(region.start, (region.end - region.start) as usize)?;
        let at = (0..bytes.len())
            .step_by(4)
            .find(|&at| bytes.get(at..).is_some_and(|rest| rest.starts_with(wanted)))?;
        Some(region.start + at as u64)
    })
}

/// Pages for Domain 0: what `dom0_mem=` asks, or everything but a reserve. `spare` pages will be freed while it is built.
fn size(options: &Options<'_>, spare: u64, ramdisk_pages: u64) -> u64 {
    let free = memory::buddy().lock().free_frames();
    let available = (free + spare + ramdisk_pages) * philoxen_abi::PAGE_SIZE;
    let reserve = (memory::total_ram() / 256).clamp(RESERVE_MIN, RESERVE_MAX);
    let usable = available.saturating_sub(reserve);
    let resolve = |amount: Option<philoxen_domain::options::Amount>| {
        amount.map(|amount| amount.resolve(available))
    };
    let mut bytes = resolve(options.dom0_mem).unwrap_or(usable);
    if let Some(max) = resolve(options.dom0_mem_max) {
        bytes = bytes.min(max);
    }
    if let Some(min) = resolve(options.dom0_mem_min) {
        bytes = bytes.max(min);
    }
    bytes.min(usable) / philoxen_abi::PAGE_SIZE
}

fn screen(boot_info: &BootInfo) -> Option<VgaConsoleInfo> {
    match boot_info.screen {
        Screen::Text {
            columns,
            rows,
            font_height,
            cursor_x,
            cursor_y,
        } => Some(VgaConsoleInfo::text(TextMode {
            font_height,
            cursor_x,
            cursor_y,
            rows,
            columns,
        })),
        _ => None,
    }
}

/// The domain without memory.
#[inline(never)]
fn create(options: &Options<'_>, nr_pages: u64) -> Result<Arc<Domain>, Failure> {
    let max = options.dom0_mem_max.map_or(u64::MAX, |max| {
        (max.resolve(memory::total_ram()) / philoxen_abi::PAGE_SIZE).max(nr_pages)
    });
    let count = options
        .dom0_max_vcpus
        .unwrap_or(smp::cpus() as u32)
        .clamp(1, MAX_DOM0_VCPUS);
    let domain = Domain::new(Config {
        id: DomId::DOM0,
        privileged: true,
        max_pages: max,
        max_vcpus: count,
        max_port: MAX_PORT,
        grants: philoxen_grant::Limits::DEFAULT,
        pirqs: DomainPirqs::new(DomId::DOM0, &IRQS)?,
        tool: Tool::new(count, [0; 16], false),
        pauses: 0,
    })?;
    lifecycle::make_vcpus(&domain)?;
    if options.dom0_vcpus_pin {
        for vcpu in domain.vcpus() {
            let cpu = vcpu.id.0 % smp::cpus() as u32;
            schedule::set_affinity(vcpu, &CpuMask::one(cpu))?;
        }
    }
    domain::add(domain.clone());
    Ok(domain)
}

/// Most vCPUs of Domain 0 (`vcpu_info` of the first 32 lies in `shared_info`).
const MAX_DOM0_VCPUS: u32 = 32;

/// Domain 0's memory while it is being allocated.
struct Frames<'a> {
    domain: &'a DomainMemory,
    extents: Vec<Extent>,
}

impl Frames<'_> {
    /// Takes `pages` more frames in the largest blocks there are.
    fn allocate(&mut self, mut pages: u64) -> Result<(), Failure> {
        let mut order = MAX_ORDER;
        while pages != 0 {
            order = order.min(63 - pages.leading_zeros());
            let block = memory::buddy()
                .lock()
                .alloc_block(&memory::frames(), order, 0);
            let Some(block) = block else {
                if order == 0 {
                    return Err(Failure::TooLittleMemory(
                        pages * philoxen_abi::PAGE_SIZE / MIB,
                    ));
                }
                order -= 1;
                continue;
            };
            let count = 1u64 << order;
            reservation::assign_frames(Hv, self.domain, block.start, count)?;
            self.extents.push(Extent {
                start: block.start,
                count,
            });
            pages -= count;
        }
        Ok(())
    }
}

/// Makes the ramdisk's own frames Domain 0's: nothing is copied.
fn give_ramdisk(memory: &DomainMemory, module: ModuleMemory) -> Result<Extent, Failure> {
    let (start, count) = module.into_frames().ok_or(Failure::BadRamdisk)?;
    reservation::assign_frames(Hv, memory, start, count)?;
    Ok(Extent { start, count })
}

/// Writes into the new domain's frames through the direct map.
struct Copy;

impl Target for Copy {
    fn write(&mut self, at: Mfn, offset: u64, data: &[u8]) {
        memory::copy_to_frames(at, offset, data);
    }
    fn zero(&mut self, at: Mfn, offset: u64, len: u64) {
        memory::clear_in_frames(at, offset, len);
    }
}

fn publish_m2p(p2m: &P2m) {
    for (pfn, extent) in p2m.runs() {
        for index in 0..extent.count {
            memory::m2p_set(Mfn(extent.start.0 + index), pfn.0 + index);
        }
    }
}

/// Validates and pins the page tables, sets the first registers, and lets the domain go.
fn finish(domain: &Domain, l4: Mfn, entry: &Entry) -> Result<(), Failure> {
    let vcpu = domain.vcpu(VcpuId(0)).ok_or(Errno::EINVAL)?;
    let mut budget = Budget::unlimited();
    let stopped = |stop| match stop {
        Stop::Failed(errno) => Failure::Refused(errno),
        Stop::Again => Failure::Refused(Errno::EAGAIN),
    };
    mmuext::pin_table(Hv, &domain.memory, l4, Kind::L4, &mut budget)
        .map_err(stopped)?
        .map_err(|_| Failure::Refused(Errno::EAGAIN))?;
    mmuext::set_roots(Hv, &domain.memory, &vcpu.roots, l4, None, &mut budget).map_err(stopped)?;
    let regs = Regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rsi: entry.rsi,
        rflags: entry.rflags,
        cs: entry.cs.into(),
        ss: entry.ss.into(),
        ..Regs::default()
    };
    *vcpu.parked.lock() = Some(VcpuState::new(regs).ok_or(Errno::ENOMEM)?);
    vcpu.initialised.store(true, Ordering::Release);
    for vcpu in domain.vcpus() {
        if let Some(events) = domain.events.vcpu(vcpu.id) {
            events.set_upcall_mask(&Hv, true);
        }
        time::write_time(domain, vcpu.id);
    }
    time::write_wall_clock(domain);
    domain.life.start();
    schedule::bring_up(domain, VcpuId(0));
    Ok(())
}
