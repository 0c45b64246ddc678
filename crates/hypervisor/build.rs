// SPDX-License-Identifier: MIT OR Apache-2.0
//! Passes the symbol blob on to the binary: `cargo xtask build` makes it from a first link and names its file in
//! `PHILOXEN_SYMBOLS`; without that, the blob is empty and backtraces show addresses only.

use std::{env, fs, path::PathBuf};

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-env-changed=PHILOXEN_SYMBOLS");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("symbols.bin");
    match env::var_os("PHILOXEN_SYMBOLS") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", PathBuf::from(&path).display());
            fs::copy(path, out)?;
        }
        None => fs::write(out, 0u32.to_le_bytes())?,
    }
    Ok(())
}
