// SPDX-License-Identifier: MIT OR Apache-2.0
//! `domctl`: how a privileged domain makes, changes and ends other domains (xen/domctl.h, interface version 0x15).
//!
//! A request is a [`Header`] and, 16 bytes on, a record of its own; records that a request changes are written back in place.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_DOMCTL_INTERFACE_VERSION`.
pub const INTERFACE_VERSION: u32 = 0x15;
/// Bytes from the start of a request to its record.
pub const RECORD: u64 = 16;
/// Bytes from the start of a request to the domain it names.
pub const DOMAIN: u64 = 8;
/// Bytes of `xen_domain_handle_t`, a UUID.
pub const HANDLE_BYTES: usize = 16;

macro_rules! operations {
    ($($name:ident = $value:literal;)*) => {
        /// Requests (`XEN_DOMCTL_*`).
        pub mod op {
            $(#[doc = concat!("`XEN_DOMCTL_", stringify!($name), "`, in small letters in the header.")] pub const $name: u32 = $value;)*

            /// Name of operation `number`, for messages.
            pub const fn name(number: u32) -> &'static str {
                match number {
                    $($value => stringify!($name),)*
                    _ => "(unknown)",
                }
            }
        }
    };
}

operations! {
    CREATEDOMAIN = 1;
    DESTROYDOMAIN = 2;
    PAUSEDOMAIN = 3;
    UNPAUSEDOMAIN = 4;
    GETDOMAININFO = 5;
    SETVCPUAFFINITY = 9;
    SHADOW_OP = 10;
    MAX_MEM = 11;
    SETVCPUCONTEXT = 12;
    GETVCPUCONTEXT = 13;
    GETVCPUINFO = 14;
    MAX_VCPUS = 15;
    SCHEDULER_OP = 16;
    SETDOMAINHANDLE = 17;
    SETDEBUGGING = 18;
    IRQ_PERMISSION = 19;
    IOMEM_PERMISSION = 20;
    IOPORT_PERMISSION = 21;
    HYPERCALL_INIT = 22;
    SETTIMEOFFSET = 24;
    GETVCPUAFFINITY = 25;
    RESUMEDOMAIN = 27;
    SENDTRIGGER = 28;
    SUBSCRIBE = 29;
    SET_ADDRESS_SIZE = 35;
    GET_ADDRESS_SIZE = 36;
    ASSIGN_DEVICE = 37;
    SET_EXT_VCPUCONTEXT = 42;
    GET_EXT_VCPUCONTEXT = 43;
    TEST_ASSIGN_DEVICE = 45;
    SET_TARGET = 46;
    DEASSIGN_DEVICE = 47;
    GETTSCINFO = 59;
    SETTSCINFO = 60;
    GETPAGEFRAMEINFO3 = 61;
    SETVCPUEXTSTATE = 62;
    GETVCPUEXTSTATE = 63;
    SET_VIRQ_HANDLER = 66;
    SETNODEAFFINITY = 68;
    GETNODEAFFINITY = 69;
    CACHEFLUSH = 71;
    GET_VCPU_MSRS = 72;
    SET_VCPU_MSRS = 73;
    SETVNUMAINFO = 74;
    PSR_CMT_OP = 75;
    MONITOR_OP = 77;
    PSR_ALLOC = 78;
    SOFT_RESET = 79;
    GET_CPU_POLICY = 82;
    SET_CPU_POLICY = 83;
    GET_PAGING_MEMPOOL_SIZE = 85;
    SET_PAGING_MEMPOOL_SIZE = 86;
}

/// The beginning of `struct xen_domctl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// One of [`op`].
    pub cmd: u32,
    /// [`INTERFACE_VERSION`].
    pub interface_version: u32,
    /// The domain meant.
    pub domain: u16,
    /// Padding.
    pub pad: [u16; 3],
}
const _: () = assert!(size_of::<Header>() as u64 == RECORD);

/// `struct xenctl_bitmap`: a guest's array of bytes seen as bits.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Bitmap {
    /// Guest address of the bytes.
    pub bytes: u64,
    /// Bits there is room for.
    pub nr_bits: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<Bitmap>() == 16);

/// `struct xen_arch_domainconfig` (xen/arch-x86/xen.h).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ArchConfig {
    /// Emulated devices; none for a PV domain.
    pub emulation_flags: u32,
    /// [`MISC_MSR_RELAXED`].
    pub misc_flags: u32,
}

/// `XEN_X86_MSR_RELAXED`.
pub const MISC_MSR_RELAXED: u32 = 1;

