//! The state of the units as text.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use amd_vi::command::Command;
use amd_vi::invalidate::Cover;
use common::*;
use iommu_core::{DomainOps, IommuOps};
use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, PhysAddr, Prot};

const DEV: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0100) };
const FIRST: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0010) };

#[track_caller]
fn has(text: &str, lines: &[String]) {
    let mut rest = text.lines();
    for line in lines {
        assert!(rest.any(|found| found == line), "{line:?} is not, in this order, in\n{text}");
    }
}

fn pages(setup: &Setup, dev: PciAddress) -> String {
    let mut text = String::new();
    // SAFETY: nobody unmaps anything.
    unsafe { setup.driver.dump_pages(dev, &mut text) }.unwrap();
    text
}

#[test]
fn registers_rings_and_device_tables() {
    let setup = bring_up_with(true, FEATURES, &[ivhd(0x10, 2, BASE, ENTRIES)]);
    setup.driver.probe_device(FIRST).unwrap();
    attach(&*setup.driver.identity_domain().unwrap(), FIRST, None).unwrap();
    setup.driver.probe_device(DEV).unwrap();
    attach(&*setup.driver.blocked_domain().unwrap(), DEV, None).unwrap();
    // What the unit does not execute waits; what it has logged waits too.
    setup.unit.switches.manual.store(true, Ordering::Relaxed);
    let unit = &setup.driver.units()[0];
    let commands = [
        Command::invalidate_devtab_entry(0x0100),
        Command::invalidate_iommu_pages(7, Cover::containing(0x5000, 0x5fff), true),
    ];
    let ticket = unit.commands().submit(&commands).unwrap();
    setup.unit.log(2 << 60 | 0x0100 | 7 << 32, 0x1234_5000);
    let text = setup.driver.dump().to_string();
    let [q0, q1, q2, q3] = setup.unit.entry(0x0010);
    let [b0, b1, b2, b3] = setup.unit.entry(0x0100);
    let (head, tail) = (setup.unit.register(0x2000), setup.unit.register(0x2008));
    let control = setup.unit.register(0x18);
    has(
        &text,
        &[
            "IOMMU 0000:00:00.2, registers at 0xfeb80000, remembers absence (NpCache)".into(),
            format!("  0000 DeviceTableBase   {:#018x}", setup.unit.register(0)),
            format!(
                "  0018 Control           {control:#018x} IommuEn HtTunEn EventLogEn EventIntEn ResPassPW Coherent Isoc CmdBufEn"
            ),
            format!("  0030 ExtendedFeature   {FEATURES:#018x}"),
            format!("  2000 CommandHead       {head:#018x}"),
            format!("  2008 CommandTail       {tail:#018x}"),
            format!(
                "  2020 Status            {:#018x} EventLogInt EventLogRun CmdBufRun",
                setup.unit.register(0x2020)
            ),
        ],
    );
    assert_eq!(tail - head, 48);
    let waiting: Vec<_> = text.lines().skip_while(|line| !line.starts_with("  command buffer")).collect();
    assert!(waiting[0].starts_with("  command buffer: 3 waiting; "), "{text}");
    assert_eq!(waiting[1], "    2000000000000100 0000000000000000 INVALIDATE_DEVTAB_ENTRY device=01:00.0");
    assert_eq!(waiting[2], "    3000000700000000 0000000000005002 INVALIDATE_IOMMU_PAGES domain=0x0007");
    assert!(waiting[3].contains(" COMPLETION_WAIT stores 0x"), "{text}");
    assert_eq!(waiting[4], "  event log: 1 waiting; 0 read, 0 overflows so far");
    assert_eq!(
        waiting[5],
        "    AMD-Vi: Event logged [IO_PAGE_FAULT device=01:00.0 domain=0x0007 address=0x12345000 flags=0x0000]"
    );
    let base = setup.unit.register(0) & 0x000f_ffff_ffff_f000;
    assert_eq!(waiting[6], format!("device table of segment 0 at {base:#x}, 512 entries"));
    assert_eq!(
        waiting[7],
        format!(
            "  00:02.0 {q3:016x} {q2:016x} {q1:016x} {q0:016x} identity, domain {}; interrupts pass",
            q1 & 0xffff
        )
    );
    assert_eq!(
        waiting[8],
        format!("  01:00.0 {b3:016x} {b2:016x} {b1:016x} {b0:016x} blocked; interrupts pass")
    );
    assert_eq!(waiting[9..], ["  510 blocked as at the start"]);
    // It was only looked at.
    assert_eq!(setup.driver.dump().to_string(), text);
    setup.unit.step();
    unit.commands().wait(ticket).unwrap();
    assert!(setup.driver.dump().to_string().contains("  command buffer: 0 waiting; "));
    let mut events = 0;
    let _ = setup.driver.handle_events(&mut |_, _| events += 1);
    assert_eq!(events, 1);
}

#[test]
fn pages_of_a_domain() {
    let setup = bring_up();
    assert_eq!(pages(&setup, DEV), "0000:01:00.0 is in no paging domain\n");
    setup.driver.probe_device(DEV).unwrap();
    let domain: Arc<dyn DomainOps> = setup.driver.domain_alloc_paging(DEV).unwrap();
    attach(&*domain, DEV, None).unwrap();
    let both = Prot::READ | Prot::WRITE;
    for (iova, phys, count, prot) in [
        (0x1000, 0x7000, 2, both),
        (0x3000, 0x9000, 1, Prot::READ),
        (0x4000, 0xa000, 1, Prot::READ),
        (0x5000, 0x1000, 1, Prot::READ),
        (0xffff_ffff_f000, 0x2000, 1, both),
    ] {
        // SAFETY: the device of this machine touches no memory.
        let (_, mapped) =
            unsafe { domain.map_pages(DmaAddr::new(iova), PhysAddr::new(phys), 4096, count, prot) };
        mapped.unwrap();
    }
    let id = setup.unit.entry(0x0100)[1] & 0xffff;
    // Every page is coherent.
    let line = |iova: u64, phys: u64, len: u64, prot: Prot| {
        let prot = prot | Prot::CACHE;
        format!("  {iova:#018x} -> {phys:#018x}  {len:#x} bytes  {prot:?}")
    };
    let text = pages(&setup, DEV);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with(&format!("0000:01:00.0 is in domain {id}, ")), "{text}");
    assert_eq!(
        lines[1..],
        [
            line(0x1000, 0x7000, 0x2000, both),
            line(0x3000, 0x9000, 0x2000, Prot::READ),
            line(0x5000, 0x1000, 0x1000, Prot::READ),
            line(0xffff_ffff_f000, 0x2000, 0x1000, both),
        ]
    );
    let table = setup.driver.dump().to_string();
    let root = setup.unit.entry(0x0100)[0] & 0x000f_ffff_ffff_f000;
    assert!(table.contains(&format!(" domain {id}, 4 levels at {root:#x}; interrupts pass\n")), "{table}");
}
