//! A device writes nothing that others hold.
use dma_api::{Device, FromDevice, Streaming};

type Buffer = Box<[u8]>;

fn example(device: &Device, buffer: Buffer) {
    let _ = Streaming::<_, FromDevice>::map(device, buffer);
}

fn main() {
    let _ = example;
}
