// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's use of its stacks, computed from the linked image: an overflow is found here and not by a guest.
//!
//! The disassembly gives each function's frame (what it pushes and subtracts) and its calls. A function whose address
//! another one takes counts as called by it. What the code cannot say is in two tables: [`INDIRECT`], who may be behind a
//! call through memory or a register, and [`RECURSION`], how deep functions that call themselves go. A call or a
//! cycle that neither knows fails the check. The figure for each stack is the deepest chain of calls from its entry
//! points, plus the exception that may come on top, plus a panic's report; the sizes come from the image's symbols.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

use crate::build;
use crate::host::{self, Tree};

/// An entry's register frame, the return address, and what the alignment of the stack costs.
const ENTRY: u64 = 176 + 8 + 16;
/// Bytes of every stack that stay unused.
const MARGIN: u64 = 512;
/// Where the report of a panic begins; calls to it end a chain and count once on top of the deepest.
const PANIC: &[&str] = &[
    "__rustc::__rust_alloc_error_handler",
    "__rustc::rust_begin_unwind",
    "philoxen::fatal::report",
    "philoxen_fatal",
];
/// Where the deepest chain from each entry point is written to, below the target directory.
const REPORT: &str = "stack.txt";
/// Frames that the report lists by size.
const BIGGEST: usize = 30;
/// The exception that may come on top of any chain.
const ON_TOP: &str = "philoxen_hypervisor_trap";
/// Assembly: pushes the register frame only, [`ENTRY`].
const ASSEMBLY: &[&str] = &[
    "hw_entry32",
    "philoxen_stubs",
    "philoxen_enter",
    "philoxen_sysenter",
    "philoxen_syscall_stubs",
    "philoxen_start_high",
];

/// A stack: the symbol whose value is its size in bytes, and the functions that run on it first.
struct Stack {
    size: &'static str,
    roots: &'static [&'static str],
}

const STACKS: &[Stack] = &[
    Stack {
        size: "philoxen_main_stack_bytes",
        roots: &[
            "philoxen_syscall",
            "philoxen_trap",
            "philoxen_iret_fault",
            "philoxen_first",
            "philoxen::start::on_main_stack",
            "philoxen_started",
        ],
    },
    Stack {
        size: "philoxen_small_stack_bytes",
        roots: &[ON_TOP],
    },
    Stack {
        size: "philoxen_boot_stack_bytes",
        roots: &["hw_boot"],
    },
];

/// Callers by a part of their names, and parts of the names of those whom their indirect calls may reach.
const INDIRECT: &[(&str, &[&str])] = &[
    // Debug keys.
    ("philoxen::cpu::Cpu::rare_work", &["philoxen::keys::"]),
    ("philoxen::keys::run", &["philoxen::keys::"]),
    // What a processor does once it has started.
    ("philoxen_started", &["philoxen::smp::on_new_processor"]),
    // The log's clock, and the flush before a frame is used again: both set at boot.
    ("philoxen::start::main", &["philoxen::time::now"]),
    ("philoxen_hw::log::", &["philoxen::time::now"]),
    (
        "philoxen_hw::memory::",
        &["core::ops::function::FnOnce::call_once"],
    ),
    // Boxed errors of the zstd decoder.
    (
        "philoxen_builder::image::unpack",
        &["memset", "__rust_dealloc"],
    ),
    ("FrameDecoderError", &["__rust_dealloc"]),
];

/// Cycles by a part of one of their functions' names, and how often the cycle is gone through at most.
const RECURSION: &[(&str, u64)] = &[
    // A table of each of the four levels.
    ("philoxen_paging::validate::", 4),
    // Destruction frees the last grant of a dead domain, whose own mappings have gone before it was dead.
    ("philoxen::lifecycle::destroy", 2),
    // A grant table has no mappings any more when it goes.
    ("alloc::sync::Arc", 2),
    // Sorting the firmware's memory map: twice the logarithm of the 256 addresses, and of eight times fewer.
    ("unstable::quicksort", 16),
    ("pivot::median3_rec", 8),
    // A dictionary's end and the rest; a separator at the text's end.
    ("DecodeBuffer::repeat", 2),
    ("SplitInternal", 2),
];

