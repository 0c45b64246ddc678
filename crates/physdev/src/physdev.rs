// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `physdev_op` hypercall (xen/physdev.h).
//!
//! `set_iopl` and `set_iobitmap` belong to the vCPU and are not handled here. Operations on a domain's own PIRQs are
//! open to every domain (it can only have what it was given); everything about the machine needs the hardware
//! domain.

use crate::acpi::Signal;
use crate::chip::{Chip, Gsi, Route, Sbdf};
use crate::irq::Irqs;
use crate::msi::{self, Msi};
use crate::pirq::{DomainIrqs, EoiPage};
use philoxen_abi::physdev as wire;
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Mfn, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The domain that makes a request.
pub trait Caller {
    /// A page of the domain, held as writable memory for as long as the value lives.
    type Page: EoiPage;

    /// Its identifier.
    fn id(&self) -> DomId;

    /// True for the domain that drives the machine's devices.
    fn is_hardware_domain(&self) -> bool;

    /// Its PIRQs.
    fn irqs(&self) -> &DomainIrqs<Self::Page>;

    /// Takes a frame of the domain for the EOI bitmap.
    ///
    /// # Errors
    /// `EINVAL` if it is not a writable page of the domain.
    fn hold_page(&self, frame: Mfn) -> Result<Self::Page>;

    /// Unmasks the event channel that is bound to `pirq`.
    fn unmask_pirq(&self, pirq: u32);
}

/// Runs one request; `arg` is the address of its structure.
pub fn physdev_op<C: Chip, D: Caller>(
    irqs: &Irqs<C>,
    caller: &D,
    guest: &impl GuestMemory,
    cmd: u64,
    arg: GuestVa,
) -> Flow {
    let request = Request {
        irqs,
        caller,
        guest,
        arg,
    };
    // Any guest's operations first: they are the frequent ones.
    let result = match cmd {
        wire::EOI => request.eoi(),
        wire::IRQ_STATUS_QUERY => request.status(),
        wire::PIRQ_EOI_GMFN_V1 => request.share_page(true),
        wire::PIRQ_EOI_GMFN_V2 => request.share_page(false),
        wire::MAP_PIRQ
        | wire::UNMAP_PIRQ
        | wire::GET_FREE_PIRQ
        | wire::ALLOC_IRQ_VECTOR
        | wire::FREE_IRQ_VECTOR
        | wire::SETUP_GSI
        | wire::APIC_READ
        | wire::APIC_WRITE => request.hardware_only(|r| r.lines(cmd)),
        wire::MANAGE_PCI_ADD..=wire::MANAGE_PCI_REMOVE
        | wire::MANAGE_PCI_ADD_EXT
        | wire::RESTORE_MSI
        | wire::PCI_MMCFG_RESERVED..=wire::RESTORE_MSI_EXT
        | wire::PREPARE_MSIX
        | wire::RELEASE_MSIX => request.hardware_only(|r| r.devices(cmd)),
        _ => Err(Errno::ENOSYS),
    };
    result.map(|()| 0).into()
}

struct Request<'a, C, D, G> {
    irqs: &'a Irqs<C>,
    caller: &'a D,
    guest: &'a G,
    arg: GuestVa,
}

fn index(value: i32) -> Result<u32> {
    u32::try_from(value).map_err(|_| Errno::EINVAL)
}

