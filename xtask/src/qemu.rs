// SPDX-License-Identifier: MIT OR Apache-2.0
//! The emulated machine: its command line, and runs that are watched by their serial console.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::args::{self, Net};
use crate::deps;
use crate::host::{self, Tree};

/// Size of the disk image made for a machine.
pub const DISK_BYTES: u64 = 64 << 20;

/// The emulator and what its version asks for.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    /// Default processor model.
    pub cpu: &'static str,
    /// Whether code that one processor changes while another runs it may go on in its old form.
    keeps_stale_code: bool,
}

impl Qemu {
    /// Finds the emulator, installing Debian's when none is given.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        let program = match given {
            Some(path) => path.to_path_buf(),
            None => {
                deps::ensure(&[deps::QEMU])?;
                PathBuf::from("qemu-system-x86_64")
            }
        };
        let text = host::capture(Command::new(&program).arg("--version"))?;
        let [major, minor] = text
            .split_whitespace()
            .find_map(version)
            .context("QEMU does not say its version")?;
        // Before version 10, SMAP treats the frame of a ring-3 iretq as the kernel's access and kills PV guests.
        let cpu = if major >= 10 { "max" } else { "max,-smap" };
        // Before version 8.2, a block is translated without holding its pages: a write by another processor in between
        // is lost on it. Linux changes its own code, and then runs into breakpoints that are gone.
        let keeps_stale_code = (major, minor) < (8, 2);
        Ok(Self {
            program,
            cpu,
            keeps_stale_code,
        })
    }
}

/// Major and minor version, if a word is one.
fn version(word: &str) -> Option<[u32; 2]> {
    let mut parts = word.split('.').map(str::parse);
    Some([parts.next()?.ok()?, parts.next()?.ok()?])
}

/// What the machine starts.
#[derive(Clone, Debug)]
pub enum Boot {
    /// A multiboot image with its arguments and modules (file, arguments), by QEMU's own loader.
    Multiboot {
        image: PathBuf,
        args: String,
        modules: Vec<(PathBuf, String)>,
    },
    /// A Linux kernel on the bare machine.
    Linux {
        kernel: PathBuf,
        args: String,
        initramfs: PathBuf,
    },
    /// A CD image, under BIOS or UEFI.
    Cd { image: PathBuf, uefi: bool },
}

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub qemu: Qemu,
    pub memory: String,
    pub cpus: u32,
    pub cpu: Option<String>,
    pub boot: Boot,
    /// Virtio disks, in their order.
    pub disks: Vec<PathBuf>,
    pub net: Net,
    /// Ends the emulator when the machine resets itself.
    pub no_reboot: bool,
    /// Whether every processor has a thread of the host even where Linux may stumble over it: for kernels that do not
    /// change their code, and to measure.
    pub parallel: bool,
    pub extra: Vec<OsString>,
}

impl Machine {
    /// A machine as the user's options describe it.
    pub fn new(options: &args::Machine, boot: Boot) -> Result<Self> {
        Ok(Self {
            qemu: Qemu::find(options.qemu.as_deref())?,
            memory: options
                .memory
                .clone()
                .unwrap_or_else(|| args::MEMORY.to_owned()),
            cpus: options.cpus,
            cpu: options.cpu.clone(),
            boot,
            disks: Vec::new(),
            net: Net::None,
            no_reboot: false,
            parallel: false,
            extra: Vec::new(),
        })
    }

