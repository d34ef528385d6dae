//! What Linux shows of its PCI tree, on the console: for each function its configuration space and its group.

use std::fs;
use std::io::{self, Write};

use backend_vfio::Host;

use crate::Failure;

/// Bytes of a line.
const LINE: usize = 32;

/// Says it all. A function is a line with its address, how many bytes of its configuration space can be read, and its group (`-`
/// when it is behind no IOMMU); then its bytes in lines of an offset and hexadecimal digits, those left out that are all zero.
pub(crate) fn show() -> Result<(), Failure> {
    let host = Host::default();
    let functions = host.functions()?;
    let mut out = io::stdout().lock();
    for address in &functions {
        let config = fs::read(format!("/sys/bus/pci/devices/{address}/config"))?;
        let group = host.group_of(*address).map_or_else(|| "-".into(), |group| group.to_string());
        writeln!(out, "pci function {address} {} {group}", config.len())?;
        for (offset, bytes) in (0..).step_by(LINE).zip(config.chunks(LINE)) {
            if bytes.iter().any(|&byte| byte != 0) {
                let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(out, "pci bytes {offset:03x} {digits}")?;
            }
        }
    }
    writeln!(out, "pci functions {}", functions.len())?;
    Ok(())
}
