//! The kit on every format.

mod common;
#[macro_use]
mod kit;
mod mock2k;
mod walkers;

use io_pgtable::{
    AmdV1, Arm32LpaeS1, Arm32LpaeS2, ArmLpa2S1, ArmLpaeS1, ArmLpaeS2, ArmV7s, Dart1, Dart2, IoPgtableCfg,
    MaliLpae, Quirks, RiscV, RiscV32, VtdSs, X86_64,
};
use mock2k::Mock2k;
use walkers::{amdv1, arm_lpae, arm_v7s, dart, mali_lpae, riscv, vtdss, x86_64};

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
conformance!(riscv_sv32, RiscV32, IoPgtableCfg::new(32), riscv::sv32);
conformance!(vtdss_3_levels, VtdSs, IoPgtableCfg::new(39), vtdss::look);
conformance!(
    vtdss_4_levels,
    VtdSs,
    IoPgtableCfg { oas: 46, ..IoPgtableCfg::new(46) }.with_quirks(Quirks::FORCE_COHERENCE),
    vtdss::look
);
conformance!(vtdss_5_levels, VtdSs, IoPgtableCfg::new(57), vtdss::look);

conformance!(
    arm_s1_4k,
    ArmLpaeS1<12>,
    IoPgtableCfg::new(48).with_quirks(Quirks::ARM_CONTIGUOUS_1G),
    arm_lpae::stage1::<12>
);
conformance!(arm_s1_4k_lpa2, ArmLpa2S1<12>, IoPgtableCfg::new(52), arm_lpae::stage1_lpa2::<12>);
conformance!(
    arm_s1_16k_lpa2,
    ArmLpa2S1<14>,
    IoPgtableCfg::new(50).with_quirks(Quirks::ARM_HD),
    arm_lpae::stage1_lpa2::<14>
);
conformance!(
    arm_s1_4k_upper_half,
    ArmLpaeS1<12>,
    IoPgtableCfg::new(39).with_quirks(Quirks::ARM_TTBR1),
    arm_lpae::stage1::<12>
);
conformance!(
    arm_s1_16k_dirty,
    ArmLpaeS1<14>,
    IoPgtableCfg::new(47).with_quirks(Quirks::ARM_HD),
    arm_lpae::stage1::<14>
);
conformance!(
    arm_s1_64k,
    ArmLpaeS1<16>,
    IoPgtableCfg::new(52).with_quirks(Quirks::ARM_NS.union(Quirks::ARM_HD)),
    arm_lpae::stage1::<16>
);
conformance!(arm_s1_of_32_bits, Arm32LpaeS1, IoPgtableCfg::new(32), arm_lpae::stage1_of_32);
conformance!(
    arm_s2_4k_concatenated,
    ArmLpaeS2<12>,
    IoPgtableCfg { oas: 42, ..IoPgtableCfg::new(42) },
    arm_lpae::stage2::<12>
);
conformance!(arm_s2_16k_concatenated, ArmLpaeS2<14>, IoPgtableCfg::new(48), arm_lpae::stage2::<14>);
conformance!(
    arm_s2_64k,
    ArmLpaeS2<16>,
    IoPgtableCfg { oas: 48, ..IoPgtableCfg::new(48) }.with_quirks(Quirks::ARM_S2FWB),
    arm_lpae::stage2::<16>
);
conformance!(arm_s2_of_32_bits, Arm32LpaeS2, IoPgtableCfg::new(40), arm_lpae::stage2_of_32);

conformance!(dart1_4k, Dart1<12>, IoPgtableCfg::new(32), dart::t8020_4k);
conformance!(dart1_16k, Dart1<14>, IoPgtableCfg::new(36), dart::t8020_16k);
conformance!(dart2_2_levels, Dart2, IoPgtableCfg { oas: 40, ..IoPgtableCfg::new(36) }, dart::t8110);
conformance!(dart2_3_levels, Dart2, IoPgtableCfg::new(42), dart::t8110);

conformance!(arm_v7, ArmV7s, IoPgtableCfg { oas: 32, ..IoPgtableCfg::new(32) }, arm_v7s::look);

conformance!(mali, MaliLpae, IoPgtableCfg::new(48), mali_lpae::look);
conformance!(mali_one_entry_at_the_top, MaliLpae, IoPgtableCfg::new(39), mali_lpae::look);

conformance!(mock, Mock2k, IoPgtableCfg::new(44), walkers::mock2k::look);
