// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests about a vCPU (xen/vcpu.h). The context of `VCPUOP_initialise` is in [`crate::arch`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VCPUOP_*`: first argument of `vcpu_op`.
pub mod op {
    /// Set a vCPU's first state (once).
    pub const INITIALISE: u32 = 0;
    /// Make an initialised vCPU runnable.
    pub const UP: u32 = 1;
    /// Make a vCPU non-runnable.
    pub const DOWN: u32 = 2;
    /// 1 if the vCPU is up, 0 if not.
    pub const IS_UP: u32 = 3;
    /// Read the time account ([`super::RunstateInfo`]).
    pub const GET_RUNSTATE_INFO: u32 = 4;
    /// Keep a copy of the time account in guest memory ([`super::RegisterAddress`]).
    pub const REGISTER_RUNSTATE_MEMORY_AREA: u32 = 5;
    /// Start the periodic timer ([`super::SetPeriodicTimer`]).
    pub const SET_PERIODIC_TIMER: u32 = 6;
    /// Stop the periodic timer.
    pub const STOP_PERIODIC_TIMER: u32 = 7;
    /// Start the one-shot timer ([`super::SetSingleshotTimer`]).
    pub const SET_SINGLESHOT_TIMER: u32 = 8;
    /// Stop the one-shot timer.
    pub const STOP_SINGLESHOT_TIMER: u32 = 9;
    /// Move the `vcpu_info` to guest memory ([`super::RegisterVcpuInfo`]).
    pub const REGISTER_VCPU_INFO: u32 = 10;
    /// Send an NMI.
    pub const SEND_NMI: u32 = 11;
    /// Read the physical identifiers of a pinned vCPU's processor ([`super::GetPhysid`]).
    pub const GET_PHYSID: u32 = 12;
    /// Keep a copy of the time record in guest memory ([`super::RegisterAddress`]).
    pub const REGISTER_VCPU_TIME_MEMORY_AREA: u32 = 13;
}

/// `RUNSTATE_*`: values of [`RunstateInfo::state`].
pub mod runstate {
    /// Runs on a processor.
    pub const RUNNING: u32 = 0;
    /// Wants to run, but does not.
    pub const RUNNABLE: u32 = 1;
    /// Waits for an event.
    pub const BLOCKED: u32 = 2;
    /// Neither runnable nor blocked: down or paused.
    pub const OFFLINE: u32 = 3;
}

/// `XEN_RUNSTATE_UPDATE`: in [`RunstateInfo::state_entry_time`] while a copy in guest memory is being changed (only
/// with `VMASST_TYPE_runstate_update_flag`).
pub const RUNSTATE_UPDATE: u64 = 1 << 63;

/// Shortest period of the periodic timer, in nanoseconds.
pub const MIN_PERIOD_NS: u64 = 1_000_000;

/// `VCPU_SSHOTTMR_future` in [`SetSingleshotTimer::flags`]: answer `ETIME` if the time has passed.
pub const SINGLESHOT_FUTURE: u32 = 1;

/// `struct vcpu_runstate_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RunstateInfo {
    /// One of [`runstate`].
    pub state: u32,
    /// Padding.
    pub pad: u32,
    /// System time at which the state was entered, in nanoseconds.
    pub state_entry_time: u64,
    /// Nanoseconds spent in each state.
    pub time: [u64; 4],
}
const _: () = assert!(size_of::<RunstateInfo>() == 48);

/// `struct vcpu_register_runstate_memory_area` and `struct vcpu_register_time_memory_area`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterAddress {
    /// Guest virtual address of the copy; 0 for none.
    pub addr: u64,
}
const _: () = assert!(size_of::<RegisterAddress>() == 8);

/// `struct vcpu_set_periodic_timer`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetPeriodicTimer {
    /// Period in nanoseconds.
    pub period_ns: u64,
}
const _: () = assert!(size_of::<SetPeriodicTimer>() == 8);

/// `struct vcpu_set_singleshot_timer`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetSingleshotTimer {
    /// System time in nanoseconds.
    pub timeout_abs_ns: u64,
    /// [`SINGLESHOT_FUTURE`] or 0.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<SetSingleshotTimer>() == 16);

/// `struct vcpu_register_vcpu_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterVcpuInfo {
    /// Frame of the new place.
    pub mfn: u64,
    /// Byte offset in the frame.
    pub offset: u32,
    /// Unused.
    pub rsvd: u32,
}
const _: () = assert!(size_of::<RegisterVcpuInfo>() == 16);

/// `struct vcpu_get_physid`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetPhysid {
    /// APIC identifier below, ACPI processor identifier in the upper half.
    pub phys_id: u64,
}
const _: () = assert!(size_of::<GetPhysid>() == 8);
