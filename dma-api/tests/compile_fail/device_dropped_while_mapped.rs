//! A mapping does not outlive its device.
use dma_api::{Device, Streaming, ToDevice};

fn example(device: Device) {
    let mapped = Streaming::<_, ToDevice>::map(&device, vec![0u8; 512]).unwrap();
    drop(device);
    mapped.unmap().unwrap();
}

fn main() {
    let _ = example;
}
