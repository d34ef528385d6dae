//! `--trace`: operations as the chain of layers that they passed.

use platform::trace::Event;

/// The functions by which a driver enters the DMA API: each begins an operation.
const ENTRIES: [&str; 4] = ["dma_map_single", "dma_unmap_single", "dma_alloc_coherent", "dma_free_coherent"];

/// One call of a driver and the layers below it, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chain {
    /// Bytes.
    pub(crate) len: u64,
    /// Linux's names.
    pub(crate) names: Vec<&'static str>,
}

/// Splits a record into operations.
pub(crate) fn chains(events: &[Event]) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    for event in events {
        match chains.last_mut() {
            Some(chain) if !ENTRIES.contains(&event.name) => chain.names.push(event.name),
            _ => chains.push(Chain { len: event.len, names: vec![event.name] }),
        }
    }
    chains
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.names.join(" → "), self.len)
    }
}
