// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hands the linker script on when the kernel is built for the bare machine.

fn main() {
    println!("cargo:rerun-if-changed=guest.ld");
    println!("cargo:rerun-if-changed=build.rs");
    let bare = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    if let (true, Ok(directory)) = (bare, std::env::var("CARGO_MANIFEST_DIR")) {
        println!("cargo:rustc-link-arg=-T{directory}/guest.ld");
        println!("cargo:rustc-link-arg=-zmax-page-size=4096");
        println!("cargo:rustc-link-arg=--build-id=none");
    }
}
