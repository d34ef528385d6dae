//! While it is mapped, a borrowed slice is not touched.
use dma_api::{Device, FromDevice};

fn example(device: &Device, slice: &mut [u8]) {
    let _ = device.map_scoped::<FromDevice, _, _>(&mut slice[..], |mapped| {
        assert_eq!(mapped.len(), 512);
        mapped.len()
    });
    slice[0] = 2;
}

fn main() {
    let _ = example;
}
