// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds the hypervisor, the test kernels and the measuring program.
//!
//! The hypervisor carries its own symbol table for backtraces, which is known only after a link. So it is linked
//! with the table of the last build, and again until the table it carries is its own; the table lies behind the text,
//! so this takes two links after a change and one without.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::deps;
use crate::host::{self, Tree};
use crate::image::Image;
use crate::sysroot::{TARGET, Toolchain};

/// The image has to stay below this, zero-initialised data included.
const SIZE_LIMIT: u64 = 1 << 20;
/// Links after which the symbol table must have settled.
const PASSES: usize = 4;

/// What `build` leaves behind.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    /// The bootable ELF file.
    pub elf: PathBuf,
    /// The same with line tables, for the debugger.
    pub debug: PathBuf,
}

/// Builds target/philoxen and target/philoxen.gz.
pub fn hypervisor(tree: &Tree) -> Result<Hypervisor> {
    deps::ensure(&[deps::LINKER])?;
    let toolchain = Toolchain::find(tree)?;
    let script = tree.root.join("crates/hw/link.ld");
    let symbols = tree.target.join("philoxen.symbols");
    if !symbols.exists() {
        std::fs::write(&symbols, 0u32.to_le_bytes())?;
    }
    let mut flags = linker_flags();
    flags.extend([
        format!("-Clink-arg=-T{}", script.display()),
        "-Clink-arg=-zmax-page-size=4096".to_owned(),
        "-Clink-arg=--gc-sections".to_owned(),
        "-Clink-arg=--build-id=none".to_owned(),
        "-Clink-arg=--no-warn-rwx-segments".to_owned(),
    ]);

    let linked = tree
        .target
        .join("bare")
        .join(TARGET)
        .join("release/philoxen");
    let mut settled = None;
    for _ in 0..PASSES {
        // Cargo does not see a changed linker script.
        if newer(&script, &linked) {
            let _ = std::fs::remove_file(&linked);
        }
        host::run(
            toolchain
                .cargo(tree, &flags)
                .args([
                    "build",
                    "--release",
                    "--target",
                    TARGET,
                    "--package",
                    "philoxen",
                ])
                .env("PHILOXEN_SYMBOLS", &symbols),
        )?;
        let image = Image::read(&linked)?;
        if !host::write_if_changed(&symbols, &image.symbol_blob(tree_base(&image)?)?)? {
            settled = Some(image);
            break;
        }
    }
    let Some(image) = settled else {
        bail!("the symbol table changes with every link: is it placed behind the text?");
    };
    let loaded = image.check(SIZE_LIMIT)?;
    publish(tree, &linked, &image, loaded)
}

/// Address that the symbol table counts from: the image's virtual base.
fn tree_base(image: &Image) -> Result<u64> {
    image.base().context("the image has nothing to load")
}

fn publish(tree: &Tree, linked: &Path, image: &Image, loaded: u64) -> Result<Hypervisor> {
    let built = Hypervisor {
        elf: tree.target.join("philoxen"),
        debug: tree.target.join("philoxen.debug"),
    };
    std::fs::copy(linked, &built.debug)?;
    host::capture(
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&built.elf)
            .arg(linked),
    )?;
    let bytes = std::fs::read(&built.elf)?;
    let compressed = tree.target.join("philoxen.gz");
    std::fs::write(&compressed, gzip(&bytes)?)?;
    println!(
        "{}: {} KiB loaded ({}), {} symbols; {}: {} KiB",
        tree.show(&built.elf),
        loaded.div_ceil(1024),
        image.sections_line(),
        image.symbol_count(),
        tree.show(&compressed),
        std::fs::metadata(&compressed)?.len().div_ceil(1024),
    );
    Ok(built)
}

/// Builds the test kernels; `legacy` builds the one that boots as older kernels do. Returns the ELF file.
pub fn guests(tree: &Tree, legacy: bool) -> Result<PathBuf> {
    deps::ensure(&[deps::LINKER])?;
    let toolchain = Toolchain::find(tree)?;
    let mut command = toolchain.cargo(tree, &linker_flags());
    command.args(["build", "--release", "--target", TARGET]);
    command.args(["--package", "philoxen-test-guests"]);
    if legacy {
        command.args(["--features", "legacy-layout"]);
    }
    host::run(&mut command)?;
    let name = if legacy { "guests-legacy" } else { "guests" };
    let to = tree.target.join(name);
    std::fs::copy(
        tree.target
            .join("bare")
            .join(TARGET)
            .join("release/philoxen-test-guests"),
        &to,
    )
    .context("the test kernels were not built")?;
    Ok(to)
}

/// Builds a measuring program (a `[[bin]]` of tests/bench) as a static Linux program.
pub fn bench_program(tree: &Tree, name: &str) -> Result<PathBuf> {
    if !tree.root.join("tests/bench/Cargo.toml").exists() {
        bail!("tests/bench is missing: there is no program to measure with");
    }
    deps::ensure(&[deps::STATIC_LINK])?;
    let target = "x86_64-unknown-linux-gnu";
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    host::run(
        Command::new(cargo)
            .args([
                "build",
                "--release",
                "--target",
                target,
                "--package",
                "pxbench",
                "--bin",
                name,
            ])
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .env("CARGO_TARGET_DIR", tree.target.join("bench"))
            .current_dir(&tree.root),
    )?;
    Ok(tree
        .target
        .join("bench")
        .join(target)
        .join("release")
        .join(name))
}

/// Links by GNU ld into a plain static executable: Debian's compiler has no linker of its own.
fn linker_flags() -> Vec<String> {
    [
        "-Clinker=ld",
        "-Clinker-flavor=ld",
        "-Clink-arg=--no-dynamic-linker",
        "-Clink-arg=-static",
        "-Clink-arg=-no-pie",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn newer(file: &Path, than: &Path) -> bool {
    let date = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified());
    matches!((date(file), date(than)), (Ok(file), Ok(than)) if file > than)
}

/// `bytes` as a gzip member without a date, so that equal builds give equal files.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, bytes)?;
    Ok(encoder.finish()?)
}
