// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask iso`: a CD image that GRUB boots by multiboot 2, under BIOS and under UEFI.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::args::{self, DOM0_ARGS, HYPERVISOR_ARGS};
use crate::build;
use crate::deps;
use crate::host::{self, Tree};
use crate::run::{self, Files};

/// Makes target/philoxen.iso.
pub fn command(tree: &Tree, options: &args::Iso) -> Result<()> {
    let files = run::files(tree, &options.dom0)?;
    let hypervisor = build::hypervisor(tree)?;
    let image = make(
        tree,
        &hypervisor.elf,
        &files,
        options.dom0.xen_args.as_deref().unwrap_or(HYPERVISOR_ARGS),
        options.dom0.kernel_args.as_deref().unwrap_or(DOM0_ARGS),
        "philoxen.iso",
    )?;
    println!("{}", tree.show(&image));
    Ok(())
}

/// Makes the CD image `name`.
pub fn make(
    tree: &Tree,
    hypervisor: &Path,
    files: &Files,
    args: &str,
    dom0_args: &str,
    name: &str,
) -> Result<PathBuf> {
    deps::ensure(&[deps::ISO])?;
    for text in [args, dom0_args] {
        ensure!(
            !text.contains(['\n', ';', '{', '}', '"', '\'', '$', '\\']),
            "GRUB's configuration cannot carry these arguments: {text}"
        );
    }
    let root = tree.target.join(format!("{name}.root"));
    let _ = std::fs::remove_dir_all(&root);
    let boot = root.join("boot");
    std::fs::create_dir_all(boot.join("grub"))?;
    std::fs::copy(hypervisor, boot.join("philoxen"))?;
    std::fs::copy(&files.kernel, boot.join("vmlinuz"))?;
    std::fs::copy(&files.initramfs, boot.join("initramfs"))?;
    std::fs::write(boot.join("grub/grub.cfg"), menu(args, dom0_args))?;
    let image = tree.target.join(name);
    host::quietly(
        &format!("Making {name}"),
        Command::new("grub-mkrescue")
            .arg("-o")
            .arg(&image)
            .arg(&root),
    )?;
    std::fs::remove_dir_all(&root)?;
    Ok(image)
}

fn menu(args: &str, dom0_args: &str) -> String {
    format!(
        "serial --unit=0 --speed=115200\n\
         terminal_input serial console\n\
         terminal_output serial console\n\
         set timeout=0\n\
         \n\
         menuentry \"Debian on Philoxen\" {{\n\
         \x20   multiboot2 /boot/philoxen {args}\n\
         \x20   module2 /boot/vmlinuz {dom0_args}\n\
         \x20   module2 /boot/initramfs\n\
         }}\n"
    )
}
