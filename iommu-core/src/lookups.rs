//! Table pages that have left a page table in which somebody looks something up (Linux leaves such lookups to the caller).
//!
//! A lookup of an address that is nobody's in particular owns no range, so it may be in a table page just when an unmap takes
//! that out. Such pages go back to the platform once every lookup that had begun by then has ended: lookups count themselves,
//! in two turns, and nobody waits for anybody.

use core::fmt;

use platform::sync::CpuLock;
use platform::{FrameList, Platform, Window};

/// Lookups that are under way in one domain, and pages that wait for them.
#[derive(Default)]
pub(crate) struct Lookups {
    state: CpuLock<State>,
}

#[derive(Default)]
struct State {
    /// The turn that lookups begin in, 0 or 1.
    turn: usize,
    under_way: [usize; 2],
    /// Pages that left in each turn.
    waiting: [FrameList; 2],
}

/// A lookup that is under way: until it is dropped no table page that it may be in goes back.
pub(crate) struct Lookup<'a> {
    lookups: &'a Lookups,
    platform: &'a dyn Platform,
    turn: usize,
}

impl Lookups {
    /// Says that a lookup begins in a table made of frames of `platform`.
    pub(crate) fn begin<'a>(&'a self, platform: &'a dyn Platform) -> Lookup<'a> {
        let mut state = self.state.lock();
        let turn = state.turn;
        state.under_way[turn] += 1;
        Lookup { lookups: self, platform, turn }
    }

    /// Gives table pages back as soon as no lookup is in them.
    ///
    /// # Safety
    /// As `FrameList::free`, but for lookups that are under way; the page table does not reach the pages any more.
    #[cold]
    pub(crate) unsafe fn free(&self, tables: FrameList, platform: &dyn Platform) {
        let mut state = self.state.lock();
        let turn = state.turn;
        // SAFETY: a domain's tables are frames of one size of its platform.
        unsafe { state.waiting[turn].append(platform.window(), tables) };
        let free = state.settle(platform.window());
        drop(state);
        // SAFETY: the caller's promise, and no lookup that could have found a way to them is under way.
        unsafe { free.free(platform) };
    }
}

impl State {
    /// Takes out the pages that no lookup can be in: those of the other turn, when no lookup is left in it. Then that turn is the
    /// next one.
    fn settle(&mut self, window: Window) -> FrameList {
        let mut free = FrameList::new();
        while self.under_way[1 - self.turn] == 0 {
            let gone = core::mem::take(&mut self.waiting[1 - self.turn]);
            // SAFETY: both are of this domain's frames.
            unsafe { free.append(window, gone) };
            if self.waiting[self.turn].is_empty() {
                break;
            }
            self.turn = 1 - self.turn;
        }
        free
    }
}

impl Drop for Lookup<'_> {
    fn drop(&mut self) {
        let mut state = self.lookups.state.lock();
        state.under_way[self.turn] -= 1;
        let free = state.settle(self.platform.window());
        drop(state);
        // SAFETY: whoever gave them promised that only lookups were in them, and those have ended.
        unsafe { free.free(self.platform) };
    }
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookups")
    }
}
