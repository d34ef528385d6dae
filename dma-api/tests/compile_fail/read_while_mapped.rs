//! The device has the buffer: there is nothing to read it with before `sync_for_cpu`.
use dma_api::{Device, FromDevice, Streaming};

fn example(device: &Device) {
    let mapped = Streaming::<_, FromDevice>::map(device, vec![0u8; 512]).unwrap();
    let mapped = mapped;
    mapped.read(0);
}

fn main() {
    let _ = example;
}
