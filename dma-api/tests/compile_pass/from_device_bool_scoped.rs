//! The same of a borrowed slice.
use dma_api::{Device, FromDevice};

type Item = u8;

fn example(device: &Device, slice: &mut [Item]) {
    let _ = device.map_scoped::<FromDevice, _, _>(slice, |_| ());
}

fn main() {
    let _ = example;
}