/// Functions that no stack needs to know: the boot assembly and its data, and destructors that only tables of methods name.
const UNCALLED: &[&str] = &[
    "hw_",
    "core::ptr::drop_in_place",
    "philoxen_start_high",
    "philoxen_wait",
];

/// Formatting calls itself through tables of function pointers. Its depth is that of the nesting of what is printed;
/// a chain of this many of the biggest frames among all formatting functions is deeper than any of our types.
const FORMAT_DEPTH: usize = 12;
const FORMAT: &[&str] = &["core::fmt::", " as core::fmt::"];

/// What the image holds besides its code.
struct Data<'a> {
    file: ElfFile64<'a>,
}

impl Data<'_> {
    /// The eight bytes at a virtual address.
    fn word(&self, address: u64) -> Option<u64> {
        self.file.segments().find_map(|segment| {
            let bytes = segment.data_range(address, 8).ok()??;
            bytes.try_into().map(u64::from_le_bytes).ok()
        })
    }

    /// Value of a symbol.
    fn symbol(&self, name: &str) -> Option<u64> {
        let mut symbols = self.file.symbols();
        let symbol = symbols.find(|symbol| symbol.name() == Ok(name))?;
        Some(symbol.address())
    }
}

/// Address that stands for all formatting.
const FORMATTING: u64 = 0;
/// Bytes of a page, the step in which the start of a big frame is touched.
const PAGE: u64 = 4096;
/// What a frame that aligns the stack itself may lose.
const ALIGNMENT: u64 = 64;

/// A function of the image.
#[derive(Debug, Default, PartialEq, Eq)]
struct Function {
    name: String,
    /// Bytes it takes of the stack, the return address included.
    frame: u64,
    calls: BTreeSet<u64>,
    /// Places of calls whose target the code does not say.
    indirect: Vec<u64>,
}

/// All functions by address.
type Functions = BTreeMap<u64, Function>;

/// `lint/stack`.
pub fn check(tree: &Tree) -> Result<()> {
    let built = build::hypervisor(tree)?;
    let listing = host::capture(
        Command::new("objdump")
            .args(["--disassemble", "--no-show-raw-insn"])
            .arg("--disassembler-options=intel")
            .arg(&built.debug),
    )?;
    let bytes = std::fs::read(&built.debug)?;
    let data = Data {
        file: ElfFile64::parse(&*bytes)?,
    };
    let mut functions = read(&listing, |address| data.word(address));
    settle_indirect(&mut functions)?;
    let graph = Graph::new(functions)?;
    let (mut complaints, mut report) = (String::new(), graph.biggest());
    let on_top = ENTRY + graph.deepest(&[ON_TOP])?.0;
    let panic = graph.deepest(PANIC)?.0;
    graph.all_reached()?;
    for stack in STACKS {
        let size = data
            .symbol(stack.size)
            .with_context(|| format!("the image has no symbol {}", stack.size))?;
        let (depth, chain) = graph.deepest(stack.roots)?;
        let most = ENTRY + depth + on_top.max(panic);
        println!("{}: {most} of {size} bytes at most", stack.size);
        if most + MARGIN > size {
            writeln!(complaints, "{}: {most} of {size}:{chain}", stack.size)?;
        }
        for root in stack.roots {
            let (depth, chain) = graph.deepest(&[root])?;
            writeln!(report, "\n{depth} bytes from {root}:{chain}")?;
        }
    }
    std::fs::write(tree.target.join(REPORT), report)?;
    ensure!(complaints.is_empty(), "{complaints}");
    Ok(())
}

