// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian's kernel, busybox and Xen as files: packages fetched and unpacked.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::host::Tree;
use crate::package;

/// A Debian kernel, byte for byte as packaged.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Release, as `uname -r` says it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// `/lib/modules/<release>` of the package.
    pub modules: PathBuf,
}

/// Fetches the kernel of `linux-image-<flavour>`.
pub fn kernel(tree: &Tree, flavour: &str) -> Result<Kernel> {
    let wanted = format!("linux-image-{flavour}");
    if !package::known(&[&wanted]) {
        crate::deps::update_lists()?;
    }
    let real = package::behind(&wanted, "linux-image-").unwrap_or(wanted);
    let root = package::unpacked(tree, &real)?;
    let image = single(&root.join("boot"), "vmlinuz-")?;
    let release = image
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix("vmlinuz-"))
        .with_context(|| format!("{real} has a kernel without a release"))?
        .to_owned();
    // Packages of merged-/usr releases have their modules below /usr.
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|directory| root.join(directory).join(&release))
        .into_iter()
        .find(|directory| directory.is_dir())
        .with_context(|| format!("{real} has no modules"))?;
    Ok(Kernel {
        release,
        image,
        modules,
    })
}

/// Fetches Debian's static busybox.
pub fn busybox(tree: &Tree) -> Result<PathBuf> {
    Ok(package::unpacked(tree, "busybox-static")?.join("bin/busybox"))
}

/// Fetches Debian's Xen and unpacks its image, which QEMU does not do.
pub fn xen(tree: &Tree) -> Result<PathBuf> {
    let name = "xen-hypervisor-4.17-amd64";
    let compressed = package::unpacked(tree, name)?.join("boot/xen-4.17-amd64.gz");
    let image = tree.target.join("cache/xen-4.17-amd64");
    if !image.exists() {
        let bytes = std::fs::read(&compressed)
            .with_context(|| format!("cannot read {}", compressed.display()))?;
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&*bytes), &mut plain)?;
        std::fs::write(&image, plain)?;
    }
    Ok(image)
}

/// The one file of `directory` whose name starts with `prefix`.
fn single(directory: &Path, prefix: &str) -> Result<PathBuf> {
    std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(prefix))
        })
        .with_context(|| format!("{} has no {prefix}*", directory.display()))
}
