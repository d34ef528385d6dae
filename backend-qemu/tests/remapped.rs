//! Coherent memory on a machine without two free frames side by side.

mod common;

use std::sync::Arc;

use common::{EDU, PAGE, start, with_edu};
use conformance::Bench as _;
use dma_api::CoherentSlice;
use platform::{FrameRequest, Frames as _};

#[test]
fn a_device_finds_scattered_pages_where_the_processor_has_them() {
    let Some(machine) = start(with_edu()) else { return };
    let bench = machine.edu(EDU).unwrap();
    let platform = machine.platform();
    // Every second frame of all that there are.
    let taken: Vec<_> = std::iter::from_fn(|| platform.alloc(FrameRequest::ONE).ok()).collect();
    let mut sorted = taken;
    sorted.sort();
    for frame in sorted.iter().step_by(2) {
        // SAFETY: taken above, and nobody has seen it.
        unsafe { platform.free(*frame, PAGE) };
    }
    let device: &Arc<_> = bench.device();
    let ring = CoherentSlice::<u64>::zeroed(device, 4 * PAGE / 8).unwrap();
    assert_eq!(ring.sg_table().unwrap().len(), 4, "no two of them are neighbours");
    for page in 0..4 {
        let (word, at) = (page * PAGE / 8, ring.dma_address().wrapping_add((page * PAGE) as u64));
        ring.write(word, 0x5ca7_7e2e_d000 + page as u64);
        let mut seen = [0; 8];
        bench.device_read(at, &mut seen).unwrap();
        assert_eq!(u64::from_le_bytes(seen), 0x5ca7_7e2e_d000 + page as u64);
        bench.device_write(at.wrapping_add(8), &(page as u64 + 1).to_le_bytes()).unwrap();
        assert_eq!(ring.read(word + 1), page as u64 + 1);
    }
}