impl<C: Chip, D: Caller, G: GuestMemory> Request<'_, C, D, G> {
    fn read<T: FromBytes + IntoBytes>(&self) -> Result<T> {
        self.guest.read(self.arg)
    }

    fn write<T: IntoBytes + Immutable>(&self, value: &T) -> Result<()> {
        self.guest.write(self.arg, value)
    }

    fn hardware_only(&self, run: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        if self.caller.is_hardware_domain() {
            run(self)
        } else {
            Err(Errno::EPERM)
        }
    }

    fn eoi(&self) -> Result<()> {
        let eoi: wire::Eoi = self.read()?;
        if self.caller.irqs().eoi(self.irqs, eoi.irq)? {
            self.caller.unmask_pirq(eoi.irq);
        }
        Ok(())
    }

    fn status(&self) -> Result<()> {
        let mut query: wire::IrqStatusQuery = self.read()?;
        let (needs_eoi, shared) = self.caller.irqs().status(self.irqs, query.irq)?;
        query.flags = 0;
        if needs_eoi {
            query.flags |= wire::IRQSTAT_NEEDS_EOI;
        }
        if shared {
            query.flags |= wire::IRQSTAT_SHARED;
        }
        self.write(&query)
    }

    fn share_page(&self, unmask_on_eoi: bool) -> Result<()> {
        let info: wire::PirqEoiGmfn = self.read()?;
        let page = self.caller.hold_page(Mfn(info.gmfn))?;
        self.caller
            .irqs()
            .share_page(self.irqs, unmask_on_eoi, page)
    }

    fn lines(&self, cmd: u64) -> Result<()> {
        match cmd {
            wire::MAP_PIRQ => self.map_pirq(),
            wire::UNMAP_PIRQ => {
                let unmap: wire::UnmapPirq = self.read()?;
                self.own(unmap.domid)?;
                self.caller.irqs().unmap(self.irqs, index(unmap.pirq)?)
            }
            wire::GET_FREE_PIRQ => {
                let mut free: wire::GetFreePirq = self.read()?;
                let for_gsi = match free.kind {
                    wire::MAP_GSI => true,
                    wire::MAP_MSI => false,
                    _ => return Err(Errno::EINVAL),
                };
                free.pirq = self.caller.irqs().reserve(for_gsi)?;
                self.write(&free)
            }
            wire::ALLOC_IRQ_VECTOR => {
                let mut op: wire::IrqOp = self.read()?;
                op.vector = self.irqs.gsi_line(Gsi(op.irq))?.0.into();
                self.write(&op)
            }
            // A GSI keeps its vector for good.
            wire::FREE_IRQ_VECTOR => self.read::<wire::IrqOp>().map(drop),
            wire::SETUP_GSI => {
                let setup: wire::SetupGsi = self.read()?;
                let signal = Signal {
                    level: setup.triggering != 0,
                    low: setup.polarity != 0,
                };
                self.irqs.setup_gsi(Gsi(index(setup.gsi)?), signal)?;
                self.caller.irqs().refresh(self.irqs);
                Ok(())
            }
            wire::APIC_READ => {
                let mut op: wire::ApicOp = self.read()?;
                let register = u8::try_from(op.reg).map_err(|_| Errno::EINVAL)?;
                let value = self.irqs.chip().ioapic_register(op.apic_physbase, register);
                op.value = value.ok_or(Errno::EINVAL)?;
                self.write(&op)
            }
            _ => self.apic_write(),
        }
    }

    /// PIRQs can be mapped only for the caller: devices are not given to other domains.
    fn own(&self, domid: u16) -> Result<()> {
        let is_own = DomId(domid) == DomId::SELF || DomId(domid) == self.caller.id();
        if is_own { Ok(()) } else { Err(Errno::EPERM) }
    }

    fn map_pirq(&self) -> Result<()> {
        let mut map: wire::MapPirq = self.read()?;
        self.own(map.domid)?;
        let wanted = u32::try_from(map.pirq).ok();
        let irqs = self.caller.irqs();
        let pirq = match map.kind {
            wire::MAP_GSI => irqs.map_gsi(self.irqs, Gsi(index(map.index)?), wanted)?,
            wire::MAP_MSI | wire::MAP_MSI_SEG => {
                irqs.map_msi(self.irqs, self.message(&map)?, wanted)?
            }
            wire::MAP_MULTI_MSI => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::EINVAL),
        };
        map.pirq = i32::try_from(pirq).map_err(|_| Errno::ERANGE)?;
        self.write(&map).inspect_err(|_| {
            // Nobody would know its number.
            let _ = irqs.unmap(self.irqs, pirq);
        })
    }

    /// The message that a map request names.
    fn message(&self, map: &wire::MapPirq) -> Result<Msi> {
        let segment = if map.kind == wire::MAP_MSI_SEG {
            (map.bus >> 16) as u16
        } else {
            0
        };
        let devfn = u8::try_from(map.devfn).map_err(|_| Errno::EINVAL)?;
        let function = Sbdf {
            segment,
            bus: map.bus as u8,
            devfn,
        };
        let chip = self.irqs.chip();
        if !msi::is_present(chip, function) {
            return Err(Errno::ENODEV);
        }
        if map.table_base == 0 {
            return Msi::plain(chip, function);
        }
        let is_virtual = self.irqs.devices.lock().is_virtual(function);
        Msi::extended(
            chip,
            function,
            index(map.entry_nr)?,
            map.table_base,
            is_virtual,
        )
    }

    /// A write to an I/O APIC register: only an entry's trigger and polarity count, and only before the GSI is set up.
    fn apic_write(&self) -> Result<()> {
        let op: wire::ApicOp = self.read()?;
        let base = self
            .irqs
            .chip()
            .ioapic_gsi_base(op.apic_physbase)
            .ok_or(Errno::EINVAL)?;
        let entry = op.reg.checked_sub(0x10).ok_or(Errno::EPERM)?;
        let gsi = Gsi(base.checked_add(entry / 2).ok_or(Errno::EINVAL)?);
        if entry % 2 == 1 || u64::from(op.value) & Route::MASKED != 0 {
            return Ok(());
        }
        let signal = Signal {
            level: op.value & 1 << 15 != 0,
            low: op.value & 1 << 13 != 0,
        };
        match self.irqs.setup_gsi(gsi, signal) {
            Ok(()) => self.caller.irqs().refresh(self.irqs),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn devices(&self, cmd: u64) -> Result<()> {
        match cmd {
            wire::MANAGE_PCI_ADD => self.add(self.function_of_segment_0()?, false),
            wire::MANAGE_PCI_REMOVE => self.remove(self.function_of_segment_0()?),
            wire::MANAGE_PCI_ADD_EXT => {
                let add: wire::ManagePciExt = self.read()?;
                let function = Sbdf {
                    segment: 0,
                    bus: add.bus,
                    devfn: add.devfn,
                };
                self.add(function, add.is_virtfn != 0)
            }
            wire::PCI_DEVICE_ADD => {
                let add: wire::PciDeviceAdd = self.read()?;
                let function = Sbdf {
                    segment: add.seg,
                    bus: add.bus,
                    devfn: add.devfn,
                };
                self.add(function, add.flags & wire::PCI_DEV_VIRTFN != 0)
            }
            wire::PCI_DEVICE_REMOVE => self.remove(self.function()?),
            wire::RESTORE_MSI => self.irqs.restore_msi(self.function_of_segment_0()?),
            wire::RESTORE_MSI_EXT => self.irqs.restore_msi(self.function()?),
            wire::PREPARE_MSIX | wire::RELEASE_MSIX => {
                // Tables are found again for every map request: nothing to hold or let go.
                let known = msi::has_msix(self.irqs.chip(), self.function()?);
                if known { Ok(()) } else { Err(Errno::ENODEV) }
            }
            _ => self.mmcfg_reserved(),
        }
    }

    fn function_of_segment_0(&self) -> Result<Sbdf> {
        let device: wire::ManagePci = self.read()?;
        Ok(Sbdf {
            segment: 0,
            bus: device.bus,
            devfn: device.devfn,
        })
    }

    fn function(&self) -> Result<Sbdf> {
        let device: wire::PciDevice = self.read()?;
        Ok(Sbdf {
            segment: device.seg,
            bus: device.bus,
            devfn: device.devfn,
        })
    }

    fn add(&self, function: Sbdf, is_virtual: bool) -> Result<()> {
        // The configuration space of a virtual function has no vendor.
        if !is_virtual && !msi::is_present(self.irqs.chip(), function) {
            return Err(Errno::ENODEV);
        }
        self.irqs.devices.lock().add(function, is_virtual)
    }

    fn remove(&self, function: Sbdf) -> Result<()> {
        self.irqs.devices.lock().remove(function)
    }

    fn mmcfg_reserved(&self) -> Result<()> {
        let area: wire::PciMmcfgReserved = self.read()?;
        if area.flags & !wire::PCI_MMCFG_IS_RESERVED != 0 {
            return Err(Errno::EINVAL);
        }
        let known = self.irqs.chip().pci_windows().iter().any(|window| {
            (window.address, window.segment) == (area.address, area.segment)
                && (window.first_bus, window.last_bus) == (area.start_bus, area.end_bus)
        });
        if known { Ok(()) } else { Err(Errno::ENODEV) }
    }
}

#[cfg(test)]
#[path = "physdev_tests.rs"]
mod tests;
