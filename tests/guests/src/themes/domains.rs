// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two kernels: this one, as Domain 0, makes another by domctl alone, and they deal with each other by events and grants,
//! until the other one dies with its frames mapped here.
//!
//! The other kernel is a puppet: it makes the hypercalls that it finds in a page that both see, and sends an event after
//! each. So every check is written here, whoever makes the call.

use crate::rt::domctl::{self, create, domctl, fill, free_pages, info, map_foreign, populate};
use crate::rt::hyper::{self, MmuExt, ext};
use crate::rt::memory::{self, KERNEL_CS, KERNEL_SS, PAGE, Page, pte};
use crate::rt::{check::Checks, events, time};
use crate::themes::pagetypes::try_read;
use core::arch::global_asm;
use philoxen_abi::hypercall as nr;

const DESTROY: u64 = 2;
const PAUSE: u64 = 3;
const UNPAUSE: u64 = 4;
const MAX_MEM: u64 = 11;
const SET_CONTEXT: u64 = 12;
const MAX_VCPUS: u64 = 15;
/// `XEN_DOMINF_dying`, `XEN_DOMINF_shutdown`, `XEN_DOMINF_paused`.
const DYING: u32 = 1;
const SHUT_DOWN: u32 = 4;
const PAUSED: u32 = 8;
const EPERM: i64 = -1;
const EEXIST: i64 = -17;
const EINVAL: i64 = -22;
/// Operations of `grant_table_op`.
const MAP: u64 = 0;
const UNMAP: u64 = 1;
const SETUP: u64 = 2;
const TRANSFER: u64 = 4;
const COPY: u64 = 5;
/// `GNTMAP_host_map`, `GTF_permit_access`, `GTF_accept_transfer`.
const HOST_MAP: u64 = 2;
const PERMIT: u64 = 1;
const ACCEPT: u64 = 2;
/// The grant reference that tests use, behind the reserved ones.
const REF: u64 = 9;

/// Where the puppet's pages are in its address space, in the order of their numbers.
const BASE: u64 = 1 << 30;
/// Pages of the puppet by number.
const PAGES: usize = 16;
const CODE: usize = 0;
const DATA: usize = 1;
const TABLES: [usize; 4] = [2, 3, 4, 5];
const LETTER: usize = 7;
const SPARE: usize = 8;
/// Places in its address space without a page.
const WINDOW: u64 = BASE + 10 * PAGE;
const SHARED: u64 = BASE + 12 * PAGE;
/// Words of the data page: request number, hypercall, five arguments, result; the answered number; a poll; an argument record.
const ANSWERED: u64 = 16;
const POLL: u64 = 9;
const PORT: u64 = 12;
const RECORD: u64 = 64;

global_asm!(
    r#"
    .pushsection .text, "ax", @progbits
    .globl guest_puppet_start
guest_puppet_start:
    mov rax, [rbx]
    cmp rax, [rbx + 128]
    jne 2f
    mov eax, 29                          # SCHEDOP_poll
    mov edi, 3
    lea rsi, [rbx + 72]
    syscall
    mov ecx, [rbx + 96]
    lock btr [rbp + 2048], rcx
    jmp guest_puppet_start
2:  mov rax, [rbx + 8]
    mov rdi, [rbx + 16]
    mov rsi, [rbx + 24]
    mov rdx, [rbx + 32]
    mov r10, [rbx + 40]
    mov r8, [rbx + 48]
    syscall
    mov [rbx + 56], rax
    mov rcx, [rbx]
    mov [rbx + 128], rcx
    mov eax, 32                          # EVTCHNOP_send
    mov edi, 4
    lea rsi, [rbx + 96]
    syscall
    jmp guest_puppet_start
    .balign 8
    .globl guest_puppet_end
guest_puppet_end:
    .popsection
"#
);

unsafe extern "C" {
    static guest_puppet_start: u8;
    static guest_puppet_end: u8;
}
const _: () = assert!(philoxen_abi::shared::shared_info::EVTCHN_PENDING == 2048);

