//! The command line.

use std::path::PathBuf;

use backend_vfio::parse_address;
use clap::{Parser, ValueEnum};
use platform::pci::PciAddress;

/// Boots a machine, runs a real NVMe driver on it behind its IOMMU, and shows that a rogue device gets nowhere.
///
/// By default the machine is simulated: RAM, a PCI tree, an AMD IOMMU with its caches, an NVMe controller whose disk is a
/// file of yours, and a DMA engine. The whole disk is read through the stack and its SHA-256 compared with the host's own.
#[derive(Parser, Debug)]
#[command(name = "main-job", version)]
pub(crate) struct Options {
    /// The disk: any file. Without it a seeded image of 64 MiB is made in a temporary folder
    #[arg(long, value_name = "PATH")]
    pub(crate) disk: Option<PathBuf>,

    /// The disk of the backend "vfio": the PCI address of an NVMe controller that is bound to vfio-pci. It is only read
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["disk", "write"], value_parser = address)]
    pub(crate) device: Option<PciAddress>,

    /// Also write: a pattern goes to a scratch copy of the disk, is flushed, read back, and checked on the host
    #[arg(long)]
    pub(crate) write: bool,

    /// Which machine
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(backend::names()))]
    pub(crate) backend: Option<String>,

    /// How I/O addresses are made and given back, where there is an IOMMU [default: dma]
    #[arg(long, value_enum)]
    pub(crate) domain: Option<Domain>,

    /// I/O queues, 1 to 8, each with a thread of its own
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub(crate) queues: u16,

    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the first N operations as the chain of layers that they passed, by Linux's names
    #[arg(long, value_name = "N")]
    pub(crate) trace: Option<usize>,
}

fn address(text: &str) -> Result<PciAddress, &'static str> {
    parse_address(text).ok_or("a PCI address is written as 0000:01:00.0")
}

/// The type of the groups' default domains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Domain {
    /// Translated, strict: nothing stays reachable after an unmap
    Dma,
    /// Translated, lazy: invalidations are collected in a flush queue
    DmaFq,
    /// Not translated: I/O addresses are physical ones
    Identity,
}
