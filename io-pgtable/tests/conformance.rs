//! The kit on every format.

mod common;
#[macro_use]
mod kit;
mod walkers;

use io_pgtable::{AmdV1, IoPgtableCfg, Quirks, RiscV, VtdSs, X86_64};
use walkers::{amdv1, riscv, vtdss, x86_64};

conformance!(amdv1_3_levels, AmdV1, common::amdv1_cfg(3), amdv1::walk_byte);
conformance!(amdv1_4_levels, AmdV1, common::amdv1_cfg(4), amdv1::walk_byte);
conformance!(amdv1_6_levels, AmdV1, common::amdv1_cfg(6), amdv1::walk_byte);
conformance!(amdv2_4_levels, X86_64, IoPgtableCfg::new(47), x86_64::walk);
conformance!(amdv2_5_levels, X86_64, IoPgtableCfg::new(56), x86_64::walk);
conformance!(
    amdv2_encrypted,
    X86_64,
    IoPgtableCfg { encryption: 1 << 47, oas: 47, ..IoPgtableCfg::new(47) },
    x86_64::walk
);
conformance!(x86_64_4_levels, X86_64, IoPgtableCfg::new(48).with_quirks(Quirks::SIGN_EXTEND), x86_64::walk);
conformance!(x86_64_5_levels, X86_64, IoPgtableCfg::new(57).with_quirks(Quirks::SIGN_EXTEND), x86_64::walk);
conformance!(riscv_sv39, RiscV, IoPgtableCfg::new(39), riscv::walk);
conformance!(riscv_sv48, RiscV, IoPgtableCfg::new(48), riscv::walk);
conformance!(riscv_sv57, RiscV, IoPgtableCfg::new(57), riscv::walk);
conformance!(riscv_svpbmt, RiscV, IoPgtableCfg::new(48).with_quirks(Quirks::RISCV_SVPBMT), riscv::walk);
conformance!(vtdss_3_levels, VtdSs, IoPgtableCfg::new(39), vtdss::look);
conformance!(
    vtdss_4_levels,
    VtdSs,
    IoPgtableCfg { oas: 46, ..IoPgtableCfg::new(46) }.with_quirks(Quirks::FORCE_COHERENCE),
    vtdss::look
);
conformance!(vtdss_5_levels, VtdSs, IoPgtableCfg::new(57), vtdss::look);
