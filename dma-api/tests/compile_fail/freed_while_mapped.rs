//! Nor can it be freed.
use dma_api::{Device, FromDevice, Streaming};

fn example(device: &Device) {
    let buffer = vec![0u8; 512].into_boxed_slice();
    let mapped = Streaming::<_, FromDevice>::map(device, buffer).unwrap();
    drop(buffer);
    drop(mapped);
}

fn main() {
    let _ = example;
}
