// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event-channel requests and the two layouts of shared event state (xen/event_channel.h, VIRQs from xen/xen.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `EVTCHNOP_*`: first argument of `event_channel_op`.
pub mod op {
    /// Connect a fresh local port to another domain's unbound port.
    pub const BIND_INTERDOMAIN: u32 = 0;
    /// Bind a fresh port to a virtual interrupt.
    pub const BIND_VIRQ: u32 = 1;
    /// Bind a fresh port to a physical interrupt.
    pub const BIND_PIRQ: u32 = 2;
    /// Close a local port.
    pub const CLOSE: u32 = 3;
    /// Notify the far end of a local port.
    pub const SEND: u32 = 4;
    /// Read the state of a port.
    pub const STATUS: u32 = 5;
    /// Allocate a port that waits for a binding from another domain.
    pub const ALLOC_UNBOUND: u32 = 6;
    /// Bind a fresh port that a domain's own vCPUs notify.
    pub const BIND_IPI: u32 = 7;
    /// Choose the vCPU that a port notifies.
    pub const BIND_VCPU: u32 = 8;
    /// Unmask a port and notify if it is pending.
    pub const UNMASK: u32 = 9;
    /// Close all ports and go back to the two-level layout.
    pub const RESET: u32 = 10;
    /// Give a vCPU its FIFO control block; the first one switches the domain to the FIFO layout.
    pub const INIT_CONTROL: u32 = 11;
    /// Add a page of FIFO event words.
    pub const EXPAND_ARRAY: u32 = 12;
    /// Set a port's FIFO priority.
    pub const SET_PRIORITY: u32 = 13;
    /// A [`RESET`] that goes on where it stopped; the hypervisor's own use.
    pub const RESET_CONT: u32 = 14;
}

/// `VIRQ_*`: virtual interrupts.
pub mod virq {
    /// One-shot or periodic timer (per vCPU).
    pub const TIMER: u32 = 0;
    /// Ask the guest to print its state (per vCPU).
    pub const DEBUG: u32 = 1;
    /// Input on the emergency console (global).
    pub const CONSOLE: u32 = 2;
    /// Something exceptional happened to some domain (global).
    pub const DOM_EXC: u32 = 3;
    /// Trace records available (global).
    pub const TBUF: u32 = 4;
    /// A domain stopped for its debugger (global).
    pub const DEBUGGER: u32 = 6;
    /// Profiling sample (per vCPU).
    pub const XENOPROF: u32 = 7;
    /// Output arrived in the console ring (global).
    pub const CON_RING: u32 = 8;
    /// A physical processor changed state (global).
    pub const PCPU_STATE: u32 = 9;
    /// Memory event (global).
    pub const MEM_EVENT: u32 = 10;
    /// Argo message (global).
    pub const ARGO: u32 = 11;
    /// The hypervisor is short of memory (global).
    pub const ENOMEM: u32 = 12;
    /// Performance-counter interrupt (per vCPU).
    pub const XENPMU: u32 = 13;
    /// First of the eight architecture-specific VIRQs.
    pub const ARCH_0: u32 = 16;
    /// Machine-check telemetry (`VIRQ_MCA`, global).
    pub const MCA: u32 = ARCH_0;
    /// Number of VIRQs (`NR_VIRQS`).
    pub const COUNT: u32 = 24;

    /// True if the VIRQ goes to a domain as a whole and not to one vCPU.
    pub const fn is_global(virq: u32) -> bool {
        !matches!(virq, TIMER | DEBUG | XENOPROF | XENPMU)
    }
}

/// `EVTCHNSTAT_*`: values of [`Status::status`].
pub mod status {
    /// Not in use.
    pub const CLOSED: u32 = 0;
    /// Waits for the far end to bind.
    pub const UNBOUND: u32 = 1;
    /// Connected to another port.
    pub const INTERDOMAIN: u32 = 2;
    /// Bound to a physical interrupt.
    pub const PIRQ: u32 = 3;
    /// Bound to a virtual interrupt.
    pub const VIRQ: u32 = 4;
    /// Bound to a vCPU of the same domain.
    pub const IPI: u32 = 5;
}

/// `BIND_PIRQ__WILL_SHARE` in [`BindPirq::flags`].
pub const BIND_PIRQ_WILL_SHARE: u32 = 1;

/// Ports of the two-level layout (`EVTCHN_2L_NR_CHANNELS`).
pub const TWO_LEVEL_PORTS: u32 = 4096;

