// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks of the source: formatting, clippy, licence headers, lint tables, the ledger of unsafe blocks, file lengths.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::args;
use crate::host::{self, Tree};
use crate::stack;

/// First line of every source file.
const HEADER: &str = "SPDX-License-Identifier: MIT OR Apache-2.0";
/// Packages whose code may be unsafe.
const UNSAFE: &[&str] = &["crates/hw", "tests/guests"];
/// Packages with their own lint table that deny unsafe code in all files but one.
const ONE_UNSAFE_FILE: &[&str] = &["crates/hypervisor", "tests/bench"];
/// Packages that are not built by default: their libraries and binaries still pass clippy for the host.
const BARE: &[&str] = &["philoxen-hw", "philoxen", "philoxen-test-guests", "pxbench"];
/// The crate whose unsafe blocks are counted.
const COUNTED: &str = "crates/hw/src";
/// Where the counts are kept.
const LEDGER: &str = "docs/unsafe-ledger.txt";
/// A file longer than this is two files.
const LENGTH_LIMIT: usize = 1000;
/// A file longer than this is mentioned.
const LENGTH_NOTICE: usize = 600;

/// A check: what it finds wrong is its error.
pub type Check = fn(&Tree) -> Result<()>;

/// Every check, by name.
pub const CHECKS: &[(&str, Check)] = &[
    ("headers", headers),
    ("lint-tables", lint_tables),
    ("unsafe-ledger", ledger),
    ("file-lengths", lengths),
    ("fmt", format),
    ("clippy", clippy),
    ("clippy-bare", clippy_bare),
    ("stack", stack::check),
];

/// `cargo xtask lint`.
pub fn command(tree: &Tree, options: &args::Lint) -> Result<bool> {
    if options.bless {
        let text = count_unsafe(tree)?;
        host::write_if_changed(&tree.root.join(LEDGER), text.as_bytes())?;
        print!("{text}");
        return Ok(true);
    }
    let mut good = true;
    for (name, check) in CHECKS {
        match check(tree) {
            Ok(()) => println!("PASS lint/{name}"),
            Err(error) => {
                println!("FAIL lint/{name}: {error:#}");
                good = false;
            }
        }
    }
    Ok(good)
}

/// Files below the places that hold source.
fn sources(tree: &Tree, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = ["crates", "tests", "xtask", "fuzz"]
        .map(|directory| tree.root.join(directory))
        .into_iter()
        .filter(|directory| directory.is_dir())
        .collect();
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    pending.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn complain(complaints: &[String]) -> Result<()> {
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{}", complaints.join("\n"))
}

fn headers(tree: &Tree) -> Result<()> {
    let mut complaints = Vec::new();
    let mut files = sources(tree, &[".rs", ".ld", ".S", ".s"])?;
    files.extend(scripts(tree)?);
    for path in files {
        let text = std::fs::read_to_string(&path)?;
        if !text.lines().take(2).any(|line| line.contains(HEADER)) {
            complaints.push(format!(
                "{}: the first line is not the licence header",
                tree.show(&path)
            ));
        }
    }
    complain(&complaints)
}

/// Shell scripts: files that start with `#!`.
fn scripts(tree: &Tree) -> Result<Vec<PathBuf>> {
    Ok(sources(tree, &[""])?
        .into_iter()
        .filter(|path| std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"#!")))
        .chain([tree.root.join(".ci/run")])
        .collect())
}

fn lint_tables(tree: &Tree) -> Result<()> {
    let mut complaints = Vec::new();
    for path in sources(tree, &["Cargo.toml"])? {
        let text = std::fs::read_to_string(&path)?;
        let inherits = text
            .lines()
            .skip_while(|line| line.trim() != "[lints]")
            .nth(1)
            .is_some_and(|line| line.replace(' ', "") == "workspace=true");
        let directory = path.parent().context("a manifest without directory")?;
        let name = tree.show(directory);
        if UNSAFE.contains(&name.as_str()) {
            continue;
        }
        if ONE_UNSAFE_FILE.contains(&name.as_str()) {
            let files = allowing_unsafe(tree, directory)?;
            if !text.contains("unsafe_code = \"deny\"") || files.len() > 1 {
                complaints.push(format!(
                    "{name}: unsafe code must be denied in all files but one: {}",
                    files.join(", ")
                ));
            }
        } else if !inherits {
            complaints.push(format!("{name}: does not take the workspace's lint table"));
        }
    }
    complain(&complaints)
}

