//! The locks on real threads; their models are in `loom_locks.rs`.

#![cfg(not(loom))]

use platform::sync::{CpuLock, Mutex, PerCpu};

#[test]
fn a_held_cpu_lock_is_not_taken_again() {
    let lock = CpuLock::new(1);
    let guard = lock.try_lock().expect("free");
    assert!(lock.try_lock().is_none());
    drop(guard);
    assert!(lock.try_lock().is_some());
}

#[test]
fn who_fails_takes_the_next_slot() {
    let slots = PerCpu::new(3, |number| number);
    assert_eq!(slots.len(), 4, "rounded up to a power of two");
    let held: Vec<_> = std::iter::from_fn(|| slots.try_lock()).collect();
    let mut numbers: Vec<_> = held.iter().map(|guard| **guard).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3]);
    assert!(slots.try_lock().is_none());
    drop(held);
    assert_eq!(slots.iter().map(|guard| *guard).sum::<usize>(), 6);
}

#[test]
fn no_increment_is_lost() {
    let cpu = CpuLock::new(0u64);
    let mutex = Mutex::new(0u64);
    let slots = PerCpu::new(2, |_| 0u64);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..10_000 {
                    *cpu.lock() += 1;
                    *mutex.lock() += 1;
                    *slots.lock() += 1;
                }
            });
        }
    });
    assert_eq!(
        (*cpu.lock(), *mutex.lock(), slots.iter().map(|slot| *slot).sum::<u64>()),
        (40_000, 40_000, 40_000)
    );
}
