//! An unmap takes the mapping.
use dma_api::{Device, FromDevice, Streaming};

fn example(device: &Device) {
    let mapped = Streaming::<_, FromDevice>::map(device, vec![0u8; 512]).unwrap();
    let address = mapped.dma_address();
    let buffer = mapped.unmap().unwrap();
    assert_ne!(0, address.get());
    drop(buffer);
}

fn main() {
    let _ = example;
}
