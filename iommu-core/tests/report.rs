//! A machine as text.

use iommu_core::pci::{AcsFlags, DeviceId, PortType, Report, ReportError, ReportProblem};
use platform::pci::PciAddress;

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function)
}

/// A line, its fields with spaces between them here.
fn line(fields: &str) -> String {
    fields.split_whitespace().map(|field| field.replace('_', " ")).collect::<Vec<_>>().join("\t")
}

fn problem(fields: &str) -> ReportProblem {
    Report::parse(&line(fields)).unwrap_err().problem
}

#[test]
fn lines_become_functions() {
    let text = [
        "bdf\tvendor_device\tclass\tpcie_type\tsecondary_bus\tacs_cap\tacs_ctl\tlinux_group",
        "# by hand",
        "",
        &line("0000:00:1c.0 8086:a338 PCI_bridge Root_Port 0a SrcValid+TransBlk+ReqRedir SrcValid 6"),
        &line("0a:00.0 - Ethernet_controller Endpoint - - - 7"),
        "0a:00.1\t-\t-\tLegacy Endpoint\t-\t\t\t7",
        &line("0001:00:02.0 - - Root_Complex_Integrated_Endpoint - - - -"),
        &line("0000:00:02.0 1022:1234 - Root_Complex_Integrated_Endpoint - - - -"),
        &line("0000:00:1f.3 - Audio - - - - 8"),
    ]
    .join("\n");
    let report = Report::parse(&text).unwrap();
    let node = |address| report.topology.get(address).unwrap();
    let port = node(at(0, 0x1c, 0));
    assert_eq!(port.id, Some(DeviceId { vendor: 0x8086, device: 0xa338, subsystem: None }));
    assert_eq!((port.port_type, port.class, port.secondary_bus), (PortType::RootPort, 0x06_04_00, Some(10)));
    assert_eq!(port.acs, Some((AcsFlags::SV | AcsFlags::TB | AcsFlags::RR, AcsFlags::SV)));
    assert!(!port.multifunction);
    let nic = [node(at(10, 0, 0)), node(at(10, 0, 1))];
    assert_eq!(
        nic.map(|node| (node.port_type, node.multifunction, node.id)),
        [(PortType::Endpoint, true, None); 2]
    );
    assert_eq!((nic[0].acs, nic[1].acs), (None, Some((AcsFlags::empty(), AcsFlags::empty()))));
    // One without ids counts as Intel's.
    assert_eq!(node(PciAddress::new(1, 0, 2, 0)).quirks.acs, Some(AcsFlags::ISOLATED));
    assert_eq!(node(at(0, 2, 0)).quirks.acs, None);
    assert!(node(at(0, 0x1f, 3)).multifunction, "there must be a first function");
    assert_eq!(report.classes[&at(10, 0, 0)].as_ref(), "Ethernet controller");
    assert_eq!(
        (report.linux_groups.get(&at(10, 0, 1)), report.linux_groups.get(&at(0, 2, 0))),
        (Some(&7), None)
    );
}

#[test]
fn all_types_and_services_are_known() {
    let node = |kind: &str| {
        let text = line(&format!("00:01.0 - - {kind} - - - -"));
        Report::parse(&text).unwrap().topology.get(at(0, 1, 0)).unwrap().port_type
    };
    assert_eq!(node("-"), PortType::Conventional);
    assert_eq!(node("Root_Complex_Event_Collector"), PortType::EventCollector);
    assert_eq!(node("Upstream_Port"), PortType::UpstreamPort);
    assert_eq!(node("Downstream_Port"), PortType::DownstreamPort);
    assert_eq!(node("PCI-Express_to_PCI/PCI-X_Bridge"), PortType::PcieToPci);
    assert_eq!(node("PCI/PCI-X_to_PCI-Express_Bridge"), PortType::PciToPcie);
    let all = "SrcValid+TransBlk+ReqRedir+CmpltRedir+UpstreamFwd+EgressCtrl+DirectTrans";
    let report = Report::parse(&line(&format!("00:01.0 - - Root_Port 1 {all} {all} -"))).unwrap();
    assert_eq!(report.topology.get(at(0, 1, 0)).unwrap().acs, Some((AcsFlags::all(), AcsFlags::all())));
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let good = line("00:01.0 - - Endpoint - - - -");
    let text = format!("bdf\n\n{good}\n{good}\n");
    let error = Report::parse(&text).unwrap_err();
    assert_eq!(error, ReportError { line: 4, problem: ReportProblem::Twice(at(0, 1, 0)) });
    assert_eq!(error.to_string(), "line 4: 0000:00:01.0 has a line already");
    assert_eq!(problem("00:01.0 - - Endpoint - - -"), ReportProblem::Fields(7));
    assert_eq!(problem("00:01.0 - - Endpoint - - - - -"), ReportProblem::Fields(9));
    for address in ["00:20.0", "0:1.8", "00:01", "10000:00:01.0", "x", "+1:00.0", "00:01.0.0", "100:00.0", ""]
    {
        let text = format!("{address}\t-\t-\t-\t-\t-\t-\t-");
        assert_eq!(Report::parse(&text).unwrap_err().problem, ReportProblem::Address(address.into()));
    }
    for ids in ["8086", "8086:", "8086:x", "80861:1234"] {
        assert_eq!(problem(&format!("00:01.0 {ids} - - - - - -")), ReportProblem::Ids(ids.into()));
    }
    assert_eq!(problem("00:01.0 - - Port - - - -"), ReportProblem::Type("Port".into()));
    assert_eq!(problem("00:01.0 - - Root_Port 100 - - -"), ReportProblem::Bus("100".into()));
    assert_eq!(problem("00:01.0 - - Root_Port 1 SrcValid+X - -"), ReportProblem::Acs("X".into()));
    assert_eq!(problem("00:01.0 - - Root_Port 1 - Y -"), ReportProblem::Acs("Y".into()));
    assert_eq!(problem("00:01.0 - - Endpoint - - - six"), ReportProblem::Group("six".into()));
}

#[test]
fn nothing_is_an_empty_machine() {
    assert_eq!(Report::parse(""), Ok(Report::default()));
}
