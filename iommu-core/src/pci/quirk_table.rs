//! The devices of which something is known, by their numbers.

use super::quirk::{Quirk, QuirkRule};
use super::topology::PortType;

const AMCC: u16 = 0x10e8;
const AMD: u16 = 0x1022;
const AMPERE: u16 = 0x1def;
const ANNAPURNA: u16 = 0x1c36;
const ATI: u16 = 0x1002;
const BROADCOM: u16 = 0x14e4;
const CAVIUM: u16 = 0x177d;
const HIGHPOINT: u16 = 0x1103;
const INTEL: u16 = 0x8086;
const LOONGSON: u16 = 0x0014;
const MARVELL: u16 = 0x1b4b;
const NXP: u16 = 0x1957;
const QUALCOMM: u16 = 0x17cb;
const SOLARFLARE: u16 = 0x1924;
const WANGXUN: u16 = 0x8088;
const ZHAOXIN: u16 = 0x1d17;

const ROOT_PORT: &[PortType] = &[PortType::RootPort];

const fn isolates(vendor: u16, first: u16, last: u16) -> Quirk {
    Quirk::new(vendor, first..=last, QuirkRule::Isolates)
}

/// A quirk of functions of some kinds only.
const fn only(port_types: &'static [PortType], quirk: Quirk) -> Quirk {
    let Quirk { vendor, devices, subsystem, rule, .. } = quirk;
    Quirk { vendor, devices, subsystem, port_types, rule }
}

const fn southbridge(vendor: u16, first: u16, last: u16) -> Quirk {
    Quirk::new(vendor, first..=last, QuirkRule::IsolatesOnRootBus)
}

const fn function_0(vendor: u16, first: u16, last: u16) -> Quirk {
    Quirk::new(vendor, first..=last, QuirkRule::AliasOfFunction(0))
}

const fn function_1(vendor: u16, first: u16, last: u16) -> Quirk {
    Quirk::new(vendor, first..=last, QuirkRule::AliasOfFunction(1))
}

const fn device(vendor: u16, number: u16, alias: (u8, u8)) -> Quirk {
    Quirk::new(vendor, number..=number, QuirkRule::AliasOfDevice(alias.0, alias.1))
}

const fn all(vendor: u16, first: u16, last: u16, functions: u8) -> Quirk {
    Quirk::new(vendor, first..=last, QuirkRule::AliasOfAll(functions))
}

/// A PCIe-to-PCI bridge without a PCI Express capability.
const fn bridge(vendor: u16, first: u16, last: u16) -> Quirk {
    Quirk::new(vendor, first..=last, QuirkRule::PcieBridgeAlias)
}

const fn dword(first: u16, last: u16) -> Quirk {
    only(ROOT_PORT, Quirk::new(INTEL, first..=last, QuirkRule::AcsControlInDword))
}

const fn card(vendor: u16, number: u16, subsystem: (u16, u16), alias: (u8, u8)) -> Quirk {
    let Quirk { vendor, devices, rule, port_types, .. } = device(vendor, number, alias);
    Quirk { vendor, devices, subsystem: Some(subsystem), port_types, rule }
}

