//! The CPU, too, writes nothing that others hold.
use dma_api::{Device, Streaming, ToDevice};

type Buffer = Box<[u8]>;

fn example(device: &Device, buffer: Buffer) {
    let mapped = Streaming::<_, ToDevice>::map(device, buffer).unwrap();
    mapped.sync_for_cpu().write(0, 1);
}

fn main() {
    let _ = example;
}