/// Files below `directory` that lift the denial of unsafe code.
fn allowing_unsafe(tree: &Tree, directory: &Path) -> Result<Vec<String>> {
    Ok(sources(tree, &[".rs"])?
        .iter()
        .filter(|path| path.starts_with(directory))
        .filter(|path| {
            std::fs::read_to_string(path).is_ok_and(|text| {
                text.contains("(unsafe_code") || text.contains("    unsafe_code,")
            })
        })
        .map(|path| tree.show(path))
        .collect())
}

fn ledger(tree: &Tree) -> Result<()> {
    let now = count_unsafe(tree)?;
    let then = std::fs::read_to_string(tree.root.join(LEDGER)).unwrap_or_default();
    if now == then {
        return Ok(());
    }
    let mut complaint =
        format!("{LEDGER} does not match (`cargo xtask lint --bless` after review):");
    for line in now
        .lines()
        .filter(|line| !then.lines().any(|old| old == *line))
    {
        write!(complaint, "\n  now  {line}")?;
    }
    for line in then
        .lines()
        .filter(|line| !now.lines().any(|new| new == *line))
    {
        write!(complaint, "\n  then {line}")?;
    }
    bail!(complaint)
}

/// One line per file of the counted crate: unsafe blocks, and its path.
fn count_unsafe(tree: &Tree) -> Result<String> {
    let root = tree.root.join(COUNTED);
    let mut text = String::new();
    let mut total = 0;
    for path in sources(tree, &[".rs"])? {
        let Ok(name) = path.strip_prefix(&root) else {
            continue;
        };
        let count = unsafe_blocks(&std::fs::read_to_string(&path)?);
        total += count;
        writeln!(text, "{count:4} {}", name.display())?;
    }
    writeln!(text, "{total:4} unsafe blocks in {COUNTED}")?;
    Ok(text)
}

/// Number of unsafe blocks of a file, those in comments not counted.
fn unsafe_blocks(text: &str) -> usize {
    text.lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .map(|code| code.matches("unsafe {").count())
        .sum()
}

fn lengths(tree: &Tree) -> Result<()> {
    let mut complaints = Vec::new();
    for path in sources(tree, &[".rs"])? {
        let count = std::fs::read_to_string(&path)?.lines().count();
        if count > LENGTH_LIMIT {
            complaints.push(format!(
                "{}: {count} lines, over {LENGTH_LIMIT}",
                tree.show(&path)
            ));
        } else if count > LENGTH_NOTICE {
            println!("note: {} has {count} lines", tree.show(&path));
        }
    }
    complain(&complaints)
}

fn cargo(tree: &Tree) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(&tree.root)
        .env("CARGO_TARGET_DIR", &tree.target);
    command
}

fn format(tree: &Tree) -> Result<()> {
    host::quietly(
        "Checking the format",
        cargo(tree).args(["fmt", "--all", "--check"]),
    )
}

fn clippy(tree: &Tree) -> Result<()> {
    host::quietly(
        "Running clippy",
        cargo(tree).args([
            "clippy",
            "--quiet",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]),
    )
}

fn clippy_bare(tree: &Tree) -> Result<()> {
    let mut command = cargo(tree);
    command.args(["clippy", "--quiet"]);
    for package in BARE {
        command.args(["--package", package]);
    }
    host::quietly(
        "Running clippy on the bare-metal crates",
        command.args(["--", "--deny", "warnings"]),
    )
}

/// Runs the host's tests and returns how many passed and failed, and the failed ones' names; the output is kept in `log`.
pub fn host_tests(tree: &Tree, log: &Path) -> Result<(usize, usize, String)> {
    let _progress = host::Progress::spinner("Running the host's tests");
    let output = cargo(tree)
        .args(["test", "--no-fail-fast"])
        .output()
        .context("cannot start cargo")?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    std::fs::write(log, &text)?;
    let (mut passed, mut failed) = (0, 0);
    for line in text
        .lines()
        .filter(|line| line.starts_with("test result: "))
    {
        let number = |word: &str| {
            line.split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<usize>().ok())
                .unwrap_or(0)
        };
        passed += number("passed");
        failed += number("failed");
    }
    if !output.status.success() && failed == 0 {
        bail!("the host's tests do not build or do not run");
    }
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect();
    Ok((passed, failed, names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_are_counted() {
        let text = "// unsafe { }\nunsafe fn f() {}\nlet a = unsafe { f() }; // unsafe {\nunsafe { unsafe { } }\n";
        assert_eq!(unsafe_blocks(text), 3);
    }
}
