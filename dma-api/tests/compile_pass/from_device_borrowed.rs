//! Nor what is borrowed for reading.
use dma_api::{Device, FromDevice};

fn example(device: &Device, slice: &mut [u8]) {
    let slice = &mut slice[..];
    let _ = device.map_scoped::<FromDevice, _, _>(slice, |_| ());
}

fn main() {
    let _ = example;
}
