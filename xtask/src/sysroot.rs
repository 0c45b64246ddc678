// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compiler for the bare machine, and its `core` and `alloc`.
//!
//! The installed toolchain is used when it has the target's libraries. Otherwise Debian's compiler builds them once
//! from Debian's source package into a private sysroot. Only that one build sees `RUSTC_BOOTSTRAP`, so that no
//! unstable feature can creep into the project.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::deps;
use crate::host::{self, Tree};

/// The bare-metal target.
pub const TARGET: &str = "x86_64-unknown-none";

/// Variables by which the cargo that runs us would steer another toolchain's.
const STEERING: &[&str] = &[
    "RUSTUP_TOOLCHAIN",
    "RUSTC",
    "RUSTDOC",
    "CARGO",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "RUSTC_BOOTSTRAP",
];

/// A compiler that can build for [`TARGET`].
#[derive(Debug)]
pub enum Toolchain {
    /// The one that cargo was started from.
    Installed,
    /// Debian's, with a sysroot of ours.
    Debian {
        /// The private sysroot.
        sysroot: PathBuf,
    },
}

impl Toolchain {
    /// Packages that [`Toolchain::find`] installs: none where the installed toolchain will do.
    pub fn needs() -> &'static [deps::Need] {
        if installed_has_target() {
            &[]
        } else {
            deps::DEBIAN_RUST
        }
    }

    /// Finds a toolchain, building its libraries the first time.
    pub fn find(tree: &Tree) -> Result<Self> {
        let needs = Self::needs();
        if needs.is_empty() {
            return Ok(Self::Installed);
        }
        deps::ensure(&[needs])?;
        Ok(Self::Debian {
            sysroot: debian_sysroot(tree)?,
        })
    }

    /// A cargo command for [`TARGET`] with more compiler flags.
    pub fn cargo(&self, tree: &Tree, flags: &[String]) -> Command {
        let mut all = vec![
            "-Crelocation-model=pic".to_owned(),
            "-Cforce-frame-pointers=yes".to_owned(),
        ];
        let mut command = match self {
            Self::Installed => {
                let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
                let mut command = Command::new(cargo);
                command.env_remove("RUSTFLAGS");
                command.env_remove("CARGO_ENCODED_RUSTFLAGS");
                command
            }
            Self::Debian { sysroot } => {
                all.push(format!("--sysroot={}", sysroot.display()));
                debian_cargo()
            }
        };
        all.extend_from_slice(flags);
        // Unit separators allow paths with spaces. The variable concerns every target, but with --target given
        // cargo keeps it from build scripts and procedural macros.
        command
            .env("CARGO_ENCODED_RUSTFLAGS", all.join("\u{1f}"))
            .env("CARGO_TARGET_DIR", tree.target.join("bare"))
            .current_dir(&tree.root);
        command
    }
}

fn installed_has_target() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let Ok(directory) =
        host::capture(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]))
    else {
        return false;
    };
    libraries(Path::new(directory.trim()))
        .is_ok_and(|found| found.iter().any(|f| is_library(f, "core")))
}

fn debian_cargo() -> Command {
    let mut command = Command::new("/usr/bin/cargo");
    for name in STEERING {
        command.env_remove(name);
    }
    command.env("RUSTC", "/usr/bin/rustc");
    command
}

/// Files of a library directory.
fn libraries(directory: &Path) -> Result<Vec<PathBuf>> {
    Ok(std::fs::read_dir(directory)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "rlib")
        })
        .collect())
}

fn is_library(path: &Path, name: &str) -> bool {
    path.file_name()
        .and_then(|file| file.to_str())
        .is_some_and(|file| file.starts_with(&format!("lib{name}-")))
}

/// The private sysroot for Debian's compiler, built when this version of it has none yet.
fn debian_sysroot(tree: &Tree) -> Result<PathBuf> {
    let version = host::capture(Command::new("/usr/bin/rustc").arg("-vV"))?;
    let release = version
        .lines()
        .find_map(|line| line.strip_prefix("release: "))
        .context("rustc does not say its release")?;
    let commit = version
        .lines()
        .find_map(|line| line.strip_prefix("commit-hash: "))
        .map_or("unknown", |hash| hash.get(..9).unwrap_or(hash));
    let sysroot = tree
        .target
        .join("sysroot")
        .join(format!("{release}-{commit}"));
    if sysroot.is_dir() {
        return Ok(sysroot);
    }

    let work = tree.directory("sysroot/build")?;
    std::fs::create_dir_all(work.join("src"))?;
    std::fs::write(
        work.join("Cargo.toml"),
        "[package]\nname = \"seed\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[workspace]\n\n\
         [profile.release]\npanic = \"abort\"\ncodegen-units = 1\n",
    )?;
    std::fs::write(work.join("src/lib.rs"), "#![no_std]\n")?;
    host::quietly(
        "Building core and alloc for the bare machine (once)",
        debian_cargo()
            .args(["build", "--release", "--target", TARGET])
            .args(["-Zbuild-std=core,alloc,compiler_builtins"])
            .args(["-Zbuild-std-features=compiler-builtins-mem"])
            .env("RUSTC_BOOTSTRAP", "1")
            // Bitcode is what link-time optimisation of the hypervisor needs.
            .env(
                "RUSTFLAGS",
                "-Crelocation-model=pic -Cforce-frame-pointers=yes -Cembed-bitcode=yes",
            )
            .env("CARGO_TARGET_DIR", work.join("target"))
            .current_dir(&work),
    )?;

    // Filled beside its place and renamed, so that an interrupted build leaves no half sysroot.
    let partial = tree.target.join("sysroot/partial");
    let _ = std::fs::remove_dir_all(&partial);
    let library = partial.join("lib/rustlib").join(TARGET).join("lib");
    std::fs::create_dir_all(&library)?;
    let built = libraries(&work.join("target").join(TARGET).join("release/deps"))?;
    for name in ["core", "alloc", "compiler_builtins"] {
        let Some(from) = built.iter().find(|path| is_library(path, name)) else {
            bail!("the sysroot build made no lib{name}");
        };
        std::fs::copy(
            from,
            library.join(from.file_name().context("a library without name")?),
        )?;
    }
    std::fs::rename(&partial, &sysroot)?;
    std::fs::remove_dir_all(&work)?;
    Ok(sysroot)
}
