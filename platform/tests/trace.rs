//! Recording belongs to the thread that asked for it, and ends with it.

#![cfg(all(feature = "trace", not(loom)))]

use platform::trace::{event, record};

fn names(f: impl FnOnce()) -> Vec<&'static str> {
    record(f).1.into_iter().map(|event| event.name).collect()
}

#[test]
fn events_come_in_order_and_only_while_recording() {
    event("before", 0, 0);
    assert_eq!(
        names(|| {
            event("first", 1, 2);
            event("second", 3, 4);
        }),
        ["first", "second"]
    );
    event("after", 0, 0);
    assert_eq!(names(|| ()), [""; 0]);
}

#[test]
fn another_thread_is_not_heard() {
    assert_eq!(names(|| std::thread::scope(|s| drop(s.spawn(|| event("elsewhere", 0, 0)).join()))), [""; 0]);
}

#[test]
fn a_panic_ends_the_recording() {
    let panicked = std::panic::catch_unwind(|| record(|| panic!("on purpose")));
    assert!(panicked.is_err());
    event("after", 0, 0);
    assert_eq!(names(|| event("own", 0, 0)), ["own"]);
}
