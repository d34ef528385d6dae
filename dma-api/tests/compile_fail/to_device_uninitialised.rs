//! A device is not shown memory that was never written.
use dma_api::{Device, Streaming, ToDevice};

type Item = std::mem::MaybeUninit<u8>;

fn example(device: &Device, buffer: Vec<Item>) {
    let _ = Streaming::<_, ToDevice>::map(device, buffer);
}

fn main() {
    let _ = example;
}
