//! A unit that misbehaves: what the driver makes of it, and that it goes on afterwards.

mod common;

use std::time::{Duration, Instant};

use backend_sim::SimMachine;
use backend_sim::sim_hardware::Machine;
use backend_sim::sim_hardware::iommu::AmdIommu;
use common::boot;
use common::engine::RawEngine;
use dma_api::{Bidirectional, Device, DmaBuffer, Streaming};
use platform::DmaAddr;

const MARK: [u8; 8] = *b"a visit!";
const NOWHERE: DmaAddr = DmaAddr::new(0x1234_5000);

struct Bench {
    engine: RawEngine,
    device: Device,
    machine: SimMachine,
}

impl Bench {
    fn new() -> Self {
        let machine = boot(|config| config.driver.command_timeout = Duration::from_secs(1));
        let (function, device) = machine.bind(SimMachine::address(Machine::ENGINE)).unwrap();
        Self { engine: RawEngine::new(&*function), device, machine }
    }

    fn unit(&self) -> &AmdIommu {
        self.machine.hardware().iommu.as_ref().unwrap()
    }

    /// A buffer is mapped, written by the device, and unmapped; whether the unmap succeeded.
    fn round(&self) -> bool {
        let buffer = DmaBuffer::<u8>::zeroed(&self.device, 4096).unwrap();
        let mapped: Streaming<_, Bidirectional> = Streaming::map(&self.device, buffer).unwrap();
        assert!(self.engine.write(mapped.dma_address(), MARK));
        mapped.unmap().is_ok_and(|buffer| buffer[..8] == MARK)
    }

    /// Waits for a fault at an address.
    fn await_fault(&self, address: DmaAddr) {
        let start = Instant::now();
        while !self.machine.take_faults().iter().any(|fault| fault.address == address) {
            assert!(start.elapsed() < Duration::from_secs(20), "the fault never comes");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_lost_completion_quarantines_one_buffer_and_the_unit_comes_back() {
    let bench = Bench::new();
    assert!(bench.round());
    bench.unit().drop_completions(1);
    assert!(!bench.round(), "nobody said that the unit had forgotten the buffer");
    assert!(bench.round());
    assert_eq!(bench.machine.iommu().unwrap().statistics().quarantined, 4096, "bytes");
}

#[test]
fn an_event_that_was_never_written_does_not_stop_the_log() {
    let bench = Bench::new();
    bench.unit().drop_events(1);
    assert!(!bench.engine.write(NOWHERE, MARK));
    let next = NOWHERE.wrapping_add(0x1000);
    assert!(!bench.engine.write(next, MARK));
    bench.await_fault(next);
    assert!(bench.round());
}

#[test]
fn a_slow_unit_is_waited_for() {
    let bench = Bench::new();
    bench.unit().slow_down(Duration::from_millis(20));
    let start = Instant::now();
    assert!(bench.round());
    assert!(start.elapsed() >= Duration::from_millis(40), "an invalidation and a completion wait");
}

#[test]
fn an_interrupt_for_nothing_is_harmless() {
    let bench = Bench::new();
    (0..16).for_each(|_| bench.unit().interrupt_for_nothing());
    assert!(bench.round());
    assert!(bench.machine.take_faults().is_empty());
    assert!(!bench.engine.write(NOWHERE, MARK));
    bench.await_fault(NOWHERE);
}
