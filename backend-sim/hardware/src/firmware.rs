//! What firmware writes: the IVRS, which tells software of the IOMMU (AMD I/O Virtualization Technology, section 5).

use platform::pci::RequesterId;

/// What the IVRS says.
#[derive(Clone, Debug)]
pub struct IvrsConfig {
    /// The IOMMU's registers.
    pub base: u64,
    /// Its Extended Feature Register.
    pub efr: u64,
    /// Its second Extended Feature Register.
    pub efr2: u64,
    /// Where its capability block is in its configuration space.
    pub capability: u16,
    /// Whether devices may keep translations.
    pub iotlb_sup: bool,
    /// The first and last function that it translates.
    pub devices: (RequesterId, RequesterId),
    /// The IO-APIC: its number, and the name that its interrupts carry.
    pub io_apic: (u8, RequesterId),
    /// The HPET: its number, and the name that its interrupts carry.
    pub hpet: (u8, RequesterId),
}

/// Writes an IVRS with the unit at 00:00.2 described twice, as types 10h and 11h, with the same devices.
pub fn ivrs(config: &IvrsConfig) -> Vec<u8> {
    const IV_INFO: u32 = 0x0020_3041;
    let mut table = Vec::new();
    table.extend_from_slice(b"IVRS");
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&[2, 0]);
    table.extend_from_slice(b"SIMHW ");
    table.extend_from_slice(b"MACHINE1");
    table.extend_from_slice(&1_u32.to_le_bytes());
    table.extend_from_slice(b"SIM ");
    table.extend_from_slice(&1_u32.to_le_bytes());
    table.extend_from_slice(&IV_INFO.to_le_bytes());
    table.extend_from_slice(&[0; 8]);
    for kind in [0x10, 0x11] {
        let block = ivhd(kind, config);
        table.extend_from_slice(&block);
    }
    let len = (table.len() as u32).to_le_bytes();
    table[4..8].copy_from_slice(&len);
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    table
}

fn ivhd(kind: u8, config: &IvrsConfig) -> Vec<u8> {
    /// Coherent, and no HyperTransport tunnel of its own.
    const COHERENT: u8 = 1 << 5;
    const IOTLB_SUP: u8 = 1 << 4;
    let flags = COHERENT | if config.iotlb_sup { IOTLB_SUP } else { 0 };
    let iommu = RequesterId::from_parts(0, 0, 2).get();
    let mut block = vec![kind, flags, 0, 0];
    block.extend_from_slice(&iommu.to_le_bytes());
    block.extend_from_slice(&config.capability.to_le_bytes());
    block.extend_from_slice(&config.base.to_le_bytes());
    // Segment 0, no message numbers, no attributes.
    block.extend_from_slice(&[0; 8]);
    if kind != 0x10 {
        block.extend_from_slice(&config.efr.to_le_bytes());
        block.extend_from_slice(&config.efr2.to_le_bytes());
    }
    let four = |kind: u8, id: RequesterId, flags: u8| {
        let [low, high] = id.get().to_le_bytes();
        [kind, low, high, flags]
    };
    block.extend_from_slice(&four(0x03, config.devices.0, 0));
    block.extend_from_slice(&four(0x04, config.devices.1, 0));
    // The IO-APIC: INIT, ExtInt and NMI pass, and LINT0 and LINT1.
    let (handle, id) = config.io_apic;
    let [low, high] = id.get().to_le_bytes();
    block.extend_from_slice(&[0x48, 0, 0, 0xc7, handle, low, high, 1]);
    let (handle, id) = config.hpet;
    let [low, high] = id.get().to_le_bytes();
    block.extend_from_slice(&[0x48, 0, 0, 0, handle, low, high, 2]);
    // Padding, as firmware likes it.
    block.extend_from_slice(&[0; 4]);
    let len = (block.len() as u16).to_le_bytes();
    block[2..4].copy_from_slice(&len);
    block
}
