// SPDX-License-Identifier: MIT OR Apache-2.0
//! I/O ports of domains: Domain 0 reaches the machine's, but for those that the hypervisor drives and the console's;
//! every other domain those that tools gave it, and at all others there is nothing.

use crate::domain::Domain;
use philoxen_abi::DomId;
use philoxen_hw::dev::port;
use philoxen_hw::{dev, serial};
use philoxen_physdev::chip::Width;
use philoxen_physdev::pci_ports;

/// Reads `size` bytes (1, 2, 4) at `port`; all ones where there is nothing for the domain.
pub fn read(domain: &Domain, port: u16, size: u8) -> u32 {
    let Some(width) = Width::from_bytes(size.into()) else {
        return u32::MAX;
    };
    if !may_use(domain, port, width) {
        return width.ones();
    }
    if pci_ports::covers(port, width) {
        return domain.pci.read(&dev::Machine, port, width);
    }
    port::guest_read(port, width)
}

/// Writes `size` bytes (1, 2, 4) at `port`; dropped where there is nothing for the domain.
pub fn write(domain: &Domain, port: u16, size: u8, value: u32) {
    let Some(width) = Width::from_bytes(size.into()) else {
        return;
    };
    if !may_use(domain, port, width) {
        return;
    }
    if pci_ports::covers(port, width) {
        domain.pci.write(&dev::Machine, port, width, value);
    } else {
        port::guest_write(port, width, value);
    }
}

/// True if the domain may reach these ports. PCI configuration is Domain 0's alone.
fn may_use(domain: &Domain, port: u16, width: Width) -> bool {
    let allowed = domain.id == DomId::DOM0
        || !pci_ports::covers(port, width)
            && domain
                .tool
                .access
                .read()
                .ports
                .contains(port.into(), width.bytes().into());
    allowed && !is_console(port, width)
}

/// True if an access touches the console's serial port.
fn is_console(port: u16, width: Width) -> bool {
    serial::ports().is_some_and(|(first, count)| {
        port < first.saturating_add(count) && port.saturating_add(width.bytes()) > first
    })
}
