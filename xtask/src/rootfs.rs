// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Domain 0 that is a Xen host: Debian's xen-utils and what they need as an ext4 image, made by unpacking packages
//! (nothing is installed on the host), with Debian's kernels and a small ramdisk for guests, and the files of `tests/xl`.
//!
//! The image is kept in the target directory until a package or a file that goes into it changes. Tests leave it as it is;
//! users have a copy that keeps what they change. The scripts of `tests/xl` itself (`init` and the tests) travel in the
//! initramfs, which is made at every run.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::deps;
use crate::guestdisk;
use crate::host::{self, Progress, Tree};
use crate::initramfs::{self, Contents};
use crate::kernel::{self, Kernel};
use crate::package;
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
const GUEST_AVAILABLE: &[&str] = &["ext4", "crc32c_generic", "loop"];
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
/// Directories that a merged file system has in `/usr` only.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];
/// The script that the others include.
const LIBRARY: &str = "lib";
/// Changes when the way of making the image does.
const RECIPE: &str = "2";

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
    let packages = packages()?;
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
        key.push_str(&format!("{name} {:016x}\n", fingerprint(bytes)));
    }
    if image.exists() && std::fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
        return Ok(image);
    }

    deps::ensure(&[deps::E2FS])?;
    let root = tree.target.join("cache/xl-root");
    let _ = std::fs::remove_dir_all(&root);
    let archives = fetch(tree, &packages)?;
    unpack(&root, &archives)?;
    for (name, mode, bytes) in &overlay {
        put(&root.join(name), *mode, bytes)?;
    }
    for (name, bytes) in initramfs::modules(kernel, LOADED, AVAILABLE)? {
        put(&root.join(name), 0o644, &bytes)?;
    }
    complete(tree, &root)?;
    for (flavour, kernel) in &guests {
        for_guests(tree, &root, flavour, kernel)?;
    }
    file_system(&root, &image)?;
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

/// FNV-1a: tells contents apart that nobody tries to make alike.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Every package of the image as `name=version`, sorted.
fn packages() -> Result<Vec<String>> {
    if host::program("apt-get").is_none() {
        bail!("this machine has no apt to fetch Debian's xen-utils with");
    }
    if PACKAGES.iter().any(|package| !package::known(package)) {
        deps::update_lists()?;
    }
    let mut all = BTreeSet::new();
    let mut next: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
    while !next.is_empty() {
        let text = host::capture(
            Command::new("apt-cache")
                .args(["depends", "--important"])
                .args(&next),
        )?;
        all.extend(next);
        next = needs(&text)
            .into_iter()
            .filter(|name| !all.contains(name) && !LEFT_OUT.contains(&name.as_str()))
            .collect();
    }
    let text = host::capture(
        Command::new("apt-cache")
            .args(["show", "--no-all-versions"])
            .args(&all),
    )?;
    let mut found = BTreeSet::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("Package: ") {
            name = value;
        } else if let Some(version) = line.strip_prefix("Version: ") {
            found.insert(format!("{name}={version}"));
        }
    }
    Ok(found.into_iter().collect())
}

/// Names in the output of `apt-cache depends`: of alternatives the first, and of a virtual package the first provider.
fn needs(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let (mut alternative, mut provider_wanted) = (false, false);
    for line in text.lines() {
        if let Some((_, name)) = line.split_once("Depends: ") {
            let skipped = alternative;
            alternative = line.trim_start().starts_with('|');
            provider_wanted = false;
            if skipped {
                continue;
            }
            let name = name.trim();
            let inner = name.trim_matches(['<', '>']);
            if let Some((real, _)) = inner.split_once(':') {
                found.insert(real.to_owned());
            } else if inner.len() < name.len() {
                provider_wanted = true;
            } else {
                found.insert(name.to_owned());
            }
        } else if provider_wanted && line.starts_with("    ") {
            provider_wanted = false;
            found.insert(line.trim().to_owned());
        }
    }
    found
}

/// Downloads what is not there yet, and returns every package's archive.
fn fetch(tree: &Tree, packages: &[String]) -> Result<Vec<PathBuf>> {
    let store = tree.directory("cache/xl-packages")?;
    let missing: Vec<&String> = packages
        .iter()
        .filter(|package| archive(&store, package).is_none())
        .collect();
    if !missing.is_empty() {
        let what = format!("Fetching {} packages for Domain 0", missing.len());
        let download = || {
            host::quietly(
                &what,
                Command::new("apt-get")
                    .args(["-q", "download"])
                    .args(&missing)
                    .current_dir(&store),
            )
        };
        // Lists older than the archive name versions that are gone.
        if download().is_err() {
            deps::update_lists()?;
            download()?;
        }
    }
    packages
        .iter()
        .map(|package| {
            archive(&store, package)
                .with_context(|| format!("apt-get left no archive of {package}"))
        })
        .collect()
}

