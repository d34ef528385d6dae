//! The command line.

use std::path::PathBuf;

use clap::Parser;
use platform::pci::PciAddress;

/// Shows which PCI functions must share an IOMMU group, and why.
///
/// Functions of one group go to a guest or to user space together, since hardware cannot tell them apart or keep them apart.
/// The groups are worked out by Linux's rules from what configuration space says: of this machine, or of the one that FILE
/// describes. Nothing is changed.
#[derive(Parser, Debug)]
#[command(name = "groups", version, after_long_help = FORMAT)]
pub(crate) struct Options {
    /// A machine as text (its format is below); without it, this machine
    pub(crate) file: Option<PathBuf>,

    /// Where sysfs is: this machine's, or a copy of another's
    #[arg(long, value_name = "FOLDER", default_value = "/sys", conflicts_with = "file")]
    pub(crate) sysfs: PathBuf,

    /// Say why these two functions share a group, and nothing else
    #[arg(long, num_args = 2, value_names = ["ADDRESS", "ADDRESS"], conflicts_with = "json")]
    pub(crate) why: Option<Vec<PciAddress>>,

    /// Print only the groups, as one JSON object: {"groups": [["0000:00:01.0", …], …]}
    #[arg(long)]
    pub(crate) json: bool,
}

const FORMAT: &str = "\
The format of FILE: one line a function, eight fields with a tab between them, `-` for what there is not.
  address       segment, bus, device and function: 0000:00:1c.0 (the segment may be left out)
  ids           vendor and device: 8086:a338. Quirks of known devices are applied by these
  class         in words: Ethernet controller
  type          Root Port, Upstream Port, Downstream Port, Endpoint, Legacy Endpoint, Root Complex Integrated Endpoint,
                Root Complex Event Collector, PCI-Express to PCI/PCI-X Bridge, PCI/PCI-X to PCI-Express Bridge;
                `-` is conventional PCI
  bus           the first bus behind a bridge, hexadecimal: 03
  acs_cap       Access Control Services that are offered, with `+` between them: SrcValid, TransBlk, ReqRedir, CmpltRedir,
                UpstreamFwd, EgressCtrl, DirectTrans. `-` is no such capability; nothing is one that offers none
  acs_ctl       those that are switched on
  linux_group   the number of the group that Linux formed, to compare with; `-` is none. If any function has one, those
                without are behind no IOMMU, and in no group here either
A first line of titles (it begins with `bdf`), empty lines and lines that begin with `#` do not count. All but the ids and the
last field can be taken from `lspci -vv`, run as root. An endpoint in the root complex without ids counts as isolated, as
Intel's do.

Exit codes: 0 when the groups are there, 2 when the machine or FILE cannot be read.";