/// Reads objdump's listing; `word` gives the contents of the image's tables of addresses.
fn read(listing: &str, word: impl Fn(u64) -> Option<u64>) -> Functions {
    let mut functions: Functions = listing
        .lines()
        .filter_map(label)
        .map(|(address, name)| {
            let name = format!("{:#}", rustc_demangle::demangle(name));
            let function = Function {
                name,
                frame: 8,
                ..Function::default()
            };
            (address, function)
        })
        .collect();
    let starts: BTreeSet<u64> = functions.keys().copied().collect();
    let mut here = 0;
    let mut loaded = BTreeSet::new();
    // A jump table's entries are offsets: they are added to the table's address shortly before the jump.
    let mut added = [""; 12];
    for line in listing.lines() {
        if let Some((address, _)) = label(line) {
            here = address;
            loaded.clear();
            continue;
        }
        let (Some(function), Some((place, text))) = (
            functions.get_mut(&here),
            line.trim_start().split_once(":\t"),
        ) else {
            continue;
        };
        let (operation, operands) = text.split_once(' ').unwrap_or((text, ""));
        let operands = operands.trim();
        let (operands, comment) = operands.split_once('#').unwrap_or((operands, ""));
        let operands = operands.trim();
        let refers = number(comment.trim());
        let target = refers
            .filter(|address| starts.contains(address))
            .or_else(|| {
                refers
                    .filter(|_| operation != "lea")
                    .and_then(&word)
                    .filter(|address| starts.contains(address))
            });
        function.calls.extend(target.filter(|&to| to != here));
        match operation {
            "push" => function.frame += 8,
            "sub" => function.frame += subtracted(operands),
            "and" if operands.starts_with("rsp,") => function.frame += ALIGNMENT,
            // The loop that touches each page of a big frame goes down to here, a page at a time.
            "lea" if operands.starts_with("r11,[rsp-") => {
                let below = operands.trim_start_matches("r11,[rsp-");
                function.frame += number(below).unwrap_or(0).saturating_sub(PAGE);
            }
            "mov" | "lea" if target.is_some() => {
                loaded.extend(operands.split_once(',').map(|(to, _)| to));
            }
            _ => {}
        }
        let jump = operation.starts_with('j');
        if operation == "call" || jump {
            match number(operands) {
                Some(to) if starts.contains(&to) && (to != here || !jump) => {
                    function.calls.insert(to);
                }
                Some(_) => {}
                None if target.is_some() || loaded.contains(operands) => {}
                None if jump && added.contains(&operands) => {}
                None => function.indirect.extend(u64::from_str_radix(place, 16)),
            }
        }
        added.rotate_right(1);
        added[0] = match operation {
            "add" => operands.split_once(',').map_or("", |(to, _)| to),
            _ => "",
        };
    }
    functions
}

/// A function's first line: its address and name.
fn label(line: &str) -> Option<(u64, &str)> {
    let (address, name) = line.strip_suffix(">:")?.split_once(" <")?;
    Some((u64::from_str_radix(address, 16).ok()?, name))
}

/// The hexadecimal number that `text` begins with, if that is an address or a constant.
fn number(text: &str) -> Option<u64> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    let end = text
        .find(|character: char| !character.is_ascii_hexdigit())
        .unwrap_or(text.len());
    let follows = text.get(end..)?;
    if !(follows.is_empty() || follows.starts_with([' ', ']'])) {
        return None;
    }
    u64::from_str_radix(text.get(..end)?, 16).ok()
}

/// What `sub` with these operands takes of the stack.
fn subtracted(operands: &str) -> u64 {
    match operands.strip_prefix("rsp,") {
        // A frame whose size is not a constant has no bound.
        Some(amount) => number(amount).unwrap_or(1 << 32),
        None => 0,
    }
}

fn matches(name: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| name.contains(part))
}

