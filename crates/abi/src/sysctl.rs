// SPDX-License-Identifier: MIT OR Apache-2.0
//! `sysctl`: the machine as a privileged domain sees it (xen/sysctl.h, interface version 0x15).
//!
//! A request is a [`Header`] and, 8 bytes on, a record of its own; records that a request changes are written back in place.

use crate::domctl::Bitmap;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_SYSCTL_INTERFACE_VERSION`.
pub const INTERFACE_VERSION: u32 = 0x15;
/// Bytes from the start of a request to its record.
pub const RECORD: u64 = 8;

macro_rules! operations {
    ($($name:ident = $value:literal;)*) => {
        /// Requests (`XEN_SYSCTL_*`).
        pub mod op {
            $(#[doc = concat!("`XEN_SYSCTL_", stringify!($name), "`, in small letters in the header.")] pub const $name: u32 = $value;)*

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
    READCONSOLE = 1;
    TBUF_OP = 2;
    PHYSINFO = 3;
    SCHED_ID = 4;
    PERFC_OP = 5;
    GETDOMAININFOLIST = 6;
    DEBUG_KEYS = 7;
    GETCPUINFO = 8;
    AVAILHEAP = 9;
    GET_PMSTAT = 10;
    CPU_HOTPLUG = 11;
    PM_OP = 12;
    PAGE_OFFLINE_OP = 14;
    LOCKPROF_OP = 15;
    CPUTOPOINFO = 16;
    NUMAINFO = 17;
    CPUPOOL_OP = 18;
    SCHEDULER_OP = 19;
    COVERAGE_OP = 20;
    PSR_CMT_OP = 21;
    PCITOPOINFO = 22;
    PSR_ALLOC = 23;
    GET_CPU_LEVELLING_CAPS = 25;
    GET_CPU_FEATURESET = 26;
    LIVEPATCH_OP = 27;
    GET_CPU_POLICY = 29;
}

/// The beginning of `struct xen_sysctl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// One of [`op`].
    pub cmd: u32,
    /// [`INTERFACE_VERSION`].
    pub interface_version: u32,
}
const _: () = assert!(size_of::<Header>() as u64 == RECORD);

/// `struct xen_sysctl_readconsole`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReadConsole {
    /// Not 0: empty the ring afterwards.
    pub clear: u8,
    /// Not 0: begin at `index`.
    pub incremental: u8,
    /// Padding.
    pub pad: [u8; 2],
    /// Position, then the one to go on from.
    pub index: u32,
    /// Guest address for the text.
    pub buffer: u64,
    /// Room in bytes, then bytes written.
    pub count: u32,
    /// Padding.
    pub pad1: u32,
}
const _: () = assert!(size_of::<ReadConsole>() == 24);

/// Bits of [`PhysInfo::capabilities`] (`XEN_SYSCTL_PHYSCAP_*`).
pub mod physcap {
    /// PV guests.
    pub const PV: u32 = 1 << 1;
    /// Grant tables version 1.
    pub const GNTTAB_V1: u32 = 1 << 8;
    /// Grant tables version 2.
    pub const GNTTAB_V2: u32 = 1 << 9;
}

/// `struct xen_sysctl_physinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PhysInfo {
    /// Threads of a core.
    pub threads_per_core: u32,
    /// Cores of a socket.
    pub cores_per_socket: u32,
    /// Processors in use.
    pub nr_cpus: u32,
    /// Highest processor number.
    pub max_cpu_id: u32,
    /// NUMA nodes.
    pub nr_nodes: u32,
    /// Highest NUMA node number.
    pub max_node_id: u32,
    /// Frequency.
    pub cpu_khz: u32,
    /// [`physcap`].
    pub capabilities: u32,
    /// None on x86.
    pub arch_capabilities: u32,
    /// Padding.
    pub pad: u32,
    /// Frames of RAM.
    pub total_pages: u64,
    /// Frames free.
    pub free_pages: u64,
    /// Frames still to be scrubbed.
    pub scrub_pages: u64,
    /// Frames claimed.
    pub outstanding_pages: u64,
    /// Highest MFN.
    pub max_mfn: u64,
    /// Host feature words.
    pub hw_cap: [u32; 8],
}
const _: () = assert!(size_of::<PhysInfo>() == 112);

/// `struct xen_sysctl_getdomaininfolist`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DomainInfoList {
    /// Lowest domain wanted.
    pub first_domain: u16,
    /// Padding.
    pub pad: u16,
    /// Room in records.
    pub max_domains: u32,
    /// Guest address of the [`crate::domctl::DomainInfo`]s.
    pub buffer: u64,
    /// Records written.
    pub num_domains: u32,
    /// Padding.
    pub pad1: u32,
}
const _: () = assert!(size_of::<DomainInfoList>() == 24);

