//! What a device writes may be any bytes, and not all of them are a `bool`.
use dma_api::{Device, FromDevice, Streaming};

type Item = u8;

fn example(device: &Device, buffer: Vec<Item>) {
    let _ = Streaming::<_, FromDevice>::map(device, buffer);
}

fn main() {
    let _ = example;
}
