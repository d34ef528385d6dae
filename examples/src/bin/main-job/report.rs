//! What the program says.

use std::fmt;

use backend::{Confinement, Description, Fault, Statistics};
use serde_json::{Value, json};

use crate::chain::Chain;
use crate::job::Written;
use crate::rogue::{Attempt, Rogue};
use crate::transfer::{DEPTH, Tally};
use crate::tree::Tree;

/// The disk, as the driver found it.
#[derive(Debug)]
pub(crate) struct DiskReport {
    pub(crate) name: String,
    pub(crate) len: u64,
    pub(crate) model: String,
    pub(crate) blocks: u64,
    pub(crate) block_size: usize,
    pub(crate) queues: u16,
}

/// How the job went.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) backend: &'static str,
    pub(crate) machine: Description,
    pub(crate) disk: DiskReport,
    /// As the host reads the file that is the disk; a controller's disk nobody else reads.
    pub(crate) host_sha256: Option<[u8; 32]>,
    pub(crate) sha256: [u8; 32],
    pub(crate) read: Tally,
    pub(crate) small: Tally,
    pub(crate) written: Option<Written>,
    /// `None` on a machine that has no such device.
    pub(crate) rogue: Option<Rogue>,
    pub(crate) statistics: Statistics,
    pub(crate) free_memory_changed: Vec<String>,
    pub(crate) trace: Vec<Chain>,
}

impl Report {
    /// Whether everything holds that this machine promises.
    pub(crate) fn all_well(&self) -> bool {
        self.matches() != Some(false)
            && self.written.is_none_or(|written| written.read_back && written.on_host)
            && self.free_memory_changed.is_empty()
            && self.rogue.iter().flat_map(|rogue| &rogue.attempts).all(Attempt::is_well)
    }

    /// Whether the driver and the host have read the same.
    fn matches(&self) -> Option<bool> {
        self.host_sha256.map(|host| host == self.sha256)
    }

