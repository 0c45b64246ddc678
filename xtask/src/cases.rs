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
    /// What is added to the default processor model.
    pub cpu: &'static str,
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
    cpu: "",
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
        args: "dom0_vcpus_pin",
        expects: &["Processors: 2 in use", "Brought up 1 node, 2 CPUs"],
        ..PLAIN
    },
    Debian {
        name: "2vcpus",
        args: "dom0_max_vcpus=2",
        expects: &["Brought up 1 node, 2 CPUs"],
        ..PLAIN
    },
    Debian {
        name: "2cpus-4vcpus",
        cpus: 2,
        args: "dom0_max_vcpus=4",
        expects: &["Processors: 2 in use", "Brought up 1 node, 4 CPUs"],
        ..PLAIN
    },
    Debian {
        name: "2cpus-maxcpus",
        cpus: 2,
        args: "maxcpus=1",
        expects: &["Processors: 1 in use", "Brought up 1 node, 1 CPU"],
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
                wait_for: PROMPT,
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
    Debian {
        name: "compat",
        net: Net::None,
        script: Some("compat"),
        expects: &["PHILOXEN-TEST compat PASS AuthenticAMD"],
        ..PLAIN
    },
    Debian {
        name: "compat-intel",
        cpu: ",vendor=GenuineIntel",
        net: Net::None,
        script: Some("compat"),
        expects: &["PHILOXEN-TEST compat PASS GenuineIntel"],
        ..PLAIN
    },
    Debian {
        name: "keys",
        net: Net::None,
        script: None,
        replies: KEYS,
        expects: &[
            "key 'h': show this list",
            ", shared_info ",
            "system time ",
            " ports in use, ",
            "vector 0x",
            " KiB of RAM, ",
            "page audit: all counts agree",
            "CPU 0: ",
            "Serial input to DOM0",
            "answer-42",
        ],
        ..PLAIN
    },
    Debian {
        name: "keys-2cpus",
        cpus: 2,
        net: Net::None,
        script: None,
        args: "dom0_max_vcpus=3 dom0_vcpus_pin",
        replies: KEYS,
        expects: &[
            "may run on 0, weight ",
            "may run on 1, weight ",
            "d0v2: ",
            "page audit: all counts agree",
            "CPU 0: ",
            "CPU 1: ",
        ],
        ..PLAIN
    },
    Debian {
        name: "watchdog",
        net: Net::None,
        script: None,
        args: "watchdog",
        replies: LOCK_UP,
        expects: &[
            "the watchdog found it stuck in the hypervisor",
            "Call trace:",
            "lock_up+0x",
            // A caller of it.
            "philoxen::cpu::",
            "Rebooting machine",
        ],
        no_reboot: true,
        ..PLAIN
    },
    Debian {
        name: "watchdog-2cpus",
        cpus: 2,
        net: Net::None,
        script: None,
        args: "watchdog",
        replies: LOCK_UP,
        expects: &[
            "the watchdog found it stuck in the hypervisor",
            "lock_up+0x",
            " was stopped at",
            "Rebooting machine",
        ],
        no_reboot: true,
        ..PLAIN
    },
];

/// Domain 0's shell waits for a command.
const PROMPT: &str = "dom0:/root#";
/// Gives the console's input to the hypervisor, or back to Domain 0.
const SWITCH_INPUT: &str = "\u{1}\u{1}\u{1}";

/// The debug key that locks a processor up.
const LOCK_UP: &[Reply] = &[
    Reply {
        wait_for: PROMPT,
        send: SWITCH_INPUT,
    },
    Reply {
        wait_for: "Serial input to Philoxen",
        send: "L",
    },
];

/// Debug keys, each typed once the one before it has answered, and a command for Domain 0 afterwards.
const KEYS: &[Reply] = &[
    Reply {
        wait_for: PROMPT,
        send: SWITCH_INPUT,
    },
    Reply {
        wait_for: "Serial input to Philoxen",
        send: "h",
    },
    Reply {
        wait_for: "key 'R'",
        send: "q",
    },
    Reply {
        wait_for: "v0: up true",
        send: "r",
    },
    Reply {
        wait_for: "d0v0: virtual",
        send: "a",
    },
    Reply {
        wait_for: "d0v0: state",
        send: "e",
    },
    Reply {
        wait_for: " ports in use, ",
        send: "i",
    },
    Reply {
        wait_for: "vector 0x",
        send: "m",
    },
    Reply {
        wait_for: " KiB of RAM, ",
        send: "A",
    },
    Reply {
        wait_for: "page audit: ",
        send: "0",
    },
    Reply {
        wait_for: "CPU 0: ",
        send: SWITCH_INPUT,
    },
    Reply {
        wait_for: "Serial input to DOM0",
        send: "\necho answer-$((20 + 22)); poweroff\n",
    },
];

/// A theme of the test kernels once more, on a machine of another kind.
#[derive(Clone, Copy, Debug)]
pub struct Special {
    pub name: &'static str,
    pub theme: &'static str,
    pub cpus: u32,
    /// More hypervisor arguments.
    pub args: &'static str,
    /// What the console must not say: where the machine does not have what the theme is about, or something is wrong.
    pub forbids: &'static str,
    /// What it must say besides the verdict.
    pub wants: &'static str,
}

