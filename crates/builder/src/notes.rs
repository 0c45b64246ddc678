// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Xen notes of a kernel (xen/elfnote.h), collected and checked.
//!
//! A note that is too short for its kind is an error with the note's name; unknown notes are skipped.

use crate::{
    BuildError,
    bytes::{slice, u32_at, u64_at, until_nul},
};
use philoxen_abi::elfnote;

/// `XENFEAT_auto_translated_physmap`.
const AUTO_TRANSLATED_PHYSMAP: u32 = 2;
/// `XENFEAT_supervisor_mode_kernel`.
const SUPERVISOR_MODE_KERNEL: u32 = 3;
/// `XENFEAT_dom0`.
const DOM0: u32 = 11;

/// Feature names of the FEATURES string, in the order of their bits (xen/features.h without `XENFEAT_`).
const FEATURE_NAMES: [(&[u8], u32); 14] = [
    (b"writable_page_tables", 0),
    (b"writable_descriptor_tables", 1),
    (b"auto_translated_physmap", AUTO_TRANSLATED_PHYSMAP),
    (b"supervisor_mode_kernel", SUPERVISOR_MODE_KERNEL),
    (b"pae_pgdir_above_4gb", 4),
    (b"mmu_pt_update_preserve_ad", 5),
    (b"highmem_assist", 6),
    (b"gnttab_map_avail_bits", 7),
    (b"hvm_callback_vector", 8),
    (b"hvm_safe_pvclock", 9),
    (b"hvm_pirqs", 10),
    (b"dom0", DOM0),
    (b"memory_op_vnode_supported", 13),
    (b"ARM_SMCCC_supported", 14),
];

/// What a kernel's Xen notes say. Addresses are virtual unless named otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelNotes<'a> {
    /// First instruction: ENTRY, else the ELF header's.
    pub entry: u64,
    /// Where pseudo-physical address 0 is mapped.
    pub virt_base: u64,
    /// Subtracted from ELF physical addresses.
    pub paddr_offset: u64,
    /// Page to fill with hypercall stubs.
    pub hypercall_page: Option<u64>,
    /// Where to map the phys-to-machine list; `None` puts it into the initial region.
    pub init_p2m: Option<u64>,
    /// The ramdisk may stay unmapped and be given by PFN.
    pub mod_start_pfn: bool,
    /// Lowest address at which the hypervisor's hole may begin.
    pub hv_start_low: Option<u64>,
    /// Bitmap of supported features: SUPPORTED_FEATURES and FEATURES together.
    pub supported: u64,
    /// Bitmap of required features, from FEATURES.
    pub required: u64,
    /// SUPPORTED_FEATURES is present, so its dom0 bit counts.
    pub has_supported_note: bool,
    /// Mask and value that tell which non-present L1 entries hold an MFN.
    pub l1_mfn_valid: Option<(u64, u64)>,
    /// A suspend may be cancelled.
    pub suspend_cancel: bool,
    /// Name of the guest operating system.
    pub guest_os: &'a str,
    /// Its version.
    pub guest_version: &'a str,
    /// Kind of loader.
    pub loader: &'a str,
    /// PAE_MODE is present and does not say "no" (decides on the magic string's suffix).
    pub pae: bool,
    /// Physical entry point for PVH.
    pub phys32_entry: Option<u64>,
}

impl KernelNotes<'_> {
    /// Checks that the kernel can run as a PV guest of this hypervisor.
    ///
    /// # Errors
    /// [`BuildError::NotDom0`] for a kernel that says it cannot be Domain 0 when it shall be; a required
    /// feature that only other guest types have; a hole that begins too high.
    pub fn check(&self, dom0: bool) -> Result<(), BuildError> {
        if dom0 && self.has_supported_note && self.supported & (1 << DOM0) == 0 {
            return Err(BuildError::NotDom0);
        }
        // Linux writes "!writable_page_tables", but runs without: only what changes the guest type is refused.
        for (bit, name) in [
            (AUTO_TRANSLATED_PHYSMAP, "auto_translated_physmap"),
            (SUPERVISOR_MODE_KERNEL, "supervisor_mode_kernel"),
        ] {
            if self.required & (1 << bit) != 0 {
                return Err(BuildError::NeedsFeature(name));
            }
        }
        if self
            .hv_start_low
            .is_some_and(|low| low > philoxen_abi::addr::HYPERVISOR_START)
        {
            return Err(BuildError::BadNote("HV_START_LOW"));
        }
        Ok(())
    }
}

/// Gathers notes from several blocks.
pub struct Collector<'a> {
    notes: KernelNotes<'a>,
    /// Bit set of the note types seen.
    seen: u32,
}

impl<'a> Collector<'a> {
    /// No notes yet; `entry` is the ELF header's entry point.
    pub fn new(entry: u64) -> Self {
        let notes = KernelNotes {
            entry,
            virt_base: 0,
            paddr_offset: 0,
            hypercall_page: None,
            init_p2m: None,
            mod_start_pfn: false,
            hv_start_low: None,
            supported: 0,
            required: 0,
            has_supported_note: false,
            l1_mfn_valid: None,
            suspend_cancel: false,
            guest_os: "",
            guest_version: "",
            loader: "",
            pae: false,
            phys32_entry: None,
        };
        Self { notes, seen: 0 }
    }

