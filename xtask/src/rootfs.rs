// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Domain 0 that is a Xen host: Debian's xen-utils and what they need as an ext4 image, made by unpacking packages
//! (nothing is installed on the host), with Debian's kernels and a small ramdisk for guests, and the files of `tests/xl`.
//!
//! The image is kept in the target directory until a package or a file that goes into it changes. Tests leave it as it is;
//! users have a copy that keeps what they change. The scripts of `tests/xl` itself (`init` and the tests) travel in the
//! initramfs, which is made at every run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::debian;
use crate::deps;
use crate::guestdisk;
use crate::host::{self, Progress, Tree};
use crate::initramfs::{self, Contents};
use crate::kernel::{self, Kernel};
use crate::run::Files;

/// Packages of the host, besides busybox; what they depend on comes along.
const PACKAGES: &[&str] = &[
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "bash",
    "dash",
    "coreutils",
    "e2fsprogs",
    "findutils",
    "gawk",
    "grep",
    "grub-xen-host",
    "hostname",
    "iproute2",
    "iputils-ping",
    "kmod",
    "mount",
    // Descriptions of terminals, for pygrub's menu and xentop.
    "ncurses-base",
    "nftables",
    "procps",
    "sed",
    "util-linux",
];
/// Dependencies that only matter to a system which packages are installed on and removed from, and udev, in whose place
/// `init` loads the modules.
const LEFT_OUT: &[&str] = &[
    "adduser",
    "debconf",
    "dpkg",
    "gcc-12-base",
    "grub-xen-bin",
    "init-system-helpers",
    "install-info",
    "login",
    "logsave",
    "lsb-base",
    "media-types",
    "passwd",
    "perl",
    "perl-base",
    "readline-common",
    "sensible-utils",
    "sysvinit-utils",
    "tar",
    "ucf",
    "udev",
    "usrmerge",
];
/// Modules that Domain 0 loads at start.
const LOADED: &[&str] = &[
    "xenfs",
    "xen-evtchn",
    "xen-privcmd",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-blkback",
    "xen-netback",
    "bridge",
    "loop",
    "virtio_net",
    "e1000",
];
/// Modules that are there for `modprobe` and `mount`.
const AVAILABLE: &[&str] = &[
    "nf_tables",
    "nft_meta_bridge",
    "nft_reject_bridge",
    "nft_limit",
    "nft_log",
    "nft_ct",
    "nfnetlink",
    "vfat",
    "isofs",
    "sr_mod",
    "nls_ascii",
    "nls_cp437",
    "xen-pciback",
];
/// Modules that the initramfs needs to find the root file system.
const BOOT: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"];
/// A guest's modules: loaded at start, and available.
const GUEST_LOADED: &[&str] = &["xen-blkfront", "xen-netfront"];
const GUEST_AVAILABLE: &[&str] = &["ext4", "crc32c_generic", "loop", "xen-evtchn"];
/// Kernels that guests are started with, named `/boot/vmlinuz-<flavour>` and `/boot/guest-<flavour>.img`.
const FLAVOURS: &[&str] = &["amd64", "cloud-amd64"];
/// Empty disks of the ready guests.
const GUEST_DISKS: &[&str] = &["guest", "cloud"];
const GUEST_DISK_BYTES: u64 = 256 << 20;
/// Disks that guests boot from: name, flavour of the kernel on it, its arguments. Debian's pvgrub2 unpacks no LZ4, which
/// the cloud kernel is compressed with.
const BOOT_DISKS: &[(&str, &str, &str)] = &[
    ("pygrub", "cloud-amd64", "ip=192.168.90.12/24"),
    ("pvgrub", "amd64", "ip=192.168.90.13/24"),
];
/// Size of the file system; its image is sparse.
const IMAGE_BYTES: u64 = 3 << 30;
/// The script that the others include.
const LIBRARY: &str = "lib";
/// Changes when the way of making the image does.
const RECIPE: &str = "3";

/// A Domain 0 ready to boot.
#[derive(Clone, Debug)]
pub struct Root {
    pub files: Files,
    /// The root file system's image, not to be written to.
    pub disk: PathBuf,
    /// Release of Domain 0's kernel.
    release: String,
}

impl Root {
    /// The user's own copy of the image, which keeps what is changed in it. It is made anew when the image has been, or
    /// when a `fresh` one is asked for; in the first case the old one is kept.
    pub fn own(&self, tree: &Tree, fresh: bool) -> Result<PathBuf> {
        let own = tree.target.join(format!("dom0-{}.img", self.release));
        let old = own.with_extension("old.img");
        let key_file = own.with_extension("key");
        let key = std::fs::read(self.disk.with_extension("key"))?;
        if own.exists() && !fresh {
            if std::fs::read(&key_file).is_ok_and(|old| old == key) {
                return Ok(own);
            }
            std::fs::rename(&own, &old)?;
            eprintln!(
                "Domain 0's packages or our files for it have changed: it starts anew; the old one is {}",
                tree.show(&old)
            );
        }
        host::quietly(
            "Copying Domain 0's root file system",
            Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .arg(&self.disk)
                .arg(&own),
        )?;
        std::fs::write(&key_file, key)?;
        Ok(own)
    }
}

