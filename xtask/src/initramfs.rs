// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domain 0's initramfs: Debian's busybox, the kernel's modules for the machine's disk and network, and the scripts of
//! `tests/dom0`, as a compressed cpio archive in the `newc` form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use object::read::elf::{FileHeader as _, SectionHeader as _};

use crate::build;
use crate::deps;
use crate::host::{self, Tree};
use crate::kernel::{self, Kernel};

/// Modules loaded at start, where the kernel has them as modules.
const LOADED: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net", "e1000"];
/// Modules that are there for `modprobe` and `mount`.
const AVAILABLE: &[&str] = &[
    "ext4",
    "vfat",
    "isofs",
    "loop",
    "sr_mod",
    "ata_piix",
    "ahci",
    "sd_mod",
    "e1000e",
    "nls_ascii",
    "nls_cp437",
    "crc32c_generic",
    "crc32c-intel",
    "xenfs",
    "xen-evtchn",
    "xen-privcmd",
    "xen-gntdev",
    "xen-gntalloc",
];
/// Programs that scripts of ours replace.
const REPLACED: &[&str] = &["busybox"];

/// Extra files: path in the archive, and the file on the host.
pub type Extra = (String, PathBuf);

/// Makes the initramfs for a kernel and returns its path.
pub fn make(tree: &Tree, kernel: &Kernel, extra: &[Extra]) -> Result<PathBuf> {
    let contents = Contents {
        scripts: "tests/dom0",
        loaded: LOADED,
        available: AVAILABLE,
        extra,
    };
    let name = if extra.is_empty() {
        "initramfs"
    } else {
        "initramfs-bench"
    };
    let path = tree.target.join(format!("{name}-{}.img", kernel.release));
    host::write_if_changed(&path, &gather(tree, kernel, &contents)?.compressed()?)?;
    Ok(path)
}

/// What an initramfs holds besides busybox.
pub struct Contents<'a> {
    /// Directory of the tree whose files are put at their places.
    pub scripts: &'a str,
    /// Modules loaded at start, where the kernel has them as modules.
    pub loaded: &'a [&'a str],
    /// Modules that are there for `modprobe` and `mount`.
    pub available: &'a [&'a str],
    pub extra: &'a [Extra],
}

/// Everything that goes into an initramfs.
pub fn gather(tree: &Tree, kernel: &Kernel, contents: &Contents) -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in [
        "dev",
        "proc",
        "sys",
        "tmp",
        "run",
        "root",
        "mnt",
        "etc",
        "bin",
        "sbin",
        "lib",
        "lib/modules",
    ] {
        archive.directory(directory);
    }
    archive.symlink("usr", ".");
    // The kernel opens it before anything is mounted.
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);

    let busybox = kernel::busybox(tree)?;
    archive.file("bin/busybox", 0o755, std::fs::read(&busybox)?);
    for name in host::capture(Command::new(&busybox).arg("--list"))?.lines() {
        if !REPLACED.contains(&name) {
            archive.symlink(&format!("bin/{name}"), "busybox");
        }
    }
    archive.symlink("sbin/init", "../bin/busybox");
    archive.symlink("sbin/modprobe", "../bin/busybox");

    for (name, mode, bytes) in files_below(&tree.root.join(contents.scripts))? {
        match name.strip_suffix(".s") {
            Some(program) => archive.file(
                &format!("bin/{program}"),
                0o755,
                assemble(tree, &tree.root.join(contents.scripts).join(&name), program)?,
            ),
            None => archive.file(&name, mode, bytes),
        }
    }
    for (name, bytes) in modules(kernel, contents.loaded, contents.available)? {
        archive.file(&name, 0o644, bytes);
    }
    for (path, from) in contents.extra {
        let bytes =
            std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        archive.file(path, 0o755, bytes);
    }
    Ok(archive)
}