/// Bits of [`CreateDomain::flags`] (`XEN_DOMCTL_CDF_*`).
pub mod cdf {
    /// A hardware-virtualised domain.
    pub const HVM: u32 = 1 << 0;
    /// Out-of-sync shadow page tables off.
    pub const OOS_OFF: u32 = 1 << 3;
    /// The domain of the xenstore.
    pub const XS_DOMAIN: u32 = 1 << 4;
    /// The domain may use an IOMMU.
    pub const IOMMU: u32 = 1 << 5;
}

/// `struct xen_domctl_createdomain`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateDomain {
    /// Security label.
    pub ssidref: u32,
    /// UUID.
    pub handle: [u8; HANDLE_BYTES],
    /// [`cdf`].
    pub flags: u32,
    /// IOMMU options.
    pub iommu_opts: u32,
    /// Most vCPUs.
    pub max_vcpus: u32,
    /// Highest event-channel port.
    pub max_evtchn_port: u32,
    /// Most grant-table frames; negative for the default.
    pub max_grant_frames: i32,
    /// Most maptrack frames; negative for the default.
    pub max_maptrack_frames: i32,
    /// Highest grant-table version in the low four bits.
    pub grant_opts: u32,
    /// Trace buffer per vCPU in bytes.
    pub vmtrace_size: u32,
    /// Processor pool.
    pub cpupool_id: u32,
    /// Processor-specific part.
    pub arch: ArchConfig,
}
const _: () = assert!(size_of::<CreateDomain>() == 64);

/// Bits of [`DomainInfo::flags`] (`XEN_DOMINF_*`).
pub mod dominf {
    /// Being destroyed.
    pub const DYING: u32 = 1 << 0;
    /// Shut down; the reason is in bits 16 to 23.
    pub const SHUTDOWN: u32 = 1 << 2;
    /// Paused by the toolstack.
    pub const PAUSED: u32 = 1 << 3;
    /// All its vCPUs wait for events.
    pub const BLOCKED: u32 = 1 << 4;
    /// One of its vCPUs runs.
    pub const RUNNING: u32 = 1 << 5;
    /// Under a debugger.
    pub const DEBUGGED: u32 = 1 << 6;
    /// The domain of the xenstore.
    pub const XS_DOMAIN: u32 = 1 << 7;
    /// Where the shutdown reason is.
    pub const SHUTDOWN_SHIFT: u32 = 16;
}

/// [`DomainInfo::max_vcpu_id`] of a domain without vCPUs (`XEN_INVALID_MAX_VCPU_ID`).
pub const NO_VCPU: u32 = u32::MAX;

/// `struct xen_domctl_getdomaininfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DomainInfo {
    /// The domain.
    pub domain: u16,
    /// Padding.
    pub pad1: u16,
    /// [`dominf`].
    pub flags: u32,
    /// Frames it has.
    pub tot_pages: u64,
    /// Frames it may have.
    pub max_pages: u64,
    /// Frames claimed for it.
    pub outstanding_pages: u64,
    /// Frames shared by deduplication.
    pub shr_pages: u64,
    /// Frames paged out.
    pub paged_pages: u64,
    /// Frame of its `shared_info`.
    pub shared_info_frame: u64,
    /// Nanoseconds its vCPUs ran.
    pub cpu_time: u64,
    /// vCPUs that are up.
    pub nr_online_vcpus: u32,
    /// Highest vCPU number, or [`NO_VCPU`].
    pub max_vcpu_id: u32,
    /// Security label.
    pub ssidref: u32,
    /// UUID.
    pub handle: [u8; HANDLE_BYTES],
    /// Processor pool.
    pub cpupool: u32,
    /// Bits of a guest physical address.
    pub gpaddr_bits: u8,
    /// Padding.
    pub pad2: [u8; 7],
    /// Processor-specific part.
    pub arch: ArchConfig,
}
const _: () = assert!(size_of::<DomainInfo>() == 112);

/// Answers of [`op::GETPAGEFRAMEINFO3`] (`XEN_DOMCTL_PFINFO_*`).
pub mod pfinfo {
    /// Where the level of a page table is.
    pub const LEVEL_SHIFT: u32 = 28;
    /// The table is pinned.
    pub const PINNED: u64 = 1 << 31;
    /// Not a frame of the domain.
    pub const INVALID: u64 = 0xf << LEVEL_SHIFT;
}

/// `struct xen_domctl_getpageframeinfo3`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PageFrameInfo3 {
    /// Number of frames.
    pub num: u64,
    /// Guest address of the frame numbers, each replaced by its type.
    pub array: u64,
}

/// `struct xen_domctl_nodeaffinity`.
pub type NodeAffinity = Bitmap;