/// Names of the scripts of `tests/xl` that are tests, sorted.
pub fn scripts(tree: &Tree) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(tree.root.join("tests/xl"))? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".sh"))
            && name != LIBRARY
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Makes the Domain 0 with xl, as far as it is not there already.
pub fn make(tree: &Tree, flavour: &str) -> Result<Root> {
    let kernel = kernel::kernel(tree, flavour)?;
    let disk = image(tree, &kernel)?;
    let scripts = tree.root.join("tests/xl");
    let mut extra = Vec::new();
    for entry in std::fs::read_dir(&scripts)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|name| *name == "init" || name.ends_with(".sh")) {
            extra.push((format!("xl/{name}"), path.clone()));
        }
    }
    extra.sort();
    let bytes = initramfs::gather(
        tree,
        &kernel,
        &Contents {
            scripts: "tests/xl/initramfs",
            loaded: BOOT,
            available: &[],
            extra: &extra,
        },
    )?
    .compressed()?;
    let path = tree
        .target
        .join(format!("initramfs-xl-{}.img", kernel.release));
    std::fs::write(&path, bytes)?;
    Ok(Root {
        files: Files {
            virtio_only: !kernel
                .modules
                .join("kernel/drivers/net/ethernet/intel/e1000")
                .is_dir(),
            kernel: kernel.image,
            initramfs: path,
        },
        disk,
        release: kernel.release,
    })
}

/// The image for a Domain 0 kernel, made anew when something that goes into it has changed.
fn image(tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    let image = tree.target.join(format!("dom0-xl-{}.img", kernel.release));
    let key_file = image.with_extension("key");
    if image.exists() && host::program("apt-get").is_none() {
        return Ok(image);
    }
    let packages = debian::packages(PACKAGES, LEFT_OUT)?;
    let overlay = initramfs::files_below(&tree.root.join("tests/xl/root"))?;
    let guest = initramfs::files_below(&tree.root.join("tests/xl/guest"))?;
    let guests = FLAVOURS
        .iter()
        .map(|flavour| kernel::kernel(tree, flavour).map(|kernel| (*flavour, kernel)))
        .collect::<Result<Vec<_>>>()?;
    let mut key = format!("{RECIPE} {} {BOOT_DISKS:?}\n", kernel.release);
    for (flavour, kernel) in &guests {
        key.push_str(&format!("{flavour} {}\n", kernel.release));
    }
    for package in &packages {
        key.push_str(&format!("{package}\n"));
    }
    for (name, _, bytes) in overlay.iter().chain(&guest) {
        key.push_str(&format!("{name} {:016x}\n", debian::fingerprint(bytes)));
    }
    if image.exists() && std::fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
        return Ok(image);
    }

    deps::ensure(&[deps::E2FS])?;
    let root = tree.target.join("cache/xl-root");
    let _ = std::fs::remove_dir_all(&root);
    let archives = debian::fetch(tree, &packages)?;
    debian::unpack(&root, &archives)?;
    for (name, mode, bytes) in &overlay {
        debian::put(&root.join(name), *mode, bytes)?;
    }
    for (name, bytes) in initramfs::modules(kernel, LOADED, AVAILABLE)? {
        debian::put(&root.join(name), 0o644, &bytes)?;
    }
    complete(tree, &root)?;
    for (flavour, kernel) in &guests {
        for_guests(tree, &root, flavour, kernel)?;
    }
    debian::file_system(&root, &image, "dom0", IMAGE_BYTES)?;
    std::fs::write(&key_file, key)?;
    std::fs::remove_dir_all(&root)?;
    Ok(image)
}

/// A flavour's kernel and ramdisk for guests, and the disks that are booted with them.
fn for_guests(tree: &Tree, root: &Path, flavour: &str, kernel: &Kernel) -> Result<()> {
    let _progress = Progress::spinner(format!("Making ramdisk and disks of {flavour} guests"));
    let boot = root.join("boot");
    std::fs::copy(&kernel.image, boot.join(format!("vmlinuz-{flavour}")))?;
    let files = initramfs::gather(
        tree,
        kernel,
        &Contents {
            scripts: "tests/xl/guest",
            loaded: GUEST_LOADED,
            available: GUEST_AVAILABLE,
            extra: &[],
        },
    )?;
    let ramdisk = files.compressed()?;
    std::fs::write(boot.join(format!("guest-{flavour}.img")), &ramdisk)?;
    for (name, of, args) in BOOT_DISKS {
        if *of == flavour {
            guestdisk::make(
                &root.join(format!("var/lib/xen/images/{name}.img")),
                &tree.target.join("cache/guest-root"),
                &guestdisk::Contents {
                    kernel,
                    tree: &files,
                    ramdisk: &ramdisk,
                    args,
                },
            )?;
        }
    }
    Ok(())
}

/// What packages leave to the scripts that run when they are installed, and what only this image has.
fn complete(tree: &Tree, root: &Path) -> Result<()> {
    for name in [
        "boot",
        "dev",
        "mnt",
        "proc",
        "root",
        "sys",
        "tmp",
        "var/lib/xen/images",
        "var/log/xen",
        "var/lib/xenstored",
    ] {
        std::fs::create_dir_all(root.join(name))?;
    }
    for (link, to) in [("usr/bin/awk", "gawk"), ("etc/mtab", "/proc/self/mounts")] {
        debian::link_unless_there(root, link, to)?;
    }
    debian::busybox(tree, root)?;
    for name in GUEST_DISKS {
        std::fs::File::create(root.join(format!("var/lib/xen/images/{name}.img")))?
            .set_len(GUEST_DISK_BYTES)?;
    }
    Ok(())
}
