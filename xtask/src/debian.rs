// SPDX-License-Identifier: MIT OR Apache-2.0
//! Root file systems made by unpacking Debian's packages and what they depend on: nothing is installed on the host, and no
//! package's scripts run. What those would have done is up to who uses the file system.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::deps;
use crate::host::{self, Progress, Tree};
use crate::kernel;
use crate::package;

/// Directories that a merged file system has in `/usr` only.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];

/// FNV-1a: tells contents apart that nobody tries to make alike.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The packages `wanted` and what they depend on without what is `left_out`, as `name=version`, sorted.
pub fn packages(wanted: &[&str], left_out: &[&str]) -> Result<Vec<String>> {
    if host::program("apt-get").is_none() {
        bail!("this machine has no apt to fetch Debian's packages with");
    }
    if !package::known(wanted) {
        deps::update_lists()?;
    }
    let mut all = BTreeSet::new();
    let mut next: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    while !next.is_empty() {
        let text = host::capture(
            Command::new("apt-cache")
                .args(["depends", "--important"])
                .args(&next),
        )?;
        all.extend(next);
        next = needs(&text)
            .into_iter()
            .filter(|name| !all.contains(name) && !left_out.contains(&name.as_str()))
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
pub fn fetch(tree: &Tree, packages: &[String]) -> Result<Vec<PathBuf>> {
    let store = tree.directory("cache/xl-packages")?;
    let missing: Vec<&String> = packages
        .iter()
        .filter(|package| archive(&store, package).is_none())
        .collect();
    if !missing.is_empty() {
        let what = format!("Fetching {} packages", missing.len());
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
pub fn unpack(root: &Path, archives: &[PathBuf]) -> Result<()> {
    for name in MERGED {
        std::fs::create_dir_all(root.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
    }
    std::fs::create_dir_all(root.join("run/lock"))?;
    std::fs::create_dir_all(root.join("var"))?;
    for (link, to) in [("var/run", "../run"), ("var/lock", "../run/lock")] {
        std::os::unix::fs::symlink(to, root.join(link))?;
    }
    let progress = Progress::spinner("Unpacking packages");
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

/// Debian's busybox, for everything that no package has.
pub fn busybox(tree: &Tree, root: &Path) -> Result<()> {
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
    link_unless_there(root, "usr/sbin/modprobe", "../bin/busybox")
}

pub fn link_unless_there(root: &Path, link: &str, to: &str) -> Result<()> {
    let path = root.join(link);
    if path.is_symlink() || path.exists() {
        return Ok(());
    }
    std::os::unix::fs::symlink(to, &path).with_context(|| format!("cannot make {}", path.display()))
}

pub fn put(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A link of a package would be written through.
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Makes the `image`, of `bytes` and sparse, of everything below `root`.
pub fn file_system(root: &Path, image: &Path, label: &str, bytes: u64) -> Result<()> {
    let partial = image.with_extension("partial");
    std::fs::File::create(&partial)?.set_len(bytes)?;
    let program = host::program("mke2fs").context("there is no mke2fs")?;
    host::quietly(
        &format!("Making the file system {label}"),
        Command::new(program)
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-L",
                label,
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
