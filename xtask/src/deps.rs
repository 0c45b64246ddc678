// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages that a command needs: listed first, then installed by apt.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::host;

/// A package and the sign by which its contents are recognised, however they were installed.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    package: &'static str,
    sign: Sign,
}

#[derive(Clone, Copy, Debug)]
enum Sign {
    /// A program in PATH.
    Program(&'static str),
    /// A file or directory.
    Path(&'static str),
}

const fn program(package: &'static str, name: &'static str) -> Need {
    Need {
        package,
        sign: Sign::Program(name),
    }
}

const fn path(package: &'static str, name: &'static str) -> Need {
    Need {
        package,
        sign: Sign::Path(name),
    }
}

/// The emulator.
pub const QEMU: &[Need] = &[program("qemu-system-x86", "qemu-system-x86_64")];
/// UEFI firmware for the emulator.
pub const UEFI: &[Need] = &[path("ovmf", "/usr/share/OVMF/OVMF_CODE.fd")];
/// The linker.
pub const LINKER: &[Need] = &[program("binutils", "ld")];
/// A compiler whose libcore can be built here for the bare machine.
pub const DEBIAN_RUST: &[Need] = &[
    path("rustc-web", "/usr/bin/rustc"),
    path("cargo-web", "/usr/bin/cargo"),
    path("rust-web-src", "/usr/lib/rustlib/src/rust/library/core"),
];
/// Compressed kernel modules.
pub const XZ: &[Need] = &[program("xz-utils", "xz")];
/// Compressed kernel modules of newer kernels.
pub const ZSTD: &[Need] = &[program("zstd", "zstd")];
/// A C linker and library, for the static program that measures.
pub const STATIC_LINK: &[Need] = &[
    program("gcc", "cc"),
    path("libc6-dev", "/usr/lib/x86_64-linux-gnu/libc.a"),
];
/// Bootable images.
pub const ISO: &[Need] = &[
    program("grub-common", "grub-mkrescue"),
    path("grub-pc-bin", "/usr/lib/grub/i386-pc/multiboot2.mod"),
    path(
        "grub-efi-amd64-bin",
        "/usr/lib/grub/x86_64-efi/multiboot2.mod",
    ),
    program("xorriso", "xorriso"),
    program("mtools", "mformat"),
];
/// File systems.
pub const E2FS: &[Need] = &[program("e2fsprogs", "mke2fs")];
/// The debugger.
pub const GDB: &[Need] = &[program("gdb", "gdb")];

/// Makes sure of every package in `groups`: lists what is missing and installs it.
pub fn ensure(groups: &[&[Need]]) -> Result<()> {
    let missing: Vec<&str> = groups
        .iter()
        .flat_map(|group| group.iter())
        .filter(|need| !present(need))
        .map(|need| need.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if host::program("apt-get").is_none() || host::program("dpkg").is_none() {
        bail!(
            "this machine has no apt: install what Debian 12 calls {list} and have its programs in PATH"
        );
    }
    eprintln!("Missing packages: {list}");
    if install(&missing).is_err() {
        eprintln!("Updating apt's package lists");
        host::run(as_root("apt-get")?.args(["-q", "update"]))?;
        install(&missing)?;
    }
    Ok(())
}

/// Updates apt's lists of packages.
pub fn update_lists() -> Result<()> {
    eprintln!("Updating apt's package lists");
    host::run(as_root("apt-get")?.args(["-q", "update"]))
}

fn install(packages: &[&str]) -> Result<()> {
    host::run(
        as_root("apt-get")?
            .args(["-q", "install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
}

fn present(need: &Need) -> bool {
    let found = match need.sign {
        Sign::Program(name) => host::program(name).is_some(),
        Sign::Path(name) => Path::new(name).exists(),
    };
    found || installed(need.package)
}

fn installed(package: &str) -> bool {
    Command::new("dpkg")
        .args(["--status", package])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| {
            output.status.success()
                && String::from_utf8_lossy(&output.stdout).contains("Status: install ok installed")
        })
}

/// `name` as a command that has an administrator's rights.
fn as_root(name: &str) -> Result<Command> {
    let root = host::capture(Command::new("id").arg("-u"))?.trim() == "0";
    let mut command = if root {
        Command::new(name)
    } else if host::program("sudo").is_some() {
        let mut command = Command::new("sudo");
        command.arg("--preserve-env=DEBIAN_FRONTEND").arg(name);
        command
    } else {
        bail!("not root and no sudo: run `{name}` as root yourself, or this command as root");
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}