    fn accelerator(&self) -> &'static str {
        if self.cpus > 1 && self.qemu.keeps_stale_code && !self.parallel {
            "tcg,thread=single"
        } else {
            "tcg"
        }
    }

    /// The emulator's command line, without a serial port.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.qemu.program);
        command
            .args(["-machine", "pc", "-accel", self.accelerator()])
            .args(["-display", "none"])
            .args(["-cpu", self.cpu.as_deref().unwrap_or(self.qemu.cpu)])
            .args(["-m", &self.memory, "-smp", &self.cpus.to_string()]);
        match &self.boot {
            Boot::Multiboot {
                image,
                args,
                modules,
            } => {
                command.arg("-kernel").arg(image).arg("-append").arg(args);
                let list = modules
                    .iter()
                    .map(|(file, args)| module(file, args))
                    .collect::<Result<Vec<String>>>()?;
                if !list.is_empty() {
                    command.arg("-initrd").arg(list.join(","));
                }
            }
            Boot::Linux {
                kernel,
                args,
                initramfs,
            } => {
                command.arg("-kernel").arg(kernel).arg("-append").arg(args);
                command.arg("-initrd").arg(initramfs);
            }
            Boot::Cd { image, uefi } => {
                if *uefi {
                    deps::ensure(&[deps::UEFI])?;
                    command.args(["-bios", "/usr/share/OVMF/OVMF_CODE.fd"]);
                }
                command
                    .arg("-boot")
                    .arg("d")
                    .arg("-drive")
                    .arg(drive(image, "ide,media=cdrom,readonly=on")?);
            }
        }
        for disk in &self.disks {
            command
                .arg("-drive")
                .arg(drive(disk, "virtio,format=raw,cache=unsafe")?);
        }
        let nic = match self.net {
            Net::E1000 => "user,model=e1000",
            Net::Virtio => "user,model=virtio-net-pci",
            Net::None => "none",
        };
        command.args(["-nic", nic]);
        if self.no_reboot {
            command.arg("-no-reboot");
        }
        command.args(&self.extra);
        Ok(command)
    }
}

/// QEMU's options and module lists are split at commas; a doubled one stands for itself.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

fn module(file: &Path, args: &str) -> Result<String> {
    let file = file.to_str().context("a module's path is no text")?;
    anyhow::ensure!(
        !file.contains(' '),
        "{file}: QEMU takes no module from a path with a space in it"
    );
    Ok(escape(format!("{file} {args}").trim_end()))
}

fn drive(file: &Path, kind: &str) -> Result<String> {
    let file = file.to_str().context("a disk's path is no text")?;
    Ok(format!("file={},if={kind}", escape(file)))
}

/// Makes a disk image of [`DISK_BYTES`] unless there is one.
pub fn disk(tree: &Tree, name: &str) -> Result<PathBuf> {
    let path = tree.target.join(name);
    if !path.exists() {
        let file = std::fs::File::create(&path)?;
        file.set_len(DISK_BYTES)?;
    }
    Ok(path)
}

/// Something to type once a line (or an unfinished one) of the console contains a text.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    pub wait_for: &'static str,
    pub send: &'static str,
}

/// How a watched run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The machine powered itself off (or reset itself, where that ends the emulator).
    Off,
    /// The awaited line came, and the machine was ended.
    Seen,
    /// The time limit passed.
    Limit,
}

/// What a watched run printed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub end: End,
    /// Lines with the time since the emulator's start at which each was complete.
    pub lines: Vec<(Duration, String)>,
}

impl Outcome {
    /// First line that contains `text`.
    pub fn line(&self, text: &str) -> Option<&str> {
        self.find(text).map(|(_, line)| line)
    }

    /// First line that contains `text`, and its time.
    pub fn find(&self, text: &str) -> Option<(Duration, &str)> {
        self.lines
            .iter()
            .find(|(_, line)| line.contains(text))
            .map(|(time, line)| (*time, line.as_str()))
    }
}

/// How a run is watched.
pub struct Watch<'a> {
    /// File that keeps what the console printed.
    pub log: &'a Path,
    /// Wall-clock limit.
    pub limit: Duration,
    /// Line at which the run is over even if the machine goes on, after `grace`.
    pub until: Option<&'a str>,
    /// Time left to the machine to power itself off after that line.
    pub grace: Duration,
    /// What to type.
    pub replies: &'a [Reply],
}