/// `struct xen_sysctl_debug_keys`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DebugKeys {
    /// Guest address of the keys.
    pub keys: u64,
    /// Their number.
    pub nr_keys: u32,
    /// Padding.
    pub pad: u32,
}

/// `struct xen_sysctl_getcpuinfo`; each record is the idle time in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetCpuInfo {
    /// Room in records.
    pub max_cpus: u32,
    /// Padding.
    pub pad: u32,
    /// Guest address of the records.
    pub info: u64,
    /// Records written.
    pub nr_cpus: u32,
    /// Padding.
    pub pad1: u32,
}

/// `struct xen_sysctl_availheap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AvailHeap {
    /// Smallest address width.
    pub min_bitwidth: u32,
    /// Largest address width.
    pub max_bitwidth: u32,
    /// NUMA node, -1 for all.
    pub node: i32,
    /// Padding.
    pub pad: u32,
    /// Bytes free.
    pub avail_bytes: u64,
}

/// `struct xen_sysctl_cputopo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuTopology {
    /// Core in the socket.
    pub core: u32,
    /// Socket.
    pub socket: u32,
    /// NUMA node.
    pub node: u32,
}

/// `struct xen_sysctl_cputopoinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuTopologyInfo {
    /// Room in records, then the number of processors.
    pub num_cpus: u32,
    /// Padding.
    pub pad: u32,
    /// Guest address of the [`CpuTopology`] records.
    pub topology: u64,
}

/// `struct xen_sysctl_meminfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NodeMemory {
    /// Bytes of the node.
    pub size: u64,
    /// Bytes free.
    pub free: u64,
}

/// `struct xen_sysctl_numainfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NumaInfo {
    /// Room in records, then the number of nodes.
    pub num_nodes: u32,
    /// Padding.
    pub pad: u32,
    /// Guest address of the [`NodeMemory`] records.
    pub memory: u64,
    /// Guest address of the distances.
    pub distance: u64,
}

/// Distance of a NUMA node from itself.
pub const LOCAL_DISTANCE: u32 = 10;

/// Operations of [`CpuPoolOp`] (`XEN_SYSCTL_CPUPOOL_OP_*`).
pub mod cpupool {
    /// Make one.
    pub const CREATE: u32 = 1;
    /// End one.
    pub const DESTROY: u32 = 2;
    /// Describe the first one from a number on.
    pub const INFO: u32 = 3;
    /// Give it a processor.
    pub const ADDCPU: u32 = 4;
    /// Take a processor from it.
    pub const RMCPU: u32 = 5;
    /// Move a domain to it.
    pub const MOVEDOMAIN: u32 = 6;
    /// Processors in no pool.
    pub const FREEINFO: u32 = 7;
    /// As number of a pool or processor: any.
    pub const ANY: u32 = u32::MAX;
}

/// `struct xen_sysctl_cpupool_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuPoolOp {
    /// [`cpupool`].
    pub op: u32,
    /// The pool.
    pub cpupool_id: u32,
    /// Its scheduler.
    pub sched_id: u32,
    /// A domain.
    pub domid: u32,
    /// A processor.
    pub cpu: u32,
    /// Its domains.
    pub n_dom: u32,
    /// Its processors.
    pub cpumap: Bitmap,
}
const _: () = assert!(size_of::<CpuPoolOp>() == 40);

/// `struct xen_sysctl_scheduler_op` with the credit2 parameters of its union.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SchedulerOp {
    /// The pool.
    pub cpupool_id: u32,
    /// Its scheduler.
    pub sched_id: u32,
    /// 0 sets, 1 gets.
    pub cmd: u32,
    /// Padding.
    pub pad: u32,
    /// Shortest time a vCPU runs, in microseconds.
    pub ratelimit_us: u32,
}

/// `struct xen_sysctl_pcitopoinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciTopologyInfo {
    /// Devices, then devices done.
    pub num_devs: u32,
    /// Padding.
    pub pad: u32,
    /// Guest address of the devices.
    pub devs: u64,
    /// Guest address for their nodes.
    pub nodes: u64,
}

/// `struct xen_sysctl_cpu_featureset`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuFeatureset {
    /// Which one: 0 raw, 1 host, 2 PV default, 3 HVM default, 4 PV most, 5 HVM most.
    pub index: u32,
    /// Room in words, then words written.
    pub nr_features: u32,
    /// Guest address of the words.
    pub features: u64,
}

/// `struct xen_sysctl_cpu_policy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuPolicy {
    /// Which one: 0 raw, 1 host, 2 PV most, 3 HVM most, 4 PV default, 5 HVM default.
    pub index: u32,
    /// Room in leaves, then leaves written.
    pub nr_leaves: u32,
    /// Room in MSRs, then MSRs written.
    pub nr_msrs: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Guest address of the leaves.
    pub leaves: u64,
    /// Guest address of the MSRs.
    pub msrs: u64,
}
const _: () = assert!(size_of::<CpuPolicy>() == 32);
