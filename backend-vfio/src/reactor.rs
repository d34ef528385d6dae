//! Waiting for event files in async code: one thread for a device, from the first wait on, that wakes whoever waits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;

use platform::sync::Mutex;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// The thread, and what it watches. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Reactor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    /// Written to when the thread is to end.
    end: OwnedFd,
    /// Who waits for an event file, by its number.
    waiting: Mutex<BTreeMap<u64, Waker>>,
}

/// What the end's file is called; no vector has this number.
const END: u64 = u64::MAX;

impl Reactor {
    /// # Errors
    /// The system's, when it gives no file or no thread.
    pub(crate) fn start() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &end, EventData::new_u64(END), EventFlags::IN)?;
        let shared = Arc::new(Shared { epoll, end, waiting: Mutex::default() });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("vfio interrupts".into()).spawn(move || theirs.run())?;
        Ok(Self { shared })
    }

    /// Wakes `waker` once when `event` can be read, at once if it can be already. `number` is the file's as long as it is watched.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn wake_when_readable(
        &self,
        number: u64,
        event: BorrowedFd<'_>,
        waker: &Waker,
    ) -> io::Result<()> {
        let shared = &self.shared;
        shared.waiting.lock().insert(number, waker.clone());
        let (data, flags) = (EventData::new_u64(number), EventFlags::IN | EventFlags::ONESHOT);
        match epoll::modify(&shared.epoll, event, data, flags) {
            Err(Errno::NOENT) => Ok(epoll::add(&shared.epoll, event, data, flags)?),
            armed => Ok(armed?),
        }
    }

    /// Watches a file no longer.
    pub(crate) fn forget(&self, number: u64, event: BorrowedFd<'_>) {
        // It may never have been watched.
        let _ = epoll::delete(&self.shared.epoll, event);
        let waker = self.shared.waiting.lock().remove(&number);
        // Not under the lock: it is somebody's code.
        drop(waker);
    }
}

impl Shared {
    fn run(&self) {
        const MOST: usize = 32;
        let mut events = Vec::<Event>::with_capacity(MOST);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                // It is no file any more: nobody can be woken.
                Err(_) => return,
            }
            for event in &events {
                let number = event.data.u64();
                if number == END {
                    return;
                }
                let waker = self.waiting.lock().remove(&number);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        // A counter that is full is readable as well.
        let _ = rustix::io::write(self.shared.end.as_fd(), &1_u64.to_ne_bytes());
    }
}
