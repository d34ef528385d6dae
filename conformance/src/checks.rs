//! The list.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use dma_api::{
    Bidirectional, BufferFor, CoherentSlice, Device, DmaBuffer, DmaError, FromDevice, MapDirection,
    ScatterList, Streaming, ToDevice,
};
use platform::DmaAddr;

use crate::bench::Bench;

/// Why a check does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: core::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(format!("{error}"))
    }
}

/// One rule.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its name, which does not change.
    pub name: &'static str,
    /// Tries it.
    pub run: fn(&dyn Bench) -> Result<(), Failure>,
}

/// Every rule that a backend must keep.
pub const CHECKS: &[Check] = &[
    Check { name: "to_device_round_trip", run: to_device_round_trip },
    Check { name: "from_device_round_trip", run: from_device_round_trip },
    Check { name: "bidirectional_round_trip", run: bidirectional_round_trip },
    Check { name: "heap_buffers_round_trip", run: heap_buffers_round_trip },
    Check { name: "scatter_list_round_trip", run: scatter_list_round_trip },
    Check { name: "sync_shows_both_sides", run: sync_shows_both_sides },
    Check { name: "coherent_is_seen_by_both", run: coherent_is_seen_by_both },
    Check { name: "unmapped_is_refused", run: unmapped_is_refused },
    Check { name: "just_unmapped_is_refused", run: just_unmapped_is_refused },
    Check { name: "to_device_refuses_writes", run: to_device_refuses_writes },
    Check { name: "from_device_refuses_reads", run: from_device_refuses_reads },
    Check { name: "mask_is_kept", run: mask_is_kept },
    Check { name: "exhaustion_recovers", run: exhaustion_recovers },
];

const LEN: usize = 8192;

fn ensure(holds: bool, why: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure(why.into())) }
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..LEN)
        .map(|index| (index as u8).wrapping_mul(31).wrapping_add(index.wrapping_shr(8) as u8) ^ seed)
        .collect()
}

fn filled(bench: &dyn Bench, seed: u8) -> Result<DmaBuffer<u8>, Failure> {
    let mut buffer = DmaBuffer::zeroed(bench.device(), LEN)?;
    buffer.copy_from_slice(&pattern(seed));
    Ok(buffer)
}

fn map<'d, B: BufferFor<D>, D: MapDirection>(
    bench: &'d dyn Bench,
    buffer: B,
) -> Result<Streaming<'d, B, D>, Failure> {
    Streaming::map(bench.device(), buffer).map_err(|failed| failed.error.into())
}

/// Reads as the device; a refusal is a failure.
fn read(bench: &dyn Bench, address: DmaAddr, len: usize) -> Result<Vec<u8>, Failure> {
    let mut data = vec![0; len];
    bench
        .device_read(address, &mut data)
        .map_err(|_| Failure("the device may not read what it was given".into()))?;
    Ok(data)
}

fn write(bench: &dyn Bench, address: DmaAddr, data: &[u8]) -> Result<(), Failure> {
    bench
        .device_write(address, data)
        .map_err(|_| Failure("the device may not write what it was given".into()))
}

fn to_device_round_trip(bench: &dyn Bench) -> Result<(), Failure> {
    let mapped = map::<_, ToDevice>(bench, filled(bench, 1)?)?;
    ensure(read(bench, mapped.dma_address(), LEN)? == pattern(1), "the device reads something else")?;
    ensure(mapped.unmap()?[..] == pattern(1)[..], "the buffer came back changed")
}

fn from_device_round_trip(bench: &dyn Bench) -> Result<(), Failure> {
    let mapped = map::<_, FromDevice>(bench, filled(bench, 2)?)?;
    // Half of it: what the device does not write comes back as it was.
    write(bench, mapped.dma_address(), &pattern(3)[..LEN / 2])?;
    let buffer = mapped.unmap()?;
    ensure(buffer[..LEN / 2] == pattern(3)[..LEN / 2], "what the device wrote is not there")?;
    ensure(buffer[LEN / 2..] == pattern(2)[LEN / 2..], "what the device did not write has changed")
}

fn bidirectional_round_trip(bench: &dyn Bench) -> Result<(), Failure> {
    let mapped = map::<_, Bidirectional>(bench, filled(bench, 4)?)?;
    ensure(read(bench, mapped.dma_address(), LEN)? == pattern(4), "the device reads something else")?;
    write(bench, mapped.dma_address(), &pattern(5))?;
    ensure(mapped.unmap()?[..] == pattern(5)[..], "what the device wrote is not there")
}