/// What holds of the hardware itself. The numbers are those that Linux knows.
#[doc(alias = "pci_dev_acs_enabled")]
pub const QUIRKS: &[Quirk] = &[
    // AMD's southbridges do not let their functions talk to each other where there is an AMD IOMMU.
    southbridge(ATI, 0x4383, 0x4385),
    southbridge(ATI, 0x4399, 0x4399),
    southbridge(ATI, 0x439c, 0x439d),
    southbridge(AMD, 0x7809, 0x7809),
    southbridge(AMD, 0x780f, 0x780f),
    // Endpoints of several functions that do not talk to each other.
    isolates(SOLARFLARE, 0x0903, 0x0903),
    isolates(SOLARFLARE, 0x0923, 0x0923),
    isolates(SOLARFLARE, 0x0a03, 0x0a03),
    isolates(INTEL, 0x105e, 0x1060),
    isolates(INTEL, 0x10a7, 0x10a7),
    isolates(INTEL, 0x10a9, 0x10a9),
    isolates(INTEL, 0x10c6, 0x10c6),
    isolates(INTEL, 0x10c9, 0x10c9),
    isolates(INTEL, 0x10d6, 0x10d6),
    isolates(INTEL, 0x10d9, 0x10d9),
    isolates(INTEL, 0x10db, 0x10db),
    isolates(INTEL, 0x10dd, 0x10dd),
    isolates(INTEL, 0x10e1, 0x10e1),
    isolates(INTEL, 0x10e6, 0x10e8),
    isolates(INTEL, 0x10f1, 0x10f1),
    isolates(INTEL, 0x10f7, 0x10fc),
    isolates(INTEL, 0x1507, 0x1507),
    isolates(INTEL, 0x1509, 0x150a),
    isolates(INTEL, 0x150d, 0x1511),
    isolates(INTEL, 0x1514, 0x1514),
    isolates(INTEL, 0x1516, 0x1516),
    isolates(INTEL, 0x1518, 0x1518),
    isolates(INTEL, 0x151c, 0x151c),
    isolates(INTEL, 0x1521, 0x1524),
    isolates(INTEL, 0x1526, 0x1527),
    isolates(INTEL, 0x1529, 0x152a),
    isolates(INTEL, 0x154d, 0x154d),
    isolates(INTEL, 0x154f, 0x154f),
    isolates(INTEL, 0x1551, 0x1551),
    isolates(INTEL, 0x1558, 0x1558),
    isolates(INTEL, 0x15b7, 0x15b8),
    isolates(0x19a2, 0x0710, 0x0710),
    isolates(0x10df, 0x0720, 0x0720),
    isolates(CAVIUM, 0xa026, 0xa026),
    isolates(CAVIUM, 0xa059, 0xa059),
    isolates(CAVIUM, 0xa060, 0xa060),
    isolates(BROADCOM, 0x16d7, 0x16d7),
    isolates(BROADCOM, 0x1750, 0x1752),
    isolates(BROADCOM, 0x1760, 0x1763),
    isolates(ZHAOXIN, 0x3038, 0x3038),
    isolates(ZHAOXIN, 0x3104, 0x3104),
    isolates(ZHAOXIN, 0x9083, 0x9083),
    isolates(WANGXUN, 0x0100, 0x010f),
    isolates(WANGXUN, 0x1001, 0x1001),
    isolates(WANGXUN, 0x2001, 0x2001),
    isolates(WANGXUN, 0x5010, 0x5010),
    isolates(WANGXUN, 0x5025, 0x5025),
    isolates(WANGXUN, 0x5040, 0x5040),
    isolates(WANGXUN, 0x5110, 0x5110),
    isolates(WANGXUN, 0x5125, 0x5125),
    isolates(WANGXUN, 0x5140, 0x5140),
    // Intel's endpoints in the root complex reach peers with translated addresses only.
    only(&[PortType::RootComplexEndpoint], isolates(INTEL, 0, 0xffff)),
    // Root ports without the capability that do what it would.
    isolates(QUALCOMM, 0x0115, 0x0115),
    isolates(QUALCOMM, 0x0400, 0x0401),
    isolates(0x1dbf, 0x0401, 0x0401),
    only(ROOT_PORT, isolates(CAVIUM, 0xa000, 0xa7ff)),
    only(ROOT_PORT, isolates(CAVIUM, 0xaf84, 0xaf84)),
    only(ROOT_PORT, isolates(CAVIUM, 0xb884, 0xb884)),
    isolates(AMCC, 0xe004, 0xe004),
    isolates(AMPERE, 0xe005, 0xe00c),
    isolates(BROADCOM, 0xd714, 0xd714),
    isolates(LOONGSON, 0x3c09, 0x3c09),
    isolates(LOONGSON, 0x3c19, 0x3c19),
    isolates(LOONGSON, 0x3c29, 0x3c29),
    isolates(LOONGSON, 0x7a09, 0x7a09),
    isolates(LOONGSON, 0x7a19, 0x7a19),
    isolates(LOONGSON, 0x7a29, 0x7a29),
    isolates(LOONGSON, 0x7a39, 0x7a39),
    isolates(LOONGSON, 0x7a49, 0x7a49),
    isolates(LOONGSON, 0x7a59, 0x7a59),
    isolates(LOONGSON, 0x7a69, 0x7a69),
    only(ROOT_PORT, isolates(ANNAPURNA, 0x0031, 0x0031)),
    isolates(NXP, 0x8d80, 0x8d83),
    isolates(NXP, 0x8d88, 0x8d8b),
    isolates(NXP, 0x8d90, 0x8d93),
    isolates(NXP, 0x8d98, 0x8d9b),
    isolates(NXP, 0x8da0, 0x8da1),
    isolates(NXP, 0x8da8, 0x8da9),
    isolates(NXP, 0x8db0, 0x8db1),
    isolates(NXP, 0x8db8, 0x8db9),
    only(&[PortType::RootPort, PortType::DownstreamPort], isolates(ZHAOXIN, 0x0710, 0x071e)),
    only(&[PortType::RootPort, PortType::DownstreamPort], isolates(ZHAOXIN, 0x0721, 0x0721)),
    only(&[PortType::RootPort, PortType::DownstreamPort], isolates(ZHAOXIN, 0x0723, 0x0752)),
    // Root ports of Intel's 100 and 200 series and of mobile chips of that time.
    dword(0x9d10, 0x9d1b),
    dword(0xa110, 0xa11f),
    dword(0xa167, 0xa16a),
    dword(0xa290, 0xa29f),
    dword(0xa2e7, 0xa2ee),
    // Devices that use the name of another function, which may not even be there.
    function_0(0x1180, 0xe476, 0xe476),
    function_0(0x1180, 0xe832, 0xe832),
    function_0(0x6766, 0x3d40, 0x3d41),
    function_1(MARVELL, 0x9120, 0x9120),
    function_1(MARVELL, 0x9123, 0x9123),
    function_1(MARVELL, 0x9125, 0x9125),
    function_1(MARVELL, 0x9128, 0x9128),
    function_1(MARVELL, 0x9130, 0x9130),
    function_1(MARVELL, 0x9170, 0x9170),
    function_1(MARVELL, 0x9172, 0x9172),
    function_1(MARVELL, 0x917a, 0x917a),
    function_1(MARVELL, 0x9182, 0x9183),
    function_1(MARVELL, 0x91a0, 0x91a0),
    function_1(MARVELL, 0x9215, 0x9215),
    function_1(MARVELL, 0x9220, 0x9220),
    function_1(MARVELL, 0x9230, 0x9230),
    function_1(MARVELL, 0x9235, 0x9235),
    function_1(HIGHPOINT, 0x0642, 0x0642),
    function_1(HIGHPOINT, 0x0645, 0x0645),
    function_1(0x197b, 0x2392, 0x2392),
    function_1(0x1c28, 0x0122, 0x0122),
    card(0x9005, 0x0285, (0x9005, 0x02bb), (1, 0)),
    card(0x9005, 0x0285, (0x9005, 0x02bc), (1, 0)),
    device(INTEL, 0x2260, (0x10, 0)),
    device(INTEL, 0x2260, (0x11, 0)),
    device(INTEL, 0x2260, (0x12, 3)),
    device(INTEL, 0x2264, (0x10, 0)),
    device(INTEL, 0x2264, (0x11, 0)),
    device(INTEL, 0x2264, (0x12, 3)),
    all(INTEL, 0x2954, 0x2956, 5),
    all(INTEL, 0x2958, 0x295a, 5),
    all(0x10b5, 0x87b0, 0x87b1, 8),
    // Bridges from PCI Express that do not say so: ASMedia, Tundra, ITE, Intel.
    bridge(0x1b21, 0x1080, 0x1080),
    bridge(0x10e3, 0x8113, 0x8113),
    bridge(0x1283, 0x8892, 0x8893),
    bridge(INTEL, 0x244e, 0x244e),
    // ASPEED's bridge leaves names alone.
    Quirk::new(0x1a03, 0x1150..=0x1150, QuirkRule::NoBridgeAlias),
    // Cavium ThunderX2 translates below the root.
    Quirk::new(BROADCOM, 0x9000..=0x9000, QuirkRule::TranslationRoot),
    Quirk::new(BROADCOM, 0x9084..=0x9084, QuirkRule::TranslationRoot),
];

