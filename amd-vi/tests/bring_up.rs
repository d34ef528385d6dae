//! Bringing units up and turning them off: what is written to which register, in which order, and what failures say.

mod common;

use std::sync::atomic::Ordering;

use amd_vi::{AmdVi, CommandError, InitError};
use common::*;
use iommu_core::IommuOps;
use platform::pci::PciAddress;

const CONTROL: usize = 0x18;

/// Control bits.
const IOMMU_EN: u64 = 1 << 0;
const HT_TUN_EN: u64 = 1 << 1;
const EVENT_LOG_EN: u64 = 1 << 2;
const EVENT_INT_EN: u64 = 1 << 3;
const INV_TIMEOUT_1S: u64 = 4 << 5;
const PASS_PW: u64 = 1 << 8;
const RES_PASS_PW: u64 = 1 << 9;
const COHERENT: u64 = 1 << 10;
const ISOC: u64 = 1 << 11;
const CMD_BUF_EN: u64 = 1 << 12;

#[test]
fn registers_are_written_in_the_order_of_the_specification() {
    let setup = bring_up();
    let writes = setup.unit.take_writes();
    let first = |what: &str, matches: &dyn Fn(usize, u64) -> bool| {
        writes
            .iter()
            .position(|&(at, value)| matches(at, value))
            .unwrap_or_else(|| panic!("{what} is not written"))
    };
    let flags = first("the flags", &|at, value| at == CONTROL && value & COHERENT != 0);
    let table = first("the device table base", &|at, _| at == 0x00);
    let commands = first("the command buffer base", &|at, _| at == 0x08);
    let log = first("the event log base", &|at, _| at == 0x10);
    let events_on = first("EventLogEn", &|at, value| at == CONTROL && value & EVENT_LOG_EN != 0);
    let commands_on = first("CmdBufEn", &|at, value| at == CONTROL && value & CMD_BUF_EN != 0);
    let on = first("IommuEn", &|at, value| at == CONTROL && value & IOMMU_EN != 0);
    let interrupts_on = first("EventIntEn", &|at, value| at == CONTROL && value & EVENT_INT_EN != 0);
    let first_command = first("a command", &|at, value| at == 0x2008 && value != 0);
    let order = [flags, table, commands, log, events_on, commands_on, on, first_command, interrupts_on];
    assert!(order.is_sorted(), "{order:?} in {writes:x?}");
    // Base registers come before the pointers' zeros, and those before the enable bits.
    for (base, pointer) in [(commands, 0x2000), (commands, 0x2008), (log, 0x2010), (log, 0x2018)] {
        let zero = first("a pointer", &|at, value| at == pointer && value == 0);
        assert!(base < zero && zero < events_on);
    }
}

#[test]
fn the_control_register_has_what_firmware_and_linux_set() {
    let setup = bring_up();
    let control = setup.unit.register(CONTROL);
    let expected = IOMMU_EN
        | HT_TUN_EN
        | EVENT_LOG_EN
        | EVENT_INT_EN
        | INV_TIMEOUT_1S
        | RES_PASS_PW
        | COHERENT
        | ISOC
        | CMD_BUF_EN;
    assert_eq!(control, expected);
    assert_eq!(control & PASS_PW, 0);
}

#[test]
fn ring_sizes_and_the_table_size_are_coded_as_the_specification_says() {
    let setup = bring_up();
    assert_eq!(setup.unit.register(0x08) >> 56, 8);
    assert_eq!(setup.unit.register(0x10) >> 56, 8);
    // Devices up to 01ffh: 512 entries of 32 bytes are four 4 KiB units, coded as 3.
    assert_eq!(setup.unit.register(0x00) & 0x1ff, 3);
}

#[test]
fn every_device_is_blocked_at_first_and_keeps_the_flags_of_the_smallest_range() {
    // The range that has the one device, with other flags, may come before it or after it.
    let ([select, range], rest) = ([&ENTRIES[8..12], &ENTRIES[..8]], &ENTRIES[12..]);
    for entries in [[range, select, rest], [select, range, rest]] {
        let setup = bring_up_with(false, FEATURES, &[ivhd(0x10, 2, BASE, &entries.concat())]);
        for device in 0..0x200u16 {
            let expected = if device == 0x00a0 {
                [1 | 1 << 62, 1 << 40, 1 | 7 << 56 | 3 << 62, 0]
            } else {
                [1, 0, 1, 0]
            };
            assert_eq!(setup.unit.entry(device), expected, "device {device:#06x}");
        }
    }
}

