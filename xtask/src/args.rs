// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line, as data: every option with its help text.

use std::path::PathBuf;

use clap::{Args as Group, Parser, Subcommand, ValueEnum};

/// Default arguments of the hypervisor.
pub const HYPERVISOR_ARGS: &str = "console=com1 com1=115200,8n1 loglvl=info";
/// Arguments of the hypervisor besides the default ones where guests are started: what Domain 0 does not have is theirs.
pub const XL_HYPERVISOR_ARGS: &str = "dom0_mem=512M,max:512M";
/// Memory of a machine where guests are created, and of one where none are.
pub const XL_MEMORY: &str = "2G";
pub const MEMORY: &str = "1G";
/// Default arguments of Domain 0's kernel.
pub const DOM0_ARGS: &str = "console=hvc0 earlyprintk=xen";

/// Builds, runs and tests Philoxen.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Build the hypervisor: target/philoxen and target/philoxen.gz
    Build,
    /// Boot a machine in QEMU on this terminal: Philoxen, and Debian as Domain 0 with xl to create guests
    ///
    /// Domain 0 is made of Debian's packages at the first run, which takes some minutes and has apt install what is missing. Its
    /// root file system is kept in target/dom0-<kernel>.img, with what you change in it, until a package or a file of ours
    /// that goes into it changes.
    ///
    /// You are logged in, and Domain 0 says what to try. Ctrl-A X ends QEMU; `poweroff` in Domain 0 does so cleanly.
    Run(Run),
    /// Run lints, host tests and tests in QEMU
    Test(Test),
    /// Run only the lints
    Lint(Lint),
    /// Make target/philoxen.iso, which boots by GRUB under BIOS and UEFI
    Iso(Iso),
    /// Measure, side by side with Debian's Xen and bare Linux
    #[command(subcommand)]
    Bench(Bench),
}

/// Network card of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Net {
    /// Intel e1000
    E1000,
    /// virtio network
    Virtio,
    /// No network card
    None,
}

/// Clock of the micro-benchmarks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// Guest time counts instructions
    Icount,
    /// Guest time is the host's
    Wall,
    /// One after the other
    Both,
}

/// What the machine is.
#[derive(Group, Clone, Debug)]
pub struct Machine {
    /// Memory of the machine, as QEMU's -m takes it [default: 2G with xl, 1G without]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Number of processors of the machine
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub cpus: u32,
    /// Processor model [default: max, without SMAP on QEMU before 10, whose emulation of it breaks PV guests]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// QEMU to use instead of Debian's qemu-system-x86_64
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
}

/// What Domain 0 is.
#[derive(Group, Clone, Debug)]
pub struct Dom0 {
    /// Debian kernel: linux-image-FLAVOUR is fetched (amd64, cloud-amd64, or a full release name)
    #[arg(long, default_value = "amd64", value_name = "FLAVOUR")]
    pub flavour: String,
    /// Kernel file to boot instead of Debian's package, without xl
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initramfs to boot instead of the one made here, without xl
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Arguments of the hypervisor [default: console=com1 com1=115200,8n1 loglvl=info, and with xl dom0_mem=512M,max:512M]
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub xen_args: Option<String>,
    /// Arguments of Domain 0's kernel [default: console=hvc0 earlyprintk=xen]
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub kernel_args: Option<String>,
}

