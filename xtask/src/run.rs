// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask run`: a machine on this terminal.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::args::{DOM0_ARGS, Dom0, HYPERVISOR_ARGS, Net, Run, XL_HYPERVISOR_ARGS};
use crate::build;
use crate::deps;
use crate::host::Tree;
use crate::initramfs;
use crate::iso;
use crate::kernel;
use crate::qemu::{self, Boot, Machine};
use crate::rootfs;

/// What Debian's Xen needs besides the default arguments: under TCG, XSAVE raises no fault on which lazy switching
/// of extended state relies.
pub const XEN_NEEDS: &str = "spec-ctrl=eager-fpu";
/// Console of a kernel on the bare machine.
pub const NATIVE_ARGS: &str = "console=ttyS0,115200";

/// Domain 0's files.
#[derive(Clone, Debug)]
pub struct Files {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Whether the kernel is known to lack the e1000's driver.
    pub virtio_only: bool,
}

/// Fetches or makes Domain 0's kernel and initramfs.
pub fn files(tree: &Tree, dom0: &Dom0) -> Result<Files> {
    if let (Some(kernel), Some(initramfs)) = (&dom0.kernel, &dom0.initrd) {
        return Ok(Files {
            kernel: existing(kernel)?,
            initramfs: existing(initramfs)?,
            virtio_only: false,
        });
    }
    let kernel = kernel::kernel(tree, &dom0.flavour)?;
    let initramfs = match &dom0.initrd {
        Some(file) => existing(file)?,
        None => initramfs::make(tree, &kernel, &[])?,
    };
    Ok(Files {
        kernel: match &dom0.kernel {
            Some(file) => existing(file)?,
            None => kernel.image,
        },
        initramfs,
        virtio_only: !kernel
            .modules
            .join("kernel/drivers/net/ethernet/intel/e1000")
            .is_dir(),
    })
}

/// `path` as the machine's loader can take it: absolute, and there.
fn existing(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("there is no file {}", path.display()))
}

/// The network card for a kernel.
pub fn card(files: &Files) -> Net {
    if files.virtio_only {
        Net::Virtio
    } else {
        Net::E1000
    }
}

pub fn run(tree: &Tree, options: &Run) -> Result<bool> {
    let root = options
        .xl
        .then(|| rootfs::make(tree, &options.dom0.flavour))
        .transpose()?;
    let files = match &root {
        Some(root) => root.files.clone(),
        None => files(tree, &options.dom0)?,
    };
    let dom0_args = options.dom0.kernel_args.as_deref().unwrap_or(DOM0_ARGS);
    let default_args = if options.xl {
        format!("{HYPERVISOR_ARGS} {XL_HYPERVISOR_ARGS}")
    } else {
        HYPERVISOR_ARGS.to_owned()
    };
    let args = options.dom0.xen_args.as_deref().unwrap_or(&default_args);
    let mut debug = None;
    let boot = if options.native {
        Boot::Linux {
            kernel: files.kernel.clone(),
            args: options
                .dom0
                .kernel_args
                .clone()
                .unwrap_or_else(|| NATIVE_ARGS.to_owned()),
            initramfs: files.initramfs.clone(),
        }
    } else if options.xen {
        Boot::Multiboot {
            image: kernel::xen(tree)?,
            args: format!("{args} {XEN_NEEDS}"),
            modules: modules(&files, dom0_args),
        }
    } else {
        let hypervisor = build::hypervisor(tree)?;
        debug = Some(hypervisor.debug.clone());
        if options.iso || options.uefi {
            Boot::Cd {
                image: iso::make(
                    tree,
                    &hypervisor.elf,
                    &files,
                    args,
                    dom0_args,
                    "philoxen.iso",
                )?,
                uefi: options.uefi,
            }
        } else {
            Boot::Multiboot {
                image: hypervisor.elf,
                args: args.to_owned(),
                modules: modules(&files, dom0_args),
            }
        }
    };

    let mut machine = Machine::new(&options.machine, boot)?;
    machine.disk = Some(match (&options.disk, root) {
        (Some(disk), _) => existing(disk)?,
        (None, Some(root)) => root.disk,
        (None, None) => qemu::disk(tree, "disk.img")?,
    });
    machine.net = options.net.unwrap_or_else(|| card(&files));
    machine.extra = options.extra.iter().map(Into::into).collect();
    let mut command = machine.command()?;
    command.args(["-serial", "mon:stdio"]);
    if options.gdb
        && let Some(symbols) = &debug
    {
        command.args(["-s", "-S"]);
        debugger(tree, symbols)?;
    }
    eprintln!("Ctrl-A X ends QEMU");
    Ok(command.status().context("cannot start QEMU")?.success())
}

/// Domain 0's modules in the order that the multiboot protocol of Xen has: kernel, then ramdisk.
pub fn modules(files: &Files, dom0_args: &str) -> Vec<(PathBuf, String)> {
    vec![
        (files.kernel.clone(), dom0_args.to_owned()),
        (files.initramfs.clone(), String::new()),
    ]
}

/// Writes the debugger's commands and says how to start it: this terminal is the machine's console.
fn debugger(tree: &Tree, symbols: &Path) -> Result<()> {
    deps::ensure(&[deps::GDB])?;
    ensure!(symbols.exists(), "there is no {}", symbols.display());
    let script = tree.target.join("gdb.commands");
    std::fs::write(
        &script,
        format!(
            "set confirm off\nset pagination off\nfile {}\ntarget remote localhost:1234\n\
             # A software breakpoint would be written before the high mapping exists.\nhbreak {FIRST}\n",
            symbols.display()
        ),
    )?;
    eprintln!(
        "The machine waits for the debugger. In another terminal: gdb -x {}",
        tree.show(&script)
    );
    Ok(())
}

/// The hypervisor's first Rust function.
const FIRST: &str = "hw_boot";
