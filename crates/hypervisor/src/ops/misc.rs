// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xen_version` (xen/version.h) and `vm_assist`.

use crate::cpu::Running;
use core::sync::atomic::Ordering;
use philoxen_abi::addr::HYPERVISOR_START;
use philoxen_abi::features::{self, Features};
use philoxen_abi::version::{self as abi, op};
use philoxen_abi::{DomId, Errno, GuestMemory, GuestVa, PAGE_SIZE, Result};
use philoxen_hw::boot;
use philoxen_hw::cpu::guest::LoadedGuest;

/// `VMASST_TYPE_*` that exist for 64-bit PV guests: 4gb_segments (0), 4gb_segments_notify (1), writable_pagetables (2),
/// pae_extended_cr3 (3), architectural_iopl (4), runstate_update_flag (5).
pub const ASSISTS: u64 = 0x3f;
const ASSIST_PAE_EXTENDED_CR3: u32 = 3;
const ASSIST_ARCHITECTURAL_IOPL: u64 = 4;
/// `xen_version` texts.
const EXTRAVERSION: &str = ".0-philoxen";
const CAPABILITIES: &str = "xen-3.0-x86_64 ";
const CHANGESET: &str = concat!("philoxen ", env!("CARGO_PKG_VERSION"));

/// `xen_version(cmd, arg)`.
pub fn xen_version(running: &Running, cmd: u64, arg: u64) -> Result<i64> {
    let arg = GuestVa(arg);
    match cmd as u32 {
        op::VERSION => return Ok(abi::VERSION.into()),
        op::EXTRAVERSION => LoadedGuest.write(arg, &abi::text::<16>(EXTRAVERSION))?,
        op::COMPILE_INFO => LoadedGuest.write(
            arg,
            &abi::CompileInfo {
                compiler: abi::text("rustc"),
                compile_by: abi::text("philoxen"),
                compile_domain: abi::text(""),
                compile_date: abi::text(""),
            },
        )?,
        op::CAPABILITIES => LoadedGuest.write(arg, &abi::text::<1024>(CAPABILITIES))?,
        op::CHANGESET => LoadedGuest.write(arg, &abi::text::<64>(CHANGESET))?,
        op::PLATFORM_PARAMETERS => {
            LoadedGuest.write(
                arg,
                &abi::PlatformParameters {
                    virt_start: HYPERVISOR_START,
                },
            )?;
        }
        op::GET_FEATURES => {
            let mut info: abi::FeatureInfo = LoadedGuest.read(arg)?;
            if info.submap_idx >= features::SUBMAPS {
                return Err(Errno::EINVAL);
            }
            info.submap = submap(running).bits();
            LoadedGuest.write(arg, &info)?;
        }
        op::PAGESIZE => return Ok(PAGE_SIZE as i64),
        op::GUEST_HANDLE => LoadedGuest.write(arg, &abi::GuestHandle([0; 16]))?,
        op::COMMANDLINE if !running.domain.privileged => return Err(Errno::EPERM),
        op::COMMANDLINE => {
            let line = boot::info().map_or("", |info| info.command_line());
            LoadedGuest.write(arg, &abi::text::<1024>(line))?;
        }
        op::BUILD_ID => return Err(Errno::ENODATA),
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

fn submap(running: &Running) -> Features {
    let mut shown = features::PV;
    shown.set(Features::DOM0, running.domain.id == DomId::DOM0);
    shown.set(
        Features::PAE_PGDIR_ABOVE_4GB,
        running.domain.assist(ASSIST_PAE_EXTENDED_CR3),
    );
    shown
}

/// `vm_assist(cmd, type)`: 0 enables, 1 disables.
pub fn vm_assist(running: &mut Running, cmd: u64, kind: u64) -> Result<i64> {
    let bit = u32::try_from(kind)
        .ok()
        .and_then(|kind| 1u64.checked_shl(kind))
        .unwrap_or(0)
        & ASSISTS;
    if bit == 0 {
        return Err(Errno::EINVAL);
    }
    let on = match cmd {
        0 => true,
        1 => false,
        _ => return Err(Errno::ENOSYS),
    };
    let assists = &running.domain.assists;
    if on {
        assists.fetch_or(bit, Ordering::Relaxed);
    } else {
        assists.fetch_and(!bit, Ordering::Relaxed);
    }
    if kind == ASSIST_ARCHITECTURAL_IOPL {
        running.state.pv.set_architectural_iopl(on);
    }
    Ok(0)
}
