// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host: where things are, how programs are run, how progress is shown.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// The source tree and its target directory.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The workspace's root.
    pub root: PathBuf,
    /// Where everything that is made goes.
    pub target: PathBuf,
}

impl Tree {
    /// Finds the tree from what cargo says, and works from its root.
    pub fn find() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("xtask's directory has no parent")?
            .to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => std::path::absolute(directory)?,
            None => root.join("target"),
        };
        std::fs::create_dir_all(&target).context("cannot make the target directory")?;
        Ok(Self { root, target })
    }

    /// A directory below the target directory, made when missing.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.target.join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// `path` as the user wants to read it: relative to the root where it is below.
    pub fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root)
            .unwrap_or(path)
            .display()
            .to_string()
    }
}

/// A step that takes long: a bar or spinner on a terminal, one plain line elsewhere.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A step of unknown length.
    pub fn spinner(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        } else {
            eprintln!("{what}");
            ProgressBar::hidden()
        };
        bar.set_message(what);
        Self { bar }
    }

    /// A step of `total` bytes.
    pub fn bytes(what: impl Into<String>, total: u64) -> Self {
        let progress = Self::spinner(what);
        if !progress.bar.is_hidden() && total > 0 {
            progress.bar.set_length(total);
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {bytes}/{total_bytes}")
            {
                progress.bar.set_style(style);
            }
        }
        progress
    }

    /// Says how far the step is.
    pub fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Says what the step is doing now; only seen on a terminal.
    pub fn note(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Path of a program found in PATH (or in the places where Debian keeps an administrator's programs).
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// Runs a command on the user's terminal; failing is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed ({status})", command.get_program().display());
    }
    Ok(())
}

/// Runs a command and returns what it printed; failing is an error that carries its messages.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            command.get_program().display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that takes long behind a spinner; its output is shown only when it fails.
pub fn quietly(what: &str, command: &mut Command) -> Result<()> {
    let _progress = Progress::spinner(what);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{what}: {} failed ({})\n{}{}",
            command.get_program().display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Writes a file only when its contents change, so that later steps see an old date. Tells whether it did.
pub fn write_if_changed(path: &Path, contents: &[u8]) -> Result<bool> {
    if std::fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(false);
    }
    std::fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}