/// The other domain.
struct Puppet {
    id: u16,
    frames: [u64; PAGES],
    /// Its data page, mapped here.
    data: Page,
    /// Our end of the channel.
    port: u32,
    asked: u64,
}

/// What is used again for every puppet: the pool of pages is small.
struct Desk {
    /// Our grant table's first frame.
    table: Page,
    window: Page,
    data: Page,
    grant: Page,
    foreign: Page,
    context: Page,
}

/// Runs the theme.
pub fn run(t: &mut Checks) {
    events::disable();
    let desk = Desk {
        table: Page::take(),
        window: Page::take(),
        data: Page::take(),
        grant: Page::take(),
        foreign: Page::take(),
        context: Page::take_many(2),
    };
    let mut frame = 0_u64;
    let mut setup = [hyper::SELF | 1 << 32, 0, hyper::address(&mut frame)];
    t.ok("grant table", grant_op(SETUP, &mut setup));
    t.ok("grant table mapped", desk.table.map(frame, pte::RW));
    refusals(t);
    // The first round also takes what the hypervisor keeps from then on.
    for round in 0..3 {
        let before = free_pages();
        life(t, &desk);
        if round != 0 {
            t.equal("free pages after all", free_pages(), before);
        }
    }
    unfinished(t, &desk);
    audit(t);
    exhaustion(t);
}

fn grant_op<const N: usize>(cmd: u64, record: &mut [u64; N]) -> i64 {
    hyper::call(nr::GRANT_TABLE_OP, [cmd, hyper::address(record), 1, 0, 0])
}

fn refusals(t: &mut Checks) {
    t.equal(
        "another version",
        {
            let mut request = domctl::request(PAUSE, 5, &[]);
            request[0] += 1 << 32;
            domctl::make(&mut request)
        },
        -13,
    );
    t.equal("no such domain", domctl(PAUSE, 77, &[]), -3);
    t.equal("an HVM domain", create(0, 1).0, EINVAL);
    t.equal("Domain 0 pauses itself", domctl(PAUSE, 0, &[]), EINVAL);
    t.equal("Domain 0 destroys itself", domctl(DESTROY, 0, &[]), EINVAL);
    t.equal("unknown operation", domctl(999, 0, &[]), -38);
}

impl Puppet {
    /// A domain with memory, page tables, and a channel to it.
    fn make(t: &mut Checks, desk: &Desk) -> Option<Self> {
        let (result, id) = create(0, 0);
        t.ok("create", result);
        t.equal("create again", create(id, 0).0, EEXIST);
        t.equal("memory beyond its limit", populate::<1>(id), None);
        t.ok("limit", domctl(MAX_MEM, id, &[PAGES as u64 * 4]));
        t.ok("vCPU", domctl(MAX_VCPUS, id, &[1]));
        let frames = populate::<PAGES>(id)?;
        t.equal("one page too many", populate::<1>(id), None);
        let shared = info(id)?.shared_info;
        let leaf = |number: usize, flags| (number as u64, frames[number] << 12 | flags);
        let [l4, l3, l2, l1] = TABLES.map(|number| frames[number]);
        let table = |mfn: u64| mfn << 12 | pte::RW;
        let (from, to) = (
            &raw const guest_puppet_start as u64,
            &raw const guest_puppet_end as u64,
        );
        t.ok("code", map_foreign(desk.window, id, frames[CODE], pte::RW));
        for at in (from..to).step_by(8) {
            desk.window.set_word((at - from) / 8, memory::read(at));
        }
        t.ok("code unmapped", desk.window.unmap());
        let leaves = [
            leaf(CODE, pte::RO),
            leaf(DATA, pte::RW),
            leaf(LETTER, pte::RW),
            leaf(SPARE, pte::RW),
            (SHARED >> 12 & 511, shared << 12 | pte::RW),
        ];
        let filled = fill(desk.window, id, l1, &leaves)
            && fill(desk.window, id, l2, &[(0, table(l1))])
            && fill(desk.window, id, l3, &[(1, table(l2))])
            && fill(desk.window, id, l4, &[(0, table(l3))]);
        t.that("tables", filled);
        let pin = MmuExt {
            cmd: ext::PIN_L4,
            arg1: l4,
            ..MmuExt::default()
        };
        t.ok("pin", hyper::mmuext(&mut [pin], id.into()).0);
        t.refused(
            "table mapped writable",
            map_foreign(desk.window, id, l1, pte::RW),
        );
        let (result, theirs) = events::alloc_unbound(id, 0);
        t.ok("their port", result);
        let (result, port) = events::bind_interdomain(id, theirs);
        t.ok("our port", result);
        t.ok(
            "data page",
            map_foreign(desk.data, id, frames[DATA], pte::RW),
        );
        desk.data.set_word(POLL, BASE + PAGE + PORT * 8);
        desk.data.set_word(POLL + 1, 1);
        desk.data.set_word(PORT, theirs.into());
        let puppet = Self {
            id,
            frames,
            data: desk.data,
            port,
            asked: 0,
        };
        t.ok("context", puppet.set_context(desk.context));
        Some(puppet)
    }

