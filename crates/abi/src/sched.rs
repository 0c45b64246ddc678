// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scheduler requests of a guest (xen/sched.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SCHEDOP_*`: first argument of `sched_op`.
pub mod op {
    /// Give up the processor for now.
    pub const YIELD: u32 = 0;
    /// Clear the upcall mask and sleep until an event is pending.
    pub const BLOCK: u32 = 1;
    /// Stop the calling domain ([`super::Shutdown`]).
    pub const SHUTDOWN: u32 = 2;
    /// Sleep until one of some ports is pending or a timeout ([`super::Poll`]).
    pub const POLL: u32 = 3;
    /// Stop another domain ([`super::RemoteShutdown`]).
    pub const REMOTE_SHUTDOWN: u32 = 4;
    /// Remember a reason that a later shutdown reports ([`super::Shutdown`]).
    pub const SHUTDOWN_CODE: u32 = 5;
    /// Set up, poke or remove a domain watchdog ([`super::Watchdog`]).
    pub const WATCHDOG: u32 = 6;
    /// Pin the calling vCPU to one processor for a while ([`super::PinOverride`]).
    pub const PIN_OVERRIDE: u32 = 7;
}

/// `SHUTDOWN_*`: why a domain stops.
pub mod shutdown {
    /// Finished normally.
    pub const POWEROFF: u32 = 0;
    /// Wants to be started again.
    pub const REBOOT: u32 = 1;
    /// Saved its state and waits to be resumed.
    pub const SUSPEND: u32 = 2;
    /// Crashed.
    pub const CRASH: u32 = 3;
    /// Its watchdog ran out.
    pub const WATCHDOG: u32 = 4;
    /// Wants its hypervisor-side state reset, memory and vCPUs kept.
    pub const SOFT_RESET: u32 = 5;
    /// Highest valid reason.
    pub const MAX: u32 = 5;
}

/// Ports that one poll may name.
pub const POLL_MAX_PORTS: u32 = 128;
/// Watchdog timers of one domain.
pub const WATCHDOGS_PER_DOMAIN: u32 = 2;

/// `struct sched_shutdown`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Shutdown {
    /// One of [`shutdown`].
    pub reason: u32,
}
const _: () = assert!(size_of::<Shutdown>() == 4);

/// `struct sched_poll`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Poll {
    /// Guest address of an array of ports (u32).
    pub ports: u64,
    /// Elements of the array.
    pub nr_ports: u32,
    /// Padding.
    pub pad: u32,
    /// System time in nanoseconds to wait for at most; 0: for ever.
    pub timeout: u64,
}
const _: () = assert!(size_of::<Poll>() == 24);

/// `struct sched_remote_shutdown`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RemoteShutdown {
    /// The domain to stop.
    pub domain_id: u16,
    /// Padding.
    pub pad: u16,
    /// One of [`shutdown`].
    pub reason: u32,
}
const _: () = assert!(size_of::<RemoteShutdown>() == 8);

/// `struct sched_watchdog`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Watchdog {
    /// 0 to set up a new one, else the one meant.
    pub id: u32,
    /// Seconds until the domain is shut down; 0 removes the watchdog.
    pub timeout: u32,
}
const _: () = assert!(size_of::<Watchdog>() == 8);

/// `struct sched_pin_override`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PinOverride {
    /// Processor to pin to; negative undoes the pin.
    pub pcpu: i32,
}
const _: () = assert!(size_of::<PinOverride>() == 4);