/// Operations of [`ShadowOp`] (`XEN_DOMCTL_SHADOW_OP_*`): those of a log of written pages.
pub mod shadow {
    /// No log any more.
    pub const OFF: u32 = 0;
    /// A log from here on; the same as [`ENABLE`] with [`ENABLE_LOG_DIRTY`].
    pub const ENABLE_LOGDIRTY: u32 = 2;
    /// Gives the log and empties it.
    pub const CLEAN: u32 = 11;
    /// Gives the log.
    pub const PEEK: u32 = 12;
    /// Turns on what `mode` says.
    pub const ENABLE: u32 = 32;
    /// Mode of [`ENABLE`]: `XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY`.
    pub const ENABLE_LOG_DIRTY: u32 = 1 << 2;
    /// Mode of [`CLEAN`] and [`PEEK`]: `XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL`.
    pub const LOGDIRTY_FINAL: u32 = 1 << 0;
}

/// `struct xen_domctl_shadow_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ShadowOp {
    /// One of [`shadow`].
    pub op: u32,
    /// Depends on `op`.
    pub mode: u32,
    /// Megabytes for shadow page tables.
    pub mb: u32,
    /// Padding.
    pub pad: u32,
    /// Guest address of the bitmap, a bit for each page of the domain's own numbering; null for none.
    pub dirty_bitmap: u64,
    /// Bits that the bitmap has room for; how many were given.
    pub pages: u64,
    /// Faults taken for the log.
    pub fault_count: u32,
    /// Bits set.
    pub dirty_count: u32,
}
const _: () = assert!(size_of::<ShadowOp>() == 40);

/// [`VcpuAffinity::flags`]: the hard affinity is meant (`XEN_VCPUAFFINITY_HARD`).
pub const AFFINITY_HARD: u32 = 1;
/// [`VcpuAffinity::flags`]: the soft affinity is meant (`XEN_VCPUAFFINITY_SOFT`).
pub const AFFINITY_SOFT: u32 = 2;
/// [`VcpuAffinity::flags`]: undo a pin override (`XEN_VCPUAFFINITY_FORCE`).
pub const AFFINITY_FORCE: u32 = 4;

/// `struct xen_domctl_vcpuaffinity`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuAffinity {
    /// The vCPU.
    pub vcpu: u32,
    /// `AFFINITY_*`.
    pub flags: u32,
    /// Processors it may run on.
    pub hard: Bitmap,
    /// Processors it should run on.
    pub soft: Bitmap,
}
const _: () = assert!(size_of::<VcpuAffinity>() == 40);

/// `struct xen_domctl_vcpucontext`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuContext {
    /// The vCPU.
    pub vcpu: u32,
    /// Padding.
    pub pad: u32,
    /// Guest address of a [`crate::arch::VcpuGuestContext`].
    pub context: u64,
}

/// `struct xen_domctl_getvcpuinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuInfo {
    /// The vCPU.
    pub vcpu: u32,
    /// It is up.
    pub online: u8,
    /// It waits for an event.
    pub blocked: u8,
    /// It runs now.
    pub running: u8,
    /// Padding.
    pub pad: u8,
    /// Nanoseconds it ran.
    pub cpu_time: u64,
    /// Its processor.
    pub cpu: u32,
    /// Padding.
    pub pad1: u32,
}
const _: () = assert!(size_of::<VcpuInfo>() == 24);

/// `XEN_SCHEDULER_CREDIT2`.
pub const SCHEDULER_CREDIT2: u32 = 6;
/// [`SchedulerOp::cmd`]: sets (`XEN_DOMCTL_SCHEDOP_putinfo`).
pub const SCHEDOP_PUTINFO: u32 = 0;
/// [`SchedulerOp::cmd`]: gets (`XEN_DOMCTL_SCHEDOP_getinfo`).
pub const SCHEDOP_GETINFO: u32 = 1;

/// `struct xen_domctl_scheduler_op` with the credit2 parameters of its union.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SchedulerOp {
    /// [`SCHEDULER_CREDIT2`].
    pub sched_id: u32,
    /// `SCHEDOP_*`.
    pub cmd: u32,
    /// Weight.
    pub weight: u16,
    /// Per cent of a processor it may use at most; 0 is no limit.
    pub cap: u16,
}

/// `struct xen_domctl_irq_permission`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IrqPermission {
    /// The PIRQ.
    pub pirq: u32,
    /// Not 0: allow.
    pub allow: u8,
    /// Padding.
    pub pad: [u8; 3],
}

/// `struct xen_domctl_iomem_permission`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IomemPermission {
    /// First frame.
    pub first_mfn: u64,
    /// Number of frames.
    pub nr_mfns: u64,
    /// Not 0: allow.
    pub allow: u8,
    /// Padding.
    pub pad: [u8; 7],
}