    fn set_context(&self, pages: Page) -> i64 {
        (0..2).for_each(|page| pages.plus(page).fill(0));
        let at = |offset: u64, value: u64| memory::write(pages.0 + offset, value);
        // flags: in the kernel, online; user_regs begin at 520, trap_ctxt at 720.
        at(512, 1 << 2 | 1 << 5);
        at(520 + 32, SHARED);
        at(520 + 40, BASE + PAGE);
        at(520 + 128, BASE);
        at(520 + 136, KERNEL_CS);
        at(520 + 144, 0x200);
        at(520 + 152, BASE + 2 * PAGE);
        at(520 + 160, KERNEL_SS);
        let tail = 720 + 256 * 16;
        at(tail + 21 * 8, 0x8005_003b);
        at(tail + 24 * 8, self.frames[TABLES[0]] << 12);
        domctl(SET_CONTEXT, self.id, &[0, pages.0])
    }

    /// Has the puppet make a hypercall; `None` if it does not answer.
    fn ask(&mut self, number: u64, args: [u64; 5]) -> Option<i64> {
        self.asked += 1;
        self.data.set_word(1, number);
        (2..)
            .zip(args)
            .for_each(|(word, value)| self.data.set_word(word, value));
        self.data.set_word(0, self.asked);
        events::send(self.port);
        let end = time::now() + 5_000_000_000;
        while self.data.word(ANSWERED) != self.asked {
            if time::now() > end {
                return None;
            }
            events::poll(&mut [self.port], time::now() + 100_000_000);
            events::clear_pending(self.port);
        }
        Some(self.data.word(7) as i64)
    }

    /// Has it make a `grant_table_op` with one element; its result, and the element afterwards.
    fn ask_grant<const N: usize>(&mut self, cmd: u64, record: [u64; N]) -> (Option<i64>, [u64; N]) {
        (RECORD..)
            .zip(record)
            .for_each(|(word, value)| self.data.set_word(word, value));
        let place = BASE + PAGE + RECORD * 8;
        let result = self.ask(nr::GRANT_TABLE_OP, [cmd, place, 1, 0, 0]);
        (
            result,
            core::array::from_fn(|word| self.data.word(RECORD + word as u64)),
        )
    }
}

/// One puppet from its creation to its last frame.
fn life(t: &mut Checks, desk: &Desk) {
    let Some(mut puppet) = Puppet::make(t, desk) else {
        return t.that("a second domain", false);
    };
    let id = puppet.id;
    t.equal(
        "not started yet",
        info(id).map(|info| info.flags & PAUSED),
        Some(PAUSED),
    );
    t.ok("unpause", domctl(UNPAUSE, id, &[]));
    t.equal(
        "it answers",
        puppet.ask(nr::XEN_VERSION, [0; 5]),
        Some(4 << 16 | 17),
    );
    t.ok("pause", domctl(PAUSE, id, &[]));
    t.ok("unpause again", domctl(UNPAUSE, id, &[]));
    t.equal("unpause once too often", domctl(UNPAUSE, id, &[]), EINVAL);
    powerless(t, &mut puppet);
    granted_to_it(t, desk, &mut puppet);
    let table = granted_by_it(t, desk, &mut puppet);
    transferred(t, desk, &mut puppet, table);
    audit(t);
    death(t, desk, &mut puppet);
}