/// A compressed archive of nothing but these files, to be put behind another: the kernel unpacks one after the other.
pub fn addition(files: &[Extra]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for (path, from) in files {
        let bytes =
            std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        archive.file(path, 0o755, bytes);
    }
    archive.compressed()
}

/// Assembles and links a 32-bit program that needs nothing but the kernel.
fn assemble(tree: &Tree, source: &Path, name: &str) -> Result<Vec<u8>> {
    deps::ensure(&[deps::LINKER])?;
    let directory = tree.directory("compat")?;
    let (object, program) = (directory.join(format!("{name}.o")), directory.join(name));
    host::capture(
        Command::new("as")
            .args(["--32", "-o"])
            .arg(&object)
            .arg(source),
    )?;
    host::capture(
        Command::new("ld")
            .args(["-m", "elf_i386", "-static", "-s", "-o"])
            .arg(&program)
            .arg(&object),
    )?;
    Ok(std::fs::read(&program)?)
}

/// Every file below `root`: its path from there, its mode and its bytes, in the order of their paths.
pub fn files_below(root: &Path) -> Result<Vec<(String, u32, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let name = path
                .strip_prefix(root)?
                .to_str()
                .context("a script's name is no text")?;
            let bytes = std::fs::read(&path)?;
            let mode = if bytes.starts_with(b"#!") {
                0o755
            } else {
                0o644
            };
            found.push((name.to_owned(), mode, bytes));
        }
    }
    found.sort();
    Ok(found)
}

/// A kernel module as its `.modinfo` section describes it.
struct Module {
    path: String,
    bytes: Vec<u8>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// The modules, what they depend on, the tables that `modprobe` reads, and `etc/modules` with the names to load at
/// start: paths from the root, and contents.
pub fn modules(
    kernel: &Kernel,
    load: &[&str],
    available: &[&str],
) -> Result<Vec<(String, Vec<u8>)>> {
    let index = index(&kernel.modules)?;
    let mut order = Vec::new();
    let mut chosen = BTreeMap::new();
    for name in load.iter().chain(available) {
        choose(
            &normal(name),
            &index,
            &mut chosen,
            &mut order,
            &mut BTreeSet::new(),
        )?;
    }

    let root = format!("lib/modules/{}", kernel.release);
    let (mut dependencies, mut aliases) = (String::new(), String::new());
    for name in &order {
        let Some(module) = chosen.get(name) else {
            continue;
        };
        let mut needs = Vec::new();
        all_needs(name, &chosen, &mut needs);
        let needs: Vec<&str> = needs
            .iter()
            .filter_map(|need| chosen.get(need).map(|module| module.path.as_str()))
            .collect();
        writeln!(dependencies, "{}: {}", module.path, needs.join(" "))?;
        for alias in &module.aliases {
            writeln!(aliases, "alias {alias} {name}")?;
        }
    }
    let loaded: Vec<&str> = load
        .iter()
        .copied()
        .filter(|name| chosen.contains_key(&normal(name)))
        .collect();
    let mut files = vec![
        (
            "etc/modules".to_owned(),
            format!("{}\n", loaded.join("\n")).into_bytes(),
        ),
        (format!("{root}/modules.dep"), dependencies.into_bytes()),
        (format!("{root}/modules.alias"), aliases.into_bytes()),
        (format!("{root}/modules.symbols"), Vec::new()),
    ];
    files.extend(
        chosen
            .into_values()
            .map(|module| (format!("{root}/{}", module.path), module.bytes)),
    );
    Ok(files)
}

/// Module names use `-` and `_` as one.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Every module file below `root` by its normal name.
fn index(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.join("kernel")];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if let Some((name, ending)) = name.split_once(".ko")
                && matches!(ending, "" | ".xz" | ".zst" | ".gz")
            {
                found.insert(normal(name), path.clone());
            }
        }
    }
    // Paths in the archive are relative to the release's directory.
    Ok(found)
}