/// `struct xen_domctl_ioport_permission`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoportPermission {
    /// First port.
    pub first_port: u32,
    /// Number of ports.
    pub nr_ports: u32,
    /// Not 0: allow.
    pub allow: u8,
    /// Padding.
    pub pad: [u8; 3],
}

/// `struct xen_domctl_sendtrigger`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SendTrigger {
    /// [`TRIGGER_NMI`] or another.
    pub trigger: u32,
    /// The vCPU.
    pub vcpu: u32,
}

/// `XEN_DOMCTL_SENDTRIGGER_NMI`.
pub const TRIGGER_NMI: u32 = 0;
/// `XEN_DOMCTL_SENDTRIGGER_POWER`.
pub const TRIGGER_POWER: u32 = 3;
/// `XEN_DOMCTL_SENDTRIGGER_SLEEP`.
pub const TRIGGER_SLEEP: u32 = 4;

/// `struct xen_domctl_ext_vcpucontext`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExtVcpuContext {
    /// The vCPU.
    pub vcpu: u32,
    /// Bytes of this record.
    pub size: u32,
    /// 32-bit SYSCALL callback.
    pub syscall32_eip: u64,
    /// SYSENTER callback.
    pub sysenter_eip: u64,
    /// Its code selector.
    pub syscall32_cs: u16,
    /// Its code selector.
    pub sysenter_cs: u16,
    /// It masks events.
    pub syscall32_masks: u8,
    /// It masks events.
    pub sysenter_masks: u8,
    /// Padding.
    pub pad: [u8; 2],
    /// Machine-check capabilities.
    pub mcg_cap: u64,
    /// Machine-check banks' extended control.
    pub mci_ctl2: [u64; 2],
    /// Machine-check extended control.
    pub mcg_ext_ctl: u64,
}
const _: () = assert!(size_of::<ExtVcpuContext>() == 64);

/// `struct xen_domctl_tsc_info`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TscInfo {
    /// How the TSC is shown.
    pub tsc_mode: u32,
    /// Frequency.
    pub gtsc_khz: u32,
    /// How often the domain was restored.
    pub incarnation: u32,
    /// Padding.
    pub pad: u32,
    /// Nanoseconds the domain has existed.
    pub elapsed_nsec: u64,
}
const _: () = assert!(size_of::<TscInfo>() == 24);

/// `struct xen_domctl_cpu_policy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuPolicy {
    /// Leaves given or wanted, then written.
    pub nr_leaves: u32,
    /// MSRs given or wanted, then written.
    pub nr_msrs: u32,
    /// Guest address of the [`CpuidLeaf`]s.
    pub leaves: u64,
    /// Guest address of the [`MsrEntry`]s.
    pub msrs: u64,
    /// Leaf that was refused.
    pub err_leaf: u32,
    /// Its sub-leaf.
    pub err_subleaf: u32,
    /// MSR that was refused.
    pub err_msr: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<CpuPolicy>() == 40);

/// [`CpuidLeaf::subleaf`] of a leaf without sub-leaves (`XEN_CPUID_NO_SUBLEAF`).
pub const NO_SUBLEAF: u32 = u32::MAX;

/// `struct xen_cpuid_leaf` (xen/arch-x86/xen.h).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CpuidLeaf {
    /// Leaf.
    pub leaf: u32,
    /// Sub-leaf, or [`NO_SUBLEAF`].
    pub subleaf: u32,
    /// EAX.
    pub a: u32,
    /// EBX.
    pub b: u32,
    /// ECX.
    pub c: u32,
    /// EDX.
    pub d: u32,
}
const _: () = assert!(size_of::<CpuidLeaf>() == 24);

/// `struct xen_msr_entry` (xen/arch-x86/xen.h) and `struct xen_domctl_vcpu_msr`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct MsrEntry {
    /// Number.
    pub index: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// Value.
    pub value: u64,
}
const _: () = assert!(size_of::<MsrEntry>() == 16);

/// `struct xen_domctl_vcpuextstate`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuExtState {
    /// The vCPU.
    pub vcpu: u32,
    /// Padding.
    pub pad: u32,
    /// Components of the processor.
    pub xfeature_mask: u64,
    /// Bytes.
    pub size: u64,
    /// Guest address of XCR0, the components used, and an XSAVE area.
    pub buffer: u64,
}
const _: () = assert!(size_of::<VcpuExtState>() == 32);

/// `struct xen_domctl_vcpu_msrs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuMsrs {
    /// The vCPU.
    pub vcpu: u32,
    /// Room in entries, then entries.
    pub msr_count: u32,
    /// Guest address of the [`MsrEntry`]s.
    pub msrs: u64,
}