/// Has the hypervisor recount every reference; who started this theme looks at what it says.
fn audit(t: &mut Checks) {
    t.ok("audit", domctl::debug_key(b'A'));
}

/// What a domain without control of the machine cannot do.
fn powerless(t: &mut Checks, puppet: &mut Puppet) {
    for call in [nr::DOMCTL, nr::SYSCTL, nr::PLATFORM_OP] {
        t.equal(
            "privileged call",
            puppet.ask(call, [BASE + PAGE + RECORD * 8, 0, 0, 0, 0]),
            Some(EPERM),
        );
    }
    t.equal(
        "the machine's console",
        puppet.ask(nr::CONSOLE_IO, [0, 1, BASE, 0, 0]),
        Some(EPERM),
    );
    let ours = memory::root() << 12 | pte::RO;
    for owner in [hyper::SELF, 0, hyper::XEN, hyper::IO] {
        let args = [WINDOW, ours, 0, owner, 0];
        let result = puppet.ask(nr::UPDATE_VA_MAPPING_OTHERDOMAIN, args);
        t.that(
            "our frame in its tables",
            result.is_some_and(|result| result < 0),
        );
    }
}

/// Our page, granted to the puppet: mapped, copied from, and left mapped.
fn granted_to_it(t: &mut Checks, desk: &Desk, puppet: &mut Puppet) {
    let grant = |flags: u64, dom: u64| {
        let entry = flags | dom << 16 | desk.grant.mfn() << 32;
        desk.table.set_word(REF, entry);
    };
    desk.grant.fill(0x0123_4567_89ab_cdef);
    let map = |host: u64| [host, HOST_MAP | REF << 32, 0, 0];
    grant(0, 0);
    let status = |record: [u64; 4]| (record[2] >> 16) as i16;
    t.that(
        "not granted",
        status(puppet.ask_grant(MAP, map(WINDOW)).1) < 0,
    );
    grant(PERMIT, 77);
    t.that(
        "granted to another",
        status(puppet.ask_grant(MAP, map(WINDOW)).1) < 0,
    );
    grant(PERMIT, puppet.id.into());
    t.that(
        "mapped over our memory",
        status(puppet.ask_grant(MAP, map(desk.grant.0)).1) < 0,
    );
    t.equal("nothing pinned by failures", desk.table.word(REF) & 0x18, 0);
    let (result, mapped) = puppet.ask_grant(MAP, map(WINDOW));
    t.equal("map", (result, status(mapped)), (Some(0), 0));
    t.equal("entry in use", desk.table.word(REF) & 0x18, 0x18);
    let handle = mapped[2] >> 32;
    let unmap = [WINDOW, 0, handle];
    let (_, wrong) = puppet.ask_grant(UNMAP, [WINDOW + PAGE, 0, handle]);
    t.that("unmap elsewhere", (wrong[2] >> 32) as i16 != 0);
    let (_, unmapped) = puppet.ask_grant(UNMAP, unmap);
    t.equal("unmap", (unmapped[2] >> 32) as i16, 0);
    let (_, twice) = puppet.ask_grant(UNMAP, unmap);
    t.that("unmap twice", (twice[2] >> 32) as i16 != 0);
    t.equal("entry free", desk.table.word(REF) & 0x18, 0);
    // Copied into its letter page.
    let copy = [REF, 0, puppet.frames[LETTER], hyper::SELF, 4096 | 1 << 16];
    let (_, copied) = puppet.ask_grant(COPY, copy);
    t.equal("copy", (copied[4] >> 32) as i16, 0);
    let (_, map) = puppet.ask_grant(MAP, map(WINDOW));
    t.equal("mapped to the end", status(map), 0);
}