#[test]
fn interrupts_of_io_apics_and_timers_are_never_aborted() {
    let entries = [ENTRIES, &[0x48, 0, 0, 0, 33, 0xa0, 0x00, 1]].concat();
    let setup = bring_up_with(false, FEATURES, &[ivhd(0x10, 2, BASE, &entries)]);
    let int_ctl = |device| setup.unit.entry(device)[2] >> 60 & 3;
    assert_eq!((int_ctl(0x00a0), int_ctl(0x00a1)), (1, 0));
    let southbridge = PciAddress::new(0, 0, 0x14, 0);
    setup.driver.probe_device(southbridge).unwrap();
    setup.driver.release_device(southbridge);
    assert_eq!((int_ctl(0x00a0), setup.unit.entry(0x00a0)[0] & 3), (1, 1));
}

#[test]
fn the_caches_are_emptied_before_anything_else_is_done() {
    let setup = bring_up();
    assert_eq!(setup.unit.take_commands()[0], (8 << 60, 0));
}

#[test]
fn without_ia_sup_the_caches_are_emptied_one_by_one() {
    let setup = bring_up_with(false, 0, &[ivhd(0x10, 2, BASE, ENTRIES)]);
    let commands = setup.unit.take_invalidations();
    let all = |op: u64| {
        commands.iter().filter(move |(q0, _)| q0 >> 60 == op).map(|(q0, _)| *q0 & 0x0fff_ffff_ffff_ffff)
    };
    assert!(all(2).eq(0..0x200) && all(5).eq(0..0x200));
    assert!(all(3).eq((0..0x1_0000).map(|domain| domain << 32)));
    assert!(commands.iter().filter(|(q0, _)| q0 >> 60 == 3).all(|(_, q1)| *q1 == 0x7fff_ffff_ffff_f003));
}

#[test]
fn the_message_is_programmed_before_interrupts_are_enabled() {
    let setup = bring_up();
    assert_eq!(setup.hardware.config.word(IOMMU, 0x68), 0xfee0_1000);
    assert_eq!(setup.hardware.config.word(IOMMU, 0x6c), 0);
    assert_eq!(setup.hardware.config.word(IOMMU, 0x70), 0x41);
    assert_eq!(setup.hardware.config.word(IOMMU, 0x64) >> 16 & 1, 1);
}

#[test]
fn what_firmware_left_running_is_stopped_first() {
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    unit.set_register(CONTROL, IOMMU_EN | CMD_BUF_EN | EVENT_LOG_EN | 1 << 13 | 1 << 28);
    let hardware = hardware(&unit, false);
    try_bring_up(&machine, &hardware, &[ivhd(0x10, 2, BASE, ENTRIES)]).unwrap();
    let writes = unit.take_writes();
    assert_eq!(writes[0], (CONTROL, IOMMU_EN), "the engines stop while the unit still translates");
    assert_eq!(writes[1], (CONTROL, 0));
}

#[test]
fn what_somebody_before_switched_on_is_off() {
    const DEV_TBL_SEG_EN: u64 = 3 << 34;
    const OTHERS: u64 = 1 << 16 | 1 << 17 | 1 << 30 | 1 << 32 | 1 << 40 | 1 << 50 | 1 << 58;
    const FIRMWARES_OWN: u64 = 5 << 18 | 1 << 22 | 1 << 24;
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    unit.set_register(CONTROL, PASS_PW | DEV_TBL_SEG_EN | OTHERS | FIRMWARES_OWN);
    let hardware = hardware(&unit, false);
    let _driver = try_bring_up(&machine, &hardware, &[ivhd(0x10, 2, BASE, ENTRIES)]).unwrap();
    let control = unit.register(CONTROL);
    assert_eq!(control & (PASS_PW | DEV_TBL_SEG_EN | OTHERS), 0, "{control:#x}");
    assert_eq!(control & FIRMWARES_OWN, FIRMWARES_OWN);
}

#[test]
fn an_overflow_that_somebody_before_left_is_cleared() {
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    unit.set_register(0x2020, 0b11);
    let hardware = hardware(&unit, false);
    let _driver = try_bring_up(&machine, &hardware, &[ivhd(0x10, 2, BASE, ENTRIES)]).unwrap();
    assert_eq!(unit.register(0x2020) & 0b1111, 0b1000);
}

