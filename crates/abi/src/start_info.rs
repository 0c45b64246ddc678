// SPDX-License-Identifier: MIT OR Apache-2.0
//! The start-of-day page of a PV guest (xen/xen.h, `struct start_info` and `struct dom0_vga_console_info`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SIF_PRIVILEGED`: the domain is privileged.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// `SIF_INITDOMAIN`: the domain is the initial control domain.
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// `SIF_MULTIBOOT_MOD`: `mod_start` is a package of multiboot modules.
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
/// `SIF_MOD_START_PFN`: `mod_start` is a PFN, not a virtual address.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
/// `SIF_VIRT_P2M_4TOOLS`: tools understand a virtually mapped phys-to-machine list.
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;
/// `SIF_PM_MASK`: power management options of the initial domain (`XEN_PROCESSOR_PM_*`).
pub const SIF_PM_MASK: u32 = 0xff << 8;
/// Shift of the options in [`SIF_PM_MASK`].
pub const SIF_PM_SHIFT: u32 = 8;

/// `MAX_GUEST_CMDLINE`: bytes of the command line with its NUL.
pub const MAX_GUEST_CMDLINE: usize = 1024;

/// `magic` of the initial domain.
pub const MAGIC_DOM0: &[u8] = b"xen-3.0-x86_64p";
/// `magic` of other domains.
pub const MAGIC_DOMU: &[u8] = b"xen-3.0-x86_64";

/// `struct start_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StartInfo {
    /// `xen-<version>-<platform>`, NUL padded.
    pub magic: [u8; 32],
    /// Pages allocated to the domain.
    pub nr_pages: u64,
    /// Machine address of the `shared_info` frame.
    pub shared_info: u64,
    /// `SIF_*`.
    pub flags: u32,
    /// Padding.
    pub pad0: u32,
    /// MFN of the xenstore page; 0 in the initial domain.
    pub store_mfn: u64,
    /// Event channel of the xenstore page.
    pub store_evtchn: u32,
    /// Padding.
    pub pad1: u32,
    /// The console union.
    pub console: StartConsole,
    /// Virtual address of the L4 table.
    pub pt_base: u64,
    /// Page-table frames of the initial mapping.
    pub nr_pt_frames: u64,
    /// Virtual address of the phys-to-machine list.
    pub mfn_list: u64,
    /// Virtual address of the ramdisk, or its PFN under [`SIF_MOD_START_PFN`].
    pub mod_start: u64,
    /// Bytes of the ramdisk.
    pub mod_len: u64,
    /// NUL-terminated command line.
    pub cmd_line: [u8; MAX_GUEST_CMDLINE],
    /// First PFN of the frames of the phys-to-machine list and its page tables.
    pub first_p2m_pfn: u64,
    /// Number of those frames.
    pub nr_p2m_frames: u64,
}

/// The console union of [`StartInfo`]: 16 bytes read in one of two ways.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StartConsole {
    /// MFN of the console page; in the initial domain `info_off` (low half) and `info_size` (high half).
    pub word: u64,
    /// Event channel of the console page; 0 in the initial domain.
    pub evtchn: u32,
    /// Padding.
    pub pad: u32,
}

impl StartConsole {
    /// The initial domain's form: a [`VgaConsoleInfo`] of `size` bytes lies `offset` bytes after the structure's start.
    pub const fn dom0(offset: u32, size: u32) -> Self {
        Self {
            word: offset as u64 | (size as u64) << 32,
            evtchn: 0,
            pad: 0,
        }
    }
    /// Other domains' form.
    pub const fn domu(mfn: u64, evtchn: u32) -> Self {
        Self {
            word: mfn,
            evtchn,
            pad: 0,
        }
    }
}

const _: () = assert!(size_of::<StartInfo>() == 0x490);
const _: () = assert!(core::mem::offset_of!(StartInfo, flags) == 48);
const _: () = assert!(core::mem::offset_of!(StartInfo, console) == 72);
const _: () = assert!(core::mem::offset_of!(StartInfo, cmd_line) == 128);

/// `XEN_VGATYPE_TEXT_MODE_3`: 80-column VGA text.
pub const VGATYPE_TEXT_MODE_3: u8 = 0x03;
/// `XEN_VGATYPE_VESA_LFB`: a linear frame buffer set up by VBE.
pub const VGATYPE_VESA_LFB: u8 = 0x23;
/// `XEN_VGATYPE_EFI_LFB`: a linear frame buffer set up by EFI.
pub const VGATYPE_EFI_LFB: u8 = 0x70;

/// `struct dom0_vga_console_info`: the screen as the boot loader left it. Its body depends on `video_type`:
/// see [`VgaConsoleInfo::text`] and [`VgaConsoleInfo::framebuffer`].
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VgaConsoleInfo {
    /// `XEN_VGATYPE_*`.
    pub video_type: u8,
    /// Padding.
    pub pad: [u8; 3],
    /// The union's bytes.
    pub body: [u8; 36],
}

/// `u.text_mode_3` of [`VgaConsoleInfo`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TextMode {
    /// Font height in pixels.
    pub font_height: u16,
    /// Cursor column.
    pub cursor_x: u16,
    /// Cursor row.
    pub cursor_y: u16,
    /// Rows of characters.
    pub rows: u16,
    /// Columns of characters.
    pub columns: u16,
}

/// `u.vesa_lfb` of [`VgaConsoleInfo`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Framebuffer {
    /// Width in pixels.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
    /// Bytes per scan line.
    pub bytes_per_line: u16,
    /// Bits per pixel.
    pub bits_per_pixel: u16,
    /// Low half of the physical address.
    pub lfb_base: u32,
    /// Size in units of 64 KiB.
    pub lfb_size: u32,
    /// Position and size in bits of red, green, blue and reserved, as VBE 1.2 defines them.
    pub masks: [u8; 8],
    /// VESA capabilities.
    pub gbl_caps: u32,
    /// VESA mode attributes.
    pub mode_attrs: u16,
    /// Padding.
    pub pad: u16,
    /// High half of the physical address.
    pub ext_lfb_base: u32,
}

const _: () = assert!(size_of::<VgaConsoleInfo>() == 0x28);
const _: () = assert!(size_of::<TextMode>() == 10);
const _: () = assert!(size_of::<Framebuffer>() == 36);

impl VgaConsoleInfo {
    /// A text-mode screen. The union is aligned to 4 bytes, its text member starts at its first byte.
    pub fn text(mode: TextMode) -> Self {
        Self::with_body(VGATYPE_TEXT_MODE_3, mode.as_bytes())
    }
    /// A frame buffer of type `video_type`.
    pub fn framebuffer(video_type: u8, mode: Framebuffer) -> Self {
        Self::with_body(video_type, mode.as_bytes())
    }
    fn with_body(video_type: u8, bytes: &[u8]) -> Self {
        let mut body = [0; 36];
        for (to, from) in body.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self {
            video_type,
            pad: [0; 3],
            body,
        }
    }
}