/// Adds `name` behind everything it depends on; a name without a file is built into the kernel or not there.
fn choose(
    name: &str,
    index: &BTreeMap<String, PathBuf>,
    chosen: &mut BTreeMap<String, Module>,
    order: &mut Vec<String>,
    open: &mut BTreeSet<String>,
) -> Result<()> {
    let Some(path) = index.get(name) else {
        return Ok(());
    };
    if chosen.contains_key(name) {
        return Ok(());
    }
    if !open.insert(name.to_owned()) {
        bail!("the module {name} depends on itself");
    }
    let module = read_module(path)?;
    for need in &module.depends {
        choose(need, index, chosen, order, open)?;
    }
    order.push(name.to_owned());
    chosen.insert(name.to_owned(), module);
    Ok(())
}

/// Every module that `name` needs, nearest first, as `modules.dep` lists them.
fn all_needs(name: &str, chosen: &BTreeMap<String, Module>, needs: &mut Vec<String>) {
    let Some(module) = chosen.get(name) else {
        return;
    };
    for need in &module.depends {
        if !needs.contains(need) {
            needs.push(need.clone());
        }
    }
    for need in &module.depends {
        let mut below = Vec::new();
        all_needs(need, chosen, &mut below);
        for name in below {
            needs.retain(|known| *known != name);
            needs.push(name);
        }
    }
}

fn read_module(path: &Path) -> Result<Module> {
    let unpacked = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => {
            deps::ensure(&[deps::XZ])?;
            unpack("xz", path)?
        }
        Some("zst") => {
            deps::ensure(&[deps::ZSTD])?;
            unpack("zstd", path)?
        }
        Some("gz") => {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(
                &mut flate2::read::MultiGzDecoder::new(std::fs::File::open(path)?),
                &mut bytes,
            )?;
            bytes
        }
        _ => std::fs::read(path)?,
    };
    let shown = path.display();
    let information =
        module_information(&unpacked).with_context(|| format!("{shown} is no module"))?;
    let values = |key: &str| -> Vec<String> {
        information
            .split(|byte| *byte == 0)
            .filter_map(|entry| {
                String::from_utf8_lossy(entry)
                    .strip_prefix(key)
                    .map(str::to_owned)
            })
            .collect()
    };
    let text = path.to_str().context("a module's path is no text")?;
    let inside = text
        .rfind("/kernel/")
        .and_then(|at| text.get(at + 1..))
        .and_then(|path| path.split_once(".ko"))
        .map(|(name, _)| format!("{name}.ko"))
        .with_context(|| format!("{shown} is not below kernel/"))?;
    Ok(Module {
        path: inside,
        depends: values("depends=")
            .iter()
            .flat_map(|list| list.split(','))
            .filter(|name| !name.is_empty())
            .map(normal)
            .collect(),
        aliases: values("alias="),
        bytes: unpacked,
    })
}

