//! Run-time borrow checking of the tensor memory that kernels access, as `RefCell` does for values.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Memory that kernels of this process have borrowed.
static BORROWED: Mutex<ProcessBorrows> = Mutex::new(ProcessBorrows {
    read: BTreeMap::new(),
    changed: BTreeMap::new(),
});

#[derive(Debug)]
struct ProcessBorrows {
    /// Number of shared borrows of each range.
    read: BTreeMap<Range, usize>,
    /// Start and end of each exclusive borrow. These do not overlap.
    changed: BTreeMap<usize, usize>,
}

/// Addresses of the first byte and of the byte after the last.
type Range = (usize, usize);

impl ProcessBorrows {
    fn is_changed(&self, (start, end): Range) -> bool {
        // Ranges are disjoint, so only the last one that starts before `end` can overlap.
        let last = self.changed.range(..end).next_back();
        last.is_some_and(|(_, &other)| other > start)
    }

    fn is_read(&self, (start, end): Range) -> bool {
        let before = self.read.range(..(end, 0));
        before.into_iter().any(|(&(_, other), _)| other > start)
    }
}

/// The borrows of one kernel, which end when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Borrows {
    own: Mutex<KernelBorrows>,
}

#[derive(Debug, Default)]
struct KernelBorrows {
    read: Vec<Range>,
    changed: Vec<Range>,
}

impl Borrows {
    /// Borrows memory for reading. Returns false if a kernel has borrowed some of it for writing.
    pub(super) fn borrow<T>(&self, start: *const T, len: usize) -> bool {
        let Some(range) = range(start, len) else {
            return true;
        };
        let mut all = lock(&BORROWED);
        if all.is_changed(range) {
            return false;
        }
        *all.read.entry(range).or_default() += 1;
        lock(&self.own).read.push(range);
        true
    }

    /// Borrows memory for writing. Returns false if a kernel has borrowed some of it.
    pub(super) fn borrow_mut<T>(&self, start: *const T, len: usize) -> bool {
        let Some(range) = range(start, len) else {
            return true;
        };
        let mut all = lock(&BORROWED);
        if all.is_changed(range) || all.is_read(range) {
            return false;
        }
        all.changed.insert(range.0, range.1);
        lock(&self.own).changed.push(range);
        true
    }
}

impl Drop for Borrows {
    fn drop(&mut self) {
        let own = self.own.get_mut().unwrap_or_else(PoisonError::into_inner);
        if own.read.is_empty() && own.changed.is_empty() {
            return;
        }
        let mut all = lock(&BORROWED);
        for (start, _) in own.changed.drain(..) {
            all.changed.remove(&start);
        }
        for range in own.read.drain(..) {
            if let Some(count) = all.read.get_mut(&range) {
                *count -= 1;
                if *count == 0 {
                    all.read.remove(&range);
                }
            }
        }
    }
}

/// The bytes of `len` elements at `start`; `None` if there are none.
fn range<T>(start: *const T, len: usize) -> Option<Range> {
    let bytes = size_of::<T>() * len;
    (bytes > 0).then(|| (start.addr(), start.addr() + bytes))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
