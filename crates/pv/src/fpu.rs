// SPDX-License-Identifier: MIT OR Apache-2.0
//! FPU images that come from a guest or a tool, made safe to load.
//!
//! Invariant: after [`sanitise_fxsave`] and [`sanitise_xstate_header`] the processor accepts the image: reserved MXCSR and
//! header bits are clear.

/// MXCSR of an initialised FPU: all exceptions masked.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// MXCSR bits every processor has (the mask if FXSAVE stores 0).
pub const MXCSR_BASE_MASK: u32 = 0xffbf;
/// FCW of an initialised FPU.
pub const FCW_DEFAULT: u16 = 0x37f;

const FCW: core::ops::Range<usize> = 0..2;
const MXCSR: core::ops::Range<usize> = 24..28;
const MXCSR_MASK: core::ops::Range<usize> = 28..32;

/// The MXCSR bits a processor has, from the mask field of its FXSAVE image.
pub const fn mxcsr_mask(stored: u32) -> u32 {
    if stored == 0 { MXCSR_BASE_MASK } else { stored }
}

/// An image of an initialised FPU.
pub fn initial_fxsave() -> [u8; 512] {
    let mut image = [0; 512];
    put(&mut image, FCW, &FCW_DEFAULT.to_le_bytes());
    put(&mut image, MXCSR, &MXCSR_DEFAULT.to_le_bytes());
    image
}

/// Clears reserved MXCSR bits of an FXSAVE image; `mask` is the processor's [`mxcsr_mask`].
pub fn sanitise_fxsave(image: &mut [u8; 512], mask: u32) {
    if let Some(field) = image.get_mut(MXCSR)
        && let Ok(bytes) = <[u8; 4]>::try_from(&*field)
    {
        let value = u32::from_le_bytes(bytes) & mask;
        field.copy_from_slice(&value.to_le_bytes());
    }
    put(image, MXCSR_MASK, &mask.to_le_bytes());
}

/// The XSAVE header for an image of these components: standard form, limited to what the vCPU may have (`allowed`).
pub const fn sanitise_xstate_header(components: u64, allowed: u64) -> [u64; 8] {
    [components & allowed, 0, 0, 0, 0, 0, 0, 0]
}

fn put(image: &mut [u8; 512], range: core::ops::Range<usize>, bytes: &[u8]) {
    if let Some(field) = image.get_mut(range)
        && field.len() == bytes.len()
    {
        field.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_mxcsr_bits_go() {
        let mut image = [0xff; 512];
        sanitise_fxsave(&mut image, mxcsr_mask(0));
        assert_eq!(image[24..32], [0xbf, 0xff, 0, 0, 0xbf, 0xff, 0, 0]);
        assert_eq!(image[32], 0xff);
        let clean = initial_fxsave();
        assert_eq!(
            (clean[0], clean[1], clean[24], clean[25]),
            (0x7f, 3, 0x80, 0x1f)
        );
        let mut copy = clean;
        sanitise_fxsave(&mut copy, 0xffff);
        assert_eq!(copy[..28], clean[..28]);
        assert_eq!(
            sanitise_xstate_header(u64::MAX, 7),
            [7, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
