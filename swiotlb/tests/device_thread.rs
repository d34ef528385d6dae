//! A device that is a thread, at memory that the CPU reads and writes meanwhile. Run by `cargo xtask sanitize`, ThreadSanitizer
//! finds every access that is a data race with the device's.

#[path = "common/heap.rs"]
mod heap;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dma_api::{
    Bidirectional, CoherentSlice, Device, DmaBuffer, DmaPool, FromDevice, Streaming, dma_rmb, dma_wmb,
};
use heap::{Heap, device, device_word};
use platform::DmaAddr;

const WORDS: usize = 128;
const ROUNDS: u64 = 300;

/// An element that is moved in two pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, zerocopy::FromBytes, zerocopy::IntoBytes)]
#[repr(C)]
struct Pair(u64, u64);

/// A device that counts up in each of its words, over and over, until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Writer {
    fn start(at: DmaAddr, words: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut round = 0;
            while !stopped.load(Ordering::Relaxed) || round == 0 {
                round += 1;
                for index in 0..words as u64 {
                    // SAFETY: the device was given these words, and stops before they are given back.
                    unsafe { device_word(at.wrapping_add(8 * index)) }.store(round, Ordering::Relaxed);
                }
            }
            round
        });
        Self { stop, thread }
    }

    /// What it wrote last.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn main() {
    let tests: [(&str, fn()); 5] = [
        ("a ring in coherent memory", a_ring_in_coherent_memory),
        ("coherent memory that the device goes on writing", coherent_memory_that_the_device_goes_on_writing),
        (
            "a buffer that is the CPU's and the device does not care",
            a_buffer_that_is_the_cpus_and_the_device_does_not_care,
        ),
        ("a vector that the device fills", a_vector_that_the_device_fills),
        (
            "a borrowed slice whose copy the device goes on writing",
            a_borrowed_slice_whose_copy_the_device_goes_on_writing,
        ),
    ];
    for (name, test) in tests {
        test();
        println!("{name}: ok");
    }
}

fn bench() -> Arc<Device> {
    device(&Arc::new(Heap::default()))
}

fn a_ring_in_coherent_memory() {
    let device = bench();
    // An order and its flag, an answer and its flag.
    let ring = CoherentSlice::<u64>::zeroed(&device, 4).unwrap();
    let at = ring.dma_address();
    let answers = std::thread::spawn(move || {
        // SAFETY: the ring is there until this thread has been waited for.
        let [order, ordered, answer, answered] =
            [0, 8, 16, 24].map(|offset| unsafe { device_word(at.wrapping_add(offset)) });
        for round in 1..=ROUNDS {
            while ordered.load(Ordering::Acquire) != round {
                std::thread::yield_now();
            }
            answer.store(order.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            answered.store(round, Ordering::Release);
        }
    });
    for round in 1..=ROUNDS {
        ring.write(0, 10 * round);
        dma_wmb();
        ring.write(1, round);
        while ring.read(3) != round {
            std::thread::yield_now();
        }
        dma_rmb();
        assert_eq!(ring.read(2), 10 * round + 1);
    }
    answers.join().unwrap();
}

fn coherent_memory_that_the_device_goes_on_writing() {
    let device = bench();
    let pairs = CoherentSlice::<Pair>::zeroed(&device, WORDS / 2).unwrap();
    let pool = DmaPool::new(&device, "blocks", 8 * WORDS, 8, 0).unwrap();
    let block = pool.alloc::<Pair>().unwrap();
    let writers = [Writer::start(pairs.dma_address(), WORDS), Writer::start(block.dma_address(), WORDS)];
    for round in 0..ROUNDS {
        let index = round as usize % (WORDS / 2);
        // They may be torn; there is nothing else to say about what is read.
        let (one, other) = (pairs.read(index), block.read(index));
        pairs.write(index, other);
        block.write(index, one);
    }
    let [one, other] = writers.map(Writer::stop);
    // The last round of the device came after all of that.
    assert!(one > 0 && other > 0);
}

fn a_buffer_that_is_the_cpus_and_the_device_does_not_care() {
    let device = bench();
    for _ in 0..5 {
        let buffer = DmaBuffer::<Pair>::zeroed(&device, WORDS / 2).unwrap();
        let mapped = Streaming::<_, Bidirectional>::map(&device, buffer).unwrap();
        let writer = Writer::start(mapped.dma_address(), WORDS);
        let mut owned = mapped.sync_for_cpu();
        let mut out = [Pair(0, 0); WORDS / 2];
        for round in 0..ROUNDS {
            owned.copy_to_slice(0, &mut out);
            owned.copy_from_slice(1, &out[1..]);
            owned.write(0, Pair(round, round));
            let _ = owned.read(WORDS / 2 - 1);
        }
        let mapped = owned.sync_for_device();
        writer.stop();
        let last = Writer::start(mapped.dma_address(), WORDS).stop();
        // Now it has stopped, and the buffer is a slice again.
        let buffer = mapped.unmap().unwrap();
        assert!(buffer.iter().all(|pair| *pair == Pair(last, last)));
    }
}

fn a_vector_that_the_device_fills() {
    let device = bench();
    let mut buffer = vec![0u64; WORDS];
    for _ in 0..20 {
        let mapped = Streaming::<_, FromDevice>::map(&device, buffer).unwrap();
        let last = Writer::start(mapped.dma_address(), WORDS).stop();
        buffer = mapped.unmap().unwrap();
        assert_eq!(buffer, [last; WORDS]);
        buffer.fill(0);
    }
}

fn a_borrowed_slice_whose_copy_the_device_goes_on_writing() {
    let device = bench();
    let mut slice = [0u64; WORDS];
    let mut writers = Vec::new();
    for _ in 0..3 {
        device
            .map_scoped::<Bidirectional, _, _>(&mut slice[..], |mapped| {
                // It does not stop when the scope ends, while the copy is copied back.
                writers.push(Writer::start(mapped.dma_address(), WORDS));
            })
            .unwrap();
        slice.iter_mut().for_each(|word| *word += 1);
    }
    writers.into_iter().for_each(|writer| assert!(writer.stop() > 0));
}
