//! A mapping owns its buffer: nobody else has it.
use dma_api::{Device, FromDevice, Streaming};

fn example(device: &Device) {
    let mut buffer = vec![0u8; 512];
    let mapped = Streaming::<_, FromDevice>::map(device, buffer).unwrap();
    buffer[0] = 1;
    buffer = mapped.unmap().unwrap();
    drop(buffer);
}

fn main() {
    let _ = example;
}