fn heap_buffers_round_trip(bench: &dyn Bench) -> Result<(), Failure> {
    // Wherever the heap has it, and not a whole number of anything.
    const ODD: usize = LEN - 5;
    let odd = |seed| pattern(seed)[..ODD].to_vec();
    let mapped = map::<_, Bidirectional>(bench, odd(6))?;
    let seen = read(bench, mapped.dma_address(), ODD)?;
    ensure(seen == odd(6), "the device reads something else of a Vec")?;
    write(bench, mapped.dma_address(), &pattern(7)[..777])?;
    let vec: Vec<u8> = mapped.unmap()?;
    ensure(vec[..777] == odd(7)[..777] && vec[777..] == odd(6)[777..], "a Vec came back wrong")?;
    let mapped = map::<_, ToDevice>(bench, odd(8).into_boxed_slice())?;
    let seen = read(bench, mapped.dma_address(), ODD)?;
    ensure(seen == odd(8), "the device reads something else of a Box")?;
    let boxed: Box<[u8]> = mapped.unmap()?;
    ensure(boxed[..] == odd(8)[..], "a Box came back wrong")
}

fn scatter_list_round_trip(bench: &dyn Bench) -> Result<(), Failure> {
    // Whole pages, less than one, and an end within one.
    let mut pages = Vec::new();
    for (seed, len) in [(22, LEN), (23, 100), (24, 4096), (25, LEN - 8)] {
        let mut buffer = DmaBuffer::zeroed(bench.device(), len)?;
        buffer.copy_from_slice(&pattern(seed)[..len]);
        pages.push(buffer);
    }
    list_round_trip(bench, pages, "pages")?;
    let heap = [(26, 777), (27, LEN), (28, 1), (29, 4096)];
    let heap: Vec<Vec<u8>> = heap.iter().map(|&(seed, len)| pattern(seed)[..len].to_vec()).collect();
    list_round_trip(bench, heap, "heap")
}

fn list_round_trip<B>(bench: &dyn Bench, buffers: Vec<B>, what: &str) -> Result<(), Failure>
where
    B: BufferFor<Bidirectional> + Deref<Target = [u8]>,
{
    let before: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
    let after: Vec<u8> = before.iter().map(|byte| byte.wrapping_mul(5) ^ 0x5a).collect();
    let list = ScatterList::map(bench.device(), buffers).map_err(|failed| Failure::from(failed.error))?;
    let longest = bench.device().parms().max_segment_size();
    let mut at = 0;
    for segment in list.segments() {
        ensure(segment.len as u64 <= longest, &format!("{what}: a segment is too long for the device"))?;
        let Some(expected) = before.get(at..at + segment.len) else {
            return Err(Failure(format!("{what}: the segments are longer than the buffers")));
        };
        let seen = read(bench, segment.address, segment.len)?;
        ensure(seen == expected, &format!("{what}: the device reads something else"))?;
        write(bench, segment.address, &after[at..at + segment.len])?;
        at += segment.len;
    }
    ensure(at == before.len(), &format!("{what}: the segments are shorter than the buffers"))?;
    let back = list.unmap()?;
    let seen: Vec<u8> = back.iter().flat_map(|buffer| buffer.iter().copied()).collect();
    ensure(
        seen == after,
        &format!("{what}: what the device wrote is not in the buffers that it was written to"),
    )
}

fn sync_shows_both_sides(bench: &dyn Bench) -> Result<(), Failure> {
    let mapped = map::<_, Bidirectional>(bench, pattern(9))?;
    write(bench, mapped.dma_address(), &pattern(10))?;
    let mut owned = mapped.sync_for_cpu();
    let mut seen = vec![0; LEN];
    owned.copy_to_slice(0, &mut seen);
    ensure(seen == pattern(10), "after sync_for_cpu the CPU does not see what the device wrote")?;
    owned.copy_from_slice(100, &[0xaa; 100]);
    let mut expected = pattern(10);
    expected[100..200].fill(0xaa);
    let mapped = owned.sync_for_device();
    let seen = read(bench, mapped.dma_address(), LEN)?;
    ensure(seen == expected, "after sync_for_device the device does not see what the CPU wrote")?;
    ensure(mapped.unmap()? == expected, "the buffer came back changed")
}

fn coherent_is_seen_by_both(bench: &dyn Bench) -> Result<(), Failure> {
    let words = CoherentSlice::<u64>::zeroed(bench.device(), 1024)?;
    words.write(700, 0x0123_4567_89ab_cdef);
    let at = words.dma_address().wrapping_add(8 * 700);
    let mut seen = [0; 8];
    bench
        .device_read(at, &mut seen)
        .map_err(|_| Failure("the device may not read coherent memory".into()))?;
    ensure(seen == 0x0123_4567_89ab_cdef_u64.to_ne_bytes(), "the device does not see what the CPU wrote")?;
    write(bench, at, &42_u64.to_ne_bytes())?;
    ensure(words.read(700) == 42, "the CPU does not see what the device wrote")?;
    ensure(words.read(699) == 0 && words.read(701) == 0, "the device wrote beside it")
}

fn unmapped_is_refused(bench: &dyn Bench) -> Result<(), Failure> {
    // Memory that is nobody's business, at its physical address.
    let victim = filled(bench, 11)?;
    let address = DmaAddr::new(victim.phys().get());
    // What the device says does not matter: memory does.
    let _ = bench.device_write(address, &pattern(12));
    ensure(victim[..] == pattern(11)[..], "the device wrote to memory that it was never given")?;
    let mut seen = vec![0; LEN];
    let _ = bench.device_read(address, &mut seen);
    ensure(seen != pattern(11), "the device read memory that it was never given")
}