/// Puts in the place of indirect calls what the tables say, and one function in the place of all formatting.
///
/// # Errors
/// The places of indirect calls that no table explains.
fn settle_indirect(functions: &mut Functions) -> Result<()> {
    let (format, rest): (Functions, Functions) = std::mem::take(functions)
        .into_iter()
        .partition(|(_, function)| matches(&function.name, FORMAT));
    let mut sizes: Vec<u64> = format.values().map(|function| function.frame).collect();
    sizes.sort_unstable();
    let calls = format.values().flat_map(|function| &function.calls);
    let formatting = Function {
        name: "(formatting)".to_owned(),
        frame: sizes.iter().rev().take(FORMAT_DEPTH).sum(),
        calls: calls
            .filter(|to| !format.contains_key(to))
            .copied()
            .collect(),
        indirect: Vec::new(),
    };
    let names: Vec<(u64, String)> = rest
        .iter()
        .map(|(address, function)| (*address, function.name.clone()))
        .collect();
    let mut unknown = String::new();
    *functions = rest;
    for (address, function) in &mut *functions {
        let known = INDIRECT
            .iter()
            .find(|(caller, _)| function.name.contains(caller));
        match known {
            _ if function.indirect.is_empty() || ASSEMBLY.contains(&&*function.name) => {}
            Some((_, callees)) => {
                let known = names.iter().filter(|(_, name)| matches(name, callees));
                function
                    .calls
                    .extend(known.map(|(to, _)| *to).filter(|to| to != address));
            }
            None => write!(unknown, "\n  {} at {:x?}", function.name, function.indirect)?,
        }
        if function.calls.iter().any(|to| format.contains_key(to)) {
            function.calls.retain(|to| !format.contains_key(to));
            function.calls.insert(FORMATTING);
        }
    }
    functions.insert(FORMATTING, formatting);
    ensure!(
        unknown.is_empty(),
        "indirect calls of unknown targets:{unknown}"
    );
    Ok(())
}

/// The calls, each cycle joined to one group.
struct Graph {
    /// Group of each function.
    group: BTreeMap<u64, usize>,
    functions: Functions,
    /// Callees before callers.
    groups: Vec<Group>,
}

/// Functions that call each other, or one function.
struct Group {
    members: Vec<u64>,
    /// Bytes of its own, all rounds of a cycle included.
    own: u64,
    /// With the deepest chain of calls out of it.
    total: u64,
    /// Where that chain goes on.
    next: Option<usize>,
}

impl Graph {
    fn new(mut functions: Functions) -> Result<Self> {
        // Assembly is not followed; a panic's report counts on its own.
        let ends: BTreeSet<u64> = functions
            .iter()
            .filter(|(_, function)| PANIC.contains(&&*function.name))
            .map(|(address, _)| *address)
            .collect();
        for function in functions.values_mut() {
            function.calls.retain(|to| !ends.contains(to));
            if ASSEMBLY.contains(&&*function.name) {
                function.calls.clear();
            }
        }
        let mut search = Search {
            functions: &functions,
            order: BTreeMap::new(),
            low: BTreeMap::new(),
            open: Vec::new(),
            found: Vec::new(),
        };
        for &address in functions.keys() {
            search.visit(address);
        }
        let found = search.found;
        let mut graph = Self {
            group: BTreeMap::new(),
            functions,
            groups: Vec::new(),
        };
        let mut unknown = String::new();
        for members in found {
            if !graph.join(members.clone()) {
                let names: Vec<&str> = members.iter().map(|at| graph.name(*at)).collect();
                write!(unknown, "\n  {}", names.join(", "))?;
            }
        }
        ensure!(
            unknown.is_empty(),
            "functions that call themselves, how deep is not known:{unknown}"
        );
        Ok(graph)
    }

    fn name(&self, address: u64) -> &str {
        self.functions
            .get(&address)
            .map_or("?", |function| &function.name)
    }

    /// Adds a group whose callees are known; false if it is a cycle of unknown depth.
    fn join(&mut self, members: Vec<u64>) -> bool {
        let of: Vec<&Function> = members
            .iter()
            .filter_map(|at| self.functions.get(at))
            .collect();
        let cycle = of
            .iter()
            .any(|function| function.calls.iter().any(|to| members.contains(to)));
        let rounds = RECURSION
            .iter()
            .find(|(part, _)| of.iter().any(|function| function.name.contains(part)));
        let rounds = match (cycle, rounds) {
            (false, _) => 1,
            (true, Some((_, rounds))) => *rounds,
            (true, None) => return false,
        };
        let own = of.iter().map(|function| function.frame).sum::<u64>() * rounds;
        let next = of
            .iter()
            .flat_map(|function| &function.calls)
            .filter_map(|to| self.group.get(to).copied())
            .max_by_key(|&group| self.total(group));
        let total = own + next.map_or(0, |next| self.total(next));
        let number = self.groups.len();
        self.group.extend(members.iter().map(|at| (*at, number)));
        self.groups.push(Group {
            members,
            own,
            total,
            next,
        });
        true
    }

