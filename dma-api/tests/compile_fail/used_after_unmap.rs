//! An unmap takes the mapping.
use dma_api::{Device, FromDevice, Streaming};

fn example(device: &Device) {
    let mapped = Streaming::<_, FromDevice>::map(device, vec![0u8; 512]).unwrap();
    let address = mapped.dma_address();
    let buffer = mapped.unmap().unwrap();
    assert_eq!(mapped.dma_address(), address);
    drop(buffer);
}

fn main() {
    let _ = example;
}