#[derive(Group, Clone, Debug)]
pub struct Run {
    /// Only a busybox initramfs as Domain 0: starts faster, has no xl and creates no guests
    #[arg(long)]
    pub minimal: bool,
    /// Make Domain 0's root file system anew: what was changed in it is lost
    #[arg(long, conflicts_with = "minimal")]
    pub fresh: bool,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub dom0: Dom0,
    /// Raw disk image to attach, which Domain 0 sees as /dev/vdb, or with --minimal as /dev/vda [default with
    /// --minimal: target/disk.img, made when missing]
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// Network card [default: e1000, or virtio for kernels without its driver]
    #[arg(long)]
    pub net: Option<Net>,
    /// Boot by GRUB from target/philoxen.iso
    #[arg(long)]
    pub iso: bool,
    /// Boot by GRUB from target/philoxen.iso under UEFI
    #[arg(long)]
    pub uefi: bool,
    /// Halt before the first instruction, wait for gdb and say how to start it
    #[arg(long)]
    pub gdb: bool,
    /// Boot the kernel on the bare machine, to compare
    #[arg(long, conflicts_with_all = ["xen", "iso", "uefi", "gdb"])]
    pub native: bool,
    /// Boot Debian's Xen 4.17 instead of Philoxen, to compare
    #[arg(long, conflicts_with_all = ["iso", "uefi", "gdb"])]
    pub xen: bool,
    /// More arguments for QEMU
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub extra: Vec<String>,
}

impl Run {
    /// Whether Domain 0 is the one with xl.
    pub fn with_xl(&self) -> bool {
        !self.minimal && self.dom0.kernel.is_none() && self.dom0.initrd.is_none()
    }
}

#[derive(Group, Clone, Debug)]
pub struct Test {
    /// Run only the tests whose name contains this text (without it, the long sessions of tests/xl are left out)
    pub filter: Option<String>,
    /// List the tests' names and do nothing
    #[arg(long)]
    pub list: bool,
    /// Machines to run at the same time [default: one per processor]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// QEMU to use instead of Debian's qemu-system-x86_64
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Boot Debian's Xen 4.17 instead of Philoxen: checks the tests themselves
    #[arg(long)]
    pub xen: bool,
}

#[derive(Group, Clone, Debug)]
pub struct Lint {
    /// Rewrite docs/unsafe-ledger.txt to the present number of unsafe blocks
    #[arg(long)]
    pub bless: bool,
}

#[derive(Group, Clone, Debug)]
pub struct Iso {
    #[command(flatten)]
    pub dom0: Dom0,
}

#[derive(Subcommand, Debug)]
pub enum Bench {
    /// Time from QEMU's start to Domain 0's /init, and the hypervisor's part of it
    Boot(BenchOptions),
    /// System-call and process micro-benchmarks inside Domain 0
    Micro(BenchOptions),
    /// Guests made and destroyed by Debian's xl, what they take of memory, their network and disk
    Domains(GuestOptions),
    /// What the scheduler gives guests: shares of a processor, and how soon they wake up beside others that compute
    Sched(GuestOptions),
    /// What a database guest and a web guest lose beside a disk hog, and beside a fork bomb with a memory hog
    Isolation(GuestOptions),
    /// Cost of the scheduler's decisions on this host, for 2 to 512 vCPUs
    SchedHost,
}

#[derive(Group, Clone, Debug)]
pub struct BenchOptions {
    #[command(flatten)]
    pub machine: Machine,
    /// Debian kernel: linux-image-FLAVOUR
    #[arg(long, default_value = "amd64", value_name = "FLAVOUR")]
    pub flavour: String,
    /// Interleaved runs of each system; medians are printed
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub runs: usize,
    /// Measure only the systems whose names are given
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "native,xen,philoxen"
    )]
    pub systems: Vec<String>,
    /// Clock of the micro-benchmarks
    #[arg(long, default_value = "both")]
    pub mode: Mode,
    /// Micro-benchmarks to run [default: all]
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    pub rows: Vec<String>,
}

#[derive(Group, Clone, Debug)]
pub struct GuestOptions {
    /// Number of processors of the machine
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub cpus: u32,
    /// Debian kernel of Domain 0: linux-image-FLAVOUR
    #[arg(long, default_value = "amd64", value_name = "FLAVOUR")]
    pub flavour: String,
    /// QEMU to use instead of Debian's qemu-system-x86_64
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Interleaved runs of each system; medians are printed
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub runs: usize,
    /// Measure only the systems whose names are given
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "xen,philoxen"
    )]
    pub systems: Vec<String>,
    /// Clock of the machine
    #[arg(long, default_value = "both")]
    pub mode: Mode,
}
