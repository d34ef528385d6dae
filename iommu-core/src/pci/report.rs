//! A topology from a text: what a person was told of a machine.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;

use platform::pci::PciAddress;

use super::topology::{AcsFlags, DeviceId, Node, PortType, Topology};

/// A machine's functions, with the groups that its Linux made of them if that is known.
///
/// One line a function, eight fields with tabs between them, `-` for what there is not:
///
/// | field | what | example |
/// |---|---|---|
/// | address | segment, bus, device, function; the segment may be left out | `0000:00:1c.0` |
/// | ids | vendor and device | `8086:a338` |
/// | class | in words; only `PCI bridge` means something here | `PCI bridge` |
/// | type | the PCI Express type; `-` is conventional PCI | `Root Port` |
/// | bus | the first bus behind a bridge, hexadecimal | `03` |
/// | ACS capability | what is offered, names as `lspci` has them with `+` between; `-` is no capability | `SrcValid+ReqRedir` |
/// | ACS control | what is switched on of it | `SrcValid` |
/// | group | Linux's number | `6` |
///
/// A first line of titles (it begins with `bdf`), empty lines and lines that begin with `#` do not count. A slot of which two
/// functions are listed, or another than the first, has several. An endpoint in the root complex without ids counts as
/// isolated, as Intel's do: most reports that leave them out are of Intel's machines.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The functions. What is known of them by their ids has not been applied ([`Topology::apply`]).
    pub topology: Topology,
    /// What each is, in words.
    pub classes: BTreeMap<PciAddress, Box<str>>,
    /// The group that Linux put each into.
    pub linux_groups: BTreeMap<PciAddress, u32>,
}

/// What is wrong with a report, and in which line (from 1).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ReportError {
    /// The line.
    pub line: usize,
    /// What is wrong.
    pub problem: ReportProblem,
}

/// What is wrong with a line of a report.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportProblem {
    /// Not eight fields.
    #[error("{0} fields instead of 8, with tabs between them")]
    Fields(usize),
    /// Not an address.
    #[error("`{0}` is no PCI address such as 0000:00:1c.0")]
    Address(String),
    /// The address had a line before.
    #[error("{0} has a line already")]
    Twice(PciAddress),
    /// Not two ids.
    #[error("`{0}` are no ids such as 8086:a338")]
    Ids(String),
    /// No PCI Express type.
    #[error(
        "`{0}` is no PCI Express type: `-`, Endpoint, Legacy Endpoint, Root Complex Integrated Endpoint, Root Complex Event \
         Collector, Root Port, Upstream Port, Downstream Port, PCI-Express to PCI/PCI-X Bridge, PCI/PCI-X to PCI-Express Bridge"
    )]
    Type(String),
    /// Not a bus number.
    #[error("`{0}` is no bus number such as 03")]
    Bus(String),
    /// Not a service.
    #[error(
        "`{0}` is no Access Control Service: SrcValid, TransBlk, ReqRedir, CmpltRedir, UpstreamFwd, EgressCtrl, DirectTrans"
    )]
    Acs(String),
    /// Not a group's number.
    #[error("`{0}` is no number of a group")]
    Group(String),
}

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// [`ReportError`] of the first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, ReportError> {
        let mut report = Self::default();
        for (line, text) in (1..).zip(text.lines()) {
            if text.trim().is_empty() || text.starts_with('#') || (line == 1 && text.starts_with("bdf")) {
                continue;
            }
            report.add(text).map_err(|problem| ReportError { line, problem })?;
        }
        report.topology.infer_slots();
        Ok(report)
    }

    fn add(&mut self, line: &str) -> Result<(), ReportProblem> {
        let mut fields = [""; 8];
        let mut count = 0;
        for field in line.split('\t') {
            if let Some(place) = fields.get_mut(count) {
                *place = field.trim();
            }
            count += 1;
        }
        if count != fields.len() {
            return Err(ReportProblem::Fields(count));
        }
        let [address, ids, class, port_type, bus, capability, control, group] = fields;
        let address: PciAddress = address.parse().map_err(|_| ReportProblem::Address(address.into()))?;
        if self.topology.get(address).is_some() {
            return Err(ReportProblem::Twice(address));
        }
        let offered = unless_dash(capability).map(services).transpose()?;
        let on = services(control)?;
        let mut node = Node {
            id: unless_dash(ids).map(device_id).transpose()?,
            class: if class == "PCI bridge" { 0x06_04_00 } else { 0 },
            port_type: port_type_of(port_type)?,
            secondary_bus: unless_dash(bus).map(bus_number).transpose()?,
            acs: offered.map(|offered| (offered, on)),
            ..Node::new(address)
        };
        if node.id.is_none() && node.port_type == PortType::RootComplexEndpoint {
            node.quirks.acs = Some(AcsFlags::ISOLATED);
        }
        self.topology.insert(node);
        if let Some(class) = unless_dash(class) {
            self.classes.insert(address, class.into());
        }
        if let Some(group) = unless_dash(group) {
            let number = group.parse().map_err(|_| ReportProblem::Group(group.into()))?;
            self.linux_groups.insert(address, number);
        }
        Ok(())
    }
}

fn unless_dash(field: &str) -> Option<&str> {
    (field != "-").then_some(field)
}

fn device_id(text: &str) -> Result<DeviceId, ReportProblem> {
    let number = |text: &str| u16::from_str_radix(text, 16).ok();
    let ids = text.split_once(':').and_then(|(vendor, device)| Some((number(vendor)?, number(device)?)));
    let (vendor, device) = ids.ok_or_else(|| ReportProblem::Ids(text.into()))?;
    Ok(DeviceId { vendor, device, subsystem: None })
}

fn bus_number(text: &str) -> Result<u8, ReportProblem> {
    u8::from_str_radix(text, 16).map_err(|_| ReportProblem::Bus(text.into()))
}

fn port_type_of(text: &str) -> Result<PortType, ReportProblem> {
    Ok(match text {
        "-" => PortType::Conventional,
        "Endpoint" | "Legacy Endpoint" => PortType::Endpoint,
        "Root Complex Integrated Endpoint" => PortType::RootComplexEndpoint,
        "Root Complex Event Collector" => PortType::EventCollector,
        "Root Port" => PortType::RootPort,
        "Upstream Port" => PortType::UpstreamPort,
        "Downstream Port" => PortType::DownstreamPort,
        "PCI-Express to PCI/PCI-X Bridge" => PortType::PcieToPci,
        "PCI/PCI-X to PCI-Express Bridge" => PortType::PciToPcie,
        other => return Err(ReportProblem::Type(other.into())),
    })
}

/// Nothing is a set too: a capability that offers none of them.
fn services(text: &str) -> Result<AcsFlags, ReportProblem> {
    let names = text.split('+').filter(|name| !matches!(*name, "" | "-"));
    names
        .map(|name| match name {
            "SrcValid" => Ok(AcsFlags::SV),
            "TransBlk" => Ok(AcsFlags::TB),
            "ReqRedir" => Ok(AcsFlags::RR),
            "CmpltRedir" => Ok(AcsFlags::CR),
            "UpstreamFwd" => Ok(AcsFlags::UF),
            "EgressCtrl" => Ok(AcsFlags::EC),
            "DirectTrans" => Ok(AcsFlags::DT),
            other => Err(ReportProblem::Acs(other.into())),
        })
        .collect()
}
