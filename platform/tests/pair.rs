//! Two words that change at once: whoever reads them in an order in which a torn pair would show never sees one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use platform::sync::pair;

#[repr(align(16))]
struct Aligned([AtomicU64; 3]);

fn values(words: &[AtomicU64]) -> Vec<u64> {
    words.iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

#[test]
fn both_words_are_stored_and_no_other() {
    let words = Aligned([const { AtomicU64::new(7) }; 3]);
    let first: &[AtomicU64; 2] = words.0.first_chunk().unwrap();
    let stored = pair::store(first, [0x1111_2222_3333_4444, 0x5555_6666_7777_8888]);
    assert_eq!(stored, pair::is_available());
    let expected = if stored { [0x1111_2222_3333_4444, 0x5555_6666_7777_8888, 7] } else { [7; 3] };
    assert_eq!(values(&words.0), expected);
}

#[test]
fn what_is_not_aligned_is_left_alone() {
    let words = Aligned([const { AtomicU64::new(7) }; 3]);
    let second: &[AtomicU64; 2] = words.0.last_chunk().unwrap();
    assert!(!pair::store(second, [1, 2]));
    assert_eq!(values(&words.0), [7; 3]);
}

/// Both words of a pair grow together. A reader that reads the second after the first finds it as great or greater, and one that
/// reads the first after the second likewise: two stores would break one of the two.
#[test]
fn nobody_sees_half_a_pair() {
    if !pair::is_available() {
        return;
    }
    let words = Aligned([const { AtomicU64::new(0) }; 3]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let both: &[AtomicU64; 2] = words.0.first_chunk().unwrap();
            for value in 1..50_000 {
                assert!(pair::store(both, [value, value]));
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            let (first, second) = (words.0[0].load(Ordering::Acquire), words.0[1].load(Ordering::Acquire));
            assert!(second >= first, "{first} and then {second}");
            let (second, first) = (words.0[1].load(Ordering::Acquire), words.0[0].load(Ordering::Acquire));
            assert!(first >= second, "{second} and then {first}");
        }
    });
}