impl Watch<'_> {
    /// Runs the machine; `seen` is told each line.
    pub fn run(&self, machine: &Machine, mut seen: impl FnMut(&str)) -> Result<Outcome> {
        let mut command = machine.command()?;
        command.args(["-serial", "stdio", "-monitor", "none"]);
        let mut log = std::fs::File::create(self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start QEMU")?;
        let (send, receive) = mpsc::channel::<Vec<u8>>();
        if let Some(output) = child.stdout.take() {
            forward(output, send.clone());
        }
        if let Some(errors) = child.stderr.take() {
            forward(errors, send);
        }
        let mut keyboard = Keyboard {
            input: child.stdin.take(),
            replies: self.replies,
            answered: 0,
        };

        let mut outcome = Outcome {
            end: End::Off,
            lines: Vec::new(),
        };
        let mut partial = Vec::new();
        let mut deadline = start + self.limit;
        let mut end = End::Limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let bytes = match receive.recv_timeout(left) {
                Ok(bytes) => bytes,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    end = End::Off;
                    break;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => break,
            };
            log.write_all(&bytes)?;
            for byte in bytes {
                if byte != b'\n' {
                    partial.push(byte);
                    continue;
                }
                let line = clean(&partial);
                seen(&line);
                keyboard.answer(&partial, true)?;
                partial.clear();
                if self.until.is_some_and(|until| line.contains(until)) {
                    end = End::Seen;
                    deadline = deadline.min(Instant::now() + self.grace);
                }
                outcome.lines.push((start.elapsed(), line));
            }
            // A prompt is not followed by a line's end.
            keyboard.answer(&partial, false)?;
        }
        if !partial.is_empty() {
            outcome.lines.push((start.elapsed(), clean(&partial)));
        }
        outcome.end = end;
        if end != End::Off {
            // It may have ended by itself meanwhile, which is no error.
            let _ = child.kill();
        }
        child.wait()?;
        Ok(outcome)
    }
}

/// Types the replies, each once, in their order.
struct Keyboard<'a> {
    input: Option<std::process::ChildStdin>,
    replies: &'a [Reply],
    /// Bytes at the start of the present line that are answered already.
    answered: usize,
}

impl Keyboard<'_> {
    /// Types the next reply if the present line, complete or not, has what it waits for.
    fn answer(&mut self, line: &[u8], complete: bool) -> Result<()> {
        let text = clean(line.get(self.answered..).unwrap_or_default());
        if complete {
            self.answered = 0;
        }
        if let (Some((reply, rest)), Some(input)) =
            (self.replies.split_first(), self.input.as_mut())
            && text.contains(reply.wait_for)
        {
            input.write_all(reply.send.as_bytes())?;
            input.flush()?;
            self.replies = rest;
            if !complete {
                self.answered = line.len();
            }
        }
        Ok(())
    }
}

/// Sends everything that `from` gives, until its end.
fn forward(mut from: impl std::io::Read + Send + 'static, to: mpsc::Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = from.read(&mut buffer) {
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            if to.send(bytes.to_vec()).is_err() {
                break;
            }
        }
    });
}

/// A line without the terminal's control sequences.
fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut clean = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            if characters.next_if_eq(&'[').is_some() {
                while characters
                    .next()
                    .is_some_and(|next| !next.is_ascii_alphabetic())
                {}
            }
        } else if !character.is_control() || character == '\t' {
            clean.push(character);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_module_arguments_are_doubled() {
        assert_eq!(
            module(Path::new("/k"), "console=ttyS0,115200").unwrap(),
            "/k console=ttyS0,,115200"
        );
        assert_eq!(module(Path::new("/initramfs"), "").unwrap(), "/initramfs");
        assert!(module(Path::new("/a b"), "").is_err());
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("7.2.17"), Some([7, 2]));
        assert_eq!(version("10.0.2"), Some([10, 0]));
        assert_eq!(version("version"), None);
    }

    #[test]
    fn control_sequences_are_removed() {
        assert_eq!(clean(b"\x1b[2J\x1b[01;01Htext\r"), "text");
    }
}