    /// True once a Xen note has been seen.
    pub const fn found(&self) -> bool {
        self.seen != 0
    }

    /// Adds the notes of one segment or section: headers of name size, value size and type, both padded to 4 bytes.
    pub fn add_block(&mut self, block: &'a [u8]) -> Result<(), BuildError> {
        const CUT: BuildError = BuildError::BadElf("a note is longer than its segment");
        let pad = |size: u32| (u64::from(size) + 3) & !3;
        let mut at = 0;
        while at + 12 <= block.len() as u64 {
            let (namesz, descsz, kind) = match (
                u32_at(block, at),
                u32_at(block, at + 4),
                u32_at(block, at + 8),
            ) {
                (Some(namesz), Some(descsz), Some(kind)) => (namesz, descsz, kind),
                _ => return Err(CUT),
            };
            let name = slice(block, at + 12, u64::from(namesz)).ok_or(CUT)?;
            let desc_at = at + 12 + pad(namesz);
            let desc = slice(block, desc_at, u64::from(descsz)).ok_or(CUT)?;
            at = desc_at + pad(descsz);
            if until_nul(name) == elfnote::OWNER {
                self.add(kind, desc)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, kind: u32, desc: &'a [u8]) -> Result<(), BuildError> {
        let notes = &mut self.notes;
        let number = |name| {
            match desc.len() {
                4 => u32_at(desc, 0).map(u64::from),
                8 => u64_at(desc, 0),
                _ => None,
            }
            .ok_or(BuildError::BadNote(name))
        };
        let text = core::str::from_utf8(until_nul(desc)).unwrap_or_default();
        match kind {
            elfnote::ENTRY => notes.entry = number("ENTRY")?,
            elfnote::HYPERCALL_PAGE => notes.hypercall_page = Some(number("HYPERCALL_PAGE")?),
            elfnote::VIRT_BASE => notes.virt_base = number("VIRT_BASE")?,
            elfnote::PADDR_OFFSET => notes.paddr_offset = number("PADDR_OFFSET")?,
            elfnote::XEN_VERSION if !until_nul(desc).starts_with(elfnote::VERSION_3) => {
                return Err(BuildError::BadNote("XEN_VERSION"));
            }
            elfnote::GUEST_OS => notes.guest_os = text,
            elfnote::GUEST_VERSION => notes.guest_version = text,
            elfnote::LOADER => notes.loader = text,
            elfnote::PAE_MODE => notes.pae = text != "no",
            elfnote::FEATURES => {
                let (supported, required) = features(until_nul(desc));
                notes.supported |= supported;
                notes.required |= required;
            }
            elfnote::HV_START_LOW => notes.hv_start_low = Some(number("HV_START_LOW")?),
            elfnote::L1_MFN_VALID => {
                notes.l1_mfn_valid = u64_at(desc, 0).zip(u64_at(desc, 8));
            }
            elfnote::SUSPEND_CANCEL => notes.suspend_cancel = number("SUSPEND_CANCEL")? != 0,
            elfnote::INIT_P2M => notes.init_p2m = Some(number("INIT_P2M")?),
            elfnote::MOD_START_PFN => notes.mod_start_pfn = number("MOD_START_PFN")? != 0,
            elfnote::SUPPORTED_FEATURES => {
                notes.supported |= number("SUPPORTED_FEATURES")?;
                notes.has_supported_note = true;
            }
            elfnote::PHYS32_ENTRY => notes.phys32_entry = Some(number("PHYS32_ENTRY")?),
            _ => {}
        }
        self.seen |= 1u32.checked_shl(kind).unwrap_or(0);
        Ok(())
    }

    /// The notes, if they describe a PV kernel: an entry or base address besides PVH's.
    pub fn finish(self) -> Result<KernelNotes<'a>, BuildError> {
        let pv = 1 << elfnote::ENTRY | 1 << elfnote::VIRT_BASE | 1 << elfnote::HYPERCALL_PAGE;
        if self.seen & (pv | 1 << elfnote::XEN_VERSION) == 0 {
            return Err(match self.notes.phys32_entry {
                Some(_) => BuildError::OnlyPvh,
                None => BuildError::NoXenNotes,
            });
        }
        if self.seen & pv == 0 && self.notes.phys32_entry.is_some() {
            return Err(BuildError::OnlyPvh);
        }
        Ok(self.notes)
    }
}

/// Supported and required features of a FEATURES string; unknown names are ignored.
fn features(list: &[u8]) -> (u64, u64) {
    let mut supported = 0;
    let mut required = 0;
    for item in list.split(|&b| b == b'|') {
        let name = item.strip_prefix(b"!").unwrap_or(item);
        let bit = FEATURE_NAMES.iter().find(|(known, _)| *known == name);
        let mask = bit.map_or(0, |&(_, bit)| 1 << bit);
        supported |= mask;
        if name.len() != item.len() {
            required |= mask;
        }
    }
    (supported, required)
}
