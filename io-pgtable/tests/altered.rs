//! Entries of a good table, each with something changed: what hardware must refuse, and what must not matter to it. Other
//! implementations gave the same answers (RISC-V: the IOMMU's reference model; x86-64: QEMU's walkers; AMD v1: QEMU, openvmm and
//! VirtualBox as they read). The walker here must agree with them, and the engine with what does not matter; it panics at none.

mod common;
mod walkers;

use common::Bed;
use common::image::prot;
use io_pgtable::{AmdV1, Format, IoPageTable, IoPgtableCfg, Quirks, RiscV, X86_64};
use platform::DmaAddr;
use walkers::{Walk, amdv1, riscv, x86_64};

/// What comes of an access then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// As before.
    Unchanged,
    /// Reads fault, writes go through.
    NoRead,
    /// Writes fault, reads go through.
    NoWrite,
    /// Both fault.
    Nothing,
}

use Outcome::{NoRead, NoWrite, Nothing, Unchanged};

/// What is changed: the level (1 is the lowest), the entry before and after, and what comes of it.
type Row = (&'static str, u32, u64, u64, Outcome);

/// One mapping, of one page.
#[derive(Clone, Copy)]
struct Page {
    iova: u64,
    phys: u64,
    size: u64,
    prot: &'static str,
}

fn check<F: Format>(cfg: &IoPgtableCfg, hardware: Walk, page: Page, rows: &[Row]) {
    for &(what, level, before, after, outcome) in rows {
        let bed = Bed::<F>::of(cfg, 16);
        let mapped = bed.map(page.iova, page.phys, page.size, 1, prot(page.prot));
        assert_eq!(mapped, (page.size, Ok(())));
        // Somewhere in the page, and with index bits at all levels.
        let byte = page.iova + page.size / 2 + 0x123;
        let walk = || hardware(&bed.arena, bed.table.root(), cfg, byte).ok();
        let lookup = || bed.table.iova_to_phys(DmaAddr::new(byte));
        let (walked, looked_up) = (walk().unwrap(), lookup().unwrap());
        assert_eq!(walked.phys, page.phys + page.size / 2 + 0x123);
        let (mut at, mut found) = (0, 0);
        bed.table.walk(DmaAddr::new(byte), &mut |entry| {
            if entry.level == level {
                (at, found) = (entry.at.get(), entry.entry);
            }
        });
        assert_eq!(found, before, "{what}: the entry before");
        bed.arena.write(at, after);
        let altered = walk();
        let rights = altered.map_or((false, false), |found| (found.read, found.write));
        match outcome {
            Unchanged => assert_eq!(altered, Some(walked), "{what}"),
            NoRead => assert_eq!(rights, (false, true), "{what}"),
            NoWrite => assert_eq!(rights, (true, false), "{what}"),
            Nothing => assert_eq!(rights, (false, false), "{what}"),
        }
        let found = lookup();
        if outcome == Unchanged {
            assert_eq!(found, Some(looked_up), "{what}: the engine");
        }
        // The table can be dropped again.
        bed.arena.write(at, before);
        assert_eq!(walk(), Some(walked), "{what}");
    }
}

const AMD_4K: Page = Page { iova: 0x76_5432_1000, phys: 0xa_bcde_f012_3000, size: 1 << 12, prot: "RWC" };
const AMD_64K: Page = Page { iova: 0x76_5433_0000, phys: 0xa_bcde_f013_0000, size: 1 << 16, prot: "RWC" };
const AMD_2M: Page = Page { iova: 0x76_5460_0000, phys: 0xa_bcde_f040_0000, size: 2 << 20, prot: "RWC" };

#[test]
fn amdv1_pages_of_4_kib() {
    let leaf = 0x700a_bcde_f012_3001;
    check::<AmdV1>(
        &IoPgtableCfg::new(39),
        amdv1::hardware,
        AMD_4K,
        &[
            ("PR=0", 1, leaf, 0x700a_bcde_f012_3000, Nothing),
            ("IR=0", 1, leaf, 0x500a_bcde_f012_3001, NoRead),
            ("IW=0", 1, leaf, 0x300a_bcde_f012_3001, NoWrite),
            ("IR=IW=0", 1, leaf, 0x100a_bcde_f012_3001, Nothing),
            ("bit 52", 1, leaf, 0x701a_bcde_f012_3001, Nothing),
            ("bit 56", 1, leaf, 0x710a_bcde_f012_3001, Nothing),
            ("bit 57", 1, leaf, 0x720a_bcde_f012_3001, Nothing),
            ("bit 58", 1, leaf, 0x740a_bcde_f012_3001, Nothing),
            ("NextLevel=1 at level 1", 1, leaf, 0x600a_bcde_f012_3201, Nothing),
            ("NextLevel=6 at level 1", 1, leaf, 0x600a_bcde_f012_3c01, Nothing),
            ("a coded size of 2 MiB at level 1", 1, leaf, 0x700a_bcde_f00f_fe01, Nothing),
            ("bits 4:1", 1, leaf, 0x700a_bcde_f012_301f, Unchanged),
            ("A and D", 1, leaf, 0x700a_bcde_f012_3061, Unchanged),
            ("bits 8:7", 1, leaf, 0x700a_bcde_f012_3181, Unchanged),
            ("U", 1, leaf, 0x780a_bcde_f012_3001, Unchanged),
            ("bit 63", 1, leaf, 0xf00a_bcde_f012_3001, Unchanged),
        ],
    );
}

#[test]
fn amdv1_pointers() {
    let (upper, lower) = (0x6000_0000_4000_1401, 0x6000_0000_4000_2201);
    check::<AmdV1>(
        &IoPgtableCfg::new(39),
        amdv1::hardware,
        AMD_4K,
        &[
            ("PR=0", 3, upper, 0x6000_0000_4000_1400, Nothing),
            ("IR=0", 3, upper, 0x4000_0000_4000_1401, NoRead),
            ("IW=0", 2, lower, 0x2000_0000_4000_2201, NoWrite),
            ("bit 52", 2, lower, 0x6010_0000_4000_2201, Nothing),
            ("bit 58", 2, lower, 0x6400_0000_4000_2201, Nothing),
            ("U in a pointer", 2, lower, 0x6800_0000_4000_2201, Nothing),
            ("FC in a pointer", 2, lower, 0x7000_0000_4000_2201, Nothing),
            ("NextLevel=2 at level 2", 2, lower, 0x6000_0000_4000_2401, Nothing),
            ("NextLevel=3 at level 2", 2, lower, 0x6000_0000_4000_2601, Nothing),
            ("level 2 left out, its index not zero", 3, upper, 0x6000_0000_4000_1201, Nothing),
            ("A", 3, upper, 0x6000_0000_4000_1421, Unchanged),
            ("bits 8:6", 3, upper, 0x6000_0000_4000_15c1, Unchanged),
            ("bits 4:1", 2, lower, 0x6000_0000_4000_221f, Unchanged),
            ("bit 63", 2, lower, 0xe000_0000_4000_2201, Unchanged),
        ],
    );
}

#[test]
fn amdv1_larger_pages() {
    let cfg = IoPgtableCfg::new(39);
    let coded = 0x700a_bcde_f013_7e01;
    check::<AmdV1>(
        &cfg,
        amdv1::hardware,
        AMD_64K,
        &[
            ("PR=0", 1, coded, 0x700a_bcde_f013_7e00, Nothing),
            ("A and D in one copy", 1, coded, 0x700a_bcde_f013_7e61, Unchanged),
            ("a size of 4 GiB at level 1", 1, coded, 0x700a_bcde_7fff_fe01, Nothing),
        ],
    );
    let large = 0x700a_bcde_f040_0001;
    check::<AmdV1>(
        &cfg,
        amdv1::hardware,
        AMD_2M,
        &[
            ("address bits below the size", 2, large, 0x700a_bcde_f05f_f001, Unchanged),
            ("a coded size of 2 MiB at level 2", 2, large, 0x700a_bcde_f04f_fe01, Nothing),
            ("a coded size of 1 GiB at level 2", 2, large, 0x700a_bcde_dfff_fe01, Nothing),
        ],
    );
}

const X86_4K: Page = Page { iova: 0x1234_5678_9000, phys: 0xa_bcde_f012_3000, size: 1 << 12, prot: "RW" };
const X86_2M: Page = Page { iova: 0x1234_5780_0000, phys: 0xa_bcde_f020_0000, size: 2 << 20, prot: "RW" };

#[test]
fn x86_64_entries() {
    let cfg = IoPgtableCfg::new(48).with_quirks(Quirks::SIGN_EXTEND);
    let leaf = 0xa_bcde_f012_3067;
    check::<X86_64>(
        &cfg,
        x86_64::hardware,
        X86_4K,
        &[
            ("P=0", 1, leaf, 0xa_bcde_f012_3066, Nothing),
            ("RW=0", 1, leaf, 0xa_bcde_f012_3065, NoWrite),
            ("US=0", 1, leaf, 0xa_bcde_f012_3063, Nothing),
            ("A=0 D=0", 1, leaf, 0xa_bcde_f012_3007, Unchanged),
            ("bits 62:52", 1, leaf, 0x7ffa_bcde_f012_3067, Unchanged),
            ("XD", 1, leaf, 0x800a_bcde_f012_3067, Unchanged),
            ("bit 7 (PAT)", 1, leaf, 0xa_bcde_f012_30e7, Unchanged),
            ("bit 7 in level 4", 4, 0x4000_1027, 0x4000_10a7, Nothing),
            ("pointer RW=0", 3, 0x4000_2027, 0x4000_2025, NoWrite),
            ("pointer US=0", 3, 0x4000_2027, 0x4000_2023, Nothing),
        ],
    );
    let large = 0xa_bcde_f020_00e7;
    check::<X86_64>(
        &cfg,
        x86_64::hardware,
        X86_2M,
        &[
            ("2M with bit 13", 2, large, 0xa_bcde_f020_20e7, Nothing),
            ("2M with bit 12 (PAT)", 2, large, 0xa_bcde_f020_10e7, Unchanged),
        ],
    );
}

const RISCV_4K: Page =
    Page { iova: 0x1234_5678_9000, phys: 0xab_cdef_0123_4000, size: 1 << 12, prot: "RWCN" };
const RISCV_2M: Page =
    Page { iova: 0x1234_5780_0000, phys: 0xab_cdef_0140_0000, size: 2 << 20, prot: "RWCN" };

#[test]
fn riscv_entries() {
    let cfg = IoPgtableCfg::new(48);
    let leaf = 0x2a_f37b_c048_d0d7;
    check::<RiscV>(
        &cfg,
        riscv::walk,
        RISCV_4K,
        &[
            ("V=0", 1, leaf, 0x2a_f37b_c048_d0d6, Nothing),
            ("W without R", 1, leaf, 0x2a_f37b_c048_d0d5, Nothing),
            ("bit 54", 1, leaf, 0x6a_f37b_c048_d0d7, Nothing),
            ("bit 59", 1, leaf, 0x82a_f37b_c048_d0d7, Nothing),
            ("PBMT=1, no Svpbmt", 1, leaf, 0x202a_f37b_c048_d0d7, Nothing),
            ("N=1, ppn[3:0]=4", 1, leaf, 0x802a_f37b_c048_d0d7, Nothing),
            ("A=0", 1, leaf, 0x2a_f37b_c048_d097, Nothing),
            ("D=0", 1, leaf, 0x2a_f37b_c048_d057, NoWrite),
            ("U=0", 1, leaf, 0x2a_f37b_c048_d0c7, Nothing),
            ("RSW=3", 1, leaf, 0x2a_f37b_c048_d3d7, Unchanged),
            ("G=1", 1, leaf, 0x2a_f37b_c048_d0f7, Unchanged),
        ],
    );
    let large = 0x2a_f37b_c050_00d7;
    check::<RiscV>(
        &cfg,
        riscv::walk,
        RISCV_2M,
        &[
            ("misaligned PPN bit 10", 2, large, 0x2a_f37b_c050_04d7, Nothing),
            ("N=1 at level 2", 2, large, 0x802a_f37b_c050_00d7, Nothing),
        ],
    );
}

#[test]
fn riscv_entries_with_memory_types() {
    let cfg = IoPgtableCfg::new(48).with_quirks(Quirks::RISCV_SVPBMT);
    let pointer = 0x1000_0801;
    check::<RiscV>(
        &cfg,
        riscv::walk,
        RISCV_4K,
        &[
            ("PBMT=3", 1, 0x2a_f37b_c048_d0d7, 0x602a_f37b_c048_d0d7, Nothing),
            ("pointer with A", 3, pointer, 0x1000_0841, Nothing),
            ("pointer with D", 3, pointer, 0x1000_0881, Nothing),
            ("pointer with U", 3, pointer, 0x1000_0811, Nothing),
            ("pointer with G", 3, pointer, 0x1000_0821, Unchanged),
            ("pointer with PBMT=1", 3, pointer, 0x2000_0000_1000_0801, Nothing),
            ("pointer with N", 3, pointer, 0x8000_0000_1000_0801, Nothing),
            ("pointer with RSW=3", 3, pointer, 0x1000_0b01, Unchanged),
        ],
    );
}