/// A package's archive in `store`: `<name>_<version>_<architecture>.deb`.
fn archive(store: &Path, package: &str) -> Option<PathBuf> {
    let (name, version) = package.split_once('=')?;
    let version = version.replace(':', "%3a");
    ["amd64", "all"]
        .map(|kind| store.join(format!("{name}_{version}_{kind}.deb")))
        .into_iter()
        .find(|path| path.exists())
}

/// Unpacks the archives over each other into a file system whose `/bin`, `/sbin` and `/lib` are in `/usr`.
fn unpack(root: &Path, archives: &[PathBuf]) -> Result<()> {
    for name in MERGED {
        std::fs::create_dir_all(root.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
    }
    std::fs::create_dir_all(root.join("run/lock"))?;
    std::fs::create_dir_all(root.join("var"))?;
    for (link, to) in [("var/run", "../run"), ("var/lock", "../run/lock")] {
        std::os::unix::fs::symlink(to, root.join(link))?;
    }
    let progress = Progress::spinner("Unpacking Domain 0's packages");
    for archive in archives {
        progress.note(format!("Unpacking {}", archive.display()));
        // Not dpkg-deb -x, which would put a directory in the place of a link to one.
        let mut unpacking = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(archive)
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let from = unpacking.stdout.take().context("no output to read")?;
        let status = Command::new("tar")
            .args(["-x", "--keep-directory-symlink", "--no-same-owner", "-C"])
            .arg(root)
            .stdin(from)
            .status()?;
        if !status.success() || !unpacking.wait()?.success() {
            bail!("cannot unpack {}", archive.display());
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
        link_unless_there(root, link, to)?;
    }
    let busybox = kernel::busybox(tree)?;
    put(
        &root.join("usr/bin/busybox"),
        0o755,
        &std::fs::read(&busybox)?,
    )?;
    // kmod wants its own tables; busybox reads those that are made here.
    for name in ["modprobe", "insmod", "rmmod", "lsmod"] {
        let _ = std::fs::remove_file(root.join("usr/sbin").join(name));
    }
    for name in host::capture(Command::new(&busybox).arg("--list"))?.lines() {
        if !root.join("usr/sbin").join(name).is_symlink() {
            link_unless_there(root, &format!("usr/bin/{name}"), "busybox")?;
        }
    }
    link_unless_there(root, "usr/sbin/modprobe", "../bin/busybox")?;
    for name in GUEST_DISKS {
        std::fs::File::create(root.join(format!("var/lib/xen/images/{name}.img")))?
            .set_len(GUEST_DISK_BYTES)?;
    }
    Ok(())
}

fn link_unless_there(root: &Path, link: &str, to: &str) -> Result<()> {
    let path = root.join(link);
    if path.is_symlink() || path.exists() {
        return Ok(());
    }
    std::os::unix::fs::symlink(to, &path).with_context(|| format!("cannot make {}", path.display()))
}

fn put(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A link of a package would be written through.
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Makes the image of everything below `root`.
fn file_system(root: &Path, image: &Path) -> Result<()> {
    let partial = image.with_extension("partial");
    std::fs::File::create(&partial)?.set_len(IMAGE_BYTES)?;
    let program = host::program("mke2fs").context("there is no mke2fs")?;
    host::quietly(
        "Making Domain 0's root file system",
        Command::new(program)
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-L",
                "dom0",
                "-E",
                "root_owner=0:0",
                "-d",
            ])
            .arg(root)
            .arg(&partial),
    )?;
    std::fs::rename(&partial, image)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_alternatives_and_providers_are_taken() {
        let text = "a\n  Depends: b\n |Depends: c\n  Depends: d\n  PreDepends: e\n  Depends: <f:any>\n    f\n  Depends: <g>\n    h\n    i\n";
        let needs: Vec<String> = needs(text).into_iter().collect();
        assert_eq!(needs, ["b", "c", "e", "f", "h"]);
    }

    #[test]
    fn archives_are_named_as_apt_does() {
        let store = std::env::temp_dir().join(format!("xtask-rootfs-{}", std::process::id()));
        std::fs::create_dir_all(&store).unwrap();
        let file = store.join("mount_1%3a2.38-1_amd64.deb");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(archive(&store, "mount=1:2.38-1"), Some(file));
        assert_eq!(archive(&store, "mount=1:2.39"), None);
        std::fs::remove_dir_all(&store).unwrap();
    }
}