#[test]
fn the_richest_block_counts() {
    let rich = ivhd(0x11, 2, BASE, &[0x02, 0x08, 0x00, 0x00]);
    let setup = bring_up_with(false, FEATURES, &[ivhd(0x10, 2, BASE, ENTRIES), rich]);
    assert!(setup.driver.probe_device(PciAddress::new(0, 0, 1, 0)).is_ok());
    assert!(setup.driver.probe_device(PciAddress::new(0, 0, 2, 0)).is_err());
}

fn failing(prepare: impl FnOnce(&FakeUnit, &FakeHardware)) -> (InitError, usize) {
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    let hardware = hardware(&unit, false);
    prepare(&unit, &hardware);
    let error = try_bring_up(&machine, &hardware, &[ivhd(0x10, 2, BASE, ENTRIES)]).unwrap_err();
    (error, machine.live.load(Ordering::Relaxed))
}

#[test]
fn each_failure_has_a_name_and_gives_everything_back() {
    assert_eq!(
        failing(|_, hardware| hardware.config.remove(IOMMU, 0x40)),
        (InitError::NoCapability(IOMMU), 0)
    );
    assert_eq!(failing(|_, hardware| hardware.config.remove(IOMMU, 0x64)), (InitError::NoMsi(IOMMU), 0));
    assert_eq!(
        failing(|unit, _| unit.switches.never_run.store(true, Ordering::Relaxed)),
        (InitError::DoesNotStart(IOMMU), 0)
    );
    assert_eq!(
        failing(|unit, _| unit.switches.lose_completions.store(true, Ordering::Relaxed)),
        (InitError::Commands { unit: IOMMU, error: CommandError::Timeout }, 0)
    );
    let (error, _) = failing(|_, hardware| hardware.config.add_iommu(IOMMU, BASE + 0x4000, false));
    assert!(matches!(error, InitError::BaseMismatch { .. }));
}

#[test]
fn a_unit_that_does_not_stop_keeps_its_memory() {
    let (error, live) = failing(|unit, _| unit.switches.never_stop.store(true, Ordering::Relaxed));
    assert_eq!(error, InitError::DoesNotStop(IOMMU));
    assert!(live > 0);
}

#[test]
fn a_failed_bring_up_leaves_the_unit_off() {
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    let hardware = hardware(&unit, false);
    unit.switches.lose_completions.store(true, Ordering::Relaxed);
    try_bring_up(&machine, &hardware, &[ivhd(0x10, 2, BASE, ENTRIES)]).unwrap_err();
    assert_eq!(unit.register(CONTROL) & (IOMMU_EN | CMD_BUF_EN | EVENT_LOG_EN), 0);
}

#[test]
fn tables_without_units_and_units_without_registers_are_refused() {
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    let hardware = hardware(&unit, false);
    assert_eq!(try_bring_up(&machine, &hardware, &[]).unwrap_err(), InitError::NoUnits);
    hardware.config.add_iommu(IOMMU, BASE + 0x10_0000, false);
    let elsewhere = [ivhd(0x10, 2, BASE + 0x10_0000, ENTRIES)];
    assert_eq!(try_bring_up(&machine, &hardware, &elsewhere).unwrap_err(), InitError::NoRegisters(IOMMU));
    let error = AmdVi::init(machine.clone(), b"DSDT", &hardware, config()).unwrap_err();
    assert!(matches!(error, InitError::Ivrs(_)));
    assert_eq!(machine.live.load(Ordering::Relaxed), 0);
}

#[test]
fn shutdown_stops_the_unit_and_gives_everything_back() {
    let Setup { machine, unit, hardware, driver } = bring_up();
    // SAFETY: there are no devices.
    unsafe { driver.shutdown(&hardware.config) }.unwrap();
    assert_eq!(unit.register(CONTROL) & (IOMMU_EN | CMD_BUF_EN | EVENT_LOG_EN | EVENT_INT_EN), 0);
    assert_eq!(hardware.config.word(IOMMU, 0x64) >> 16 & 1, 0);
    assert_eq!(driver.units()[0].commands().submit(&[]), Err(CommandError::Stopped));
    drop(driver);
    assert_eq!(machine.live.load(Ordering::Relaxed), 0);
}

#[test]
fn dropping_the_driver_leaves_the_unit_protecting() {
    let Setup { machine, unit, driver, .. } = bring_up();
    drop(driver);
    assert_eq!(unit.register(CONTROL) & IOMMU_EN, IOMMU_EN);
    assert!(machine.live.load(Ordering::Relaxed) > 0);
    assert_eq!(unit.entry(8), [1, 0, 1, 0]);
}