    fn total(&self, group: usize) -> u64 {
        self.groups.get(group).map_or(0, |group| group.total)
    }

    /// Checks that every function is called by someone: one that is not may be an entry point that no stack knows.
    fn all_reached(&self) -> Result<()> {
        let roots = STACKS.iter().flat_map(|stack| stack.roots).chain(PANIC);
        let mut open: Vec<u64> = roots
            .flat_map(|root| self.functions.iter().filter(|(_, f)| f.name == **root))
            .map(|(at, _)| *at)
            .collect();
        let mut seen: BTreeSet<u64> = open.iter().copied().collect();
        while let Some(at) = open.pop() {
            let function = self.functions.get(&at);
            for to in function.into_iter().flat_map(|function| &function.calls) {
                if seen.insert(*to) {
                    open.push(*to);
                }
            }
        }
        let unknown: String = self
            .functions
            .iter()
            .filter(|(at, function)| !seen.contains(at) && !matches(&function.name, UNCALLED))
            .map(|(_, function)| format!("\n  {}", function.name))
            .collect();
        ensure!(unknown.is_empty(), "functions that nobody calls:{unknown}");
        Ok(())
    }

    /// The biggest frames, line by line.
    fn biggest(&self) -> String {
        let mut all: Vec<&Function> = self.functions.values().collect();
        all.sort_by_key(|function| std::cmp::Reverse(function.frame));
        let line = |function: &&Function| format!("{:6} {}\n", function.frame, function.name);
        all.iter().take(BIGGEST).map(line).collect()
    }

    /// The deepest chain from one of these functions: bytes, and its functions line by line.
    fn deepest(&self, roots: &[&str]) -> Result<(u64, String)> {
        let mut deepest = None;
        for root in roots {
            let (at, _) = self
                .functions
                .iter()
                .find(|(_, function)| function.name == *root)
                .with_context(|| format!("the image has no function {root}"))?;
            let group = self.group.get(at).copied();
            deepest = deepest.max(group.map(|group| (self.total(group), group)));
        }
        let (total, mut group) = deepest.context("a stack without roots")?;
        let mut chain = String::new();
        while let Some(at) = self.groups.get(group) {
            let names: Vec<&str> = at.members.iter().map(|at| self.name(*at)).collect();
            write!(chain, "\n  {:6} {}", at.own, names.join(", "))?;
            let Some(next) = at.next else { break };
            group = next;
        }
        Ok((total, chain))
    }
}

/// Tarjan's search for cycles: groups come out callees first.
struct Search<'a> {
    functions: &'a Functions,
    order: BTreeMap<u64, usize>,
    low: BTreeMap<u64, usize>,
    open: Vec<u64>,
    found: Vec<Vec<u64>>,
}

impl Search<'_> {
    /// Looks at a function and all it calls; how early a function of an unfinished group can be reached from it.
    fn visit(&mut self, address: u64) -> usize {
        if self.order.contains_key(&address) {
            return if self.open.contains(&address) {
                self.low.get(&address).copied().unwrap_or(usize::MAX)
            } else {
                usize::MAX
            };
        }
        let number = self.order.len();
        self.order.insert(address, number);
        self.low.insert(address, number);
        self.open.push(address);
        let calls = self.functions.get(&address);
        let mut low = number;
        for to in calls.into_iter().flat_map(|function| &function.calls) {
            low = low.min(self.visit(*to));
            self.low.insert(address, low);
        }
        if low == number {
            let first = self.open.iter().rposition(|at| *at == address);
            self.found.push(self.open.split_off(first.unwrap_or(0)));
        }
        low
    }
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
