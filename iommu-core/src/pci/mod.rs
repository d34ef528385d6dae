//! PCI as grouping sees it: a topology, which is a value, and the rules that make groups of it.

mod alias;
mod grouping;
mod host_bridge;
mod quirk;
mod quirk_table;
mod reason;
mod report;
mod scan;
mod topology;

pub use grouping::groups;
pub use host_bridge::HostBridge;
pub use quirk::{Quirk, QuirkRule};
pub use quirk_table::{QUIRKS, QUIRKS_UNDER_LINUX};
pub use reason::{AcsGap, Reason, Shared, explain, outline};
pub use report::{Report, ReportError, ReportProblem};
pub use topology::{AcsFlags, BridgeFlags, DeviceId, Node, NodeQuirks, PortType, Topology};