/// The FIFO layout: event words and control blocks.
pub mod fifo {
    /// Highest priority.
    pub const PRIORITY_MAX: u32 = 0;
    /// Priority of a port until the guest sets another.
    pub const PRIORITY_DEFAULT: u32 = 7;
    /// Lowest priority.
    pub const PRIORITY_MIN: u32 = 15;
    /// Queues per vCPU, one per priority.
    pub const QUEUES: usize = 16;
    /// Event word: the event is pending.
    pub const PENDING: u32 = 1 << 31;
    /// Event word: the event is masked.
    pub const MASKED: u32 = 1 << 30;
    /// Event word: the event is on a queue.
    pub const LINKED: u32 = 1 << 29;
    /// Event word: the hypervisor is changing the link.
    pub const BUSY: u32 = 1 << 28;
    /// Width of the link field.
    pub const LINK_BITS: u32 = 17;
    /// Event word: next port on the queue.
    pub const LINK_MASK: u32 = (1 << LINK_BITS) - 1;
    /// Ports of the FIFO layout (`EVTCHN_FIFO_NR_CHANNELS`).
    pub const PORTS: u32 = 1 << LINK_BITS;
    /// Event words in a page.
    pub const WORDS_PER_PAGE: u32 = 1024;
    /// Pages of a full event array.
    pub const ARRAY_PAGES: usize = (PORTS / WORDS_PER_PAGE) as usize;
    /// Bytes of a control block: `ready` (u32), reserved (u32), `head[16]` (u32).
    pub const CONTROL_BLOCK_SIZE: u32 = 72;
    /// Byte offset of `head` in a control block.
    pub const CONTROL_HEAD: usize = 8;
}

/// `struct evtchn_alloc_unbound`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AllocUnbound {
    /// In: domain that gets the port.
    pub dom: u16,
    /// In: domain that may bind to it.
    pub remote_dom: u16,
    /// Out: the port.
    pub port: u32,
}
const _: () = assert!(size_of::<AllocUnbound>() == 8);

/// `struct evtchn_bind_interdomain`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindInterdomain {
    /// In: domain at the far end.
    pub remote_dom: u16,
    /// Padding.
    pub pad: u16,
    /// In: its unbound port.
    pub remote_port: u32,
    /// Out: the fresh local port.
    pub local_port: u32,
}
const _: () = assert!(size_of::<BindInterdomain>() == 12);

/// `struct evtchn_bind_virq`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindVirq {
    /// In: VIRQ number.
    pub virq: u32,
    /// In: vCPU to notify.
    pub vcpu: u32,
    /// Out: the port.
    pub port: u32,
}
const _: () = assert!(size_of::<BindVirq>() == 12);

/// `struct evtchn_bind_pirq`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindPirq {
    /// In: PIRQ number.
    pub pirq: u32,
    /// In: [`BIND_PIRQ_WILL_SHARE`] or 0.
    pub flags: u32,
    /// Out: the port.
    pub port: u32,
}
const _: () = assert!(size_of::<BindPirq>() == 12);

/// `struct evtchn_bind_ipi`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindIpi {
    /// In: vCPU to notify.
    pub vcpu: u32,
    /// Out: the port.
    pub port: u32,
}
const _: () = assert!(size_of::<BindIpi>() == 8);

/// `struct evtchn_close`, `struct evtchn_send` and `struct evtchn_unmask`: just a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PortArg {
    /// In: local port.
    pub port: u32,
}
const _: () = assert!(size_of::<PortArg>() == 4);

/// `struct evtchn_status`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Status {
    /// In: domain that owns the port.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// In: the port.
    pub port: u32,
    /// Out: one of [`status`].
    pub status: u32,
    /// Out: vCPU the port notifies.
    pub vcpu: u32,
    /// Out: remote domain (unbound, interdomain) in the low 16 bits, or the PIRQ or VIRQ.
    pub detail: u32,
    /// Out: remote port (interdomain).
    pub remote_port: u32,
}
const _: () = assert!(size_of::<Status>() == 24);

/// `struct evtchn_bind_vcpu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindVcpu {
    /// In: local port.
    pub port: u32,
    /// In: vCPU to notify from now on.
    pub vcpu: u32,
}
const _: () = assert!(size_of::<BindVcpu>() == 8);

/// `struct evtchn_reset`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Reset {
    /// In: domain whose ports are closed.
    pub dom: u16,
}
const _: () = assert!(size_of::<Reset>() == 2);

/// `struct evtchn_init_control`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InitControl {
    /// In: frame of the control block.
    pub control_gfn: u64,
    /// In: byte offset in the frame.
    pub offset: u32,
    /// In: vCPU.
    pub vcpu: u32,
    /// Out: width of link fields.
    pub link_bits: u8,
    /// Padding.
    pub pad: [u8; 7],
}
const _: () = assert!(size_of::<InitControl>() == 24);

/// `struct evtchn_expand_array`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExpandArray {
    /// In: frame that holds the next 1024 event words.
    pub array_gfn: u64,
}
const _: () = assert!(size_of::<ExpandArray>() == 8);

/// `struct evtchn_set_priority`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetPriority {
    /// In: local port.
    pub port: u32,
    /// In: priority, 0 (highest) to 15.
    pub priority: u32,
}
const _: () = assert!(size_of::<SetPriority>() == 8);