fn just_unmapped_is_refused(bench: &dyn Bench) -> Result<(), Failure> {
    let mapped = map::<_, Bidirectional>(bench, filled(bench, 13)?)?;
    let address = mapped.dma_address();
    // The device has used it both ways, so that hardware remembers where it was.
    write(bench, address, &pattern(13))?;
    read(bench, address, LEN)?;
    let mut buffer = mapped.unmap()?;
    let _ = bench.device_write(address, &pattern(14));
    ensure(buffer[..] == pattern(13)[..], "the device wrote to memory that it had given back")?;
    // What the CPU put there since is not the device's to see; a copy that it had before may be.
    buffer.copy_from_slice(&pattern(19));
    let mut seen = vec![0; LEN];
    let _ = bench.device_read(address, &mut seen);
    ensure(seen != pattern(19), "the device read memory that it had given back")
}

fn to_device_refuses_writes(bench: &dyn Bench) -> Result<(), Failure> {
    let mapped = map::<_, ToDevice>(bench, filled(bench, 15)?)?;
    ensure(read(bench, mapped.dma_address(), LEN)? == pattern(15), "the device reads something else")?;
    let _ = bench.device_write(mapped.dma_address(), &pattern(16));
    ensure(mapped.unmap()?[..] == pattern(15)[..], "the device wrote to memory that it may only read")
}

fn from_device_refuses_reads(bench: &dyn Bench) -> Result<(), Failure> {
    let mapped = map::<_, FromDevice>(bench, filled(bench, 17)?)?;
    let mut seen = vec![0; LEN];
    let _ = bench.device_read(mapped.dma_address(), &mut seen);
    mapped.unmap()?;
    ensure(seen != pattern(17), "the device read memory that it may only write")
}

/// Puts the device's masks back whatever happens.
struct Masks<'a> {
    device: &'a Device,
    streaming: u64,
    coherent: u64,
}

impl<'a> Masks<'a> {
    fn of(device: &'a Device) -> Self {
        let parms = device.parms();
        Self { device, streaming: parms.streaming_mask(), coherent: parms.coherent_mask() }
    }
}

impl Drop for Masks<'_> {
    fn drop(&mut self) {
        // They were accepted once.
        let _ = self.device.set_streaming_mask(self.streaming);
        let _ = self.device.set_coherent_mask(self.coherent);
    }
}

fn mask_is_kept(bench: &dyn Bench) -> Result<(), Failure> {
    const NARROW: u64 = 0x0fff_ffff;
    let device = bench.device();
    let _restore = Masks::of(device);
    device.set_mask(NARROW)?;
    let coherent = CoherentSlice::<u8>::zeroed(device, LEN)?;
    let last = coherent.dma_address().wrapping_add(LEN as u64 - 1);
    ensure(last.get() <= NARROW, "coherent memory is beyond the mask")?;
    let mapped = map::<_, ToDevice>(bench, filled(bench, 18)?)?;
    let last = mapped.dma_address().wrapping_add(LEN as u64 - 1);
    ensure(last.get() <= NARROW, "a mapping is beyond the mask")?;
    ensure(read(bench, mapped.dma_address(), LEN)? == pattern(18), "the device reads something else")?;
    mapped.unmap()?;
    Ok(())
}

fn exhaustion_recovers(bench: &dyn Bench) -> Result<(), Failure> {
    // So narrow that addresses or bounce buffers run out soon.
    const NARROW: u64 = 0x03ff_ffff;
    const LONG: usize = 64 << 10;
    const MOST: usize = 4096;
    let device = bench.device();
    let _restore = Masks::of(device);
    device.set_streaming_mask(NARROW)?;
    let mut most = 0;
    // Twice, since what the first round took must have come back, but for what waits for a lazy backend's next flush.
    for round in 0..2 {
        let mut mapped = Vec::new();
        let error = loop {
            match Streaming::<_, ToDevice>::map(device, DmaBuffer::<u8>::zeroed(device, LONG)?) {
                Ok(one) => mapped.push(one),
                Err(failed) => break failed.error,
            }
            if mapped.len() == MOST {
                return Err(Failure("nothing ever runs out".into()));
            }
        };
        let named = matches!(error, DmaError::AddressSpaceExhausted { .. } | DmaError::BouncePoolFull { .. });
        ensure(named, &format!("running out is reported as: {error}"))?;
        let count = mapped.len();
        ensure(
            count >= most / 2,
            &format!("round {round} ends after {count} mappings, the first after {most}"),
        )?;
        most = count;
        for one in mapped {
            one.unmap()?;
        }
    }
    let again = map::<_, ToDevice>(bench, filled(bench, 20)?)?;
    ensure(
        read(bench, again.dma_address(), LEN)? == pattern(20),
        "after running out the device reads something else",
    )?;
    again.unmap()?;
    Ok(())
}
