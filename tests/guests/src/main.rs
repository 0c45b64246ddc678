// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small PV kernels that test a hypervisor from inside. Each boot runs the theme that `test=<theme>` on the command
//! line names, prints `GUEST-TEST <theme> PASS` or `GUEST-TEST <theme> FAIL <reason>`, and powers off.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]

pub mod rt;
mod themes;

use rt::{check::Checks, hyper, memory, traps};

/// First Rust function: `info` is the address of start_info, `stack` what the builder set as stack pointer.
#[unsafe(no_mangle)]
extern "C" fn guest_main(info: u64, stack: u64) -> ! {
    memory::init(info);
    let mut buffer = [0; 1024];
    let line = memory::command_line(&mut buffer).expect("a terminated command line");
    let value = |key: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(key))
    };
    let name = value("test=").unwrap_or("boot");
    let Some((theme, run)) = themes::THEMES.iter().find(|(theme, _)| *theme == name) else {
        println!("GUEST-TEST {name} FAIL no such theme");
        hyper::power_off()
    };
    let mut checks = Checks::new(theme, line.split_whitespace().any(|word| word == "verbose"));
    themes::early(stack);
    traps::install();
    run(&mut checks);
    checks.verdict();
    hyper::power_off()
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("GUEST-TEST panic FAIL {info}");
    hyper::power_off()
}