/// Its page, granted to us: the table's frame, to write into later.
fn granted_by_it(t: &mut Checks, desk: &Desk, puppet: &mut Puppet) -> u64 {
    let mut frame = 0_u64;
    let id = u64::from(puppet.id);
    let mut setup = [id | 1 << 32, 0, hyper::address(&mut frame)];
    t.ok("its grant table", grant_op(SETUP, &mut setup));
    t.equal("its grant table is there", setup[1] as i16, 0);
    let entry = PERMIT | puppet.frames[LETTER] << 32;
    t.that(
        "an entry for us",
        fill(desk.window, puppet.id, frame, &[(REF, entry)]),
    );
    t.ok("place", desk.grant.unmap());
    let mut map = [desk.grant.0, HOST_MAP | REF << 32, id, 0];
    t.ok("map its page", grant_op(MAP, &mut map));
    t.equal("mapped", (map[2] >> 16) as i16, 0);
    t.equal("its letter", desk.grant.word(511), 0x0123_4567_89ab_cdef);
    // Seen through the grant and through its tables alike.
    t.ok(
        "its page as a foreign one",
        map_foreign(desk.foreign, puppet.id, puppet.frames[LETTER], pte::RW),
    );
    desk.foreign.set_word(3, 77);
    t.equal("one page", desk.grant.word(3), 77);
    t.that("handle", map[2] >> 32 != u64::from(u32::MAX));
    desk.context.set_word(0, map[2] >> 32);
    frame
}

/// A frame of ours becomes the puppet's.
fn transferred(t: &mut Checks, desk: &Desk, puppet: &mut Puppet, table: u64) {
    let id = u64::from(puppet.id);
    let gift = Page::take();
    gift.fill(0x91f7);
    let mfn = gift.mfn();
    let mut transfer = [mfn, id | (REF + 1) << 32, 0];
    t.ok("call", grant_op(TRANSFER, &mut transfer));
    t.that("transfer that nobody wants", transfer[2] as i16 != 0);
    t.that(
        "an entry that accepts",
        fill(desk.window, puppet.id, table, &[(REF + 1, ACCEPT)]),
    );
    t.ok("call", grant_op(TRANSFER, &mut transfer));
    t.that("transfer of a mapped page", transfer[2] as i16 != 0);
    t.ok("unmap", gift.unmap());
    t.ok("call", grant_op(TRANSFER, &mut transfer));
    t.that("transfer beyond its limit", transfer[2] as i16 != 0);
    t.ok(
        "limit",
        domctl(MAX_MEM, puppet.id, &[(PAGES as u64 + 1) * 4]),
    );
    t.ok("call", grant_op(TRANSFER, &mut transfer));
    t.equal("transfer", transfer[2] as i16, 0);
    t.refused("a frame given away", gift.map(mfn, pte::RO));
    t.equal(
        "pages",
        info(puppet.id).map(|info| info.pages),
        Some(PAGES as u64 + 1),
    );
    t.ok("the gift", map_foreign(gift, puppet.id, mfn, pte::RO));
    t.equal("with its contents", gift.word(9), 0x91f7);
    t.ok("gift unmapped", gift.unmap());
    let mut list = [gift.pfn()];
    let mut ours = hyper::Reservation {
        extents: list.as_mut_ptr() as u64,
        count: 1,
        domid: hyper::SELF as u16,
        ..hyper::Reservation::default()
    };
    t.equal("another for us", hyper::memory_op(6, &mut ours), 1);
    memory::set_p2m(gift.pfn(), list[0]);
    t.ok("mapped", gift.restore());
}

