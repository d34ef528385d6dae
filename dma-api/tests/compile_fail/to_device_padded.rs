//! Nor a type with bytes between its fields, for which `IntoBytes` cannot be derived.
use dma_api::{Device, Streaming, ToDevice};

#[repr(C)]
struct Padded(u8, u32);

type Item = Padded;

fn example(device: &Device, buffer: Vec<Item>) {
    let _ = Streaming::<_, ToDevice>::map(device, buffer);
}

fn main() {
    let _ = (example, Padded(1, 2).0, Padded(1, 2).1);
}
