//! What Identify returns (NVM Express 1.4, section 5.15).

use alloc::string::String;

/// Bytes in each data structure of Identify.
pub(crate) const IDENTIFY_LEN: usize = 4096;

/// The controller, as it describes itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControllerInfo {
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// NVMe version: major, minor, tertiary.
    pub version: (u16, u8, u8),
    /// The longest transfer of one command in bytes, as the controller limits it; `None` when it does not.
    pub max_transfer: Option<usize>,
    /// How many namespaces there may be.
    pub namespaces: u32,
}

/// One namespace: a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamespaceInfo {
    /// Its identifier, from 1.
    pub id: u32,
    /// How many blocks it has.
    pub blocks: u64,
    /// Bytes in a block, a power of two.
    pub block_size: usize,
}

fn little_endian<const N: usize>(data: &[u8], offset: usize) -> u64 {
    data.iter().skip(offset).take(N).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn text(data: &[u8], offset: usize, len: usize) -> String {
    let bytes = data.get(offset..offset + len).unwrap_or_default();
    String::from_utf8_lossy(bytes).trim_matches([' ', '\0']).into()
}

pub(crate) fn controller(data: &[u8], version: (u16, u8, u8)) -> ControllerInfo {
    let transfer_shift = little_endian::<1>(data, 77) as u32;
    ControllerInfo {
        serial: text(data, 4, 20),
        model: text(data, 24, 40),
        firmware: text(data, 64, 8),
        version,
        // In units of the smallest page, which is 4 KiB here; a shift that leaves usize limits nothing.
        max_transfer: (transfer_shift != 0).then(|| 4096usize.checked_shl(transfer_shift)).flatten(),
        namespaces: little_endian::<4>(data, 516) as u32,
    }
}

/// `None` when the namespace is not there, or its block size is none that this driver can use (512 bytes to 4 KiB,
/// without metadata).
pub(crate) fn namespace(data: &[u8], id: u32) -> Option<NamespaceInfo> {
    let blocks = little_endian::<8>(data, 0);
    let format = little_endian::<1>(data, 26) as usize & 0xf;
    let descriptor = little_endian::<4>(data, 128 + 4 * format);
    let metadata = descriptor & 0xffff;
    let shift = descriptor >> 16 & 0xff;
    (blocks != 0 && metadata == 0 && (9..=12).contains(&shift)).then(|| NamespaceInfo {
        id,
        blocks,
        block_size: 1 << shift,
    })
}