/// It crashes, and is destroyed while its page is mapped here by grant and as a foreign one, and ours there.
fn death(t: &mut Checks, desk: &Desk, puppet: &mut Puppet) {
    let id = puppet.id;
    let handle = desk.context.word(0);
    puppet.data.set_word(RECORD, 3);
    puppet.data.set_word(1, nr::SCHED_OP);
    (2..)
        .zip([2, BASE + PAGE + RECORD * 8])
        .for_each(|(word, value)| puppet.data.set_word(word, value));
    puppet.data.set_word(0, u64::MAX);
    events::send(puppet.port);
    let end = time::now() + 5_000_000_000;
    let stopped = || info(id).is_some_and(|info| info.flags & SHUT_DOWN != 0);
    while !stopped() && time::now() < end {
        events::poll(&mut [puppet.port], time::now() + 20_000_000);
    }
    t.equal("crashed", info(id).map(|info| info.flags >> 16), Some(3));
    t.ok("our port", events::close(puppet.port));
    t.ok("its data page", puppet.data.unmap());
    t.equal("entry in use", desk.table.word(REF) & 0x18, 0x18);
    t.ok("destroy", domctl(DESTROY, id, &[]));
    audit(t);
    t.equal("our page is ours again", desk.table.word(REF) & 0x18, 0);
    desk.table.set_word(REF, 0);
    t.equal(
        "still there",
        info(id).map(|info| info.flags & DYING),
        Some(DYING),
    );
    t.equal("its number is taken", create(id, 0).0, EEXIST);
    t.equal("unpause of the dead", domctl(UNPAUSE, id, &[]), EINVAL);
    t.equal("memory for the dead", populate::<1>(id), None);
    t.equal(
        "its letter is still there",
        try_read(desk.grant.0 + 24),
        Some(77),
    );
    let mut unmap = [desk.grant.0, 0, handle];
    t.ok("unmap", grant_op(UNMAP, &mut unmap));
    t.equal("unmapped", (unmap[2] >> 32) as i16, 0);
    t.equal("gone", info(id), None);
    t.equal(
        "the foreign mapping is left",
        try_read(desk.foreign.0 + 24),
        Some(77),
    );
    t.refused(
        "and cannot be made anew",
        map_foreign(desk.window, id, puppet.frames[LETTER], pte::RO),
    );
    for page in [desk.foreign, desk.window, desk.data, desk.grant] {
        t.ok("our own page again", page.restore());
    }
}

/// Domains that are destroyed before they ran.
fn unfinished(t: &mut Checks, desk: &Desk) {
    let before = free_pages();
    let (result, empty) = create(0, 0);
    t.ok("create", result);
    t.ok("destroy an empty domain", domctl(DESTROY, empty, &[]));
    t.equal("gone", info(empty), None);
    if let Some(puppet) = Puppet::make(t, desk) {
        t.ok("its data page", puppet.data.unmap());
        t.ok(
            "destroy a domain that never ran",
            domctl(DESTROY, puppet.id, &[]),
        );
        t.equal("gone", info(puppet.id), None);
        t.ok("our port", events::close(puppet.port));
    }
    for page in [desk.window, desk.data] {
        t.ok("our own page again", page.restore());
    }
    t.equal("free pages", free_pages(), before);
}

/// With all memory in use, the hypervisor still has what it needs.
fn exhaustion(t: &mut Checks) {
    let mut taken = 0_u64;
    let mut list = [0_u64; 64];
    let mut reservation = hyper::Reservation {
        extents: list.as_mut_ptr() as u64,
        count: 64,
        domid: hyper::SELF as u16,
        ..hyper::Reservation::default()
    };
    loop {
        let got = hyper::memory_op(0, &mut reservation);
        taken += got.max(0) as u64;
        if got != 64 {
            break;
        }
    }
    t.that("something to take", taken != 0);
    t.equal("nothing left for domains", free_pages(), 0);
    t.equal("no domain can be made", create(0, 0).0, -12);
    let mut bound = 0;
    while bound < 3000 && events::bind_ipi(0).0 == 0 {
        bound += 1;
    }
    t.equal("ports can still be bound", bound, 3000);
}
