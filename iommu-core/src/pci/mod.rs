//! PCI as grouping sees it: a topology, which is a value, and the rules that make groups of it.

mod alias;
mod grouping;
mod scan;
mod topology;

pub(crate) use alias::dma_aliases;
pub use grouping::{Reason, groups};
pub use topology::{AcsFlags, Node, PortType, Topology};
