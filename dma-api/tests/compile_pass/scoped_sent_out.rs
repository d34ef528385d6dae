//! A borrowed map ends with its closure: it cannot leave it.
use dma_api::{Device, ToDevice};

fn example(device: &Device, slice: &[u8]) {
    let mut kept = None;
    let _ = device.map_scoped::<ToDevice, _, _>(slice, |mapped| {
        kept = Some(mapped.dma_address());
    });
    let _ = kept;
}

fn main() {
    let _ = example;
}
