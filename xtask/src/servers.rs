// SPDX-License-Identifier: MIT OR Apache-2.0
//! The root file system of guests that serve: Debian's PostgreSQL and nginx, what loads them, and the programs of
//! `tests/xl/servers`, over the files that the guests' ramdisk has. The ramdisk mounts it (`root=/dev/xvda`).
//!
//! The image is kept in the target directory until a package or a file that goes into it changes.

use std::path::PathBuf;

use anyhow::Result;

use crate::debian;
use crate::deps;
use crate::host::{self, Tree};
use crate::initramfs;

/// Packages of the guests, besides busybox; what they depend on comes along.
const PACKAGES: &[&str] = &["nginx", "postgresql-15", "postgresql-client-15", "wrk"];
/// Dependencies that only matter to a system which packages are installed on and removed from, and what is not used: the
/// compiler of queries, languages, and certificates.
const LEFT_OUT: &[&str] = &[
    "adduser",
    "cdebconf",
    "debconf",
    "dpkg",
    "gcc-12-base",
    "iproute2",
    "libllvm14",
    "libpam-modules",
    "libpam-runtime",
    "locales",
    "locales-all",
    "lsb-base",
    "perl",
    "perl-base",
    "postgresql-client-common",
    "postgresql-common",
    "readline-common",
    "sensible-utils",
    "ssl-cert",
    "tar",
    "ucf",
];
/// Size of the file system; its image is sparse.
const IMAGE_BYTES: u64 = 1 << 30;
/// Changes when the way of making the image does.
const RECIPE: &str = "1";

/// The image, made anew when something that goes into it has changed. It is not to be written to.
pub fn image(tree: &Tree) -> Result<PathBuf> {
    let image = tree.target.join("servers.img");
    let key_file = image.with_extension("key");
    if image.exists() && host::program("apt-get").is_none() {
        return Ok(image);
    }
    let packages = debian::packages(PACKAGES, LEFT_OUT)?;
    let mut files = initramfs::files_below(&tree.root.join("tests/xl/guest"))?;
    files.extend(initramfs::files_below(&tree.root.join("tests/xl/servers"))?);
    let mut key = format!("{RECIPE}\n{}\n", packages.join("\n"));
    for (name, _, bytes) in &files {
        key.push_str(&format!("{name} {:016x}\n", debian::fingerprint(bytes)));
    }
    if image.exists() && std::fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
        return Ok(image);
    }

    deps::ensure(&[deps::E2FS])?;
    let root = tree.target.join("cache/servers-root");
    let _ = std::fs::remove_dir_all(&root);
    let archives = debian::fetch(tree, &packages)?;
    debian::unpack(&root, &archives)?;
    for name in ["dev", "proc", "root", "sys", "tmp"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    for (name, mode, bytes) in &files {
        debian::put(&root.join(name), *mode, bytes)?;
    }
    debian::busybox(tree, &root)?;
    debian::link_unless_there(&root, "usr/sbin/init", "../bin/busybox")?;
    debian::file_system(&root, &image, "servers", IMAGE_BYTES)?;
    std::fs::write(&key_file, key)?;
    std::fs::remove_dir_all(&root)?;
    Ok(image)
}