fn unpack(program: &str, path: &Path) -> Result<Vec<u8>> {
    let output = Command::new(program).arg("-dc").arg(path).output()?;
    if !output.status.success() {
        bail!("{program} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

/// The `.modinfo` section: `key=value` strings, each ended by NUL.
fn module_information(bytes: &[u8]) -> Option<&[u8]> {
    let endian = object::LittleEndian;
    let header = object::elf::FileHeader64::<object::LittleEndian>::parse(bytes).ok()?;
    let sections = header.sections(endian, bytes).ok()?;
    let (_, section) = sections.section_by_name(endian, b".modinfo")?;
    section.data(endian, bytes).ok()
}

/// What a path of an archive is.
#[derive(Clone, Debug)]
enum Node {
    Directory,
    File { mode: u32, contents: Vec<u8> },
    Symlink(String),
    Device { major: u32, minor: u32 },
}

/// A tree of files that becomes a cpio archive in the `newc` form, or a directory on the host.
#[derive(Default, Debug)]
pub struct Archive {
    /// By path from the root; a directory stands before what is in it.
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    fn directory(&mut self, path: &str) {
        self.add(path, Node::Directory);
    }

    fn file(&mut self, path: &str, mode: u32, contents: Vec<u8>) {
        self.add(path, Node::File { mode, contents });
    }

    fn symlink(&mut self, path: &str, to: &str) {
        self.add(path, Node::Symlink(to.to_owned()));
    }

    fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(path, Node::Device { major, minor });
    }

    fn add(&mut self, path: &str, node: Node) {
        for (at, _) in path.match_indices('/') {
            if let Some(parent) = path.get(..at) {
                self.nodes
                    .entry(parent.to_owned())
                    .or_insert(Node::Directory);
            }
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Writes the tree below a directory of the host, but for device files, which are made when it runs.
    pub fn write_below(&self, root: &Path) -> Result<()> {
        for (path, node) in &self.nodes {
            let to = root.join(path);
            match node {
                Node::Directory => std::fs::create_dir_all(&to),
                Node::File { mode, contents } => std::fs::write(&to, contents).and_then(|()| {
                    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(*mode))
                }),
                Node::Symlink(target) => std::os::unix::fs::symlink(target, &to),
                Node::Device { .. } => Ok(()),
            }
            .with_context(|| format!("cannot make {}", to.display()))?;
        }
        Ok(())
    }

    /// The compressed archive.
    pub fn compressed(&self) -> Result<Vec<u8>> {
        build::gzip(&self.bytes())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (inode, (path, node)) in (1..).zip(&self.nodes) {
            let (mode, device, contents): (u32, (u32, u32), &[u8]) = match node {
                Node::Directory => (0o040_755, (0, 0), &[]),
                Node::File { mode, contents } => (0o100_000 | mode, (0, 0), contents),
                Node::Symlink(to) => (0o120_777, (0, 0), to.as_bytes()),
                Node::Device { major, minor } => (0o020_600, (*major, *minor), &[]),
            };
            entry(&mut bytes, inode, path, mode, device, contents);
        }
        entry(&mut bytes, 0, "TRAILER!!!", 0, (0, 0), &[]);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// Appends one entry of a cpio archive: header, name and contents, each ending at a multiple of four.
fn entry(
    bytes: &mut Vec<u8>,
    inode: u32,
    path: &str,
    mode: u32,
    device: (u32, u32),
    contents: &[u8],
) {
    let length = u32::try_from(contents.len()).unwrap_or(u32::MAX);
    let name_length = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
    // inode, mode, uid, gid, links, mtime, size, device, special device, name length, checksum.
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        length,
        0,
        0,
        device.0,
        device.1,
        name_length,
        0,
    ];
    bytes.extend(b"070701");
    for field in fields {
        bytes.extend(format!("{field:08x}").bytes());
    }
    bytes.extend(path.bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(contents);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_has_the_newc_form() {
        let mut archive = Archive::default();
        archive.file("etc/name", 0o644, b"text".to_vec());
        let bytes = archive.bytes();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("070701"));
        assert_eq!(
            text.matches("070701").count(),
            3,
            "the parent, the file and the trailer"
        );
        assert!(text.contains("etc/name\0") && text.contains("TRAILER!!!\0"));
        assert_eq!(bytes.len() % 512, 0);
        // The first header's name length field stands 12 fields of 8 digits behind the magic.
        assert_eq!(
            bytes.get(6 + 11 * 8..6 + 12 * 8),
            Some(b"00000004".as_slice())
        );
    }

    #[test]
    fn needs_are_listed_nearest_first() {
        let module = |depends: &[&str]| Module {
            path: String::new(),
            bytes: Vec::new(),
            depends: depends.iter().map(|name| (*name).to_owned()).collect(),
            aliases: Vec::new(),
        };
        let chosen = BTreeMap::from([
            ("a".to_owned(), module(&["b", "c"])),
            ("b".to_owned(), module(&["c"])),
            ("c".to_owned(), module(&[])),
        ]);
        let mut needs = Vec::new();
        all_needs("a", &chosen, &mut needs);
        assert_eq!(needs, ["b", "c"]);
    }
}
