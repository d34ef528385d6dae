//! Whatever a guest writes to memory and to the registers of the simulated IOMMU, and whatever its devices ask for, the unit
//! goes on, touches no memory but the machine's, and stops when it is told to.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use platform::Mmio;
use platform::pci::RequesterId;
use sim_hardware::bus::{MessageSink, Remapper};
use sim_hardware::iommu::{AmdIommu, Config};
use sim_hardware::ram::Ram;

/// Bytes of memory, from address 0.
const MEMORY: u64 = 1 << 18;
/// Bytes of a step.
const STEP: usize = 12;
/// Registers that do something.
const REGISTERS: [usize; 12] =
    [0x00, 0x08, 0x10, 0x18, 0x20, 0x28, 0x2000, 0x2008, 0x2010, 0x2018, 0x2020, 0x30];

struct Nobody;

impl MessageSink for Nobody {
    fn message(&self, _address: u64, _data: u32) {}
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[switches, capacity], steps)) = bytes.split_first_chunk::<2>() else { return };
    let config = Config::default();
    let config = Config {
        efr: config.efr ^ u64::from(switches >> 4) << 10,
        np_cache: switches & 1 != 0,
        lenient_invalidation: switches & 2 != 0,
        iotlb_capacity: (switches & 4 != 0).then_some(capacity.into()),
        ..config
    };
    let ram = Ram::new(&[(0, MEMORY)]).expect("memory");
    let unit = AmdIommu::new(config, Arc::clone(&ram), Arc::new(Nobody));
    steps.chunks_exact(STEP).for_each(|step| take(&unit, &ram, step));
    unit.shutdown();
    assert!(unit.stats().iotlb_hits <= unit.stats().requests);
});

fn take(unit: &AmdIommu, ram: &Ram, step: &[u8]) {
    let at = u64::from(u16::from_le_bytes([step[2], step[3]]));
    let mut value = u64::from_le_bytes([4, 5, 6, 7, 8, 9, 10, 11].map(|index| step[index]));
    // Half of all addresses are the machine's.
    if step[1] & 1 != 0 {
        value &= !0x000f_ffff_fffc_0000;
    }
    let device = RequesterId::new(u16::from(step[1] >> 4));
    match step[0] % 8 {
        0 | 1 => {
            let register = REGISTERS[usize::from(step[1] >> 1) % REGISTERS.len()];
            unit.write64(register, value);
        }
        2 => unit.write32(usize::from(at as u16), value as u32),
        3 => {
            let _ = (unit.read64(usize::from(at as u16)), unit.read32(usize::from(at as u16)));
        }
        4 | 5 => {
            // Beyond memory it is refused.
            let _ = ram.write64(at * 8, value);
        }
        6 => {
            let write = step[1] & 2 != 0;
            let _ = unit.with_translation(device, value, at + 1, write, &mut |translated| {
                assert!(translated.len > 0 && translated.len <= at + 1);
                Ok(())
            });
        }
        _ => {
            let _ = unit.interrupt(device, 0xfee0_0000 | value & 0xf_ffff, at as u32);
        }
    }
}
