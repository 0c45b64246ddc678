// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask run`: a machine on this terminal.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::args::{DOM0_ARGS, Dom0, HYPERVISOR_ARGS, Net, Run, XL_HYPERVISOR_ARGS, XL_MEMORY};
use crate::build;
use crate::deps;
use crate::host::Tree;
use crate::initramfs;
use crate::iso;
use crate::kernel;
use crate::qemu::{self, Boot, Machine};
use crate::rootfs;
use crate::sysroot::Toolchain;

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
    deps::ensure(&needs(options))?;
    let root = options
        .with_xl()
        .then(|| rootfs::make(tree, &options.dom0.flavour))
        .transpose()?;
    let files = match &root {
        Some(root) => root.files.clone(),
        None => files(tree, &options.dom0)?,
    };
    let (boot, symbols) = boot(tree, options, &files)?;
    let mut machine = Machine::new(&options.machine, boot)?;
    if let Some(root) = &root {
        if options.machine.memory.is_none() {
            machine.memory = XL_MEMORY.to_owned();
        }
        machine.disks.push(root.own(tree, options.fresh)?);
    }
    match &options.disk {
        Some(disk) => machine.disks.push(existing(disk)?),
        None if root.is_none() => machine.disks.push(qemu::disk(tree, "disk.img")?),
        None => {}
    }
    machine.net = options.net.unwrap_or_else(|| card(&files));
    machine.extra = options.extra.iter().map(Into::into).collect();
    let mut command = machine.command()?;
    command.args(["-serial", "mon:stdio"]);
    if options.gdb
        && let Some(symbols) = &symbols
    {
        command.args(["-s", "-S"]);
        debugger(tree, symbols)?;
    }
    eprintln!("Ctrl-A X ends QEMU");
    Ok(command.status().context("cannot start QEMU")?.success())
}

/// Everything of the host's that the run needs, so that it is asked for at once.
fn needs(options: &Run) -> Vec<&'static [deps::Need]> {
    let mut needs = vec![deps::XZ];
    let mut add = |wanted: bool, group| {
        if wanted {
            needs.push(group);
        }
    };
    let built = !options.native && !options.xen;
    add(options.machine.qemu.is_none(), deps::QEMU);
    add(options.with_xl(), deps::E2FS);
    add(built, deps::LINKER);
    add(built, Toolchain::needs());
    add(options.iso || options.uefi, deps::ISO);
    add(options.uefi, deps::UEFI);
    add(options.gdb, deps::GDB);
    needs
}

/// What the machine starts, and the file with the hypervisor's symbols where it is ours.
fn boot(tree: &Tree, options: &Run, files: &Files) -> Result<(Boot, Option<PathBuf>)> {
    let kernel_args = |default: &str| match &options.dom0.kernel_args {
        Some(args) => args.clone(),
        None => format!("{default} {}", terminal()).trim_end().to_owned(),
    };
    let default_args = if options.with_xl() {
        format!("{HYPERVISOR_ARGS} {XL_HYPERVISOR_ARGS}")
    } else {
        HYPERVISOR_ARGS.to_owned()
    };
    let args = options.dom0.xen_args.as_deref().unwrap_or(&default_args);
    if options.native {
        let boot = Boot::Linux {
            kernel: files.kernel.clone(),
            args: kernel_args(NATIVE_ARGS),
            initramfs: files.initramfs.clone(),
        };
        return Ok((boot, None));
    }
    let dom0_args = kernel_args(DOM0_ARGS);
    if options.xen {
        let boot = Boot::Multiboot {
            image: kernel::xen(tree)?,
            args: format!("{args} {XEN_NEEDS}"),
            modules: modules(files, &dom0_args),
        };
        return Ok((boot, None));
    }
    let hypervisor = build::hypervisor(tree)?;
    let boot = if options.iso || options.uefi {
        Boot::Cd {
            image: iso::make(
                tree,
                &hypervisor.elf,
                files,
                args,
                &dom0_args,
                "philoxen.iso",
            )?,
            uefi: options.uefi,
        }
    } else {
        Boot::Multiboot {
            image: hypervisor.elf,
            args: args.to_owned(),
            modules: modules(files, &dom0_args),
        }
    };
    Ok((boot, Some(hypervisor.debug)))
}

/// This terminal's kind and size as arguments of Domain 0's kernel: a serial line does not carry them.
fn terminal() -> String {
    if !std::io::stdin().is_terminal() {
        return String::new();
    }
    let kind = std::env::var("TERM").unwrap_or_default();
    let plain = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-+._".contains(&byte))
    };
    let mut args = String::new();
    if plain(&kind) {
        // The kernel hands what it does not know to the first program as its environment.
        args = format!("TERM={kind}");
    }
    let size = Command::new("stty")
        .arg("size")
        .stdin(Stdio::inherit())
        .output();
    if let Ok(size) = size
        && let Some((rows, columns)) = String::from_utf8_lossy(&size.stdout).trim().split_once(' ')
        && plain(rows)
        && plain(columns)
        && rows != "0"
    {
        args.push_str(&format!(" philoxen.rows={rows} philoxen.columns={columns}"));
    }
    args
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