const fn switched_on(rule: QuirkRule, first: u16, last: u16) -> Quirk {
    only(ROOT_PORT, Quirk::new(INTEL, first..=last, rule))
}

const fn pch(first: u16, last: u16) -> Quirk {
    switched_on(QuirkRule::Isolates, first, last)
}

const fn sunrise_point(first: u16, last: u16) -> Quirk {
    switched_on(QuirkRule::AcsSwitchedOn, first, last)
}

/// What holds besides where Linux runs with an IOMMU, since it has switched it on in a way of the device's own: root ports of
/// Intel's chipsets. A kernel that has not done the same must not apply this.
#[doc(alias = "pci_dev_specific_enable_acs")]
pub const QUIRKS_UNDER_LINUX: &[Quirk] = &[
    pch(0x3b42, 0x3b51),
    pch(0x1c10, 0x1c1f),
    pch(0x1e10, 0x1e1f),
    pch(0x8c10, 0x8c1f),
    pch(0x9c10, 0x9c1b),
    pch(0x9c90, 0x9c9b),
    // The X79's and the 9 series' have even numbers only.
    pch(0x1d10, 0x1d10),
    pch(0x1d12, 0x1d12),
    pch(0x1d14, 0x1d14),
    pch(0x1d16, 0x1d16),
    pch(0x1d18, 0x1d18),
    pch(0x1d1a, 0x1d1a),
    pch(0x1d1c, 0x1d1c),
    pch(0x1d1e, 0x1d1e),
    pch(0x8d10, 0x8d1e),
    pch(0x8c90, 0x8c90),
    pch(0x8c92, 0x8c92),
    pch(0x8c94, 0x8c94),
    pch(0x8c96, 0x8c96),
    pch(0x8c98, 0x8c98),
    pch(0x8c9a, 0x8c9a),
    pch(0x8c9c, 0x8c9c),
    pch(0x8c9e, 0x8c9e),
    // Their control registers are where nobody looks, so reports of them say that nothing is on.
    sunrise_point(0x9d10, 0x9d1b),
    sunrise_point(0xa110, 0xa11f),
    sunrise_point(0xa167, 0xa16a),
    sunrise_point(0xa290, 0xa29f),
    sunrise_point(0xa2e7, 0xa2ee),
];
