// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks that guests boot from, as an installed Debian has them: a partition with an ext4 file system whose `/boot` holds a
//! kernel, its ramdisk and GRUB's menu, which pygrub and pvgrub2 read. The rest of the file system is the guests' ramdisk
//! unpacked, so that what is written in the guest stays.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::host;
use crate::initramfs::Archive;
use crate::kernel::Kernel;

/// Size of a disk; its file is sparse.
const BYTES: u64 = 128 << 20;
const SECTOR: u64 = 512;
/// First sector of the partition.
const START: u64 = 2048;
/// Partition type of Linux file systems.
const LINUX: u8 = 0x83;

/// What is on a disk.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    pub kernel: &'a Kernel,
    /// The root file system.
    pub tree: &'a Archive,
    /// The ramdisk, which mounts it.
    pub ramdisk: &'a [u8],
    /// Arguments of the kernel besides those for console and root.
    pub args: &'a str,
}

/// Makes the disk `image`; `scratch` is a directory that is not there.
pub fn make(image: &Path, scratch: &Path, contents: &Contents) -> Result<()> {
    let boot = scratch.join("boot");
    std::fs::create_dir_all(boot.join("grub"))?;
    contents.tree.write_below(scratch)?;
    let release = &contents.kernel.release;
    std::fs::copy(
        &contents.kernel.image,
        boot.join(format!("vmlinuz-{release}")),
    )?;
    std::fs::write(boot.join(format!("initrd.img-{release}")), contents.ramdisk)?;
    std::fs::write(boot.join("grub/grub.cfg"), menu(release, contents.args))?;

    let mut file = std::fs::File::create(image)?;
    file.set_len(BYTES)?;
    file.write_all(&partition_table(START, BYTES / SECTOR - START)?)?;
    drop(file);
    let program = host::program("mke2fs").context("there is no mke2fs")?;
    host::capture(
        Command::new(program)
            .args(["-q", "-F", "-t", "ext4", "-L", "guest", "-E"])
            .arg(format!("root_owner=0:0,offset={}", START * SECTOR))
            .arg("-d")
            .arg(scratch)
            .arg(image)
            .arg(format!("{}k", (BYTES - START * SECTOR) / 1024)),
    )?;
    std::fs::remove_dir_all(scratch)?;
    Ok(())
}

/// GRUB's menu: one entry, started without waiting for a key.
fn menu(release: &str, args: &str) -> String {
    format!(
        "set default=0\n\
         set timeout=0\n\
         menuentry 'Linux {release}' {{\n\
         \tlinux /boot/vmlinuz-{release} root=/dev/xvda1 console=hvc0 {args}\n\
         \tinitrd /boot/initrd.img-{release}\n\
         }}\n"
    )
}

/// A master boot record with one bootable partition.
fn partition_table(start: u64, sectors: u64) -> Result<Vec<u8>> {
    let mut table = vec![0; 446];
    // Bootable, from "beyond cylinders", of a type, to "beyond cylinders".
    table.extend([0x80, 0xfe, 0xff, 0xff, LINUX, 0xfe, 0xff, 0xff]);
    table.extend(u32::try_from(start)?.to_le_bytes());
    table.extend(u32::try_from(sectors)?.to_le_bytes());
    table.resize(510, 0);
    table.extend([0x55, 0xaa]);
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_is_where_the_file_system_is() {
        let table = partition_table(2048, 0x1_0000).unwrap();
        assert_eq!(table.len(), 512);
        assert_eq!(
            table.get(446..462).unwrap(),
            [
                0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0, 0, 1, 0
            ]
        );
        assert_eq!(table.get(510..).unwrap(), [0x55, 0xaa]);
    }
}
