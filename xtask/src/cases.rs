// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tests in QEMU, as data.

use crate::args::Net;
use crate::qemu::Reply;

/// How a Debian boot starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// QEMU's own multiboot loader.
    Direct,
    /// GRUB from a CD under BIOS.
    Bios,
    /// GRUB from a CD under UEFI.
    Uefi,
}

/// Debian's kernel as Domain 0.
#[derive(Clone, Copy, Debug)]
pub struct Debian {
    pub name: &'static str,
    pub route: Route,
    /// The machine's memory.
    pub memory: &'static str,
    /// Least memory that Domain 0 must see, in MiB.
    pub sees: u32,
    pub cpus: u32,
    pub net: Net,
    /// Script of tests/dom0/tests to run; none leads to the shell.
    pub script: Option<&'static str>,
    /// More hypervisor arguments.
    pub args: &'static str,
    /// What is typed.
    pub replies: &'static [Reply],
    /// Texts that must appear, besides the script's pass line.
    pub expects: &'static [&'static str],
    /// Whether a reset ends the test.
    pub no_reboot: bool,
}

const PLAIN: Debian = Debian {
    name: "",
    route: Route::Direct,
    memory: "1G",
    sees: 760,
    cpus: 1,
    net: Net::E1000,
    script: Some("debian"),
    args: "",
    replies: &[],
    expects: &[],
    no_reboot: false,
};

/// Boots of Debian's kernel.
pub const DEBIAN: &[Debian] = &[
    Debian {
        name: "1g",
        ..PLAIN
    },
    Debian {
        name: "3g-virtio",
        memory: "3G",
        sees: 2600,
        net: Net::Virtio,
        ..PLAIN
    },
    Debian {
        name: "5g",
        memory: "5G",
        sees: 4500,
        ..PLAIN
    },
    Debian {
        name: "2cpus",
        cpus: 2,
        ..PLAIN
    },
    Debian {
        name: "dom0-mem",
        args: "dom0_mem=512M,max:640M",
        sees: 380,
        ..PLAIN
    },
    Debian {
        name: "grub-bios",
        route: Route::Bios,
        ..PLAIN
    },
    Debian {
        name: "grub-uefi",
        route: Route::Uefi,
        ..PLAIN
    },
    Debian {
        name: "reboot",
        script: Some("reboot"),
        expects: &["PHILOXEN-REBOOTING"],
        ..PLAIN
    },
    Debian {
        name: "shell",
        script: None,
        replies: &[
            Reply {
                wait_for: "dom0:/root#",
                send: "echo answer-$((20 + 22))\n",
            },
            Reply {
                wait_for: "answer-42",
                send: "cat /sys/hypervisor/type; poweroff\n",
            },
        ],
        expects: &["answer-42", "hypervisor: xen"],
        ..PLAIN
    },
    Debian {
        name: "crash",
        script: Some("crash"),
        expects: &["PHILOXEN-CRASHING", "Domain 0 crashed"],
        no_reboot: true,
        ..PLAIN
    },
];

/// Files that a bad boot is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// Nothing is wrong with the files.
    Nothing,
    /// No modules at all.
    NoModules,
    /// Random bytes for the kernel.
    Garbage,
    /// An ELF file without Xen's notes for the kernel.
    NoNotes,
    /// The first half of the kernel.
    HalfKernel,
    /// The first half of the initramfs.
    HalfInitramfs,
}

/// A boot that must end with a reason on the console.
#[derive(Clone, Copy, Debug)]
pub struct Bad {
    pub name: &'static str,
    pub files: Broken,
    pub memory: &'static str,
    pub cpu: Option<&'static str>,
    pub args: &'static str,
    /// What must be in a line.
    pub reason: &'static str,
}

const FINE: Bad = Bad {
    name: "",
    files: Broken::Nothing,
    memory: "1G",
    cpu: None,
    args: "",
    reason: "",
};

/// Boots with bad input.
pub const BAD: &[Bad] = &[
    Bad {
        name: "no-modules",
        files: Broken::NoModules,
        reason: "no Domain 0 kernel",
        ..FINE
    },
    Bad {
        name: "garbage-kernel",
        files: Broken::Garbage,
        reason: "neither an ELF file nor a bzImage",
        ..FINE
    },
    Bad {
        name: "no-notes",
        files: Broken::NoNotes,
        reason: "no Xen notes",
        ..FINE
    },
    Bad {
        name: "half-kernel",
        files: Broken::HalfKernel,
        reason: "truncated",
        ..FINE
    },
    Bad {
        name: "half-initramfs",
        files: Broken::HalfInitramfs,
        reason: "unpacking failed",
        ..FINE
    },
    Bad {
        name: "little-dom0-memory",
        args: "dom0_mem=16M",
        reason: "do not fit",
        ..FINE
    },
    Bad {
        name: "little-memory",
        memory: "48M",
        reason: "too little memory",
        ..FINE
    },
    Bad {
        name: "no-nx",
        cpu: Some("max,-smap,-nx"),
        reason: "which Philoxen needs",
        ..FINE
    },
    Bad {
        name: "32-bit",
        cpu: Some("qemu32"),
        reason: "64-bit",
        ..FINE
    },
];

/// Names of the test kernels' themes, read from their own table.
pub fn themes(source: &str) -> Vec<String> {
    let table = source
        .split_once("THEMES: &[Theme] =")
        .and_then(|(_, rest)| rest.split_once("];"))
        .map_or("", |(table, _)| table);
    table
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn themes_are_found() {
        let source = "pub const THEMES: &[Theme] = &[(\"boot\", boot::run), (\"events\", events::run)];\n\"no\"";
        assert_eq!(themes(source), ["boot", "events"]);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = DEBIAN.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DEBIAN.len());
    }
}
