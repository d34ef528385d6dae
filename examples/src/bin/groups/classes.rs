//! Class codes in words.

/// Base class and subclass, and what they are.
const CLASSES: [(u32, &str); 40] = [
    (0x0001, "VGA compatible device"),
    (0x0100, "SCSI controller"),
    (0x0101, "IDE controller"),
    (0x0104, "RAID controller"),
    (0x0106, "SATA controller"),
    (0x0107, "SAS controller"),
    (0x0108, "NVMe controller"),
    (0x0180, "storage controller"),
    (0x0200, "Ethernet controller"),
    (0x0207, "InfiniBand controller"),
    (0x0280, "network controller"),
    (0x0300, "VGA controller"),
    (0x0302, "3D controller"),
    (0x0380, "display controller"),
    (0x0400, "video controller"),
    (0x0401, "audio controller"),
    (0x0403, "audio device"),
    (0x0480, "multimedia controller"),
    (0x0500, "RAM"),
    (0x0580, "memory controller"),
    (0x0600, "host bridge"),
    (0x0601, "ISA bridge"),
    (0x0604, "PCI bridge"),
    (0x0680, "bridge"),
    (0x0700, "serial controller"),
    (0x0780, "communication controller"),
    (0x0800, "interrupt controller"),
    (0x0805, "SD host controller"),
    (0x0806, "IOMMU"),
    (0x0807, "event collector"),
    (0x0880, "system peripheral"),
    (0x0c03, "USB controller"),
    (0x0c05, "SMBus"),
    (0x0c80, "serial bus controller"),
    (0x0d11, "Bluetooth"),
    (0x0d80, "wireless controller"),
    (0x1080, "encryption controller"),
    (0x1180, "signal processing controller"),
    (0x1200, "processing accelerator"),
    (0x1300, "instrumentation"),
];

/// A class code (base class in bits 23:16, subclass in 15:8) in words.
pub(crate) fn words(class: u32) -> String {
    let known = CLASSES.iter().find(|(code, _)| *code == class >> 8);
    known.map_or_else(|| format!("class {:04x}", class >> 8), |(_, words)| (*words).into())
}
