// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of the stack check on listings made by hand.

use super::*;

/// A function as objdump lists it.
fn listed(address: u64, name: &str, lines: &[&str]) -> String {
    let mut text = format!("\n{address:016x} <{name}>:\n");
    for (index, line) in lines.iter().enumerate() {
        writeln!(text, "{:x}:\t{line}", address + index as u64).unwrap();
    }
    text
}

fn graph(listing: &str, word: impl Fn(u64) -> Option<u64>) -> Result<Graph> {
    let mut functions = read(listing, word);
    settle_indirect(&mut functions)?;
    Graph::new(functions)
}

#[test]
fn the_deepest_chain_counts() {
    let listing = [
        listed(
            0x1000,
            "entry",
            &[
                "push   rbp",
                "sub    rsp,0x20",
                "call   2000 <small>",
                "lea    rax,[rip+0x1]        # 3000 <big>",
                "call   rax",
                "je     1000 <entry>",
            ],
        ),
        listed(0x2000, "small", &["sub    rsp,0x10", "ret"]),
        // A frame of three pages and 8 bytes, touched page by page.
        listed(
            0x3000,
            "big",
            &[
                "lea    r11,[rsp-0x3000]",
                "sub    rsp,0x1000",
                "jne    3001 <big+0x1>",
                "sub    rsp,0x8",
                "jmp    QWORD PTR [rip+0x5]        # 9000 <table>",
            ],
        ),
        listed(0x4000, "behind_a_table", &["push   rbx"]),
    ]
    .concat();
    let graph = graph(&listing, |address| (address == 0x9000).then_some(0x4000)).unwrap();
    let (depth, chain) = graph.deepest(&["entry"]).unwrap();
    assert_eq!(depth, (8 + 8 + 0x20) + (8 + 0x3000 + 8) + (8 + 8));
    assert!(chain.contains("big") && chain.contains("behind_a_table"));
    assert_eq!(graph.deepest(&["small"]).unwrap().0, 8 + 0x10);
    assert!(graph.deepest(&["nobody"]).is_err());
}

#[test]
fn what_is_not_known_is_refused() {
    let by_register = listed(0x1000, "entry", &["mov    rax,rdi", "call   rax"]);
    assert!(graph(&by_register, |_| None).is_err());
    let jump_table = listed(0x1000, "entry", &["add    rax,rcx", "jmp    rax"]);
    assert!(graph(&jump_table, |_| None).is_ok());
    let itself = listed(0x1000, "entry", &["call   1000 <entry>"]);
    assert!(graph(&itself, |_| None).is_err());
    let variable = listed(0x1000, "entry", &["sub    rsp,rax"]);
    let depth = graph(&variable, |_| None).unwrap().deepest(&["entry"]);
    assert!(depth.unwrap().0 > 1 << 30);
    let uncalled = listed(0x1000, "entry", &["ret"]);
    assert!(graph(&uncalled, |_| None).unwrap().all_reached().is_err());
}

#[test]
fn a_cycle_costs_its_rounds() {
    let listing = [
        listed(0x1000, "philoxen::lifecycle::destroy", &["call   2000 <b>"]),
        listed(
            0x2000,
            "b",
            &[
                "sub    rsp,0x100",
                "call   1000 <destroy>",
                "call   3000 <c>",
            ],
        ),
        listed(0x3000, "c", &["push   rbx"]),
    ]
    .concat();
    let graph = graph(&listing, |_| None).unwrap();
    assert_eq!(graph.deepest(&["b"]).unwrap().0, 2 * (8 + 8 + 0x100) + 16);
}