/// The special runs.
pub const SPECIAL: &[Special] = &[
    Special {
        // Two vCPUs take turns on one processor.
        name: "smp-2vcpus",
        theme: "smp",
        cpus: 1,
        args: "dom0_max_vcpus=2",
        forbids: "GUEST-INFO smp one vCPU alone",
        wants: "",
    },
    Special {
        name: "smp-2cpus",
        theme: "smp",
        cpus: 2,
        args: "",
        forbids: "GUEST-INFO smp one vCPU alone",
        wants: "",
    },
    Special {
        name: "no-xsave-hidden",
        theme: "no-xsave",
        cpus: 1,
        args: "dom0-cpuid=no-xsave",
        forbids: "GUEST-INFO no-xsave not hidden",
        wants: "",
    },
    Special {
        // With grants and foreign mappings in use, with a dead domain's frames mapped, and after all.
        name: "domains-audit",
        theme: "domains",
        cpus: 1,
        args: "",
        forbids: "frames with wrong counts",
        wants: "page audit: all counts agree",
    },
];

/// Scripts of tests/xl whose guests need a machine of [`LARGE_MEMORY`].
pub const LARGE_SESSIONS: &[&str] = &["s16"];
pub const LARGE_MEMORY: &str = "4G";

/// Sessions of tests/xl that run without being asked for by name, longest first: all of them would take longer than all the
/// rest.
pub const USUAL_SESSIONS: &[&str] = &[
    "xl/s3-2cpus",
    "xl/s12",
    "xl/s5",
    "xl/s3",
    "xl/s4",
    "xl/s14",
    "xl/s2",
    "xl/s1",
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
    /// Nothing is wrong, but Domain 0 is the test kernel with this theme.
    Guest(&'static str),
}

/// How a bad boot must end, some seconds after its reason was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// The machine is reset or powered off.
    Off,
    /// The machine stands still.
    Stop,
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
    /// What must be in other lines.
    pub also: &'static [&'static str],
    pub replies: &'static [Reply],
    pub then: Then,
}

const FINE: Bad = Bad {
    name: "",
    files: Broken::Nothing,
    memory: "1G",
    cpu: None,
    args: "",
    reason: "",
    also: &[],
    replies: &[],
    then: Then::Off,
};

/// A boot that the hypervisor gives up.
const GIVEN_UP: Bad = Bad {
    also: &["Cannot boot: ", "Rebooting in some seconds"],
    ..FINE
};

/// Boots with bad input.
pub const BAD: &[Bad] = &[
    Bad {
        name: "no-modules",
        files: Broken::NoModules,
        reason: "no Domain 0 kernel",
        ..GIVEN_UP
    },
    Bad {
        name: "garbage-kernel",
        files: Broken::Garbage,
        reason: "neither an ELF file nor a bzImage",
        ..GIVEN_UP
    },
    Bad {
        name: "no-notes",
        files: Broken::NoNotes,
        reason: "no Xen notes",
        ..GIVEN_UP
    },
    Bad {
        name: "half-kernel",
        files: Broken::HalfKernel,
        reason: "truncated",
        ..GIVEN_UP
    },
    Bad {
        name: "half-initramfs",
        files: Broken::HalfInitramfs,
        reason: "unpacking failed",
        // Linux goes on with the files it has got: it panics, or they are enough for the shell.
        replies: &[Reply {
            wait_for: PROMPT,
            send: "poweroff\n",
        }],
        ..FINE
    },
    Bad {
        name: "little-dom0-memory",
        args: "dom0_mem=16M",
        reason: "do not fit",
        ..GIVEN_UP
    },
    Bad {
        name: "little-memory",
        memory: "48M",
        reason: "too little memory",
        ..GIVEN_UP
    },
    Bad {
        name: "no-nx",
        cpu: Some("max,-smap,-nx"),
        reason: "which Philoxen needs",
        then: Then::Stop,
        ..FINE
    },
    Bad {
        name: "32-bit",
        cpu: Some("qemu32"),
        reason: "64-bit",
        then: Then::Stop,
        ..FINE
    },
    Bad {
        name: "noreboot",
        args: "noreboot",
        files: Broken::Guest("crash-on-request"),
        reason: "Reboot disabled on the command line: stopped",
        also: &["Domain 0 crashed"],
        then: Then::Stop,
        ..FINE
    },
    Bad {
        name: "noreboot-no-modules",
        args: "noreboot",
        files: Broken::NoModules,
        reason: "Reboot disabled on the command line: stopped",
        also: &["Cannot boot: no Domain 0 kernel"],
        then: Then::Stop,
        ..FINE
    },
    Bad {
        name: "unknown-option",
        args: "frobnicate=1 dom0_mem=lots",
        files: Broken::Guest("boot"),
        reason: "\"frobnicate=1\" is not understood and ignored",
        also: &[
            "\"dom0_mem=lots\" is not understood and ignored",
            "GUEST-TEST boot PASS",
        ],
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
    fn usual_sessions_exist() {
        let scripts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/xl");
        for name in USUAL_SESSIONS {
            let script = name.trim_start_matches("xl/").trim_end_matches("-2cpus");
            assert!(scripts.join(script).with_extension("sh").exists(), "{name}");
        }
    }

    #[test]
    fn names_are_unique() {
        for names in [
            DEBIAN.iter().map(|case| case.name).collect::<Vec<_>>(),
            BAD.iter().map(|case| case.name).collect(),
            SPECIAL.iter().map(|case| case.name).collect(),
        ] {
            let mut unique = names.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), names.len());
        }
    }
}
