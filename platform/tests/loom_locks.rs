//! `CpuLock`: one at a time, and what one holder wrote the next one sees. With the release store or the acquire made
//! relaxed, loom reports two accesses at once.

#![cfg(loom)]

use loom::thread;
use platform::sync::{Arc, CpuLock};

#[test]
fn holders_follow_each_other() {
    loom::model(|| {
        let lock = Arc::new(CpuLock::new(0));
        let others: Vec<_> = (0..2)
            .map(|_| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || {
                    let Some(mut guard) = lock.try_lock() else { return 0 };
                    *guard += 1;
                    1
                })
            })
            .collect();
        let taken: i32 = others.into_iter().map(|other| other.join().unwrap()).sum();
        assert!(taken >= 1);
        assert_eq!(*lock.lock(), taken);
    });
}
