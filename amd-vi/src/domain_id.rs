//! Domain identifiers: the tags of cached translations (Linux: `amd_iommu_pdom_id_alloc`).

use alloc::boxed::Box;
use alloc::vec;

use platform::sync::Mutex;

/// The identifiers 1 to 65535. Zero stays free: it tags what belongs to no domain.
#[derive(Debug)]
pub(crate) struct DomainIds {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    taken: Box<[u64]>,
    /// Where the search begins: an identifier rests as long as possible before it is used again.
    next: u16,
}

impl DomainIds {
    pub(crate) fn new() -> Self {
        let mut taken = vec![0u64; 1024].into_boxed_slice();
        taken[0] = 1;
        Self { state: Mutex::new(State { taken, next: 1 }) }
    }

    /// Takes an identifier that nobody has.
    pub(crate) fn alloc(&self) -> Option<u16> {
        let mut state = self.state.lock();
        let start = state.next;
        let id =
            (0..=u16::MAX).map(|step| start.wrapping_add(step)).find(|id| !is_taken(&state.taken, *id))?;
        state.taken[usize::from(id / 64)] |= 1 << (id % 64);
        state.next = id.wrapping_add(1);
        Some(id)
    }

    /// Gives an identifier back, whose translations every unit has forgotten.
    pub(crate) fn free(&self, id: u16) {
        if id != 0 {
            self.state.lock().taken[usize::from(id / 64)] &= !(1 << (id % 64));
        }
    }
}

fn is_taken(taken: &[u64], id: u16) -> bool {
    taken[usize::from(id / 64)] >> (id % 64) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::DomainIds;

    #[test]
    fn all_but_zero_are_given_once_and_come_back() {
        let ids = DomainIds::new();
        let mut seen = alloc::collections::BTreeSet::new();
        while let Some(id) = ids.alloc() {
            assert!(id != 0 && seen.insert(id));
        }
        assert_eq!(seen.len(), 65535);
        ids.free(1234);
        assert_eq!(ids.alloc(), Some(1234));
        assert_eq!(ids.alloc(), None);
    }
}