    /// The same as one object.
    pub(crate) fn json(&self) -> Value {
        let tally = |tally: &Tally| {
            json!({
                "requests": tally.requests,
                "bytes": tally.bytes,
                "seconds": tally.time.as_secs_f64(),
                "megabytes_per_second": tally.megabytes_per_second(),
                "requests_per_second": tally.requests_per_second(),
            })
        };
        json!({
            "backend": self.backend,
            "machine": {
                "memory": self.machine.memory,
                "iommus": self.machine.iommus,
                "groups": self.machine.groups.iter().map(|group| json!({
                    "id": group.id,
                    "domain_type": group.domain_type.map(|domain_type| domain_type.to_string()),
                    "devices": group.members.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "why": group.why,
                })).collect::<Vec<_>>(),
            },
            "disk": {
                "name": self.disk.name,
                "bytes": self.disk.len,
                "model": self.disk.model,
                "blocks": self.disk.blocks,
                "block_size": self.disk.block_size,
                "queues": self.disk.queues,
            },
            "sha256": { "driver": hex(&self.sha256), "host": self.host_sha256.as_ref().map(hex), "match": self.matches() },
            "read": tally(&self.read),
            "read_4k": tally(&self.small),
            "write": self.written.as_ref().map(|written| json!({
                "transfer": tally(&written.tally),
                "read_back": written.read_back,
                "on_host": written.on_host,
            })),
            "rogue": self.rogue.as_ref().map(|rogue| json!({
                "confinement": match rogue.confinement {
                    Confinement::Strict => "strict",
                    Confinement::Lazy => "lazy",
                    Confinement::Absent => "none",
                },
                "attempts": rogue.attempts.iter().map(|attempt| json!({
                    "what": attempt.what,
                    "address": attempt.address.to_string(),
                    "memory_unchanged": attempt.memory_unchanged,
                    "faults": attempt.faults.iter().map(Fault::to_string).collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
            })),
            "statistics": {
                "maps": self.statistics.maps,
                "unmaps": self.statistics.unmaps,
                "bounces": self.statistics.bounces,
                "invalidations": self.statistics.invalidations,
                "iotlb_hits": self.statistics.iotlb_hits,
                "iotlb_misses": self.statistics.iotlb_misses,
                "iotlb_hit_rate": self.statistics.iotlb_hit_rate(),
                "faults": self.statistics.faults,
                "quarantined_bytes": self.statistics.quarantined,
            },
            "free_memory_changed": self.free_memory_changed,
            "trace": self.trace.iter().map(|chain| json!({ "names": chain.names, "bytes": chain.len })).collect::<Vec<_>>(),
            "ok": self.all_well(),
        })
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_machine(f)?;
        self.write_disk(f)?;
        self.write_reach(f)?;
        if !self.trace.is_empty() {
            writeln!(f, "Trace of the first operations")?;
            for chain in &self.trace {
                writeln!(f, "  {chain}")?;
            }
            writeln!(f)?;
        }
        self.write_table(f)
    }
}

impl Report {
    fn write_machine(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Machine: {}, {} MiB of memory", self.backend, self.machine.memory >> 20)?;
        if self.machine.iommus.is_empty() {
            writeln!(f, "  no IOMMU: every device reaches all memory that its address mask allows")?;
        }
        for iommu in &self.machine.iommus {
            writeln!(f, "  {iommu}")?;
        }
        write!(f, "{}", Tree(&self.machine))?;
        writeln!(f)
    }

    fn write_disk(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = &self.disk;
        writeln!(
            f,
            "Disk: {} ({} bytes) as {:?}, {} blocks of {} bytes, {} queues of depth {DEPTH}",
            disk.name, disk.len, disk.model, disk.blocks, disk.block_size, disk.queues
        )?;
        writeln!(f, "  SHA-256 through the driver  {}", hex(&self.sha256))?;
        if let Some(host) = &self.host_sha256 {
            writeln!(f, "  SHA-256 as the host reads   {}", hex(host))?;
            let verdict = if self.matches() == Some(true) { "they match" } else { "THEY DIFFER" };
            writeln!(f, "  {verdict}")?;
        }
        if let Some(written) = &self.written {
            let yes = |well: bool| if well { "yes" } else { "NO" };
            writeln!(
                f,
                "  wrote a pattern of {} bytes: read back {}, in the file on the host {}",
                written.tally.bytes,
                yes(written.read_back),
                yes(written.on_host)
            )?;
        }
        writeln!(f)
    }

    fn write_reach(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rogue {
            Some(rogue) => Self::write_rogue(rogue, f)?,
            None => writeln!(f, "No rogue device: this machine has none that goes where it is told")?,
        }
        for changed in &self.free_memory_changed {
            writeln!(f, "  FREE MEMORY CHANGED: {changed}")?;
        }
        writeln!(f)
    }

    fn write_rogue(rogue: &Rogue, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "A rogue device writes")?;
        for attempt in &rogue.attempts {
            let memory = if attempt.memory_unchanged { "memory did not change" } else { "MEMORY CHANGED" };
            writeln!(f, "  to {}, {}: {memory}", attempt.what, attempt.address)?;
            if attempt.faults.is_empty() {
                writeln!(f, "    no fault was reported")?;
            }
            for fault in &attempt.faults {
                writeln!(f, "    {fault}")?;
            }
        }
        match rogue.confinement {
            Confinement::Strict => {}
            Confinement::Lazy => {
                writeln!(
                    f,
                    "  (with lazy invalidation a page stays within reach for a while after its unmap)"
                )?;
            }
            Confinement::Absent => {
                writeln!(f, "  (nothing confines the device here: that is what an IOMMU is for)")?;
            }
        }
        Ok(())
    }

    fn write_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<22}{:>12}{:>16}{:>12}{:>14}", "", "requests", "bytes", "MB/s", "requests/s")?;
        let mut row = |what: &str, tally: &Tally| {
            writeln!(
                f,
                "{what:<22}{:>12}{:>16}{:>12.0}{:>14.0}",
                tally.requests,
                tally.bytes,
                tally.megabytes_per_second(),
                tally.requests_per_second()
            )
        };
        row("read, 128 KiB", &self.read)?;
        row("read, 4 KiB", &self.small)?;
        if let Some(written) = &self.written {
            row("write, 128 KiB", &written.tally)?;
        }
        let statistics = &self.statistics;
        writeln!(f)?;
        writeln!(f, "{:<22}{:>12}", "maps", statistics.maps)?;
        writeln!(f, "{:<22}{:>12}", "unmaps", statistics.unmaps)?;
        writeln!(f, "{:<22}{:>12}", "bounced maps", statistics.bounces)?;
        writeln!(f, "{:<22}{:>12}", "invalidation commands", statistics.invalidations)?;
        match statistics.iotlb_hit_rate() {
            Some(rate) => writeln!(f, "{:<22}{:>11.1}%", "IOTLB hit rate", 100.0 * rate)?,
            None => writeln!(f, "{:<22}{:>12}", "IOTLB hit rate", "not counted")?,
        }
        writeln!(f, "{:<22}{:>12}", "faults", statistics.faults)?;
        if statistics.quarantined != 0 {
            writeln!(f, "{:<22}{:>12}", "quarantined bytes", statistics.quarantined)?;
        }
        writeln!(f, "\n{}", if self.all_well() { "All is well." } else { "SOMETHING IS WRONG." })
    }
}
