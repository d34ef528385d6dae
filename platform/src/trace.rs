//! The chain of layers that an operation passes, each named by the layer that bears the name, when it runs.
//!
//! With the feature `trace` a thread can record its own events. Recording is off until asked for; until then an event
//! costs one load of a thread-local flag. Without the feature, or without `std`, it costs nothing.

/// One layer's word that it ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Linux's name for the function that this layer answers to.
    pub name: &'static str,
    /// The address that the layer was given: physical, virtual or I/O, as its Linux counterpart.
    pub address: u64,
    /// The length in bytes.
    pub len: u64,
}

/// Says that the layer `name` runs on the calling thread.
#[inline(always)]
pub fn event(name: &'static str, address: u64, len: u64) {
    #[cfg(all(feature = "trace", feature = "std"))]
    recorder::event(name, address, len);
    #[cfg(not(all(feature = "trace", feature = "std")))]
    let _ = (name, address, len);
}

#[cfg(all(feature = "trace", feature = "std"))]
pub use recorder::record;

#[cfg(all(feature = "trace", feature = "std"))]
mod recorder {
    use alloc::vec::Vec;
    use core::cell::{Cell, RefCell};

    use super::Event;

    std::thread_local! {
        static ON: Cell<bool> = const { Cell::new(false) };
        static EVENTS: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
    }

    /// Runs `f` and returns what the calling thread's layers said meanwhile, in order. A record inside a record takes the
    /// inner events for itself.
    pub fn record<R>(f: impl FnOnce() -> R) -> (R, Vec<Event>) {
        struct Restore {
            on: bool,
            events: Vec<Event>,
        }
        impl Drop for Restore {
            fn drop(&mut self) {
                ON.set(self.on);
                EVENTS.replace(core::mem::take(&mut self.events));
            }
        }
        let _restore = Restore { on: ON.replace(true), events: EVENTS.take() };
        let result = f();
        (result, EVENTS.take())
    }

    // Not an `Event`: it would be written to the stack even when nobody records.
    #[inline(always)]
    pub(super) fn event(name: &'static str, address: u64, len: u64) {
        if ON.get() {
            keep(name, address, len);
        }
    }

    #[cold]
    #[inline(never)]
    fn keep(name: &'static str, address: u64, len: u64) {
        EVENTS.with_borrow_mut(|events| events.push(Event { name, address, len }));
    }
}
