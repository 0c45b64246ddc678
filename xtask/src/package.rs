// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages that are fetched and unpacked into the target directory, never installed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::deps;
use crate::host::{self, Progress, Tree};

/// The version that apt would install, and its size in bytes.
struct Candidate {
    version: String,
    size: u64,
}

/// Fetches and unpacks `package`; returns the directory that stands for `/`.
pub fn unpacked(tree: &Tree, package: &str) -> Result<PathBuf> {
    let cache = tree.directory("cache")?;
    if host::program("apt-get").is_none() {
        return newest_cached(&cache, package).with_context(|| {
            format!("this machine has no apt to fetch Debian's package {package} with: give --kernel and --initrd")
        });
    }
    let candidate = match candidate(package) {
        Ok(candidate) => candidate,
        Err(error) => {
            if let Some(directory) = newest_cached(&cache, package) {
                return Ok(directory);
            }
            deps::update_lists()?;
            candidate_after_update(package, &error)?
        }
    };
    let directory = cache.join(format!(
        "{package}_{}",
        candidate.version.replace(':', "%3a")
    ));
    if directory.is_dir() {
        return Ok(directory);
    }

    let download = cache.join(format!("{package}.download"));
    let _ = std::fs::remove_dir_all(&download);
    std::fs::create_dir_all(&download)?;
    let archive = match fetch(package, &candidate, &download) {
        Ok(archive) => archive,
        // Lists older than the archive name versions that are gone.
        Err(_) => {
            deps::update_lists()?;
            fetch(package, &self::candidate(package)?, &download)?
        }
    };
    let partial = download.join("unpacked");
    host::quietly(
        &format!("Unpacking {package} {}", candidate.version),
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(&partial),
    )?;
    std::fs::rename(&partial, &directory)?;
    std::fs::remove_dir_all(&download)?;
    Ok(directory)
}

/// The real package behind a metapackage: its first dependency whose name starts with `prefix`.
pub fn behind(metapackage: &str, prefix: &str) -> Option<String> {
    let text =
        host::capture(Command::new("apt-cache").args(["depends", "--important", metapackage]))
            .ok()?;
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

/// Whether apt's lists know the packages; asked at once, since apt reads all its lists for every question where it may not
/// keep what it has read.
pub fn known(packages: &[&str]) -> bool {
    host::capture(
        Command::new("apt-cache")
            .args(["show", "--no-all-versions"])
            .args(packages),
    )
    .is_ok_and(|text| {
        let names: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("Package: "))
            .collect();
        packages.iter().all(|package| names.contains(package))
    })
}

fn candidate(package: &str) -> Result<Candidate> {
    let text =
        host::capture(Command::new("apt-cache").args(["show", "--no-all-versions", package]))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let Some(version) = field("Version:") else {
        bail!("apt knows no package {package}");
    };
    Ok(Candidate {
        version: version.to_owned(),
        size: field("Size:")
            .and_then(|size| size.parse().ok())
            .unwrap_or(0),
    })
}

fn candidate_after_update(package: &str, before: &anyhow::Error) -> Result<Candidate> {
    candidate(package).with_context(|| {
        format!("apt has no {package}, nor had it before its lists were updated ({before})")
    })
}

/// Downloads into `directory` behind a progress bar.
fn fetch(package: &str, candidate: &Candidate, directory: &Path) -> Result<PathBuf> {
    let progress = Progress::bytes(
        format!("Fetching {package} {}", candidate.version),
        candidate.size,
    );
    let mut child = Command::new("apt-get")
        .args(["-q", "download"])
        .arg(format!("{package}={}", candidate.version))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    while child.try_wait()?.is_none() {
        progress.at(files(directory).iter().map(|(_, size)| size).sum());
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = child.wait_with_output()?;
    drop(progress);
    if !output.status.success() {
        bail!(
            "cannot fetch {package}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    files(directory)
        .into_iter()
        .map(|(path, _)| path)
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no package {package}"))
}

fn files(directory: &Path) -> Vec<(PathBuf, u64)> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let data = entry.metadata().ok()?;
            data.is_file().then(|| (entry.path(), data.len()))
        })
        .collect()
}

/// The unpacked version of `package` that was made last.
fn newest_cached(cache: &Path, package: &str) -> Option<PathBuf> {
    std::fs::read_dir(cache)
        .ok()?
        .filter_map(|entry| entry.ok())
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|name| {
                name.strip_prefix(package)
                    .is_some_and(|rest| rest.starts_with('_'))
            })
        })
        .max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok())
        .map(|entry| entry.path())
}
