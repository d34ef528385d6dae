//! The table as one JSON object.

use std::collections::BTreeMap;

use amd_vi::ivrs::{DeviceEntry, Ivhd, IvmdScope, Uid};
use platform::pci::RequesterId;
use serde_json::{Map, Value, json};

use crate::Decoded;
use crate::text::name;

/// Everything that a script may want. Special and ACPI devices and aliases are those of the block that counts of each unit;
/// blocks and entries are counted in the whole table.
pub(crate) fn object(decoded: &Decoded) -> Value {
    let ivrs = &decoded.ivrs;
    let (mut special, mut hids, mut aliases) = (Vec::new(), Vec::new(), Vec::new());
    for unit in ivrs.units() {
        let segment = unit.address.segment;
        for entry in &unit.entries {
            match entry {
                DeviceEntry::Special { kind, handle, device, flags } => special.push(json!({
                    "kind": kind.to_string(),
                    "handle": handle,
                    "segment": segment,
                    "device": id(*device),
                    "flags": hex(u64::from(flags.into_bits())),
                })),
                DeviceEntry::Acpi { device, flags, hid, cid, uid } => hids.push(json!({
                    "hid": name(hid),
                    "cid": name(cid),
                    "uid": match uid {
                        Uid::None => Value::Null,
                        Uid::Integer(number) => json!(number),
                        Uid::String(text) => json!(String::from_utf8_lossy(text)),
                    },
                    "segment": segment,
                    "device": id(*device),
                    "flags": hex(u64::from(flags.into_bits())),
                })),
                DeviceEntry::Alias { first, last, alias, flags } => aliases.push(json!({
                    "segment": segment,
                    "first": id(*first),
                    "last": id(*last),
                    "alias": id(*alias),
                    "flags": hex(u64::from(flags.into_bits())),
                })),
                DeviceEntry::All { .. } | DeviceEntry::Devices { .. } => {}
            }
        }
    }
    let ivmds = ivrs.ivmds.iter().map(|ivmd| {
        let devices = match ivmd.scope {
            IvmdScope::All => Value::Null,
            IvmdScope::Device(device) => json!([id(device), id(device)]),
            IvmdScope::Range(first, last) => json!([id(first), id(last)]),
        };
        json!({
            "type": hex(u64::from(ivmd.kind)),
            "flags": hex(u64::from(ivmd.flags)),
            "segment": ivmd.segment,
            "devices": devices,
            "start": hex(ivmd.start),
            "length": hex(ivmd.len),
        })
    });
    json!({
        "units": ivrs.units().into_iter().map(unit).collect::<Vec<_>>(),
        "blocks": counts(&ivrs.blocks),
        "entries": counts(&ivrs.entries),
        "special": special,
        "hids": hids,
        "aliases": aliases,
        "ivmds": ivmds.collect::<Vec<_>>(),
        "warnings": decoded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn unit(ivhd: &Ivhd) -> Value {
    let ranges = ivhd.entries.iter().filter_map(|entry| match entry {
        DeviceEntry::All { flags } => Some((0, u16::MAX, flags)),
        DeviceEntry::Devices { first, last, flags, .. } => Some((*first, *last, flags)),
        _ => None,
    });
    json!({
        "address": ivhd.address.to_string(),
        "type": hex(u64::from(ivhd.kind)),
        "flags": hex(u64::from(ivhd.flags.bits())),
        "capability": hex(u64::from(ivhd.capability_offset)),
        "base": hex(ivhd.mmio_base.get()),
        "info": hex(u64::from(ivhd.info)),
        "features": hex(u64::from(ivhd.features)),
        "efr": ivhd.efr.map(|efr| hex(efr.into_bits())),
        "efr2": ivhd.efr2.map(|efr2| hex(efr2.into_bits())),
        "devices": ranges.map(|(first, last, flags)| json!({
            "first": id(first),
            "last": id(last),
            "flags": hex(u64::from(flags.into_bits())),
        })).collect::<Vec<_>>(),
    })
}

fn counts(counts: &BTreeMap<u8, usize>) -> Map<String, Value> {
    counts.iter().map(|(kind, count)| (hex(u64::from(*kind)), json!(count))).collect()
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

fn id(device: u16) -> String {
    RequesterId::new(device).to_string()
}
